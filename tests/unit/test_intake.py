"""intake.py: the quick way and the whole way give the same frame; any record gives one; its limits; what it costs."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logsluice import context
from logsluice.capture import STANDARD
from support.records import copy_columns, make_intake, make_record, marks_of, needs_repair, read_frame, repaired, stored
from support.strategies import ANY_TEXT
from support.ways import BOUND, records


@pytest.fixture(autouse=True)
def _nothing_bound():
    yield
    context.clear()


# --- one truth -------------------------------------------------------------------------------------------------------

INTAKES = {
    name: make_intake(**options)
    for name, options in {
        "usual": {},
        "service": {"service": "shop"},
        "no redaction": {"redact": None},
        "small": {"max_message_bytes": 1024, "limits": {"items": 2, "key_bytes": 8, "name_bytes": 16, "depth": 1}},
        "characters": {"limits": {"service": 3, "module": 5, "operation": 5, "message": 8}},
    }.items()
}


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records(), BOUND, st.sampled_from(sorted(INTAKES)))
@example(make_record(user_id=0), None, "usual")
@example(make_record(taskName="Task-7"), None, "usual")
@example(make_record(user_id=""), None, "usual")
@example(make_record(user_id=True), None, "usual")
@example(make_record(user_id=[1]), {"user_id": 5}, "usual")
@example(make_record(), {"user_id": None, "tenant": 1}, "usual")
@example(make_record(), {"user_id": {"a": 1}}, "usual")
@example(make_record(), {"_logger": 1}, "usual")
@example(make_record(logsluice="mine"), None, "usual")
@example(make_record(lineno=2**40), None, "usual")
@example(make_record(lineno=None), None, "usual")
@example(make_record(levelno=20.0), None, "usual")
@example(make_record(threadName="t" * 2000), None, "usual")
@example(make_record(threadName="redis://:hunter2@cache/0"), None, "usual")
@example(make_record(name="redis://:hunter2@cache/0"), None, "usual")
@example(make_record("%(redis://:hunter2@cache/0)s", ({"redis://:hunter2@cache/0": 1},)), None, "usual")
@example(make_record(levelno=0, levelname=None), None, "usual")
@example(make_record(levelno=0, levelname=""), None, "usual")
@example(make_record("m" * 2000), None, "small")
@example(make_record(a=1, b=2, c=3), None, "small")
def test_the_quick_way_gives_the_same_frame_as_the_whole_way(record, bound, which):
    """Byte for byte, with cold caches and with warm ones: a cache or a short cut never changes what is stored."""
    intake = INTAKES[which]
    if bound:
        context.bind(**bound)
    try:
        for _ in range(2):
            frame = intake.prepare(record)
            if record.name.partition(".")[0] == "logsluice":
                assert frame is None
                return
            assert intake.whole(record, int(copy_columns(frame)[0])) == frame
    finally:
        context.clear()


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(make_record(), id="plain"),
        pytest.param(make_record("order %s paid by %s", (17, "bob")), id="arguments"),
        pytest.param(make_record("tab\tand\nnewline \\ é \u2028"), id="odd characters"),
        pytest.param(make_record(order_id=17, shop="north", ratio=0.5, ok=True, none=None), id="extras"),
        pytest.param(make_record(trace_id="abc", user_id=17), id="ids"),
        pytest.param(make_record(message="hello", asctime="2024-01-01"), id="after another handler's Formatter"),
        pytest.param(make_record(message="hello", order_id=17), id="after a Formatter, with extras"),
        pytest.param(make_record(processName="SpawnProcess-1"), id="in a process of multiprocessing"),
        pytest.param(make_record(threadName="ThreadPoolExecutor-0_0"), id="in a thread"),
    ],
)
def test_ordinary_records_go_the_quick_way(record):
    """Else the promise about its cost holds for nobody."""
    intake = make_intake()
    intake.prepare(record)
    assert intake.whole_ways == 0


def test_bound_values_go_the_quick_way():
    """Ids and others alike."""
    context.bind(user_id="bob", tenant="north")
    row = stored(make_record(order_id=5), intake := make_intake())
    assert (row["user_id"], row["attributes"]) == ("bob", {"tenant": "north", "order_id": 5})
    assert intake.whole_ways == 0


# --- all of Unicode --------------------------------------------------------------------------------------------------


def exception_of(text):
    try:
        raise ValueError(text)
    except ValueError as error:
        return type(error), error, error.__traceback__


@settings(max_examples=120, deadline=None)
@given(
    message=ANY_TEXT,
    arg=ANY_TEXT,
    key=ANY_TEXT,
    value=ANY_TEXT,
    name=ANY_TEXT,
    func=ANY_TEXT,
    thread=ANY_TEXT,
    failure=ANY_TEXT,
)
@example(*(["\0"] * 8))
@example(*(["\ud800"] * 8))
@example(*(["\\."] * 8))
@example(*(["\r"] * 8))
def test_any_character_in_any_place_comes_back(message, arg, key, value, name, func, thread, failure):  # fmt: skip
    """Equal, or repaired as documented, marked and counted; the frame is one line without NUL."""
    name, key = "n" + name, "k" + key
    record = make_record(
        message.replace("%", "%%") + "%s", (arg,), name=name, exc_info=exception_of(failure),
        funcName=func, threadName=thread, **{key: value},
    )  # fmt: skip
    intake = make_intake(redact=None)
    row = stored(record, intake)
    assert repaired(message + arg) == row["message"]
    assert repaired(message.replace("%", "%%") + "%s") == row["template"]
    assert (repaired(name), repaired(func), repaired(thread)) == (row["logger"], row["func"], row["thread"])
    assert repaired(failure) == row["exc_message"]
    assert repaired(value) == row["attributes"][repaired(key)]
    odd = any(map(needs_repair, [message, arg, key, value, name, func, thread, failure]))
    assert odd == ("sanitized" in marks_of(row))
    assert odd == (intake.sanitized == 1)


@settings(max_examples=120, deadline=None)
@given(message=ANY_TEXT, key=ANY_TEXT, value=ANY_TEXT, thread=ANY_TEXT)
def test_any_character_in_a_record_without_arguments_comes_back(message, key, value, thread):
    """The quick way, where it answers."""
    key = "k" + key
    row = stored(make_record(message, threadName=thread, **{key: value}), intake := make_intake(redact=None))
    assert (repaired(message), None) == (row["message"], row["template"])
    assert repaired(thread) == row["thread"]
    assert repaired(value) == row["attributes"][repaired(key)]
    assert any(map(needs_repair, [message, key, value, thread])) == (intake.sanitized == 1)


# --- hostile records and values --------------------------------------------------------------------------------------


class Evil(str):
    """A str whose methods lie: taken at its word it would end the row and begin another."""

    __slots__ = ()

    def __str__(self):
        return self

    def __format__(self, spec):
        return "a\nforged\trow\0"

    def isprintable(self):
        return True

    def __contains__(self, item):
        return False

    def replace(self, *args):
        return self

    def __len__(self):
        return 1


EVIL = Evil("a\n\0\t\\.b")


@pytest.mark.parametrize(
    "record",
    [
        make_record("%s", (EVIL,)),
        make_record("%s %r", (EVIL, EVIL)),
        make_record(EVIL),
        make_record(EVIL, name=EVIL),
        make_record(pathname=EVIL),
        make_record(funcName=EVIL),
        make_record(threadName=EVIL),
        make_record(processName=EVIL),
        make_record(levelname=EVIL),
        make_record(taskName=EVIL),
        make_record(extra_value=EVIL),
        make_record(user_id=EVIL),
        make_record(**{EVIL: EVIL}),
        make_record(exc_text=EVIL),
        make_record(stack_info=EVIL),
    ],
)
def test_a_subclass_of_str_with_lying_methods_forges_no_row(record):
    """Twice: a cache must not remember what it said."""
    intake = make_intake()
    for _ in range(2):
        row = stored(record, intake)
        assert "forged" not in str(row)
        assert row["stream"] == STREAM_TEXT


STREAM_TEXT = "4711"


class Raises:
    def __init__(self, error=RuntimeError):
        self.error = error

    def __str__(self):
        raise self.error("no")

    __repr__ = __str__


class Recurses:
    def __str__(self):
        return str(self)

    def __repr__(self):
        return repr(self)


class Huge:
    def __str__(self):
        return "x" * 100_000_000

    __repr__ = __str__


class NoBool:
    def __bool__(self):
        raise ValueError("the truth value of an array is ambiguous")

    def __eq__(self, other):
        raise ValueError

    __hash__ = None


class LyingDict:
    @property
    def __class__(self):
        return dict


class EvilDict(dict):
    def __iter__(self):
        raise RuntimeError

    keys = items = get = pop = __contains__ = __iter__


HOSTILE = [Raises(), Raises(MemoryError), Raises(RecursionError), Recurses(), NoBool(), LyingDict(), EvilDict(a=1)]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "place",
    [
        *("msg", "arg", "arg of many", "args", "shop", "extra", "user_id", "otelTraceID"),
        *("name", "levelname", "levelno", "lineno", "created", "pathname", "funcName", "threadName", "processName"),
        *("taskName", "stack_info", "exc_text", "exc_info"),
    ],
)
def test_a_hostile_value_in_any_place_costs_one_placeholder(value, place):
    """Nothing raises, one frame comes out, and what could be read is in it."""
    intake = make_intake()
    if place == "msg":
        record = make_record(value)
    elif place == "arg":
        record = make_record("hello %s", (value,))
    elif place == "arg of many":
        record = make_record("hello %s %s %s", (1, value, 3))
    else:
        record = make_record()
        record.__dict__[place] = value
    before = dict(record.__dict__)
    row = stored(record, intake)
    assert place in {"msg", "args"} or row["message"].startswith(("hello", "<record could not be captured"))
    assert [*before] == [*record.__dict__]
    assert all(before[name] is record.__dict__[name] for name in before)


def test_a_str_of_a_hundred_megabytes_is_cut():
    """Head and tail are kept, the row says how much is missing."""
    row = stored(make_record("%s", (Huge(),)))
    assert 1 << 20 >= len(row["message"].encode()) > 1 << 19
    assert marks_of(row)["cut"]["message"] > 98_000_000


class LogsAgain:
    """Its text makes a record of its own, through the same handler."""

    def __init__(self, handler):
        self.handler = handler

    def __str__(self):
        self.handler(make_record("from inside"))
        return "outer"


class LogsItself:
    def __init__(self, handler):
        self.handler = handler

    def __str__(self):
        self.handler(make_record("me again: %s", (self,)))
        return "outer"


def test_a_str_that_logs_through_the_same_handler():
    """Both records come out whole."""
    intake, frames = make_intake(), []
    record = make_record("hello %s", (LogsAgain(lambda inner: frames.append(intake.prepare(inner))),))
    frames.append(intake.prepare(record))
    assert [read_frame(frame)["message"] for frame in frames] == ["from inside", "hello outer"]


def test_a_str_that_logs_itself_ends():
    """At Python's limit of recursion, with a frame for each call that could be made."""
    intake, frames = make_intake(), []

    def handle(record):
        try:
            frames.append(intake.prepare(record))
        except Exception:  # what the handler does with it: counted as dropped
            pass

    handle(make_record("hello %s", (LogsItself(handle),)))
    assert read_frame(frames[-1])["message"] == "hello outer"
    assert len(frames) < 5000
    assert all(copy_columns(frame) for frame in frames)


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_a_standard_attribute_that_somebody_deleted(name):
    """The record is stored with the rest of it, with cold caches and with warm ones."""
    intake = make_intake()
    intake.prepare(make_record(order_id=17))
    record = make_record("hello", order_id=17)
    del record.__dict__[name]
    for _ in range(2):
        row = stored(record, intake)
        assert row["attributes"]["order_id"] == 17
        assert name == "msg" or row["message"] == "hello"


