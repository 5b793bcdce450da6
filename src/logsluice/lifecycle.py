"""
Fork and exit, once per process for all handlers (DESIGN D9).

- A forked child gets new buffers, streams and a new listener at its first record; what it inherited it never touches.
- `dictConfig` closes old handlers while it holds logging's lock, which our driver needs for a log call of its own: so a
  handler that is closed under that lock goes to the drain list, and is waited for at exit.
- One deadline covers all handlers at exit.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logsluice.listener import Listener

OWN_THREADS: set[int] = set()  # idents of listeners; each adds and discards itself

_handlers: weakref.WeakSet[Any] = weakref.WeakSet()
_draining: list[Listener] = []  # closed under logging's lock, still sending
_parked: list[Any] = []  # inherited by a fork: kept for ever, since closing would speak on the parent's socket
_exit_deadline: float | None = None
_exiting = False
_registered = False
_renewing: dict[int, object] = {}  # pid -> who renews; setdefault elects
_renewed: set[int] = set()


def register(handler: Any) -> None:
    """Have a handler renewed after a fork."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_in_child)
        atexit.register(_at_exit)
    _handlers.add(handler)


def holds_logging_lock() -> bool:
    """Whether the calling thread is inside `dictConfig` or the like: waiting for the listener could last for ever."""
    owned = getattr(logging._lock, "_is_owned", None)  # type: ignore[attr-defined]  # noqa: SLF001 - no public way
    return bool(owned()) if owned is not None else False


def on_own_thread() -> bool:
    """Whether the caller is a listener."""
    return threading.get_ident() in OWN_THREADS


def exiting() -> bool:
    """Whether the interpreter is on its way out."""
    return _exiting or not threading.main_thread().is_alive()


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
        threading.Event().wait(0.001)


def close_at_end_of_child(handler: Any) -> None:
    """Have a `multiprocessing` child close the handler: it leaves by `os._exit`, which runs no exit handlers."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, _close, args=(weakref.ref(handler),), exitpriority=0)


def _close(reference: weakref.ref[Any]) -> None:
    handler = reference()
    if handler is not None:
        handler.close()


def drain_later(listener: Listener) -> None:
    """Remember a listener that could not be waited for; at exit it is."""
    _draining[:] = [one for one in _draining if not one.done.is_set()]
    _draining.append(listener)


def exit_deadline(seconds: float) -> float:
    """Return the monotonic time by which a closing handler must be done; at exit the same for all."""
    global _exit_deadline
    deadline = time.monotonic() + seconds
    # logging.shutdown runs after the main thread has been told to end, before daemon threads are frozen.
    if not exiting():
        return deadline
    _exit_deadline = deadline if _exit_deadline is None else min(_exit_deadline, deadline)
    return _exit_deadline


def park(thing: Any) -> None:
    """Keep what a fork inherited from ever being collected."""
    _parked.append(thing)


def _at_exit() -> None:
    global _exiting
    _exiting = True
    for listener in _draining:
        listener.done.wait(max(0.0, exit_deadline(listener.settings.shutdown_timeout) - time.monotonic()))


def _in_child() -> None:
    """Renew every handler: new locks, buffers, streams; no thread, no connection, no log call here."""
    global _exit_deadline, _exiting
    _exit_deadline, _exiting = None, False
    OWN_THREADS.clear()
    _parked.extend(_draining)
    _draining.clear()
    for handler in list(_handlers):
        try:
            handler.renew()
        except Exception:
            pass  # a child without logs is better than a child that cannot start
