"""`logsluice prune`: shown first, dropped when asked to, and nothing that is to be kept."""

import argparse
import shlex
from datetime import timedelta, timezone

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from logsluice import partitions, schema
from logsluice.cli import common, prune
from logsluice.errors import ConfigError, LogsluiceError

DAY = timedelta(days=1)
INSERT = "INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (%s, 20, 1, 1)"


def logsluice(*argv):
    parser = argparse.ArgumentParser(prog="logsluice")
    prune.register(parser.add_subparsers(required=True))
    args = parser.parse_args(argv)
    return args.run(args)


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def old(conn):
    """Partitions of 40 and 39 days ago and of today, a row in each; the names of the old ones."""
    now = conn.execute("SELECT now()").fetchone()[0].astimezone(timezone.utc)
    made = []
    for days in (40, 39, 0):
        made += partitions.ensure_at(conn, "logsluice", "day", now - days * DAY)
        conn.execute(INSERT, [now - days * DAY])
    conn.execute("ANALYZE logsluice.logs")
    return made[:2]


def count(conn):
    return conn.execute("SELECT count(*) FROM logsluice.logs").fetchone()[0]


def test_it_shows_first_and_drops_when_told(dsn, conn, old, capsys):
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d") == 0
    shown = capsys.readouterr().out
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--dry-run") == 0
    assert capsys.readouterr().out == shown
    assert count(conn) == 3
    lines = shown.splitlines()
    assert lines[0].split() == ["partition", "from", "(UTC)", "to", "(UTC)", "rows", "size"]
    assert [line.split()[0] for line in lines[1:3]] == old
    assert lines[1].split()[2:7:2] == ["00:00", "00:00", lines[1].split()[6]]
    assert all("~1 " in line and "KiB" in line for line in lines[1:3])
    assert lines[3].startswith("2 in all")
    assert "~2" in lines[3]
    assert "dry run" in shown
    # What it tells to run does it: only the DSN, which may hold a password, is left to be filled in.
    command = shlex.split(lines[-1])
    assert command[0] == "logsluice"
    assert command[-2:] == ["--dsn", "..."]
    assert logsluice(*command[1:-1], dsn) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("dropped")] == [
        f"dropped {name}" for name in old
    ]
    assert count(conn) == 1
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--yes") == 0
    assert "nothing to drop" in capsys.readouterr().out


def test_one_that_is_in_use_keeps_no_other_and_is_finished_next_time(dsn, conn, old, capsys, monkeypatch):
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", "50ms")
    conn.execute(f"CREATE VIEW public.report AS SELECT * FROM logsluice.{old[0]}")
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--yes") == 1
    out, err = capsys.readouterr()
    assert f"dropped {old[1]}\n" in out
    assert f"not dropped: {old[0]}: " in err
    assert "other objects depend on it" in err
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d") == 0
    assert "dropping it was interrupted" in capsys.readouterr().out
    conn.execute("DROP VIEW public.report")

    with psycopg.connect(dsn) as reader:
        reader.execute(f"SELECT * FROM logsluice.{old[0]}")
        assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--yes") == 1
        assert "an open transaction still uses it" in capsys.readouterr().err
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--yes") == 0
    assert [part.name for part in partitions.listed(conn, "logsluice")][:-1] == []


def test_a_reader_of_logs_lets_it_end_in_time(dsn, conn, old, capsys, monkeypatch):
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", "50ms")
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM logsluice.logs")
        for _ in range(2):
            assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--yes") == 1
            assert capsys.readouterr().err.splitlines() == [
                f"not dropped: {old[0]}: an open transaction still uses it",
                "nothing else can be dropped before it; run the same again, it goes on from there",
            ]
    # Finished before anything older: PostgreSQL would refuse to begin another one.
    now = conn.execute("SELECT now()").fetchone()[0]
    partitions.ensure_at(conn, "logsluice", "day", now - 50 * DAY)
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--yes") == 0
    assert len(partitions.listed(conn, "logsluice")) == 1


def test_one_at_a_time(dsn, conn, old, capsys):
    conn.execute("SELECT pg_advisory_lock(hashtextextended('logsluice maintain logsluice', 0))")
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d") == 0
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--yes") == 1
    assert "a maintainer is at work: nothing done" in capsys.readouterr().err
    assert count(conn) == 3


@pytest.mark.parametrize("keep", ["30m", "23h", "0d", "1439m"])
def test_less_than_a_day_is_refused_before_anything_else(keep):
    with pytest.raises(ConfigError, match=r"at least 1 day.*m is minutes"):
        logsluice("prune", "--dsn", "host=/nowhere", "--keep", keep, "--yes")


def test_the_command_to_run_repeats_what_was_asked(dsn, conn, capsys):
    schema.migrate(conn, "My Logs")
    now = conn.execute("SELECT now()").fetchone()[0]
    partitions.ensure_at(conn, "My Logs", "hour", now - 40 * DAY)
    assert logsluice("prune", "--dsn", dsn, "--schema", "My Logs", "--keep", "36h") == 0
    assert capsys.readouterr().out.endswith("logsluice prune --keep 2160m --schema 'My Logs' --yes --dsn ...\n")


def test_a_plain_table_has_no_partitions(empty_dsn):
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        schema.migrate(conn, partition="none")
    with pytest.raises(LogsluiceError, match=r"no partitioned table .*`logsluice maintain`"):
        logsluice("prune", "--dsn", empty_dsn, "--keep", "30d")


def test_a_role_that_does_not_own_the_table_is_told(dsn, conn, old, capsys):
    name = f"reader_{conn.info.dbname}"
    conn.execute(f"CREATE ROLE {name}; GRANT USAGE ON SCHEMA logsluice TO {name}")
    conn.execute(f"GRANT SELECT ON logsluice.hold TO {name}")  # nothing is dropped where holds cannot be read
    try:
        assert logsluice("prune", "--dsn", make_conninfo(dsn, options=f"-c role={name}"), "--keep", "30d", "--yes") == 1
    finally:
        conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    said = capsys.readouterr().err
    assert said.count("must be owner of table") == said.count("connect as a role that may: the owner") == 2
    assert count(conn) == 3


@pytest.mark.parametrize(
    ("text", "meaning"), [("90m", 90 / 1440 * DAY), ("12h", DAY / 2), ("30d", 30 * DAY), ("4w", 28 * DAY), ("1d", DAY)]
)
def test_durations(text, meaning):
    assert common.duration(text) == meaning


@pytest.mark.parametrize("text", ["", "30", "d", "1.5d", "30 d", "30D", "1y", "٣d", "9999999d"])
def test_no_durations(text, capsys):
    with pytest.raises(SystemExit):
        logsluice("prune", "--keep", text)
    assert "30d" in capsys.readouterr().err


def test_what_a_legal_hold_keeps_is_shown_and_stays(dsn, conn, old, capsys):
    conn.execute("INSERT INTO logsluice.hold (name, reason, match) VALUES ('case 7', 'asked for', '{\"seq\": 1}')")
    conn.execute(f"DELETE FROM logsluice.{old[1]}")
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d") == 0
    assert capsys.readouterr().out.count("kept by the legal hold 'case 7'") == 1
    assert logsluice("prune", "--dsn", dsn, "--keep", "30d", "--yes") == 0
    out = capsys.readouterr().out
    assert f"kept {old[0]}: legal hold 'case 7'" in out
    assert f"dropped {old[1]}" in out
    assert count(conn) == 2
