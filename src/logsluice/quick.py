"""
The quick way: an ordinary record from `handle` to the buffer in one function. What a call site's last record was like
is at hand.

It gives up rather than guess; `Intake.whole` then makes the same frame for any record, byte for byte (but for the order
of extras that come in another order than last time). Every line of `way` is paid by every record, so some are
harder to read than they need to be: docs/explanation/call-cost.md says what that saves.

Every cache is replaced or filled by single dict operations, so any of this may be re-entered by a signal handler.
"""

from __future__ import annotations

import os
import sys
from json.encoder import encode_basestring
from logging import LogRecord
from math import floor
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from logsluice import context
from logsluice.buffer import RefusedError
from logsluice.capture import (
    GET_MESSAGE,
    ID_COLUMNS,
    INTEGER,
    LIMITED,
    NOT_EXTRAS,
    OTEL_KEYS,
    OWN_KEY,
    STANDARD,
    STANDARD_NAMES,
    ambient_ids,
    ambient_possible,
    in_range,
    task_name,
    utc_second,
)
from logsluice.encoding import NULL, Marks, clean, copy_row, copy_text
from logsluice.formatters import unbroken
from logsluice.lifecycle import OWN_THREADS
from logsluice.primitives import get_ident

if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Handler

    from logsluice.capture import Rules
    from logsluice.config import Settings
    from logsluice.intake import Intake

    Render = Callable[[dict[str, Any]], str]
    # Names of extras that go to attributes; how these become JSON; (id column, name) of those that fill one.
    Plan = tuple[tuple[str, ...], Render, tuple[tuple[int, str], ...]]
    Bound = tuple[list[Any], list[str], Any, Any]  # of bound values: ids, JSON parts, id columns, a frame's whole end

SITES = 4096  # call sites remembered; a large program has hundreds. At the bound the cache is cleared
TEXTS = 1024  # thread names, templates and sets of extras remembered, each
TEXT_LENGTH = 1024  # characters of a template worth remembering
QUICK_FRAME = 32 * 1024  # bytes: a larger frame goes the whole way, where texts are cut
BOUNDS = 256  # sets of bound context values remembered: about as many as requests are under way at once
SHORT_ID = 255  # characters of an id that is certainly within limits.name_bytes
NO_SECOND = 10**18  # microseconds: no record is of the second that is 30,000 years before the epoch
NO_IDS = "\t".join([NULL] * len(ID_COLUMNS))
NO_ID_VALUES: list[Any] = [None] * len(ID_COLUMNS)
NO_EXCEPTION = "\t".join([NULL] * 3)
NOTHING_MORE = f"\t{NO_IDS}\t{NO_EXCEPTION}\t{NULL}\n"
BEFORE_ATTRIBUTES = f"\t{NO_IDS}\t{NO_EXCEPTION}\t{{"
NO_TEMPLATE = f"\t{NULL}"
THREE_DIGITS = tuple(f"{n:03d}" for n in range(1000))

STANDARD_COUNT = len(STANDARD)
LAST_STANDARD = STANDARD[-1]
HAS_TASK_NAME = "taskName" in STANDARD  # from Python 3.12
# What a call site's last record was: five fields, its columns, how many attributes it had, its extras. The first are no
# record's: not None, for a record may hold nothing but Nones.
NO_LINE: tuple[Any, ...] = (*(object(),) * 5, "", STANDARD_COUNT, None)
USED = ("msg", "args", "exc_info", "exc_text", "stack_info", "created", "threadName", "pathname", "levelno", "name",
        "funcName", "levelname", "processName")  # fmt: skip
# All of them: one that somebody took away, and an extra in its place, would go unseen. taskName is asked for by itself,
# so that there are as many on each Python: to unpack a rest, `*_`, takes 1,500 instructions, 2 % of a call.
FIELDS = itemgetter(*USED, *(name for name in STANDARD if name not in USED and name != "taskName"))


