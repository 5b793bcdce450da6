"""The console: what people see, what nobody can forge, when there is colour, and that nothing is harmed by it."""

from __future__ import annotations

import copy
import io
import json
import logging
import logging.config
import os
import pty
import re
import subprocess
import sys
import threading
import unicodedata
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logsluice
from logsluice import context
from logsluice.console import ConsoleFormatter, ConsoleHandler, visible, wants_colors
from support.howto import BLOCK, PAGES, Page, environment
from support.records import make_logger, make_record
from support.strategies import CALLS, EXTRAS, LEVELS, TEXT

SGR = re.compile(r"\x1b\[[0-9;]*m")
# Format characters with a shape of their own: Arabic number signs and the like.
WITH_A_SHAPE = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
JOINERS = {0x200C, 0x200D}
COLOR_VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TERM")
ESC = "\x1b"


@pytest.fixture(autouse=True)
def no_color_variables(monkeypatch):
    """Whoever runs the tests may have some set."""
    for name in COLOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def plain_text(record, **options):
    """A record's text, the time left out."""
    return ConsoleFormatter(time_format=None, **options).format(record)


def seen(text):
    """What of a text a terminal would obey, or not show: nothing is what we want."""
    return [
        c for c in text
        if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and ord(c) not in WITH_A_SHAPE | JOINERS
    ]  # fmt: skip


class Recorder(io.StringIO):
    """A stream that writes down what is done to it."""

    def __init__(self, encoding=None, *, tty=False):
        super().__init__()
        self.calls = []
        self.tty = tty

    def isatty(self):
        return self.tty

    def write(self, text):
        self.calls.append(text)
        return len(text)

    def flush(self):
        self.calls.append("<flush>")


# --- the line -------------------------------------------------------------------------------------------------------


def test_a_line_has_time_level_logger_message_and_extras():
    record = make_record("order %s paid", (17,), amount=12.5, customer="Ann Lee", created=86400 * 365.0)
    line = ConsoleFormatter(utc=True).format(record)
    assert line == '00:00:00 INFO     shop.orders: order 17 paid  amount=12.5 customer="Ann Lee"'


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"utc": True}, "03:04:05 "),
        ({"utc": True, "time_format": "%Y-%m-%d %H:%M:%S.%f"}, "2026-01-02 03:04:05.250000 "),
        ({"utc": True, "time_format": "%H\n%M"}, r"03\n04 "),
        ({"time_format": None}, "INFO "),
    ],
)
def test_the_time_is_as_asked_for(options, expected):
    record = make_record(created=1767323045.25)
    assert ConsoleFormatter(**options).format(record).startswith(expected)


def test_the_time_is_local_by_default():
    program = (
        "import logging, time; from logsluice.console import ConsoleFormatter as F;"
        "r = logging.makeLogRecord({'created': 1767323045.25, 'msg': 'x'});"
        "print(F(time_format='%H:%M %z').format(r)[:11])"
    )
    env = {**os.environ, "TZ": "Asia/Kolkata"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "08:34 +0530\n"


@pytest.mark.parametrize("created", [None, "soon", float("nan"), float("inf"), 1e300, -1e300])
def test_a_time_that_is_none_does_not_lose_the_line(created):
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d INFO     shop.orders: hello", ConsoleFormatter().format(make_record(created=created))
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (17, "17"),
        (4.5, "4.5"),
        (None, "null"),
        (True, "true"),
        ("paid", "paid"),
        ("", '""'),
        ("Ann Lee", '"Ann Lee"'),
        ('say "hi"', r'"say \"hi\""'),
        ("a=b", '"a=b"'),
        ("[1]", '"[1]"'),
        (r"C:\new", r"C:\new"),
        ("C:\new", r'"C:\new"'),
        ("a\\b\n", r'"a\\b\n"'),
        ([1, "a b", {"k": None}], '[1,"a b",{"k":null}]'),
        ({"a": "\x9b\u202e"}, r'{"a":"\x9b\u202e"}'),
        ("größe", "größe"),
        (float("nan"), "NaN"),
        ("x\x00", "x\ufffd"),  # as it is stored
        ("\ud800", r"\ud800"),
    ],
)
def test_a_value_reads_as_one_word(value, shown):
    assert plain_text(make_record(v=value)) == f"INFO     shop.orders: hello  v={shown}"


