"""logsluice.filters: who passes, what is counted, what is said and to whom. The clock is given, nothing waits."""

from __future__ import annotations

import collections
import json
import logging
import logging.config
import logging.handlers
import math
import queue
import random
import signal
import sys
import threading
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsluice import context, filters
from logsluice.errors import ConfigError
from logsluice.filters import DuplicateFilter, RateLimitFilter, SampleFilter
from logsluice.handlers import PostgresHandler
from logsluice.lifecycle import OWN_THREADS
from logsluice.primitives import get_ident
from logsluice.testing import captured
from support.processes import run_program
from support.records import make_record, record_factory

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


class Clock:
    """Seconds that the test moves on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Keeping(logging.Handler):
    """A handler that keeps its records."""

    def __init__(self, *given, level=logging.NOTSET):
        super().__init__(level)
        self.records = []
        for one in given:
            self.addFilter(one)

    def emit(self, record):
        self.records.append(record)

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]


def timed(one, clock=None):
    one._clock = clock or Clock()
    return one


@pytest.fixture
def log():
    """A logger of this test alone, through the real registry: a summary finds its way by it."""
    logger = logging.getLogger(f"filters.{uuid.uuid4().hex}")
    logger.propagate, logger.level = False, DEBUG
    return logger


def at(line, msg="hello", args=(), **options):
    record = make_record(msg, args, **options)
    record.lineno = line
    return record


# --- samples --------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.lists(st.tuples(st.text(max_size=40), st.sampled_from([DEBUG, INFO])), max_size=60))
def test_a_trace_is_kept_whole_in_every_process(rate, records):
    here, there = (SampleFilter(rates={"DEBUG": rate, "INFO": rate}) for _ in range(2))
    verdicts = collections.defaultdict(set)
    for n, (trace, level) in enumerate(records):
        verdicts[trace].add((here if n % 2 else there).filter(make_record(level=level, trace_id=trace)))
    assert all(len(found) == 1 for found in verdicts.values())


@given(st.floats(0, 1), st.floats(0, 1), st.uuids())
def test_what_the_lower_rate_keeps_the_higher_one_keeps(one, other, trace):
    lower, higher = sorted([one, other])
    sample = SampleFilter(rates={"DEBUG": lower, "INFO": higher})
    kept = [sample.filter(make_record(level=level, trace_id=trace)) for level in (DEBUG, INFO)]
    assert kept in ([False, False], [False, True], [True, True])


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("ids", [str, lambda n: f"req-{n:06d}", lambda n: uuid.uuid5(uuid.NAMESPACE_OID, str(n)).hex])
def test_the_kept_share_is_near_the_rate(rate, ids):
    count = 5000
    sample = SampleFilter(rates={"INFO": rate})
    kept = sum(sample.filter(make_record(trace_id=ids(n))) for n in range(count))
    assert abs(kept - rate * count) <= 4 * math.sqrt(
        count * rate * (1 - rate)
    )  # standard deviations; the ids are fixed
    assert sample.suppressed_by == ({("sample", INFO): count - kept} if rate < 1 else {})


@pytest.mark.parametrize("key", ["trace_id", None])
def test_without_a_key_it_is_chance(key, monkeypatch):
    chance = random.Random(17)
    monkeypatch.setattr(random, "random", chance.random)
    sample = SampleFilter(rates={"INFO": 0.1}, key=key)
    extras = {} if key else {"trace_id": "one and the same"}
    kept = sum(sample.filter(make_record(**extras)) for _ in range(5000))
    assert 400 < kept < 600


def test_the_choice_is_that_of_sha256():
    """So that a service in another language can keep the same traces: these values may never change."""
    sample = SampleFilter(rates={"INFO": 0.5})
    kept = [sample.filter(make_record(trace_id=trace)) for trace in ("a", "b", 17, "17", "é", "\ud800")]
    assert kept == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("rates", "kept"),
    [
        ({"DEBUG": 0}, [INFO, 25, WARNING, 35, ERROR, 50, 60]),  # 5 and 15 go with DEBUG
        ({"INFO": 0}, [5, DEBUG, 15, WARNING, 35, ERROR, 50, 60]),
        ({"DEBUG": 0, "INFO": 0}, [WARNING, 35, ERROR, 50, 60]),
        ({"ERROR": 0}, [5, DEBUG, 15, INFO, 25, WARNING, 35, 50, 60]),
        ({5: 0, 25: 0}, [DEBUG, 15, INFO, WARNING, 35, ERROR, 50, 60]),
        ({"DEBUG": 0, "INFO": 1}, [INFO, 25, WARNING, 35, ERROR, 50, 60]),
        ({"CRITICAL": 0}, [5, DEBUG, 15, INFO, 25, WARNING, 35, ERROR]),
    ],
)
def test_which_rate_a_level_has(rates, kept):
    sample = SampleFilter(rates=rates)
    levels = [5, DEBUG, 15, INFO, 25, WARNING, 35, ERROR, 50, 60]
    assert [level for level in levels if sample.filter(make_record(level=level))] == kept
    assert sample.suppressed_by == {("sample", level): 1 for level in levels if level not in kept}


def test_the_trace_is_found_as_capture_finds_it():
    """An extra before a bound value before OpenTelemetry's; a verdict tells whose key decided."""
    from opentelemetry import trace

    sample = SampleFilter(rates={"INFO": 0.5})
    kept, gone = "b", "a"
    ids = [n for n in range(1, 50) if not SampleFilter(rates={"INFO": 0.5}).filter(make_record(trace_id=f"{n:032x}"))]
    span = trace.NonRecordingSpan(trace.SpanContext(ids[0], 1, is_remote=False))
    with trace.use_span(span):
        assert not sample.filter(make_record())  # the span's trace
        assert sample.filter(make_record(otelTraceID=kept))
        assert not sample.filter(make_record(otelTraceID="0"))  # which says that there is none
        with context.bound(trace_id=kept):
            assert sample.filter(make_record())
            assert sample.filter(make_record(otelTraceID=gone))
            assert not sample.filter(make_record(trace_id=gone))


