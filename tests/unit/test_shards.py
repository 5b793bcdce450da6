"""Who gets the next records with several connections, and what their keys are. Nothing is sent: no thread runs."""

import itertools
import json
import logging
import re
import signal
import sys
import zlib

import pytest

from logsluice import buffer, context, shards
from logsluice.accounting import Ledger, Totals, together
from logsluice.config import MIB, PostgresSettings, settings_from
from logsluice.errors import ConfigError
from logsluice.handlers import PostgresHandler
from logsluice.keys import key_from
from logsluice.listener import Listener
from logsluice.testing import captured
from support.howto import Page
from support.records import make_logger, make_record

COUNT = 3
KEYED = {"shard_by": "extra.key"}


@pytest.fixture
def made(monkeypatch):
    """Makes a handler of COUNT pairs whose threads never start, though each is asked to."""
    handlers = []
    monkeypatch.setattr(Listener, "start", lambda self: self._starter.setdefault("", object()))

    def make(**options):
        handler = PostgresHandler(**{"dsn": "", "connections": COUNT, "capacity_bytes": 48 * MIB, **options})
        handlers.append(handler)
        return handler

    yield make
    for handler in handlers:
        for route in handler._routes():
            route.buffer.discard()
        handler._pair = None  # there is nobody to wait for


def frames(pair):
    data = b"".join(bytes(chunk[begin:end]) for chunk, begin, end in pair[0].buffer._readable())
    return data.splitlines(keepends=True)


def ids(pair):
    return [int(one) for frame in frames(pair) for one in re.findall(rb'"tid": (\d+)', frame)]


def all_ids(handler):
    return sorted(one for pair in handler._pairs for one in ids(pair))


