"""capture.py: every standard attribute and every source of fields, through the entry, against real libraries."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
import logging.handlers
import multiprocessing
import pickle
import queue
import subprocess
import sys
import threading
import warnings

import pytest

from support.records import Catcher, make_logger, make_record, marks_of, record_factory, stored


@pytest.fixture
def catcher():
    return Catcher()


@pytest.fixture
def log(catcher):
    return make_logger(catcher)


# --- standard attributes ---------------------------------------------------------------------------------------------


def test_a_plain_call_fills_every_standard_column(log, catcher):
    """As logging took them; NULL where there is nothing to say."""
    log.warning("order %s paid", 17)
    (row,) = catcher.rows
    frame = sys._getframe()
    assert (
        row["logger"],
        row["level"],
        row["message"],
        row["template"],
    ) == ("shop", "30", "order 17 paid", "order %s paid")
    assert (__file__, frame.f_code.co_name) == (row["file"], row["func"])
    assert frame.f_code.co_firstlineno < int(row["line"]) < frame.f_lineno
    assert threading.current_thread().name == row["thread"]
    empty = ["service", "task", "trace_id", "span_id", "correlation_id", "user_id", "organization_id", "exc_type", "exc_message", "exc_text"]  # fmt: skip
    assert [None] * len(empty) == [row[name] for name in empty]
    assert row["attributes"] == {}


@pytest.mark.parametrize(
    ("number", "name", "stored_as"),
    [
        (5, "TRACE", "5"), (10**9, "HUGE", "32767"), (-5, "BELOW", "-5"), (-(10**9), "DEEP", "-32768"),
        (20, "info", "20"), (25, "SUCCESS", "25"),
    ],
)  # fmt: skip
def test_a_level_of_the_programs_own_keeps_its_number_and_name(number, name, stored_as):
    """The number within smallint, the name in attributes; what was out of range stays readable."""
    row = stored(make_record(level=number, levelname=name))
    if number == -(10**9):
        stored_as = "-32767"
    assert (stored_as, name) == (row["level"], row["attributes"]["levelname"])
    assert (marks_of(row).get("level_original") == number) == (str(number) != stored_as)


def test_an_unnamed_level_has_no_name_to_keep():
    """logging calls it "Level 7", which says no more than the number."""
    row = stored(make_record(level=7, levelname="Level 7"))
    assert ("7", {}) == (row["level"], row["attributes"])


@pytest.mark.parametrize(
    ("given", "expected"), [(20.0, "20"), (20.5, "20"), pytest.param(10**5000, "32767", id="huge"), ([], "0"), ("40", "40"), ("high", "0"), (None, "0"), (True, "1"), (float("nan"), "0")]
)  # fmt: skip
def test_a_level_of_an_odd_type_becomes_a_number(given, expected):
    """`makeLogRecord` takes anything."""
    record = make_record()
    record.levelno = given
    assert stored(record)["message"] == "hello"
    assert expected == stored(record)["level"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), (0, "0"), (-5, "0"), (2**40, "2147483647"), ("x", None), (7.0, "7"), (7.9, "7")],
)
def test_a_line_of_an_odd_type_becomes_a_number_or_null(given, expected):
    """Never a text that an integer column refuses."""
    assert expected == stored(make_record(lineno=given))["line"]


@pytest.mark.parametrize("info", [(None, None, None), None, False, (), 0, "", (ValueError,), "text", 5])
def test_an_exc_info_without_an_exception_is_null(info):
    """`exc_info=True` outside of an except block makes (None, None, None)."""
    record = make_record()
    record.exc_info = info
    row = stored(record)
    assert (row["exc_type"], row["exc_message"], row["exc_text"], row["message"]) == (None, None, None, "hello")


def test_exc_info_true_outside_of_an_except_block(log, catcher):
    """Nothing is stored for it; stdlib's text "NoneType: None" helps nobody."""
    log.error("failed", exc_info=True)
    assert catcher.rows[0]["exc_text"] is None


