"""
The entry: record -> frame -> buffer, on the caller's thread.

`Intake` is a `logging.handlers.QueueHandler` whose `prepare` makes the frame and whose `enqueue` appends it to the
buffer. No lock is held while the program's own code runs (`__str__`, `__repr__`), and every cache is replaced or filled
by single dict operations, so any of this may be re-entered by a signal handler.
"""

from __future__ import annotations

import dataclasses
import logging
import logging.handlers
import sys
from json.encoder import encode_basestring
from logging import LogRecord
from typing import TYPE_CHECKING, Any

from logsluice import context
from logsluice.capture import (
    GET_MESSAGE,
    ID_COLUMNS,
    INTEGER,
    NOT_EXTRAS,
    OTEL_KEYS,
    OWN_KEY,
    STANDARD,
    STANDARD_NAMES,
    Captured,
    Rules,
    ambient_ids,
    ambient_possible,
    attributes_json,
    capture,
    in_range,
    task_name,
    timestamp,
    utc_second,
)
from logsluice.columns import LOG_COLUMNS, Mapper, Target
from logsluice.encoding import NULL, Marks, clean, copy_row, copy_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.buffer import Buffer
    from logsluice.config import Settings
    from logsluice.primitives import SimpleQueue
    from logsluice.redaction import Redactor

SITES = 4096  # call sites remembered; a large program has hundreds. At the bound the cache is cleared
TEXTS = 1024  # thread names, templates and sets of extras remembered, each
TEXT_LENGTH = 1024  # characters of a template worth remembering
QUICK_FRAME = 32 * 1024  # bytes: a larger frame goes the whole way, where texts are cut
bound_values = context.get
NO_IDS = "\t".join([NULL] * len(ID_COLUMNS))
NO_ID_VALUES: list[Any] = [None] * len(ID_COLUMNS)
NO_EXCEPTION = "\t".join([NULL] * 3)
NOTHING_MORE = f"\t{NO_IDS}\t{NO_EXCEPTION}\t{NULL}\n"
BOUNDS = 256  # sets of bound context values remembered: about as many as requests are under way at once
NO_SECOND = 10**18  # microseconds: no record is of the second that is 30,000 years before the epoch
NO_LINE: tuple[Any, ...] = (object(),) * 6  # not None: a record may hold nothing but Nones
THREE_DIGITS = tuple(f"{n:03d}" for n in range(1000))
SHORT_ID = 255  # characters of an id that is certainly within limits.name_bytes

STANDARD_COUNT = len(STANDARD)
LAST_STANDARD = STANDARD[-1]
HAS_TASK_NAME = "taskName" in STANDARD  # from Python 3.12


def _float(value: float) -> str:
    text = float.__repr__(value)
    if text[-1] in "fn":  # inf, nan: not JSON
        raise ValueError
    return text


# Tried one after the other until the frame is within max_frame_bytes: (bytes of any one text, values, bytes of reprs
# and names). The last fits into the least max_frame_bytes (64 KiB) whatever must be escaped. None: by max_frame_bytes.
TIGHTER = ((None, 1000, 8192), (4096, 100, 256), (256, 20, 64))

# Exact types only: a subclass may have a __repr__ of its own.
SCALARS: dict[type, Callable[[Any], str]] = {
    str: encode_basestring,
    int: int.__repr__,
    float: _float,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): lambda _none: "null",
}


# How a value reads in an id column.
ID_TEXTS: dict[type, Callable[[Any], str]] = {int: int.__repr__, float: float.__repr__, bool: bool.__repr__}


# Of bound values: the ids, the JSON parts, the id columns, and the end of a frame without extras.
Bound = tuple[list[Any], list[str], str, str]


class _OwnRecord(Exception):  # noqa: N818 - no error: a turn off the quick way
    """A record of our own namespace: stored, it would make a batch that makes a record."""


class CountedError(Exception):
    """A record that got its number and could not be encoded in any way; it is counted as dropped already."""


