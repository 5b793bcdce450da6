"""
LogRecord -> captured fields: message, exception, extras, context, ids. Pure; on the caller's thread.

Everything is taken at the call and as text: the record is never changed, and no live object is kept, so an argument
that changes later cannot change the log. Nothing here raises for what a program logs: a hostile value becomes a
placeholder, a wrong format string is stored with its arguments.

`capture` is the whole truth. quick.py, quicklines.py and quicktyped.py are quick ways for ordinary records and typed
logs that give the same bytes (tests/unit hold them equal).
"""

from __future__ import annotations

import copy
import logging
import sys
import time
import traceback
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from logsluice import context
from logsluice.encoding import JsonWriter, Marks, clean, cut, fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from logsluice.config import Limits
    from logsluice.redaction import Redactor

# The attributes of every record, in the order in which LogRecord.__init__ sets them (taskName from 3.12).
STANDARD = tuple(logging.LogRecord("", 0, "", 0, "", (), None).__dict__)
_ALL_STANDARD = frozenset(STANDARD)
GET_MESSAGE = logging.LogRecord.getMessage  # a record class with one of its own formats in its own way
OWN_KEY = "logsluice"  # in attributes: what was changed in the record
# Not extras: the standard ones, what a Formatter leaves behind, what structlog and OpenTelemetry add for themselves.
NOT_EXTRAS = frozenset(STANDARD) | {"message", "asctime", "taskName", "_logger", "_name", "_from_structlog", "_record"}
OTEL_KEYS = frozenset({"otelTraceID", "otelSpanID", "otelTraceSampled", "otelServiceName"})
ID_COLUMNS = ("trace_id", "span_id", "correlation_id", "user_id", "organization_id")

SMALLINT = 32767  # PostgreSQL's smallint, the type of `level`
INTEGER = 2**31 - 1  # PostgreSQL's integer, the type of `line`
OLDEST, NEWEST = 400 * 86400, 2 * 86400  # seconds around now in which a partition may be made (sql/: make_partitions)


@dataclass(frozen=True)
class Rules:
    """What capture needs of the settings. `now` is the clock that timestamps are judged by."""

    limits: Limits
    max_message_bytes: int
    redactor: Redactor
    service: str | None
    formatter: Callable[[], logging.Formatter | None]
    now: Callable[[], float] = time.time


@dataclass
class Captured:
    """One record as clean values: `fields` by the names of the `logs` columns, `attributes` and `context` as given."""

    fields: dict[str, str | None]
    attributes: dict[Any, Any]  # extras and the like, as given
    context: Mapping[str, Any]  # bound values that are no id column
    marks: Marks


def capture(record: logging.LogRecord, rules: Rules) -> Captured:
    """Return what is stored of this record, `attributes`, `stream` and `seq` still to be encoded by the caller."""
    marks = Marks()
    if not record.__dict__.keys() >= _ALL_STANDARD:
        record = _completed(record, marks)
    bound = context.current() or {}
    extras = extras_of(record)
    message, template, more = _message(record, rules, marks)
    if (instance := typed_of(record)) is not None:
        values = _values(instance, marks)
        if instance is record.msg:
            message = _typed_message(instance, values, message, rules)
        more = {**values, **more}
        extras = {key: value for key, value in extras.items() if value is not instance}
    exception = _exception(record, more.pop("exc_info", None), rules, marks)
    if record.stack_info:
        more["stack_info"] = safe_str(record.stack_info)
    if not isinstance(record.levelname, str) or record.levelname not in _usual_names(record.levelno):
        more["levelname"] = record.levelname
    if record.processName is not None and record.processName != "MainProcess":
        more["processName"] = record.processName
    ids = _ids(record, extras, bound, more)
    attributes = {**extras, **more}
    raw: dict[str, Any] = {
        "logger": record.name,
        "file": record.pathname,
        "func": record.funcName,
        "thread": record.threadName,
        "task": task_name(record),
        **ids,
    }
    fields: dict[str, str | None] = {
        name: None if value is None else _name(value, name, rules, marks) for name, value in raw.items()
    }
    fields["ts"] = timestamp(_created(record.created, rules.now(), marks))
    fields["level"] = _integer(record.levelno, -SMALLINT, SMALLINT, "level", marks) or "0"
    fields["line"] = _integer(record.lineno, 0, INTEGER, "line", marks)
    fields["service"] = rules.service
    fields["message"] = tidy(message, "message", rules, marks)
    fields["template"] = None if template is None else tidy(template, "template", rules, marks)
    for name, text in exception.items():
        fields[name] = None if text is None else tidy(text, name, rules, marks)
    rest = {key: value for key, value in bound.items() if key not in ids or (ids[key] is None and value is not None)}
    _keep_within(rules.limits, fields, (attributes, rest), rules, marks)
    return Captured(fields, attributes, rest, marks)