def test_stack_info_is_an_attribute(log, catcher):
    """It is rare: no column for it."""
    log.info("here", stack_info=True)
    assert "test_stack_info_is_an_attribute" in catcher.rows[0]["attributes"]["stack_info"]


def test_the_name_of_an_asyncio_task(log, catcher):
    """On every Python: before 3.12 the record does not know it."""

    async def work():
        log.info("inside")

    async def main():
        await asyncio.create_task(work(), name="payment-17")

    asyncio.run(main())
    assert catcher.rows[0]["task"] == "payment-17"


def test_a_thousand_tasks_keep_their_ids_apart(log, catcher):
    """Bound values and task names are each task's own (B-18)."""
    from logsluice import context

    async def work(number):
        context.bind(correlation_id=f"c{number}")
        await asyncio.sleep(0)
        log.info("from %s", number)

    async def main():
        await asyncio.gather(*(asyncio.create_task(work(number), name=f"t{number}") for number in range(1000)))

    asyncio.run(main())
    wrong = [
        row
        for row in catcher.rows
        if (f"c{row['message'][5:]}", f"t{row['message'][5:]}") != (row["correlation_id"], row["task"])
    ]
    assert (len(catcher.rows), wrong) == (1000, [])


def test_the_name_of_a_thread(log, catcher):
    """As the program named it."""
    thread = threading.Thread(target=log.info, args=("inside",), name="worker \\ 1\t")
    thread.start()
    thread.join()
    assert catcher.rows[0]["thread"] == "worker \\ 1\t"


@pytest.mark.parametrize("switch", ["logThreads", "logMultiprocessing", "logProcesses", "logAsyncioTasks"])
def test_logging_told_to_leave_something_out(log, catcher, monkeypatch, switch):
    """`logging.logThreads = False` and its siblings."""
    monkeypatch.setattr(logging, switch, False, raising=False)
    log.info("hello")
    (row,) = catcher.rows
    assert ("hello", switch == "logThreads") == (row["message"], row["thread"] is None)


def _in_child(pipe):
    catcher = Catcher()
    make_logger(catcher).info("from a child")
    pipe.send(catcher.rows)


def test_the_process_name_of_multiprocessing():
    """Another than MainProcess is worth a word."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of fork beside threads
        child = fork.Process(target=_in_child, args=(send,), name="worker-7")
        child.start()
    send.close()  # so that a child that fails is an EOFError here
    (row,) = receive.recv()
    child.join()
    assert row["attributes"] == {"processName": "worker-7"}


# --- exceptions ------------------------------------------------------------------------------------------------------


class ShopError(Exception):
    pass


def test_an_exception_fills_three_columns(log, catcher):
    """Type with its module, message, traceback; the record's own exc_text stays empty."""
    try:
        raise ShopError("no stock")
    except ShopError:
        log.exception("order %s failed", 17)
    (row,) = catcher.rows
    assert (f"{__name__}.ShopError", "no stock") == (row["exc_type"], row["exc_message"])
    assert row["exc_text"].startswith("Traceback (most recent call last):\n")
    assert row["exc_text"].endswith("ShopError: no stock")
    assert row["message"] == "order 17 failed"


def test_a_builtin_exception_has_no_module(log, catcher):
    """`ValueError`, not `builtins.ValueError`; an exception without text has an empty one."""
    try:
        raise ValueError
    except ValueError as error:
        log.info("x", exc_info=error)
    assert (catcher.rows[0]["exc_type"], catcher.rows[0]["exc_message"]) == ("ValueError", "")


