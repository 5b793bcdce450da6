"""
The key of a record: what `shard_by` of a handler and `key` of a filter name, in the words of `columns`.

`extra.session_id`, `context.tenant`, an id column (`trace_id`, `user_id`, ...) found as capture finds it, or a field
that records of one kind share (`logger`, `template`, `thread`, ...).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logsluice import context
from logsluice.capture import ID_COLUMNS, ambient_ids, task_name
from logsluice.columns import lookup, source_from
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

# Fields that records of one kind share; what is not here differs with each record, or is the same for all.
ATTRIBUTES = {
    "logger": "name", "level": "levelno", "levelname": "levelname", "file": "pathname", "line": "lineno",
    "func": "funcName", "thread": "threadName", "template": "msg",
}  # fmt: skip
OTEL = {"trace_id": "otelTraceID", "span_id": "otelSpanID"}


def key_from(option: str, given: str) -> Callable[[logging.LogRecord], Any]:
    """
    Return what gets the key of a record, None for one without; it may raise whatever the program's objects raise.

    Raises `ConfigError`, in the option's name, for a source that there is not or that is no key.
    """
    source = source_from(option, given)
    name, path = source.path[0], source.path
    if source.kind == "extra":
        return lambda record: _extra(record, path)
    if source.kind == "context":
        return lambda _record: lookup(context.get(), path)
    if name in ID_COLUMNS:
        return lambda record: _identifier(record, name)
    if name == "task":
        return task_name
    if name not in ATTRIBUTES:
        known = ", ".join(sorted([*ATTRIBUTES, *ID_COLUMNS, "task"]))
        raise ConfigError(
            f"{option}={given!r} is no key: it differs with each record or is the same for all; "
            f"name an extra ('extra.session_id'), a bound value ('context.session_id') or one of {known}"
        )
    attribute = ATTRIBUTES[name]
    return lambda record: getattr(record, attribute)


def _extra(record: logging.LogRecord, path: tuple[str, ...]) -> Any:
    value = lookup(record.__dict__, path)
    return lookup(record.__dict__.get("extra"), path) if value is None else value  # loguru wraps all in one attribute


def _identifier(record: logging.LogRecord, name: str) -> Any:
    """Return an id as capture finds it: an extra before a bound value before what other libraries know."""
    for source in (record.__dict__, context.get() or {}):
        value = source.get(name)
        if value is not None:
            return value
    value = record.__dict__.get(OTEL.get(name, ""))  # by OpenTelemetry's LoggingInstrumentor; "0": none
    return value if isinstance(value, str) and value not in {"", "0"} else ambient_ids().get(name)