def test_a_record_class_that_sets_fields_before_the_standard_ones():
    """What is an extra is not a matter of order."""

    class Early(logging.LogRecord):
        def __init__(self, *args, **kwargs):
            self.request = "r1"
            super().__init__(*args, **kwargs)

    row = stored(Early("shop", 20, "/p", 1, "hello", (), None))
    assert (row["attributes"], row["message"]) == ({"request": "r1"}, "hello")


def test_a_bare_record_from_a_dict():
    """`makeLogRecord({})`: no name, no level."""
    row = stored(logging.makeLogRecord({}))
    assert (row["logger"], row["level"], row["message"]) == (None, "0", "")


def test_a_level_that_is_no_number_is_stored_at_once():
    """`enqueue` compares levels; one that cannot be compared counts as 0."""
    intake = make_intake()
    intake.enqueue(intake.prepare(make_record(levelno="high")), "high")
    assert intake.buffer.offered() == 1
    assert intake.buffer.dropped() == {}


def test_a_record_that_cannot_be_read_at_all_keeps_its_place():
    """One frame that says so, under its logger and level, with nothing of its content."""

    class Broken(logging.LogRecord):
        @property
        def msg(self):
            raise RuntimeError("hunter2")

        @msg.setter
        def msg(self, value):
            pass

    row = stored(Broken("shop", 30, "/p", 1, "hello", (), None))
    assert (row["logger"], row["level"]) == ("shop", "30")
    assert row["message"] == "<record could not be captured: RuntimeError>"


