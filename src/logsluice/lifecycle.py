"""
Fork and exit, once per process for all handlers (DESIGN D9).

- A forked child gets new buffers, streams and a new listener at its first record; what it inherited it never touches.
- A fork waits until no listener is inside libpq: OpenSSL's locks, taken there, would stay taken in the child for ever.
- `dictConfig` closes old handlers while it holds logging's lock, which our driver needs for a log call of its own: so a
  handler that is closed under that lock goes to the drain list, and is waited for at exit.
- One deadline covers all handlers at exit.
- SIGTERM's default action ends a process without a word: `drain_on_sigterm` sends what waits first. Never unasked.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from logsluice.errors import ConfigError
from logsluice.primitives import Done, allocate_lock, get_ident

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from logsluice.listener import Listener

OWN_THREADS: set[int] = set()  # idents of listeners; each adds and discards itself

diversion: Callable[[Any], None] | None = None  # told of each new handler; set by logsluice.testing

# Seconds that a fork waits for all listeners: a step inside libpq takes a millisecond, but for a host's name that is
# looked up, which takes what DNS does.
STEP = 1.0

_handlers: weakref.WeakSet[Any] = weakref.WeakSet()
_gates: weakref.WeakSet[Any] = weakref.WeakSet()  # locks of listeners, each held while its listener is inside libpq
_closed_gates: dict[int, list[Any]] = {}  # thread that forks -> the gates it holds
_draining: list[Listener] = []  # closed, perhaps under logging's lock, and still sending
_parked: list[Any] = []  # inherited by a fork: kept for ever, since closing would speak on the parent's socket
_exit_deadline: float | None = None
_exiting = False
_registered: dict[str, object] = {}  # setdefault elects who registers the hooks
_renewing: dict[int, object] = {}  # pid -> who renews; setdefault elects
_renewed: set[int] = set()
_before_sigterm: Any = None  # what `drain_on_sigterm` found, called after it


def register(handler: Any) -> None:
    """Have a handler renewed after a fork."""
    mine = object()
    if _registered.setdefault("", mine) is mine:
        os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
        atexit.register(_at_exit)
    _handlers.add(handler)


def holds_logging_lock() -> bool:
    """Whether the calling thread is inside `dictConfig` or the like: waiting for the listener could last for ever."""
    owned = getattr(logging._lock, "_is_owned", None)  # type: ignore[attr-defined]  # noqa: SLF001 - no public way
    return bool(owned()) if owned is not None else False


def on_own_thread() -> bool:
    """Whether the caller is a listener."""
    return get_ident() in OWN_THREADS


def exiting() -> bool:
    """Whether the interpreter is on its way out."""
    return _exiting or not threading.main_thread().is_alive()


def threads_run() -> bool:
    """Whether threads get to run here: under uWSGI without `enable-threads` a start may wait for ever."""
    return bool(getattr(sys.modules.get("uwsgi"), "has_threads", 1))  # the module is there without an import


def forked() -> None:
    """Renew everything after a fork that ran no Python hooks (uWSGI's default), once for all threads of the child."""
    pid, me = os.getpid(), object()
    if _renewing.setdefault(pid, me) is me:
        _in_child()
        _renewed.add(pid)
    # A thread that went on would append to what its parent's listener will never send. Seconds; one at most.
    for _ in range(1000):
        if pid in _renewed:
            return
        Done().wait(0.001)


def close_at_end_of_child(handler: Any) -> None:
    """Have a `multiprocessing` child close the handler: it leaves by `os._exit`, which runs no exit handlers."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    billiard = sys.modules.get("billiard.process")  # Celery's multiprocessing: its own processes, the same finalizers
    of_billiard = billiard is not None and getattr(billiard.current_process(), "_parent_pid", None) is not None
    reference = weakref.ref(handler)
    if util is not None and process is not None and (of_billiard or process.parent_process() is not None):
        util.Finalize(None, _close, args=(reference,), exitpriority=0)
    signals = sys.modules.get("celery.signals")
    if of_billiard and signals is not None:
        # A child of Celery's pool does not even run finalizers; connected now, after the program's own receivers.
        signals.worker_process_shutdown.connect(lambda **_: _close(reference), weak=False)


def _close(reference: weakref.ref[Any]) -> None:
    handler = reference()
    if handler is not None:
        handler.close()


def drain_later(listener: Listener) -> None:
    """Remember a listener that is closed; if nobody could wait for it, exit does."""
    if listener not in _draining:
        _draining.append(listener)
    for one in tuple(_draining):  # one by one: made anew, the list would lack what another thread appended meanwhile
        if one.done.is_set():
            with suppress(ValueError):
                _draining.remove(one)


def exit_deadline(seconds: float) -> float:
    """Return the monotonic time by which a closing handler must be done; at exit the same for all."""
    global _exit_deadline
    deadline = time.monotonic() + seconds
    # logging.shutdown runs after the main thread has been told to end, before daemon threads are frozen.
    if not exiting():
        return deadline
    _exit_deadline = deadline if _exit_deadline is None else min(_exit_deadline, deadline)
    return _exit_deadline


def handlers() -> list[Any]:
    """Return the handlers of this process that are alive."""
    return _alive(_handlers)


def _alive(things: weakref.WeakSet[Any]) -> list[Any]:
    while True:
        try:
            return list(things)
        except RuntimeError:
            pass  # another thread made one meanwhile


def new_gate() -> Any:
    """Return a lock for a listener to hold while it is inside libpq, one step at a time, and never while it waits."""
    gate = allocate_lock()
    _gates.add(gate)
    return gate


def _before_fork() -> None:
    """Keep listeners out of libpq until the fork is over. Blocks for at most `STEP` seconds, nearly always for none."""
    end = time.monotonic() + STEP
    held = _closed_gates[get_ident()] = []  # filled one by one: a Ctrl-C that ends the wait leaves those it has in it
    held.extend(one for one in _alive(_gates) if one.acquire(timeout=max(0.0, end - time.monotonic())))


def _in_parent() -> None:
    for gate in _closed_gates.pop(get_ident(), ()):
        gate.release()


def drain_on_sigterm() -> None:
    """
    Have SIGTERM send what waits, and then do what it did before.

    The default action of SIGTERM ends a process without running exit handlers: what is in memory would be lost. Call
    this from the main thread, after others have set their handlers; a second call does nothing. gunicorn and Celery
    turn SIGTERM into a normal exit and need none of this; uvicorn puts the default action back before it ends, so
    flush in its lifespan instead (docs/howto/fastapi.md).

    On SIGTERM the main thread blocks for at most `shutdown_timeout` seconds, once for all handlers. Then a handler that
    was there before is called; the default action ends the process by SIGTERM, as its parent expects; a signal that
    was ignored stays ignored. Forked children inherit it. As with any handler in Python, a main thread that waits in C
    for a lock answers when that wait is interrupted or over: `Pool.terminate` can keep a worker there for ever, see
    docs/howto/multiprocessing.md.

    Raises ConfigError off the main thread, and where code outside of Python handles SIGTERM.
    """
    global _before_sigterm
    before = signal.getsignal(signal.SIGTERM)
    if before is _on_sigterm:
        return
    if before is None:
        raise ConfigError(
            "drain_on_sigterm: SIGTERM is handled outside of Python, and could not be handed on to that; "
            "call logging.shutdown() where your program ends instead"
        )
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:
        raise ConfigError(
            "drain_on_sigterm: Python lets only the main thread set signal handlers; call it there"
        ) from None
    _before_sigterm = before


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Drain and hand on. It may have interrupted anything, a wait of ours included: nothing here takes our locks."""
    global _exiting
    if _before_sigterm is not signal.SIG_DFL:
        alive = handlers()
        end = time.monotonic() + min((handler.shutdown_timeout for handler in alive), default=0.0)
        for handler in alive:
            handler.flush(end - time.monotonic())
        if callable(_before_sigterm):  # not SIG_IGN
            _before_sigterm(number, frame)
        return
    _exiting = True  # from here on one deadline for all, and no thread is started
    # What it interrupted may hold logging's lock, which our driver needs to connect, and never goes on: a worker of a
    # pool that is told to end while it closes its handlers lost what waited.
    if holds_logging_lock():
        logging._lock._release_save()  # type: ignore[attr-defined]  # noqa: SLF001 - however often it is held
    for handler in handlers():
        handler.close()
    _wait_for_draining()  # also for those that were being closed, or could not be waited for, when the signal came
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    if os.getpid() == 1:
        # The first process of a container: the kernel delivers it no signal whose action is the default one. It would
        # go on with its handlers closed, until SIGKILL. The status is the one that shells give to an end by a signal.
        os._exit(128 + number)


def park(thing: Any) -> None:
    """Keep what a fork inherited from ever being collected."""
    _parked.append(thing)


def _at_exit() -> None:
    global _exiting
    _exiting = True
    _wait_for_draining()


def _wait_for_draining() -> None:
    for listener in tuple(_draining):  # other threads may close theirs meanwhile
        listener.wait(exit_deadline(listener.settings.shutdown_timeout))


def _in_child() -> None:
    """Renew every handler: new locks, buffers, streams; no thread, no connection, no log call here."""
    global _exit_deadline, _exiting
    _exit_deadline, _exiting = None, False
    OWN_THREADS.clear()
    _closed_gates.clear()
    _gates.clear()  # of listeners that are not here; the next fork must not wait for them
    _parked.extend(_draining)
    _draining.clear()
    for handler in handlers():
        try:
            handler.renew()
        except Exception:
            pass  # a child without logs is better than a child that cannot start
