"""
The listener: one thread a handler and process, which takes batches and sees them stored.

`Listener` is a `logging.handlers.QueueListener` whose queue carries only wake-up tokens: the frames are in the buffers.
The loop is one sentence: wait until there is something worth sending, then sweep up what waits, longest waiting first.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from logsluice import lifecycle
from logsluice.accounting import Ledger
from logsluice.adoption import LOOK_EVERY, OrphanBuffer
from logsluice.buffer import ALWAYS, Family, in_turn
from logsluice.delivery import Backoff, Breaker, Failure, Verdict, decide
from logsluice.isolation import is_storm, set_aside
from logsluice.journal import UnreadableError
from logsluice.journal_buffer import JournalBuffer
from logsluice.keeper import Keeper
from logsluice.notices import Notices
from logsluice.primitives import Done, SimpleQueue, get_ident, start_thread
from logsluice.sinks import Counts, Outcome, SinkError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from logsluice.adoption import Adopter
    from logsluice.base import SinkMaker
    from logsluice.buffer import Batch
    from logsluice.config import Settings
    from logsluice.diagnostics import Diagnostics
    from logsluice.intake import Intake
    from logsluice.routes import Route
    from logsluice.targets import Target
    from logsluice.types import LogType

GRACE = 0.5  # seconds after a deadline: the listener itself ends there, and should be heard saying what it left
LOOK = 10.0  # seconds at most between two looks at the clock while records wait, so that STUCK is seen in time


class Listener(logging.handlers.QueueListener):
    """The dedicated thread and what it knows."""

    def __init__(self, tokens: SimpleQueue[None], settings: Settings, diagnostics: Diagnostics) -> None:
        super().__init__(tokens)  # a SimpleQueue: its put is re-entrant, a signal handler may log
        self.settings = settings
        self.diagnostics = diagnostics
        self.ledger = Ledger()
        # By stream: a module that is loaded again declares its typed logs again. Any thread, single operations only.
        self._routes: dict[int, Route] = {}
        # Typed logs: what was made for each, and what takes their records in once all is ready. Any thread.
        self.typed_routes: dict[LogType, Route] = {}
        self.typed_ways: dict[LogType, Callable[..., bool]] = {}
        self.keeper = Keeper(diagnostics)  # does nothing without a journal
        self.adopter: Adopter | None = None  # with a journal: finds what dead processes left in its folder
        self.make_route: Callable[[OrphanBuffer], Route] | None = None  # for what it finds
        self.adopted: list[Route] = []  # each served by its own turn, one batch a sweep
        self.adoptions: dict[str, dict[str, Any]] = {}  # what became of those that are done, by stream
        self.fallback: Callable[[bytes, Target], bool] | None = None  # for frames that are left in memory at the end
        self._look_at = 0.0  # monotonic: when to look for orphans again
        self.done = Done()  # set when the thread has ended; not used by logging calls
        self.tokens = tokens
        self.family = Family()  # the buffers of its routes share one limit
        self.make_sink: SinkMaker | None = None  # for its routes
        self._urgent = False  # set by any thread, cleared by the listener: do not linger
        self._deadline: float | None = None  # monotonic; set by `finish`: be done by then
        self._told_lost = False  # set by whoever waited in vain for the end
        self._last_lap = False  # listener only: `finish` was seen
        self._probe = False  # set by any thread, cleared by the listener: attempt now
        self.thread_id: int | None = None  # of the thread, once it runs
        self._starter: dict[str, object] = {}  # setdefault elects the one that starts the thread
        self._runner: dict[str, object] = {}  # setdefault elects the one that runs: the thread, or a closing caller
        self._waiters: deque[tuple[dict[int, int], Callable[[], None]]] = deque()  # flush: (positions, call)
        # Around connecting, for all routes; each route has its own for its table.
        self.breaker = self.new_breaker()
        self._last_sweep = time.monotonic()
        self._idle_since = time.monotonic()
        self.notices = Notices(settings, diagnostics)

    def add(self, route: Route) -> None:
        """Serve a route of this process; its figures go into the handler's book. Any thread, any number of times."""
        route.ledger = self.ledger
        self._routes[route.buffer.stream] = route

    def drop(self, route: Route) -> None:
        """Let go of a route that no record went to."""
        if isinstance(route.buffer, JournalBuffer):
            self.keeper.buffers.remove(route.buffer)
        route.own.finish()  # of a journal: its files

    @property
    def routes(self) -> list[Route]:
        """The routes of this process, in the order in which they were opened."""
        return list(self._routes.values())

    @property
    def intakes(self) -> list[Intake]:
        """The entries of these routes."""
        return [route.intake for route in self.routes if route.intake is not None]

    def new_breaker(self) -> Breaker:
        """Return a breaker with the handler's back-off."""
        return Breaker(Backoff(self.settings.backoff_initial, self.settings.backoff_max))

    # --- any thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, once. Raises RuntimeError if the interpreter will not; a later call tries again."""
        mine = object()
        try:
            if self._starter.setdefault("", mine) is mine and not self._runner:
                start_thread(self._monitor, f"logsluice-{self.diagnostics.name}")
        except BaseException:  # a Ctrl-C, too: the thread may run all the same, and then says so itself
            if self._starter.get("") is mine:
                del self._starter[""]
            raise

    @property
    def started(self) -> bool:
        """Whether the thread was started in this process."""
        return bool(self._starter or self._runner)

    def hurry(self) -> None:
        """Wake the listener: something is worth sending now. Takes no lock."""
        self._urgent = True
        if self.tokens.empty():
            self.tokens.put(None)

    def probe(self) -> None:
        """Try once more now, whatever the back-off said."""
        self._probe = True
        self.hurry()

    def forget(self, call: Callable[[], None]) -> None:
        """Take back what `when_settled` was asked to call; waiters that gave up must not pile up in an outage."""
        for entry in list(self._waiters):
            if entry[1] is call:
                try:
                    self._waiters.remove(entry)
                except (ValueError, IndexError):
                    pass  # the listener has it in hand, and will call into nothing

    def finish(self, deadline: float) -> None:
        """Tell the listener to drain until this monotonic time and end. Does not wait."""
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        self.hurry()

    def stop(self) -> None:
        """Drain and end, within `shutdown_timeout` seconds; what QueueListener's `stop` promises."""
        deadline = time.monotonic() + self.settings.shutdown_timeout
        self.finish(deadline)
        self.wait(deadline)

    def wait(self, deadline: float) -> None:
        """Wait for the end until this monotonic time and a little longer; say what is lost if it does not come."""
        if not self.started:
            self._monitor()  # here: no thread could be started, and none is started at exit
        if not self.done.wait(deadline + GRACE - time.monotonic()) and not self._told_lost:
            self._told_lost = True
            waiting = sum(route.buffer.rows_waiting() for route in self.routes)
            journal = self.settings.journal
            fate = "are lost" if journal is None else f"are left in the journal {journal}"
            self.diagnostics.say(
                "lost", f"{waiting} records were not stored within shutdown_timeout and {fate}", every=0
            )

    def deadline(self) -> float | None:
        """Return the monotonic time at which all waiting must end, None while there is no such time."""
        return self._deadline

    def when_settled(self, call: Callable[[], None]) -> bool:
        """Call `call` once all that is in the buffers now is settled. If it is already, return True and do not call."""
        goal = self._tails()
        if self._reached(goal):
            return True
        self._waiters.append((goal, call))
        self.hurry()
        return self._reached(goal)

    def _tails(self) -> dict[int, int]:
        """Return where each route's buffer ends now, by its stream."""
        return {stream: route.buffer.tail() for stream, route in list(self._routes.items())}

    def _reached(self, goal: dict[int, int]) -> bool:
        return all(self._routes[stream].buffer.settled >= tail for stream, tail in goal.items())

    # --- the thread ---------------------------------------------------------------------------------------------

    def _monitor(self) -> None:
        """Deliver what comes until told to finish and nothing waits, or its time is up. Never raises."""
        mine, over = object(), False
        if self._runner.setdefault("", mine) is not mine:
            return  # its starter was interrupted, and somebody started another
        me = self.thread_id = get_ident()
        lifecycle.OWN_THREADS.add(me)
        try:
            while not over:
                try:
                    over = self._serve()
                except BaseException:
                    pass  # thrown into the thread while it answered to another: what waits is still there
        finally:
            try:
                if over:
                    self.drain_here()
            finally:
                lifecycle.OWN_THREADS.discard(me)
                if over:
                    self.done.set()
                else:  # thrown between two lines of the loop: the next full segment, flush or close starts another
                    self._starter.clear()
                    self._runner.clear()

    def _look_for_orphans(self) -> None:
        """Take over what dead processes left in the journal's folder."""
        now = time.monotonic()
        if self.adopter is None or self.make_route is None or now < self._look_at:
            return
        if self._deadline is not None and self._look_at:
            return  # but once in any case: a script that lives for a moment must not leave orphans to the next for ever
        self._look_at = now + LOOK_EVERY
        for orphan in self.adopter.look({route.name for route in self.adopted}):
            self.adopted.append(self.make_route(orphan))

    def _serve(self) -> bool:
        """Deliver until there is a reason to end (True), or something went wrong that nobody foresaw (False)."""
        try:
            while not self._finished():
                self._look_for_orphans()
                self._wait()
                self._sweep()
            return True
        except BaseException as error:  # a SystemExit thrown into this thread is no reason to end it either
            # A mistake of ours must not end the thread: the records would wait for ever, unsaid.
            self.diagnostics.say("internal", f"internal error, delivery goes on: {type(error).__name__}: {error}")
            self._fail_all(Failure(f"internal error: {type(error).__name__}"))
            return False

    def drain_here(self) -> None:
        """Settle the end on the calling thread: count what is left as abandoned, close the sinks."""
        self.keeper.stop(GRACE)
        for route in self.adopted:
            assert isinstance(route.buffer, OrphanBuffer)
            route.buffer.give_back()
        for route in self.routes:
            self._abandon(route, "exit")
        for route in self.routes:
            route.sink.close()
        self._notify()

    def _finished(self) -> bool:
        if self._deadline is None:
            return False
        now = time.monotonic()
        if now >= self._deadline:
            return True
        # Orphans have what is left of the time, as long as they can be sent.
        sendable = [route for route in self.adopted if self.breaker.allows(now) and route.breaker.allows(now)]
        return not any(route.waits for route in [*self.routes, *sendable])

    def _wait(self) -> None:
        """Return when a sweep is due: a token said so, `linger` is over, a breaker lets a probe through."""
        while not self._hurried():
            now = time.monotonic()
            due, other = self._due(now), self._adopted_due(now)
            if (due is not None and due <= now) or (other is not None and other <= now):
                return
            if due is None:
                if self._deadline is not None:
                    return
                self._sleep(other)
                continue
            self.notices.stuck(self.routes, list(self.ledger.recent_failed), now)
            limits = [limit for limit in (self._deadline, other) if limit is not None]
            self._get_token(max(0.0, min(due, now + LOOK, *limits) - now))

    def _hurried(self) -> bool:
        urgent = self._urgent
        if urgent:
            self._urgent = False
        for intake in self.intakes:
            if intake.urgent:
                intake.urgent = False
                urgent = True
        if self._probe or (self._deadline is not None and not self._last_lap):
            self._last_lap = self._deadline is not None
            self._probe, urgent = False, True
            for breaker in (self.breaker, *(route.breaker for route in self.routes)):
                breaker.backoff.reset()
                breaker.open_until = 0.0  # the end is near: one attempt at once, whatever the back-off said
        return urgent or (self._deadline is not None and time.monotonic() >= self._deadline)

    def _due(self, now: float) -> float | None:
        """Return when the next sweep is worth making, None while nothing waits."""
        waiting = [route for route in self.routes if route.waits]
        if not waiting:
            return None
        if self._deadline is not None:
            return max(now, min(self._opens(route) for route in waiting))
        for route in waiting:
            route.look(now)
        linger = self._last_sweep + self.settings.linger
        # What was tried before waits for no company: else a flush after one failed attempt would last for `linger`.
        return min(
            self._opens(route) if route.retries or route.batch is not None else max(linger, self._opens(route))
            for route in waiting
        )

    def _adopted_due(self, now: float) -> float | None:
        """Return when an orphan may be served, or looked for; None without a journal."""
        if self.adopter is None:
            return None
        opens = [max(now, self._opens(route)) for route in self.adopted]
        return min(opens + [max(now, self._look_at)] * (self._deadline is None), default=None)

    def _opens(self, route: Route) -> float:
        return max(route.breaker.open_until, self.breaker.open_until)

    def _sleep(self, until: float | None) -> None:
        """
        Wait for the first append, at most until a monotonic time.

        Idle costs nothing: no thread wakes up for a program that does not log, but for a look for orphans.
        """
        for intake in self.intakes:
            intake.wake_level = ALWAYS
        # Looked at after the level was lowered: an append before that is seen here, one after it sends a token.
        if not any(route.waits for route in self.routes) and self._deadline is None:
            now = time.monotonic()
            has_connection = any(route.sink.connected for route in self.routes)
            limits = [self._idle_since + self.settings.idle_close] if has_connection else []
            limits += [until] if until is not None else []
            self.keeper.idle = True
            if not self._get_token(max(0.0, min(limits) - now) if limits else None):
                for route in self.routes:
                    route.sink.idle(time.monotonic() - self._idle_since)
            self.keeper.idle = False
            self.keeper.hurry()
        for intake in self.intakes:
            intake.wake_level = self.settings.flush_level
        for route in self.routes:
            route.buffer.relieve()
        now = time.monotonic()
        self._last_sweep = now  # the first record after a silence waits for company, too
        for route in self.routes:
            route.storing_since = now

    def _get_token(self, timeout: float | None) -> bool:
        """Wait for a token and take all there are; False if the time was over first."""
        try:
            self.tokens.get(timeout=timeout)
        except queue.Empty:
            return False
        try:
            while True:
                self.tokens.get_nowait()
        except queue.Empty:
            return True

    # --- a sweep ------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Send what waits now, the longest waiting route first; what comes meanwhile waits for the next sweep."""
        now = self._last_sweep = time.monotonic()
        for intake in self.intakes:
            intake.wake_level = self.settings.flush_level  # of a route opened since `_sleep`: it wakes us for all
        for route in self.routes:
            route.look(now)
            if isinstance(route.buffer, JournalBuffer):
                self._care_for(route.buffer)  # first: to read what somebody truncated would be SIGBUS
        goal = self._tails()
        while (ready := self._next_route(goal)) is not None:
            self._deliver(ready)
        for route in list(self.adopted):
            self._serve_orphan(route)
        for route in self.routes:
            route.buffer.relieve()
            self.notices.drops(route)
        self._notify()

    def _care_for(self, buffer: JournalBuffer) -> None:
        """See whether somebody harmed the journal's files; do the chores where the keeper's thread could not start."""
        try:
            buffer.watch()
            buffer.roll_if_stale()
        except OSError as error:
            self.diagnostics.say("journal-watch", f"the journal cannot be looked after: {error.strerror}")
        if not self.keeper.started:
            buffer.tend()

    def _serve_orphan(self, route: Route) -> None:
        """Send one batch of an orphan: who left a million records must not keep others waiting."""
        now = time.monotonic()
        in_time = self._deadline is None or now < self._deadline
        if in_time and self.breaker.allows(now) and route.breaker.allows(now):
            if route.waits:
                self._deliver(route)
            if not route.waits:
                self._retire(route)

    def _retire(self, route: Route) -> None:
        buffer = route.buffer
        assert isinstance(buffer, OrphanBuffer)
        self.adopted.remove(route)
        self.adoptions[buffer.name] = adoption_figures(route, "done")
        if buffer.remove():
            route.sink.retire()
        elif self.adopter is not None:
            self.adopter.left[buffer.name] = "its folder cannot be removed"
        buffer.give_back()
        totals = route.ledger.totals
        self.diagnostics.say(
            f"adopted-{buffer.name}",
            f"the journal of a process that is gone was sent: {totals.stored} records, {totals.dead} dead letters, "
            f"{sum(dict(totals.abandoned).values())} given up, {buffer.holes} holes"
            + "".join(f"; {file} is in quarantine: {why}" for file, why in buffer.refused.items()),
            every=0,
        )

    def _next_route(self, goal: dict[int, int]) -> Route | None:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            return None
        ready = [
            route
            for stream, tail in goal.items()
            if (route := self._routes[stream]).buffer.settled < tail
            and self.breaker.allows(now)
            and route.breaker.allows(now)
        ]
        return min(ready, key=lambda route: route.waiting_since() or now, default=None)

    def _deliver(self, route: Route) -> None:
        """Try one batch once, and do what its verdict says."""
        try:
            batch = route.batch or self._next_batch(route)
        except UnreadableError as error:
            route.breaker.failed(time.monotonic())
            self.diagnostics.say(f"unreadable-{route.name}", f"{error}; it is tried again")
            return
        self._note_given_up(route)
        if batch is None:
            return
        route.attempts += 1
        gone = route.gone()  # before those that were offered: a record is offered before it can go
        started = time.monotonic()
        try:
            route.sink.open()
            started = time.monotonic()  # connecting and making partitions are no slow batch
            outcome = route.sink.write(batch, Counts(route.buffer.offered(), gone))
        except SinkError as error:
            self._failed(route, batch, error.failure, time.monotonic() - started)
            return
        self.breaker.succeeded()
        self._stored(route, batch, outcome, time.monotonic() - started)

    def _next_batch(self, route: Route) -> Batch | None:
        batch = route.buffer.take(route.batch_bytes, self.settings.batch_size)
        if batch is not None:
            batch.aside |= {at: why for at, why in route.aside.items() if batch.start <= at < batch.end}
            route.whole = batch
            if route.part is not None:
                cut = batch.data.rfind(b"\n", 0, route.part) + 1 or batch.data.find(b"\n") + 1
                batch = batch.head(cut)
            route.batch, route.attempts = batch, 0
        return batch

    def _note_given_up(self, route: Route) -> None:
        """Count in the book what a journal buffer found to be unreadable."""
        while route.buffer.given_up:
            reason, records = route.buffer.given_up.popitem()
            route.given_up += records
            route.ledger.totals = route.ledger.totals.abandon(reason, records)

    def _stored(self, route: Route, batch: Batch, outcome: Outcome, seconds: float) -> None:
        now = time.monotonic()
        since = route.waiting_since()
        if outcome.end is not None:
            batch = batch.head(outcome.end - batch.start)
        rows, dead = batch.rows, outcome.dead
        if rows > dead + sum(count for _, count in outcome.given_up):
            route.streak = 0
        route.retries = 0
        route.breaker.succeeded()
        if route.part is not None:
            route.part = route.part * 2 if route.part < self.settings.batch_bytes else None
        route.batch_bytes = min(route.batch_bytes * 2, self.settings.batch_bytes)
        route.ledger.records.add(rows)
        route.ledger.bytes.add(len(batch.data))
        route.ledger.seconds.add(seconds)
        if since is not None:
            route.ledger.call_to_commit.add(now - since)
        figures = {"at": time.time(), "route": route.name, "records": rows, "dead": dead, "bytes": len(batch.data),
                   "seconds": round(seconds, 6)}  # fmt: skip
        route.ledger.recent_stored.append(figures)
        self._idle_since = now
        totals = route.ledger.totals
        route.ledger.totals = totals._replace(batches=totals.batches + 1, last_stored_at=time.time())
        self._count(route, batch, outcome)  # after all figures: it tells `flush`, whose caller may ask `stats` at once
        self.notices.stored(route, figures, route.ledger.totals.batches, now)

    def _count(self, route: Route, batch: Batch, outcome: Outcome) -> None:
        """Enter in the book what became of a batch, or of the part of it that this is told of, and settle that."""
        if outcome.end is not None:
            batch = batch.head(outcome.end - batch.start)
        markers = route.markers(batch)
        totals = route.ledger.totals
        gone = sum(count for _, count in outcome.given_up)
        totals = totals._replace(
            stored=totals.stored + batch.rows - outcome.dead - gone - markers,
            dead=totals.dead + outcome.dead,
            markers=totals.markers + markers,
        )
        for reason, count in outcome.given_up:
            totals = totals.abandon(reason, count)
        route.ledger.totals = totals
        # Right after the totals: what is thrown into this thread in between has the batch sent and counted again.
        self._settle(route, batch)

    def _settle(self, route: Route, batch: Batch) -> None:
        route.buffer.settle(batch)
        route.batch = route.whole = None
        route.aside = {at: why for at, why in route.aside.items() if at >= batch.end}
        self._notify()

    def _notify(self) -> None:
        for goal, call in in_turn(self._waiters):
            if self._reached(goal) or self.done.is_set():
                call()
            else:
                self._waiters.append((goal, call))

    # --- failures -----------------------------------------------------------------------------------------------

    def _failed(self, route: Route, batch: Batch, failure: Failure, seconds: float) -> None:
        route.ledger.totals = route.ledger.totals._replace(retries=route.ledger.totals.retries + 1)
        verdict = decide(failure)
        if verdict is Verdict.REJECT and is_storm(route, batch):
            verdict = decide(failure, storm=True)
            where = "table" if failure.status is None else "endpoint"
            hint = f"the {where} takes none of the waiting records: see what was changed in it"
            failure = replace(failure, hint=hint)
        route.ledger.recent_failed.append(
            {
                "at": time.time(),
                "route": route.name,
                "records": batch.rows,
                "bytes": len(batch.data),
                "seconds": seconds,
                "sqlstate": failure.sqlstate,
                "status": failure.status,
                "verdict": verdict.value,
                "error": failure.message,
            }
        )
        self.diagnostics.detail(
            f"attempt {route.attempts} failed: {batch.rows} records, {len(batch.data)} bytes, {seconds * 1000:.0f} ms, "
            f"verdict {verdict.value}: {failure.message}"
        )
        if verdict is Verdict.REJECT:
            set_aside(route, batch, failure)
            return
        if verdict is Verdict.SHRINK:
            self._shrink(route, batch)
        elif verdict is Verdict.BLOCKED:
            route.aside.clear()
            route.batch = None  # taken again, with what has come since: it may show that the rows were to blame
        breaker = self.breaker if failure.connecting else route.breaker
        wait = breaker.failed(time.monotonic(), slowly=verdict is Verdict.BLOCKED, wait=failure.wait)
        if failure.wait == 0.0:
            return  # mended already: no attempt that was in vain, and nothing that a person should hear of
        if verdict is Verdict.BLOCKED:
            hint = f"; to mend it: {failure.hint}" if failure.hint else ""
            code = failure.sqlstate if failure.status is None else failure.status
            kind, text = f"blocked-{code}", f"blocked, records are kept: {failure.message}{hint}"
        else:
            kind, text = "retry", f"not stored yet, trying again within {max(wait, 0.1):.1f} s: {failure.message}"
        said = self.diagnostics.say(f"{kind}-{route.name}", text)
        route.complained = route.complained or said  # then its end is said as well
        route.retries += 1
        limit = self.settings.retry_limit
        can_shrink = verdict is Verdict.SHRINK and batch.rows > 1 and not self.settings.buries
        if limit is not None and route.retries > limit and not can_shrink:
            self._give_up(route, batch, failure, limit)

    def _give_up(self, route: Route, batch: Batch, failure: Failure, limit: int) -> None:
        """After `retry_limit`: count a batch as abandoned, or have it kept by a sink that needs no server for that."""
        if self.settings.buries:
            why = replace(failure, message=f"given up after {limit} retries: {failure.message}", verdict=Verdict.RETRY)
            whole = replace(batch, aside={at: why for at, _ in batch.lines()} | batch.aside)
            try:
                self._count(route, whole, route.sink.write(whole, Counts(0, 0)))
            except SinkError as error:  # no place for them now: they wait, and it is tried again
                self.diagnostics.say("burying", f"{error.failure.message}; the records are kept")
                return
        else:
            records = batch.rows - route.markers(batch)
            handed = self._hand_over(route, batch)
            if handed:
                route.ledger.totals = route.ledger.totals.abandon("fallback", handed)
            if records - handed:
                route.ledger.totals = route.ledger.totals.abandon("retry_limit", records - handed)
            route.given_up += records
            self._settle(route, batch)
            where = f", {handed} of them to the fallback" if handed else ""
            self.diagnostics.say("abandoned", f"{records} records given up after {limit} retries (retry_limit){where}")
        route.retries = 0

    def _hand_over(self, route: Route, batch: Batch) -> int:
        """Give the fallback what nobody else will take; return how many records it took."""
        if self.fallback is None:
            return 0
        return sum(self.fallback(frame, route.target) for _, frame in batch.lines())

    def _fail_all(self, failure: Failure) -> None:
        for route in [*self.routes, *self.adopted]:
            if route.waits:
                route.batch = None
                route.breaker.failed(time.monotonic())
                route.ledger.recent_failed.append({"at": time.time(), "route": route.name, "error": failure.message})

    def _shrink(self, route: Route, batch: Batch) -> None:
        """Halve what is sent at once; a single row that takes too long waits like any other trouble."""
        route.batch_bytes = max(1, len(batch.data) // 2)
        if batch.rows > 1:
            route.batch = None  # taken again, smaller

    # --- drops and the end --------------------------------------------------------------------------------------

    def _abandon(self, route: Route, reason: str) -> None:
        records = handed = 0
        buffer = route.own
        buffer.close()
        was_open = True
        while was_open:  # by a call that looked before `close`: what it appended is counted, too
            was_open = buffer.seal()
            buffer.keep()
            while batch := buffer.take(self.settings.batch_bytes):
                left = batch.rows - route.markers(batch)
                taken = self._hand_over(route, batch)
                left, handed = left - taken, handed + taken
                records += left
                self._settle(route, batch)
        if handed:
            route.ledger.totals = route.ledger.totals.abandon("fallback", handed)
        kept, gone = buffer.finish()
        lost = max(0, buffer.rows_waiting()) if isinstance(buffer, JournalBuffer) and buffer.harmed else 0
        if lost:  # behind a cut, or in a file that is gone: only now is it known how many they were
            route.ledger.totals = route.ledger.totals.abandon("journal_lost", lost)
            buffer.rows_settled += lost
            self.diagnostics.say("journal-lost", f"{lost} records are in no file of the journal any more", every=0)
        if kept:
            route.ledger.totals = route.ledger.totals.abandon("journal", kept)
            if not self._told_lost:  # else who waited has said it already
                self.diagnostics.say(
                    "kept",
                    f"{kept} records are left in the journal {self.settings.journal}: the next process that uses it "
                    "sends them",
                    every=0,
                )
        if gone:
            route.sink.retire()
        if records:
            route.ledger.totals = route.ledger.totals.abandon(reason, records)
            if not self._told_lost:  # else who waited has said it already
                self.diagnostics.say(
                    "lost",
                    f"{records} records were not stored before the time to shut down was over "
                    f"(shutdown_timeout={self.settings.shutdown_timeout:g} s) and are lost",
                    every=0,
                )


def adoption_figures(route: Route, state: str) -> dict[str, Any]:
    """Return what `stats` says of an orphan. Any thread."""
    buffer, totals = route.buffer, route.ledger.totals
    assert isinstance(buffer, OrphanBuffer)
    return {
        "stream": buffer.stream,
        "state": state,
        "stored": totals.stored,
        "dead": totals.dead,
        "abandoned": dict(totals.abandoned),
        "waiting_bytes": buffer.waiting_bytes(),
        "holes": buffer.holes,
        "torn_bytes": buffer.torn,
        "watermark_missing": getattr(route.sink, "missing", 0),
    }
