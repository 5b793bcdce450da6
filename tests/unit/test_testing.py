"""logsluice.testing and LOGSLUICE_OFF: rows and counts without a server, a connection or a thread."""

from __future__ import annotations

import logging
import logging.config
import os
import subprocess
import sys
import threading
from datetime import datetime, timezone

import pytest

import logsluice
from logsluice.testing import captured
from support.howto import Page

log = logging.getLogger("shop.orders")
UNREACHABLE = "host=127.0.0.1 port=1 dbname=nobody"  # nothing may try: no connection is opened


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """These tests configure logging; the loggers belong to the whole session."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


def configure(**options):
    handler = {"class": "logsluice.PostgresHandler", "dsn": UNREACHABLE, **options}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"db": handler},
            "root": {"level": "INFO", "handlers": ["db"]},
        }
    )
    return logging.root.handlers[-1]


def test_rows_are_typed_and_whole():
    with captured(service="shop") as rows:
        before = datetime.now(timezone.utc)
        log.info("order %s\tpaid\n\\N", 17, extra={"amount": 12.5, "user_id": 4, "tags": ["ä", None]})
    (row,) = rows
    assert row["message"] == "order 17\tpaid\n\\N"
    assert row["template"] == "order %s\tpaid\n\\N"
    assert (row["level"], row["logger"], row["service"]) == (logging.INFO, "shop.orders", "shop")
    assert row["user_id"] == "4"
    assert row["attributes"] == {"amount": 12.5, "user_id": 4, "tags": ["ä", None]}
    assert 0 <= (row["ts"] - before).total_seconds() < 60
    assert isinstance(row["line"], int)
    assert row["trace_id"] is None


def test_a_plain_record_has_an_empty_dict_of_attributes():
    with captured() as rows:
        log.warning("hello")
    assert rows[0]["attributes"] == {}


def test_no_thread_is_started_and_levels_and_handlers_are_put_back():
    threads, level, handlers = threading.active_count(), logging.root.level, logging.root.handlers[:]
    with captured("DEBUG") as rows:
        log.debug("seen")
        assert threading.active_count() == threads
        assert log.isEnabledFor(logging.DEBUG)
    assert [row["message"] for row in rows] == ["seen"]
    assert (logging.root.level, logging.root.handlers) == (level, handlers)
    log.warning("after the end")
    assert len(rows) == 1


def test_the_programs_own_handler_is_used_with_its_options_and_filters():
    handler = configure(service="mine", redact=["pin"])
    handler.addFilter(lambda record: "noise" not in record.msg)
    with captured() as rows:
        log.info("paid", extra={"pin": 1234})
        log.info("noise")
        log.debug("below the level of root")
    assert [row["message"] for row in rows] == ["paid"]
    assert rows[0]["service"] == "mine"
    assert rows[0]["attributes"]["pin"] == "[redacted]"
    assert handler.stats().offered == 0
    assert handler._pair is None


def test_a_handler_made_inside_is_caught_once_and_stores_nothing_afterwards():
    """The code under test configures logging itself; nothing of it may reach a database after the test either."""
    with captured() as rows:
        handler = configure()
        log.info("one")
    log.warning("two")  # the level of root is back as well
    assert [row["message"] for row in rows] == ["one"]
    assert handler.stats().dropped_by == {("off", logging.NOTSET): 1}
    assert handler._pair is None


def test_nested_the_inner_one_gets_the_rows():
    with captured() as outer:
        log.info("one")
        with captured() as inner:
            log.info("two")
        log.info("three")
    assert [row["message"] for row in outer] == ["one", "three"]
    assert [row["message"] for row in inner] == ["two"]


def test_a_mapped_table_gives_the_servers_texts():
    with captured(table="public.t", columns={"what": "message", "n": ["extra.n", 5], "rest": "attributes"}) as rows:
        log.info("paid", extra={"ok": True})
    assert rows == [{"what": "paid", "n": "5", "rest": '{"ok": true}'}]


def test_our_own_records_are_not_rows():
    with captured() as rows:
        logging.getLogger("logsluice.inside").warning("ours")
    assert rows == []


def test_a_wrong_option_is_said_and_nothing_stays_diverted():
    with pytest.raises(logsluice.ConfigError, match="service"), captured(servise="x"):
        pass
    with captured() as rows:
        log.info("fine")
    assert len(rows) == 1


@pytest.mark.parametrize(("value", "off"), [("1", True), ("true", True), ("", False), ("0", False), ("no", False)])
def test_logsluice_off_makes_a_handler_a_counter(monkeypatch, value, off):
    monkeypatch.setenv("LOGSLUICE_OFF", value)
    handler = configure()
    assert ("handle" in handler.__dict__) is off
    if off:
        threads = threading.active_count()
        handler.addFilter(lambda record: record.msg != "filtered")
        for n in range(3):
            log.info("record %s", n)
        log.info("filtered")
        handler.emit(logging.makeLogRecord({}))
        stats = handler.stats()
        assert (stats.offered, stats.accepted, stats.dropped_by) == (4, 0, {("off", logging.NOTSET): 4})
        assert handler.flush()
        assert threading.active_count() == threads
        assert handler._pair is None
        with captured() as rows:  # a test that asks for rows gets them all the same
            log.info("wanted")
        assert len(rows) == 1


@pytest.mark.parametrize("command", ["pytest", "python"])
def test_the_page_says_what_runs(tmp_path, command):
    """The fixture comes by its entry point into a pytest that knows nothing of us; caplog works beside it."""
    page = Page("testing")
    page.lay_out(tmp_path)
    words = page.command(command).split()
    words = [sys.executable, "-m", *words] if command == "pytest" else [sys.executable, *words[1:]]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout or "OK" in done.stderr


def test_a_json_file_handlers_rows_are_its_lines(tmp_path):
    """Nothing is written; with both kinds of handlers a record is two rows."""
    path = tmp_path / "logs" / "app.log"
    handlers = {
        "file": {"class": "logsluice.JsonFileHandler", "filename": str(path), "names": "otel"},
        "own": {"class": "logsluice.JsonFileHandler", "filename": str(path), "formatter": "own"},
        "db": {"class": "logsluice.PostgresHandler", "dsn": UNREACHABLE},
    }
    config = {"version": 1, "disable_existing_loggers": False, "handlers": handlers,
              "formatters": {"own": {"format": "%(levelname)s %(message)s\n."}},
              "root": {"level": "INFO", "handlers": list(handlers)}}  # fmt: skip
    logging.config.dictConfig(config)
    with captured() as rows:
        log.info("order %s paid", 17, extra={"password": "hunter2"})
    of_file, of_own, of_db = rows
    assert (of_file["Body"], of_file["Attributes"]["password"]) == ("order 17 paid", "[redacted]")
    assert of_own == {"line": "INFO order 17 paid\n."}
    assert of_db["message"] == "order 17 paid"
    assert not path.parent.exists()


def test_a_json_file_handler_that_is_made_inside(tmp_path):
    with captured() as rows:
        logging.config.dictConfig(
            {"version": 1, "disable_existing_loggers": False, "root": {"level": "INFO", "handlers": ["file"]},
             "handlers": {"file": {"class": "logsluice.JsonFileHandler", "filename": str(tmp_path / "app.log")}}}
        )  # fmt: skip
        log.info("hello")
    assert [row["message"] for row in rows] == ["hello"]
    log.info("nobody sees it")
    assert not (tmp_path / "app.log").exists()
