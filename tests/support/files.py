"""
Programs that log into a file by plain dictConfig, and the oracle: ids in = ids out, over the file and all that was
rotated from it, each line whole.

    with logging_to(path, max_bytes=65536) as log:
        log(100)
        assert log.flush()
    log.check()
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import logging.config
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from support.processes import until

LIMIT = 60  # seconds: a net below waits that end in milliseconds
# Everything quick: a test waits for the tenth retry, not for the tenth of an hour.
QUICK = {"linger": 0.01, "backoff_initial": 0.01, "backoff_max": 0.05, "shutdown_timeout": LIMIT, "slow_batch": 60}
_names = itertools.count()


def config(handlers, *, formatters=None, logger="", level="DEBUG"):
    """A dictConfig of these handlers, {name: options}."""
    made = {name: {"class": "logsluice.JsonFileHandler", **QUICK, **options} for name, options in handlers.items()}
    loggers = {logger: {"level": level, "handlers": list(made), "propagate": False}}
    return {"version": 1, "disable_existing_loggers": False, "formatters": formatters or {}, "handlers": made,
            "loggers": loggers}  # fmt: skip


def family(path):
    """The file and all that was rotated from it, by whom ever, the oldest first."""
    path = Path(path)
    files = [
        one for one in path.parent.iterdir() if one.name.startswith(path.name) and one.suffix not in {".dead", ".part"}
    ]
    return sorted(files, key=lambda one: (one.name == path.name, one.stat().st_mtime_ns, one.name))


def text_of(file):
    """What a file holds, uncompressed."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return data.decode()


def lines_of(path):
    """The lines of the family, each read as JSON; every one must end and be valid."""
    found = []
    for file in family(path):
        text = text_of(file)
        assert text == "" or text.endswith("\n"), (file.name, text[-200:])
        found += [json.loads(line, parse_constant=_refuse) for line in text.split("\n")[:-1]]
    return found


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def ids_in(path):
    """How often each id stands in the family."""
    return Counter(line["id"] for line in lines_of(path) if "id" in line)


class Log:
    """What `logging_to` yields: call it with a number of records to log."""

    def __init__(self, path, logger, handlers):
        self.path, self.logger, self.handlers = Path(path), logger, handlers
        self.given = []  # ids, in their order

    @property
    def handler(self):
        return self.handlers[0]

    def __call__(self, count=1, *, level=logging.INFO, text="", **extra):
        for _ in range(count):
            name = f"{self.logger.name}-{len(self.given)}"
            self.logger.log(level, "order %s %s", name, text, extra={"id": name, **extra})
            self.given.append(name)

    def flush(self):
        return self.handler.flush(LIMIT)

    @property
    def stats(self):
        return self.handler.stats()

    def reached(self, condition):
        return until(condition, LIMIT)

    def check(self):
        """Every id once, in order over the files where only this process writes."""
        assert ids_in(self.path) == Counter(self.given)


@contextmanager
def logging_to(path, *, formatters=None, also=None, **options):
    """Configure this process to log into a file; `also`: further handlers by their names."""
    name = f"shop{next(_names)}"
    given = {"file": {"filename": str(path), **options}, **(also or {})}
    before = logging.root.handlers[:]
    logging.config.dictConfig(config(given, formatters=formatters, logger=name))
    logger = logging.getLogger(name)
    handlers = logger.handlers[:]
    log = Log(path, logger, handlers)
    failed = True
    try:
        yield log
        failed = False
    finally:
        for handler in handlers:
            if failed:
                handler._settings.__dict__["shutdown_timeout"] = 0.1  # a failed test ends soon
            handler.close()
        logger.handlers.clear()
        logging.root.handlers[:] = before


# --- programs -------------------------------------------------------------------------------------------------------

# Each id is written down before its call (`begun`) and after it (`ids`).
BEGIN = """
import json, logging, logging.config, os, select, signal, sys, threading, time

CONFIG, NAME = json.loads(os.environ["CONFIG"]), os.environ["NAME"]
IDS = os.open(os.environ["IDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
logging.config.dictConfig(CONFIG)
log = logging.getLogger("shop")

def handler():
    return logging.getLogger().handlers[0]

def order(n, text=""):
    log.info("order %s-%s %s", NAME, n, text, extra={"id": f"{NAME}-{n}"})
    os.write(IDS, f"{NAME}-{n}\\n".encode())
"""


class Process:
    """A program that begins with BEGIN."""

    def __init__(self, text, folder, name, *, config, env=None, umask=-1):
        self.ids_path = Path(folder) / f"ids-{name}"
        self.err_path = Path(folder) / f"stderr-{name}"
        script = Path(folder) / f"program-{name}.py"
        script.write_text(BEGIN + text, encoding="utf-8")
        env = {**os.environ, "CONFIG": json.dumps(config), "NAME": name, "IDS": str(self.ids_path),
               "PYTHONFAULTHANDLER": "1", **(env or {})}  # fmt: skip
        with self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, script], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err,
                umask=umask, text=True,
            )  # fmt: skip

    @property
    def ids(self):
        """The ids whose calls returned; a kill can leave half of the last."""
        if not self.ids_path.exists():
            return []
        return self.ids_path.read_text(encoding="utf-8").rpartition("\n")[0].split()

    @property
    def err(self):
        return self.err_path.read_text(encoding="utf-8")

    def wait(self, status=0):
        """What it printed; it must end so."""
        try:
            out = self.process.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(self.err) from None
        assert self.process.returncode == status, self.err
        return out

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=LIMIT)


def logrotate(folder, *options):
    """Run Debian's logrotate on `folder/logrotate.conf`; what it said."""
    program = find("logrotate")
    (folder / "logrotate.conf").chmod(0o644)
    done = subprocess.run(
        [program, "-v", "-s", folder / "logrotate.state", *options, folder / "logrotate.conf"],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^error:", done.stderr, re.MULTILINE), done.stderr
    return done.stdout + done.stderr


def find(program):
    """The path of a program of Debian's; fails, and says what to install, where it is not there."""
    import shutil

    import pytest

    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{program} is not there: apt-get install -y {program}", pytrace=False)
    return found
