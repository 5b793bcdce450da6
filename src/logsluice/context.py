"""
Values bound to the current thread or task, stored with every record logged there.

`user_id`, `organization_id`, `correlation_id`, `trace_id` and `span_id` fill the columns of these names;
anything else goes to `attributes`. An extra of the same name wins. Names as in structlog's contextvars.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# A new mapping for each change, never mutated: a task that inherited one keeps what it saw.
_bound: ContextVar[dict[str, Any] | None] = ContextVar("logsluice_bound", default=None)


def bind(**values: Any) -> None:
    """Add values to every record that this thread or task logs from now on."""
    _bound.set({**(_bound.get() or {}), **values})


def unbind(*names: str) -> None:
    """Forget these values; names that are not bound are ignored."""
    _bound.set({k: v for k, v in (_bound.get() or {}).items() if k not in names} or None)


def clear() -> None:
    """Forget every bound value."""
    _bound.set(None)


@contextmanager
def bound(**values: Any) -> Iterator[None]:
    """Bind values for the length of a `with` block."""
    token = _bound.set({**(_bound.get() or {}), **values})
    try:
        yield
    finally:
        _bound.reset(token)


def current() -> dict[str, Any] | None:
    """Return what is bound here, or None. Not to be changed."""
    return _bound.get()


get = _bound.get  # the same without a Python call: every record asks
