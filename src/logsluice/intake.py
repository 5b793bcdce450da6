"""
The entry: record -> frame -> buffer, on the caller's thread.

`Intake` is a `logging.handlers.QueueHandler` whose `prepare` makes the frame and whose `enqueue` appends it to the
buffer. No lock is held while the program's own code runs (`__str__`, `__repr__`).
"""

from __future__ import annotations

import dataclasses
import logging
import logging.handlers
from typing import TYPE_CHECKING

from logsluice.capture import Captured, Rules, capture, timestamp
from logsluice.quick import CountedError
from logsluice.quicklines import quick_way

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.buffer import Buffer
    from logsluice.config import Settings
    from logsluice.primitives import SimpleQueue
    from logsluice.targets import Target

# Tried one after the other until the frame is within max_frame_bytes: (bytes of any one text, values, bytes of reprs
# and names). The last fits into the least max_frame_bytes (64 KiB) whatever must be escaped. None: by max_frame_bytes.
TIGHTER = ((None, 1000, 8192), (4096, 100, 256), (256, 20, 64))


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
        self._rules = self.rules = rules
        self._encoded = target.encoder(rules, settings)
        self.sanitized = 0  # records changed; a lost update under threads is accepted for this figure
        self.put = tokens.put
        self.no_token = tokens.empty
        self.next_seq = buffer.next_seq
        self.short: Callable[[logging.LogRecord, int], bytes | None] | None = (
            None  # of a typed log: its plain instances
        )
        self.sync: Callable[[], object] | None = None  # makes an append durable before the call returns
        self.quick = quick_way(buffer.stream, target, self._encoded, settings, rules)
        self.quickly = self.quick.made(self)

    def prepare(self, record: logging.LogRecord) -> bytes | None:
        """
        Return the frame of a record, None for one of our own. Each record that gets a frame gets a number.

        Ordinary records go the quick way (quick.py), which gives up rather than guess; others the whole way.
        """
        frame: bytes | None = self.quickly(record, True)
        return frame

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
        self.wake(level)
        batch_size = self._settings.batch_size
        try:
            if batch_size and not buffer.offered() % batch_size:
                self.hurry()
        except RecursionError:
            pass  # the frame is in, and must not be offered again

    def wake(self, level: int) -> None:
        """Wake the listener if a record of this level does. After the append, never before: see Listener._sleep."""
        if level >= self.wake_level:
            if level >= self._flush_level:
                self.urgent = True
                self.buffer.hasten()
            self._put_token()

    def hurry(self) -> None:
        """Have what waits sent now: there is a batch of it."""
        self.urgent = True
        self._put_token()

    def _put_token(self) -> None:
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
        frame = self.whole(record, -self._markers)
        if frame is not None and self.buffer.put(frame, logging.CRITICAL, own=True):
            return True
        self.buffer.own_rows -= 1
        return False

    def whole(self, record: logging.LogRecord, seq: int) -> bytes | None:
        """Return the frame of any record, within `max_frame_bytes`; None for one of our own."""
        name = record.__dict__.get("name")
        if seq >= 0 and issubclass(type(name), str) and str.partition(name, ".")[0] == "logsluice":  # type: ignore[arg-type]
            return None
        seq = seq or self.next_seq()
        if self.short is not None and (made := self.short(record, seq)) is not None:
            return made
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
        return captured, self._encoded(captured, record, rules)


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