def test_any_key_that_shard_by_knows():
    sample = SampleFilter(rates={"INFO": 0.5}, key="extra.session")
    assert [sample.filter(make_record(session=one)) for one in "ab"] == [False, True]


# --- limits ---------------------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.floats(0, 2), st.sampled_from([1, 2, 3])), max_size=80)


@given(steps, st.sampled_from([0.5, 1, 2.5, 3, 10]), st.sampled_from([None, 1, 4]))
def test_at_most_so_many_in_each_window_and_all_is_counted(steps, per_second, burst):
    clock, logger = Clock(), logging.Logger("free")
    limit = timed(RateLimitFilter(per_second=per_second, burst=burst), clock)
    keeping = Keeping(limit)
    logger.addHandler(keeping)
    most = max(1, int(per_second)) if burst is None else burst
    length = most / per_second
    passed, opened = collections.defaultdict(list), {}
    for wait, line in steps:
        clock.now += wait
        if line not in opened or clock.now >= opened[line] + length:
            opened[line] = clock.now
            passed[line].append(0)
        expected = passed[line][-1] < most
        assert limit.filter(at(line)) is expected
        passed[line][-1] += expected
    total = sum(sum(counts) for counts in passed.values())
    assert total + sum(limit.suppressed_by.values()) == len(steps)
    assert set(limit.suppressed_by) <= {("rate_limit", INFO)}


@given(steps)
def test_the_summaries_add_up_to_what_was_suppressed(steps):
    clock = Clock()
    limit = timed(RateLimitFilter(per_second=2), clock)
    keeping, logger = Keeping(limit), logging.getLogger("filters.sums")
    logger.handlers, logger.propagate = [keeping], False
    for wait, line in steps:
        clock.now += wait
        keeping.handle(at(line, name="filters.sums"))
    limit.report(everything=True)
    said = collections.Counter()
    for record in keeping.records:
        said[record.lineno] += getattr(record, "suppressed", 0)
    assert sum(said.values()) == sum(limit.suppressed_by.values())
    assert len([r for r in keeping.records if not hasattr(r, "suppressed")]) + sum(said.values()) == len(steps)
    limit.report(everything=True)
    assert sum(getattr(r, "suppressed", 0) for r in keeping.records) == sum(said.values())  # nothing is said twice


def test_exactly_so_many_in_any_number_of_threads(log):
    """The window's counter and its successor are elected by single operations, and so is what a summary says."""
    threads, records, burst = 8, 2000, 25
    clock = Clock()
    limit = timed(RateLimitFilter(per_second=burst), clock)
    keeping = Keeping(limit)
    log.addHandler(keeping)
    passed, start, before = [], threading.Barrier(threads), sys.getswitchinterval()

    def work(number):
        start.wait(30)
        mine = 0
        for n in range(records):
            if number == 0 and n in (500, 1000, 1500):
                clock.now += 1
            if n % 100 == number:
                limit.report(everything=True)
            mine += limit.filter(at(7, name=log.name))
        passed.append(mine)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    sys.setswitchinterval(1e-6)  # seconds: a switch between any two lines
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    finally:
        sys.setswitchinterval(before)
    assert len(passed) == threads
    assert burst <= sum(passed) <= 4 * burst
    assert sum(passed) % burst == 0 or sum(passed) < 4 * burst  # a late window may have had too few records left
    assert sum(passed) + sum(limit.suppressed_by.values()) == threads * records
    limit.report(everything=True)
    assert sum(record.suppressed for record in keeping.records) == sum(limit.suppressed_by.values())