def test_a_key_reads_as_one_word():
    record = make_record()
    record.__dict__.update({"a b": 1, "k\n": 2, 7: 3})
    assert plain_text(record) == r'INFO     shop.orders: hello  "a b"=1 "k\n"=2 7=3'


@pytest.mark.parametrize("value", ["x" * 5000, ["y" * 100] * 100, {"k": {"z": list(range(10_000))}}, "é" * 3000])
def test_a_long_value_is_cut_and_says_so(value):
    text = plain_text(make_record(v=value, after=1))
    assert "cut]" in text
    assert text.endswith(" after=1")
    assert len(text.encode()) < 500


def test_what_a_nested_value_left_out_is_said():
    """Deeper than the writer goes: short in the end, and not all of it."""
    value = inner = []
    for _ in range(100):
        inner.append([])
        inner = inner[0]
    assert "<too deep>" in plain_text(make_record(v=value))
    value = "x" * 60
    for _ in range(25):
        value = [value]
    text = plain_text(make_record(v=[value, 1, 2]))
    assert text.endswith("]] …[more cut]"), "the 1 and the 2 are not there"


def test_many_extras_are_counted():
    record = make_record()
    record.__dict__.update({f"k{i}": i for i in range(150)})
    text = plain_text(record)
    assert " k99=99 …=[50 more]" in text
    assert "k100=" not in text


def test_a_long_message_keeps_its_ends():
    text = plain_text(make_record("a" + "x" * 1_000_000 + "z"))
    assert len(text) < 70_000
    assert "bytes cut]" in text
    assert text.endswith("xz")


def test_bound_values_and_ids_are_shown_and_an_extra_wins():
    with context.bound(user_id=7, request="r-1", order=1):
        text = plain_text(make_record(order=17, trace_id="abc"))
    assert text == "INFO     shop.orders: hello  order=17 trace_id=abc request=r-1 user_id=7"


def test_extras_can_be_left_out():
    with context.bound(user_id=7):
        text = plain_text(make_record(order=17, log_type="audit"), extras=False)
    assert text == "INFO     shop.orders: [audit] hello"


@pytest.mark.parametrize("log_type", [7, None, ["audit"]])
def test_a_log_type_that_is_no_name_is_an_extra(log_type):
    assert plain_text(make_record(log_type=log_type)).startswith("INFO     shop.orders: hello  log_type=")


def test_a_typed_log_shows_its_type():
    assert plain_text(make_record(log_type="", order=17)) == "INFO     shop.orders: hello  order=17"
    assert plain_text(make_record(log_type="audit", order=17)) == "INFO     shop.orders: [audit] hello  order=17"


def test_a_wrong_format_string_shows_with_its_arguments():
    text = plain_text(make_record("%d items", ("three",), k=1))
    assert text.startswith("INFO     shop.orders: %d items  k=1 format_error=")
    assert text.endswith('args=["three"]')


def test_a_level_without_a_name_or_with_ones_own():
    assert plain_text(make_record(level=25)).startswith("Level 25 shop.orders:")
    assert plain_text(make_record(levelname="SUCCESS", level=25)) == "SUCCESS  shop.orders: hello"
    assert plain_text(make_record(levelname=None)).startswith("Level 20 shop.orders:")


def test_a_child_process_says_its_name():
    assert "processName=Worker-1" in plain_text(make_record(processName="Worker-1"))


def test_a_record_without_its_attributes_is_shown():
    record = logging.makeLogRecord({})
    record.__dict__.clear()
    record.__dict__["msg"] = "bare"
    assert "bare" in plain_text(record)


# --- secrets --------------------------------------------------------------------------------------------------------


def test_secrets_do_not_reach_the_terminal():
    record = make_record(
        "connect to postgres://u:hunter2@db/x",
        password="hunter2", card={"token": "hunter2", "n": 1}, url="https://u:hunter2@h/", log_type="x://u:hunter2@h",
    )  # fmt: skip
    with context.bound(api_key="hunter2"):
        text = plain_text(record)
    assert "hunter2" not in text
    assert "password=[redacted]" in text
    assert 'card={"token":"[redacted]","n":1}' in text