def typed_of(record: logging.LogRecord) -> Any:
    """Return the typed log (types.py) that a record is or carries, as its message or its extra "logsluice"; or None."""
    if hasattr(type(record.msg), "__logtype__"):
        return record.msg
    carried = record.__dict__.get(OWN_KEY)
    return carried if hasattr(type(carried), "__logtype__") else None


def _values(instance: Any, marks: Marks) -> dict[str, Any]:
    """Return a typed log's values by their fields, and mark what does not fit."""
    kind = instance.__logtype__
    problems = kind.problems(instance)
    if problems:
        marks.other["invalid"] = {"table": kind.table, **problems}
    try:
        found: dict[str, Any] = kind.values(instance)
    except Exception as error:
        marks.other["format_error"] = f"{type(error).__name__}: {safe_str(error)}"  # redacted, then cut, as all marks
        return {}
    return found


LIMITED = {"module": ("module", "component"), "operation": ("operation",)}  # limit -> attributes that it holds for


def _keep_within(
    limits: Limits, fields: dict[str, str | None], given: tuple[dict[Any, Any], ...], rules: Rules, marks: Marks
) -> None:
    """Keep names and the message to the characters that `limits` asks for. `given`: attributes, changed in place."""
    for most, name in ((limits.service, "service"), (limits.module, "logger"), (limits.message, "message")):
        if most is not None:
            fields[name] = _characters(fields[name] or "", most, name, marks)
    for limit, names in LIMITED.items():
        most = getattr(limits, limit)
        for values in given if most is not None else ():
            for name in names:
                if type(values.get(name)) is str:  # redacted first: half a secret is not recognised
                    values[name] = _characters(tidy(values[name], name, rules, marks), most, name, marks)


def _characters(text: str, most: int, where: str, marks: Marks) -> str:
    """Return the text in 1 to `most` characters, head and tail kept."""
    if not text:
        marks.sanitized.append(where)
        return "-"
    if len(text) <= most:
        return text
    tail = len(text) - (most - 1) // 2
    head = most - 1 - (most - 1) // 2
    marks.cut[where] = marks.cut.get(where, 0) + len(text[head:tail].encode())
    return f"{text[:head]}…{text[tail:]}"


def _typed_message(instance: Any, values: dict[str, Any], message: str, rules: Rules) -> str:
    """Return the line that a typed log is in a message, as JSON if it shows what must not be stored."""
    redactor = rules.redactor
    if redactor.active and any(redactor.is_secret(k) or isinstance(v, _CONTAINERS) for k, v in values.items()):
        marks = Marks()
        text = JsonWriter(rules.limits, rules.max_message_bytes, redactor, marks).mapping(values)
        if marks.redacted:
            return f"{instance.__logtype__.table} {text}"
    return message


_CONTAINERS = (dict, list, tuple, set, frozenset)  # what may hold keys
STANDARD_NAMES: dict[float, str] = {level: logging.getLevelName(level) for level in (10, 20, 30, 40, 50)}


def _usual_names(level: Any) -> tuple[str | None, ...]:
    """Return the names that say no more than the number does."""
    if not isinstance(level, (int, float)) or not abs(level) <= INTEGER:  # Python refuses to print a very long int
        return ()
    return STANDARD_NAMES.get(level), f"Level {level}"  # what logging calls a level that nobody named


def attributes_json(captured: Captured, rules: Rules, *, without: frozenset[str] = frozenset()) -> str | None:
    """Return the text of the `attributes` column; `without` names extras that have columns of their own."""
    writer = JsonWriter(rules.limits, rules.max_message_bytes, rules.redactor, captured.marks)
    pairs: dict[Any, Any] = {k: v for k, v in captured.context.items() if k not in captured.attributes}
    pairs.update(captured.attributes)
    if OWN_KEY in pairs:
        pairs[f"{OWN_KEY}_"] = pairs.pop(OWN_KEY)
    text = writer.mapping({k: v for k, v in pairs.items() if not (isinstance(k, str) and k in without)})
    if captured.marks:
        marks = JsonWriter(rules.limits, min(rules.max_message_bytes, _MARK_BYTES), rules.redactor, Marks())
        mark = f'"{OWN_KEY}": {marks.value(captured.marks.as_dict(), OWN_KEY)}'
        return "{" + mark + "}" if text == "{}" else f"{text[:-1]}, {mark}}}"
    return None if text == "{}" else text


_MARK_BYTES = 4096  # of any one text in the marks: a mark is never a second record


def tidy(text: str, where: str, rules: Rules, marks: Marks, limit: int | None = None) -> str:
    """Return the text cleaned, without secrets, and within `limit` bytes, `max_message_bytes` when None."""
    return fit(text, where, marks, rules.redactor, rules.max_message_bytes if limit is None else limit)


