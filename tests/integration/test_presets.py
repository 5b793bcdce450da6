"""Each preset against a real server: the limit of size fires long before that of time, and that of time does fire."""

import json
import logging
import logging.config
import re
import subprocess
import sys
import time

import psycopg
import pytest

from logsluice import presets
from support.files import lines_of
from support.howto import Page, environment
from support.processes import until
from support.shop import LIMIT

# (preset, batch_size, linger in seconds)
SIZES = [("activity", 100, 1.0), ("batched", 100, 5.0), ("audit", 50, 5.0)]


@pytest.fixture
def configured(dsn, tmp_path, monkeypatch):
    """Configure a preset; yields a function that returns its PostgresHandler."""
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level

    def configure(name, **changes):
        made = presets.PRESETS[name]("shop", dsn)
        made["handlers"]["postgres"].update(changes)
        logging.config.dictConfig(made)
        return logging._handlers["postgres"]

    yield configure
    for one in (logging.root, logging.getLogger("logsluice-kept")):  # where the audit preset hangs its fallback
        for handler in one.handlers[:]:
            one.removeHandler(handler)
            handler.close()
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.mark.parametrize(("name", "size", "linger"), SIZES)
def test_a_full_batch_is_sent_before_its_time(name, size, linger, configured):
    handler = configured(name, linger=10 * LIMIT, connections=1)
    assert presets.PRESETS[name]()["handlers"]["postgres"]["linger"] == linger
    log = logging.getLogger("shop")
    for n in range(size - 1):
        log.info("order %s", n)
    assert handler.stats().stored == 0
    log.info("order %s", size - 1)
    assert until(lambda: handler.stats().stored == size, LIMIT)
    assert handler.stats().batches == 1


@pytest.mark.parametrize(("name", "size", "linger"), SIZES)
def test_a_batch_is_sent_when_its_time_is_over(name, size, linger, configured):
    handler = configured(name)
    began = time.monotonic()
    logging.getLogger("shop").info("order 1")
    assert until(lambda: handler.stats().stored == 1, LIMIT)
    assert time.monotonic() - began >= linger * 0.9
    assert handler.stats().batches == 1


def test_no_batch_is_larger_than_its_size(configured):
    handler = configured("audit")
    log = logging.getLogger("shop")
    for n in range(175):
        log.info("order %s", n)
    assert handler.flush(LIMIT)
    records = [batch["records"] for batch in handler.stats().recent["stored"]]
    assert sum(records) == 175
    assert max(records) <= 50


def test_what_an_audit_log_gives_up_is_kept_in_a_file(configured, dsn, tmp_path):
    handler = configured("audit", backoff_initial=0.01, backoff_max=0.02, linger=0.01)
    log = logging.getLogger("shop")
    log.info("order 1")
    assert handler.flush(LIMIT)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("ALTER TABLE logsluice.stream RENAME TO away")
        log.info("order 2")
        assert until(lambda: handler.stats().abandoned_by.get("fallback") == 1, LIMIT)
        conn.execute("ALTER TABLE logsluice.away RENAME TO stream")
        log.info("order 3")
        assert handler.flush(LIMIT)
        rows = conn.execute("SELECT message FROM logsluice.logs ORDER BY message").fetchall()
    assert rows == [("order 1",), ("order 3",)]
    assert logging._handlers["kept"].flush(LIMIT)
    (line,) = (tmp_path / "logs" / "audit-kept.log").read_text().splitlines()
    assert json.loads(line)["message"] == "order 2"


def test_structured_has_a_journal(configured, tmp_path):
    handler = configured("structured")
    logging.getLogger("shop").info("order 1")
    assert handler.flush(LIMIT)
    assert handler.stats().journal["folder"] == str(tmp_path / "journal")


def test_the_pages_preset_changed_by_hand(configured, tmp_path):
    del configured  # what is configured here goes with it
    page = Page("presets")
    exec(page.files["by_hand.py"], {})
    assert logging._handlers["postgres"]._settings.batch_size == 200
    assert logging.getLogger("sqlalchemy.engine").level == logging.WARNING


def test_the_pages_program(dsn, tmp_path):
    """docs/howto/presets.md: a console, two files and rows, and no console in production."""
    page = Page("presets")
    page.lay_out(tmp_path)
    env = dict.fromkeys(("LOG_LEVEL", *presets.PRODUCTION), "")
    for env["APP_ENV"], lines in (("", 2), ("production", 0)):
        ran = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, env=environment(LOGS_DSN=dsn, **env), capture_output=True,
            text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        told = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+ +shop.orders: (\w+)", ran.stderr, re.MULTILINE)
        assert told == ["order", "refund"][:lines]
    for name, count in (("combined", 4), ("error", 2)):
        written = lines_of(tmp_path / "logs" / f"{name}.log")  # a day may end between the two runs
        assert [line["version"] for line in written] == ["1.2"] * count
    with psycopg.connect(dsn) as conn:
        found = conn.execute(
            "SELECT l.service, s.version, l.message FROM logsluice.logs l JOIN logsluice.stream s USING (stream) ORDER BY ts"
        ).fetchall()
    assert found == [("shop", "1.2", "order 17 paid"), ("shop", "1.2", "refund failed")] * 2