# --- nothing changes, nothing is kept --------------------------------------------------------------------------------


def test_a_mutable_argument_changed_after_the_call_cannot_change_the_frame():
    """The text as of the call, ten thousand times."""
    intake, wrong, order = make_intake(), 0, {"n": 0}
    for i in range(2000):
        order["n"] = i
        frame = intake.prepare(make_record("order %s", (order,), order=order))
        order["n"] = -1
        row = read_frame(frame)
        wrong += row["message"] != f"order {{'n': {i}}}" or row["attributes"] != {"order": {"n": i}}
    assert wrong == 0


class Thing:
    def __repr__(self):
        return "<Thing>"


class ThingText(str):
    __slots__ = ("__weakref__", "note")


def test_no_live_object_is_kept():
    """Arguments, extras, bound values, names, exceptions and their frames: all free once the frame is made."""
    intake = make_intake()
    refs = []

    def log_once():
        things = [Thing() for _ in range(5)]
        name, thread, path = ThingText("shop.x"), ThingText("thread-x"), ThingText("/p/x")
        refs.extend(weakref.ref(thing) for thing in [*things, name, thread, path])
        local = things[4]
        try:
            raise ValueError(local)
        except ValueError as error:
            refs.append(weakref.ref(error.__traceback__.tb_frame.f_locals["things"][0]))
            with context.bound(thing=things[2], user_id=things[3]):
                for record in (
                    make_record("%s and %(a)s", (things[0],)),
                    make_record("%s", (things[0],), value=things[1]),
                    make_record("x", name=name, threadName=thread, pathname=path),
                    make_record("failed", exc_info=(type(error), error, error.__traceback__)),
                ):
                    intake.prepare(record)
        with context.bound(user_id=things[3]):
            intake.prepare(make_record("only an id"))

    log_once()
    gc.collect()
    assert [ref() for ref in refs if ref() is not None] == []