def test_a_window_of_a_minute_for_a_rate_below_one():
    clock = Clock()
    limit = timed(RateLimitFilter(per_second=0.05, burst=3), clock)
    assert [limit.filter(at(1)) for _ in range(5)] == [True] * 3 + [False] * 2
    clock.now += 59
    assert not limit.filter(at(1))
    clock.now += 1
    assert limit.filter(at(1))


def test_another_key_than_the_call_site():
    limit = timed(RateLimitFilter(per_second=1, key="user_id"))
    assert [limit.filter(at(n, user_id="a")) for n in range(3)] == [True, False, False]
    assert limit.filter(at(1, user_id="b"))
    with context.bound(user_id="a"):
        assert not limit.filter(at(9))
    assert [limit.filter(at(5)) for _ in range(2)] == [True, False]  # without the key: by call site
    assert limit.filter(at(6))


def test_a_long_key_is_not_kept():
    limit = timed(RateLimitFilter(per_second=1, key="extra.text"))
    long = "x" * 100_000
    assert [limit.filter(make_record(text=long + end)) for end in "aab"] == [True, False, True]
    assert all(len(str(key)) < 300 for key in limit._sites)


# --- duplicates -----------------------------------------------------------------------------------------------------


def failure(kind):
    try:
        raise kind("no")
    except kind:
        return sys.exc_info()


def test_equal_records_are_folded():
    clock = Clock()
    fold = timed(DuplicateFilter(seconds=60), clock)
    different = [
        {"msg": "paid %d", "args": (1,)},
        {"msg": "paid %d", "args": (2,)},
        {"msg": "paid 1", "level": WARNING},
        {"msg": "paid 1", "name": "shop.other"},
        {"msg": "paid 1", "exc_info": failure(ValueError)},
        {"msg": "paid 1", "exc_info": failure(KeyError)},
    ]
    assert [fold.filter(make_record(**one)) for one in different] == [True] * 6
    clock.now += 59.9
    assert [fold.filter(make_record(**one)) for one in different] == [False] * 6
    assert not fold.filter(make_record("paid 1", order=17))  # extras do not count
    clock.now += 0.1
    assert [fold.filter(make_record(**one)) for one in different] == [True] * 6
    assert fold.suppressed_by == {("duplicate", INFO): 6, ("duplicate", WARNING): 1}


def test_by_template_what_differs_in_its_arguments_is_equal():
    fold = timed(DuplicateFilter(key="template"))
    assert [fold.filter(make_record("paid %d", (n,))) for n in range(3)] == [True, False, False]


@pytest.mark.parametrize("key", ["text", "template"])
def test_of_structlogs_event_dicts_the_event_counts(key):
    fold = timed(DuplicateFilter(key=key))
    assert [fold.filter(make_record({"event": "paid", "timestamp": n})) for n in range(2)] == [True, False]
    assert [fold.filter(make_record({"other": n})) for n in (1, 1, 2)] == [True, False, True]


# --- what is said, and to whom --------------------------------------------------------------------------------------


def test_the_summary_goes_where_the_records_would_have_gone_and_no_record_is_changed(log):
    clock = Clock()
    limited, plain = Keeping(timed(RateLimitFilter(per_second=2), clock)), Keeping()
    log.handlers = [limited, plain]

    def burst(count):
        for n in range(count):
            log.warning("order %d", n, extra={"n": n})

    burst(5)
    clock.now += 1
    burst(1)
    assert limited.messages == ["order 0", "order 1", "3 more were suppressed: order %d", "order 0"]
    assert plain.messages == ["order 0", "order 1", "order 2", "order 3", "order 4", "order 0"]
    summary = limited.records[2]
    first = plain.records[0]
    site = ("name", "levelno", "levelname", "pathname", "filename", "module", "lineno", "funcName")
    assert [getattr(summary, name) for name in site] == [getattr(first, name) for name in site]
    assert (summary.suppressed, summary.suppressed_by) == (3, "rate_limit")
    assert summary.suppressed_since.endswith("Z")
    assert not hasattr(summary, "suppressed_key")
    assert limited.records[0] is first  # nobody got a copy
    standard = set(make_record().__dict__) | {"n", "taskName"}
    assert all(set(record.__dict__) <= standard for record in plain.records)


