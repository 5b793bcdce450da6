"""
One program, three handlers: PostgreSQL, a file, an HTTP receiver. Each is killed in turn and comes back, and neither
delays the others: what is in each of them at the end is every record.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import psycopg
import pytest

from logsluice import schema
from logsluice.devserver import free_port
from support import matrix
from support.howto import environment
from support.processes import until
from support.shop import LIMIT

RECORDS = 100_000
PHASES = 7  # of equal length: well, and after each of three faults again

RECEIVER = """
import http.server, json, sys
out = open(sys.argv[2], "a")
class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip
            body = gzip.decompress(body)
        out.write("".join(f"{json.loads(line)['n']}\\n" for line in body.splitlines()))
        out.flush()   # before the answer: what was answered is there, whenever this process is killed
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
"""

PROGRAM = """
import json, logging, logging.config, os, sys
options = {"linger": 0.02, "backoff_initial": 0.02, "backoff_max": 0.2, "io_timeout": 2, "shutdown_timeout": 60}
logging.config.dictConfig({
    "version": 1,
    "handlers": {
        "postgres": {"class": "logsluice.PostgresHandler", "dsn": os.environ["DSN"], **options},
        "file": {"class": "logsluice.JsonFileHandler", "filename": os.environ["FILE"], "max_bytes": 8_000_000, **options},
        "http": {"class": "logsluice.HttpHandler", "url": os.environ["URL"], **options},
    },
    "root": {"level": "INFO", "handlers": ["postgres", "file", "http"]},
})
log = logging.getLogger("shop")
handlers = {handler.get_name(): handler for handler in logging.root.handlers}
n = 0
for line in sys.stdin:                    # an order for so many more records, or a question
    word, _, rest = line.partition(" ")
    if word == "log":
        for n in range(n, n + int(rest)):
            log.info("order %s paid", n, extra={"n": n})
        n += 1
    told = {name: vars(handler.stats()) for name, handler in handlers.items()}
    keys = ("offered", "stored", "waiting", "dropped", "dead", "abandoned", "retries", "breaker")
    print(json.dumps({name: {key: one[key] for key in keys} for name, one in told.items()}), flush=True)
"""


class Receiver:
    """The HTTP receiver, in a process of its own, on one port."""

    def __init__(self, folder):
        self.port, self.out = free_port(), folder / "received"
        self.url = f"http://127.0.0.1:{self.port}/"
        self.process = None

    def start(self):
        self.process = subprocess.Popen([sys.executable, "-c", RECEIVER, str(self.port), str(self.out)])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def numbers(self):
        return [int(line) for line in self.out.read_text().split()] if self.out.exists() else []


class Program:
    def __init__(self, **env):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=environment(**env), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.errors = []
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def ask(self, order="tell"):
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        status = self.process.wait(2 * LIMIT)
        self.reader.join(LIMIT)
        self.process.stdout.close()
        self.process.stderr.close()
        return status


@pytest.fixture
def receiver(tmp_path):
    receiver = Receiver(tmp_path)
    receiver.start()
    yield receiver
    receiver.kill()


def test_each_dies_and_comes_back_and_each_has_every_record(own_server, receiver, tmp_path):
    dsn = own_server.dsn()
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema.migrate(conn)
    folder = tmp_path / "logs"
    program = Program(DSN=dsn, FILE=str(folder / "app.log"), URL=receiver.url)
    part = RECORDS // PHASES

    def phase(name, *well, records=part):
        """Log a part while `name` is gone: the others have all of it, and it keeps what it cannot store."""
        program.ask(f"log {records}")
        told = {}

        def others_have_all():
            told.update(program.ask())
            return all(told[other]["waiting"] == 0 for other in well)

        assert until(others_have_all, LIMIT), told
        if name is not None:
            assert told[name]["waiting"] >= records * 0.9, told
            assert until(lambda: program.ask()[name]["retries"] > 0, LIMIT)

    def back(name):
        assert until(lambda: program.ask()[name]["waiting"] == 0, 2 * LIMIT), program.ask()

    everybody = ("postgres", "file", "http")
    phase(None, *everybody)
    own_server.kill()
    phase("postgres", "file", "http")
    own_server.start()
    back("postgres")
    phase(None, *everybody)
    receiver.kill()
    phase("http", "postgres", "file")
    receiver.start()
    back("http")
    phase(None, *everybody)
    folder.rename(tmp_path / "away")
    folder.write_text("no folder")  # nothing can be opened there
    phase("file", "postgres", "http")
    folder.unlink()
    (tmp_path / "away").rename(folder)
    back("file")
    phase(None, *everybody, records=RECORDS - 6 * part)
    told = program.ask()
    assert program.end() == 0, program.errors
    with psycopg.connect(dsn) as conn:
        rows = [n for (n,) in conn.execute("SELECT (attributes->>'n')::int FROM logsluice.logs")]
    lines = [json.loads(line)["n"] for path in folder.iterdir() for line in path.read_text().splitlines()]
    received = receiver.numbers()
    wanted = list(range(RECORDS))
    counts = {"postgres": len(rows), "file": len(lines), "http": len(received)}
    matrix.row(
        "I-fanout", "memory", lost=set(wanted) - set(rows), twice=[], recovery=None,
        note=f"three sinks, each away once: {counts}, http resent {len(received) - len(set(received))}",
    )  # fmt: skip
    assert sorted(rows) == wanted
    assert sorted(lines) == wanted
    assert set(received) == set(wanted)  # at least once: a receiver killed before its answer gets the batch again
    for name in everybody:
        assert (told[name]["offered"], told[name]["stored"], told[name]["dropped"]) == (RECORDS, RECORDS, 0), told
