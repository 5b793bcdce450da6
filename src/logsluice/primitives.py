"""
What the listener and its callers meet through: the interpreter's own threads and locks, whatever was patched.

gevent replaces `threading`, `_thread` and `queue` by parts that switch greenlets. A listener made of those would run
only when the program waits, and its queue's `put` could be re-entered by a signal handler. The originals are always
right: the listener is a thread of the operating system, and no logging call waits for it.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue
else:
    try:
        from _queue import SimpleQueue  # in C: re-entrant; gevent replaces only the name in `queue`
    except ImportError:  # an interpreter that has no such module
        from queue import SimpleQueue

__all__ = ["Done", "RLock", "SimpleQueue", "allocate_lock", "get_ident", "on_event_loop", "start_thread"]


def _original(name: str) -> Any:
    """Return a part of `_thread` as the interpreter made it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original("_thread", name)
    return getattr(importlib.import_module("_thread"), name)


get_ident: Callable[[], int] = _original("get_ident")  # taken now: it may be patched later
allocate_lock: Callable[[], Any] = _original("allocate_lock")
# In C, of the operating system's thread: a signal handler goes through what its thread holds.
RLock: Callable[[], Any] = _original("RLock")


class Done:
    """A `threading.Event` that is set once, and may be waited for inside a signal handler that interrupted a wait."""

    __slots__ = ("_lock", "_set")

    def __init__(self) -> None:
        self._set = False
        self._lock = allocate_lock()  # held until set; an Event's own lock cannot be taken twice by one thread
        self._lock.acquire()

    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._set

    def set(self) -> None:
        """Let all waiters go. Called once."""
        self._set = True
        self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Block for at most `timeout` seconds; return whether it is set."""
        if not self._set and self._lock.acquire(timeout=max(0.0, timeout)):
            self._lock.release()  # for the next waiter
        return self._set


# What is about one thread's own instructions must reach it; a program's other signals are for its main thread.
_OWN_FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"}


def start_thread(target: Callable[[], None], name: str) -> None:
    """Start a daemon thread of the operating system. Raises RuntimeError if the interpreter will not."""

    def run() -> None:
        _block_signals()
        target()

    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        _original("start_new_thread")(run, ())  # `threading.Thread` would make a greenlet
    else:
        threading.Thread(target=run, name=name, daemon=True).start()


def _block_signals() -> None:
    """
    Have the program's signals go to another thread than this one.

    Python's handlers run on the main thread. A SIGTERM that the kernel gives to a thread of ours does not wake a main
    thread that waits in a C call, for example for multiprocessing's lock, and would be answered when that wait is over.
    """
    try:
        others = {one for one in signal.valid_signals() if getattr(one, "name", "") not in _OWN_FAULTS}
        signal.pthread_sigmask(signal.SIG_BLOCK, others)
    except (AttributeError, OSError):
        pass  # Windows has no such masks


def on_event_loop() -> bool:
    """Whether this thread runs asyncio's or gevent's loop now: to wait here would stop everybody."""
    running: Any = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # None: half imported
    if running is not None and running() is not None:
        return True
    hub: Any = getattr(sys.modules.get("gevent._hub_local"), "get_hub_if_exists", None)
    return hub is not None and hub() is not None
