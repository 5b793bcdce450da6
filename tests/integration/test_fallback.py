"""`fallback="name"`: what has no room, or is left in memory at exit, goes to another handler, counted as such."""

from __future__ import annotations

import itertools
import json
import logging
import re
from contextlib import contextmanager

import pytest

from logsluice import listener
from support.journals import KEEPS, given
from support.overload import PAYLOAD, SMALL
from support.processes import until
from support.proxy import Proxy
from support.shop import LIMIT, Shop
from support.written import run

MIB = 1024 * 1024


class Kept(logging.Handler):
    """It keeps the records that it is given."""

    def __init__(self, name, level=logging.NOTSET):
        super().__init__(level)
        self.set_name(name)
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def ids(self):
        return [int(re.match(r"tid=(\d+)", record.getMessage())[1]) for record in self.records]


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """What is left is handed over after the time to shut down is over; on a busy machine that takes longer than half a second."""
    monkeypatch.setattr(listener, "GRACE", LIMIT)


@pytest.fixture
def kept():
    handler = Kept("last-resort")
    yield handler
    handler.close()


@contextmanager
def away(dsn, **options):
    """A shop whose server refuses until the body heals the proxy."""
    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn, **options) as shop:
        proxy.refuse()
        yield shop, proxy


def accounts(shop, kept):
    """Each id is stored or in the other handler, once; the law holds."""
    lost, twice = shop.lost_and_twice()
    assert sorted(kept.ids()) == lost
    assert not twice
    stats = shop.law()
    assert stats.abandoned_by.get("fallback", 0) == len(lost)
    return stats


def test_what_has_no_room_goes_to_the_other_handler_and_is_no_drop(dsn, kept):
    with away(dsn, fallback="last-resort", **SMALL) as (shop, proxy):
        shop.log(3000, payload=PAYLOAD)
        assert shop.stats.full
        assert not shop.stats.dropped
        assert kept.records
        proxy.heal()
        shop.recover()
        stats = accounts(shop, kept)
        assert stats.abandoned_by == {"fallback": len(kept.records)}
        assert not stats.dropped_by
        assert not stats.markers  # a marker tells of drops
        shop.log()
        assert shop.flush()
        assert shop.query("SELECT offered - dropped - stored - dead FROM logsluice.stream") == [(0,)]  # nothing waits
        one = kept.records[0]
        assert one.levelno == logging.INFO
        assert one.name == shop.logger.name  # the record itself, not a copy of it


def test_levels_that_the_other_handler_does_not_want_are_drops(dsn, kept):
    kept.setLevel(logging.ERROR)
    with away(dsn, fallback="last-resort", **SMALL) as (shop, proxy):
        shop.log(3000, payload=PAYLOAD)
        shop.log(3000, logging.ERROR, payload=PAYLOAD)
        stats = shop.law()
        assert set(stats.dropped_by) == {("full", logging.INFO)}
        assert stats.abandoned_by == {"fallback": len(kept.records)}
        assert {record.levelno for record in kept.records} == {logging.ERROR}
        proxy.heal()
        shop.recover()
        lost, twice = shop.lost_and_twice()
        assert (len(lost), twice) == (stats.dropped + len(kept.records), [])


def test_blocked_callers_give_their_records_away_when_their_time_is_over(dsn, kept):
    options = {**SMALL, "when_full": "block", "block_timeout": 0.01}
    with away(dsn, fallback="last-resort", **options) as (shop, proxy):
        while not kept.records:
            shop.log(100, payload=PAYLOAD)
        assert not shop.stats.dropped
        proxy.heal()
        shop.recover()
        accounts(shop, kept)