def test_secrets_of_an_exception_and_of_a_wrong_format_do_not_either():
    try:
        raise ValueError("cannot reach postgres://u:hunter2@db/x")
    except ValueError:
        record = make_record("%d", ({"password": "hunter2"},), exc_info=sys.exc_info())
        record.stack_info = "  connect('postgres://u:hunter2@db/x')"
    assert "hunter2" not in plain_text(record)


@pytest.mark.parametrize(
    ("redact", "hidden"),
    [("keys", "password"), (["pin"], "password pin"), ({"keys": ["pin"]}, "password pin"), (None, "")],
)
def test_redact_is_that_of_the_handlers(redact, hidden):
    text = plain_text(make_record(password="p", pin="q"), redact=redact)
    assert text.endswith(
        " ".join(f"{k}={'[redacted]' if k in hidden else v}" for k, v in (("password", "p"), ("pin", "q")))
    )


# --- what nobody can forge ------------------------------------------------------------------------------------------


def test_every_character_that_a_terminal_obeys_or_hides_is_shown():
    """All of Unicode, judged by Python's own table."""
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if seen(character) or number in JOINERS:
            assert visible(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"


def test_the_joiners_of_persian_and_emoji_stay():
    for text in ("می‌خواهم", "👨‍👩‍👧", "❤️‍🔥", "क्‍ष"):
        assert visible(text) == text
    assert visible("ad\u200dmin 家\u200d") == r"ad\u200dmin 家\u200d"
    assert visible("家\u200cx \u200c家") == r"家\u200cx \u200c家"


@given(TEXT)
def test_what_is_visible_stays_as_it_is(text):
    assert visible(visible(text)) == visible(text)
    assert not seen(visible(text))


FORGED = "\n12:00:00 CRITICAL root: forged\r\x1b[2J\x9b1m\u202e\u2028\t"


def forge(where):
    record = make_record()
    if where == "message":
        record.msg = FORGED
    elif where == "argument":
        record.msg, record.args = "%s", (FORGED,)
    elif where == "key":
        record.__dict__[FORGED] = 1
    elif where == "nested":
        record.v = [{FORGED: FORGED}]
    elif where == "exception":
        try:
            raise ValueError(FORGED)
        except ValueError:
            record.exc_info = sys.exc_info()
    else:
        record.__dict__[where] = FORGED
    return record


@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize(
    "where",
    ["message", "argument", "name", "levelname", "log_type", "value", "key", "nested", "exception", "exc_text",
     "stack_info", "processName", "trace_id"],
)  # fmt: skip
def test_a_line_cannot_be_forged(where, colored):
    text = ConsoleFormatter().text(forge(where), colored=colored)
    assert "forged" in text
    check_safe(text, colored=colored)


def check_safe(text, *, colored=False):
    """Each line but the first behind the mark, nothing to obey but our colours."""
    if colored:
        text = SGR.sub("", text)
    first, *more = text.split("\n")
    assert re.match(r"\d\d:\d\d:\d\d \S", first)
    assert all(line.startswith("  | ") or line == "  |" for line in more)
    assert not seen(text.replace("\n", ""))


def exceptions(text):
    """An exc_info whose message this is."""
    try:
        raise ValueError(text)
    except ValueError:
        return sys.exc_info()


@given(CALLS, EXTRAS, TEXT, LEVELS, st.one_of(st.none(), TEXT), st.one_of(st.none(), TEXT))
def test_no_record_controls_the_terminal(call, extras, name, level, log_type, error):
    record = make_record(*call, level=level, name=name, exc_info=None if error is None else exceptions(error))
    record.__dict__.update(extras)
    if log_type is not None:
        record.log_type = log_type
    before = copy.copy(record.__dict__)
    formatter = ConsoleFormatter()
    text, colored = formatter.text(record, colored=False), formatter.text(record, colored=True)
    check_safe(text)
    assert SGR.sub("", colored) == text
    assert list(before) == list(record.__dict__)
    assert all(record.__dict__[key] is value for key, value in before.items())


def test_a_message_of_many_lines_keeps_them_behind_a_mark():
    text = plain_text(make_record("SELECT *\n  FROM orders\n\n WHERE id = 17\n", rows=1))
    assert text.split("\n") == [
        "INFO     shop.orders: SELECT *  rows=1",
        "  |   FROM orders",
        "  |",
        "  |  WHERE id = 17",
    ]


def test_a_traceback_and_a_stack_keep_their_lines():
    record = make_record(exc_info=exceptions("bad"), stack_info="Stack (most recent call last):\n  File x")
    lines = plain_text(record).split("\n")
    assert lines[1] == "  | Traceback (most recent call last):"
    assert lines[-3:] == ["  | ValueError: bad", "  | Stack (most recent call last):", "  |   File x"]


# --- the record is everybody's --------------------------------------------------------------------------------------


def test_the_next_handler_formats_the_exception_in_its_own_way():
    """logging's Formatter keeps its text in the record, where the next one finds it: ours must not."""

    class Short(logging.Formatter):
        def formatException(self, ei):
            return f"short: {ei[1]}"

    after = Recorder()
    other = logging.StreamHandler(after)
    other.setFormatter(Short())
    logger = make_logger(ConsoleHandler(stream=Recorder()))
    logger.addHandler(other)
    logger.error("failed", exc_info=exceptions("bad"))
    assert after.calls[0] == "failed\nshort: bad\n"


def test_what_another_formatter_left_in_the_record_is_not_ours():
    record = make_record(exc_info=exceptions("bad"))
    record.exc_text = "short: bad"
    assert "Traceback" in plain_text(record)
    record.exc_info = None  # as after a QueueHandler: the text is all there is
    assert plain_text(record).endswith("  | short: bad")


# --- colour ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "tty", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": "0"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, False, False),
        ({"FORCE_COLOR": ""}, False, False),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"CLICOLOR_FORCE": "0"}, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
        ({"TERM": "xterm"}, True, True),
    ],
)
def test_when_there_is_colour(monkeypatch, env, tty, expected):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    stream = Recorder(tty=tty)
    assert wants_colors(stream) is expected
    make_logger(ConsoleHandler(stream=stream)).warning("hello")
    assert (ESC in stream.calls[0]) is expected