def test_a_chain_of_exceptions_is_told_whole(log, catcher):
    """`raise … from`, and one raised while handling another."""
    try:
        try:
            try:
                {}["first"]
            except KeyError as error:
                raise ValueError("second") from error
        except ValueError:
            raise ShopError("third")
    except ShopError:
        log.exception("x")
    text = catcher.rows[0]["exc_text"]
    assert text.index("KeyError: 'first'") < text.index("direct cause") < text.index("ValueError: second")
    assert text.index("another exception occurred") < text.index("third")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_a_group_of_exceptions_is_told_whole(log, catcher):
    """Each member, and notes."""
    error = ValueError("one")
    error.add_note("look at the stock")
    try:
        raise ExceptionGroup("two failed", [error, KeyError("two")])  # noqa: F821 - 3.11
    except Exception:
        log.exception("x")
    (row,) = catcher.rows
    assert (row["exc_type"], row["exc_message"]) == ("ExceptionGroup", "two failed (2 sub-exceptions)")
    assert all(part in row["exc_text"] for part in ("ValueError: one", "look at the stock", "KeyError: 'two'"))


class EvilMeta(type):
    @property
    def __module__(cls):
        raise RuntimeError


class StrRaises(Exception):
    def __str__(self):
        raise RuntimeError


class HasLength(Exception):
    def __len__(self):
        return 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StrRaises(), f"{__name__}.StrRaises"),
        (HasLength(), f"{__name__}.HasLength"),
        (EvilMeta("EvilKind", (Exception,), {})("x"), "EvilKind"),
    ],
)
def test_a_hostile_exception_keeps_its_type(error, kind):
    """A placeholder for what cannot be read."""
    row = stored(make_record("failed", exc_info=(type(error), error, None)))
    assert (kind, "failed") == (row["exc_type"], row["message"])
    assert row["exc_text"]


def test_a_chain_that_bites_its_tail_ends():
    """`error.__cause__ = error`."""
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert "ValueError" in stored(make_record(exc_info=(ValueError, first, None)))["exc_text"]


def test_an_exception_formatted_by_somebody_before():
    """A record from a QueueHandler or a socket holds the text only."""
    row = stored(make_record(exc_text="Traceback …\nValueError: x"))
    assert (row["exc_type"], row["exc_text"]) == (None, "Traceback …\nValueError: x")


# --- wrong format strings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("msg", "args"),
    [
        ("%d items", ("x",)), ("%s %s", ("one",)), ("%s", ("a", "b")), ("100%!", ("x",)), ("%(a)s", ("x",)),
        ("%(missing)s", ({"a": 1},)), ("%y", ("x",)), ("%", ("x",)), ("no places", ("x",)), ("%c", ("long",)), ("%.f%", (1,)),
        ("%*d", ("x", 1)), (17, ("x",)), (None, ("x",)),
    ],
)  # fmt: skip
def test_a_wrong_format_string_is_stored_with_its_arguments(log, catcher, capfd, msg, args):
    """Nothing raises, nothing goes to stderr, nothing is lost."""
    log.info(msg, *args)
    (row,) = catcher.rows
    assert str(msg) == row["message"]
    assert marks_of(row)["format_error"].split(":")[0] in {"TypeError", "ValueError", "KeyError"}
    assert [list(args)] == [marks_of(row)["args"]] or [args[0]] == marks_of(row)["args"]
    assert capfd.readouterr() == ("", "")


def test_a_wrong_format_string_with_many_arguments_keeps_the_first_twenty(log, catcher):
    """As many as one can read."""
    log.info("%s", *range(100))
    assert list(range(20)) == marks_of(catcher.rows[0])["args"]


# --- extras ----------------------------------------------------------------------------------------------------------


def test_extras_are_stored_as_they_were_given(log, catcher):
    """Nested, with any key that logging allows; ids fill their columns as well."""
    extra = {"order": {"id": 17, "lines": [1, 2]}, "user_id": 5, "empty": None, "flag": True}
    log.info("x", extra=extra)
    (row,) = catcher.rows
    assert (extra, "5") == (row["attributes"], row["user_id"])


@pytest.mark.parametrize(
    "key", ["level", "ts", "seq", "stream", "attributes", "exc_type", "logger", "service", "func", "line", "template"]
)
def test_an_extra_named_as_a_column_stays_an_extra(key):
    """Columns are filled by logging, extras go to attributes (B-16)."""
    usual = stored(make_record(created=1.0))
    record = make_record(created=1.0)
    record.__dict__[key] = "mine"
    row = stored(record)
    assert row["attributes"][key] == "mine"
    assert all(row[name] == usual[name] for name in row if name not in {"attributes", "ts"})


