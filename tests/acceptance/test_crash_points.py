"""
The fault matrix, C-02 and C-03: the process dies at a named place (crashpoints.py), and a next one goes on.

Each death is proved by the line that the process left on stderr. What it had logged is told by ids it wrote down: once
the call has returned, a record is stored once, whatever the place.
"""

from __future__ import annotations

import itertools

import pytest

from logsluice import crashpoints
from support import matrix
from support.journals import (
    KEEPS,
    given,
    ids_in,
    ids_of,
    inherit,
    lost_and_twice,
    segments,
    streams,
)
from support.proxy import Proxy
from support.written import run

ROOM = 10  # times the matrix's own limit: the machine of a test is shared
RESTART = 2.0  # seconds: the matrix's limit for the next process
TIMES = 1, 2, 5

# 12 MB: five segments fill and are stored, from 256 KiB on, each twice as large. The first commits end inside of a
# segment: who comes next reads a batch of which the beginning is stored.
LOGS = (
    KEEPS
    + """
journaled(linger=0.01)
for n in range(1500):
    order(f"{RUN}-{n}", "x" * 8000)
    if n == 0:
        handler().flush(20)      # connected
    elif n < 40:
        handler()._pair[1].hurry()
        threading.Event().wait(0.002)
"""
)
# Five streams, each with a record, that nobody has sent.
FIVE_ORPHANS = (
    KEEPS
    + """
import logsluice
for n in range(5):
    log = logging.Logger(f"shop.{n}")
    log.addHandler(logsluice.PostgresHandler(dsn=DSN, journal=JOURNAL, linger=30))
    order(f"{RUN}-{n}", log=log)
os._exit(9)
"""
)
# One stream of seven segments, that nobody has sent.
BACKLOG = LOGS.replace("flush(20)", "flush(0)") + "os._exit(9)\n"
# Adopts what is there, and logs meanwhile.
INHERITS = (
    KEEPS
    + """
journaled(linger=0.01)
orders(RUN)
until(lambda: len([name for name in os.listdir(JOURNAL) if len(name) == 16]) == 1 and not handler()._pair[1].adopted)
"""
)
OPTIONS = {"fsync": [{"fsync": "always"}, {"fsync": 0.05}]}
ORPHANS = {"adopt": FIVE_ORPHANS, "quarantine": BACKLOG}


lives = itertools.count()  # for ids that no other process has


@pytest.fixture
def proxy(dsn):
    """Orphans are adopted by who has their target: host and port are part of it."""
    with Proxy(dsn) as proxy:
        yield proxy


def leave_behind(proxy, tmp_path, text, journal, name):
    """A process logs while the server is away, and dies."""
    proxy.refuse()
    run(proxy.dsn, tmp_path, text, status=9, **given(journal, name))
    proxy.heal()


def die(dsn, tmp_path, text, name, n, journal, options):
    """The process dies there, the nth time that it comes there, and nowhere else."""
    env = given(journal, f"{name}-{next(lives)}", **options)
    ran = run(dsn, tmp_path, text, status=crashpoints.STATUS, LOGSLUICE_CRASH_AT=f"{name}:{n}", **env)
    said = [line for line in ran.program.stderr.splitlines() if line.startswith("logsluice: crash point")]
    assert said == [f"logsluice: crash point {name}"], ran.program.stderr
    return ran


def filled(journal):
    """The segments that hold records; a spare, made ready and never used, holds none."""
    return [file for file in segments(journal) if ids_of(file)]


def damage_headers(journal):
    """Flip a bit in the first line of the first five segments; the ids in them, by the file's name."""
    lost = {}
    for file in filled(journal)[: max(TIMES)]:
        lost[file.name] = ids_of(file)
        with file.open("r+b") as open_file:
            open_file.seek(40)
            byte = open_file.read(1)
            open_file.seek(40)
            open_file.write(bytes([byte[0] ^ 1]))
    return lost


@pytest.mark.parametrize("name", crashpoints.NAMES)
def test_c_02_dies_at(name, dsn, proxy, tmp_path):
    """The process dies at each named place, the first, second and fifth time."""
    deaths, seconds, quarantined = 0, [], []
    for options in OPTIONS.get(name, [{}]):
        for n in TIMES:
            journal = tmp_path / f"journal-{n}-{options.get('fsync', '')}"
            if name in ORPHANS:
                leave_behind(proxy, tmp_path, ORPHANS[name], journal, f"orphan-{n}")
            if name == "quarantine":
                hidden = damage_headers(journal)
                assert len(hidden) == max(TIMES)
                quarantined += [one for ids in hidden.values() for one in ids]
            die(proxy.dsn, tmp_path, INHERITS if name in ORPHANS else LOGS, name, n, journal, options)
            deaths += 1
            seconds.append(inherit(proxy.dsn, journal, read=dsn).seconds)
            assert not streams(journal)
    lost, twice = lost_and_twice(dsn, tmp_path)
    if name == "quarantine":
        # What was in a file whose first line is damaged is in no table: it is in the quarantine, whole.
        kept = [file for journal in tmp_path.glob("journal-*") for file in (journal / "quarantine").iterdir()]
        in_files = [one for file in kept for one in ids_in(file.read_bytes())]
        assert sorted(in_files) == sorted(quarantined) == lost
        lost = []
    note = f"died there {deaths} times: n = {', '.join(map(str, TIMES))}; next process {max(seconds):.2f} s at most"
    matrix.row("C-02", "journal", lost=lost, twice=twice, recovery=max(seconds), note=f"{name}: {note}")
    assert max(seconds) < RESTART * ROOM


@pytest.mark.parametrize("name", ["adopt", "send", "after-commit", "unlink"])
def test_c_03_dies_in_recovery(name, dsn, proxy, tmp_path):
    """The process dies while it recovers, and so does the next one, five times."""
    journal = tmp_path / "journal"
    leave_behind(proxy, tmp_path, BACKLOG, journal, "orphan")
    assert len(filled(journal)) == 7
    for n in (1, 2, 1, 2, 1):
        die(proxy.dsn, tmp_path, INHERITS, name, n, journal, {})
    after = inherit(proxy.dsn, journal, read=dsn)
    lost, twice = lost_and_twice(dsn, tmp_path)
    assert not (journal / "quarantine").exists()
    note = f"{name}: died there 5 times in a row; {len(after.adopted)} streams adopted by the sixth"
    matrix.row("C-03", "journal", lost=lost, twice=twice, recovery=after.seconds, note=note)
    assert after.seconds < RESTART * ROOM