def _completed(record: logging.LogRecord, marks: Marks) -> logging.LogRecord:
    """Return a copy of a record that somebody took standard attributes from, with defaults in their place."""
    full = copy.copy(record)
    full.__dict__ = {**logging.LogRecord("", 0, "", 0, "", (), None).__dict__, **record.__dict__}
    marks.sanitized += sorted(_ALL_STANDARD - record.__dict__.keys() - {"taskName"})  # older Pythons' records have none
    return full


def extras_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the program added to the record: `extra=`, filters, record factories, loguru's nested extras."""
    extras = {key: value for key, value in record.__dict__.items() if key not in NOT_EXTRAS and key not in OTEL_KEYS}
    nested = extras.get("extra")
    # loguru's propagation wraps everything in one attribute called "extra".
    if "loguru" in sys.modules and issubclass(type(nested), dict) and len(extras) == 1:
        return dict(dict.items(nested))  # type: ignore[arg-type]
    return extras


def task_name(record: logging.LogRecord) -> str | None:
    """Return the name of the asyncio task that logs, if one does."""
    if hasattr(record, "taskName"):
        return None if record.taskName is None else str(record.taskName)
    asyncio: Any = sys.modules.get("asyncio")  # before 3.12 the record does not know
    try:
        if asyncio is not None and asyncio._get_running_loop() is not None:  # noqa: SLF001 - the one that never raises
            task = asyncio.current_task()
            return None if task is None else str(task.get_name())
    except Exception:
        pass  # asyncio is being imported, or a task class without names
    return None


def timestamp(created: float) -> str:
    """Return seconds since the epoch as a timestamptz literal in UTC with microseconds."""
    moment = str(int(created * 1e6))  # exact: microseconds since 1970 fit into a float's 53 bits until 2255
    return f"{utc_second(int(moment[:-6]))}.{moment[-6:]}Z"


def utc_second(second: int) -> str:
    """Return the part of a timestamp that is formatted once a second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))


def in_range(created: float, now: float) -> bool:
    """Whether a partition may be made for this moment; False for NaN."""
    return now - OLDEST <= created <= now + NEWEST


def _created(created: Any, now: float, marks: Marks) -> float:
    if isinstance(created, (int, float)) and in_range(created, now):
        return float(created)
    marks.sanitized.append("ts")
    marks.other["ts_original"] = created if isinstance(created, (int, float)) else repr(created)[:100]
    return now


def _integer(value: Any, least: int, most: int, where: str, marks: Marks) -> str | None:
    if isinstance(value, (int, float)) and least <= value <= most and value == int(value):
        return str(int(value))
    marks.sanitized.append(where)
    try:
        number = int(value)
    except Exception:
        return None
    marks.other[f"{where}_original"] = number
    return str(max(least, min(most, number)))


def _name(value: Any, where: str, rules: Rules, marks: Marks) -> str:
    if where in ID_COLUMNS and rules.redactor.active and rules.redactor.is_secret(where):
        marks.redacted.append(where)
        return rules.redactor.instead(where, value, lambda: encode_basestring(_named(value, where, rules, marks)))
    return _named(value, where, rules, marks)


def _named(value: Any, where: str, rules: Rules, marks: Marks) -> str:
    return tidy(safe_str(value), where, rules, marks, rules.limits.name_bytes)


def safe_str(value: Any) -> str:
    """Return `str(value)`, or a placeholder if that raises."""
    try:
        text = str(value)
        return text if type(text) is str else str.__str__(text)
    except Exception as error:
        return f"<unprintable {type(value).__name__}: {type(error).__name__}>"


def _message(record: logging.LogRecord, rules: Rules, marks: Marks) -> tuple[str, str | None, dict[Any, Any]]:
    """Return the text, the template if arguments were put into one, and what else the message held."""
    msg = record.msg
    formatter = rules.formatter()
    try:
        if issubclass(type(msg), dict):
            return _dict_message(msg, rules)  # type: ignore[arg-type]
        template = safe_str(msg) if record.args else None
        if formatter is not None:
            # On a copy without the exception: a Formatter writes into its record, and would repeat exc_text.
            mine = copy.copy(record)
            mine.exc_info = mine.exc_text = mine.stack_info = None
            return _text(formatter.format(mine)), template, {}
        if type(record).getMessage is not GET_MESSAGE:
            return safe_str(record.getMessage()), template, {}
        return safe_str(msg) if template is None else str(msg) % record.args, template, {}
    except Exception as error:  # a wrong format string, or an argument whose str or repr raises
        marks.other["format_error"] = f"{type(error).__name__}: {safe_str(error)}"  # redacted, then cut, as all marks
        # As values, not as their repr: secrets in them are found by their keys.
        marks.other["args"] = record.args[:_ARGS_KEPT] if type(record.args) is tuple else [record.args]
        return safe_str(msg), None, {}


_ARGS_KEPT = 20  # arguments of a wrong format string: as many as one can read


def _text(formatted: Any) -> str:
    """Return what a formatter made; those for JSON may return bytes."""
    return formatted.decode(errors="replace") if type(formatted) is bytes else safe_str(formatted)


def _dict_message(msg: dict[Any, Any], rules: Rules) -> tuple[str, str | None, dict[Any, Any]]:
    """Take apart what structlog's `wrap_for_formatter` hands over: its event dict as the message."""
    more = dict(dict.items(msg))
    for key in ("event", "message"):
        if key in more:
            return safe_str(more.pop(key)), None, more
    # As JSON: in the repr of a dict nobody finds the secrets.
    text = JsonWriter(rules.limits, rules.max_message_bytes, rules.redactor, Marks()).value(msg, "message")
    return text, None, more