def test_an_extra_named_as_our_marks_is_kept_apart():
    """`attributes.logsluice` says what was changed, and nothing else."""
    assert stored(make_record(logsluice="mine"))["attributes"] == {"logsluice_": "mine"}
    attributes = stored(make_record(logsluice="mine", bad=float("nan")))["attributes"]
    assert attributes == {"logsluice_": "mine", "bad": "NaN", "logsluice": {"sanitized": ["bad"]}}


def test_an_id_that_is_a_container_stays_an_attribute():
    """Its text could hold what only a key says is secret."""
    row = stored(make_record(user_id={"name": "bob", "password": "hunter2"}))
    assert (row["user_id"], row["attributes"]["user_id"]) == (None, {"name": "bob", "password": "[redacted]"})


def test_what_a_formatter_of_another_handler_left_is_no_extra(log, catcher):
    """A console handler before ours sets message and asctime on the record."""
    console = logging.StreamHandler(io.StringIO())
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.handlers.insert(0, console)
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("x", extra={"order": 17})
    (row,) = catcher.rows
    assert row["attributes"] == {"order": 17}
    assert (row["exc_type"], row["exc_message"]) == ("ValueError", "boom")


def test_an_extra_called_extra(log, catcher):
    """Without loguru's shape it is an extra like others."""
    log.info("x", extra={"extra": {"a": 1}, "b": 2})
    assert catcher.rows[0]["attributes"] == {"extra": {"a": 1}, "b": 2}


def test_an_adapter(log, catcher):
    """Its fields are the record's."""
    logging.LoggerAdapter(log, {"request": "r1"}).info("x %s", 1)
    assert (catcher.rows[0]["attributes"], catcher.rows[0]["message"]) == ({"request": "r1"}, "x 1")


def test_an_adapter_and_extras_of_the_call(log, catcher):
    """Both with merge_extra, which came with Python 3.13; before, the adapter's replace the call's."""
    merges = sys.version_info >= (3, 13)
    logging.LoggerAdapter(log, {"request": "r1"}, **({"merge_extra": True} if merges else {})).info(
        "x", extra={"order": 17}
    )
    assert catcher.rows[0]["attributes"] == {"request": "r1", **({"order": 17} if merges else {})}


def test_a_factory_that_adds_fields(catcher):
    with record_factory(request="r1"):
        make_logger(catcher).info("x", extra={"order": 17})
    assert catcher.rows[0]["attributes"] == {"request": "r1", "order": 17}


def test_a_filter_that_adds_fields(log, catcher):
    """The usual way before contextvars."""

    def add(record):
        record.request = "r1"
        return True

    catcher.addFilter(add)
    log.info("x")
    assert catcher.rows[0]["attributes"] == {"request": "r1"}


def test_warnings_captured_by_logging(catcher):
    """`logging.captureWarnings`: the logger py.warnings, the warning as its message."""
    logger = logging.getLogger("py.warnings")
    logger.addHandler(catcher)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old API", DeprecationWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(catcher)
    (row,) = catcher.rows
    assert (row["logger"], row["level"]) == ("py.warnings", "30")
    assert "DeprecationWarning: old API" in row["message"]


# --- records that travelled ------------------------------------------------------------------------------------------


def test_a_record_prepared_by_a_queue_handler():
    """Its message is formatted already and its exception is text."""
    try:
        raise ValueError("boom")
    except ValueError as error:
        record = make_record("order %s", (17,), exc_info=(ValueError, error, error.__traceback__), order=17)
    prepared = logging.handlers.QueueHandler(queue.SimpleQueue()).prepare(record)
    row = stored(prepared)
    assert row["message"].startswith("order 17")
    assert "ValueError: boom" in row["message"] + (row["exc_text"] or "")
    assert row["attributes"] == {"order": 17}


