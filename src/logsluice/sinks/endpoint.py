"""One stream's way to an HTTP endpoint: which records make a request, and what becomes of each. http.py posts it."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from logsluice.buffer import first_rows
from logsluice.capture import timestamp
from logsluice.delivery import Failure, Verdict
from logsluice.httpformats import idempotency_key
from logsluice.httpreplies import DETAIL
from logsluice.sinks import Counts, Outcome, SinkError
from logsluice.sinks.buried import bury, letter

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.buffer import Batch
    from logsluice.httpreplies import Reading
    from logsluice.httptarget import HttpTarget
    from logsluice.sinks.http import HttpLink
    from logsluice.targets import Target

    Row = tuple[int, bytes]  # position and frame


@dataclass
class HttpSink:
    """One stream's sink. Rules: sinks/__init__.py. `who` writes: service, environment, version, host, pid."""

    link: HttpLink
    target: HttpTarget
    stream: int
    who: dict[str, Any]
    fallback: Callable[[], Callable[[bytes, Target], bool] | None]
    # By the seq of a row that is not settled: None: taken, though others of its request were not, or by `accepts_any`;
    # else why it is dead.
    known: dict[int, Failure | None] = field(default_factory=dict)
    unnamed: int = 0  # rows of a request that were refused without being named

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.link.connected

    def open(self) -> None:
        """Connect, if that is still to be done."""
        self.link.open()

    def write(self, batch: Batch, counts: Counts) -> Outcome:  # noqa: ARG002 - nobody keeps books
        """Send what fits into one request. Blocks as `HttpLink.post`; not at all where all rows are set aside."""
        part = batch if len(batch.aside) >= batch.rows else self._head(batch)
        rows = self._rows(part)
        if rows:
            body = self._body(rows)
            while len(body) > self._most() and len(rows) > 1:
                part = part.head(rows[len(rows) // 2][0] - part.start)
                rows = self._rows(part)
                body = self._body(rows)
            self._note(part, rows, self._post(rows, body))
        return self._settled(batch, part)

    def _most(self) -> int:
        most = self.link.settings.max_request_bytes
        return most if self.link.most is None else min(most, self.link.most)

    def _head(self, batch: Batch) -> Batch:
        """Return as much of a batch as a request may hold. A frame is longer than what it adds to a body."""
        data = batch.data
        if len(data) > self._most():
            data = data[: data.rfind(b"\n", 0, self._most()) + 1 or data.find(b"\n") + 1]
        if (count := self.link.settings.max_request_records) is not None:
            data = first_rows(data, count)
        return batch if len(data) == len(batch.data) else batch.head(len(data))

    def _rows(self, part: Batch) -> list[Row]:
        """Return what is still to be sent."""
        rows = [(at, frame) for at, frame in part.lines() if at not in part.aside]
        return [row for row in rows if _seq(row[1]) not in self.known] if self.known else rows

    def _body(self, rows: list[Row]) -> bytes:
        try:
            return self.link.format.body(b"".join(frame for _, frame in rows), self.who)
        except Exception as error:  # of a callable of the program's; its text may quote a record
            failure = Failure(f"format= raised {type(error).__name__}", verdict=Verdict.REJECT, status=0)
            raise SinkError(_named(failure, rows)) from None

    def _post(self, rows: list[Row], body: bytes) -> Reading:
        key = idempotency_key(self.stream, b"".join(frame for _, frame in rows))
        try:
            answer = self.link.post(body, key, len(rows))
        except SinkError as error:
            raise SinkError(_named(error.failure, rows)) from None
        reading = self.link.format.read(answer, len(rows))
        if reading.wrong:
            text = f"{self.target.name}: {reading.wrong}"
            raise SinkError(Failure(text, verdict=Verdict.BLOCKED, status=200, hint="see url= and format="))
        return reading

    def _note(self, part: Batch, rows: list[Row], reading: Reading) -> None:
        """Remember what became of each record. Raises SinkError where some are to be sent again."""
        again: Failure | None = None
        found = [None] * len(rows) if reading.items is None else reading.items
        # Not where all is well: it is settled at once, and nothing need be remembered of each row.
        special = reading.items is not None or part.aside or self.known
        for (_, frame), failure in zip(rows, found, strict=True) if special else ():
            if failure is None or failure.verdict is Verdict.REJECT:
                self.known[_seq(frame)] = failure
            else:
                again = again or failure
        if again is not None:
            raise SinkError(again)
        if reading.unnamed:
            self.unnamed += reading.unnamed
            self._say_unnamed(rows, reading)

    def _settled(self, batch: Batch, part: Batch) -> Outcome:
        special = part.aside or self.known
        rows = [(_seq(frame), at, frame) for at, frame in part.lines()] if special else []
        why = [(frame, self.known.get(seq) if seq in self.known else part.aside.get(at)) for seq, at, frame in rows]
        dead = [(frame, found) for frame, found in why if found is not None]
        kept, given_up = self._bury(dead) if dead else (0, Counter[str]())
        if self.unnamed:
            given_up["rejected"] += self.unnamed
            self.unnamed = 0
        for seq, _, _ in rows:
            self.known.pop(seq, None)
        return Outcome(
            part.rows - kept - given_up.total(),
            kept,
            given_up=tuple(given_up.items()),
            end=None if part is batch else part.end,
        )

    # --- what was refused ---------------------------------------------------------------------------------------

    def _bury(self, dead: list[tuple[bytes, Failure]]) -> tuple[int, Counter[str]]:
        """Keep rejected rows, or give them up; return how many were kept, and the others by reason."""
        given_up: Counter[str] = Counter()
        path, link = self.link.settings.dead_letters, self.link
        ours = [(frame, why) for frame, why in dead if not frame.startswith(b"-")]  # a drop marker is no record
        if path is not None:
            at = timestamp(link.now())
            bury(path, [self._letter(at, frame, why) for frame, why in dead])
            return len(ours), given_up
        take = self.fallback()
        for frame, why in ours:
            if take is not None and take(frame, self.target):
                given_up["fallback"] += 1
            else:
                given_up["rejected" if why.verdict in {None, Verdict.REJECT} else "retry_limit"] += 1
        if ours:
            lost = len(ours) - given_up["fallback"]
            fate = f"{lost} are lost (dead_letters=FILE keeps them)" if lost else f"went to {link.settings.fallback!r}"
            link.diagnostics.say(
                "rejected", f"{len(ours)} records were refused, {fate}: {link.diagnostics.scrub(ours[0][1].message)}"
            )
        return 0, +given_up

    def _letter(self, at: str, frame: bytes, why: Failure) -> dict[str, Any]:
        found = letter(at, self.stream, frame, why)
        scrub = self.link.diagnostics.scrub
        return {**found, "reason": scrub(found["reason"]), "answer": found["answer"] and scrub(found["answer"])}

    def _say_unnamed(self, rows: list[Row], reading: Reading) -> None:
        """Say of records that were refused, and of which nobody said which they are."""
        link, count = self.link, reading.unnamed
        text = f"{self.target.name} refused {count} of {len(rows)} records and does not say which: they are lost"
        link.diagnostics.say("unnamed", text)
        if link.settings.dead_letters is not None:
            seqs = [_seq(frame) for _, frame in rows]
            found = {
                "at": timestamp(link.now()), "stream": str(self.stream), "seq": None, "reason": text, "status": 200,
                "answer": link.diagnostics.scrub(reading.said)[:DETAIL] or None, "line": None,
                "lowest": min(seqs), "highest": max(seqs),
            }  # fmt: skip
            with suppress(SinkError):  # a note, no record: not worth sending the others again
                bury(link.settings.dead_letters, [found])

    def accepts_any(self, rows: list[bytes]) -> bool:
        """
        Send frames one by one until one is taken.

        An endpoint cannot be asked without storing: what it takes is not sent again.
        """
        seqs = [_seq(frame) for frame in rows]
        if any(seq in self.known and self.known[seq] is None for seq in seqs):
            return True  # of those it had taken one before
        for frame in rows:
            row = [(0, frame)]
            try:
                reading = self._post(row, self._body(row))
            except SinkError as error:
                if error.failure.verdict is Verdict.REJECT:
                    continue
                raise
            if not reading.unnamed and (reading.items is None or reading.items[0] is None):
                self.known[_seq(frame)] = None
                return True
        return False

    # --- the end ------------------------------------------------------------------------------------------------

    def idle(self, seconds: float) -> None:
        """Close the connection after `idle_close` seconds."""
        if seconds >= self.link.settings.idle_close:
            self.link.close()

    def retire(self) -> None:
        """Nothing to do: no books say anything of the stream."""

    def forked(self) -> None:
        """Leave the connection as it is: the socket is the parent's as well."""

    def close(self) -> None:
        """Close the connection."""
        self.link.close()


def _named(failure: Failure, rows: list[Row]) -> Failure:
    """Return a failure that names its row, where the request had only one."""
    if failure.verdict is not Verdict.REJECT or len(rows) > 1:
        return failure
    return replace(failure, line=1, sent_from=rows[0][0])


def _seq(frame: bytes) -> int:
    """Return the number of a record, 0 (nobody's) of a frame that is damaged."""
    try:
        return int(frame.partition(b"\t")[0])
    except ValueError:
        return 0