def test_a_stream_that_takes_the_place_of_a_terminal_gets_no_colour(monkeypatch):
    """`redirect_stderr` into a file in the middle of a program."""
    logger = make_logger(ConsoleHandler())
    for tty in (True, False, True):
        stream = Recorder(tty=tty)
        monkeypatch.setattr(sys, "stderr", stream)
        logger.info("hello")
        assert (ESC in stream.calls[0]) is tty


def test_old_windows_consoles_are_not_sent_what_they_would_print(monkeypatch):
    monkeypatch.setattr("logsluice.console.os", type("Os", (), {"name": "nt", "environ": os.environ}))
    assert not wants_colors(Recorder(tty=True))
    monkeypatch.setenv("WT_SESSION", "a-b-c")
    assert wants_colors(Recorder(tty=True))
    assert not wants_colors(Recorder(tty=False))


@pytest.mark.parametrize(("colors", "expected"), [("always", True), ("never", False)])
def test_what_is_said_in_the_configuration_wins(monkeypatch, colors, expected):
    """https://no-color.org: "should override"."""
    monkeypatch.setenv("NO_COLOR", "1") if expected else monkeypatch.setenv("FORCE_COLOR", "1")
    stream = Recorder(tty=not expected)
    make_logger(ConsoleHandler(stream=stream, colors=colors)).info("hello")
    assert (ESC in stream.calls[0]) is expected
    assert (ESC in ConsoleFormatter(colors=colors).format(make_record())) is expected


def test_each_level_looks_different_and_only_16_colours_are_used():
    formatter = ConsoleFormatter(colors="always", time_format=None)
    starts = {formatter.format(make_record(level=level)).split("shop")[0].strip() for level in (10, 20, 30, 40, 50)}
    styles = {SGR.match(start)[0] for start in starts}
    assert len(styles) == 5
    allowed = {"0", "1", "2", *map(str, range(30, 38)), *map(str, range(40, 48))}
    text = formatter.format(make_record(log_type="audit", k=1, exc_info=exceptions("bad")))
    assert {number for codes in SGR.findall(text + "".join(styles)) for number in codes[2:-1].split(";")} <= allowed