def test_a_logger_tells_all_its_handlers(log):
    fold = timed(DuplicateFilter(seconds=10))
    one, other = Keeping(), Keeping(level=ERROR)
    log.handlers = [one, other]
    log.addFilter(fold)
    for _ in range(3):
        log.error("down")
        log.info("up")
    fold._clock.now += 10
    log.error("again")
    assert one.messages == ["down", "up", "2 more were suppressed: down", "2 more were suppressed: up", "again"]
    assert other.messages == ["down", "2 more were suppressed: down", "again"]
    assert [record.suppressed_by for record in one.records[2:4]] == ["duplicate", "duplicate"]


def test_a_handler_of_a_parent_is_found_as_logging_finds_it(log):
    """Up to where nothing is propagated, and by the handler's level."""
    fold = timed(DuplicateFilter())
    above, errors, far_above = Keeping(fold), Keeping(fold, level=ERROR), Keeping(fold)
    log.handlers = [above, errors]
    logging.root.addHandler(far_above)
    try:
        for _ in range(4):
            log.getChild("a.b").info("hello")
        fold.report(everything=True)
    finally:
        logging.root.removeHandler(far_above)
    assert errors.messages == far_above.messages == []
    assert above.messages == ["hello", "3 more were suppressed: hello"]
    assert above.records[1].name == f"{log.name}.a.b"


def test_a_handler_behind_a_queue_is_found():
    """No logger leads to it; a handler of our own is known all the same."""
    fold = timed(DuplicateFilter())
    handler = PostgresHandler()
    handler.addFilter(fold)
    with captured() as rows:
        listener = logging.handlers.QueueListener(queue.SimpleQueue(), handler)
        for _ in range(3):
            listener.handle(make_record(name="a process of its own"))
        fold.report(everything=True)
    assert [row["message"] for row in rows] == ["hello", "2 more were suppressed: hello"]


def test_a_burst_that_simply_stops_is_said_by_the_next_record_of_any_site(log):
    clock = Clock()
    limit = timed(RateLimitFilter(per_second=1, logger=log.name, keep_level="ERROR"), clock)
    keeping = Keeping(limit)
    log.handlers = [keeping]
    for _ in range(3):
        log.info("burst")
    clock.now += 0.9
    log.info("another")
    assert keeping.messages == ["burst", "another"]
    clock.now += 0.1
    log.error("one that is not even judged")
    assert keeping.messages[2:] == ["2 more were suppressed: burst", "one that is not even judged"]


def test_short_windows_do_not_double_the_rate(log):
    """A summary a second and site, at the most."""
    clock = Clock()
    keeping = Keeping(timed(RateLimitFilter(per_second=10, burst=1), clock))
    log.handlers = [keeping]
    for _ in range(100):  # 5 s, 20 a second
        clock.now += 0.05
        log.info("fast")
    said = [record for record in keeping.records if hasattr(record, "suppressed")]
    assert len(said) <= 5
    assert len(keeping.records) - len(said) <= 51


def test_the_key_is_said(log):
    limit = timed(RateLimitFilter(per_second=1, key="user_id"))
    keeping = Keeping(limit)
    log.handlers = [keeping]
    for level in (DEBUG, DEBUG, WARNING, INFO):
        log.log(level, "hello", extra={"user_id": 17})
    limit.report(everything=True)
    assert keeping.records[1].suppressed_key == "17"
    assert keeping.records[1].levelno == WARNING  # the highest: no handler's level may hide it
    assert limit.suppressed_by == {("rate_limit", lv): 1 for lv in (DEBUG, WARNING, INFO)}


def test_a_summary_passes_all_filters_of_ours(log):
    limit = timed(RateLimitFilter(per_second=1))
    keeping = Keeping(limit, SampleFilter(rates={"INFO": 1.0}), timed(DuplicateFilter()))
    log.handlers = [keeping]
    for n in range(3):
        log.info("number %d", n)
    keeping.filters[1]._shares[:] = [0] * 5
    limit.report(everything=True)
    assert keeping.messages == ["number 0", "2 more were suppressed: number %d"]
    assert keeping.filters[1].suppressed_by == {}


def test_the_programs_record_factory_makes_the_summary(log):
    """A formatter may want a field that the factory sets."""
    fold = timed(DuplicateFilter())
    keeping = Keeping(fold)
    log.handlers = [keeping]
    with record_factory(request_id="r-1"):
        for _ in range(2):
            log.info("hello")
        fold.report(everything=True)
    assert [record.request_id for record in keeping.records] == ["r-1", "r-1"]


