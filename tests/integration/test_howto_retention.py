"""docs/howto/retention.md: its rules, commands, program and SQL run, and do what it says; `logsluice maintain` itself."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from datetime import timedelta, timezone

import psycopg
import pytest

from logsluice import partitions
from logsluice.cli import main
from logsluice.contrib import Activity, JobLog
from support.howto import BLOCK, PAGES, Page, Service, environment
from support.processes import until

TEXT = (PAGES / "retention.md").read_text(encoding="utf-8")
SECONDS = 60  # a second as a rule; a busy machine may take its time
DAY = timedelta(days=1)
INSERT = "INSERT INTO logsluice.logs (ts, level, message, user_id, stream, seq) VALUES (%s, %s, %s, %s, 1, 1)"


@pytest.fixture
def page(tmp_path):
    page = Page("retention")
    page.lay_out(tmp_path)
    return page


@pytest.fixture
def conn(dsn):
    """A database with rows of 40 and 5 days ago."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        now = conn.execute("SELECT now()").fetchone()[0].astimezone(timezone.utc)
        for kind in (Activity, JobLog):
            conn.execute(kind.__logtype__.ddl())
        for days in (40, 5):
            partitions.ensure_at(conn, "logsluice", "day", now - days * DAY)
            for level, message in ((10, "debug"), (20, "info"), (50, "critical")):
                conn.execute(INSERT, [now - days * DAY, level, f"{message} {days}", "u-7"])
        yield conn


def messages(conn):
    return {row[0] for row in conn.execute("SELECT message FROM logsluice.logs").fetchall()}


def shell(command, folder, dsn):
    return subprocess.run(
        shlex.split(command), cwd=folder, env=environment(LOGSLUICE_DSN=dsn), timeout=SECONDS, capture_output=True,
        text=True, check=True,
    ).stdout  # fmt: skip


def test_the_commands_of_the_page(page, conn, dsn, tmp_path):
    dry, once, every = (one for one in page.commands if one.startswith("logsluice maintain"))
    said = shell(dry, tmp_path, dsn)
    assert "dry run: nothing is changed" in said
    assert "logs DEBUG 3d: 2 rows" in said
    assert len(messages(conn)) == 6
    # Each line of the sample is of a rule that the file has.
    assert set(json.loads(page.files["retention.json"])) <= {
        part for line in said.splitlines() for part in line.split()
    }
    assert "logs DEBUG 3d: 2 rows" in shell(once, tmp_path, dsn)
    assert messages(conn) == {"critical 40", "info 5", "critical 5"}
    with Service(every, tmp_path, LOGSLUICE_DSN=dsn) as service:
        assert until(lambda: "partitions made" in service.output, SECONDS), service.output
        assert service.stop(signal.SIGTERM) == 0
    assert "logs * 30d: 0 rows" in service.output

    for language, _, text in BLOCK.findall(TEXT):
        if language == "sql":
            conn.execute(text)
    assert conn.execute("UPDATE logsluice.hold SET starts = NULL, ends = now() - interval '20 days'").rowcount == 1
    count, forget, _ = (one for one in page.commands if one.startswith("logsluice forget"))
    assert subprocess.run(
        shlex.split(count), env=environment(LOGSLUICE_DSN=dsn), capture_output=True, text=True, timeout=SECONDS
    ).stdout.startswith("logs: 2 rows to delete, 1 kept by a legal hold")
    conn.execute("DELETE FROM logsluice.hold")
    assert shell(forget, tmp_path, dsn).startswith("logs: 3 rows\n")
    assert messages(conn) == set()


def test_the_program_of_the_page(page, conn, dsn, tmp_path):
    with psycopg.connect(dsn, autocommit=True) as blocker:
        blocker.execute("SELECT pg_advisory_lock(hashtextextended('logsluice maintain logsluice', 0))")
        shell("python shop.py", tmp_path, dsn)
    assert "a record that will be kept for 30 days" in messages(conn), "stored while another one maintains"


def test_options_of_the_command(conn, dsn, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    assert main(["maintain", "--once", "--keep", "*=30d", "--keep", "logs:DEBUG=forever"]) == 0
    assert messages(conn) == {"debug 40", "debug 5", "info 5", "critical 5"}
    capsys.readouterr()
    rules = tmp_path / "rules.json"
    rules.write_text('{"DEBUG": "3d", "*": "90d"}')
    assert (
        main(["maintain", "--once", "--rules", str(rules), "--keep", "DEBUG=20d", "--types", "logsluice.contrib"]) == 0
    )
    assert "logs DEBUG 20d: 1 rows" in capsys.readouterr().out, "what is said last wins"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--keep", "30d"], "RULE=DURATION"),
        (["--keep", "*=30m"], "at least 1 day"),
        (["--keep", "archive=7d"], "write --archive TARGET, or log_type=archive"),
        (["--rules", "/nowhere.json"], "cannot be read as JSON"),
        (["--types", "no_such_module"], "cannot be imported"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(argv, message, capsys):
    assert main(["maintain", "--dsn", "host=/nowhere", "--once", *argv]) == 2
    assert message in capsys.readouterr().err


def test_never_without_a_pause(capsys):
    assert main(["maintain", "--dsn", "host=/nowhere", "--every", "0m"]) == 2
    assert "at least 1 minute" in capsys.readouterr().err


def test_what_is_left_undone_is_in_the_exit_status(conn, dsn, capsys):
    name = partitions.listed(conn, "logsluice")[0].name
    conn.execute(f"CREATE VIEW public.report AS SELECT * FROM logsluice.{name}")
    assert main(["maintain", "--dsn", dsn, "--once", "--keep", "*=30d"]) == 1
    assert f"not done: {name} is not dropped" in capsys.readouterr().out


def test_a_server_that_is_away_ends_no_daemon(tmp_path):
    with Service('logsluice maintain --every 6h --dsn "host=127.0.0.1 port=1"', tmp_path) as service:
        assert until(lambda: "cannot connect" in service.output, SECONDS), service.output
        assert service.process.poll() is None
        assert service.stop(signal.SIGTERM) == 1
