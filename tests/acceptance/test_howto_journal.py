"""
The journal's page, run: its shell lines on what a killed program left, each `logsluice journal` that it shows.

Ids of the programs' own are looked for in the table. After each run a process starts on the folder: what was stored by
hand is not stored again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from logsluice.buffer import position
from support.howto import Page, environment
from support.journals import NOWHERE, inherit, lost_and_twice, streams
from support.left import files_of, image_of, leave, reboot, tear
from support.shop import Shop

LIMIT = 60  # seconds: a run takes about one
FOLDER, STREAM = "/var/lib/shop/journal", "5a3c19f0e2b47d86"  # as the page names them
FIRST, COUNT = 300, 6000
VARIABLES = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE",
             "sslmode": "PGSSLMODE"}  # fmt: skip


def query(dsn, text):
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(text)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def page(tmp_path):
    page = Page("journal")
    page.lay_out(tmp_path)
    return page


@pytest.fixture
def left(dsn, tmp_path):
    """Several segments of a killed program, a part of the first below the watermark, the last one torn."""
    journal = tmp_path / "journal"
    stream = leave(dsn, tmp_path, journal, count=COUNT, first=FIRST)
    files = files_of(journal, stream)
    tear(files[-1])
    ((watermark,),) = query(dsn, "SELECT position FROM logsluice.stream")
    image = image_of(files[0])
    assert len(files) >= 3
    assert position(0, image.start) < watermark < position(0, image.end), "the watermark is inside of the first segment"
    return journal, stream


def by_psql(page, folder, dsn, journal, stream, **env):
    """The page's command; (exit status, stdout, stderr)."""
    command = page.command("sh journal-load.sh").replace(FOLDER, str(journal)).replace(STREAM, stream)
    given = conninfo_to_dict(dsn)
    libpq = {VARIABLES[key]: value for key, value in given.items() if key in VARIABLES}
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment(**libpq, **env), capture_output=True, text=True, timeout=LIMIT,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def figure(what, dsn, folder):
    lost, twice = lost_and_twice(dsn, folder)
    print(f"{what}: {FIRST + COUNT} records, lost {len(lost)}, twice {len(twice)}")
    return len(lost), len(twice)


def test_the_lines_store_what_is_behind_the_watermark(dsn, tmp_path, page, left):
    journal, stream = left
    assert by_psql(page, tmp_path, dsn, journal, stream) == (0, f"stored {COUNT}\n", "")
    assert streams(journal) == set()
    assert query(dsn, "SELECT stream, stored, retired IS NOT NULL FROM logsluice.stream") == [
        (int(stream, 16), FIRST + COUNT, True)
    ]
    after = inherit(dsn, journal)
    assert after.adopted == []
    assert figure("psql alone", dsn, tmp_path) == (0, 0)


def test_the_stream_that_nothing_was_stored_of(dsn, tmp_path, page):
    journal = tmp_path / "journal"
    stream = leave(dsn, tmp_path, journal, count=20)
    assert query(dsn, "SELECT stream FROM logsluice.stream") == []
    status, out, err = by_psql(page, tmp_path, dsn, journal, stream)
    assert (status != 0, out) == (True, ""), "no process has made a partition of this day"
    assert "no partition of relation" in err
    statement = re.search(r"^SELECT logsluice\.make_partitions\(.*;$", page_text(), re.MULTILINE)[0]
    query(dsn, re.sub(r"'[\d-]+'", "now()", statement))
    assert by_psql(page, tmp_path, dsn, journal, stream) == (0, "stored 20\n", "")
    inherit(dsn, journal)
    assert lost_and_twice(dsn, tmp_path) == ([], [])


def failing(folder, name):
    """A PATH in which this command fails."""
    folder.mkdir()
    (folder / name).write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_interrupted_behind_the_commit_the_next_process_knows(dsn, tmp_path, page, left):
    journal, stream = left
    text = page.files["journal-load.sh"].replace("rm -f", f"{tmp_path}/bin/rm -f")
    failing(tmp_path / "bin", "rm")
    (tmp_path / "journal-load.sh").write_text(text, encoding="utf-8")
    status, out, _ = by_psql(page, tmp_path, dsn, journal, stream)
    assert (status, out) == (1, f"stored {COUNT}\n")
    assert len(files_of(journal, stream)) >= 3, "the files are still there"
    # Once more by hand, then by a process.
    page.lay_out(tmp_path)
    shutil.copytree(journal, tmp_path / "copy")
    assert by_psql(page, tmp_path, dsn, tmp_path / "copy", stream) == (0, "stored 0\n", "")
    after = inherit(dsn, journal)
    assert [one["state"] for one in after.adopted] == ["done"]
    assert figure("psql, interrupted behind COMMIT", dsn, tmp_path) == (0, 0)


def test_control_without_the_watermark_rows_come_twice(dsn, tmp_path, page, left):
    journal, stream = left
    text = page.files["journal-load.sh"].replace("skip=$(($1 - (0x${file%%-*} << 32)))", "skip=0")
    assert text != page.files["journal-load.sh"]
    (tmp_path / "journal-load.sh").write_text(text, encoding="utf-8")
    assert by_psql(page, tmp_path, dsn, journal, stream)[0] == 0
    assert figure("control: no watermark", dsn, tmp_path) == (0, FIRST)


