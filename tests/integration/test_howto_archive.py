"""docs/howto/archive.md: its commands and queries run, and do what it says."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta, timezone

import duckdb
import psycopg
import pytest

from logsluice import partitions
from logsluice.cli import main
from support.howto import Page

DAY = timedelta(days=1)
INSERT = "INSERT INTO logsluice.logs (ts, level, message, attributes, stream, seq) VALUES (%s, %s, %s, %s, 1, %s)"


@pytest.fixture
def conn(dsn, tmp_path, monkeypatch):
    """A database with rows of 35 and 5 days ago, in the page's folder."""
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    monkeypatch.chdir(tmp_path)
    with psycopg.connect(dsn, autocommit=True) as conn:
        now = conn.execute("SELECT now()").fetchone()[0].astimezone(timezone.utc)
        for days in (35, 5):
            partitions.ensure_at(conn, "logsluice", "day", now - days * DAY)
            for seq, (level, text) in enumerate(((10, "debug"), (20, "info"), (40, "error"))):
                conn.execute(INSERT, [now - days * DAY, level, f"{text} {days}", json.dumps({"order_id": days}), seq])
        yield conn


def messages(conn, table="logs"):
    return {row[0] for row in conn.execute(f"SELECT message FROM logsluice.{table}").fetchall()}


def test_the_page(conn, tmp_path, capsys):
    page = Page("archive")
    page.lay_out(tmp_path)

    def do(start, **changes):
        argv = next(one for one in page.commands if one.startswith(start)).split()[1:]
        assert main([changes.get(one, one) for one in argv]) == 0
        return capsys.readouterr().out

    assert "archived before it went: 2 files, 4 rows" in do("logsluice maintain")
    assert messages(conn) == {"info 5", "error 5"}
    ((_, errors, example),) = duckdb.sql(page.files["errors.sql"]).fetchall()
    assert (errors, example) == (1, "error 35")
    assert do("logsluice restore archive --dry-run").count("sound") == 2
    assert messages(conn) == {"info 5", "error 5"}
    when = {"2026-10-20": "36d", "2026-10-28": "30d"}
    do("logsluice restore archive --table", **when)
    assert messages(conn) == {"info 5", "error 5", "debug 35", "info 35", "error 35"}
    do("logsluice restore archive --into")
    assert messages(conn, "old_logs") == {"debug 35", "info 35", "error 35", "debug 5"}
    assert "0 files" in do("logsluice archive archive --until 7d")
    assert "1 files, 2 rows" in do("logsluice archive archive --table", **{"2026-10-01": "20d", "2026-11-01": "2d"})
    shutil.rmtree("archive")
    assert main(["maintain", "--once", "--rules", "with-archive.json"]) == 0
    assert "1 files, 3 rows" in capsys.readouterr().out
    assert duckdb.sql(page.files["lines.sql"]).fetchall()[0][1] == 3