def _float(value: float) -> str:
    text = float.__repr__(value)
    if text[-1] in "fn":  # inf, nan: not JSON
        raise ValueError
    return text


# Exact types only: a subclass may have a __repr__ of its own.
SCALARS: dict[type, Callable[[Any], str]] = {
    str: encode_basestring,
    int: repr,
    float: _float,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
}
# How a value reads in an id column.
ID_TEXTS: dict[type, Callable[[Any], str]] = {int: repr, float: repr, bool: repr}


class OwnRecord(Exception):  # noqa: N818 - no error: a turn off the quick way
    """A record of our own namespace: stored, it would make a batch that makes a record."""


class NotPlainError(Exception):
    """The record is none for this way."""


class CountedError(Exception):
    """A record that got its number and could not be encoded in any way; it is counted as dropped already."""


class Entrance(NamedTuple):
    """What the way needs of its handler."""

    handler: Handler
    general: Callable[[LogRecord], bool]  # for a record that must be looked at first
    own: Callable[[], bool]  # one of our own came
    failed: Callable[[LogRecord, Exception], None]  # there is no room, or a record is odd; all is counted
    elsewhere: Callable[[LogRecord], Callable[..., bool] | None]  # the way of a typed log; None for other records


class QuickWay:
    """
    What the quick way remembers, and the way itself (`made`). Any thread.

    Frames are rows of `logs` here; quicklines.py says what is different for lines of JSON.
    """

    quote: Callable[[str], str] | None = None  # how a line of JSON writes a text; None: a row of COPY

    def __init__(self, stream: int, settings: Settings, rules: Rules, *, mapped: bool) -> None:
        self.stream = stream
        self._settings = settings
        self._rules = rules
        self._redactor = rules.redactor
        self._mapped = mapped
        self._items = settings.limits.items
        self._limited = {name for limit, names in LIMITED.items() if getattr(settings.limits, limit) for name in names}
        self._short_id = min(SHORT_ID, settings.limits.name_bytes // 4)
        # Caches: read and filled by any thread, single dict operations only.
        self.sites: dict[tuple[Any, ...], Any] = {}
        self.lines: dict[int, tuple[Any, ...]] = {}  # line number -> what its last record was
        self.templates: dict[str, str] = {}
        self.names: dict[str, str] = {}  # of threads and tasks
        self.threads: dict[str, str] = {}  # thread name -> its column and that of no task
        self.plans: dict[tuple[str, ...], Plan] = {}
        self.bounds: dict[int, tuple[dict[str, Any], Bound]] = {}
        self.second: tuple[int, str] = (-NO_SECOND, "")  # (microseconds since the epoch of its start, its text)
        self.modules = -1  # how many modules were loaded when we last looked for other libraries' ids
        self.ambient = False
        self.running_loop: Callable[[], Any] | None = None
        self.open = True
        self.choose()

    def choose(self) -> None:
        """See whether this way can be gone at all; again when a formatter is set, and once a second."""
        self.second = (-NO_SECOND, "")
        self.open = not (
            self._mapped
            or self._rules.formatter() is not None
            or self._redactor.searches_text
            or LogRecord.getMessage is not GET_MESSAGE  # somebody replaced it
            or not _within(self._settings.service, self._settings.limits.service)
        )

    def made(self, intake: Intake, entrance: Entrance | None = None) -> Callable[..., Any]:
        """
        Return the way itself.

        Without an `entrance` it gives the frame of a `checked` record back, None for one of our own, and raises what
        `whole` raises. With one it takes the frame in as well, in the place of `Handler.handle`: in one function, for
        one call more would be a fortieth of what we add.
        """
        # Cells of a closure: an attribute of `self` costs twice as much, and there are thirty of them.
        limit = min(QUICK_FRAME, self._settings.max_message_bytes)  # no text in a smaller frame must be cut
        longest = min(limit, self._settings.limits.message or limit)  # characters of the message
        redacts, keep_level = self._redactor.active, self._settings.keep_level
        templates, threads, lines, digits = self.templates, self.threads, self.lines, THREE_DIGITS
        quote = self.quote
        modules, bound_values = sys.modules, context.get
        buffer, numbers, whole, sync = intake.buffer, intake.buffer.numbers, intake.whole, intake.sync
        batch_size = self._settings.batch_size
        if entrance is not None:
            handler, general, own, failed, elsewhere = entrance
            pid, own_threads, ident = os.getpid(), OWN_THREADS, get_ident

        def way(record: LogRecord, checked: bool = False) -> bytes | bool | None:
            if not checked:
                try:
                    first = handler.filters or record.process != pid or ident() in own_threads
                except AttributeError:  # somebody took `process` away
                    first = True
                if first:  # outside of `try`: an AttributeError of a filter is not ours
                    return general(record)  # which comes back with `checked`
            seq = 0
            try:
                if not self.open:
                    raise NotPlainError
                try:
                    path_, level_, name_, func_, level_name_, site, size, plan = lines[record.lineno]
                except KeyError:
                    path_, level_, name_, func_, level_name_, site, size, plan = NO_LINE
                # `extra=` makes the dictionary of a record, and each look at an attribute then costs many times
                # as much. So it is asked for last where there were no extras last time, and first where there were.
                if plan is None:
                    text, args, created = record.msg, record.args, record.created
                    odd = record.exc_info or record.exc_text or record.stack_info
                    path, level, name = record.pathname, record.levelno, record.name
                    func, level_name, thread = record.funcName, record.levelname, record.threadName
                    process = record.processName
                    # Each raises if somebody took it away: an extra in its place would go unseen.
                    # By threes, for which Python makes no tuple.
                    _, _, _ = record.filename, record.module, record.msecs
                    _, _ = record.relativeCreated, record.thread
                    d = record.__dict__
                else:
                    d = record.__dict__
                    (
                        text, args, exc_info, exc_text, stack, created, thread, path, level, name, func, level_name,
                        process, _, _, _, _, _, _, _,
                    ) = FIELDS(d)  # fmt: skip
                    odd = exc_info or exc_text or stack
                if (
                    odd
                    or type(text) is not str
                    or (type(record) is not LogRecord and type(record).getMessage is not GET_MESSAGE)
                ):
                    raise NotPlainError
                if args:
                    try:
                        template = templates[text]
                    except KeyError:
                        template = self.remember(text)
                    text = text % args
                    if type(text) is not str:  # "%s" gives a subclass of str back as it is, with its own methods
                        raise NotPlainError
                else:
                    template = NO_TEMPLATE
                # An empty one may have to be marked.
                if not text or len(text) > longest or ("/" in text and "://" in text and redacts):
                    raise NotPlainError
                start, second = self.second
                micros = floor(created * 1e6) - start
                if not 0 <= micros < 1_000_000:
                    start, second = self.new_second(created)
                    micros = floor(created * 1e6) - start
                if len(modules) != self.modules:
                    self.look_around()
                try:
                    who = threads[thread]  # type: ignore[index]
                except KeyError:
                    who = self.remember_thread(thread)
                if HAS_TASK_NAME:
                    task = record.taskName  # type: ignore[attr-defined,unused-ignore]
                else:  # before 3.12 only asyncio itself knows
                    loop = self.running_loop
                    task = None if loop is None or loop() is None else task_name(record)
                # A call site's record comes with the same objects each time: five comparisons instead of a key's hash.
                if (
                    path is not path_
                    or level is not level_
                    or name is not name_
                    or func is not func_
                    or level_name is not level_name_
                ):
                    site = self.site_of(record)
                if len(d) != size:  # other extras than last time
                    plan = self.plan_of(record)
                bound = bound_values()
                if quote is not None:  # a line of JSON, of what quicklines.py has learnt of its call site
                    before, after, caller, ending, rest, ends, _ = site
                    text = quote(text)
                    if bound or task is not None or process != "MainProcess" or self.ambient:
                        caller, rest = self.spelled(record, site, plan, task, bound or {})
                        who = ending = ""
                    elif plan is not None:
                        try:
                            json = plan[1](d)
                            opening, closing = ends[plan[0]]
                        except KeyError:  # as many, but others; or not known here; or a value that is not plain
                            caller, rest = self.spelled(record, site, plan, None, {})
                            who = ending = ""
                        else:
                            if "/" in json and "://" in json and redacts:
                                raise NotPlainError
                            rest = f"{opening}{json}{closing}"
                    seq = next(numbers)
                    line = (
                        f"{seq}{before}{second}{digits[micros // 1000]}{digits[micros % 1000]}{after}{text}{caller}"
                        f"{who}{ending}{seq}{rest}"
                    )
                    if "\\" in line and "\\u0000" in line:
                        raise NotPlainError
                    if not line.isascii() or "\x7f" in line:
                        line = unbroken(line)
                    frame = line.encode()
                    if len(frame) > limit:
                        raise NotPlainError
                else:
                    # Four searches in C cost less than one look at each character.
                    if "\\" in text or "\n" in text or "\t" in text or "\r" in text:
                        text = copy_text(text)
                    if task is not None:
                        who = f"\t{self.name(thread)}\t{self.name(task)}\t"
                    if process != "MainProcess" or self.ambient:
                        rest = self.more(record, plan, bound or {})
                    elif plan is None:
                        rest = NOTHING_MORE if bound is None else self.bound(bound)[3]
                    elif bound or plan[2]:
                        rest = self.more(record, plan, bound or {})
                    else:
                        try:
                            json = plan[1](d)
                        except KeyError:  # as many, but others; or a value that is not plain
                            rest = self.more(record, self.plan_of(record), {})
                        else:
                            if "\\" in json or ("/" in json and "://" in json and redacts):
                                json = self.escaped(json)
                            rest = f"{BEFORE_ATTRIBUTES}{json}}}\n" if json else NOTHING_MORE
                    seq = next(numbers)
                    frame = (
                        f"{seq}{second}{digits[micros // 1000]}{digits[micros % 1000]}{site}{who}{text}{template}{rest}"
                    ).encode()
                    # The encoder has refused lone surrogates; a NUL would end the segment; a large frame must be cut.
                    if len(frame) > limit or 0 in frame:
                        raise NotPlainError
            except OwnRecord:
                return None if entrance is None else own()
            except Exception:  # a wrong format string, a NaN, a hostile object: the whole way stores it
                frame = None
            if entrance is None:
                return frame or whole(record, seq)
            try:
                if frame is None:
                    if not seq and (typed := elsewhere(record)) is not None:
                        return typed(record, True)
                    frame = whole(record, seq)
                    if frame is None:
                        return own()
                    level = record.levelno
                try:
                    (buffer.append if level >= keep_level else buffer.append_low)(frame)
                except (ValueError, TypeError):  # a full segment, or a level that cannot be compared
                    intake.enqueue(frame, level)
                else:
                    try:
                        if level >= intake.wake_level:
                            intake.wake(level)
                        if batch_size and not (seq or buffer.offered()) % batch_size:
                            intake.hurry()
                    except RecursionError:
                        pass  # the frame is in, and must not be offered again
                if sync is not None:
                    try:
                        sync()
                    except (OSError, RecursionError):
                        pass  # said by the buffer; the frame is in
            except Exception as error:
                # Only C calls until all is counted: the stack may be full, and a call of ours would fail like the last.
                if type(error) is not RefusedError:
                    if frame is not None:  # it has its number; its level was missing, or there was no stack left
                        try:
                            buffer.append(frame)
                        except Exception:
                            buffer.lost()
                    elif type(error) is not CountedError:
                        if not seq:
                            next(numbers)
                        buffer.lost()
                try:
                    failed(record, error)
                except RecursionError:
                    pass
            return True

        return way

    # --- what is not paid by every record -----------------------------------------------------------------------

    def site_of(self, record: LogRecord) -> Any:
        """Return what a call site's frames share where another module's site was on its line number last."""
        key = (record.pathname, record.levelno, record.name, record.funcName, record.levelname)
        site: Any = self.sites.get((*key, record.lineno)) or self._site(record, (*key, record.lineno))
        if len(self.lines) >= SITES:
            self.lines.clear()
        self.lines[record.lineno] = (*key, site, STANDARD_COUNT, None)
        return site

    def plan_of(self, record: LogRecord) -> Plan | None:
        """Return how this record's extras are written, None if it has none; remembered at its line number."""
        names = tuple(record.__dict__)
        if names[STANDARD_COUNT - 1] != LAST_STANDARD:
            raise ValueError  # somebody took a standard attribute away: what is an extra is no matter of order now
        names = names[STANDARD_COUNT:]
        plan = (self.plans.get(names) or self.plan(names)) if names else None
        known = self.lines.get(record.lineno, NO_LINE)
        self.lines[record.lineno] = (*known[:6], STANDARD_COUNT + len(names), plan)
        return plan

    def spelled(
        self, record: LogRecord, site: Any, plan: Plan | None, task: Any, bound: dict[str, Any]
    ) -> tuple[str, str]:
        """Return what stands between message and seq of a line, and behind that. Raises for what is not plain."""
        raise NotImplementedError  # rows are made by `more`

    def more(self, record: LogRecord, plan: Plan | None, bound: dict[str, Any]) -> str:
        """Return the frame's end: ids, exception, attributes. Raises for what is not plain: then the whole way."""
        d = record.__dict__
        names: tuple[str, ...] = ()
        id_plan: tuple[tuple[int, str], ...] = ()
        parts = []
        if plan is not None:
            try:
                parts = [plan[1](d)]
            except KeyError:  # other extras than last time, or a value that is not plain
                plan = self.plan_of(record)
                parts = [plan[1](d)] if plan else []
            if plan is not None:
                names, _, id_plan = plan
        count = len(names)
        ids = NO_IDS
        if bound or id_plan or self.ambient:
            fragment, ids = self._ids(d, names, id_plan, bound)
            count += len(bound)
            parts = fragment + [part for part in parts if part]
        process = record.processName
        if process != "MainProcess" and process is not None:
            parts.append(f'"processName": {SCALARS[type(process)](process)}')
            count += 1
        if count > self._items:
            raise ValueError
        end: str = self._end(ids, parts)
        return end

    def _end(self, ids: Any, parts: list[str]) -> Any:
        json = ", ".join(filter(None, parts))
        return f"\t{ids}\t{NO_EXCEPTION}\t{{{self.escaped(json)}}}\n" if json else f"\t{ids}\t{NO_EXCEPTION}\t{NULL}\n"

    def escaped(self, json: str) -> str:
        """Return JSON as a COPY text column; raises for a NUL and for what may hold a secret."""
        if "\\u0000" in json or ("://" in json and self._redactor.active):
            raise ValueError
        return json.replace("\\", "\\\\")

    def _ids(
        self, d: dict[str, Any], names: tuple[str, ...], id_plan: tuple[tuple[int, str], ...], bound: dict[str, Any]
    ) -> tuple[list[str], Any]:
        """Return the JSON parts of bound values, and the id columns: extras before bound before other libraries'."""
        ids: list[Any] = NO_ID_VALUES.copy()
        parts: list[str] = []
        if self.ambient:
            found = ambient_ids()
            ids = [found.get(column) for column in ID_COLUMNS]
        if bound:
            if not bound.keys().isdisjoint(names):
                raise ValueError  # an extra wins over a bound value of its name
            bound_ids, parts, _, _ = self.bound(bound)
            ids = [mine if mine is not None else other for mine, other in zip(bound_ids, ids, strict=True)]
        for index, key in id_plan:
            if d[key] is not None:
                ids[index] = d[key]
        return parts, self._id_columns(ids)

    def _id_columns(self, ids: list[Any]) -> Any:
        if ids == NO_ID_VALUES:
            return NO_IDS
        return "\t".join([NULL if text is None else text for text in self.id_texts(ids)])

    def id_texts(self, ids: list[Any]) -> list[str | None]:
        """Return ids as texts; raises for one that is not stored as it is."""
        texts: list[str | None] = []
        for value in ids:
            if value is None:
                texts.append(None)
                continue
            text = value if type(value) is str else ID_TEXTS[type(value)](value)
            if not text.isprintable() or "\\" in text or "://" in text or len(text) > self._short_id:
                raise ValueError
            texts.append(text)
        return texts

    def bound(self, bound: dict[str, Any]) -> Bound:
        """Return what bound values become. Remembered while they stay bound."""
        known = self.bounds.get(id(bound))
        if known is not None and known[0] is bound:
            return known[1]
        if not NOT_EXTRAS.isdisjoint(bound):
            raise ValueError  # bound, such a name is a value like others
        keys = tuple(key for key in bound if key not in ID_COLUMNS)
        names, render, _ = self.plans.get(keys) or self.plan(keys)  # compiled once for all values of these names
        parts = [render(bound)] if names else []
        ids = [bound.get(column) for column in ID_COLUMNS]
        if any(type(value) not in SCALARS for value in ids):
            raise ValueError  # a live object must not be kept
        if len(self.bounds) >= BOUNDS:
            self.bounds.clear()
        columns = self._id_columns(ids)
        found = (ids, parts, columns, self._end(columns, parts))
        self.bounds[id(bound)] = (bound, found)  # `bound` itself, so that its id is not used again meanwhile
        return found

    def plan(self, names: tuple[str, ...]) -> Plan:
        """Return how these extras are written. Remembered."""
        # taskName: of a record that came from a Python which has it.
        special = OTEL_KEYS | {"extra", OWN_KEY, "taskName"} | set(STANDARD)
        # What a Formatter of another handler left behind is no extra.
        kept = tuple(name for name in names if type(name) is not str or name in special or name not in NOT_EXTRAS)
        if not self._limited.isdisjoint(kept):
            raise ValueError
        for name in kept:
            if type(name) is not str or name in special or len(name) * 4 > self._settings.limits.key_bytes:
                raise ValueError
            if not name.isprintable() or (self._redactor.active and self._redactor.is_secret(name)):
                raise ValueError
        if len(kept) > self._items:
            raise ValueError
        if len(self.plans) >= TEXTS:
            self.plans.clear()
        id_plan = tuple((ID_COLUMNS.index(name), name) for name in kept if name in ID_COLUMNS)
        plan = self.plans[names] = (kept, _renderer(kept, [name for name in names if name not in kept]), id_plan)
        return plan

    def _site(self, record: LogRecord, key: tuple[Any, ...]) -> Any:
        """Return what is the same in every frame of this call site. Remembered."""
        if record.name.partition(".")[0] == "logsluice":
            raise OwnRecord
        marks = Marks()
        usual = STANDARD_NAMES.get(record.levelno) if type(record.levelno) is int else None
        # A name that is None or empty is told: it must not equal that of a level that nobody named.
        if usual is None or usual != record.levelname:
            raise ValueError
        if type(record.lineno) is not int or not 0 <= record.lineno <= INTEGER:
            raise ValueError
        names = [record.name, record.pathname, record.funcName]
        if any(name is not None and not self._plain_name(name) for name in names):
            raise ValueError
        if not _within(record.name, self._settings.limits.module):
            raise ValueError
        texts = [record.name, record.pathname, str(record.lineno), record.funcName, self._settings.service]
        captured = [None if text is None else clean(text, "", marks) for text in texts]
        if marks:
            raise ValueError  # repaired: not a site to remember
        site = self._written(record.levelno, captured)
        if len(self.sites) >= SITES:
            self.sites.clear()
        self.sites[key] = site
        return site

    def _written(self, level: int, texts: list[str | None]) -> Any:
        """Return what is the same in each frame of a call site: its level, logger, file, line, function, service."""
        return "Z\t" + copy_row([str(self.stream), str(level), *texts]).decode()[:-1]

    def _plain_name(self, name: Any) -> bool:
        """Whether a name is stored as it is, but for escaping: of no subclass, short, without a URL."""
        limit = self._settings.limits.name_bytes
        return type(name) is str and len(name) * 4 <= limit and not ("://" in name and self._redactor.active)

    def name(self, name: Any) -> str:
        """Return a thread's or task's name as it is written. Remembered."""
        known = self.names.get(name)
        if known is not None:
            return known
        if not self._plain_name(name):
            raise ValueError
        if len(self.names) >= TEXTS:
            self.names.clear()
        escaped = self.names[name] = (self.quote or copy_text)(name)
        return escaped

    def remember_thread(self, name: Any) -> str:
        """Return the columns of a thread without a task. Remembered."""
        if len(self.threads) >= TEXTS:
            self.threads.clear()
        self.threads[name] = columns = self._threaded(self.name(name))
        return columns

    def _threaded(self, name: str) -> str:
        return f"\t{name}\t{NULL}\t"

    def remember(self, text: str) -> str:
        """Return a template's column. Remembered."""
        if "://" in text and self._redactor.active:
            raise ValueError
        column = f"\t{copy_text(text)}"
        if len(text) <= TEXT_LENGTH:
            if len(self.templates) >= TEXTS:
                self.templates.clear()
            self.templates[text] = column
        return column

    def new_second(self, created: float) -> tuple[int, str]:
        """Return the second that now is: when it began, in microseconds, and its text."""
        second = int(created * 1e6) // 1_000_000
        self.choose()
        if not self.open or not in_range(second, self._rules.now()):
            raise ValueError  # the whole way replaces and marks it
        known = self.second = (second * 1_000_000, self._moment(utc_second(second)))
        return known

    def _moment(self, text: str) -> str:
        return f"\t{text}."

    def look_around(self) -> None:
        """See which of the libraries that hold ids or tasks the program has imported by now."""
        self.modules = len(sys.modules)
        self.ambient = ambient_possible()
        self.running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)


def _within(text: str | None, most: int | None) -> bool:
    """Whether a text has 1 to `most` characters; any will do when `most` is None."""
    return most is None or 1 <= len(text or "") <= most


def _renderer(names: tuple[str, ...], others: list[str]) -> Render:
    """
    Return what writes these items of a dictionary as JSON: one f-string, half the cost of a loop and a join.

    It raises KeyError if one of them, or of the `others`, which it leaves out, is not there, and for what is not plain.
    """
    lines = [f"    d[{name!r}]" for name in others]
    lines += [f"    v{n} = d[{name!r}]" for n, name in enumerate(names)]
    keys = [encode_basestring(name).replace("{", "{{").replace("}", "}}") for name in names]
    text = ", ".join(f"{key}: \0{n}\0" for n, key in enumerate(keys))
    text = repr(text)
    for n in range(len(names)):
        text = text.replace(f"\\x00{n}\\x00", f"{{s[type(v{n})](v{n})}}")
    space: dict[str, Any] = {"s": SCALARS}
    exec("\n".join(["def render(d):", *lines, f"    return f{text}"]), space)  # noqa: S102 - names are quoted by repr
    render: Render = space["render"]
    return render
