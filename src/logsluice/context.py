"""
Values bound to the current thread or task, stored with every record logged there.

    bind(user_id=7)                            from now on
    with bound(order=17): ...                  for a block; `async with` too; @bound(...) for each call of a function

`user_id`, `organization_id`, `correlation_id`, `trace_id` and `span_id` fill the columns of these names;
anything else goes to `attributes`. An extra of the same name wins. structlog's names for the same are at the end.

A task begins with what its maker had bound, a thread with nothing: `carry(executor)` and `carried(function)` take it
along. What is bound is encoded by the first record that has it, once; the others splice the bytes in (quick.py).
"""

from __future__ import annotations

import functools
import sys
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from contextvars import Context, Token

    Values = dict[str, Any]

Function = TypeVar("Function", bound="Callable[..., Any]")
AnyExecutor = TypeVar("AnyExecutor", bound="Executor")

# A new mapping for each change, never mutated: a task that inherited one keeps what it saw.
_bound: ContextVar[Values | None] = ContextVar("logsluice_bound", default=None)
place: ContextVar[Any] = ContextVar("logsluice_place", default=None)  # tracing.py's: which span is current


def bind(**values: Any) -> None:
    """Add values to every record that this thread or task logs from now on."""
    _bound.set({**(_bound.get() or {}), **values})


def unbind(*names: str) -> None:
    """Forget these values; names that are not bound are ignored."""
    _bound.set({k: v for k, v in (_bound.get() or {}).items() if k not in names} or None)


def clear() -> None:
    """Forget every bound value."""
    _bound.set(None)


def bound(**values: Any) -> Bound:
    """
    Bind values for the length of a `with` or `async with` block; as a decorator, of each call.

    At the end is bound what was before, whatever was bound inside. Functions, coroutine functions and generators may
    be decorated: a generator's values are bound while its body runs, not while its user's does.
    """
    return Bound(values)


def current() -> Values | None:
    """Return what is bound here, or None. Not to be changed."""
    return _bound.get()


get = _bound.get  # the same without a Python call: every record asks
put = _bound.set  # for tracing.py: a new mapping, or None


class Bound:
    """What `bound` returns. May be entered again, by one thread or task at a time."""

    __slots__ = ("_tokens", "_values")

    def __init__(self, values: Values) -> None:
        self._values = values
        self._tokens: list[Token[Values | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(_bound.set({**(_bound.get() or {}), **self._values}))

    def __exit__(self, *_exception: object) -> None:
        try:
            _bound.reset(self._tokens.pop())
        except ValueError:
            # Another context: a generator that the event loop closes, a web framework's dependency with `yield`, whose
            # two halves run in two threads. Nothing was bound in this one.
            pass

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_exception: object) -> None:
        self.__exit__()

    def __call__(self, function: Function) -> Function:
        """Return the function with the values bound during each call."""
        return around(lambda: Bound(self._values), function)


# --- into threads and pools --------------------------------------------------------------------------------------


def carried(function: Function) -> Function:
    """Return the function to be run elsewhere, `Thread(target=carried(work))`, with what is bound here and now."""
    here = copy_context()

    @functools.wraps(function)
    def carrying(*args: Any, **kwargs: Any) -> Any:
        return here.copy().run(function, *args, **kwargs)  # a context cannot be in use twice at a time

    return carrying  # type: ignore[return-value]


def carry(executor: AnyExecutor) -> AnyExecutor:
    """
    Have an executor run each call with what is bound where `submit` or `map` was called; return it.

    It changes this one executor, so that `loop.run_in_executor` and libraries that were given it do the same. Threads
    get all context variables; other processes get the bound values alone (a trace's ids among them), pickled with the
    arguments. A second time does nothing.
    """
    submit = executor.submit
    if getattr(submit, "_carries", False):
        return executor
    processes: Any = sys.modules.get("concurrent.futures.process")
    elsewhere = processes is not None and isinstance(executor, processes.ProcessPoolExecutor)

    def carrying(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if elsewhere:
            return submit(_with_values, _bound.get() or {}, function, *args, **kwargs)
        return submit(copy_context().run, function, *args, **kwargs)

    carrying._carries = True  # type: ignore[attr-defined]  # noqa: SLF001 - ours
    executor.submit = carrying  # type: ignore[method-assign]
    return executor


def _with_values(values: Values, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """In another process: these values alone, whatever was current where it was forked, or a call before bound."""
    here = copy_context()
    here.run(_bound.set, values or None)
    here.run(place.set, None)
    return here.run(function, *args, **kwargs)


# --- decorators --------------------------------------------------------------------------------------------------


def around(make: Callable[[], AbstractContextManager[Any]], function: Function) -> Function:
    """Return the function inside of what `make` gives anew for each call; a generator for as long as it is run."""
    import inspect  # noqa: PLC0415 - 8 ms that only those pay who decorate

    def plain(*args: Any, **kwargs: Any) -> Any:
        with make():
            return function(*args, **kwargs)

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        with make():
            return await function(*args, **kwargs)

    def generator(*args: Any, **kwargs: Any) -> Any:
        with _Inside(make()) as inside:
            return (yield from _steps(function(*args, **kwargs), inside))

    wrapper: Any = plain
    if inspect.iscoroutinefunction(function):
        wrapper = coroutine
    elif inspect.isgeneratorfunction(function):
        wrapper = generator
    elif inspect.isasyncgenfunction(function):
        wrapper = _async_generator(make, function)
    return functools.wraps(function)(wrapper)  # type: ignore[return-value]


class _Inside:
    """A copy of the context in which something was entered: a generator's body runs there, its user does not."""

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager

    def __enter__(self) -> Context:
        self._context = copy_context()
        self._context.run(self._manager.__enter__)
        return self._context

    def __exit__(self, *exception: object) -> None:
        self._context.run(self._manager.__exit__, *exception)  # type: ignore[arg-type]


class _Awaited:
    """An awaitable whose every step runs in another context than the task's."""

    def __init__(self, awaitable: Any, inside: Context) -> None:
        self._awaitable, self._inside = awaitable, inside

    def __await__(self) -> Generator[Any, Any, Any]:
        return _steps(self._awaitable.__await__(), self._inside)


def _steps(running: Any, inside: Context) -> Generator[Any, Any, Any]:
    """Do what `yield from` does (PEP 380), each step in this context."""
    try:
        value = inside.run(next, running)
        while True:
            try:
                sent = yield value
            except GeneratorExit:
                inside.run(running.close)
                raise
            except BaseException as error:
                value = inside.run(running.throw, error)
            else:
                # An iterator of an awaitable need not have `send`.
                value = inside.run(next, running) if sent is None else inside.run(running.send, sent)
    except StopIteration as end:
        return end.value


def _async_generator(make: Callable[[], AbstractContextManager[Any]], function: Any) -> Any:
    """Return the same for an asynchronous generator, which Python has no `yield from` for."""

    async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with _Inside(make()) as inside:
            running = function(*args, **kwargs)
            step = running.__anext__()
            while True:
                try:
                    value = await _Awaited(step, inside)
                except StopAsyncIteration:
                    return
                try:
                    step = running.asend((yield value))
                except GeneratorExit:
                    await _Awaited(running.aclose(), inside)
                    raise
                except BaseException as error:
                    step = running.athrow(error)

    return async_generator


# --- structlog's names -------------------------------------------------------------------------------------------

bind_contextvars, unbind_contextvars, clear_contextvars, bound_contextvars = bind, unbind, clear, bound


def get_contextvars() -> Values:
    """Return a copy of what is bound here."""
    return dict(_bound.get() or {})