def fill(handler, size):
    """Log so many bytes, about."""
    text = "x" * 1000
    for _ in range(size // 1100):
        handler.handle(make_record(text))


def fill_all(handler):
    handler.handle(make_record())
    while not all(pair[0].buffer.under_pressure for pair in handler._pairs):
        handler.handle(make_record("x" * 1000))


def turn_of(handler):
    return handler._pairs.index(handler._pair)


# --- turns ----------------------------------------------------------------------------------------------------------


def test_one_connection_is_a_plain_listener(made):
    handler = made(connections=1)
    handler.handle(make_record())
    assert type(handler._pair[1]) is Listener
    assert "handle" not in made(connections=1, shard_by="extra.key").__dict__
    assert handler._pairs == [handler._pair]


def test_who_keeps_up_keeps_the_turn(made):
    handler = made()
    fill(handler, MIB)  # several full segments, and less than a batch waits
    assert turn_of(handler) == 0
    assert [pair[1].started for pair in handler._pairs] == [True, False, False]
    assert not frames(handler._pairs[1])


def test_a_full_segment_of_a_busy_one_gives_the_turn_to_the_next(made):
    handler = made()
    handler.handle(make_record())
    for pair in handler._pairs:
        pair[1].busy = True
    seen = set()
    for _ in range(6):
        before = turn_of(handler)
        while turn_of(handler) == before:
            fill(handler, 10_000)
        seen.add(turn_of(handler))
    assert seen == {0, 1, 2}
    assert all(pair[1].started for pair in handler._pairs)
    waiting = [pair[0].buffer.waiting_bytes() for pair in handler._pairs]
    assert max(waiting) - min(waiting) <= 4 * MIB  # within a segment of each other


def test_in_an_outage_all_fill_evenly_before_anything_is_dropped(made):
    handler = made(capacity_bytes=12 * MIB, max_frame_bytes=MIB)
    fill_all(handler)
    least = min(pair[0].buffer.held_bytes() for pair in handler._pairs)
    assert least > 0.6 * 4 * MIB  # of a share of which low levels get 0.8, less a segment of an eighth
    assert sum(pair[0].buffer.held_bytes() for pair in handler._pairs) <= 12 * MIB
    assert handler.stats().dropped <= 2 * COUNT  # each finds out by a record that it is full
    assert handler.pressure > 0.6
    assert handler.stats().full


def test_who_makes_room_gets_the_turn_from_one_that_is_full(made):
    handler = made(capacity_bytes=12 * MIB, max_frame_bytes=MIB)
    fill_all(handler)
    other = handler._pairs[(turn_of(handler) + 1) % COUNT]
    route = other[1].routes[0]
    while (batch := route.buffer.take(MIB)) is not None:
        other[1]._settle(route, batch)
    assert handler._pair is other
    before = handler.stats().dropped
    handler.handle(make_record())
    assert handler.stats().dropped == before


def test_the_sum_of_capacity_is_taken_before_a_record_is_dropped(made):
    handler = made(capacity=90)
    for _ in range(100):
        handler.handle(make_record("all alike", level=logging.ERROR))
    assert handler.stats().dropped == 10
    assert [len(frames(pair)) for pair in handler._pairs] == [30, 30, 30]


def test_one_without_a_thread_gets_no_turn(made, monkeypatch):
    def refuse(_listener):
        raise RuntimeError("can't start new thread")

    handler = made()
    handler.handle(make_record())
    monkeypatch.setattr(Listener, "start", refuse)
    handler._pair[1].busy = True
    fill(handler, 2 * MIB)
    assert turn_of(handler) == 0


def test_a_slow_sweep_gives_the_turn_away_only_if_more_came(made):
    handler = made(linger=0.001)
    handler.handle(make_record())
    listener = handler._pair[1]
    listener._settings = listener.settings
    slow = []
    listener._deliver = lambda route: (slow.append(route), route.own.settle(route.own.take(MIB)))
    listener.breaker.allows = lambda now: (signal.sigtimedwait([], 0.005), True)[1]  # longer than linger
    listener._sweep()
    assert slow
    assert turn_of(handler) == 0
    handler.handle(make_record())
    listener._deliver = lambda route: (route.own.settle(route.own.take(MIB)), handler.handle(make_record()))
    listener._sweep()
    assert turn_of(handler) == 1


def test_a_signal_handler_that_logs_while_the_turn_goes_round(made, monkeypatch):
    monkeypatch.setattr(buffer, "FIRST_SEGMENT", 16384)
    monkeypatch.setattr(buffer, "LARGEST_SEGMENT", 16384)
    handler = made(capacity_bytes=48 * MIB)
    logger, numbers, came = make_logger(handler), itertools.count(), []

    def log():
        logger.info("order", extra={"tid": next(numbers)})

    def log_too(*_):
        came.append(1)
        log()

    before = signal.signal(signal.SIGALRM, log_too)
    log()
    for pair in handler._pairs:
        pair[1].busy = True
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        logged = 0
        while logged < 10_000 or len(came) < 50:  # a quick machine logs 10,000 in less than 50 of the timer's beats
            log()
            logged += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    count = next(numbers)
    assert count == 1 + logged + len(came)
    assert all(frames(pair) for pair in handler._pairs)
    assert all_ids(handler) == list(range(count))
    assert handler.stats().waiting == count


def test_a_record_in_every_line_of_a_turn(made, monkeypatch):
    """As a signal handler would: at each line of shards.py and of the turn, a record comes in between."""
    monkeypatch.setattr(buffer, "FIRST_SEGMENT", 2048)
    monkeypatch.setattr(buffer, "LARGEST_SEGMENT", 2048)
    handler = made()
    logger, inside, given = make_logger(handler), [], []

    def log():
        given.append(len(given))
        logger.info("order", extra={"tid": given[-1]})

    log()
    for pair in handler._pairs:
        pair[1].busy = True

    def local(_frame, event, _arg):
        if event == "line" and not inside:
            inside.append(1)
            log()
            inside.clear()
        return local

    def trace(frame, _event, _arg):
        code = frame.f_code
        return local if code.co_filename == shards.__file__ or code.co_name in {"_turn", "_wake_and_turn"} else None

    before, count = sys.gettrace(), 0
    sys.settrace(trace)
    try:
        for _ in range(300):
            log()
            count += 1
    finally:
        sys.settrace(before)
    assert len(given) > 2 * count  # it came in between
    assert all_ids(handler) == given


# --- keys -----------------------------------------------------------------------------------------------------------


def test_equal_keys_go_to_the_same_pair_in_their_order(made):
    handler = made(**KEYED)
    logger = make_logger(handler)
    for tid in range(300):
        logger.info("order", extra={"key": f"session-{tid % 20}", "tid": tid})
    found = [ids(pair) for pair in handler._pairs]
    assert all_ids(handler) == list(range(300))
    for index, mine in enumerate(found):
        assert mine == sorted(mine)
        assert all(zlib.crc32(b"session-%d" % (tid % 20)) % COUNT == index for tid in mine)
    assert all(found)
    assert all(pair[1].started for pair in handler._pairs)


def test_the_hash_is_the_same_in_each_process():
    assert [shards.index_of(key, 16) for key in ("a", 17, "17", b"a".hex(), "é", "\ud800")] == [3, 2, 2, 0, 14, 8]


class Wild:
    def __str__(self):
        raise ValueError("wild")

    __repr__ = __str__


class Deep:
    def __str__(self):
        return str(self)


class Sly(str):
    __slots__ = ()

    def encode(self, *_):
        raise ValueError("sly")


@pytest.mark.parametrize(
    "key", [None, Wild(), Deep(), Sly("sly"), "\ud800", "a\0b", float("nan"), [], {}, object()], ids=type
)
def test_whatever_the_key_the_record_is_there_once(made, key):
    handler = made(**KEYED)
    logger = make_logger(handler)
    for _ in range(3):
        logger.info("order", extra={"key": key})
    logger.info("without")
    assert sum(len(frames(pair)) for pair in handler._pairs) == 4
    stats = handler.stats()
    assert (stats.offered, stats.waiting, stats.dropped) == (4, 4, 0)


def test_without_a_key_the_turn_decides(made):
    handler = made(**KEYED)
    handler.handle(make_record())
    handler._give_turn(handler._pairs[2])
    handler.handle(make_record())
    assert [len(frames(pair)) for pair in handler._pairs] == [1, 0, 1]


def test_a_filter_may_make_the_key_and_is_asked_once(made):
    handler = made(**KEYED)
    asked = []

    def mark(record):
        asked.append(record)
        record.key = "b"
        return record.msg != "not this"

    handler.addFilter(mark)
    handler.handle(make_record())
    handler.handle(make_record("not this"))
    assert len(asked) == 2
    assert [len(frames(pair)) for pair in handler._pairs] == [
        int(n == shards.index_of("b", COUNT)) for n in range(COUNT)
    ]


def test_a_full_pair_drops_its_own_keys_only(made):
    handler = made(**KEYED, capacity_bytes=12 * MIB, max_frame_bytes=MIB)
    logger = make_logger(handler)
    while not handler.stats().dropped:
        for _ in range(100):
            logger.info("x" * 1000, extra={"key": "hot"})
    dropped = handler.stats().dropped
    logger.info(
        "order", extra={"key": next(k for k in "abcdefg" if shards.index_of(k, 3) != shards.index_of("hot", 3))}
    )
    assert handler.stats().dropped == dropped


def test_own_records_are_counted_and_not_taken(made):
    handler = made(**KEYED)
    handler.handle(make_record(name="logsluice.own", key="a"))
    assert handler.stats().own_noise == 1
    assert handler.stats().offered == 0


def test_captured_for_a_test_nothing_is_shared_out(made):
    handler = made(**KEYED)
    logger = make_logger(handler)
    with captured() as rows:
        logger.info("order", extra={"key": "a"})
    assert [row["attributes"] for row in rows] == [{"key": "a"}]
    assert not handler._pairs
    assert "handle" not in vars(handler)


def test_forgotten_after_a_fork(made):
    handler = made(**KEYED)
    handler.handle(make_record(key="a"))
    old = handler._pairs
    handler.renew()
    assert (handler._pair, handler._pairs, handler._ways) == (None, (), ())
    handler.handle(make_record(key="a"))
    assert len(handler._pairs) == COUNT
    assert not {pair[0].buffer.stream for pair in old} & {pair[0].buffer.stream for pair in handler._pairs}
    assert handler.stats().offered == 1


def test_a_pair_that_cannot_be_made_loses_a_record_by_count_only(made, monkeypatch):
    handler = made(**KEYED)
    make, calls = handler._make, []

    def fail(**options):
        calls.append(options)
        if len(calls) % 2 == 0:
            raise MemoryError
        return make(**options)

    monkeypatch.setattr(handler, "_make", fail)
    handler.handle(make_record(key="a"))
    assert handler.stats().dropped_by == {("error", logging.NOTSET): 1}
    assert handler._pair is None


@pytest.mark.parametrize(
    ("source", "changes", "key"),
    [
        ("extra.session", {"session": 17}, 17),
        ("extra.a.b", {"a": {"b": "c"}}, "c"),
        ("extra.a.b", {"a": "no dict"}, None),
        ("extra.none", {}, None),
        ("extra.session", {"extra": {"session": 5}}, 5),  # as loguru's handler does it
        ("context.tenant", {}, "bound"),
        ("context.none", {}, None),
        ("user_id", {}, "u-bound"),
        ("user_id", {"user_id": "u-extra"}, "u-extra"),
        ("trace_id", {"otelTraceID": "abc"}, "abc"),
        ("trace_id", {"otelTraceID": "0"}, None),  # what OpenTelemetry writes for none
        ("user_id", {"user_id": None}, "u-bound"),
        ("organization_id", {}, None),
        ("logger", {}, "shop.orders"),
        ("level", {}, logging.INFO),
        ("levelname", {}, "INFO"),
        ("func", {}, "pay"),
        ("line", {}, 42),
        ("thread", {"threadName": "worker-1"}, "worker-1"),
        ("task", {"taskName": "Task-1"}, "Task-1"),
        ("template", {}, "hello"),
    ],
)
def test_the_words_of_columns_name_a_key(source, changes, key):
    with context.bound(tenant="bound", user_id="u-bound"):
        assert key_from("shard_by", source)(make_record(**changes)) == key


def test_a_key_of_an_ordinary_thread_without_bound_values():
    assert key_from("shard_by", "context.tenant")(make_record()) is None
    assert key_from("shard_by", "user_id")(make_record()) is None


@pytest.mark.parametrize("source", ["ts", "seq", "message", "stream", "pid", "host", "service", "attributes"])
def test_what_is_no_key_is_refused(source):
    with pytest.raises(ConfigError, match="is no key"):
        PostgresHandler(shard_by=source)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"connections": 0}, "from 1 to 16"),
        ({"connections": True}, "from 1 to 16"),
        ({"connections": 2.0}, "from 1 to 16"),
        ({"connections": 8}, "make it at least 134217728"),
        ({"connections": 4, "capacity": 3}, "share it out"),
        ({"connections": 4, "journal": "/j", "journal_bytes": 32 * MIB, "max_frame_bytes": MIB}, "16 MiB for each"),
        ({"shard_by": 3}, "a string or None"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        settings_from(options, PostgresSettings)


@pytest.mark.parametrize("value", ["", "session", "extra.", "loger"])
def test_an_unknown_source_is_refused(value):
    with pytest.raises(ConfigError, match="shard_by: unknown source"):
        PostgresHandler(shard_by=value)


# --- one book -------------------------------------------------------------------------------------------------------


def test_several_books_are_one():
    one, two = Ledger(), Ledger()
    one.totals = Totals(5, 1, (("exit", 2),), 1, 3, 4, 10.0)
    two.totals = Totals(7, 2, (("exit", 1), ("journal", 3)), 0, 1, 1, 20.0)
    for ledger, at in ((one, 2), (two, 1)):
        ledger.records.add(at)
        ledger.recent_stored.append({"at": at})
        ledger.recent_failed.extend({"at": at + n / 100} for n in range(40))
    book = together([one, two])
    assert book.totals == Totals(12, 3, (("exit", 3), ("journal", 3)), 1, 4, 5, 20.0)
    assert book.records.snapshot() == {"bounds": [1, 10, 100, 1000, 10_000, 100_000], "counts": [1, 1, 0, 0, 0, 0, 0], "sum": 3.0}  # fmt: skip
    assert list(book.recent_stored) == [{"at": 1}, {"at": 2}]
    assert len(book.recent_failed) == 50
    assert book.recent_failed[-1]["at"] == 2.39
    assert together([one]) is one
    assert together([]).totals == Totals()
    assert one.totals.stored == 5


def test_the_page_of_a_server_far_away_configures(monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DSN", "postgresql://h/db")  # read when it is made; nothing connects
    (options,) = json.loads(Page("far-server").files["logging.json"])["handlers"].values()
    assert options.pop("class") == "logsluice.PostgresHandler"
    handler = PostgresHandler(**options)
    assert (handler._settings.connections, handler._settings.shard_by) == (4, "extra.session_id")
    handler.close()
