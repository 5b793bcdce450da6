"""`logsluice tail` on rows that a handler wrote, hostile ones among them."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys

import psycopg
import pytest

from logsluice import PostgresHandler
from logsluice.cli import main, output

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z"
STORED_SECONDS = 30  # a moment as a rule; a busy machine may take its time
ESC, CSI, RLO, DEL = "\x1b", "\x9b", "\u202e", "\x7f"


@pytest.fixture
def log(dsn):
    """A logger whose records are in the database once its handler was flushed."""
    logger = logging.getLogger("shop.orders")
    handler = PostgresHandler(dsn=dsn)
    logger.addHandler(handler)
    logger.setLevel(1)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    logger.propagate = True
    handler.close()


@pytest.fixture
def shown(dsn, log, capsys):
    """What `logsluice tail` prints: its lines."""

    def show(*args, status=0):
        assert log.handlers[0].flush(STORED_SECONDS)
        assert main(["tail", "--dsn", dsn, *args]) == status
        return capsys.readouterr().out.splitlines()

    return show


def test_a_row_is_one_plain_line(log, shown):
    log.info("order %d paid", 17, extra={"amount": 12.5})
    (line,) = shown()
    assert re.fullmatch(TIME + r' INFO      shop\.orders  order 17 paid  \{"amount": 12\.5\}', line)


def test_the_last_rows_come_oldest_first(log, shown):
    for number in range(30):
        log.info("row %d", number)
    assert [line.split()[-1] for line in shown("-n", "3")] == ["27", "28", "29"]
    assert len(shown()) == 20


def test_the_time_is_utc_whatever_the_session_thinks(log, shown, monkeypatch):
    log.info("now")
    utc = shown()
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")
    assert shown() == utc


def test_level_and_above(log, shown):
    log.info("quiet")
    log.warning("odd")
    log.log(35, "between")
    log.error("bad")
    for level in ("WARNING", "warning", "30"):
        assert [line.split()[4] for line in shown("--level", level)] == ["odd", "between", "bad"]
    first, _ = shown("--level", "31")
    assert (
        " 35        shop.orders  between" in first
    )  # a level without a name; attributes hold what the program called it


def test_messages_stand_below_each_other(log, shown):
    log.info("a")
    log.critical("b")
    first, second = shown()
    assert first.index("shop.orders") == second.index("shop.orders")


def test_further_lines_are_indented_so_that_no_message_forges_a_row(log, shown):
    log.info("first\n2026-11-22 09:01:02.123Z INFO  shop  forged\r\n\n  last\n")
    lines = shown()
    assert lines[0].endswith("first")
    assert lines[1:] == ["    2026-11-22 09:01:02.123Z INFO  shop  forged", "", "      last"]


def test_an_exception_is_shown_indented(log, shown):
    try:
        raise ValueError(f"two\nlines {ESC}[31m")
    except ValueError:
        log.exception("failed")
    head, *rest = shown()
    assert head.endswith("failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    ValueError: two", r"    lines \x1b[31m"]
    assert all(line.startswith("    ") for line in rest)


def test_what_is_logged_cannot_drive_the_terminal(log, shown):
    hostile = f"{ESC}]0;title\a{CSI}2J{RLO}\u2066\u2028{DEL}\b\r\v\f\t\x85end"
    log.info(hostile, extra={"key" + ESC + RLO: hostile})
    logging.getLogger("shop.orders.x" + ESC + "\n").info("from a logger with an odd name")
    text = "\n".join(shown())
    assert not [char for char in text if not char.isprintable() and char != "\n"]
    assert r"\x1b]0;title\x07\x9b2J\u202e\u2066\u2028\x7f\x08\r\x0b\x0c\t\x85end" in text
    assert text.count("\n") == 1  # a row each: neither the odd separators nor the logger's newline began a line


def test_ordinary_text_of_all_the_world_stays_as_it_is():
    for text in ("café", "日本語", "שלום", "👩\u200d👩\u200d👧", "می\u200cخواهم", "C:\\new"):
        assert output.visible(text) == text


def test_every_control_character_is_made_visible():
    controls = [
        *range(0x20),
        *range(0x7F, 0xA0),
        0x061C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    ]
    for code in controls:
        assert output.visible(chr(code)).isprintable(), hex(code)
        assert output.visible(chr(code)).startswith("\\")


def test_colour_only_on_a_terminal_and_not_against_no_color(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.wants_colour(Terminal())
    assert not output.wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.wants_colour(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not output.wants_colour(Terminal())


def test_colours_surround_and_never_alter():
    row = output.Row("2026-11-22 09:01:02.123Z", 40, "shop", "no", None, None, None, '{"a": 1}')
    (plain,), (painted,) = output.lines(row), output.lines(row, colour=True)
    assert painted != plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain


def test_rows_that_somebody_else_inserted(dsn, shown):
    with psycopg.connect(dsn) as conn:
        conn.execute("SELECT logsluice.make_partitions(now(), now())")
        conn.execute("INSERT INTO logsluice.logs (ts, level, attributes, stream, seq) VALUES (now(), 20, '{}', 1, 1)")
    (line,) = shown()
    assert re.fullmatch(TIME + " INFO      -", line)


def test_an_empty_table_is_said_and_nothing_found(dsn, capsys):
    assert main(["tail", "--dsn", dsn, "--level", "ERROR"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith('no records that fit in "logsluice"."logs" in database "')


@pytest.mark.parametrize(("database", "args"), [("dsn", ["--schema", "elsewhere"]), ("empty_dsn", [])])
def test_a_missing_table_is_explained(request, database, args, capsys):
    assert main(["tail", "--dsn", request.getfixturevalue(database), *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("logsluice: there is no table ")
    assert "logsluice migrate" in captured.err


@pytest.mark.parametrize(
    "args",
    [
        ["-n", "0"],
        ["-n", "x"],
        ["-n", "1000001"],
        ["--level", "LOUD"],
        ["-f", "-o", "json"],
        ["-f", "--window", "100000"],
    ],
    ids=lambda args: " ".join(args),
)
def test_wrong_usage(args, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["tail", *args])
    assert ended.value.code == 2
    assert args[-2 if "-f" in args else -1] in capsys.readouterr().err


def test_the_environment_names_the_database(dsn, log, shown, capsys, monkeypatch):
    log.info("found")
    assert log.handlers[0].flush(STORED_SECONDS)
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    assert main(["tail"]) == 0
    assert "found" in capsys.readouterr().out


def test_as_a_program_with_a_narrow_encoding_and_a_reader_that_leaves(dsn, log):
    for number in range(2000):  # more than a pipe's 64 KiB
        log.info("ordre %d payé: 日本 %s", number, json.dumps({"pad": "x" * 50}))
    assert log.handlers[0].flush(STORED_SECONDS)
    process = subprocess.Popen(
        [sys.executable, "-m", "logsluice", "tail", "-n", "2000", "--dsn", dsn],
        env={"PYTHONIOENCODING": "ascii:strict", "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    first = process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (said, process.wait(30)) == (b"", 0)
    assert b"ordre 0 pay\\xe9: \\u65e5" in first
