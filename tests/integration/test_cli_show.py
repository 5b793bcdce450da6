"""`logsluice show`: one record by any of its ids, in full, safe for a terminal."""

from __future__ import annotations

import json
import logging
from datetime import timedelta

import psycopg
import pytest

from logsluice import PostgresHandler, ids
from logsluice.cli import main
from logsluice.contrib import SystemEvent

STORED_SECONDS = 30  # a moment as a rule; a busy machine may take its time
ESC, RLO = "\x1b", "\u202e"


@pytest.fixture
def stored(dsn):
    """A record of odd characters, and what is known of it: (dsn, uuid, ts, stream, seq)."""
    assert main(["migrate", "--dsn", dsn, "--compat"]) == 0
    handler = PostgresHandler(dsn=dsn, service="shop")
    record = logging.LogRecord(
        "shop.orders", logging.INFO, "/srv/shop.py", 42, f"paid {ESC}[31m\nid {RLO}x", None, None
    )
    record.amount = 12.5
    handler.handle(record)
    assert handler.flush(STORED_SECONDS)
    handler.close()
    with psycopg.connect(dsn) as conn:
        (row,) = conn.execute("SELECT ts, stream, seq FROM logsluice.logs").fetchall()
        ((entry,),) = conn.execute("SELECT id FROM logsluice.log_entry").fetchall()
    return dsn, str(entry), *row


def test_every_form_of_the_id_finds_it(stored, capsys):
    dsn, entry, ts, stream, seq = stored
    capsys.readouterr()
    for form in (entry, entry.replace("-", "").upper(), ids.made(stream, seq, ts), f"{stream}~{seq}"):
        assert main(["show", form, "--dsn", dsn, "-o", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["id"], found["table"]) == (ids.made(stream, seq, ts), "logs")
        assert (found["message"], found["attributes"]) == (f"paid {ESC}[31m\nid {RLO}x", {"amount": 12.5})
    other = ids.made(stream, seq, ts + timedelta(microseconds=1))
    assert main(["show", other, "--dsn", dsn]) == 1


def test_nothing_that_was_logged_drives_the_terminal(stored, capsys):
    dsn, entry, *_ = stored
    capsys.readouterr()
    assert main(["show", entry, "--dsn", dsn]) == 0
    text = capsys.readouterr().out
    assert not {ESC, RLO} & set(text)
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("message"))
    assert lines[at].endswith(r"paid \x1b[31m")
    assert lines[at + 1] == r"    id \u202ex"
    assert any(line.startswith("service ") and line.endswith(" shop") for line in lines)
    assert not any(line.startswith("exc_text") for line in lines)  # what is not set is not shown
    assert main(["show", entry, "--dsn", dsn, "-o", "json"]) == 0
    assert capsys.readouterr().out.isascii()


def test_it_finds_rows_of_typed_tables_and_of_streams_that_are_forgotten(stored, capsys):
    dsn, entry, _ts, stream, _seq = stored
    with psycopg.connect(dsn) as conn:
        conn.execute(SystemEvent.__logtype__.ddl())
        conn.execute("SELECT logsluice.make_partitions(now(), now(), 'system_event', 'day')")
        conn.execute(
            "INSERT INTO logsluice.system_event (ts, stream, seq, message, level) VALUES (now(), 5, -1, 'up', 20)"
        )
        conn.execute("DELETE FROM logsluice.stream WHERE stream = %s", [stream])
    capsys.readouterr()
    for form, table in (
        ("5~-1", "system_event"),
        ("00000000-0000-0005-ffff-ffffffffffff", "system_event"),
        (entry, "logs"),
    ):
        assert main(["show", form, "--dsn", dsn, "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["table"] == table


def test_what_is_not_there_and_what_was_refused(stored, capsys):
    dsn, *_ = stored
    assert main(["show", "1~2", "--dsn", dsn]) == 1
    assert "no record 1~2 in schema" in capsys.readouterr().err
    with psycopg.connect(dsn) as conn:
        conn.execute("INSERT INTO logsluice.dead_letter (stream, seq, position, target, row) VALUES (1, 2, 3, 't', '')")
    assert main(["show", "1~2", "--dsn", dsn]) == 1
    assert "`logsluice dead show` has it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "17", "x~y", "1~2~3~4", "w~1~1", "1~99999999999999999999", "-1~1", "v" * 30 + "~1~1"]
)
def test_what_is_no_id_is_said(text, capsys):
    assert main(["show", "--dsn", "host=/nowhere", "--", text]) == 2
    assert "is no id: write a uuid" in capsys.readouterr().err
