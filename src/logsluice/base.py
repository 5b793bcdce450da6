"""
What all handlers are, whatever their sink: handle, flush, close.

Plain `logging.Handler` subclasses, each owning a private pair, `Intake` and `Listener`, over one list of routes.
They must not subclass `QueueHandler`: from Python 3.12 `dictConfig` takes such subclasses over and builds a listener
that nobody starts. handlers.py has the subclasses: their options, and the few methods marked `Sink:` here.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import queue
import random
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from logsluice import filters, lifecycle, quicktyped, shards
from logsluice.adoption import Adopter, OrphanBuffer
from logsluice.buffer import ALWAYS, Buffer, RefusedError, Tally
from logsluice.capture import Rules, typed_of
from logsluice.config import Settings, identity, settings_from, switched_off
from logsluice.diagnostics import Diagnostics
from logsluice.fallback import Fallback
from logsluice.figures import stats_of
from logsluice.folder import Folder, boot_id
from logsluice.intake import Intake
from logsluice.journal import Header
from logsluice.journal_buffer import JournalBuffer
from logsluice.keys import key_from
from logsluice.lifecycle import OWN_THREADS
from logsluice.listener import Listener
from logsluice.primitives import SimpleQueue, get_ident
from logsluice.quick import Entrance
from logsluice.redaction import Redactor
from logsluice.routes import Route

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from logsluice.accounting import Stats
    from logsluice.shards import Pair
    from logsluice.sinks import Sink
    from logsluice.targets import Target
    from logsluice.types import LogType

    # Of a target's stream; of an orphan's, if one is given.
    SinkMaker = Callable[[Target, int, "OrphanBuffer | None"], Sink]

LATE = 1.0  # seconds more at exit for a handler that was given another's records: a file takes 64 MiB in less
STREAM_BITS = 63  # a positive bigint; two of a million streams meet with a chance of 1 in 18 million


class BaseHandler(logging.Handler):
    """
    It hands every record it is given to a sink, from a thread of its own.

    All options are keyword-only and may come from JSON or YAML; `logsluice.config` says their units. Raises
    `ConfigError` for a wrong one. Opens and starts nothing: the thread, the connection and the first segment come with
    the first record of each process. A logging call never raises and, unless `when_full="block"`, never waits for the
    listener, the network or a disk.
    """

    _kind: type[Settings] = Settings  # of the options
    _settings: Settings
    # Here, too: `logging` closes a handler that a ConfigError left half made, for as long as its traceback lives.
    _pair: Pair | None = None  # that records go to now
    _pairs: Sequence[Pair] = ()  # all: one for each of `connections`
    _ways: Sequence[Callable[..., bool]] = ()  # what takes ordinary records in, for each of them
    _ended = False
    _took_over = False  # records that another handler had to give up
    _way: Callable[..., bool]  # that of `_pair`

    def __init__(self, *, level: int | str = logging.NOTSET, **options: Any) -> None:
        super().__init__(level)
        self._settings = settings_from(options, self._kind)
        self._targets = self._targets_from()
        self._redactor = Redactor(self._settings.redact)
        self._key = None if self._settings.shard_by is None else key_from("shard_by", self._settings.shard_by)
        self._clock: Callable[[], float] = time.time
        self._noise = 0
        self._pid = os.getpid()
        self._off_count = Tally()  # records that LOGSLUICE_OFF kept from being taken in
        self._lost = Tally()  # records that came when the pair could not be made
        self._folder: Folder | None = None  # the journal's, of this process
        self._places: dict[LogType, Any] = {}  # what `typed_at` found: to read a dsn takes as long as ten records
        lifecycle.register(self)
        # On the instance: a handler that stores pays nothing for those that do not.
        if switched_off():
            self.__dict__["handle"] = self.only_count
        else:
            self._load()
            if lifecycle.diversion is None:  # a test's rows go elsewhere
                self._check_journal()
        if lifecycle.diversion is not None:
            lifecycle.diversion(self)

    # --- the path of a record -----------------------------------------------------------------------------------

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter a record and hand it to the intake. Any thread; takes no lock; never raises."""
        # Not for our driver's records: a filter that chokes on them would break the connection that they are about.
        if self.filters and not lifecycle.on_own_thread():
            passed: Any = self.filter(record)
            if not passed:
                return False
            if isinstance(passed, logging.LogRecord):  # from Python 3.12 a filter may replace the record
                record = passed
        try:
            if record.process != self._pid and os.getpid() != self._pid:
                lifecycle.forked()  # without Python's hooks
            # Our driver's, else a batch would make a record. The running thread is asked, not `record.thread`: that of
            # another process's record may be our listener's number by chance, and under gevent it is a greenlet's.
            if get_ident() in OWN_THREADS:
                return self._own()
            if self._pair is None:
                self._open()
            way = self._way
            if self._key is not None:
                way = self._way_by_key(record, self._key)
            return way(record, True)
        except Exception as error:
            if self._pair is None:
                self._lost.add()
            else:  # no stack was left to go that way: only C calls until it is counted
                self._pair[0].next_seq()
                self._pair[0].buffer.lost()
            try:
                self._odd(error)
            except RecursionError:
                pass
        return True

    def _make_ways(self) -> None:
        """Make what takes an ordinary record in, for each pair."""
        self._ways = [
            intake.quick.made(intake, self._entrance(functools.partial(self._elsewhere, listener)))
            for intake, listener in self._pairs
        ]

    def _entrance(self, elsewhere: Callable[[logging.LogRecord], Callable[..., bool] | None]) -> Entrance:
        return Entrance(self, BaseHandler.handle.__get__(self), self._own, self._failed, elsewhere)

    def _elsewhere(self, listener: Listener, record: logging.LogRecord) -> Callable[..., bool] | None:
        """Return the way of a typed log to its own route; None for other records, and for one that does not fit."""
        instance = typed_of(record)
        if instance is None:
            return None
        kind: LogType = instance.__logtype__
        way = listener.typed_ways.get(kind)
        target = self._typed_target(kind) if way is None else None
        if (way is None and target is None) or kind.problems(instance):
            return None  # one that does not fit is stored in `logs`, with what is wrong
        return way if target is None else self._open_route(listener, kind, target)

    def _give_turn(self, pair: Pair) -> None:
        """Let records go to this pair, the shortest way unless a subclass or a test put something else in its place."""
        old = self.__dict__.get("_way")
        self._way = way = self._ways[self._pairs.index(pair)]
        self._pair = pair
        shortest = type(self).handle is BaseHandler.handle and self._key is None
        if shortest and self.__dict__.get("handle", old) is old:
            self.__dict__["handle"] = way

    def _own(self) -> bool:
        """Count a record of our own namespace or thread."""
        self._noise += 1
        return False

    def _failed(self, record: logging.LogRecord, error: Exception) -> None:
        """Give the fallback a record for which there is no room; say what is odd about another."""
        if type(error) is RefusedError:
            self._hand_over(record, error)
        else:
            self._odd(error)

    def _too_late(self, record: logging.LogRecord) -> bool:
        """Say once that records come after `close`; each is counted as dropped("closed"), or goes to the fallback."""
        if not lifecycle.exiting() and not lifecycle.on_own_thread():  # at exit that is nobody's mistake
            self.diagnostics.say(
                "closed",
                "records come after this handler was closed (close(), logging.shutdown(), a second dictConfig): they "
                "are counted as dropped, not stored",
                every=math.inf,
            )
        return BaseHandler.handle(self, record)

    def only_count(self, record: logging.LogRecord) -> bool:
        """Count a record as dropped("off") in the place of `handle`; filters work, other handlers may rely on them."""
        if not self.filter(record):
            return False
        self._off_count.add()
        return True

    def _way_by_key(self, record: logging.LogRecord, key_of: Callable[[logging.LogRecord], Any]) -> Callable[..., bool]:
        """Return the way to the pair that has this record's key; without one, to that whose turn it is."""
        try:
            key = key_of(record)
            if key is not None:
                return self._ways[shards.index_of(key, len(self._ways))]
        except Exception:
            pass  # a `__str__` that raises: the record is stored all the same, in no order
        return self._way

    def emit(self, record: logging.LogRecord) -> None:
        """As `handle`, for callers that go round it."""
        self.handle(record)

    def take_over(self, record: logging.LogRecord) -> bool:
        """Take a record that another handler of ours gives up, on that one's thread; whether it is in the buffer."""
        passed: Any = not self._ended and self.filter(record)
        if not passed or self.__dict__.get("handle") == self.only_count:
            return False
        if isinstance(passed, logging.LogRecord):
            record = passed
        intake, listener = self._pair or self._open()
        way = self._elsewhere(listener, record)
        if way is not None:
            self._took_over = True
            return way(record, True)
        frame = intake.whole(record, 0)
        if frame is None or not intake.buffer.put(frame, record.levelno):
            return False
        self._took_over = True
        intake.wake(record.levelno)
        return True

    def _hand_over(self, record: logging.LogRecord, error: RefusedError) -> None:
        """Give the fallback a record for which there is no room. Never raises."""
        fallback = self._fallback
        reason, buffer = error.args
        try:
            if fallback is not None and fallback.take(record):
                buffer.handed.add()
                return
        except Exception:
            pass  # no stack left for it: a drop like any other
        buffer.drop(reason, record.levelno if isinstance(record.levelno, int) else logging.NOTSET)

    def _odd(self, error: Exception) -> None:
        """Say that a record lacked what every record has. Never raises."""
        try:
            self.diagnostics.say("odd", f"a record could not be taken in as it is: {type(error).__name__}")
        except Exception:
            pass  # too deep in a recursion even to say so

    # --- the pair, made with the first record of a process --------------------------------------------------------

    def _open(self) -> Pair:
        """Make buffers and listener, and start the thread. Two first records at once: the loser's pair is dropped."""
        made = self._make_all()
        pairs: list[Pair] = self.__dict__.setdefault("_made", made)
        if made is not pairs:
            _throw_away(made)
        self._pairs, pair = pairs, pairs[0]
        self._make_ways()
        self._give_turn(pair)
        if self._ended:  # looked at after `_pair` is set: a close() before that has not seen these buffers
            for route in self._routes():
                route.buffer.close()
        else:
            for _, listener in pairs if self._key is not None else pairs[:1]:  # the others at their first turn
                self._start(listener)
            lifecycle.close_at_end_of_child(self)
        return pair

    def _make_all(self) -> list[Pair]:
        made: list[Pair] = []
        try:
            while len(made) < self._settings.connections:
                made.append(self._make(adopt=not made))
        except BaseException:
            _throw_away(made)
            raise
        if (adopter := made[0][1].adopter) is not None:
            adopter.mine |= {f"{route.buffer.stream:016x}" for _, listener in made for route in listener.routes}
        return made

    def _routes(self) -> list[Route]:
        """Return the routes of all pairs."""
        return [route for _, listener in self._pairs for route in listener.routes]

    def _turn(self, *, of: Listener | None = None, if_full: bool = False) -> None:
        """With several connections: see who gets the next records (shards.py). Any thread; never raises."""
        try:
            pair = self._pair
            if pair is None or self._ended or lifecycle.exiting() or (of is not None and pair[1] is not of):
                return
            following = shards.next_pair(self._pairs, pair, self._settings.batch_bytes, if_full=if_full)
            if following is not pair and not following[1].started:
                self._start(following[1])
            # Not to one whose thread cannot be started, unless there are no threads at all.
            if self._pair is pair and (following[1].started or not pair[1].started):
                self._give_turn(following)
        except Exception:
            pass  # no stack or no memory left: the turn stays where it is

    def _wake_and_turn(self, listener: Listener) -> None:
        self._wake(listener)
        self._turn()

    def _start(self, listener: Listener) -> None:
        """Start the thread; where it cannot be, try again with each full segment and each flush."""
        if not lifecycle.threads_run():
            self.diagnostics.say(
                "thread",
                "uWSGI runs no threads: set enable-threads = true; until then records are sent only when a worker ends",
                every=math.inf,
            )
            return
        try:
            listener.start()
            listener.keeper.start()
        except RuntimeError as error:
            self.diagnostics.say(
                "thread", f"the listener's thread cannot be started ({error}); records wait, it is tried again"
            )

    def _wake(self, listener: Listener) -> None:
        # At exit no thread is started: `close` drains on the caller's.
        if not listener.started and not self._ended and not lifecycle.exiting():
            self._start(listener)
        listener.hurry()

    def _check_journal(self) -> None:
        """Make, allocate and remove one file in the journal's folder; say what a person should know of the place."""
        settings = self._settings
        if settings.journal is None:
            return
        from logsluice import folder  # noqa: PLC0415 - fcntl: not on Windows

        said = folder.check(settings.journal, unsafe_fs=settings.journal_unsafe_fs)
        if said:
            self.diagnostics.say("journal-place", said)

    def _make(self, *, journal: bool = True, adopt: bool = True) -> Pair:
        settings = self._settings
        tokens: SimpleQueue[None] = SimpleQueue()
        if settings.connections == 1:
            listener = Listener(tokens, settings, self.diagnostics)
        else:
            listener = shards.ShardListener(tokens, settings, self.diagnostics, self._turn)
        sinks = listener.make_sink = self._sinks(listener)
        for name, target in self._targets.items():
            listener.add(self._route(listener, name, target, journal=journal))
        if settings.journal is not None and journal and adopt:
            self._prepare_adoption(listener, sinks)
        if self._fallback is not None:
            listener.fallback = self._fallback.take_frame
        self.diagnostics.detail(f"start: {self._shown()}")
        return listener.intakes[0], listener

    def _route(self, listener: Listener, name: str, target: Target, *, journal: bool = True) -> Route:
        """Make a route of this process: a stream, its buffer, its way in and its sink."""
        settings = self._settings
        stream = random.SystemRandom().getrandbits(STREAM_BITS)
        buffer = self._buffer(stream, target, listener, journal=journal)
        if settings.capacity is not None and settings.connections > 1:
            shards.watch_capacity(buffer, self._turn)
        buffer.has_fallback = self._fallback is not None and journal
        rules = Rules(
            settings.limits, settings.max_message_bytes, self._redactor, settings.service, self._formatter, self._now
        )
        intake = Intake(listener.tokens, buffer, target, settings, rules)
        if settings.fsync == "always" and isinstance(buffer, JournalBuffer):
            intake.sync = buffer.sync
        assert listener.make_sink is not None
        return Route(
            name, buffer, intake, target, listener.make_sink(target, stream, None), listener.new_breaker(),
            settings.batch_bytes, storing_since=time.monotonic(),
        )  # fmt: skip

    def _open_route(self, listener: Listener, kind: LogType, target: Target) -> Callable[..., bool]:
        """Open the route of a typed log with its first record."""
        newcomer = object()
        try:
            if self._settings.journal is None and not listener.family.begin(newcomer):
                return functools.partial(self._no_room, listener)
            made = self._route(listener, kind.table, target)
        finally:
            listener.family.release(newcomer)
        route = listener.typed_routes.setdefault(kind, made)
        if made is not route:  # two first records at once
            listener.drop(made)
        assert route.intake is not None
        intake = route.intake
        intake.short = intake.short or quicktyped.made(intake.quick, kind, intake.rules)
        intake.wake_level = ALWAYS  # the listener may sleep: it has not told this one to wake it
        if listener.adopter is not None:
            listener.adopter.mine.add(f"{route.buffer.stream:016x}")
        listener.add(route)
        if self._ended:  # looked at after it is served: a close() before that has not seen this buffer
            route.own.close()
        way = intake.quick.made(intake, self._entrance(lambda _: None))
        return listener.typed_ways.setdefault(kind, way)

    def _no_room(self, listener: Listener, record: logging.LogRecord, _checked: bool = True) -> bool:
        """Refuse a typed log for which no buffer can be made: those of others are full."""
        buffer = listener.routes[0].own
        buffer.next_seq()
        self._hand_over(record, RefusedError("full", buffer))
        return True

    def typed_at(self, kind: LogType) -> Any:
        """Return what tells the place of a typed log's rows from those of other handlers; None where it has none."""
        if self._ended:
            return None
        place = self._places.get(kind)
        if place is None:
            target = self._typed_target(kind)
            if target is None:
                return None
            place = self._places[kind] = (str(self._described(target)), getattr(self._settings, "dsn_env", None))
        return place

    def _buffer(self, stream: int, target: Target, listener: Listener, *, journal: bool) -> Buffer:
        settings, count = self._settings, self._settings.connections
        wake = self._wake if count == 1 else self._wake_and_turn
        options: dict[str, Any] = {
            "capacity": None if settings.capacity is None else settings.capacity // count,
            "keep_level": settings.keep_level,
            "when_full": settings.when_full,
            "block_timeout": settings.block_timeout,
            "wake": functools.partial(wake, listener),
        }
        share = len(self._targets) * count
        if settings.journal is None or not journal:
            family = listener.family
            return Buffer(stream=stream, capacity_bytes=settings.capacity_bytes // share, family=family, **options)
        if self._folder is None:
            self._folder = Folder(settings.journal)
        buffer = JournalBuffer(
            self._folder,
            self._header(stream, target),
            journal_bytes=settings.journal_bytes,
            memory_bytes=settings.capacity_bytes // share,
            fsync=settings.fsync,
            diagnostics=self.diagnostics,
            hints=settings.hints,
            hurry=listener.keeper.hurry,
            **options,
        )
        listener.keeper.buffers.append(buffer)
        return buffer

    def _header(self, stream: int, target: Target) -> Header:
        """Return what the first line of a stream's segments says, but for their numbers."""
        sink, home, where = self._described(target)
        return Header(
            stream, 0, 0, boot_id(), sink, home, where, target.columns, mapped=not target.marks,
            who=identity(self._settings),
        )  # fmt: skip

    def _prepare_adoption(self, listener: Listener, sinks: SinkMaker) -> None:
        """Tell the listener what to look for in the journal's folder, and how an orphan's route is made."""
        settings, folder = self._settings, self._folder
        assert folder is not None
        # One target a handler by now; the orphans of others are left, and said.
        mine = listener.routes[0]
        wanted = self._header(0, mine.target)
        listener.adopter = Adopter(
            folder,
            wanted,
            {f"{route.buffer.stream:016x}" for route in listener.routes},
            self.diagnostics,
            hints=settings.hints,
        )

        def make_route(orphan: OrphanBuffer) -> Route:
            target = self._target_of(orphan.header or wanted, mine.target)
            return Route(
                orphan.name, orphan, None, target, sinks(target, orphan.stream, orphan), listener.new_breaker(),
                settings.batch_bytes, storing_since=time.monotonic(),
            )  # fmt: skip

        listener.make_route = make_route

    def entry(self) -> tuple[Intake, Target]:
        """Return an entry with nothing behind it, and its target. For `logsluice.testing`."""
        return self._make(journal=False)[0], next(iter(self._targets.values()))

    # --- Sink: what a handler of another sink does in another way -------------------------------------------------

    def _targets_from(self) -> dict[str, Target]:
        """Sink: return what the options say records are for, by the name of the route. Raises ConfigError."""
        raise NotImplementedError

    def _load(self) -> None:
        """
        Sink: import what the first record and the first connection need.

        An import that a signal handler interrupts and enters again fails, and one that a fork cuts off holds its lock
        in the child for ever: neither may happen in a logging call.
        """
        raise NotImplementedError

    def _sinks(self, listener: Listener) -> SinkMaker:
        """Sink: return what makes the sinks of a listener's streams. Opens nothing."""
        raise NotImplementedError

    def _typed_target(self, kind: LogType) -> Target | None:  # noqa: ARG002 - by default one target takes all
        """Sink: return what a typed log's frames are for; None where they go with the others."""
        return None

    def _described(self, target: Target) -> tuple[str, str, dict[str, str]]:
        """Sink: return what a journal's header says of it: the sink's kind, where its books are, where records go."""
        raise NotImplementedError

    def _target_of(self, header: Header, mine: Target) -> Target:
        """Sink: return what a dead process's frames were made for; `header` is of our own kind and place."""
        raise NotImplementedError

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - logging's name
        """Use the formatter's text as the message; exceptions stay apart."""
        super().setFormatter(fmt)
        if self._pair is not None:
            for _, listener in self._pairs:
                for intake in listener.intakes:
                    intake.quick.choose()

    def _formatter(self) -> logging.Formatter | None:
        return self.formatter

    def _now(self) -> float:
        return self._clock()

    @property
    def diagnostics(self) -> Diagnostics:
        """What speaks for this handler."""
        found: Diagnostics | None = self.__dict__.get("_diagnostics")
        name = self.get_name() or type(self).__name__
        if found is None:
            found = self.__dict__.setdefault("_diagnostics", Diagnostics(name))
        found.name = name  # dictConfig gives it after the journal was looked at
        return found

    @property
    def _fallback(self) -> Fallback | None:
        name = self._settings.fallback
        if name is None:
            return None
        found: Fallback | None = self.__dict__.get("_last_resort")
        if found is None:
            found = self.__dict__.setdefault("_last_resort", Fallback(name, self, self.diagnostics))
        return found

    def _shown(self) -> str:
        """Return the settings in force, without what may hold a secret."""
        shown = [
            field.name for field in fields(self._settings) if field.repr and field.name not in {"columns", "redact"}
        ]
        return ", ".join(f"{name}={getattr(self._settings, name)!r}" for name in shown)

    def renew(self) -> None:
        """Forget what a fork inherited; the next record makes everything new. One thread of the child."""
        pairs, self._pair, self._pairs, self._ways = self._pairs, None, (), ()
        way = self.__dict__.pop("_way", None)
        if way is not None and self.__dict__.get("handle") is way:
            del self.__dict__["handle"]
        made = self.__dict__.pop("_made", ())
        self.__dict__.pop("_diagnostics", None)
        self._noise, self._took_over = 0, False
        self._off_count, self._lost = Tally(), Tally()
        for old in (*pairs, *made):
            lifecycle.park(old)  # with the connection: closing it would say goodbye on the parent's socket
            for route in [*old[1].routes, *old[1].adopted]:
                route.buffer.discard()
                route.sink.forked()
        if self._folder is not None:
            self._folder.renew()
            self._folder = None
        self.__dict__.pop("_last_resort", None)
        self._pid = os.getpid()  # last: without Python's hooks other threads log meanwhile, and wait in `forked`

    # --- flush, close -------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        """
        Wait until everything logged before this call is stored, dead-lettered or abandoned; return whether it is.

        Blocks for at most `timeout` seconds, `shutdown_timeout` when None. Returns at once, without waiting, on our
        own threads and while the caller holds logging's lock (inside `dictConfig`): waiting there could last for ever.
        """
        filters.report(self.filters)
        self._leave_to_parent()
        if self._pair is None:
            return True
        seconds = self._settings.shutdown_timeout if timeout is None else timeout
        end = lifecycle.exit_deadline(seconds) if timeout is None else time.monotonic() + seconds
        token: SimpleQueue[Listener] = SimpleQueue()
        calls = {listener: functools.partial(token.put, listener) for _, listener in self._pairs}
        waiting = {listener for listener, call in calls.items() if not listener.when_settled(call)}
        if not waiting:
            return True
        for listener in waiting:
            self._wake(listener)
            if lifecycle.exiting():
                listener.probe()  # else the wait for a back-off would use up the time of exit, and nothing be tried
        try:
            if lifecycle.holds_logging_lock() or lifecycle.on_own_thread():
                return False
            while waiting and all(listener.started for listener in waiting):
                waiting.discard(token.get(timeout=max(0.0, end - time.monotonic())))
        except queue.Empty:
            return False
        finally:
            for listener, call in calls.items():
                listener.forget(call)
        return not waiting

    def close(self) -> None:
        """
        Refuse further records, send what waits, and stop the thread. Any number of times.

        Blocks for at most `shutdown_timeout` seconds, at exit together with all other handlers. Under logging's lock it
        does not wait: the handler goes on sending, and exit waits for it.
        """
        # Each line may be repeated: a SIGTERM in the middle closes again, and must find nothing taken for done.
        filters.report(self.filters, everything=True)  # "12 more were suppressed": records like any other
        self._leave_to_parent()
        self._ended = True
        if type(self).handle is BaseHandler.handle and self.__dict__.get("handle") in {None, self.__dict__.get("_way")}:
            self.__dict__["handle"] = self._too_late
        if self._pair is None:  # also of one that a ConfigError left half made
            super().close()
            return
        listeners = [listener for _, listener in self._pairs]
        for listener in listeners:
            lifecycle.drain_later(listener)
        deadline = lifecycle.exit_deadline(self.shutdown_timeout)
        if self._took_over:  # the other gave up when the time of exit was over
            deadline = max(deadline, time.monotonic() + LATE)
        for route in self._routes():
            route.buffer.close()
        for listener in listeners:
            listener.finish(deadline)
        super().close()
        if lifecycle.on_own_thread():
            return  # exit waits
        # First those without a thread: they run on this one while the others run on theirs.
        for listener in sorted(listeners, key=lambda one: one.started):
            # Under logging's lock exit waits, but for one that never began: it is over at once, and would keep its
            # journal's files open until then.
            unused = not listener.started and not any(route.waits for route in listener.routes)
            if unused or not lifecycle.holds_logging_lock():
                listener.wait(deadline)

    def _leave_to_parent(self) -> None:
        """In a child that no hook renewed and that logged nothing: what waits is its parent's, and its thread, too."""
        if self._pair is not None and os.getpid() != self._pid:
            lifecycle.forked()

    # --- looking ------------------------------------------------------------------------------------------------

    @property
    def shutdown_timeout(self) -> float:
        """Seconds that `close` may take, and `flush` unless told otherwise."""
        return self._settings.shutdown_timeout

    @property
    def fallback(self) -> str | None:
        """Name of the handler of last resort, if there is one."""
        return self._settings.fallback

    @property
    def pressure(self) -> float:
        """How full the (fullest) buffer is, 0.0 to 1.0. For request handlers that would rather shed load than drop."""
        return max((route.buffer.pressure for _, listener in self._pairs for route in listener.routes), default=0.0)

    async def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait, on an event loop, until there is room for a record of any level; False after `timeout` seconds."""
        if self._pair is None:
            return True
        import asyncio  # noqa: PLC0415 - whoever awaits this has loaded it; others must not pay for it

        loop = asyncio.get_running_loop()
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            room = asyncio.Event()
            wake = _threadsafe(loop, room)
            full = [route for route in self._routes() if not route.own.when_room(wake)]
            if not full:
                return True
            for _, listener in self._pairs:
                listener.hurry()
            try:
                await asyncio.wait_for(room.wait(), None if end is None else max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                return False
            finally:
                for route in full:
                    route.own.forget(wake)

    def stats(self) -> Stats:
        """Return one consistent snapshot; the law in accounting.py holds for it. Blocks only to list a journal."""
        return stats_of(self, [listener for _, listener in self._pairs])


def _throw_away(pairs: list[Pair]) -> None:
    """Let go of pairs that no record went to."""
    for _, listener in pairs:
        for route in listener.routes:
            route.own.finish()  # of a journal: its files


def _threadsafe(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    return wake