@settings(max_examples=100, deadline=None)
@given(records())
def test_a_record_is_never_changed(record):
    """Other handlers get it as it was: the same attributes, the same objects, in the same order."""
    before = dict(record.__dict__)
    make_intake().prepare(record)
    assert [*before] == [*record.__dict__]
    assert all(before[name] is record.__dict__[name] for name in before)


# --- caches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["pathname", "lineno", "levelno", "name", "funcName"])
def test_records_that_differ_in_one_cached_field_are_told_apart(field):
    """Generated code, `stacklevel`, filters and factories change each of them."""
    intake = make_intake()
    column = {"pathname": "file", "lineno": "line", "levelno": "level", "name": "logger", "funcName": "func"}[field]
    values = {"lineno": [1, 2], "levelno": [20, 30]}.get(field, ["a", "b"])
    got = []
    for value in values:
        record = make_record(**{field: value})
        record.levelname = logging.getLevelName(record.levelno)
        got.append(stored(record, intake)[column])
    assert [str(value) for value in values] == got


def test_two_modules_on_one_line_number_and_a_record_of_nones_are_told_apart():
    """The quick look at a call site goes by its line; what it finds there may be another's, or nothing."""
    intake = make_intake()
    for name in ("a", "b", "a"):
        assert stored(make_record(name=name), intake)["logger"] == name
    nones = dict.fromkeys(("pathname", "levelno", "name", "funcName", "levelname"))
    row = stored(logging.makeLogRecord({**nones, "lineno": 99, "msg": "hello"}), intake)
    assert (row["logger"], row["file"], row["level"], row["message"]) == (None, None, "0", "hello")


def test_caches_are_bounded():
    """A hundred thousand call sites, templates, threads, sets of extras and bound values."""
    intake = make_intake()
    for i in range(4200):
        with context.bound(request=i):
            intake.prepare(make_record(f"m{i} %s", (1,), threadName=f"t{i}", lineno=i, **{f"k{i}": 1}))
    q = intake.quick
    caches = (q.sites, q.lines, q.templates, q.names, q.threads, q.plans, q.bounds)
    assert max(len(cache) for cache in caches) <= 4096
    assert len(intake.quick._redactor._answers) <= 4096