def test_handlers_that_share_a_filter_get_the_same_records(log):
    """Asked twice, a DuplicateFilter would give each record to the first handler and none to the second."""
    for shared in (DuplicateFilter(), RateLimitFilter(per_second=3), SampleFilter(rates={"INFO": 0.5}, key=None)):
        timed(shared)
        one, other = Keeping(shared), Keeping(shared)
        log.handlers = [one, other]
        log.addFilter(shared)
        for n in range(40):
            log.info("hello", extra={"n": n})
        shared.report(everything=True)
        assert one.messages == other.messages
        assert one.records
        passed = sum(not hasattr(record, "suppressed") for record in one.records)
        assert passed + sum(shared.suppressed_by.values()) == 40
        log.removeFilter(shared)
        twice = Keeping(shared), Keeping(shared)
        log.handlers = list(twice)
        log.info("another")
        assert twice[0].messages == twice[1].messages
    with_other_record = make_record("again")
    assert shared.filter(with_other_record) is shared.filter(with_other_record)


def test_a_handler_that_raises_loses_its_summary_and_nothing_else(log):
    class Raising(Keeping):
        def handle(self, record):
            if hasattr(record, "suppressed"):
                raise OSError("disk full")
            return super().handle(record)

    fold = timed(DuplicateFilter())
    log.handlers = [Raising(fold)]
    for _ in range(3):
        log.info("hello")
    fold.report(everything=True)
    fold._clock.now += 60
    log.info("hello")
    assert log.handlers[0].messages == ["hello", "hello"]
    assert fold.suppressed_by == {("duplicate", INFO): 2}


def test_nothing_is_said_on_a_listeners_thread(log):
    """What is logged there is never stored: the next record of the program says it."""
    fold = timed(DuplicateFilter())
    keeping = Keeping(fold)
    log.handlers = [keeping]
    for _ in range(2):
        log.info("hello")
    OWN_THREADS.add(get_ident())
    try:
        fold.report(everything=True)
        assert keeping.messages == ["hello"]
    finally:
        OWN_THREADS.discard(get_ident())
    fold.report(everything=True)
    assert keeping.messages == ["hello", "1 more were suppressed: hello"]


# --- bounds, accidents ----------------------------------------------------------------------------------------------


def test_keys_are_bounded_and_who_goes_is_said(log, monkeypatch):
    monkeypatch.setattr(filters, "SITES", 10)
    clock = Clock()
    fold = timed(DuplicateFilter(), clock)
    keeping = Keeping(fold)
    log.handlers = [keeping]
    log.info("in use")
    for _ in range(2):
        log.info("idle")
    clock.now += 59
    log.info("idle")  # its window stays the older one
    clock.now += 1
    log.info("in use")  # a new window: not the oldest any more
    assert keeping.messages == ["in use", "idle", "2 more were suppressed: idle", "in use"]
    for n in range(8):
        log.info("other %d", n)
    log.info("other 0")
    log.info("one too many")
    assert len(fold._sites) == 10
    log.info("in use")
    assert keeping.messages[-1] == "one too many"  # still known
    log.info("another")  # "in use" has to go, and what it has to say is said
    log.info("and another")
    assert keeping.messages[-3:] == ["another", "1 more were suppressed: in use", "and another"]
    assert len(fold._sites) == 10
    assert sum(fold.suppressed_by.values()) == 4


def test_the_summary_of_one_key_does_not_make_the_others_forgotten(log):
    clock = Clock()
    fold = timed(DuplicateFilter(seconds=10), clock)
    keeping = Keeping(fold)
    log.handlers = [keeping]
    for text in ("early", "late"):
        for created in (1e9, 2e9, 3e9):
            record = make_record(text, name=log.name, created=created)
            keeping.handle(record)
        clock.now += 5
    clock.now += 1
    log.info("one")
    assert keeping.messages[2:] == ["2 more were suppressed: early", "one"]
    clock.now += 5
    log.info("two")
    assert keeping.messages[4:] == ["2 more were suppressed: late", "two"]
    keeping.handle(make_record("late", name=log.name, created=4e9))
    keeping.handle(make_record("late", name=log.name, created=5e9))
    fold.report(everything=True)
    since = [record.suppressed_since[:4] for record in keeping.records if hasattr(record, "suppressed")]
    assert since == ["2033", "2033", "2128"]  # the first one that was kept back, each time


