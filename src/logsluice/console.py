r"""
Records for people at a terminal: `ConsoleHandler`, and `ConsoleFormatter` for any StreamHandler.

    14:02:11 INFO     shop.orders: order 17 paid  amount=12.5 user_id=7
    14:02:12 ERROR    shop.orders: [audit] refund failed  order=17 password=[redacted]
      | Traceback (most recent call last):
      |   ...

What is shown is what `capture` made of the record: redacted, cut, never raising, the record unchanged (a Formatter of
the standard library leaves `message` and `exc_text` in it, which the next handler then stores). Rules:

C1  A record begins in the first column of a line; every further line of its message, traceback or stack begins with
    "  | ". So a text that a stranger sent can look like a record only to the right of that mark, and the program's own
    texts of many lines stay readable, which "\n" in one long line would not be.
C2  Control characters, escape sequences, changes of the reading direction and invisible characters are shown as Python
    escapes (\x1b, \u202e): a log must not move the cursor, set the title, or answer in the place of the keyboard.
C3  Colour is only added: without it the text is the same. It needs 16 colours, which every theme sets, dark or light.
C4  A line is written by the logging call, by one `write` and one `flush`, never by a listener: it is there when the
    call returns, and the program dies with its last words on the screen. The price: a lock, `StreamHandler`'s own, the
    only one that a logging call takes here, and a terminal that stands still (Ctrl-S) stops the program that writes.
C5  Nothing raises into the program: not a closed stream, a broken pipe, an encoding without the character.

Not done: a terminal wraps a line that is too long where it likes, so a stranger's text padded with blanks may begin a
row of the screen. On Windows the console's mode is not changed: "auto" colours where the environment says that escape
sequences are understood (Windows Terminal, ConEmu, any TERM); else say "always", after colorama's
`just_fix_windows_console()` for an old console.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

from logsluice.capture import ID_COLUMNS, Rules, capture, tidy
from logsluice.checks import flag, plain, refuse_all
from logsluice.config import KIB, Limits
from logsluice.diagnostics import Diagnostics
from logsluice.encoding import JsonWriter, Marks, cut
from logsluice.errors import ConfigError
from logsluice.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logsluice.capture import Captured

    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # takes no type before Python 3.11

COLORS = ("auto", "always", "never")
TIME_FORMAT = "%H:%M:%S"  # whoever watches a terminal knows the day

MESSAGE_BYTES = 64 * KIB  # of a message or a traceback; more than a terminal's scroll-back of 1,000 lines shows
VALUE_BYTES = 256  # of one extra: three rows of a terminal that is 80 wide
TYPE_BYTES = 64  # of a log type: it is a name
EXTRAS = 100  # shown of one record; a record with more is a data set
LEVEL_WIDTH = 8  # characters of the longest level, CRITICAL: what follows stands in one column

LINE_MARK = "  | "  # C1. ASCII, so that every encoding has it
_WRONG_FORMAT = frozenset({"format_error", "args"})  # of what capture marks: all that a wrong format string leaves

# --- C2: what is not shown as it is ---------------------------------------------------------------------------------

# Unicode's Cc, Cf, Cs, Zl and Zp, without the format characters that have a shape of their own (Arabic number signs and
# the like), and those of other categories that show nothing: fillers, selectors of variants (not FE00-FE0F: emoji).
_UNSEEN = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U00013430-\U00013440\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# U+200C and U+200D are how Persian, Hindi and emoji are written; beside Latin letters they only hide.
_BESIDE = f"[^\x00-\u02ff\u200c\u200d{_UNSEEN}]"
_HIDDEN = re.compile(f"[{_UNSEEN}]|(?<!{_BESIDE})[\u200c\u200d]|[\u200c\u200d](?!{_BESIDE})")


def visible(text: str) -> str:
    r"""Return the text with what a terminal would obey or not show as Python's escapes: \n, \x1b, \u202e."""
    if text.isascii() and text.isprintable():
        return text
    return _HIDDEN.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


