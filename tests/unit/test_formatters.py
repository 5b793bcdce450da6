"""The line that a record becomes: presets, python-json-logger's options, whatever is logged. One line of valid JSON."""

from __future__ import annotations

import io
import json
import logging
import logging.config

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logsluice.buffer import Buffer
from logsluice.capture import Rules, capture
from logsluice.config import FileSettings, Limits, Settings, settings_from
from logsluice.errors import ConfigError
from logsluice.formatters import PRESETS, SluiceJsonFormatter, severity
from logsluice.intake import Intake
from logsluice.lines import LineTarget, lines_of
from logsluice.primitives import SimpleQueue
from logsluice.redaction import Redactor
from support.records import STREAM, make_record
from support.strategies import CALLS, EXTRAS, TEXT

MOMENT = 1795744861.123456  # 2026-11-27 02:01:01 UTC
NAMES = sorted(PRESETS)


def read(line):
    """A line as a strict reader sees it."""
    assert "\n" not in line
    assert "\r" not in line
    assert len(line.splitlines()) == 1
    assert not any(0x7F <= ord(character) < 0xA0 for character in line)
    line.encode()
    return json.loads(line, parse_constant=_refuse)


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def line_of(record, formatter=None, now=MOMENT, **options):
    """The line that a JsonFileHandler writes of a record."""
    formatter = formatter or SluiceJsonFormatter(**options)
    handler = settings_from({"filename": "app.log", "service": "shop"}, FileSettings)
    rules = Rules(handler.limits, handler.max_message_bytes, Redactor("keys"), "shop", lambda: None, lambda: now)
    target = LineTarget("app.log", lambda: formatter, "")
    intake = Intake(SimpleQueue(), Buffer(stream=STREAM, capacity_bytes=8 * 1024 * 1024), target, handler, rules)
    frame = intake.prepare(record)
    assert frame.count(b"\n") == 1
    assert b"\0" not in frame
    return lines_of(frame).decode().removesuffix("\n")


def failed(**changes):
    """A record with an exception whose traceback is always the same."""
    error = ZeroDivisionError("division by zero")
    record = make_record(
        "order %s\tpaid", (17,), level=logging.ERROR, exc_info=(ZeroDivisionError, error, None), amount=12.5,
        user_id=4, tags=["ä", None, {"a": 1}], trace_id="4bf92f3577b34da6a3ce929d0e0e4736", created=MOMENT, nothing=None,
    )  # fmt: skip
    record.threadName, record.taskName = "MainThread", None
    record.__dict__.update(changes)
    return record


# --- presets, line by line --------------------------------------------------------------------------------------------