def test_a_flood_of_keys_keeps_memory_bounded():
    fold = timed(DuplicateFilter())
    for n in range(filters.SITES + 500):
        for _ in range(2):
            fold.filter(make_record(f"text {n}", level=n))
    assert len(fold._sites) == filters.SITES
    assert len(fold._unsaid) <= filters.SITES + 1
    alive = [make_record("one text") for _ in range(filters.VERDICTS + 1)]
    assert sum(map(fold.filter, alive)) == 1
    assert len(fold._verdicts) <= filters.VERDICTS
    assert len(fold.suppressed_by) <= filters.LEVELS + 1
    assert sum(fold.suppressed_by.values()) == filters.SITES + 500 + filters.VERDICTS


class Hostile:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __hash__ = __eq__ = __str__


class OddText(str):
    __slots__ = ()

    def __str__(self):
        return self  # so `str` of it is one, too

    def __hash__(self):
        raise RuntimeError("no hash")


@pytest.mark.parametrize(
    "one",
    [
        lambda: SampleFilter(rates={"INFO": 0}, key="extra.key"),
        lambda: RateLimitFilter(per_second=1, key="extra.key"),
        lambda: DuplicateFilter(),
        lambda: DuplicateFilter(key="template"),
    ],
)
def test_a_record_that_cannot_be_judged_passes(one):
    one = timed(one())
    one.filter(make_record(OddText("odd"), key=OddText("odd")))
    for _ in range(3):
        assert one.filter(make_record(Hostile(), key=Hostile()))
        assert one.filter(make_record(level="INFO", key="a"))
        for name in ("levelno", "process"):
            record = make_record(key="a")
            del record.__dict__[name]
            assert one.filter(record)
    assert one.suppressed_by in ({}, {("sample", INFO): 1})  # of the odd text, which is a key like any other


def test_an_odd_text_is_a_key_like_any_other():
    limit = timed(RateLimitFilter(per_second=1, key="extra.key"))
    assert [limit.filter(make_record(key=OddText("odd"))) for _ in range(2)] == [True, False]
    fold = timed(DuplicateFilter())
    assert [fold.filter(make_record("%s", (OddText("odd"),))) for _ in range(2)] == [True, False]


def test_a_wrong_format_string_and_a_clock_that_stopped_pass():
    fold = timed(DuplicateFilter())
    assert [fold.filter(make_record("%d", ("x",))) for _ in range(2)] == [True, True]
    fold._clock = None
    assert [fold.filter(make_record()) for _ in range(2)] == [True, True]


def test_on_a_full_stack_a_record_passes_or_not_and_nothing_raises():
    fold = timed(DuplicateFilter())

    def deep():
        try:
            deep()
        finally:
            fold.filter(make_record("deep"))

    with pytest.raises(RecursionError):
        deep()
    assert sum(fold.suppressed_by.values()) > 100


def interrupted(setup, work, meanwhile):
    """Run `work` once for each place in the filter's code, a bytecode each, with `meanwhile` called there."""
    place = 0
    while True:
        state = setup()
        seen, here = [0], [False]

        def trace(frame, event, _arg, state=state, seen=seen, here=here):
            if frame.f_code.co_filename != filters.__file__:
                return None
            frame.f_trace_opcodes = True
            if event in ("opcode", "line") and not here[0]:  # lines for Pythons that do not tell of opcodes
                seen[0] += 1
                if seen[0] == place + 1:
                    here[0] = True
                    meanwhile(*state)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            work(*state)
        finally:
            sys.settrace(before)
        if not here[0]:
            return
        place += 1
        yield state


STARTS = {"no site": 0, "a window that is over": 1, "a full window": 2, "a summary that is due": 5, "a report": 5}


@pytest.mark.parametrize("start", STARTS)
def test_interrupted_at_any_place_all_is_exact(log, start):
    """By a signal handler or another thread that logs at the same call site and has summaries written."""
    burst = 2

    def setup():
        clock = Clock()
        limit = timed(RateLimitFilter(per_second=burst), clock)
        keeping = Keeping(limit)
        log.handlers = [keeping]
        for _ in range(STARTS[start]):
            keeping.handle(at(7, name=log.name))
        if "full" not in start:
            clock.now += 1
        return limit, keeping

    def work(limit, keeping):
        if start == "a report":
            limit.report()
        else:
            for _ in range(2):
                keeping.handle(at(7, name=log.name))

    def meanwhile(limit, keeping):
        for _ in range(3):
            keeping.handle(at(7, name=log.name))
        limit.report(everything=True)

    places = 0
    for limit, keeping in interrupted(setup, work, meanwhile):
        places += 1
        passed = [record for record in keeping.records if not hasattr(record, "suppressed")]
        assert len(passed) == min(STARTS[start], burst) + (0 if "full" in start else burst)
        suppressed = sum(limit.suppressed_by.values())
        assert len(passed) + suppressed == STARTS[start] + (0 if start == "a report" else 2) + 3
        limit.report(everything=True)
        assert sum(getattr(record, "suppressed", 0) for record in keeping.records) == suppressed
        assert limit._turn == [None]
    assert places > 50


