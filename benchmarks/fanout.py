"""
What a second and a third handler add to a logging call, and what the standard library's add.

    python benchmarks/fanout.py [--rounds 3] [--records 20000] [--json FILE]

Handlers on one logger by turns, in blocks of 500 calls whose order is drawn; CPU time of the calling thread, medians of
blocks, less a NullHandler's. The HTTP receiver is a process of its own that answers 200. At the end all is flushed, and
each handler has stored what it was offered.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import common
from common import ROOM, row

from logsluice import HttpHandler, JsonFileHandler, PostgresHandler
from logsluice.devserver import free_port

BLOCK = 500  # calls: short beside a change of the machine's pace, long beside two looks at the clock

RECEIVER = """
import http.server, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
"""


def calls(info, count):
    for n in range(count):
        info("user %s did %d things to the order", "bob", n, extra={"request": "abc", "n": n})


@contextlib.contextmanager
def receiver():
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", RECEIVER, str(port)])
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


def makers(dsn, folder, url):
    """{name: functions that make its handlers}."""
    options = {"capacity_bytes": ROOM, "shutdown_timeout": common.LIMIT}

    def postgres():
        return PostgresHandler(dsn=dsn, **options)

    def file():
        return JsonFileHandler(filename=f"{folder}/ours.log", **options)

    def http():
        return HttpHandler(url=url, **options)

    def stdlib():
        return common.json_file(f"{folder}/stdlib.log")

    return {
        "NullHandler": (logging.NullHandler,),
        "FileHandler with python-json-logger": (stdlib,),
        "JsonFileHandler": (file,),
        "PostgresHandler": (postgres,),
        "PostgresHandler, JsonFileHandler": (postgres, file),
        "PostgresHandler, JsonFileHandler, HttpHandler": (postgres, file, http),
    }


def one_round(dsn, url, records, draw):
    """{name: CPU ns a call}."""
    took = defaultdict(list)
    common.emptied(dsn)
    with tempfile.TemporaryDirectory() as folder:
        handlers, loggers = [], {}
        for name, made in makers(dsn, folder, url).items():
            loggers[name] = logging.Logger("bench.orders")
            for make in made:
                handlers.append(make())
                loggers[name].addHandler(handlers[-1])
            calls(loggers[name].info, BLOCK)
        for _ in range(records // BLOCK):
            for name in draw.sample(list(loggers), len(loggers)):
                started = time.thread_time_ns()
                calls(loggers[name].info, BLOCK)
                took[name].append((time.thread_time_ns() - started) / BLOCK)
            for handler in handlers:
                handler.flush()  # nobody pays for a listener that still works for another
        for handler in handlers:
            if hasattr(handler, "stats"):
                stats = handler.stats()
                assert stats.stored == stats.offered, stats
            handler.close()
    return {name: statistics.median(blocks) for name, blocks in took.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    draw = random.Random(1)
    with common.prepared_server() as server, receiver() as url:
        found = [one_round(server.dsn(), url, args.records, draw) for _ in range(args.rounds)]
        rows = []
        null = statistics.median(one["NullHandler"] for one in found)
        for name in found[0]:
            added = statistics.median(one[name] for one in found) - null
            if name != "NullHandler":
                rows.append(row(f"added to a NullHandler call: {name}", added / 1000, unit="µs"))
        result = {"facts": common.facts(server), "rounds": args.rounds, "rows": rows, "details": {"ns_a_call": found}}
        common.report("fanout", result, args.json)


if __name__ == "__main__":
    main()