def test_many_threads_at_once_keep_their_records_apart():
    """The caches are shared; every frame holds its own thread's values."""
    intake, frames, start = make_intake(), {}, threading.Barrier(4)

    def work(number):
        start.wait()
        context.bind(user_id=f"u{number}")
        frames[number] = [
            intake.prepare(make_record(f"m{number} %s", (i,), threadName=f"t{number}", number=number)) for i in range(1500)
        ]  # fmt: skip

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seqs = set()
    for number, mine in frames.items():
        for i, frame in enumerate(mine):
            row = read_frame(frame)
            seqs.add(row["seq"])
            assert (f"m{number} {i}", f"t{number}", f"u{number}", {"number": number}) == (
                row["message"], row["thread"], row["user_id"], row["attributes"],
            )  # fmt: skip
    assert len(seqs) == 6000


def test_a_level_renamed_later_is_stored_by_both_ways():
    """`addLevelName(20, "info")` changes what new records carry; the number is what is asked for."""
    intake = make_intake()
    logging.addLevelName(20, "info")
    try:
        row = stored(make_record(), intake)
    finally:
        logging.addLevelName(20, "INFO")
    assert (row["level"], row["attributes"]) == ("20", {"levelname": "info"})


def test_a_record_class_with_a_format_of_its_own():
    """`{}`-style records through setLogRecordFactory are a recipe of the logging cookbook."""

    class Brace(logging.LogRecord):
        def getMessage(self):
            return str(self.msg).format(*self.args)

    row = stored(Brace("shop", 20, "/p", 1, "order {} of {}", (17, "bob"), None))
    assert (row["message"], row["template"]) == ("order 17 of bob", "order {} of {}")
    assert row["attributes"] == {}
    assert stored(Brace("shop", 20, "/p", 1, "x", (), None))["message"] == "x"


def test_a_message_format_that_somebody_put_into_logrecord_itself(monkeypatch):
    """Some libraries replace the method of the class; it is noticed when the next second begins."""
    monkeypatch.setattr(logging.LogRecord, "getMessage", lambda record: str(record.msg).format(*record.args))
    assert stored(make_record("order {}", (17,)))["message"] == "order 17"


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "times"), [("1 MiB + 1", (1 << 20) + 1), ("64 MiB", 64 << 20)])
@pytest.mark.parametrize("character", ["x", "\n", "é"])
def test_a_long_message_is_cut_with_head_and_tail(size, times, character):
    """It stays within max_message_bytes, and the row says how much is missing."""
    if times > 1 << 21 and character != "\n":
        times //= 16
    row = stored(make_record("HEAD" + character * times + "TAIL"))
    assert row["message"].startswith("HEAD" + character)
    assert row["message"].endswith(character + "TAIL")
    assert (1 << 20) - 100 < len(row["message"].encode()) <= 1 << 20
    missing = times * len(character.encode()) + 8 - (1 << 20)
    assert 0 <= marks_of(row)["cut"]["message"] - missing <= 50


