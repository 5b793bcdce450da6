"""docs/howto/stats.md: its programs and commands run, and print what it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from datetime import datetime, timedelta, timezone

import psycopg

from logsluice import partitions, reports
from logsluice.cli import main, stats
from support.howto import BLOCK, PAGES, TITLE, Page, environment

TEXT = (PAGES / "stats.md").read_text(encoding="utf-8")
SECONDS = 60  # a second as a rule; a busy machine may take its time


def lines(text):
    """Its lines without times and widths, which another minute has otherwise."""
    return [" ".join(re.sub(r"(\d\d-\d\d )?\d\d:\d\d(:\d\d)?", "TIME", line).split()) for line in text.splitlines()]


def test_the_page(dsn, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    page = Page("stats")
    page.lay_out(tmp_path)
    printed = {}
    for command in page.commands:
        if "--rollup" in command or "maintain" in command:
            continue  # below
        program, *args = shlex.split(command)
        if program == "logsluice":
            assert main(args) == 0, command
            printed[command] = capsys.readouterr().out
        else:
            done = subprocess.run(
                [program, *args], cwd=tmp_path, env=environment(LOGSLUICE_DSN=dsn), check=True, timeout=SECONDS,
                capture_output=True, text=True,
            )  # fmt: skip
            printed[command] = done.stdout
    summary = lines(printed["logsluice stats"])
    for line in ("5 2 0 40.00 TIME shop", "2 1 1 0 50.00 email", "1 950 ms 950 ms 950 ms 950 ms 950 ms llm call"):
        assert line in summary
    shown = {title[1]: text for _, rest, text in BLOCK.findall(TEXT) if (title := TITLE.search(rest))}
    assert lines(printed[page.command("logsluice stats errors")])[2:] == lines(shown["errors"])
    assert printed["python figures.py"] == shown["figures"]
    assert '"route": "/orders/{id}", "requests": 3, "errors": 1' in printed[page.command("logsluice stats endpoints")]
    assert "order 21 of session 5d3e7f1a20c9 lost (TimeoutError)" in printed[page.command("logsluice top")]


def test_the_roll_up_of_the_page(dsn, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        partitions.ensure(conn, "logsluice", "day", datetime.now(timezone.utc))
        conn.execute(
            "INSERT INTO logsluice.logs (ts, level, service, stream, seq) "
            "SELECT date_trunc('hour', now()) - interval '1 hour', 40, 'shop', 1, n FROM generate_series(1, 7) n"
        )
        commands = [one for one in Page("stats").commands if "--rollup" in one or "maintain" in one]
        assert len(commands) == 4
        for command in commands:
            assert main(shlex.split(command)[1:]) == 0, command
        printed = capsys.readouterr().out
        assert "roll-up: 7 rows counted" in printed
        assert '"volume": [{"service": "shop", "records": 7' in printed
        conn.execute(next(text for _, rest, text in BLOCK.findall(TEXT) if 'title="end"' in rest))
        conn.execute("INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (now(), 20, 1, 8)")
        assert conn.execute("SELECT count(*), count(xact) FROM logsluice.logs").fetchone() == (8, 0)


def test_the_table_is_the_reports():
    assert re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE) == list(stats.REPORTS)


def test_select_is_enough(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = f"dashboard_{conn.info.dbname}"
        (statements,) = (
            text for language, rest, text in BLOCK.findall(TEXT) if language == "sql" and not TITLE.search(rest)
        )
        conn.execute(statements.replace("dashboard", name))
        try:
            conn.execute(f"SET ROLE {name}")
            scope = reports.Scope.last(timedelta(hours=1))
            for one in stats.REPORTS.values():
                one.ask(conn, scope, stats.Asked(timedelta(minutes=5), 20))
            assert reports.streams(conn, scope) == []
        finally:
            conn.execute("RESET ROLE")
            conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
