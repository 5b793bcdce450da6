"""
How many instructions does one logging call take, into PostgreSQL and into a file of JSON lines?

    python benchmarks/instructions.py [--records 500] [--json FILE] [--check FILE] [--functions FILE]

Callgrind counts them (Debian's package `valgrind`), with PYTHONHASHSEED=0 and no listener, so that nothing but the call
is counted. The counts of one build of Python repeat within a few in a thousand on any machine, however busy: what a
shared machine can hold a change to. They are not time: the kernel's part of an append, the first touch of each page, is
not in them.

`--json FILE` keeps the result in FILE, one entry for each minor version of Python. `--check FILE` fails if a ratio has
grown by more than ROOM since the run that is the running Python's entry there. Another build of it is not compared:
they differ too much. `--functions FILE` writes which C functions the instructions of each case are in, without what
they call; PYTHONPATH=OTHER/src counts another checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tables import number

HERE = Path(__file__).parent
ROOM = 1.03  # a ratio that grows by more is another string made, another call; runs differ by 0.3 %
WARM_UP = 1500  # calls, so that caches are filled and the code is specialised: Python 3.10 begins after 1,024
LIMIT = 600  # seconds
# Of keys for these counts alone. "request" is encrypted: three letters.
PUBLIC_KEY = (
    "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VuAyEAzW1RHEnimlj+g9wA6F17vymdm3jl7pUIMWPU3hySBDE=\n-----END PUBLIC KEY-----"
)
KEYS = {"BENCH_SALT": "of-the-benchmarks", "BENCH_KEY": "bG9nc2x1aWNlLWJlbmNobWFyay1mZXJuZXQta2V5ISE="}
NULL, QUEUE, OURS = "NullHandler", "QueueHandler", "logsluice"
# Lines of JSON: the standard library's handler with python-json-logger's formatter, which writes in the call, and ours.
FILE, LINES = "FileHandler, JSON", "logsluice, JSON"
BESIDE = {OURS: QUEUE, LINES: FILE}  # what each of ours is compared with
NAMES = (NULL, QUEUE, OURS, FILE, LINES)
# What redaction costs besides, counted with --all: the calls of a kind, with options of ours.
MORE = {
    "an id's key, plain": ("plain", {"redact": {"keys": ["user_id"]}}),  # nothing to redact: the whole way alone
    "patterns, plain": ("plain", {"redact": "patterns"}),
    "patterns, two extras": ("two extras", {"redact": "patterns"}),
    "a secret key, two extras": ("two extras", {"redact": {"keys": ["request"]}}),
    "a pseudonym, two extras": (
        "two extras",
        {"redact": {"pseudonyms": {"keys": ["request"], "salt_env": "BENCH_SALT"}}},
    ),
    "encrypted, two extras": ("two extras", {"redact": {"encrypt": {"keys": ["request"], "public_key": PUBLIC_KEY}}}),
    "Fernet, two extras": ("two extras", {"redact": {"encrypt": {"keys": ["request"], "fernet_env": "BENCH_KEY"}}}),
}
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
DIGITS = frozenset("0123456789+-*")  # what a line of costs begins with: a line of source, or its distance
TOP = 40  # C functions named of a case: the others have less than 0.3 % of its instructions each


def count_here(records, *, every):
    """Under callgrind: a call of getppid before and after each block makes it write what it has counted since."""
    import call_overhead  # noqa: PLC0415 - here alone: it loads psycopg, the parent has no need of it
    import common  # noqa: PLC0415 - as above

    from logsluice import JsonFileHandler, PostgresHandler  # noqa: PLC0415 - as above

    def made(name, options):
        if name == OURS:
            return PostgresHandler(dsn="", service="bench", **options), call_overhead.nothing
        if name == LINES:
            return JsonFileHandler(filename=f"{folder}/ours", service="bench"), call_overhead.nothing
        if name == FILE:
            return common.json_file(f"{folder}/stdlib"), call_overhead.nothing
        return call_overhead.other("QueueHandler, Queue" if name == QUEUE else name, folder)

    with common.no_listener(), tempfile.TemporaryDirectory() as folder:
        for _, name, (calls, around), options in cases(call_overhead.KINDS, every=every):
            handler, after = made(name, options)
            info = common.logger_of(handler).info
            with around():
                calls(info, WARM_UP)
                after()
                # A full collection that falls into a block by chance is 2 to 8 % of it.
                gc.collect()
                gc.freeze()
                os.getppid()
                calls(info, records)
                os.getppid()
            after()
        logging.raiseExceptions = False
        os._exit(0)  # nothing is stored, and nobody shall say so


def cases(kinds, *, every=False):
    """(kind, contestant, what is logged, our options), in the order in which they are counted."""
    found = [(kind, name, kinds[kind], {}) for kind in kinds for name in NAMES]
    found += [("a typed log", name, (typed, contextlib.nullcontext), {}) for name in (NULL, QUEUE, OURS)]
    more = MORE if every else {}
    return found + [(kind, OURS, kinds[calls], options) for kind, (calls, options) in more.items()]


def typed(info, count):
    """A typed log of five fields, made and logged."""
    from logsluice import contrib  # noqa: PLC0415 - as below

    for n in range(count):
        info(contrib.ApiRequest(method="GET", path="/orders/7", route="/orders/{id}", status=200, duration_ms=n))


def counted(records, *, every):
    """{kind: {contestant: {C function: instructions a call}}}."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--dump-before=getppid",
            sys.executable, __file__, "--here", "--records", str(records), *["--all"] * every,
        ]  # fmt: skip
        ran = subprocess.run(
            command,
            env={**os.environ, **KEYS, "PYTHONHASHSEED": "0"},
            timeout=LIMIT,
            check=False,
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise SystemExit(f"{ran.stdout}{ran.stderr}\ncallgrind failed: is valgrind installed?")
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        blocks = [by_function(path.read_text()) for path in dumps[1::2]]
    import call_overhead  # noqa: PLC0415 - its names alone

    found = {}
    for (kind, name, _, _), block in zip(cases(call_overhead.KINDS, every=every), blocks, strict=True):
        found.setdefault(kind, {})[name] = {function: count / records for function, count in block.items()}
    for kind, (calls, _) in MORE.items():  # the others have nothing to redact
        if kind in found:
            found[kind] = {NULL: found[calls][NULL], QUEUE: found[calls][QUEUE], **found[kind]}
    return found


def by_function(dump):
    """{C function: instructions in itself} of one file of callgrind's."""
    found, names, function, called = Counter(), {}, "", False
    for line in dump.splitlines():
        if line.startswith(("fn=", "cfn=")):  # a name is written once, and then its number
            number_, _, name = line.partition("=")[2].partition(" ")
            if name:
                names[number_] = name.partition("'")[0]  # f'2 is f, called within f
            if line.startswith("fn="):
                function = names[number_]
        elif line.startswith("calls="):
            called = True  # the next line is what the called function took, with all that it called
        elif line[:1] in DIGITS:
            if not called:
                found[function] += int(line.split()[1])
            called = False
    total = int(dump.split("totals: ")[1].split()[0])
    assert found.total() == total, (found.total(), total)
    return found


def totals(found):
    """{kind: {contestant: instructions a call}}."""
    return {kind: {name: sum(one.values()) for name, one in ones.items()} for kind, ones in found.items()}


def profile(found):
    """What `--functions` writes: the other handlers by their plain call, ours by each kind of call."""
    import logsluice  # noqa: PLC0415 - where its source is

    commit = subprocess.run(
        ["git", "-C", Path(logsluice.__file__).parent, "rev-parse", "--short", "HEAD"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    cases = {"null": found["plain"][NULL], "queue": found["plain"][QUEUE]}
    cases.update({kind: ones[OURS] for kind, ones in found.items()})
    cases["file"] = found["plain"][FILE]
    cases.update({f"{kind}, JSON": ones[LINES] for kind, ones in found.items() if LINES in ones})
    written = {}
    for case, counts in cases.items():
        ranks = sorted(counts.items(), key=lambda item: -item[1])
        functions = [[name, round(count)] for name, count in ranks[:TOP]]
        functions.append(["others", round(sum(count for _, count in ranks[TOP:]))])
        written[case] = {"total": round(sum(counts.values())), "functions": functions}
    return {"python": platform.python_version(), "commit": commit, "cases": written}


def added(found, ours=OURS):
    """{kind: what ours adds, of what the handler beside it adds}."""
    other = BESIDE[ours]
    return {kind: (one[ours] - one[NULL]) / (one[other] - one[NULL]) for kind, one in found.items() if ours in one}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--all", action="store_true", help="also what redaction costs: four times as long")
    parser.add_argument("--json", type=Path, help="keep the counts here; goes with --all")
    parser.add_argument("--check", type=Path)
    parser.add_argument("--functions", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        return count_here(args.records, every=args.all)
    functions = counted(args.records, every=args.all)
    found = totals(functions)
    ratios = {"added": added(found), "lines_added": added(found, LINES)}
    for kind, one in found.items():
        counts = "".join(f"{name:>20} {number(value)}" for name, value in one.items())
        shown = [
            f"of {BESIDE[ours].partition(',')[0]}'s {one[kind]:.3f}"
            for ours, one in zip(BESIDE, ratios.values(), strict=True)
            if kind in one
        ]
        print(f"{kind:24}{counts}   added: {', '.join(shown)}")
    if args.json:
        kept = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
        kept[MINOR] = {"build": sys.version, "instructions_a_call": found, **ratios}
        kept = dict(sorted(kept.items(), key=lambda item: int(item[0].split(".")[1])))
        args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if args.functions:
        args.functions.write_text(json.dumps(profile(functions), indent=1) + "\n", encoding="utf-8")
    return judged(ratios, json.loads(args.check.read_text(encoding="utf-8"))) if args.check else 0


def judged(ratios, kept):
    """The exit status: 1 if a ratio has grown."""
    before = kept.get(MINOR)
    if before is None:
        print(f"not compared: nothing was counted with Python {MINOR}, only with {', '.join(kept)}")
        return 0
    if before["build"] != sys.version:
        print(f"not compared: counted with another build of Python ({before['build']})")
        return 0
    compared = [
        (what, kind, ratio, before[what].get(kind, ratio))
        for what, one in ratios.items()
        if what in before  # of lines only one Python's counts are kept
        for kind, ratio in one.items()
    ]
    grown = [one for one in compared if one[2] > one[3] * ROOM]
    for what, kind, ratio, was in grown:
        print(f"{what}, {kind}: {ratio:.3f} is more than {ROOM} times {was:.3f}: what made the call dearer?")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