def test_a_message_of_exactly_the_limit_is_whole():
    """At the limit nothing is cut."""
    row = stored(make_record("x" * (1 << 20)))
    assert (len(row["message"]), row["attributes"]) == (1 << 20, {})


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["x", "\\", "\x01", "\n", '"', "é", "\U0001f600", "\ud800", "\0"]),
    st.sampled_from([1024, 4096, 65536, 1 << 20]),
    st.sampled_from([1 << 16, 1 << 18, 1 << 20]),
    st.integers(0, 3),
)
@example("\x01", 1024, 1 << 16, 3)
@example("\x01", 4096, 1 << 16, 3)
@example("\U0001f600", 1 << 20, 1 << 16, 2)
def test_a_frame_is_never_over_max_frame_bytes(character, max_message, max_frame, shape):
    """Whatever must be escaped, however many fields are huge."""
    huge = character * (1_200_000 // len(character.encode("utf-8", "surrogatepass")))
    extras = [
        {"a": huge, "b": huge, "c": [huge] * 5},
        {f"{i}{huge[:3000]}": huge[:3000] for i in range(300)},
        {str(i): {huge[:900] + str(j): float("nan") for j in range(50)} for i in range(20)},
        {"password": huge, "deep": {huge[:999]: {huge[:999]: {huge[:999]: {huge[:999]: [float("nan")] * 50}}}}},
    ][shape]
    record = make_record(
        huge + "%s", (huge,), name=huge, pathname=huge, funcName=huge, threadName=huge, levelname=huge,
        processName=huge, stack_info=huge, user_id=huge, trace_id=huge, exc_info=exception_of(huge), **extras,
    )  # fmt: skip
    intake = make_intake(max_message_bytes=max_message, max_frame_bytes=max_frame)
    frame = intake.prepare(record)
    assert len(frame) <= max_frame
    row = read_frame(frame)
    assert marks_of(row)["cut"]
    assert repaired(character) in row["message"]


def test_a_frame_over_the_limit_of_a_wrong_format_string():
    """The arguments that are kept with it count too."""
    intake = make_intake(max_frame_bytes=1 << 16)
    args = tuple({f"k{i}": "\x01" * 9000} for i in range(30))
    frame = intake.prepare(make_record("%d", args))
    assert len(frame) <= 1 << 16
    assert "TypeError" in marks_of(read_frame(frame))["format_error"]


def test_limits_that_the_user_set_stay_when_a_record_is_made_smaller():
    """Smaller means smaller: never more values than the user allowed."""
    intake = make_intake(max_frame_bytes=1 << 16, limits={"items": 3})
    row = stored(make_record("x" * 500_000, exc_text="y" * 500_000, many=list(range(100))), intake)
    assert len(row["attributes"]["many"]) <= 3


# --- timestamps ------------------------------------------------------------------------------------------------------

DAY = 86400


@pytest.mark.parametrize(
    ("created", "kept"),
    [
        (0.0, False), (-399 * DAY, True), (-401 * DAY, False), (1.9 * DAY, True), (2.1 * DAY, False),
    ],
)  # fmt: skip
def test_a_timestamp_out_of_range_becomes_now(created, kept):
    """No partition may be made for it; what it was stays in the row."""
    now = time.time()
    moment = now + created if created else 0.0
    row = stored(make_record(created=moment), now=lambda: now)
    assert kept == ("ts_original" not in marks_of(row))
    if not kept:
        assert moment == marks_of(row)["ts_original"]
        assert marks_of(row)["sanitized"] == ["ts"]


@pytest.mark.parametrize("created", [float("nan"), float("inf"), -float("inf"), 1e18, -1, 10**400, "soon", None, True])
def test_a_timestamp_that_is_none_becomes_now(created):
    """`makeLogRecord` takes anything; the row is stored, marked and counted."""
    intake = make_intake(now=lambda: 1_700_000_000.25)
    row = stored(make_record(created=created), intake)
    assert row["ts"] == "2023-11-14 22:13:20.250000Z"
    assert "ts_original" in marks_of(row)
    assert intake.sanitized == 1


@settings(max_examples=200, deadline=None)
@given(st.floats(1_690_000_000, 1_700_100_000))
@example(1_700_000_000.0)
@example(1_700_000_000.999999)
@example(1_699_999_999.9999998)
def test_a_timestamp_is_right_to_the_microsecond(created):
    """Within the float's own grain of 0.24 µs, on both ways, also just before a second turns."""
    intake = make_intake(now=lambda: 1_700_000_000.0)
    record = make_record(created=created)
    frame = intake.prepare(record)
    row = read_frame(frame)
    assert intake.whole(record, int(row["seq"])) == frame
    second, _, rest = row["ts"].partition(".")
    parsed = time.strptime(second + " UTC", "%Y-%m-%d %H:%M:%S %Z")
    import calendar

    assert abs(calendar.timegm(parsed) + int(rest[:-1]) / 1e6 - created) < 1.3e-6


# --- formatters ------------------------------------------------------------------------------------------------------


class BytesFormatter(logging.Formatter):
    def format(self, record):
        return b'{"json": "\xc3\xa9"}'


class NoneFormatter(logging.Formatter):
    def format(self, record):
        return None


class RaisingFormatter(logging.Formatter):
    def format(self, record):
        raise RuntimeError


@pytest.mark.parametrize(
    ("formatter", "expected"),
    [
        (logging.Formatter("%(levelname)s %(message)s"), "INFO order 17"),
        (logging.Formatter("{message}!", style="{"), "order 17!"),
        (BytesFormatter(), '{"json": "é"}'),
        (NoneFormatter(), "None"),
        (RaisingFormatter(), "order %s"),
        (logging.Formatter("%(missing)s %(message)s"), "order %s"),
    ],
)
def test_a_formatter_makes_the_message(formatter, expected):
    """What it returns, as text; the template stays; one that fails costs nothing but its text."""
    record = make_record("order %s", (17,))
    before = dict(record.__dict__)
    row = stored(record, formatter=formatter)
    assert expected == row["message"]
    assert before == record.__dict__


def test_a_formatter_does_not_repeat_the_exception():
    """The traceback has columns of its own."""
    row = stored(make_record("failed", exc_info=exception_of("boom")), formatter=logging.Formatter("%(message)s"))
    assert (row["message"], row["exc_message"]) == ("failed", "boom")