def _exception(record: logging.LogRecord, from_dict: Any, rules: Rules, marks: Marks) -> dict[str, str | None]:
    """Return type, message and traceback text (chains and groups included); no frame is kept."""
    info: Any = record.exc_info
    if info is None or info is False:  # False: what exc_info=False leaves in the record
        info = from_dict
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) and len(info) > 1 else info
    if not issubclass(type(error), BaseException):
        # Formatted by somebody before us, for example by a QueueHandler in another process.
        text = record.exc_text or (from_dict if isinstance(from_dict, str) else None)
        return {"exc_type": None, "exc_message": None, "exc_text": safe_str(text) if text else None}
    kind = type(error)
    name = kind.__name__
    try:
        name = type_name(error)
        trace = info[2] if isinstance(info, tuple) and len(info) > 2 else error.__traceback__
        text = "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
    except Exception as failure:  # a hostile __str__, __cause__ or __notes__
        text = f"{name}: <traceback could not be formatted: {type(failure).__name__}>"
        marks.sanitized.append("exc_text")
    return {
        "exc_type": cut(clean(name, "exc_type", marks), rules.limits.name_bytes, "exc_type", marks),
        "exc_message": safe_str(error),
        "exc_text": text,
    }


def type_name(error: BaseException) -> str:
    """Return an exception's type with its module, as `exc_type` has it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# --- ids of other libraries, asked only when the program has imported them -------------------------------------------


def _ids(
    record: logging.LogRecord, extras: dict[str, Any], bound: Mapping[str, Any], more: dict[Any, Any]
) -> dict[str, Any]:
    """Return the id columns: an extra wins over a bound value, that over what other libraries know."""
    ids: dict[str, Any] = dict.fromkeys(ID_COLUMNS)
    ids.update(ambient_ids())
    for column, key in (("trace_id", "otelTraceID"), ("span_id", "otelSpanID")):
        value = record.__dict__.get(key)  # set by OpenTelemetry's LoggingInstrumentor; "0" means none
        if isinstance(value, str) and value not in {"", "0"}:
            ids[column] = value
    for source in (bound, more, extras):
        for column in ID_COLUMNS:
            value = source.get(column)
            if value is not None and not isinstance(value, (dict, list, tuple, set)):  # no id; stays in attributes
                ids[column] = value
    return ids


def ambient_ids() -> dict[str, Any]:
    """Return the ids that imported libraries hold for the current thread or task; {} for none."""
    found: dict[str, Any] = {}
    for module, ask in _AMBIENT.items():
        if module in sys.modules:
            try:
                ask(sys.modules[module], found)
            except Exception:
                pass  # half imported, or another version: an id less, never a record less
    return found


def ambient_possible() -> bool:
    """Whether any of these libraries is imported; asked again when the number of modules changes."""
    return any(module in sys.modules for module in _AMBIENT)


def _opentelemetry(module: Any, found: dict[str, Any]) -> None:
    span = module.get_current_span().get_span_context()
    if span.is_valid:
        found["trace_id"] = f"{span.trace_id:032x}"
        found["span_id"] = f"{span.span_id:016x}"


def _asgi_correlation_id(module: Any, found: dict[str, Any]) -> None:
    value = module.correlation_id.get()
    if value is not None:
        found["correlation_id"] = value


def _celery(module: Any, found: dict[str, Any]) -> None:
    task = module.get_current_task()
    if task is not None and task.request.id is not None:
        found["correlation_id"] = task.request.correlation_id or task.request.id


_AMBIENT: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "opentelemetry.trace": _opentelemetry,
    "asgi_correlation_id.context": _asgi_correlation_id,
    "celery._state": _celery,
}