def test_a_real_signal_in_the_middle_of_a_loop():
    limit = timed(RateLimitFilter(per_second=100))
    passed, signalled = [], []

    def handler(*_):
        signalled.append(limit.filter(at(3)))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        while len(signalled) < 20:
            passed.append(limit.filter(at(3)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sum(passed) + sum(signalled) == min(100, len(passed) + len(signalled))


# --- configuration and figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SampleFilter(), r"rates must be a mapping of level to share, for example \{'DEBUG': 0.01\}, got None"),
        (lambda: SampleFilter(rates=0.1), "rates must be a mapping"),
        (lambda: SampleFilter(rates={}), "rates must be a mapping"),
        (lambda: SampleFilter(rates={"DEBUG": 2}), r"rates\['DEBUG'\] must be a share from 0 to 1, got 2"),
        (lambda: SampleFilter(rates={"DEBUG": "1%"}), "must be a share from 0 to 1, got '1%'"),
        (lambda: SampleFilter(rates={"DEBUG": True}), "must be a share"),
        (lambda: SampleFilter(rates={"DEBUG": math.nan}), "must be a share"),
        (lambda: SampleFilter(rates={"DEBG": 0.5}), "a level in rates must be a level name or number"),
        (lambda: SampleFilter(rates={"DEBUG": 0.5}, key="tracer_id"), "key: unknown source 'tracer_id'; did you mean"),
        (lambda: SampleFilter(rates={"DEBUG": 0.5}, key="session"), "for an extra write 'extra.session'"),
        (lambda: SampleFilter(rates={"DEBUG": 0.5}, key="message"), "key='message' is no key"),
        (lambda: SampleFilter(rates={"DEBUG": 0.5}, key=5), "key must be a source"),
        (lambda: SampleFilter(rate={"DEBUG": 0.5}), "unknown option 'rate'; did you mean 'rates'"),
        (lambda: RateLimitFilter(per_second=0), "per_second must be records a second from 1e-06 to 1e"),
        (lambda: RateLimitFilter(per_second="10"), "per_second must be records a second"),
        (lambda: RateLimitFilter(burst=0), "burst must be a whole number of records of at least 1, or None, got 0"),
        (lambda: RateLimitFilter(burst=1.5), "burst must be a whole number"),
        (lambda: RateLimitFilter(burst=True), "burst must be a whole number"),
        (lambda: RateLimitFilter(key=["a"]), "key must be 'call_site', a source"),
        (lambda: RateLimitFilter(level="INFO"), "unknown option 'level'; did you mean 'keep_level'"),
        (lambda: RateLimitFilter(zzz=1), "known options: per_second, burst, key, logger, keep_level"),
        (lambda: DuplicateFilter(seconds=0), "seconds must be seconds from 0.001"),
        (lambda: DuplicateFilter(key="extras"), "key must be 'text' or 'template', got 'extras'"),
        (lambda: DuplicateFilter(logger=""), "logger must be the name of a logger, for example 'urllib3'"),
        (lambda: DuplicateFilter(keep_level="LOUD"), "keep_level must be a level name or number"),
    ],
)
def test_a_wrong_option_says_what_to_write(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_by_dictconfig_from_json_on_a_logger_and_on_handlers():
    config = json.loads("""{
        "version": 1, "disable_existing_loggers": false,
        "filters": {
            "sample": {"()": "logsluice.filters.SampleFilter", "rates": {"DEBUG": 0, "INFO": 1.0}},
            "limit": {"()": "logsluice.filters.RateLimitFilter", "per_second": 3, "keep_level": "ERROR"},
            "fold": {"()": "logsluice.filters.DuplicateFilter", "seconds": 60, "logger": "filters.config.noisy"}
        },
        "handlers": {
            "list": {"()": "logging.handlers.BufferingHandler", "capacity": 1000, "filters": ["limit", "fold"]},
            "db": {"class": "logsluice.PostgresHandler", "dsn": "", "filters": ["limit", "fold"]}
        },
        "loggers": {"filters.config": {"level": "DEBUG", "handlers": ["list", "db"], "filters": ["sample"],
                                       "propagate": false}}
    }""")
    with captured() as rows:
        logging.config.dictConfig(config)
        logger = logging.getLogger("filters.config")
        for n in range(5):
            logger.debug("debug %d", n)
            logger.info("info %d", n)
            logger.error("error %d", n)
            logger.getChild("noisy.driver").warning("connected")
        plain, db = logger.handlers
        db.close()
    expected = [f"{level} {n}" for n in range(5) for level in ("info", "error")]
    expected = [text for text in expected if text not in {"info 3", "info 4"}]
    expected.insert(2, "connected")
    said = ["2 more were suppressed: info %d", "2 more were suppressed: connected", "2 more were suppressed: connected"]
    messages = [record.getMessage() for record in plain.buffer]
    assert messages == [row["message"] for row in rows]
    assert sorted(messages) == sorted([*expected, *said])
    stats = db.stats()
    assert stats.suppressed_by == {("rate_limit", INFO): 2, ("rate_limit", WARNING): 2, ("duplicate", WARNING): 2}
    assert stats.offered == stats.dropped == 0  # a test's handler; what was suppressed is in neither
    row = next(row for row in rows if row["template"] == "%d more were suppressed: %s")
    assert row["attributes"]["suppressed"] == 2
    assert row["attributes"]["suppressed_by"] == "rate_limit"
    figures = dict(filters.figures())
    sample = "SampleFilter(rates={'DEBUG': 0, 'INFO': 1.0}, key='trace_id')"
    assert figures[sample] == {("sample", DEBUG): 5}
    assert figures["RateLimitFilter(per_second=3, burst=3, key='call_site', keep_level='ERROR')"] == {
        ("rate_limit", INFO): 2, ("rate_limit", WARNING): 2,
    }  # fmt: skip
    logger.handlers, logger.filters = [], []


def test_a_wrong_option_in_dictconfig_is_shown():
    config = {"version": 1, "filters": {"sample": {"()": "logsluice.filters.SampleFilter", "rates": {"DEBUG": 5}}}}
    with pytest.raises(ValueError, match="Unable to configure filter 'sample'") as caught:
        logging.config.dictConfig(config)
    assert isinstance(caught.value.__cause__, ConfigError)


def test_a_filter_that_is_gone_is_not_listed():
    count = len(filters.figures())
    one = DuplicateFilter(seconds=17)
    assert ("DuplicateFilter(seconds=17, key='text')", {}) in filters.figures()
    del one
    assert len(filters.figures()) <= count


# --- processes ------------------------------------------------------------------------------------------------------

PROGRAM = """
import logging, os, sys
from logsluice.filters import DuplicateFilter, figures
handler = logging.StreamHandler(sys.stdout)
handler.addFilter(DuplicateFilter())
logging.basicConfig(handlers=[handler], format="%(process)d %(message)s")
for _ in range(3):
    logging.warning("down")
"""


def test_the_end_of_the_program_says_what_is_left():
    program = run_program(PROGRAM)
    assert program.returncode == 0, program.stderr
    assert [line.split(" ", 1)[1] for line in program.stdout.splitlines()] == ["down", "2 more were suppressed: down"]
    assert program.stderr == ""


@pytest.mark.parametrize("hooks", [True, False])
def test_a_forked_child_says_its_own_and_not_its_parents(hooks):
    """Without hooks as under uWSGI: nothing of ours runs in the fork itself, in either case."""
    program = run_program(
        PROGRAM
        + """
import ctypes
sys.stdout.flush()
HOOKS = """
        + repr(hooks)
        + """
child = os.fork() if HOOKS else ctypes.PyDLL(None).fork()
if child == 0:
    assert figures()[0][1] == {}
    for _ in range(5):
        logging.warning("down")
    assert figures()[0][1] == {("duplicate", 30): 4}, figures()
    sys.exit()
os.waitpid(child, 0)
if HOOKS and os.fork() == 0:
    sys.exit()  # one that logs nothing has nothing to say
elif HOOKS:
    os.wait()
assert figures()[0][1] == {("duplicate", 30): 2}
"""
    )
    assert program.returncode == 0, program.stderr
    by = collections.defaultdict(list)
    for line in program.stdout.splitlines():
        pid, text = line.split(" ", 1)
        by[pid].append(text)
    assert sorted(by.values()) == [["down", "2 more were suppressed: down"], ["down", "4 more were suppressed: down"]]


def test_the_module_costs_a_program_no_driver():
    program = run_program("import sys; import logsluice.filters; print({'psycopg', 'asyncio'} & set(sys.modules))")
    assert program.stdout == "set()\n"
