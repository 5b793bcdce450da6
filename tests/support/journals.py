"""
Programs that log into a journal and die, and who comes after them.

    run(dsn, tmp_path, PROGRAM, status=137, LOGSLUICE_CRASH_AT="roll:2", **given(journal))     # support/written.py
    after = inherit(dsn, journal)              # a next process on the folder, until no dead one's stream is left in it
    lost, twice = lost_and_twice(dsn, tmp_path)

Each program writes an id down before its logging call and once more when the call has returned: what is stored must
have been begun, what has returned must be stored. `killing` is the storm: several processes, one of them killed every
now and then, while the server restarts.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from logsluice.journal import UnfinishedError, read_image
from support.processes import ended, until
from support.shop import LIMIT, Shop
from support.situations import stored_ids
from support.written import BEGIN

NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere?sslmode=disable"  # nothing listens on port 1

# `order` is written.py's, but that it says before the call that it begins; so a record whose call never returned may be
# stored or not, and one that nobody began may not.
KEEPS = """
BEGUN = os.open(os.environ["IDS"] + ".begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
JOURNAL = os.environ.get("JOURNAL")
OPTIONS = json.loads(os.environ.get("OPTIONS", "{}"))
RUN = os.environ.get("RUN", "run")

def order(name, text="", log=log, level=logging.INFO):
    os.write(BEGUN, f"{name}\\n".encode())
    log.log(level, "order %s %s paid", name, text, extra={"id": str(name)})
    wrote(name)

def journaled(**options):
    configure(journal=JOURNAL, **{**OPTIONS, **options})
"""


def given(journal, name="run", **options):
    """The environment of a program that begins with KEEPS; `name` goes into its ids, options to its handler."""
    return {"JOURNAL": str(journal), "RUN": name, "OPTIONS": json.dumps(options)}


class Inherited(NamedTuple):
    """What a next process found in the folder."""

    seconds: float  # from the making of its handler until nothing of others was left
    adopted: list  # of stats().journal
    figures: dict  # stats().journal


def streams(journal):
    """The names of the streams' folders."""
    return {path.name for path in Path(journal).iterdir() if re.fullmatch("[0-9a-f]{16}", path.name)}


def segments(journal):
    """All segments' files, those of one stream in their order."""
    return sorted(Path(journal).glob("*/*.seg"))


def only_segment(journal):
    """The one segment that holds rows; the next one may be ready, and holds none."""
    (file,) = (one for one in segments(journal) if one.read_bytes().count(b"\n") > 1)
    return file


def image_of(file, boot=None):
    """What a segment's file holds; `boot`: of this machine's run, None: that of the file."""
    data = Path(file).read_bytes()
    written_in = re.search(rb'"boot":"([^"]*)"', data)
    return read_image(data, (written_in[1].decode() if written_in else "") if boot is None else boot)


def ids_in(rows):
    """The ids of the programs' records in frames, in their order."""
    return re.findall(r'"id": "([^"]+)"', rows.decode(errors="replace"))


def ids_of(file):
    """The ids of the whole records in a segment's file. One that was never finished holds none: its maker died first."""
    try:
        image = image_of(file)
    except UnfinishedError:
        return []
    return [one for span in image.spans for one in ids_in(image.data[span.begin : span.end])]


@contextmanager
def heir(dsn, journal, *, read=None, **options):
    """A next process's handler on the folder: this process is not the one that died. It has logged one record."""
    with Shop(dsn, read=read, journal=str(journal), **options) as shop:
        shop.log()
        yield shop


def nothing_left(shop, journal):
    """Whether all that is in the folder is the shop's own."""
    mine = {f"{route.buffer.stream:016x}" for route in shop.handler._routes()}
    return streams(journal) <= mine and not any(listener.adopted for _, listener in shop.handler._pairs)


def inherit(dsn, journal, *, seconds=LIMIT, **options):
    """Be the next process until nothing of a dead one is left."""
    began = time.monotonic()
    with heir(dsn, journal, **options) as shop:
        assert until(lambda: nothing_left(shop, journal), seconds), (streams(journal), shop.stats)
        took = time.monotonic() - began
        assert shop.flush()
        figures = shop.stats.journal
    return Inherited(took, figures["adopted"], figures)


def dead_ids(dsn):
    """The ids in dead_letter, as far as they can still be read."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT row FROM logsluice.dead_letter").fetchall()
    return Counter(one for row in rows for one in ids_in(bytes(row[0])))


def returned(folder):
    """The ids whose calls returned in the programs that wrote theirs below this folder."""
    return Counter(one for file in Path(folder).glob("ids*") if file.suffix != ".begun" for one in lines(file))


def lines(file):
    """The whole lines of a file: a kill can leave half of the last."""
    return Path(file).read_text(encoding="utf-8").rpartition("\n")[0].split()


def lost_and_twice(dsn, folder):
    """The ids that returned and are nowhere, those that are somewhere twice. Nothing else may be stored."""
    wanted = returned(folder)
    begun = {one for file in Path(folder).glob("ids*.begun") for one in lines(file)}
    assert max(wanted.values(), default=1) == 1, "the test gave an id twice"
    found = stored_ids(dsn) + dead_ids(dsn)
    assert found.keys() <= begun, sorted(found.keys() - begun)[:5]
    return sorted(wanted.keys() - found.keys()), sorted(one for one, times in found.items() if times > 1)


# --- places ---------------------------------------------------------------------------------------------------------


@contextmanager
def mounted(where, *options):
    """A file system of its own at this place: `mounted(path, "-t", "tmpfs", "-o", "size=1m", "tmpfs")`. Needs root."""
    where.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, where], capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        pytest.fail(
            f"mount {' '.join(options)} is not permitted here ({done.stderr.strip()}): this row of the matrix needs "
            "a root that may mount; run it as root, in a container with --privileged or --cap-add SYS_ADMIN",
            pytrace=False,
        )
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], timeout=LIMIT, check=True)


def remount(where, options):
    """Change a mount: "size=64m", "ro"."""
    subprocess.run(["mount", "-o", f"remount,{options}", where], timeout=LIMIT, check=True)


# --- the storm ------------------------------------------------------------------------------------------------------

WORKER = (
    BEGIN
    + KEEPS
    + """
import zlib

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
options = {"journal": JOURNAL} if JOURNAL else {}
configure(linger=0.05, **{**OPTIONS, **options})
n = 0
while not stop.is_set():
    name = f"{RUN}-{n}"
    order(name, f"{zlib.crc32(name.encode()):08x}" * (n % 40))
    n += 1
    if n % 20 == 0:
        stop.wait(0.01)      # about 1,500 records a second and process: two cores serve four of them and a server
"""
)


class Storm(NamedTuple):
    """What became of a storm of kills."""

    kills: int
    restarts: int  # of the server
    lives: int  # processes that logged before they were killed, or ended
    logged: int  # calls that returned
    lost: list  # ids
    twice: list
    lost_of_survivors: list  # of processes that ended as they should; part of `lost`
    damaged: list  # ids whose text is not what was logged
    adopted: int  # streams of dead processes that the others, or the last one, sent
    recovery: float  # seconds until nothing of a dead process was left, after all had ended
    seconds: float


class Workers:
    """The processes. Each life has a number, and a file of its own for the ids."""

    def __init__(self, dsn, folder, journal, options):
        self.dsn, self.folder, self.journal, self.options = dsn, Path(folder), journal, options
        self.lives = 0
        self.killed = set()  # numbers
        self.running = []  # (number, process)
        self._text = self.folder / "worker.py"
        self._text.write_text(WORKER, encoding="utf-8")

    def begin(self):
        number, self.lives = self.lives, self.lives + 1
        env = {
            **os.environ,
            **given(self.journal or "", f"{number}", **self.options),
            "DSN": self.dsn,
            "IDS": str(self.folder / f"ids-{number}"),
        }
        with (self.folder / f"stderr-{number}").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, self._text], env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        self.running.append((number, process))

    def kill(self, index):
        number, process = self.running.pop(index)
        process.kill()
        assert process.wait(LIMIT) == -signal.SIGKILL, self.said(number)  # it was alive, and is not now
        self.killed.add(number)

    def logging(self):
        """Those that have logged: from then on SIGTERM ends them well."""
        files = [self.folder / f"ids-{number}" for number, _ in self.running]
        return [index for index, file in enumerate(files) if file.exists() and file.stat().st_size]

    def all_log(self):
        return len(self.logging()) == len(self.running)

    def end(self):
        """Let all end as programs end."""
        for _, process in self.running:
            process.send_signal(signal.SIGTERM)
        for number, process in self.running:
            assert process.wait(LIMIT) == 0, self.said(number)

    def said(self, number):
        return (self.folder / f"stderr-{number}").read_text(encoding="utf-8")

    def close(self):
        for _, process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait(LIMIT)


def restart(server, signum):
    """Restart PostgreSQL: SIGINT is `pg_ctl restart -m fast`, SIGQUIT `-m immediate`, which is a crash."""
    pid = server.pid
    os.kill(pid, signum)
    assert ended(pid, LIMIT)
    server.start()
    assert server.pid != pid


def killing(
    server, dsn, folder, *, kills=20, seed=1, journal=True, workers=4, pause=(0.0, 0.5), restarts=(1.0, 3.0), **options
):
    """
    Kill (SIGKILL) and replace one of the workers so often, at random times, while the server restarts every few seconds.

    `server`: an EmbeddedPostgres of the caller's alone, `dsn` a database with the schema on it, `folder` an empty one.
    `pause`: seconds between kills, from and to. `restarts`: seconds between restarts of the server; None: none.
    Returns a Storm. What is lost or doubled is for the caller to judge; a worker that ends by itself is an error.
    """
    chance = random.Random(seed)
    place = Path(folder) / "journal" if journal else None
    family = Workers(dsn, folder, place, options)
    over, done, trouble = threading.Event(), [], []

    def restarting():
        moods = random.Random(seed + 1)
        try:
            while not over.wait(moods.uniform(*restarts)):
                restart(server, moods.choice((signal.SIGINT, signal.SIGQUIT)))
                done.append(server.pid)
        except BaseException as error:
            trouble.append(error)

    restarter = threading.Thread(target=restarting)
    began = time.monotonic()
    try:
        for _ in range(workers):
            family.begin()
        assert until(family.all_log, LIMIT), [family.said(number) for number, _ in family.running]
        if restarts:
            restarter.start()
        for _ in range(kills):
            assert until(family.logging, LIMIT), [family.said(number) for number, _ in family.running]
            threading.Event().wait(chance.uniform(*pause))
            # One in eight may be killed while it starts; more would only show that Python takes a second to start.
            family.kill(chance.choice(family.logging() if chance.random() < 0.875 else range(workers)))
            family.begin()
        over.set()
        if restarts:
            restarter.join(LIMIT)
        assert not trouble, trouble
        assert until(family.all_log, LIMIT), [family.said(number) for number, _ in family.running]
        family.end()
    finally:
        over.set()
        family.close()
    after = inherit(dsn, place, seconds=2 * LIMIT) if journal else Inherited(0.0, [], {})
    for number in range(family.lives):
        assert "Traceback" not in family.said(number), family.said(number)
        assert "internal error" not in family.said(number), family.said(number)
    lost, twice = lost_and_twice(dsn, folder)
    return Storm(
        kills=len(family.killed),
        restarts=len(done),
        lives=sum(bool(file.stat().st_size) for file in Path(folder).glob("ids-*") if file.suffix != ".begun"),
        logged=returned(folder).total(),
        lost=lost,
        twice=twice,
        lost_of_survivors=[one for one in lost if int(one.split("-")[0]) not in family.killed],
        damaged=_damaged(dsn),
        adopted=len(after.adopted)
        + sum(family.said(n).count("process that is gone was sent") for n in range(family.lives)),
        recovery=after.seconds,
        seconds=time.monotonic() - began,
    )


def _damaged(dsn):
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT attributes->>'id', message FROM logsluice.logs WHERE attributes ? 'id'").fetchall()
    wrong = []
    for name, message in rows:
        text = f"{zlib.crc32(name.encode()):08x}" * (int(name.split("-")[1]) % 40)
        if message != f"order {name} {text} paid":
            wrong.append(name)
    return wrong