# What would not read as one value, or as another kind of value: blanks, quotes, "=", an opening bracket in front.
_NEEDS_QUOTES = re.compile(r"""[\s"=]|^[\[{'](?!redacted\])|^$""")


def _quoted(text: str) -> str:
    """Return a text as one word, as logfmt does: in quotes if it has blanks, quotes or anything to be made visible."""
    shown = visible(text)
    if shown == text and _NEEDS_QUOTES.search(text) is None:
        return text
    return '"' + visible(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


# --- C3: colour -----------------------------------------------------------------------------------------------------

# SGR parameters (ECMA-48, 8.3.117). Hues are on the level alone. Yellow as ink cannot be read on white, so a warning
# is black on yellow, and what is critical white on red: both bring their own ground.
_RESET = "\x1b[0m"
_DIM, _BOLD, _TYPE = "2", "1", "35"
_LEVELS = ((50, "1;37;41"), (40, "1;31"), (30, "30;43"), (20, "32"))


def _level_style(level: int) -> str:
    return next((style for least, style in _LEVELS if level >= least), _DIM)


def _painted(text: str, style: str) -> str:
    return f"\x1b[{style}m{text}{_RESET}" if text else text


def _plain(text: str, _style: str) -> str:
    return text


def wants_colors(stream: Any) -> bool:
    """
    Whether colour is wanted on this stream: what "auto" means.

    In this order: NO_COLOR, if it is not empty, says no (https://no-color.org); FORCE_COLOR or CLICOLOR_FORCE, if
    neither empty nor "0", yes; TERM=dumb no; then the stream's own `isatty`. Raises nothing.
    """
    env = os.environ
    if env.get("NO_COLOR"):
        return False
    if any(env.get(name, "") not in {"", "0"} for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    if env.get("TERM") == "dumb":
        return False
    if os.name == "nt" and not (env.get("WT_SESSION") or env.get("TERM") or env.get("ConEmuANSI") == "ON"):
        return False
    try:
        return bool(stream.isatty())
    except Exception:
        return False  # closed, or no file


# --- options --------------------------------------------------------------------------------------------------------


def _time_format_from(value: Any) -> str | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and value and dt.datetime.now(dt.timezone.utc).strftime(value):
            return value
    except ValueError:  # one that strftime refuses; a lone surrogate is a UnicodeEncodeError, which is one, too
        pass
    raise ConfigError(f"time_format must be a format of strftime, for example {TIME_FORMAT!r}, or None, got {value!r}")


class ConsoleFormatter(logging.Formatter):
    """
    A record as a line for people, and its traceback below.

    `colors`: "always", "never" or "auto". What "auto" is depends on the stream, which a formatter does not know: a
    ConsoleHandler tells it; with any other handler it means no colour, since escape sequences in a file are worse than
    no colour on a terminal. `time_format`: strftime's, with %f for microseconds; None for no time (journald, Docker
    have their own). `utc`: the time in UTC, not local. `extras`: show them, and what `logsluice.context` has bound.
    `redact`: as the handlers have it. Raises `ConfigError` for a wrong option.
    """

    def __init__(
        self, *positional: Any, colors: str = "auto", time_format: str | None = TIME_FORMAT, utc: bool = False,
        extras: bool = True, redact: Any = "keys", **unknown: Any,
    ) -> None:  # fmt: skip
        # dictConfig gives a formatter that is named by "class", not by "()", these three and none of the options.
        if any(positional[:2]) or positional[2:] not in {(), ("%",)}:
            raise ConfigError('the line has no format string; in dictConfig name the formatter by "()", not by "class"')
        refuse_all(unknown, type(self))
        super().__init__()
        if colors not in COLORS:
            raise ConfigError(f"colors must be one of {', '.join(map(repr, COLORS))}, got {colors!r}")
        self.colors = colors
        self._time_format = _time_format_from(time_format)
        self._zone = dt.timezone.utc if flag("utc", utc) else None
        self._extras = flag("extras", extras)
        self._rules = Rules(Limits(), MESSAGE_BYTES, Redactor(plain(redact)), None, lambda: None)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, without a newline at its end. Never raises for what the record holds."""
        return self.text(record, colored=self.colors == "always")

    def text(self, record: logging.LogRecord, *, colored: bool) -> str:
        """Return the record's text with or without colour; `colors` is not asked."""
        paint = _painted if colored else _plain
        captured = capture(record, self._rules)
        kind, stack, pairs = self._attributes(record, captured)
        first, *more = (captured.fields["message"] or "").rstrip("\n").split("\n")
        level = _level_name(record, captured)
        parts = [
            paint(self._time(record), _DIM),
            # The blanks outside: a ground of colour behind them would be a bar.
            paint(level, _level_style(int(captured.fields["level"] or 0))) + " " * (LEVEL_WIDTH - len(level)),
            paint(visible(captured.fields["logger"] or "") + ":", _BOLD),
            paint(f"[{visible(kind)}]", _TYPE) if kind else "",
            visible(first),
        ]
        extras = " ".join(paint(f"{key}=", _DIM) + value for key, value in pairs)
        lines = [" ".join(part for part in parts if part) + (f"  {extras}" if extras else "")]
        for block in (more, _lines(captured.fields["exc_text"]), _lines(stack)):
            lines += (paint(LINE_MARK.rstrip() if not line else LINE_MARK, _DIM) + visible(line) for line in block)
        return "\n".join(lines)

    def _time(self, record: logging.LogRecord) -> str:
        if self._time_format is None:
            return ""
        try:
            moment = dt.datetime.fromtimestamp(record.created, self._zone)
        except Exception:  # not there, no number, or a year that there is not
            moment = dt.datetime.now(self._zone)
        return visible(moment.astimezone(self._zone).strftime(self._time_format))

    def _attributes(self, record: logging.LogRecord, captured: Captured) -> tuple[str, str, list[tuple[str, str]]]:
        """Return the log type, the stack and the texts of the rest: extras, bound values, ids, a wrong format."""
        attributes = dict(captured.attributes)
        if attributes.get("levelname") is getattr(record, "levelname", None):
            attributes.pop("levelname", None)  # in front already
        stack = attributes.pop("stack_info") if type(attributes.get("stack_info")) is str else ""
        kind = attributes.pop("log_type") if type(attributes.get("log_type")) is str else ""
        kind = tidy(kind, "log_type", self._rules, Marks(), TYPE_BYTES)
        rest: dict[Any, Any] = attributes if self._extras else {}
        if self._extras:
            ids = {name: captured.fields[name] for name in ID_COLUMNS}
            for more in (captured.context, ids):
                rest.update((key, value) for key, value in more.items() if key not in rest and value is not None)
        wrong = {key: value for key, value in captured.marks.other.items() if key in _WRONG_FORMAT}
        return kind, tidy(stack, "stack_info", self._rules, Marks()), [*self._pairs(rest), *self._pairs(wrong)]

    def _pairs(self, values: dict[Any, Any]) -> Iterator[tuple[str, str]]:
        for i, (key, value) in enumerate(values.items()):
            if i >= EXTRAS:
                yield "…", f"[{len(values) - i} more]"
                return
            yield self._pair(key, value)

    def _pair(self, key: Any, value: Any) -> tuple[str, str]:
        """Return the texts of one key and its value, without secrets."""
        marks = Marks()
        # A writer for each: one long value must not take the room of the next.
        written = JsonWriter(self._rules.limits, VALUE_BYTES, self._rules.redactor, marks).mapping({key: value})
        ((name, known),) = json.loads(written).items()
        if isinstance(known, str):
            return _quoted(name), _quoted(known)
        text = json.dumps(known, ensure_ascii=False, separators=(",", ":"))
        shown = cut(text, VALUE_BYTES, name, Marks())
        if shown is text and marks.cut:  # the writer left out something deep inside
            shown += " …[more cut]"
        return _quoted(name), visible(shown)


def _lines(text: str | None) -> list[str]:
    return text.rstrip("\n").split("\n") if text else []


def _level_name(record: logging.LogRecord, captured: Captured) -> str:
    name = getattr(record, "levelname", None)
    return visible(name[: LEVEL_WIDTH * 4]) if type(name) is str else f"Level {captured.fields['level']}"


class ConsoleHandler(_StreamHandler):
    """
    It writes records for people to a terminal, in the logging call.

    `stream`: "stderr" or "stdout", looked up at each record, so that redirection and pytest's capture work whenever
    they come, or a text stream. The other options are `ConsoleFormatter`'s; a formatter that is set afterwards takes
    the place of them all. Raises `ConfigError` for a wrong option. The logging call waits for the stream; it never
    raises: what cannot be written is said on the original stderr, at most once a minute.
    """

    def __init__(
        self, *, level: int | str = logging.NOTSET, stream: Any = "stderr", colors: str = "auto",
        time_format: str | None = TIME_FORMAT, utc: bool = False, extras: bool = True, redact: Any = "keys",
        **unknown: Any,
    ) -> None:  # fmt: skip
        # Handler's own: StreamHandler's would bind today's stderr for good.
        logging.Handler.__init__(self, level)
        refuse_all(unknown, type(self))
        if stream not in {"stderr", "stdout"} if isinstance(stream, str) else not hasattr(stream, "write"):
            raise ConfigError(f"stream must be 'stderr', 'stdout' or a text stream, got {stream!r}")
        self._stream = stream
        self._judged: tuple[Any, bool] = (None, False)  # the last stream, and whether "auto" colours it
        self._diagnostics = Diagnostics("console")
        self._own = ConsoleFormatter(colors=colors, time_format=time_format, utc=utc, extras=extras, redact=redact)
        self.formatter = self._own

    @property
    def stream(self) -> Any:
        """The stream that a record written now would go to; None where the process has none."""
        return getattr(sys, self._stream) if isinstance(self._stream, str) else self._stream

    @stream.setter
    def stream(self, stream: Any) -> None:
        self._stream = stream

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - logging's name
        """Take another formatter; None for the one that this handler's options made."""
        self.formatter = self._own if fmt is None else fmt

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, coloured if its stream and the formatter's `colors` say so."""
        formatter = self.formatter
        if isinstance(formatter, ConsoleFormatter) and type(formatter).format is ConsoleFormatter.format:
            colors = formatter.colors
            return formatter.text(record, colored=self._colored() if colors == "auto" else colors == "always")
        return super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. Called under the handler's lock."""
        try:
            stream = self.stream
            if stream is None:  # pythonw, or a service without one
                return
            stream.write(_encodable(self.format(record) + self.terminator, stream))
            stream.flush()
        except Exception as error:
            self._say(error)

    def flush(self) -> None:
        """Flush the stream. Never raises."""
        try:
            super().flush()
        except Exception as error:
            self._say(error)

    def _colored(self) -> bool:
        stream = self.stream
        if self._judged[0] is not stream:
            self._judged = (stream, wants_colors(stream))
        return self._judged[1]

    def _say(self, error: Exception) -> None:
        # Not `handleError`: it prints the record's arguments, secrets among them, and raises where stderr is closed.
        try:
            self._diagnostics.say("write", f"a record could not be written to the console: {type(error).__name__}")
        except Exception:
            pass  # no stack left to say it


def _encodable(text: str, stream: Any) -> str:
    """Return the text with what the stream's encoding does not have as escapes."""
    encoding = getattr(stream, "encoding", None)
    if not isinstance(encoding, str) or encoding.lower() in {"utf-8", "utf8"}:
        return text
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except (LookupError, UnicodeError):
        return text  # an encoding that Python does not know: the stream's own business
