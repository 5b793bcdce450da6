"""
Filters that let fewer records through, and count what they keep back: samples, rate limits, duplicates.

    "filters": {
        "sample": {"()": "logsluice.filters.SampleFilter", "rates": {"DEBUG": 0.01, "INFO": 0.1}},
        "limit": {"()": "logsluice.filters.RateLimitFilter", "per_second": 10},
        "fold": {"()": "logsluice.filters.DuplicateFilter", "seconds": 60},
    }

Plain `logging.Filter`s, for loggers and handlers of any kind. What they promise:

F1  A record is never changed, and none is replaced: other handlers see it as the program made it.
F2  A record is judged once: a filter that several handlers share gives each of them the same answer.
F3  A record that cannot be judged (no key that is text, a message that cannot be made) passes. Nothing raises.
F4  What is kept back is counted by reason and level, exactly: given = passed + suppressed. It was never offered to the
    handler, so the law in accounting.py does not know it; `stats().suppressed_by` shows it beside.
F5  RateLimitFilter and DuplicateFilter say it as well: a record "12 more were suppressed: ..." of the same logger,
    level and call site goes where the suppressed ones would have gone. No thread and no timer: it is written by the
    first record through the filter after the window is over, by the flush and close of a handler of ours, and at exit.
F6  No lock is taken but those of the handlers that F5 writes to, and memory is bounded: each cache is filled by single
    operations of C, and may be re-entered by a signal handler at any place.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import logging
import math
import os
import random
import time
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from logsluice import lifecycle
from logsluice.buffer import Tally
from logsluice.capture import safe_str, timestamp
from logsluice.checks import level_from, plain, refuse_all
from logsluice.errors import ConfigError
from logsluice.keys import key_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MARK = "suppressed_by"  # an extra of our own records alone: no filter of ours keeps one back
SITES = 4096  # keys remembered by a filter; a large program has hundreds of call sites. Beyond, the oldest one goes
VERDICTS = 256  # records whose answer is remembered: those that are inside a logging call now, one or two a thread
LEVELS = 64  # levels counted apart; a program has ten. Those beyond are counted as NOTSET
TEXT_LENGTH = 256  # characters of a key that is kept as text, and of the message that a summary quotes
SAY_EVERY = 1.0  # seconds from the first suppressed record of a key to its summary, at the least
HASHES = 2**32  # values of the four bytes of SHA-256 that decide on a sample
STANDARD_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)

_living: weakref.WeakSet[_Filter] = weakref.WeakSet()
_registered = False


class _Filter(logging.Filter):
    """What the filters share: options for all of them, one answer for each record, figures."""

    reason = ""

    def __init__(self, logger: str | None, keep_level: int | str | None, unknown: dict[str, Any]) -> None:
        refuse_all(unknown, type(self))
        if logger is not None and (not isinstance(logger, str) or not logger):
            raise ConfigError(f"logger must be the name of a logger, for example 'urllib3', or None, got {logger!r}")
        super().__init__(logger or "")
        self._keep_level = math.inf if keep_level is None else level_from("keep_level", keep_level)
        self._shown: dict[str, Any] = {"logger": logger, "keep_level": keep_level}
        self._clock: Callable[[], float] = time.monotonic
        self._renew()
        _register(self)

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self._shown.items() if value is not None)
        return f"{type(self).__name__}({', '.join(shown)})"

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record passes. Any thread; never raises."""
        try:
            # Here and not in a fork hook: uWSGI forks without Python's hooks.
            if record.process != self._pid and os.getpid() != self._pid:
                self._renew()
            if self._due <= self._clock():
                self.report()
            if self.nlen and not super().filter(record):
                return True  # of another logger
            level = record.levelno
            if level >= self._keep_level or getattr(record, MARK, None) is not None:
                return True
            # One that two handlers share must not take the second look for a second record: a DuplicateFilter would
            # give each record to the console and none to the table. Not by its number alone: that of a dead record is
            # used again.
            number = id(record)
            known = self._verdicts.get(number)
            if known is not None and known[0]() is record:
                return known[1]
            reference = weakref.ref(record)
            passes = self._judge(record, level)
            if not passes:
                self._count(level)
            if len(self._verdicts) >= VERDICTS:
                self._verdicts.clear()
            self._verdicts[number] = (reference, passes)
        except Exception:
            return True
        return passes

    @property
    def suppressed_by(self) -> dict[tuple[str, int], int]:
        """How many records were kept back in this process, by (reason, level)."""
        if self._pid != os.getpid():
            return {}
        return {(self.reason, level): tally.value for level, tally in self._suppressed.copy().items()}

    def report(self, *, everything: bool = False) -> None:
        """Write the summaries that are due, or all; only filters that write some have any."""

    def _renew(self) -> None:
        """Forget what a fork inherited: the parent counts and says it."""
        self._suppressed: dict[int, Tally] = {}
        self._verdicts: dict[int, tuple[weakref.ref[logging.LogRecord], bool]] = {}
        self._due = math.inf  # monotonic: when the next summary is
        self._pid = os.getpid()

    def _count(self, level: int) -> None:
        tally = self._suppressed.get(level)
        if tally is None:
            tally = self._suppressed.setdefault(level if len(self._suppressed) < LEVELS else logging.NOTSET, Tally())
        tally.add()

    def _judge(self, record: logging.LogRecord, level: int) -> bool:
        raise NotImplementedError