def test_colour_ends_before_each_line_does():
    """A line that scrolls away, or a pager that begins in the middle, takes no colour along."""
    text = ConsoleFormatter(colors="always").format(make_record("a\nb", level=50, exc_info=exceptions("bad")))
    for line in text.split("\n"):
        codes = SGR.findall(line)
        assert codes[1::2] == ["\x1b[0m"] * (len(codes) // 2)
        assert "\x1b[0m" not in codes[::2]


def test_a_formatter_alone_never_colours_a_file(tmp_path, monkeypatch):
    """It does not know its stream."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    handler = logging.FileHandler(tmp_path / "app.log", encoding="utf-8")
    handler.setFormatter(ConsoleFormatter(time_format=None))
    make_logger(handler).info("hello")
    handler.close()
    assert (tmp_path / "app.log").read_text() == "INFO     shop: hello\n"


# --- the stream -----------------------------------------------------------------------------------------------------


def test_a_record_is_one_write_and_one_flush_under_the_handlers_lock():
    owned = []

    class Stream(Recorder):
        def write(self, text):
            other = threading.Thread(target=lambda: owned.append(not handler.lock.acquire(blocking=False)))
            other.start()
            other.join()
            return super().write(text)

    stream = Stream()
    handler = ConsoleHandler(stream=stream, time_format=None)
    make_logger(handler).info("hello\nworld")
    assert stream.calls == ["INFO     shop: hello\n  | world\n", "<flush>"]
    assert owned == [True]


@pytest.mark.parametrize("name", ["stderr", "stdout"])
def test_the_stream_is_the_one_of_the_moment(monkeypatch, name):
    handler = ConsoleHandler(stream=name)
    logger = make_logger(handler)
    for _ in range(2):
        stream = Recorder()
        monkeypatch.setattr(sys, name, stream)
        logger.info("hello")
        assert len(stream.calls) == 2
        assert handler.stream is stream


def test_pytest_captures_it(capsys):
    make_logger(ConsoleHandler(time_format=None)).info("hello")
    assert capsys.readouterr().err == "INFO     shop: hello\n"


def test_set_stream_takes_its_place():
    first, second = Recorder(), Recorder()
    handler = ConsoleHandler(stream=first)
    assert handler.setStream(second) is first
    make_logger(handler).info("hello")
    assert not any("hello" in call for call in first.calls)
    assert "hello" in second.calls[0]
    assert "ConsoleHandler" in repr(handler)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", r"gr\xfc\xdfe \u20ac \u5bb6"), ("cp1252", r"grüße € \u5bb6"), ("utf-8", "grüße € 家")],
)
def test_a_character_that_the_encoding_does_not_have_is_escaped(encoding, expected):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="\n")
    make_logger(ConsoleHandler(stream=stream, time_format=None)).info("grüße € 家")
    assert raw.getvalue().decode(encoding) == f"INFO     shop: {expected}\n"


@pytest.mark.parametrize("encoding", ["no-such-encoding", 17])
def test_an_encoding_that_is_none_does_not_lose_the_line(encoding):
    class Stream(Recorder):
        pass

    Stream.encoding = encoding
    stream = Stream()
    make_logger(ConsoleHandler(stream=stream)).info("é")
    assert "é" in stream.calls[0]


@pytest.fixture
def said(monkeypatch):
    """What diagnostics say."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", stream)
    return stream


def test_a_closed_stream_raises_nothing_and_is_said_once(said):
    stream = io.StringIO()
    logger = make_logger(ConsoleHandler(stream=stream))
    stream.close()
    for _ in range(3):
        logger.info("hello", extra={"password": "hunter2"})
    logger.handlers[0].flush()
    assert said.getvalue() == "logsluice[console]: a record could not be written to the console: ValueError\n"


def test_a_closed_or_missing_stderr_raises_nothing(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "__stderr__", closed)
    logger = make_logger(ConsoleHandler())
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        logger.info("hello")
        logger.handlers[0].flush()