class Intake(logging.handlers.QueueHandler):
    """One route's entry. Any thread."""

    def __init__(
        self, tokens: SimpleQueue[None], buffer: Buffer, target: Target, settings: Settings, rules: Rules
    ) -> None:
        super().__init__(tokens)  # a SimpleQueue: its put is re-entrant, a signal handler may log
        _forget(self)
        self.buffer = buffer
        self.wake_level = settings.flush_level  # lowered by the listener while it sleeps; see Listener._sleep
        self.urgent = False  # set here, cleared by the listener: do not linger
        self._flush_level = settings.flush_level
        self._markers = 0  # rows of our own; listener only
        self._keep_level = settings.keep_level
        self._settings = settings
        self._rules = rules
        self._redactor: Redactor = rules.redactor
        self._mapper = None if target.sources is None else Mapper(target, rules, settings.environment)
        # Caches: read and filled by any thread, single dict operations only.
        self._sites: dict[tuple[Any, ...], str] = {}
        self._lines: dict[int, tuple[Any, ...]] = {}  # line number -> the site that was there last, and what it is of
        self._texts: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._plans: dict[tuple[str, ...], tuple[tuple[tuple[str, str], ...], tuple[tuple[int, str], ...]]] = {}
        self._second: tuple[int, str] = (-NO_SECOND, "")  # (microseconds since the epoch of its start, its text)
        self._items = settings.limits.items
        self._short_id = min(SHORT_ID, settings.limits.name_bytes // 4)
        self._bounds: dict[int, tuple[dict[str, Any], Bound]] = {}
        self._modules = -1  # how many modules were loaded when we last looked for other libraries' ids
        self._ambient = False
        self._running_loop: Callable[[], Any] | None = None
        self.sanitized = 0  # records changed; a lost update under threads is accepted for this figure
        self.put = tokens.put
        self.no_token = tokens.empty
        self.next_seq = buffer.next_seq
        self._quick_frame = min(QUICK_FRAME, settings.max_message_bytes)  # no text in a smaller frame must be cut
        self._not_quick = True
        self.choose_way()

    def choose_way(self) -> None:
        """See whether the quick way can be gone at all; again when a formatter is set, and once a second."""
        self._not_quick = (
            self._mapper is not None
            or self._rules.formatter() is not None
            or self._redactor.searches_text
            or LogRecord.getMessage is not GET_MESSAGE  # somebody replaced it
        )

    def prepare(self, record: logging.LogRecord) -> bytes | None:
        """
        Return the frame of a record, None for one of our own. Each record that gets a frame gets a number.

        Ordinary records go the quick way, all of it in this one function: a call costs what three lines here cost. It
        gives up rather than guess, and `_whole` then does the same for any record, byte for byte.
        """
        seq = 0
        try:
            d = record.__dict__
            text = record.msg
            if record.exc_info or record.exc_text or record.stack_info or type(text) is not str or self._not_quick:
                return self._whole(record, seq)
            if type(record) is not LogRecord and type(record).getMessage is not GET_MESSAGE:
                return self._whole(record, seq)
            template = NULL
            if record.args:
                template = self._texts.get(text) or self._remember(text)
                text = text % record.args
                if type(text) is not str:  # "%s" gives a subclass of str back as it is, with its own methods
                    return self._whole(record, seq)
            if len(text) > self._quick_frame or ("://" in text and self._redactor.active):
                return self._whole(record, seq)
            # Four searches in C cost less than one look at each character.
            if "\\" in text or "\n" in text or "\t" in text or "\r" in text:
                text = copy_text(text)
            start, second = self._second
            micros = int(record.created * 1e6) - start
            if not 0 <= micros < 1_000_000:
                start, second = self._new_second(record.created)
                micros = int(record.created * 1e6) - start
            if len(sys.modules) != self._modules:
                self._look_around()
            if HAS_TASK_NAME:
                name = record.taskName  # type: ignore[attr-defined,unused-ignore]
            else:  # before 3.12 only asyncio itself knows
                name = None if self._running_loop is None or self._running_loop() is None else task_name(record)
            task = NULL if name is None else self._names.get(name) or self._remember_name(name)
            thread = self._names.get(record.threadName) or self._remember_name(record.threadName)  # type: ignore[arg-type]
            # A call site's record comes with the same objects each time: five comparisons instead of a key's hash.
            path, level, name, func, level_name, site = self._lines.get(record.lineno, NO_LINE)
            if (
                path is not record.pathname
                or level is not record.levelno
                or name is not record.name
                or func is not record.funcName
                or level_name is not record.levelname
            ):
                site = self._site_of(record)
            if (
                len(d) == STANDARD_COUNT
                and next(reversed(d)) == LAST_STANDARD  # nothing was added in the place of something taken away
                and record.processName == "MainProcess"
                and not self._ambient
            ):
                bound = bound_values()
                rest = NOTHING_MORE if bound is None else self._bound(bound)[3]
            else:
                rest = self._more(record, tuple(d))
            seq = self.next_seq()
            moment = f"{second}{THREE_DIGITS[micros // 1000]}{THREE_DIGITS[micros % 1000]}"
            frame = f"{seq}\t{moment}Z\t{site}\t{thread}\t{task}\t{text}\t{template}{rest}".encode()
            # The encoder has refused lone surrogates; a NUL would end the segment; a large frame must be cut.
            if len(frame) <= self._quick_frame and 0 not in frame:
                return frame
        except _OwnRecord:
            return None
        except CountedError:
            raise  # it went the whole way: once more would count it twice
        except Exception:
            pass  # a wrong format string, a NaN, a hostile object: the whole way stores it
        return self._whole(record, seq)

    @property
    def sync(self) -> Callable[[], object]:
        """What makes an append durable against power loss before the call returns; set by the handler."""
        return self._sync

    @sync.setter
    def sync(self, call: Callable[[], object]) -> None:
        self._sync = call
        self.enqueue = self._enqueue_and_sync  # type: ignore[method-assign]  # on the instance: others pay nothing

    def _enqueue_and_sync(self, frame: bytes, level: int = logging.INFO) -> None:
        Intake.enqueue(self, frame, level)
        try:
            self._sync()
        except OSError:
            pass  # said by the buffer; the frame is in, and must not be offered again

    def enqueue(self, frame: bytes, level: int = logging.INFO) -> None:  # type: ignore[override]
        """Append a frame; blocks only with `when_full="block"`. A frame of a lower level may be dropped, counted."""
        buffer = self.buffer
        try:
            (buffer.append if level >= self._keep_level else buffer.append_low)(frame)
        except ValueError:
            buffer.put(frame, level)
        except TypeError:  # a level that cannot be compared: stored as 0
            self.enqueue(frame, logging.NOTSET)
            return
        # After the append, never before: the listener lowers wake_level and then looks again (Listener._sleep).
        if level >= self.wake_level:
            if level >= self._flush_level:
                self.urgent = True
                buffer.hasten()
            try:
                if self.no_token():
                    self.put(None)
            except Exception:
                pass  # no memory for a token: the frame is in, and must not be offered again

    def mark(self, dropped: int, reasons: str, since: float, until: float) -> bool:
        """Append the row that says what was dropped; False if there is no room even for that. Listener only."""
        record = logging.LogRecord(
            "logsluice", logging.WARNING, "", 0, f"{dropped} records were dropped: {reasons}", None, None
        )
        record.__dict__.update(dropped=dropped, reasons=reasons, since=timestamp(since), until=timestamp(until))
        self._markers += 1
        self.buffer.own_rows += 1
        frame = self._whole(record, -self._markers)
        if frame is not None and self.buffer.put(frame, logging.CRITICAL, own=True):
            return True
        self.buffer.own_rows -= 1
        return False

    def _more(self, record: logging.LogRecord, names: tuple[str, ...]) -> str:
        """Return the frame's end: ids, exception, attributes. Raises for what is not plain: then the whole way."""
        if names[STANDARD_COUNT - 1] != LAST_STANDARD:
            raise ValueError  # somebody took a standard attribute away: what is an extra is no matter of order now
        names = names[STANDARD_COUNT:]
        plan, id_plan = self._plans.get(names) or self._plan(names)
        d = record.__dict__
        parts = [prefix + SCALARS[type(d[key])](d[key]) for key, prefix in plan]  # KeyError: nested or a subclass
        bound = bound_values()
        ids = NO_IDS
        if bound and not id_plan and not self._ambient and bound.keys().isdisjoint(names):
            _, fragment, ids, _ = self._bound(bound)
            parts = fragment + parts
        elif bound or id_plan or self._ambient:
            fragment, ids = self._ids(d, names, id_plan, bound or {})
            parts = fragment + parts
        process = record.processName
        if process != "MainProcess" and process is not None:
            parts.append(f'"processName": {SCALARS[type(process)](process)}')
        return self._end(ids, parts)

    def _end(self, ids: str, parts: list[str]) -> str:
        if not parts:
            return f"\t{ids}\t{NO_EXCEPTION}\t{NULL}\n"
        attributes = ", ".join(parts)
        if "\\" in attributes:
            if "\\u0000" in attributes:
                raise ValueError
            attributes = attributes.replace("\\", "\\\\")
        if len(parts) > self._items or ("://" in attributes and self._redactor.active):
            raise ValueError
        return f"\t{ids}\t{NO_EXCEPTION}\t{{{attributes}}}\n"

    def _ids(
        self, d: dict[str, Any], names: tuple[str, ...], id_plan: tuple[tuple[int, str], ...], bound: dict[str, Any]
    ) -> tuple[list[str], str]:
        """Return the JSON parts of bound values, and the id columns: extras before bound before other libraries'."""
        ids: list[Any] = NO_ID_VALUES.copy()
        parts: list[str] = []
        if self._ambient:
            found = ambient_ids()
            ids = [found.get(column) for column in ID_COLUMNS]
        if bound:
            if not bound.keys().isdisjoint(names):
                raise ValueError  # an extra wins over a bound value of its name
            bound_ids, parts, _, _ = self._bound(bound)
            ids = [mine if mine is not None else other for mine, other in zip(bound_ids, ids, strict=True)]
        for index, key in id_plan:
            if d[key] is not None:
                ids[index] = d[key]
        return parts, NO_IDS if ids == NO_ID_VALUES else self._id_texts(ids)

    def _id_texts(self, ids: list[Any]) -> str:
        texts = []
        for value in ids:
            if value is None:
                texts.append(NULL)
                continue
            text = value if type(value) is str else ID_TEXTS[type(value)](value)
            if not text.isprintable() or "\\" in text or "://" in text or len(text) > self._short_id:
                raise ValueError
            texts.append(text)
        return "\t".join(texts)

    def _bound(self, bound: dict[str, Any]) -> Bound:
        """Return what bound values become. Remembered while they stay bound."""
        known = self._bounds.get(id(bound))
        if known is not None and known[0] is bound:
            return known[1]
        if not NOT_EXTRAS.isdisjoint(bound):
            raise ValueError  # bound, such a name is a value like others
        plan, _ = self._plan(tuple(key for key in bound if key not in ID_COLUMNS))
        parts = [prefix + SCALARS[type(bound[key])](bound[key]) for key, prefix in plan]
        ids = [bound.get(column) for column in ID_COLUMNS]
        if any(type(value) not in SCALARS for value in ids):
            raise ValueError  # a live object must not be kept
        if len(self._bounds) >= BOUNDS:
            self._bounds.clear()
        texts = NO_IDS if ids == NO_ID_VALUES else self._id_texts(ids)
        found = (ids, parts, texts, self._end(texts, parts))
        self._bounds[id(bound)] = (bound, found)  # `bound` itself, so that its id is not used again meanwhile
        return found

    def _plan(self, names: tuple[str, ...]) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[int, str], ...]]:
        """Return (key, JSON prefix) of these extras, and (id column, key) of those that fill one. Remembered."""
        special = OTEL_KEYS | {"extra", OWN_KEY} | set(STANDARD)
        # What a Formatter of another handler left behind is no extra.
        kept = tuple(name for name in names if type(name) is not str or name in special or name not in NOT_EXTRAS)
        for name in kept:
            if type(name) is not str or name in special or len(name) * 4 > self._settings.limits.key_bytes:
                raise ValueError
            if not name.isprintable() or (self._redactor.active and self._redactor.is_secret(name)):
                raise ValueError
        if len(self._plans) >= TEXTS:
            self._plans.clear()
        id_plan = tuple((ID_COLUMNS.index(name), name) for name in kept if name in ID_COLUMNS)
        plan = self._plans[names] = (tuple((name, f"{encode_basestring(name)}: ") for name in kept), id_plan)
        return plan

    def _site_of(self, record: logging.LogRecord) -> str:
        """Return a call site's columns where another module's site was on its line number last."""
        key = (record.pathname, record.levelno, record.name, record.funcName, record.levelname)
        site = self._sites.get((*key, record.lineno)) or self._site(record, (*key, record.lineno))
        if len(self._lines) >= SITES:
            self._lines.clear()
        self._lines[record.lineno] = (*key, site)
        return site

    def _site(self, record: logging.LogRecord, key: tuple[Any, ...]) -> str:
        """Return the columns that are the same for every record of this call site. Remembered."""
        if record.name.partition(".")[0] == "logsluice":
            raise _OwnRecord
        marks = Marks()
        if type(record.levelno) is not int or STANDARD_NAMES.get(record.levelno) != record.levelname:
            raise ValueError
        if type(record.lineno) is not int or not 0 <= record.lineno <= INTEGER:
            raise ValueError
        names = [record.name, record.pathname, record.funcName]
        if any(name is not None and not self._plain_name(name) for name in names):
            raise ValueError
        texts = [record.name, record.pathname, str(record.lineno), record.funcName, self._settings.service]
        captured = [None if text is None else clean(text, "", marks) for text in texts]
        if marks:
            raise ValueError  # repaired: not a site to remember
        columns = copy_row([str(self.buffer.stream), str(record.levelno), *captured]).decode()[:-1]
        if len(self._sites) >= SITES:
            self._sites.clear()
        self._sites[key] = columns
        return columns

    def _plain_name(self, name: Any) -> bool:
        """Whether a name is stored as it is, but for escaping: of no subclass, short, without a URL."""
        limit = self._settings.limits.name_bytes
        return type(name) is str and len(name) * 4 <= limit and not ("://" in name and self._redactor.active)

    def _remember_name(self, name: Any) -> str:
        if not self._plain_name(name):
            raise ValueError
        if len(self._names) >= TEXTS:
            self._names.clear()
        escaped = self._names[name] = copy_text(name)
        return escaped

    def _remember(self, text: str) -> str:
        if "://" in text and self._redactor.active:
            raise ValueError
        escaped = copy_text(text)
        if len(text) <= TEXT_LENGTH:
            if len(self._texts) >= TEXTS:
                self._texts.clear()
            self._texts[text] = escaped
        return escaped

    def _new_second(self, created: float) -> tuple[int, str]:
        second = int(created * 1e6) // 1_000_000
        self.choose_way()
        if self._not_quick or not in_range(second, self._rules.now()):
            raise ValueError  # the whole way replaces and marks it
        known = self._second = (second * 1_000_000, utc_second(second) + ".")
        return known

    def _look_around(self) -> None:
        """See which of the libraries that hold ids or tasks the program has imported by now."""
        self._modules = len(sys.modules)
        self._ambient = ambient_possible()
        self._running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)

    def _whole(self, record: logging.LogRecord, seq: int) -> bytes | None:
        """Return the frame of any record, within `max_frame_bytes`; None for one of our own."""
        name = record.__dict__.get("name")
        if seq >= 0 and issubclass(type(name), str) and str.partition(name, ".")[0] == "logsluice":  # type: ignore[arg-type]
            return None
        seq = seq or self.next_seq()
        try:
            captured, frame = self._within_limit(record, seq)
        except Exception as error:  # it cannot be read at all: its place is kept, with nothing that may be secret
            try:
                captured, frame = self._within_limit(_stand_in(record, error), seq)
            except Exception as second:  # not even that: too deep in a recursion, or no memory
                self.buffer.lost()
                raise CountedError from second
        if captured.marks.sanitized:
            self.sanitized += 1
        return frame

    def _within_limit(self, record: logging.LogRecord, seq: int) -> tuple[Captured, bytes]:
        most = self._settings.max_frame_bytes
        captured, frame = self._encode(record, seq, self._rules)
        for text_limit, items, size in TIGHTER:
            if len(frame) <= most:
                break
            given = self._rules.limits
            limits = dataclasses.replace(
                given,
                items=min(given.items, items),
                repr_bytes=min(given.repr_bytes, size),
                key_bytes=min(given.key_bytes, size),
                name_bytes=min(given.name_bytes, size),
            )
            least = min(self._rules.max_message_bytes, text_limit or most // 16)
            rules = dataclasses.replace(self._rules, limits=limits, max_message_bytes=least)
            captured, frame = self._encode(record, seq, rules)
        return captured, frame

    def _encode(self, record: logging.LogRecord, seq: int, rules: Rules) -> tuple[Captured, bytes]:
        captured = capture(record, rules)
        captured.fields["stream"] = str(self.buffer.stream)
        captured.fields["seq"] = str(seq)
        if rules is not self._rules:
            captured.marks.cut.setdefault("record", 0)
        if self._mapper is not None:
            return captured, copy_row(self._mapper.texts(captured, record))
        captured.fields["attributes"] = attributes_json(captured, rules)
        return captured, copy_row([captured.fields[name] for name in LOG_COLUMNS])


def _stand_in(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return a record that says that another could not be read; of that, only what is certainly plain."""
    d = record.__dict__
    name, level = d.get("name"), d.get("levelno")
    return logging.LogRecord(
        name if type(name) is str else "",
        level if type(level) is int else logging.NOTSET,
        "",
        0,
        f"<record could not be captured: {type(error).__name__}>",
        None,
        None,
    )


def _forget(handler: logging.Handler) -> None:
    """Take an inner handler off logging's list of handlers, or `logging.shutdown` would close it by itself."""
    with logging._lock:  # type: ignore[attr-defined]  # noqa: SLF001 - no public way
        logging._handlerList[:] = [ref for ref in logging._handlerList if ref() is not handler]  # type: ignore[attr-defined]  # noqa: SLF001