class SampleFilter(_Filter):
    """
    It keeps a share of the records of each level, and of a trace all or none.

    `rates` is {level: share from 0 to 1}. A level that is not named is kept whole, so WARNING and above are unless you
    say otherwise; one between two standard levels has the rate of the lower, one below DEBUG that of DEBUG.
    `key` names what is kept together, in the words of `shard_by`: a trace by default, as an extra, a bound value or by
    OpenTelemetry. The choice is made by the key alone, so it is the same in all processes, and of two rates the higher
    one keeps all keys that the lower one keeps. A record without the key is kept by chance, and so is each with
    `key=None`. `logger` names the logger whose records, and those of the loggers below it, are judged; None: all.
    """

    reason = "sample"

    def __init__(
        self,
        *,
        rates: Mapping[str | int, float] | None = None,
        key: str | None = "trace_id",
        logger: str | None = None,
        keep_level: int | str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(logger, keep_level, unknown)
        given = _rates(plain(rates))
        self._levels = sorted({*STANDARD_LEVELS, *given})
        self._shares = [given.get(level, 1.0) for level in self._levels]
        self._key = None if key is None else _key(key)
        self._shown = {"rates": plain(rates), "key": key, **self._shown}

    def _judge(self, record: logging.LogRecord, level: int) -> bool:
        share = self._shares[max(0, bisect_right(self._levels, level) - 1)]
        if share >= 1:
            return True
        key = None if self._key is None else self._key(record)
        if key is None:
            return random.random() < share
        # SHA-256: every language has it, so that services of several can keep the same traces.
        digest = hashlib.sha256(str.encode(str(key), "utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:4], "big") < share * HASHES


class _Window:
    """A time in which so many records of one key pass."""

    __slots__ = ("count", "end", "following")

    def __init__(self, end: float) -> None:
        self.end = end
        self.count = itertools.count()  # `next` of it numbers the records: exact in any number of threads
        self.following: dict[int, _Window] = {}  # `setdefault` elects one: two would let twice as many pass


class _Site:
    """What is known of a key: its window, and what its next summary will say."""

    __slots__ = ("count", "due", "facts", "level", "said", "since", "window")

    def __init__(self, window: _Window) -> None:
        self.window = window
        self.count = Tally()  # suppressed since the site was made
        self.said = 0  # of these, in summaries
        self.facts: dict[str, Any] = {}
        self.level = logging.NOTSET
        self.since: float | None = None  # when the first of the next summary was made
        self.due = math.inf  # monotonic


class _LimitFilter(_Filter):
    """So many records of one key in each window; a window opens with a record."""

    def __init__(
        self, seconds: float, burst: int, logger: str | None, keep_level: int | str | None, unknown: dict[str, Any]
    ) -> None:
        super().__init__(logger, keep_level, unknown)
        self._seconds = seconds
        self._burst = burst

    def _renew(self) -> None:
        super()._renew()
        self._sites: OrderedDict[Any, _Site] = OrderedDict()  # that whose window is the oldest stands first
        self._unsaid: dict[_Site, None] = {}  # those with something to say
        self._turn: list[None] = [None]  # who pops it writes summaries

    def _key_of(self, record: logging.LogRecord) -> Any:
        raise NotImplementedError

    def _judge(self, record: logging.LogRecord, level: int) -> bool:
        key = self._key_of(record)
        now = self._clock()
        site = self._sites.get(key)
        if site is None:
            site = self._sites.setdefault(key, _Site(_Window(now + self._seconds)))
            if len(self._sites) > SITES:
                self._forget_one()
        window = site.window
        while now >= window.end:
            window = site.window = window.following.setdefault(0, _Window(now + self._seconds))
            try:
                self._sites.move_to_end(key)
            except KeyError:
                pass  # forgotten meanwhile
        if next(window.count) < self._burst:
            return True
        self._suppress(site, key, record, level, window)
        return False

    def _forget_one(self) -> None:
        """Let the key go whose window is the oldest; what it has to say is said now, for nobody would ask again."""
        try:
            _, site = self._sites.popitem(last=False)
        except KeyError:
            return
        if site in self._unsaid:
            site.due = -math.inf
            self._due = -math.inf

    def _suppress(self, site: _Site, key: Any, record: logging.LogRecord, level: int, window: _Window) -> None:
        if not site.facts:
            site.facts = self._facts(key, record)
        site.level = max(site.level, level)
        if site.since is None:
            site.since = record.created
        if site not in self._unsaid:
            site.due = max(window.end, window.end - self._seconds + SAY_EVERY)
        site.count.add()
        self._unsaid[site] = None  # after the count: a summary that is being written meanwhile has it, or the next one
        if site.due < self._due:  # noqa: PLR1730 - `min` would write a value back that is old by then
            self._due = site.due

    def _facts(self, key: Any, record: logging.LogRecord) -> dict[str, Any]:  # noqa: ARG002 - for those below
        return {
            "name": record.name, "path": record.pathname, "line": record.lineno, "func": record.funcName,
            "text": safe_str(_event(record))[:TEXT_LENGTH], "extras": {},
        }  # fmt: skip

    def report(self, *, everything: bool = False) -> None:
        """
        Write the summaries of windows that are over, or of all that were suppressed in.

        Any thread. Blocks as the handlers do that it writes to. Never raises.
        """
        # Not on a listener's thread: what is logged there is never stored.
        if self._pid != os.getpid() or not self._unsaid or lifecycle.on_own_thread():
            return
        try:
            turn = self._turn.pop()
        except IndexError:
            return  # another thread is at it, or a signal handler interrupted it: `said` has one writer
        try:
            now = self._clock()
            self._due = math.inf  # first: who suppresses meanwhile sets it again
            for site in self._unsaid.copy():
                if everything or site.due <= now:
                    self._say(site)
                elif site.due < self._due:
                    self._due = site.due
        finally:
            self._turn.append(turn)

    def _say(self, site: _Site) -> None:
        """Write one summary. Never raises."""
        self._unsaid.pop(site, None)  # before the count is read: who adds to it afterwards puts the site back
        count = site.count.value - site.said
        if count <= 0:
            return
        site.said += count
        since, site.since = site.since, None
        facts = site.facts
        try:
            summary = logging.getLogRecordFactory()(
                facts["name"], site.level, facts["path"], facts["line"], "%d more were suppressed: %s",
                (count, facts["text"]), None, facts["func"],
            )  # fmt: skip
            extras = {"suppressed": count, MARK: self.reason, **facts["extras"]}
            try:
                extras["suppressed_since"] = timestamp(since)  # type: ignore[arg-type]
            except Exception:
                pass  # a record whose `created` is no time
            summary.__dict__.update(extras)
            _deliver(self, summary)
        except Exception:
            pass  # a handler or a record factory that raises; the figures hold it


class RateLimitFilter(_LimitFilter):
    """
    It lets at most `per_second` records a second of each call site pass, and says how many more there were.

    A window opens with a record and lasts `burst / per_second` seconds; `burst` records pass in it. `burst` is
    `per_second` unless you say otherwise, which makes windows of a second: `per_second=0.1, burst=5` lets 5 records
    pass in each 50 s. Two windows may meet, so for a moment twice `burst` are possible. `key` is "call_site" (file and
    line), or names another thing to be limited by, in the words of `shard_by`: "logger", "user_id", "extra.tenant"; a
    record without it is limited by its call site. From `keep_level` on records pass and are not counted; None: none do.
    `logger` names the logger whose records, and those of the loggers below it, are judged; None: all.
    """

    reason = "rate_limit"

    def __init__(
        self,
        *,
        per_second: float = 10,
        burst: int | None = None,
        key: str = "call_site",
        logger: str | None = None,
        keep_level: int | str | None = None,
        **unknown: Any,
    ) -> None:
        # A millionth is one record in 12 days, and the clock does not know shorter times than a millionth of a second.
        _in_range("per_second", per_second, 1e-6, 1e6, "records a second")
        if burst is not None and (isinstance(burst, bool) or not isinstance(burst, int) or burst < 1):
            raise ConfigError(f"burst must be a whole number of records of at least 1, or None, got {burst!r}")
        records = max(1, int(per_second)) if burst is None else burst
        super().__init__(records / per_second, records, logger, keep_level, unknown)
        self._key = None if key in ("call_site", "call site") else _key(key, "'call_site', ")
        self._shown = {"per_second": per_second, "burst": records, "key": key, **self._shown}

    def _key_of(self, record: logging.LogRecord) -> Any:
        key = None if self._key is None else self._key(record)
        return (record.pathname, record.lineno) if key is None else _short(str(key))

    def _facts(self, key: Any, record: logging.LogRecord) -> dict[str, Any]:
        facts = super()._facts(key, record)
        if isinstance(key, str):
            facts["extras"] = {"suppressed_key": key}
        return facts


class DuplicateFilter(_LimitFilter):
    """
    It lets the first of equal records pass, and says after `seconds` how many more there were.

    Equal are records of one logger and level with the same text, or with `key="template"` the same text before its
    arguments are put in, and the same type of exception. Extras are not compared: records that differ in nothing else
    are folded. From `keep_level` on records pass and are not counted; None: none do. `logger` names the logger whose
    records, and those of the loggers below it, are judged; None: all.
    """

    reason = "duplicate"

    def __init__(
        self,
        *,
        seconds: float = 60,
        key: str = "text",
        logger: str | None = None,
        keep_level: int | str | None = None,
        **unknown: Any,
    ) -> None:
        _in_range("seconds", seconds, 1e-3, 1e6, "seconds")  # shorter is no window, longer no program
        if key not in ("text", "template"):
            raise ConfigError(f"key must be 'text' or 'template', got {key!r}")
        super().__init__(seconds, 1, logger, keep_level, unknown)
        self._text = _text if key == "text" else _template
        self._shown = {"seconds": seconds, "key": key, **self._shown}

    def _key_of(self, record: logging.LogRecord) -> Any:
        info = record.exc_info
        error = info[0].__qualname__ if isinstance(info, tuple) and info[0] is not None else None
        return record.name, record.levelno, error, _short(self._text(record))

    def _facts(self, key: Any, record: logging.LogRecord) -> dict[str, Any]:
        return {**super()._facts(key, record), "text": self._text(record)[:TEXT_LENGTH]}


# --- figures --------------------------------------------------------------------------------------------------------


def figures() -> list[tuple[str, dict[tuple[str, int], int]]]:
    """Return (filter, {(reason, level): records kept back}) of all filters of this process that are alive."""
    return [(repr(one), one.suppressed_by) for one in _alive()]


def suppressed_by(filters: Iterable[Any]) -> dict[tuple[str, int], int]:
    """Return what those of ours among these filters kept back, added up."""
    total: dict[tuple[str, int], int] = {}
    for one in filters:
        if isinstance(one, _Filter):
            for key, count in one.suppressed_by.items():
                total[key] = total.get(key, 0) + count
    return total


def report(filters: Iterable[Any], *, everything: bool = False) -> None:
    """Have those of ours among these filters write their summaries. Never raises."""
    for one in list(filters):
        if isinstance(one, _Filter):
            try:
                one.report(everything=everything)
            except Exception:
                pass  # no stack left, or a broken clock; the figures hold it


def _alive() -> list[_Filter]:
    while True:
        try:
            return list(_living)
        except RuntimeError:
            pass  # another thread made one meanwhile


def _register(one: _Filter) -> None:
    global _registered
    if not _registered:
        _registered = True
        # Later than logging's own, so it runs before: the handlers are still open.
        atexit.register(lambda: report(_alive(), everything=True))
    _living.add(one)


# --- where a summary goes -------------------------------------------------------------------------------------------


def _deliver(one: _Filter, summary: logging.LogRecord) -> None:
    """Hand a summary to those that its records were kept from, and to nobody else: the others have seen them all."""
    manager = logging.root.manager
    found = manager.loggerDict.get(summary.name)  # `getLogger` would take logging's lock
    current: logging.Logger | None = found if isinstance(found, logging.Logger) else logging.root
    assert current is not None
    if _among(one, current.filters):
        current.handle(summary)
        return
    reached = False
    while current is not None:
        for handler in current.handlers[:]:
            if _among(one, handler.filters):
                reached = True
                if summary.levelno >= handler.level:
                    handler.handle(summary)
        current = current.parent if current.propagate else None
    if not reached:  # a handler behind a queue: of our own we know those, too
        for handler in lifecycle.handlers():
            if _among(one, handler.filters):
                handler.handle(summary)


def _among(one: _Filter, filters: Iterable[Any]) -> bool:
    return any(other is one for other in filters)


# --- texts and options ----------------------------------------------------------------------------------------------


def _event(record: logging.LogRecord) -> Any:
    """Return the message before its arguments are put in; of structlog's event dicts the event."""
    msg: Any = record.msg
    return msg["event"] if isinstance(msg, dict) and "event" in msg else msg


def _template(record: logging.LogRecord) -> str:
    return str(_event(record))


def _text(record: logging.LogRecord) -> str:
    return _template(record) if isinstance(record.msg, dict) else record.getMessage()


def _short(text: str) -> Any:
    """Return a key that is small: of a long text its length and hash. Thousands of them are kept."""
    text = str.__str__(text)  # of a subclass the plain text: its own `__hash__` could do anything
    return text if len(text) <= TEXT_LENGTH else (len(text), hash(text))


def _key(given: Any, more: str = "") -> Callable[[logging.LogRecord], Any]:
    if not isinstance(given, str):
        raise ConfigError(f"key must be {more}a source, for example 'trace_id' or 'extra.session_id', got {given!r}")
    return key_from("key", given)


def _rates(given: Any) -> dict[int, float]:
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"rates must be a mapping of level to share, for example {{'DEBUG': 0.01}}, got {given!r}")
    rates: dict[int, float] = {}
    for level, share in given.items():
        _in_range(f"rates[{level!r}]", share, 0, 1, "a share")
        rates[level_from("a level in rates", level)] = share
    return rates


def _in_range(name: str, value: Any, least: float, most: float, kind: str) -> None:
    # `not <=` refuses NaN too.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ConfigError(f"{name} must be {kind} from {least:,g} to {most:,g}, got {value!r}")