def test_a_pickled_record():
    """As a SocketHandler sends it."""
    record = make_record("order %s", (17,), order=17)
    row = stored(logging.makeLogRecord(pickle.loads(pickle.dumps(record.__dict__))))
    assert (row["message"], row["attributes"]) == ("order 17", {"order": 17})


def test_a_record_from_a_python_without_task_names():
    """Or one that this Python does not know yet."""
    record = make_record("x")
    record.__dict__.pop("taskName", None)
    row = stored(record)
    assert (row["message"], row["task"], row["attributes"]) == ("x", None, {})
    assert stored(make_record("x", taskName=None))["attributes"] == {}


def test_a_message_that_is_no_text():
    """`log.info(17)`, `log.info(None)`, `log.info(error)`."""
    got = [stored(make_record(msg))["message"] for msg in (17, None, ValueError("boom"), [1], b"x")]
    assert got == ["17", "None", "boom", "[1]", "b'x'"]


def test_arguments_as_a_dict():
    """`log.info("%(a)s", {"a": 1})`."""
    row = stored(make_record("%(a)s of %(b)s", ({"a": 1, "b": "x"},)))
    assert (row["message"], row["template"]) == ("1 of x", "%(a)s of %(b)s")


# --- structlog -------------------------------------------------------------------------------------------------------


@pytest.fixture
def structured():
    import structlog

    def configure(logger, *processors):
        return structlog.wrap_logger(logger, processors=list(processors), wrapper_class=structlog.stdlib.BoundLogger)

    return configure


def test_structlog_rendering_to_log_kwargs(structured, log, catcher):
    """Its fields are extras, its event the message; exc_info is passed through."""
    import structlog

    logger = structured(log, structlog.stdlib.render_to_log_kwargs)
    logger.bind(user_id="bob").info("paid", order={"id": 17})
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("failed")
    first, second = catcher.rows
    assert (
        first["message"],
        first["user_id"],
        first["attributes"],
    ) == ("paid", "bob", {"user_id": "bob", "order": {"id": 17}})
    assert (second["message"], second["exc_type"], second["exc_message"]) == ("failed", "ValueError", "boom")


def test_structlog_wrapping_for_a_formatter(structured, log, catcher):
    """The event dict as the message: its event is the message, the rest attributes, its exc_info the exception."""
    import structlog

    logger = structured(log, structlog.stdlib.add_log_level, structlog.stdlib.ProcessorFormatter.wrap_for_formatter)
    logger.info("paid", order=17, correlation_id="c1")
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("failed", order=18)
    first, second = catcher.rows
    assert (first["message"], first["correlation_id"]) == ("paid", "c1")
    assert first["attributes"] == {"order": 17, "correlation_id": "c1", "level": "info"}
    assert (second["message"], second["exc_type"], second["exc_message"]) == ("failed", "ValueError", "boom")
    assert second["attributes"] == {"order": 18, "level": "error"}


def test_a_dict_as_the_message_has_no_secrets_in_its_text():
    """`log.info({"password": …})`: the text is JSON, redacted as the attributes are."""
    row = stored(make_record({"user": "bob", "password": "hunter2", "n": 1}))
    expected = {"user": "bob", "password": "[redacted]", "n": 1}
    assert expected == json.loads(row["message"])
    assert expected == {key: row["attributes"][key] for key in expected}
    assert "hunter2" not in str(row)


# --- loguru ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loguru_logger(catcher):
    from loguru import logger

    logger.remove()
    number = logger.add(catcher, format="{message}", level=0)
    yield logger
    logger.remove(number)


def test_loguru_into_our_handler(loguru_logger, catcher):
    """Extras are unwrapped, the level has its name, the message ends without a newline."""
    loguru_logger.bind(order=17, user_id="bob").success("paid {}", 5)
    (row,) = catcher.rows
    assert ("paid 5", "25", "bob", __file__) == (row["message"], row["level"], row["user_id"], row["file"])
    assert row["attributes"] == {"order": 17, "user_id": "bob", "levelname": "SUCCESS"}