GOLDEN = {
    "sluice": (
        '{"ts": "2026-11-27T02:01:01.123456Z", "level": "ERROR", "logger": "shop.orders", "message": "order 17\\tpaid", '
        '"caller": "/srv/shop/orders.py:42", "func": "pay", "service": "shop", '
        '"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "user_id": 4, "thread": "MainThread", '
        '"exc_type": "ZeroDivisionError", "exc_message": "division by zero", '
        '"exc_text": "ZeroDivisionError: division by zero", "stream": "4711", "seq": 1, "amount": 12.5, '
        '"tags": ["ä", null, {"a": 1}], "nothing": null}'
    ),
    "otel": (
        '{"Timestamp": "2026-11-27T02:01:01.123456Z", "SeverityText": "ERROR", "SeverityNumber": 17, '
        '"Body": "order 17\\tpaid", "TraceId": "4bf92f3577b34da6a3ce929d0e0e4736", '
        '"InstrumentationScope": {"Name": "shop.orders"}, "Resource": {"service.name": "shop"}, '
        '"Attributes": {"code.file.path": "/srv/shop/orders.py", "code.function.name": "pay", "code.line.number": 42, '
        '"thread.name": "MainThread", "exception.type": "ZeroDivisionError", '
        '"exception.message": "division by zero", "exception.stacktrace": "ZeroDivisionError: division by zero", '
        '"user.id": "4", "log.record.uid": "4711~1", "amount": 12.5, "user_id": 4, "tags": ["ä", null, {"a": 1}], '
        '"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "nothing": null}}'
    ),
    "ecs": (
        '{"@timestamp": "2026-11-27T02:01:01.123456Z", "log.level": "error", "message": "order 17\\tpaid", '
        '"ecs.version": "8.11.0", "log.logger": "shop.orders", "log.origin.file.name": "/srv/shop/orders.py", '
        '"log.origin.file.line": 42, "log.origin.function": "pay", "process.thread.name": "MainThread", '
        '"service.name": "shop", "trace.id": "4bf92f3577b34da6a3ce929d0e0e4736", "user.id": "4", '
        '"error.type": "ZeroDivisionError", "error.message": "division by zero", '
        '"error.stack_trace": "ZeroDivisionError: division by zero", "event.id": "4711~1", "labels": {"amount": 12.5, '
        '"user_id": 4, "tags": "[\\"ä\\", null, {\\"a\\": 1}]", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", '
        '"nothing": null}}'
    ),
    "plain": (
        '{"asctime": "2026-11-27T02:01:01.123456Z", "levelname": "ERROR", "levelno": 40, "name": "shop.orders", '
        '"message": "order 17\\tpaid", "pathname": "/srv/shop/orders.py", "lineno": 42, "funcName": "pay", '
        '"service": "shop", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "user_id": 4, "threadName": "MainThread", '
        '"exc_info": "ZeroDivisionError: division by zero", "stream": "4711", "seq": 1, "amount": 12.5, '
        '"tags": ["ä", null, {"a": 1}], "nothing": null}'
    ),
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
def test_a_line_of_each_preset(names):
    assert line_of(failed(), names=names) == GOLDEN[names]


def test_there_is_a_golden_line_of_each():
    assert sorted(GOLDEN) == NAMES


@pytest.mark.parametrize("names", NAMES)
def test_a_plain_record_says_no_more_than_it_knows(names):
    line = read(line_of(make_record(created=MOMENT, thread=None, threadName=None, taskName=None), names=names))
    assert None not in line.values()
    assert "exc_text" not in line


# --- extras and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["ts", "level", "logger", "caller", "service", "stream", "seq", "func"])
def test_an_extra_with_the_name_of_a_key_gets_an_underscore(key):
    line = read(line_of(failed(**{key: "theirs", f"{key}_": "theirs, too"})))
    plain = json.loads(GOLDEN["sluice"])
    assert line[key] == plain[key]
    assert {line[f"{key}_"], line[f"{key}__"]} == {"theirs", "theirs, too"}


def test_an_id_of_the_record_stands_once_as_it_was_given():
    line = read(line_of(failed(user_id=4)))
    assert line["user_id"] == 4
    assert "user_id_" not in line


@pytest.mark.parametrize(
    ("level", "name", "expected", "number"),
    [(25, "NOTICE", "NOTICE", 11), (5, "TRACE", "TRACE", 1), (35, "Level 35", "Level 35", 15), (20, "info", "info", 9),
     (20, 5, "5", 9), (20, {"a": 1}, "{'a': 1}", 9), (20, "a\nb", "a\nb", 9), (0, "", "NOTSET", 1),
     (40, "ERROR", "ERROR", 17), (50, "CRITICAL", "CRITICAL", 21), (99, "Level 99", "Level 99", 24)],
)  # fmt: skip
def test_level_names(level, name, expected, number):
    record = failed(levelno=level, levelname=name)
    assert read(line_of(record))["level"] == expected
    otel = read(line_of(record, names="otel"))
    assert (otel["SeverityText"], otel["SeverityNumber"]) == (expected, number)
    assert read(line_of(record, names="ecs"))["log.level"] == expected.lower()
    assert read(line_of(record, names="plain"))["levelno"] == level


def test_severity_grows_with_the_level():
    numbers = [severity(level) for level in range(-5, 120)]
    assert numbers == sorted(numbers)
    assert set(numbers) <= set(range(1, 25))
    assert [severity(level) for level in (10, 20, 30, 40, 50)] == [5, 9, 13, 17, 21]


@pytest.mark.parametrize("names", NAMES)
def test_secrets_are_left_out(names):
    record = failed(password="s3cret", deep={"token": "s3cret"}, url="postgresql://shop:s3cret@db/logs")
    record.msg, record.args = "to %s", ("https://shop:s3cret@db.example/",)
    line = line_of(record, names=names)
    assert "s3cret" not in line
    assert line.count("[redacted]") >= 2
    assert "s3cret" not in SluiceJsonFormatter(names=names).format(record)
    assert "s3cret" in SluiceJsonFormatter(names=names, redact=None).format(record)


def test_the_record_is_not_changed():
    record = failed()
    before = dict(record.__dict__)
    SluiceJsonFormatter().format(record)
    line_of(record)
    assert record.__dict__ == before


# --- python-json-logger's options ------------------------------------------------------------------------------------


def test_rename_fields_static_fields_defaults_and_prefix():
    formatter = SluiceJsonFormatter(
        rename_fields={"level": "severity", "amount": "sum", "team": "group"},
        static_fields={"team": "payments", "nested": {"a": [1, None]}},
        defaults={"tenant": "none", "amount": 0},
        prefix="@cee: ",
    )
    line = line_of(failed(), formatter)
    assert line.startswith("@cee: {")
    found = read(line.removeprefix("@cee: "))
    assert (found["severity"], found["sum"], found["group"], found["tenant"]) == ("ERROR", 12.5, "payments", "none")
    assert found["nested"] == {"a": [1, None]}
    assert found.keys().isdisjoint({"level", "amount", "team"})


def test_process_log_record_is_called():
    class Mine(SluiceJsonFormatter):
        def process_log_record(self, log_data):
            return {**log_data, "mine": len(log_data)}

    assert read(line_of(failed(), Mine()))["mine"] > 10


def test_ascii_when_asked():
    line = line_of(failed(), json_ensure_ascii=True)
    assert line.isascii()
    assert read(line) == json.loads(GOLDEN["sluice"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"names": "otl"}, "unknown preset 'otl'; did you mean 'otel'"),
        ({"names": 5}, "unknown preset 5; there are"),
        ({"fmt": "%(message)s"}, "takes no format"),
        ({"datefmt": "%H"}, "takes no format and no datefmt"),
        ({"json_indent": 2}, "json_indent would break a record into several lines"),
        ({"static_fields": {"a": float("nan")}}, "static_fields: .* is not JSON"),
        ({"static_fields": {"a": "\ud800"}}, "static_fields: .* is not JSON"),
        ({"defaults": {"a": float("inf")}}, "defaults: .* is not JSON"),
        ({"prefix": "a\n"}, "prefix must be printable"),
        ({"prefix": "\ud800"}, "prefix must be printable"),
    ],
)  # fmt: skip
def test_what_would_be_no_line_or_do_nothing_is_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        SluiceJsonFormatter(**options)


