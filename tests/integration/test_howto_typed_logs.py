"""docs/howto/typed-logs.md: its program runs, its rows are where it says, its SQL reads them."""

from __future__ import annotations

import re
import shlex
import subprocess
from decimal import Decimal

import psycopg
import pytest

from support.howto import BLOCK, PAGES, Page, environment

TEXT = (PAGES / "typed-logs.md").read_text(encoding="utf-8")
SECONDS = 60  # a second as a rule; a busy machine may take its time


@pytest.fixture
def ran(empty_dsn, tmp_path):
    """A database in which the page's commands ran; its dsn."""
    page = Page("typed-logs")
    page.lay_out(tmp_path)
    for command in page.commands:
        subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment(LOGSLUICE_DSN=empty_dsn), check=True, timeout=SECONDS,
            capture_output=True,
        )  # fmt: skip
    return empty_dsn


def test_the_page(ran):
    with psycopg.connect(ran, autocommit=True, row_factory=psycopg.rows.dict_row) as conn:
        name = f"dashboard_{conn.info.dbname}"
        statements = [
            part.strip().replace("dashboard", name)
            for language, _, text in BLOCK.findall(TEXT) if language == "sql"
            for part in text.split(";") if part.strip()
        ]  # fmt: skip
        try:
            results = [conn.execute(one) for one in statements]
        finally:
            conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
        payments, invalid, entries, activities = (list(one) for one in results if one.description)
        old = conn.execute(
            "INSERT INTO logsluice.activity (ts, stream, seq, activity_type, activity_status) "
            "SELECT now(), 0, row_number() OVER (), 'message_sent', 'success' FROM generate_series(1, 3)"
        )
        assert old.rowcount == 3
    assert [(row["customer"], row["amount"], row["status"], row["user_id"]) for row in payments] == [
        ("c-7", Decimal("9.90"), "paid", "u-7"), ("c-8", Decimal("1.50"), "paid", "u-7"),
    ]  # fmt: skip
    assert payments[0]["attributes"]["operation"] == "checkout"
    assert payments[1]["attributes"]["message"] == "money came in"
    assert invalid[0]["?column?"]["table"] == "payment"
    assert list(invalid[0]["?column?"]) == ["table", "status"]
    assert [(row["module"], row["operation"]) for row in entries if row["message"] == "receipt sent"] == [
        ("mail", "checkout")
    ]
    assert activities == [
        {"activity_type": "llm_error", "error_type": "TimeoutError", "error_message": "no answer in 30 s"}
    ]


def test_the_views_of_the_page_are_those_of_the_file():
    sql = (PAGES.parents[1] / "sql" / "compat.sql").read_text(encoding="ascii")
    made = re.findall(r'CREATE OR REPLACE VIEW :"schema"\.(\w+)', sql)
    assert sorted(re.findall(r"^\| `(\w+(?:_logs|_entry))` \|", TEXT, re.MULTILINE)) == sorted(made)
