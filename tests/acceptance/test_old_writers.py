"""
Programs and databases of different ages: the wheel of an earlier commit writes into the schema of this checkout, and
this checkout writes into the schema of that wheel. Every id once, whoever made the tables.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from logsluice import journals, schema
from logsluice.cli import main
from logsluice.folder import Folder
from logsluice.tracing import SpanRow, trace
from logsluice.types import logtype
from support.processes import run_program, until
from support.shop import Shop

ROOT = Path(__file__).parents[2]
COMMIT = "7b127752073c0096aac2a61a1a54b09c9fd3846e"  # the last one before migrations 4 and later
ITS_FILES = ["0001_schema", "0002_dead_letters", "0003_traces"]
SECONDS = 120  # a net: building takes some
RECORDS = 300

# Run with the old wheel. Arguments: dsn, journal's folder or "", first id, "kill" or "flush".
PROGRAM = """
import logging, os, signal, sys
from dataclasses import dataclass
import logsluice
from logsluice.types import logtype

@logtype(table="visit")
@dataclass
class Visit:
    tid: int

dsn, folder, first, end = sys.argv[1:]
assert "old_writer_venv" in logsluice.__file__, logsluice.__file__
handler = logsluice.PostgresHandler(dsn=dsn, journal=folder or None, service="old", linger=30 if end == "kill" else 0.01)
log = logging.getLogger("shop")
log.setLevel("INFO")
log.addHandler(handler)
for tid in range(int(first), int(first) + RECORDS):
    if tid % 3 == 2:
        log.info(Visit(tid))
    else:
        with logsluice.trace(f"tid={tid}."):
            log.info("tid=%d.", tid)
    if tid % 100 == 99:
        log.info("poison %d", tid)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
assert handler.flush(30)
handler.close()
print(handler.stats().stored)
""".replace("RECORDS", str(RECORDS))


@logtype(table="visit")
@dataclass
class Visit:
    tid: int


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The folder of an environment with the wheel of COMMIT, built from this checkout's own history."""
    folder = tmp_path_factory.mktemp("old")
    # safe.directory: root reads a checkout of another user's, as in a container that one is mounted into.
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    given = {"capture_output": True, "text": True, "check": False, "timeout": SECONDS}
    if subprocess.run([*git, "cat-file", "-e", COMMIT], **given).returncode:
        subprocess.run([*git, "fetch", "--quiet", "--unshallow"], **given)  # of a clone with --depth
    archive = ["archive", "--format=zip", "--output", str(folder / "old.zip"), COMMIT]
    archived = subprocess.run([*git, *archive], **given)
    if archived.returncode:
        pytest.fail(
            f"commit {COMMIT} is not in this clone, so the wheel that old programs run cannot be built: "
            f"git fetch --unshallow (git says: {archived.stderr.strip()})",
            pytrace=False,
        )
    with zipfile.ZipFile(folder / "old.zip") as packed:  # not tar: Python 3.12 asks for a filter, 3.11.2 has none
        packed.extractall(folder / "src")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]
    run(sys.executable, "-m", "pip", "wheel", *quiet, "--wheel-dir", folder, folder / "src")
    (wheel,) = folder.glob("logsluice-*.whl")
    venv = folder / "old_writer_venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", *quiet, wheel)
    # psycopg and the others come from here; of a folder that a .pth names no further .pth is read, so not this checkout.
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    (packages / "dependencies.pth").write_text("\n".join(sorted(places)), encoding="utf-8")
    return venv / "bin"


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tids(conn, query):
    return [row[0] for row in conn.execute(query).fetchall()]


def check(conn, ids):
    """Each id is a row once: of visit, or of logs and spans. The poisoned ones are dead letters, once."""
    queries = {
        "logs": "SELECT substring(message FROM 'tid=(\\d+)')::int FROM logsluice.logs WHERE message LIKE 'tid=%'",
        "visit": "SELECT tid FROM logsluice.visit",
        "spans": "SELECT substring(name FROM 'tid=(\\d+)')::int FROM logsluice.spans WHERE name LIKE 'tid=%'",
        "dead": "SELECT substring(convert_from(row, 'UTF8') FROM 'poison (\\d+)')::int FROM logsluice.dead_letter",
    }
    found = {name: sorted(row[0] for row in conn.execute(query).fetchall()) for name, query in queries.items()}
    plain = [tid for tid in ids if tid % 3 != 2]
    assert found == {
        "logs": plain, "spans": plain, "visit": [tid for tid in ids if tid % 3 == 2],
        "dead": [tid for tid in ids if tid % 100 == 99],
    }  # fmt: skip


def refuse_poison(conn):
    conn.execute("ALTER TABLE logsluice.logs ADD CONSTRAINT tame CHECK (message NOT LIKE 'poison%') NOT VALID")


def test_an_old_program_writes_into_the_new_schema(old, dsn, tmp_path):
    """In memory; with a journal, killed; what it left is sent by an old program and by one of this checkout."""
    program, folder = tmp_path / "program.py", str(tmp_path / "journal")
    program.write_text(PROGRAM, encoding="utf-8")
    ids = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        refuse_poison(conn)
        assert schema.version(conn) > len(ITS_FILES)

        def write(journal, end):
            first = len(ids)
            ids.extend(range(first, first + RECORDS))
            done = run_program(program, python=old / "python", args=[dsn, journal, str(first), end], timeout=SECONDS)
            assert done.returncode == (-signal.SIGKILL if end == "kill" else 0), done.stderr

        write("", "flush")
        check(conn, ids)
        write(folder, "kill")
        assert left(folder) == 3, "logs, visit and spans"
        write(folder, "flush")
        check(conn, ids)
        write(folder, "kill")
        assert left(folder) == 3
        with Shop(dsn, journal=folder) as shop:
            shop.logger.info("sends what the old one left")
            assert until(lambda: not shop.stats.waiting and left(folder) == 0, SECONDS)
        check(conn, ids)


def left(folder):
    """How many streams of the dead still wait."""
    place = Folder(folder)
    try:
        return len(journals.look(place, count=False).orphans)
    finally:
        place.close()


def test_this_checkout_writes_into_the_old_schema(old, empty_dsn, tmp_path, capsys):
    """create=False, for a program that is updated before its database; doctor and `migrate` see what is to be done."""
    run(old / "logsluice", "migrate", "--dsn", empty_dsn)
    ids = list(range(RECORDS))
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        assert [row[0] for row in conn.execute("SELECT name FROM logsluice.version ORDER BY 1")] == ITS_FILES
        refuse_poison(conn)
        for kind in (Visit, SpanRow):
            conn.execute(kind.__logtype__.ddl())
        for journal, part in ((None, ids[: RECORDS // 2]), (str(tmp_path / "journal"), ids[RECORDS // 2 :])):
            with Shop(empty_dsn, create=False, journal=journal) as shop:
                for tid in part:
                    if tid % 3 == 2:
                        shop.logger.info(Visit(tid))
                    else:
                        with trace(f"tid={tid}."):
                            shop.logger.info("tid=%d.", tid)
                    if tid % 100 == 99:
                        shop.logger.info("poison %d", tid)
                assert shop.flush()
        check(conn, ids)
        later = [file.name for file in schema.sql_files() if file.name not in ITS_FILES]
        assert schema.pending(conn) == later
        assert main(["doctor", "--dsn", empty_dsn]) == 0
        assert f"{', '.join(later)} not applied" in capsys.readouterr().out
        assert main(["migrate", "--dsn", empty_dsn]) == 0, "the old wheel's files are those of this checkout"
        check(conn, ids)