# --- anywhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"()": "logsluice.formatters.SluiceJsonFormatter", "names": "otel", "service": "shop"},
                                 {"class": "logsluice.formatters.SluiceJsonFormatter"}])  # fmt: skip
def test_on_a_plain_stream_handler_by_dict_config(how):
    stream = io.StringIO()
    before = logging.root.handlers[:]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": how},
            "handlers": {"out": {"class": "logging.StreamHandler", "stream": stream, "formatter": "json"}},
            "loggers": {"shop.formatters": {"handlers": ["out"], "level": "INFO", "propagate": False}},
        }
    )
    log = logging.getLogger("shop.formatters")
    try:
        log.info("order %s paid", 17, extra={"amount": 12.5})
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("bad")
    finally:
        log.handlers.clear()
        logging.root.handlers[:] = before
    first, second = [read(line) for line in stream.getvalue().split("\n")[:-1]]
    if "names" in how:
        assert (first["Body"], first["Resource"]) == ("order 17 paid", {"service.name": "shop"})
        assert "ZeroDivisionError: division by zero" in second["Attributes"]["exception.stacktrace"]
        assert "log.record.uid" not in first["Attributes"]
    else:
        assert (first["message"], first["amount"]) == ("order 17 paid", 12.5)
        assert second["exc_type"] == "ZeroDivisionError"
        assert "stream" not in first


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(call=CALLS, extras=EXTRAS, name=TEXT, thread=TEXT, levelname=TEXT, names=st.sampled_from(NAMES))
def test_whatever_is_logged_is_one_line_of_json(call, extras, name, thread, levelname, names):
    msg, args = call
    record = make_record(msg, args, name=name or "shop")
    record.__dict__.update(extras)
    record.threadName, record.levelname = thread, levelname
    record.name = name
    formatter = SluiceJsonFormatter(names=names)
    read(formatter.format(record))
    if name.partition(".")[0] != "logsluice":
        found = read(line_of(record, formatter))
        assert str(STREAM) in json.dumps(found)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(call=CALLS, extras=EXTRAS, text=TEXT)
def test_whatever_is_logged_is_text_for_a_formatter_of_ones_own(call, extras, text):
    """No NUL, no character that a terminal obeys; the frame is one line, and its text comes back."""
    msg, args = call
    record = make_record(msg, args)
    record.__dict__.update(extras)
    record.__dict__["odd"] = text
    line = line_of(record, logging.Formatter("%(levelname)s %(message)s %(odd)s"))
    assert line.startswith("INFO ")
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in line)


def test_colours_that_the_formatter_itself_adds_stay():
    line = line_of(make_record("a\x1b[31mb"), logging.Formatter("\x1b[1m%(message)s\x1b[0m"))
    assert line == "\x1b[1ma\\x1b[31mb\x1b[0m"


def test_a_huge_record_is_cut_to_the_limit_and_says_so():
    record = failed(huge="é" * 10_000_000, many=dict.fromkeys(map(str, range(200_000)), 1))
    for names in NAMES:
        line = line_of(record, names=names)
        assert len(line.encode()) <= Settings().max_frame_bytes
        assert "logsluice" in json.dumps(read(line))


def test_the_formatter_alone_has_the_same_limits():
    record = failed(huge="é" * 10_000_000)
    captured = capture(record, Rules(Limits(), Settings().max_message_bytes, Redactor("keys"), None, lambda: None))
    assert captured.attributes
    assert len(SluiceJsonFormatter().format(record)) < 2 * Settings().max_message_bytes