def test_a_living_process_is_left_alone(dsn, tmp_path, page):
    journal = tmp_path / "journal"
    with Shop(dsn, journal=str(journal), linger=60) as shop:
        shop.log(10)
        (stream,) = streams(journal)
        status, out, err = by_psql(page, tmp_path, dsn, journal, stream)
        assert (status, out) == (1, "")
        assert err == f"journal-load: a living process has stream {stream}, and sends it itself\n"
        assert shop.flush()
        shop.check()


def test_a_row_that_is_refused_stops_all(dsn, tmp_path, page, left):
    journal, stream = left
    query(dsn, "ALTER TABLE logsluice.logs ADD CONSTRAINT no_77 CHECK (attributes->>'id' <> 'run-777')")
    status, out, err = by_psql(page, tmp_path, dsn, journal, stream)
    assert status != 0
    assert out == ""
    assert "no_77" in err
    assert query(dsn, "SELECT count(*) FROM logsluice.logs") == [(FIRST,)]
    assert len(files_of(journal, stream)) >= 3
    # As the page says, the command goes on without it.
    done = shown(f"logsluice journal {FOLDER} --load", tmp_path, dsn, journal, stream)
    assert f"{COUNT - 1 + FIRST:,} records stored, 1 dead letter" in done.stdout, done
    assert figure("refused by psql, then --load", dsn, tmp_path) == (0, 0)


@pytest.mark.parametrize("hole", [False, True])
def test_after_the_machine_went_down(dsn, tmp_path, page, left, hole):
    journal, stream = left
    files = files_of(journal, stream)
    for file in files:
        reboot(file)
    if hole:
        with files[-1].open("r+b") as opened:
            opened.seek(2 * 4096)
            opened.write(bytes(4096))
        assert image_of(files[-1], boot="another").holes == 1
    status, out, err = by_psql(page, tmp_path, dsn, journal, stream)
    if hole:
        assert (status != 0, out) == (True, "")
        assert "has a hole: use logsluice journal" in err
        assert query(dsn, "SELECT count(*) FROM logsluice.logs") == [(FIRST,)]
        assert files_of(journal, stream) == files
    else:
        assert (status, out, err) == (0, f"stored {COUNT}\n", "")
        inherit(dsn, journal)
        assert figure("psql after a reboot", dsn, tmp_path) == (0, 0)


def shown(command, folder, dsn, journal, stream):
    """Run a command of the page on this folder."""
    command = command.replace(FOLDER, str(journal)).replace(STREAM, stream)
    env = environment(LOGSLUICE_DSN=dsn)
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def test_every_command_shown(dsn, tmp_path, page):
    journal = tmp_path / "journal"
    stream = leave(dsn, tmp_path, journal, "a", count=50)
    leave(dsn, tmp_path, journal, "b", count=60)
    (tmp_path / "logging.json").write_text(page.files["logging.json"].replace(FOLDER, str(journal)), encoding="utf-8")
    commands = [command for command in page.commands if command.startswith("logsluice ")]
    assert sum(command.startswith("logsluice journal") for command in commands) == 6
    for number, command in enumerate(commands):
        copy = tmp_path / f"journal-{number}"
        shutil.copytree(journal, copy)  # each finds the whole of it; what is stored then is stored once
        done = shown(command, tmp_path, dsn, journal if "doctor" in command else copy, stream)
        assert done.returncode == 0, done
        assert "--export" in command or done.stderr == "", done
        if "--load" in command:
            assert streams(copy) == (streams(journal) - {stream} if STREAM in command else set())
    assert (tmp_path / "rows.copy").read_bytes().count(b"\n") == 50
    inherit(dsn, journal)
    assert lost_and_twice(dsn, tmp_path) == ([], [])


def test_what_the_page_shows_is_what_is_printed(dsn, tmp_path, page):
    journal = tmp_path / "journal"
    stream = leave(dsn, tmp_path, journal, count=40)
    printed = shown(f"logsluice journal {FOLDER}", tmp_path, dsn, journal, stream).stdout
    text = re.search(r"```text\n(.*?)```", (page_text()), re.DOTALL)[1]
    assert shape(printed, journal, stream) == shape(text, FOLDER, STREAM)


def page_text():
    from support.howto import PAGES

    return (PAGES / "journal.md").read_text(encoding="utf-8")


def shape(text, folder, stream):
    """The words of the output, without the figures of this run."""
    text = text.replace(str(folder), "DIR").replace(stream, "STREAM")
    text = re.sub(r"in database .*", "in database ...", text)
    text = re.sub(r"pid \d+ on \S+,", "pid N on HOST,", text)
    text = re.sub(r"\d[\d:.,Z-]*", "N", text)
    return re.sub(r"segments?|[KM]iB|ext4|tmpfs|overlay", "~", text)


def test_a_folder_for_another_database_is_left(dsn, tmp_path, page):
    assert NOWHERE  # nothing listens there
    journal = tmp_path / "journal"
    stream = leave(dsn, tmp_path, journal, count=10)
    done = shown(f"logsluice journal {FOLDER} --load --dsn {NOWHERE!r}", tmp_path, dsn, journal, stream)
    assert done.returncode == 1
    assert streams(journal) == {stream}