def test_a_broken_pipe_raises_nothing(said):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    logger = make_logger(ConsoleHandler(stream=stream))
    logger.info("hello")
    logger.handlers[0].flush()
    assert "BrokenPipeError" in said.getvalue()
    with pytest.raises(BrokenPipeError):  # Python's own flush, of what it kept
        stream.close()


def test_a_stream_that_raises_anything_raises_nothing(said):
    class Stream(Recorder):
        def write(self, text):
            raise error

    for error in (OSError(5, "EIO"), RuntimeError("reentrant call"), RecursionError(), MemoryError()):
        make_logger(ConsoleHandler(stream=Stream())).info("hello")
    assert said.getvalue().count("\n") == 4


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colors": "yes"}, "colors must be one of 'auto', 'always', 'never', got 'yes'"),
        ({"colors": True}, "colors must be one of"),
        ({"colours": "auto"}, "unknown option 'colours'; did you mean 'colors'"),
        ({"zzz": 1}, "unknown option 'zzz'; known options: "),
        ({"time_format": 17}, "time_format must be"),
        ({"time_format": ""}, "time_format must be"),
        ({"utc": "yes"}, "utc must be true or false, got 'yes'"),
        ({"extras": 1}, "extras must be true or false, got 1"),
        ({"redact": "all"}, "redact must be"),
    ],
)
@pytest.mark.parametrize("kind", [ConsoleHandler, ConsoleFormatter])
def test_a_wrong_option_says_what_to_write(kind, options, message):
    with pytest.raises(logsluice.ConfigError, match=re.escape(message)):
        kind(**options)


@pytest.mark.parametrize("stream", ["std", "ext://sys.stdout", None, 17])
def test_a_stream_that_is_none_is_refused(stream):
    with pytest.raises(logsluice.ConfigError, match="stream must be"):
        ConsoleHandler(stream=stream)


def test_options_are_keyword_only():
    with pytest.raises(TypeError):
        ConsoleHandler("stderr")
    with pytest.raises(logsluice.ConfigError, match='by "\\(\\)"'):
        ConsoleFormatter("%(message)s")


@contextmanager
def configured(handler, formatters):
    """A logger that dictConfig made, and the handler."""
    name = "shop.console"
    logging.config.dictConfig({
        "version": 1, "disable_existing_loggers": False, "incremental": False,
        "formatters": formatters,
        "handlers": {name: handler},
        "loggers": {name: {"level": "INFO", "handlers": [name], "propagate": False}},
    })  # fmt: skip
    logger = logging.getLogger(name)
    try:
        yield logger
    finally:
        logger.handlers.clear()


def test_a_formatter_of_dict_config_takes_the_place_of_the_options():
    formatters = {"people": {"()": "logsluice.console.ConsoleFormatter", "time_format": None, "extras": False}}
    stream = Recorder(tty=True)
    with configured(
        {"class": "logsluice.ConsoleHandler", "stream": stream, "formatter": "people"}, formatters
    ) as logger:
        logger.info("hello", extra={"k": 1})
        assert SGR.sub("", stream.calls[0]) == "INFO     shop.console: hello\n"
        assert ESC in stream.calls[0], "the handler tells the formatter of its stream"
        logger.handlers[0].setFormatter(None)
        logger.info("hello", extra={"k": 1})
        assert "k=" in stream.calls[2]


def test_a_formatter_of_the_standard_library_is_used_as_it_is():
    stream = Recorder(tty=True)
    handler = {"class": "logsluice.ConsoleHandler", "stream": stream, "formatter": "short"}
    with configured(handler, {"short": {"format": "%(levelname)s %(message)s"}}) as logger:
        logger.info("hello")
    assert stream.calls[0] == "INFO hello\n"


def test_a_formatter_named_by_class_works_without_options():
    """dictConfig gives it a format, a date format and a style."""
    stream = Recorder()
    formatters = {"people": {"class": "logsluice.console.ConsoleFormatter"}}
    with configured({"class": "logging.StreamHandler", "stream": stream, "formatter": "people"}, formatters) as logger:
        logger.info("hello")
    assert stream.calls[0].endswith("INFO     shop.console: hello\n")
    formatters["people"]["format"] = "%(message)s"
    with pytest.raises(ValueError, match="Unable to configure") as failed:
        configured({"class": "logging.NullHandler"}, formatters).__enter__()
    assert isinstance(failed.value.__cause__, logsluice.ConfigError)