def test_loguru_with_an_exception(loguru_logger, catcher):
    """Type, message and traceback are in their columns."""
    try:
        raise ValueError("boom")
    except ValueError:
        loguru_logger.exception("failed")
    (row,) = catcher.rows
    assert (row["exc_type"], row["exc_message"]) == ("ValueError", "boom")
    assert row["exc_text"].startswith("Traceback")
    assert row["message"].startswith("failed")


# --- ids of other libraries ------------------------------------------------------------------------------------------


def test_ids_of_the_current_opentelemetry_span(log, catcher):
    """Of the real API: while a span is current, and only then; W3C's hexadecimal."""
    from opentelemetry import trace

    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    log.info("before")
    with trace.use_span(trace.NonRecordingSpan(context)):
        log.info("inside")
    before, inside = catcher.rows
    assert (before["trace_id"], before["span_id"]) == (None, None)
    assert (f"{0xABC:032x}", f"{0xDEF:016x}") == (inside["trace_id"], inside["span_id"])


def test_ids_of_opentelemetrys_logging_instrumentor():
    """It sets them on the record; "0" means none. They are columns, not attributes."""
    fields = {"otelTraceID": "abc", "otelSpanID": "0", "otelTraceSampled": True, "otelServiceName": "shop"}
    row = stored(make_record(**fields))
    assert (row["trace_id"], row["span_id"], row["attributes"]) == ("abc", None, {})


def test_id_of_asgi_correlation_id(log, catcher):
    """Of the real library: its context variable."""
    from asgi_correlation_id.context import correlation_id

    log.info("before")
    token = correlation_id.set("c-17")
    log.info("inside")
    correlation_id.reset(token)
    assert [row["correlation_id"] for row in catcher.rows] == [None, "c-17"]


def test_id_of_the_current_celery_task(log, catcher):
    """Of the real library, run eagerly: the task's correlation id."""
    from celery import Celery

    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)

    @app.task
    def work():
        log.info("inside")

    work.apply(task_id="task-17")
    log.info("after")
    assert [row["correlation_id"] for row in catcher.rows] == ["task-17", None]


def test_an_extra_wins_over_a_bound_value_over_what_libraries_know(log, catcher):
    """The nearest to the call is right."""
    from asgi_correlation_id.context import correlation_id

    from logsluice import context

    token = correlation_id.set("library")
    try:
        log.info("x")
        with context.bound(correlation_id="bound"):
            log.info("x")
            log.info("x", extra={"correlation_id": "extra"})
    finally:
        correlation_id.reset(token)
    assert [row["correlation_id"] for row in catcher.rows] == ["library", "bound", "extra"]


def test_none_of_these_libraries_is_imported_by_us():
    """They are asked only when the program has imported them; importing logsluice imports no driver either."""
    program = """
import logging, sys
import logsluice
early = set(sys.modules)
from logsluice.intake import Intake
from support.records import Catcher, make_logger
catcher = Catcher()
make_logger(catcher).info("x", extra={"user_id": 1})
assert catcher.rows[0]["message"] == "x"
libraries = {"opentelemetry", "asgi_correlation_id", "celery", "structlog", "loguru", "asyncio", "psycopg"}
print(sorted(libraries & (early - {"asyncio"})), sorted((libraries - {"asyncio"}) & set(sys.modules)))
"""
    path = [str(place) for place in sys.path if place]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[] []\n", "")


# --- logging's own switches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", [True, False])
def test_raise_exceptions_changes_nothing(log, catcher, monkeypatch, capfd, switch):
    """`logging.raiseExceptions` is about handlers that fail; ours does not."""
    monkeypatch.setattr(logging, "raiseExceptions", switch)
    log.info("%d", "x")
    assert catcher.rows[0]["message"] == "%d"
    assert capfd.readouterr() == ("", "")


def test_a_copied_record():
    """`copy.copy`, as filters of Python 3.12 return it."""
    record = copy.copy(make_record("order %s", (17,), order=17))
    record.msg = "changed %s"
    assert stored(record)["message"] == "changed 17"