def test_a_full_journal_gives_away_as_well(dsn, kept, tmp_path):
    options = {"journal": str(tmp_path / "journal"), "journal_bytes": MIB, "max_frame_bytes": MIB // 4}
    with away(dsn, fallback="last-resort", **options) as (shop, proxy):
        shop.log(3000, payload="x" * 500)
        assert kept.records
        assert not shop.stats.dropped
        proxy.heal()
        shop.recover()
        accounts(shop, kept)


def test_what_a_journal_keeps_at_exit_is_not_given_away(dsn, kept, tmp_path):
    with away(dsn, fallback="last-resort", journal=str(tmp_path / "journal")) as (shop, _):
        shop.log(100)
        shop.handler._settings.__dict__["shutdown_timeout"] = 0.2
        shop.handler.close()
        assert shop.law().abandoned_by == {"journal": 100}
        assert not kept.records


def test_what_is_left_at_close_goes_to_the_other_handler(dsn, kept, capfd):
    with away(dsn, fallback="last-resort") as (shop, _):
        shop.log(500)
        shop.handler._settings.__dict__["shutdown_timeout"] = 0.2
        shop.handler.close()
        stats = shop.law()
        assert stats.abandoned_by == {"fallback": 500}
        assert kept.ids() == shop.given
    assert "are lost" not in capfd.readouterr().err


# What a FileHandler of a person's own writes; all of it comes back out of the frame.
AT_EXIT = (
    KEEPS
    + """
import traceback

class Lines(logging.Formatter):
    def format(self, record):
        text = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        return json.dumps({"level": record.levelname, "logger": record.name, "message": record.getMessage(), "line":
                           record.lineno, "func": record.funcName, "thread": record.threadName, "exception": text,
                           "created": record.created, "id": record.id, "amount": getattr(record, "amount", None)})

from logsluice import listener
listener.GRACE = 60      # as above
made = config(fallback="file", shutdown_timeout=0.2)
made["formatters"] = {"lines": {"()": "__main__.Lines"}}
made["handlers"]["file"] = {"class": "logging.FileHandler", "filename": sys.argv[1], "formatter": "lines"}
logging.config.dictConfig(made)

def work():
    order("plain")
    log.warning("cost %s", 12.5, extra={"id": "extras", "amount": {"net": 10, "tax": [2.5, None]}})
    try:
        raise ValueError("no such order: \\\\ \\t \\n ü")
    except ValueError:
        log.exception("failed", extra={"id": "exception"})
    order("\\ttab \\\\ backslash")

order("first")
handler().flush(2)
work()
tell(now=time.time())
"""
)


@pytest.mark.parametrize("server", ["gone", "silent"])
def test_at_exit_all_that_is_left_reaches_the_file_as_it_was_logged(server, dsn, tmp_path):
    path = tmp_path / "last-resort.jsonl"
    with Proxy(dsn) as proxy:
        if server == "gone":
            proxy.refuse()
        else:  # from the second batch on
            batches = itertools.count(1)
            proxy.swallow_after(lambda message: message[5:10] == b"COPY " and next(batches) == 2)
        ran = run(proxy.dsn, tmp_path, AT_EXIT, args=[str(path)], **given(""))
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with Shop(dsn) as shop:
        stored = [one for (one,) in shop.query("SELECT attributes->>'id' FROM logsluice.logs")]
    assert stored == (["first"] if server == "silent" else [])
    if server == "gone":
        assert found.pop(0)["id"] == "first"
    assert [one["id"] for one in found] == ["plain", "extras", "exception", "\ttab \\ backslash"]
    assert [one["level"] for one in found] == ["INFO", "WARNING", "ERROR", "INFO"]
    assert [one["message"] for one in found] == [
        "order plain  paid", "cost 12.5", "failed", "order \ttab \\ backslash  paid",
    ]  # fmt: skip
    assert found[1]["amount"] == {"net": 10, "tax": [2.5, None]}
    assert {one["logger"] for one in found} == {"shop.orders"}
    assert found[1]["func"] == "work"
    assert {one["thread"] for one in found} == {"MainThread"}
    assert all(0 <= ran.told["now"] - one["created"] < 10 for one in found)
    text = found[2]["exception"]
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith("ValueError: no such order: \\ \t \n ü")
    assert [one["exception"] for one in found if one["id"] != "exception"] == [None] * 3
    assert "are lost" not in ran.program.stderr


def test_a_table_of_the_users_own_gives_its_columns_away(dsn, kept):
    options = {"table": "public.acts", "columns": {"what": "message", "plan": "extra.plan"}}
    with Shop(dsn) as shop:
        shop.do("CREATE TABLE public.acts (what text, plan text)")
    with away(dsn, fallback="last-resort", **options) as (shop, _):
        shop.log(3, plan="a")
        shop.handler._settings.__dict__["shutdown_timeout"] = 0.2
        shop.handler.close()
        assert shop.law().abandoned_by == {"fallback": 3}
    rows = [json.loads(record.getMessage()) for record in kept.records]
    assert [row["plan"] for row in rows] == ["a"] * 3
    assert [row["what"].split(" ")[0] for row in rows] == ["tid=0", "tid=1", "tid=2"]


class Raises(Kept):
    def handle(self, record):
        raise OSError("the disk is full")


@pytest.mark.parametrize("who", ["missing", "itself", "raising"])
def test_a_fallback_that_takes_nothing_is_a_counted_drop_and_said_once(who, dsn, capfd):
    raising = Raises("raising")
    try:
        with away(dsn, fallback=who, **SMALL) as (shop, proxy):
            if who == "itself":
                shop.handler.set_name("itself")
            shop.log(3000, payload=PAYLOAD)
            stats = shop.law()
            assert set(stats.dropped_by) == {("full", logging.INFO)}
            assert stats.dropped > 0
            assert not stats.abandoned_by
            proxy.heal()
            shop.recover()
            lost, twice = shop.lost_and_twice()
            assert (len(lost), twice) == (stats.dropped, [])
    finally:
        raising.close()
    said = [line for line in capfd.readouterr().err.splitlines() if "(fallback=)" in line]
    assert len(said) == 1
    assert who in said[0]
    assert ("raised OSError" if who == "raising" else "there is no other handler named") in said[0]


def test_what_a_raising_fallback_does_not_take_at_exit_is_lost_and_said(dsn, capfd):
    raising = Raises("raising")
    try:
        with away(dsn, fallback="raising") as (shop, _):
            shop.log(50)
            shop.handler._settings.__dict__["shutdown_timeout"] = 0.2
            shop.handler.close()
            assert shop.law().abandoned_by == {"exit": 50}
    finally:
        raising.close()
    assert "50 records were not stored before the time to shut down was over" in capfd.readouterr().err


def test_the_other_handler_may_come_later(dsn):
    with away(dsn, fallback="late", **SMALL) as (shop, proxy):
        shop.log(2000, payload=PAYLOAD)
        dropped = shop.stats.dropped
        assert dropped
        late = Kept("late")
        try:
            shop.log(100, payload=PAYLOAD)
            assert len(late.records) == 100
            assert shop.stats.dropped == dropped
            shop.law()
            proxy.heal()
        finally:
            late.close()


class LogsAgain(Kept):
    """It logs itself, as a handler that complains does: to the logger whose handler gave the record away."""

    logger = None

    def emit(self, record):
        super().emit(record)
        if len(self.records) < 10_000 and "again" not in record.getMessage():
            self.logger.info("again")


def test_a_fallback_that_logs_into_the_same_handler_does_not_recurse_for_ever(dsn):
    again = LogsAgain("again")
    try:
        with away(dsn, fallback="again", **SMALL) as (shop, proxy):
            again.logger = shop.logger
            shop.log(1500, payload=PAYLOAD)
            assert any("again" in record.getMessage() for record in again.records)
            stats = shop.stats
            assert stats.offered == stats.accepted + stats.dropped
            assert stats.accepted == stats.stored + stats.dead + stats.abandoned + stats.waiting
            proxy.heal()
    finally:
        again.close()


def test_with_a_server_the_other_handler_gets_nothing(dsn, kept):
    with Shop(dsn, fallback="last-resort") as shop:
        shop.log(100)
        assert shop.flush()
        shop.check()
    assert not kept.records
    assert until(lambda: not shop.stats.waiting, LIMIT)
