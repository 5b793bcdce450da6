"""`logsluice types`: what it prints makes the tables; bad input says what to change."""

from __future__ import annotations

import sys

import psycopg
import pytest

from logsluice import tracing, types
from logsluice.cli import main

DECLARED = """
from logsluice.types import logtype
@logtype(table="parcel", indexes=["code"])
class Parcel:
    code: str
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "parcels_of_a_test.py").write_text(DECLARED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "parcels_of_a_test"
    sys.modules.pop("parcels_of_a_test", None)


def test_what_it_prints_makes_the_table_and_lets_a_role_write(dsn, module, capsys):
    assert main(["types", module, "--grant-to", "public_role_of_nobody"]) == 0
    printed = capsys.readouterr().out
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE ROLE public_role_of_nobody")
        conn.execute(printed)
        conn.execute(printed)  # again: nothing to do
        granted = conn.execute("SELECT has_table_privilege('public_role_of_nobody', 'logsluice.parcel', 'INSERT')")
        assert granted.fetchone() == (True,)
        conn.rollback()


def test_it_prints_what_the_module_declares_and_no_more(capsys):
    def tables(name):
        assert main(["types", name]) == 0
        printed = capsys.readouterr().out
        return {table for table in types.known if f'CREATE TABLE IF NOT EXISTS "logsluice"."{table}"' in printed}

    activity = "logsluice.contrib.activity"
    shipped = {"activity", "admin_activity", "api_request", "job_log", "message_event", "system_event"}
    assert (tables("logsluice.contrib"), tables(activity)) == (shipped, {"activity"})
    assert tables(tracing.__name__) == {"spans"}


@pytest.mark.parametrize(
    ("name", "text"), [("not_there", "cannot be imported"), ("logsluice.errors", "declares no typed log")]
)
def test_bad_input_says_what_to_change(name, text, capsys, monkeypatch):
    monkeypatch.setattr("logsluice.types.known", {})
    assert main(["types", name]) == 2
    assert text in capsys.readouterr().err
