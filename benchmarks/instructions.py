"""
How many instructions does one logging call take?

    python benchmarks/instructions.py [--records 2000] [--python PYTHON] [--json FILE] [--check FILE]

Callgrind counts them (valgrind 3.15 or later; Debian's package `valgrind`), with PYTHONHASHSEED=0 and no listener, so
that nothing but the call is counted. The counts of one build of Python repeat within a few in ten thousand on any
machine, however busy: what a shared machine can hold a change to. They are not time: an append costs a page's first
touch as well, which the kernel pays and nobody counts here.

`--check FILE` fails if a ratio has grown by more than 3 % (ROOM) since the run in FILE with the same version of Python.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tables import number

HERE = Path(__file__).parent
ROOM = 1.03  # a ratio that grows by more: another string made, another call. Compilers and patch levels move it by 1 %
WARM_UP = 2000  # calls, so that caches are filled and the interpreter has specialised its code
LIMIT = 600  # seconds
NULL, QUEUE, OURS = "NullHandler", "QueueHandler", "logsluice"


def count_here(records):
    """Under callgrind: a call of getppid before and after each block makes it write what it has counted since."""
    import call_overhead  # noqa: PLC0415 - here alone: it loads psycopg, the parent has no need of it
    import common  # noqa: PLC0415 - as above

    from logsluice import PostgresHandler  # noqa: PLC0415 - as above

    with common.no_listener(), tempfile.TemporaryDirectory() as folder:
        for calls, around in call_overhead.KINDS.values():
            for name in (NULL, QUEUE, OURS):
                if name == OURS:
                    handler, after = PostgresHandler(dsn="", service="bench"), call_overhead.nothing
                else:
                    handler, after = call_overhead.other("QueueHandler, Queue" if name == QUEUE else name, folder)
                info = common.logger_of(handler).info
                with around():
                    calls(info, WARM_UP)
                    after()
                    os.getppid()
                    calls(info, records)
                    os.getppid()
                after()
        logging.raiseExceptions = False
        os._exit(0)  # nothing is stored, and nobody shall say so


def counted(records, python=sys.executable):
    """{kind: {contestant: instructions a call}}."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--dump-before=getppid",
            python, __file__, "--here", "--records", str(records),
        ]  # fmt: skip
        ran = subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            timeout=LIMIT,
            check=False,
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise SystemExit(f"{ran.stdout}{ran.stderr}\ncallgrind failed: is valgrind installed?")
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        blocks = [int(path.read_text().split("totals: ")[1].split()[0]) for path in dumps][1::2]
    import call_overhead  # noqa: PLC0415 - its names alone

    names = [(kind, name) for kind in call_overhead.KINDS for name in (NULL, QUEUE, OURS)]
    assert len(blocks) == len(names), (len(blocks), len(names))
    found = {}
    for (kind, name), instructions in zip(names, blocks, strict=True):
        found.setdefault(kind, {})[name] = instructions / records
    return found


def added(found):
    """{kind: what ours adds, of what QueueHandler adds}."""
    return {kind: (one[OURS] - one[NULL]) / (one[QUEUE] - one[NULL]) for kind, one in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        return count_here(args.records)
    found = counted(args.records, args.python)
    for kind, one in found.items():
        print(
            f"{kind:12}"
            + "".join(f"{name:>14} {number(value)}" for name, value in one.items())
            + f"   added, of QueueHandler's: {added(found)[kind]:.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