def test_a_subclass_may_format_in_its_own_way():
    class Loud(ConsoleFormatter):
        def format(self, record):
            return super().format(record).upper()

    stream = Recorder()
    handler = ConsoleHandler(stream=stream)
    handler.setFormatter(Loud(time_format=None))
    make_logger(handler).info("hello")
    assert stream.calls[0] == "INFO     SHOP: HELLO\n"


# --- real programs --------------------------------------------------------------------------------------------------

PROGRAM = """
import json, logging, logging.config, sys
logging.config.dictConfig(json.loads(sys.argv[1]))
logging.getLogger("shop").warning("order %s", 17, extra={"password": "hunter2", "n": 1})
assert "psycopg" not in sys.modules, "the console needs no driver"
"""


def config(**options):
    handler = {"class": "logsluice.ConsoleHandler", "time_format": None, **options}
    return json.dumps({"version": 1, "handlers": {"c": handler}, "root": {"level": "INFO", "handlers": ["c"]}})


def on_a_terminal(*, stream="stderr", **env):
    """What a program writes to a real terminal."""
    terminal, end = pty.openpty()
    others = {"stdout", "stderr"} - {stream}
    environment = {k: v for k, v in os.environ.items() if k not in COLOR_VARIABLES} | {"TERM": "xterm", **env}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, config(stream=stream)], env=environment, stdin=subprocess.DEVNULL,
        **{stream: end, others.pop(): subprocess.PIPE},
    )  # fmt: skip
    os.close(end)
    written = b""
    try:
        while chunk := os.read(terminal, 4096):
            written += chunk
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(terminal)
    assert [text or b"" for text in program.communicate()] == [b"", b""]
    assert program.returncode == 0
    return written.decode().replace("\r\n", "\n")


LINE = "WARNING  shop: order 17  password=[redacted] n=1\n"


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_a_real_terminal_gets_colour(stream):
    text = on_a_terminal(stream=stream)
    assert text.startswith("\x1b[30;43mWARNING\x1b[0m ")
    assert SGR.sub("", text) == LINE


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_real_terminal_gets_none_where_it_is_not_wanted(env):
    assert on_a_terminal(**env) == LINE


@pytest.mark.parametrize(("env", "colored"), [({}, False), ({"FORCE_COLOR": "1"}, True)])
def test_a_pipe_gets_colour_only_if_forced(env, colored):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, config()], env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    assert SGR.sub("", done.stderr) == LINE
    assert (ESC in done.stderr) is colored


def test_an_ascii_locale_loses_no_line():
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    program = PROGRAM.replace("order %s", "gr\\u00fc\\u00dfe %s \\ud83d")
    done = subprocess.run(
        [sys.executable, "-c", program, config()], env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == LINE.replace("order 17", r"gr\xfc\xdfe 17 \ud83d")


# --- docs/howto/console.md ------------------------------------------------------------------------------------------

TIME = re.compile(r"^(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d ", re.MULTILINE)


def shown():
    """The texts that the page says its programs write."""
    text = (PAGES / "console.md").read_text(encoding="utf-8")
    return [block for language, _, block in BLOCK.findall(text) if language == "text"]


def test_the_page_shows_what_its_programs_write(tmp_path):
    page = Page("console")
    page.lay_out(tmp_path)
    assert page.commands == ["python shop.py", "python worker.py", "cat worker.log"]
    written = [
        subprocess.run(command.split(), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
        for command in page.commands
    ]
    texts = [written[0].stderr.replace(f"{tmp_path}{os.sep}", ""), written[2].stdout]
    assert [TIME.sub("TIME ", text) for text in texts] == [TIME.sub("TIME ", text) for text in shown()]
    assert written[0].stdout == written[1].stderr == ""


def test_the_page_lists_every_option():
    text = (PAGES / "console.md").read_text(encoding="utf-8")
    options = {"stream", "colors", "time_format", "utc", "extras", "redact"}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == options
