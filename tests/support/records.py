"""Records that tests make, the entry they go through, and an independent reader of what comes out."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import time

from logsluice.buffer import Buffer
from logsluice.capture import Rules
from logsluice.columns import LOG_COLUMNS, target_from
from logsluice.config import FileSettings, PostgresSettings, settings_from
from logsluice.formatters import SluiceJsonFormatter
from logsluice.intake import Intake
from logsluice.lines import LineTarget
from logsluice.redaction import Redactor

STREAM = 4711


class CountingIntake(Intake):
    """An Intake that counts how often it went the whole way."""

    whole_ways = 0

    def whole(self, record, seq):
        self.whole_ways += 1
        return super().whole(record, seq)


def make_intake(*, formatter=None, now=time.time, redactor=None, **options):
    """The entry as a handler with these options makes it, without the handler."""
    settings = settings_from(options, PostgresSettings)
    redactor = redactor or Redactor(settings.redact)
    rules = Rules(
        settings.limits, settings.max_message_bytes, redactor, settings.service, lambda: formatter, now
    )  # fmt: skip
    buffer = Buffer(stream=STREAM, capacity_bytes=settings.capacity_bytes)
    target = target_from(settings.schema, settings.table, settings.columns)
    return CountingIntake(queue.SimpleQueue(), buffer, target, settings, rules)


def make_line_intake(formatter=None, **options):
    """The entry as a `JsonFileHandler` with these options makes it, without the handler."""
    settings = settings_from({"filename": "shop.log", **options}, FileSettings)
    formatter = formatter or SluiceJsonFormatter(names=settings.names)
    rules = Rules(
        settings.limits, settings.max_message_bytes, Redactor(settings.redact), settings.service, lambda: None
    )  # fmt: skip
    buffer = Buffer(stream=STREAM, capacity_bytes=settings.capacity_bytes)
    target = LineTarget("shop.log", lambda: formatter, "")
    return CountingIntake(queue.SimpleQueue(), buffer, target, settings, rules)


def make_record(msg="hello", args=(), *, level=logging.INFO, name="shop.orders", exc_info=None, **changes):
    """A record as logging makes it; `changes` are set on it afterwards, as `extra=` does."""
    record = logging.LogRecord(name, level, "/srv/shop/orders.py", 42, msg, args, exc_info, "pay")
    record.__dict__.update(changes)
    return record


def stored(record, intake=None, **options):
    """What PostgreSQL would be given for this record: {column: text or None}, `attributes` read as JSON."""
    intake = intake or make_intake(**options)
    return read_frame(intake.prepare(record), intake)


def read_frame(frame, intake=None):
    """A frame's columns, `attributes` as a dict."""
    columns = LOG_COLUMNS if intake is None or intake._settings.columns is None else intake._settings.columns
    texts = copy_columns(frame)
    assert len(columns) == len(texts)
    row = dict(zip(columns, texts, strict=True))
    if "attributes" in row:
        row["attributes"] = {} if row["attributes"] is None else json.loads(row["attributes"], parse_constant=_refuse)
    return row


def marks_of(row):
    """What the row says was changed."""
    return row["attributes"].get("logsluice", {})


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def copy_columns(frame):
    """
    Read one row of COPY text, after PostgreSQL's manual ("Text Format") and nothing of ours; None for NULL.

    Asserts what makes it a frame: UTF-8, no NUL, one newline, at the end.
    """
    assert isinstance(frame, bytes)
    text = frame.decode()
    assert "\0" not in text
    assert text.endswith("\n")
    line = text[:-1]
    assert "\n" not in line
    assert "\r" not in line, "COPY refuses a bare carriage return"
    return [None if column == r"\N" else _unescaped(column) for column in line.split("\t")]


def _unescaped(column):
    out, characters = [], iter(column)
    for character in characters:
        if character != "\\":
            out.append(character)
            continue
        following = next(characters, None)
        assert following is not None, "a backslash at the end of a column would escape the tab"
        assert following not in "01234567x", "an octal or hexadecimal escape: never ours"
        out.append(_ESCAPES.get(following, following))
    return "".join(out)


def repaired(text):
    """The documented repair of a text: NUL becomes U+FFFD, a lone surrogate its \\udXXX as text."""
    return "".join(
        "\ufffd" if c == "\0" else f"\\u{ord(c):04x}" if 0xD800 <= ord(c) <= 0xDFFF else c for c in text
    )  # fmt: skip


def needs_repair(text):
    """Whether PostgreSQL refuses this text."""
    return repaired(text) != text


class Catcher(logging.Handler):
    """A handler that keeps what PostgreSQL would be given, in `rows`."""

    def __init__(self, **options):
        super().__init__()
        self.intake = make_intake(**options)
        self.rows = []

    def handle(self, record):
        """Take no lock, as the real handler: several threads may be inside."""
        passed = self.filter(record)
        if passed:
            record = passed if isinstance(passed, logging.LogRecord) else record
            self.rows.append(read_frame(self.intake.prepare(record), self.intake))
        return bool(passed)


def make_logger(handler, name="shop"):
    """A logger outside of logging's tree: no other test sees it."""
    logger = logging.Logger(name)
    logger.addHandler(handler)
    return logger


@contextlib.contextmanager
def record_factory(**fields):
    """Have logging's record factory set these fields on each record, as that of the logging cookbook does."""
    before = logging.getLogRecordFactory()

    def factory(*args, **options):
        record = before(*args, **options)
        record.__dict__.update(fields)
        return record

    logging.setLogRecordFactory(factory)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
