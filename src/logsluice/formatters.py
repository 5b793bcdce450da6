"""
JSON lines: `SluiceJsonFormatter`, a python-json-logger formatter, for files, HTTP and anybody's StreamHandler.

What it writes is what `capture` made of the record: complete, redacted, cut to the limits, the record unchanged. Names
by presets:

    sluice  ts, level, logger, message, caller, …, extras flat           the names that hl, zap and caddy use
    otel    Timestamp, SeverityText, Body, Attributes, …                 OpenTelemetry's log data model
    ecs     @timestamp, log.level, message, error.type, labels, …        Elastic Common Schema
    plain   asctime, levelname, name, message, pathname, …, extras flat  logging's own names

https://github.com/open-telemetry/opentelemetry-specification/blob/main/specification/logs/data-model.md
https://www.elastic.co/guide/en/ecs-logging/overview/current/intro.html
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from typing import TYPE_CHECKING, Any

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from logsluice.capture import Captured, Rules, attributes_json, capture
from logsluice.config import Limits, Settings
from logsluice.errors import ConfigError
from logsluice.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

# JSON may hold them as they are; but some programs end a line there (Python's splitlines, an editor), and a terminal
# obeys what stands between 0x7f and 0x9f.
_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029]")
ECS_VERSION = "8.11.0"  # of the schema whose names these are
# OpenTelemetry's SeverityNumber for the least level of each range; between them the number grows with the level.
SEVERITIES = ((50, 21), (40, 17), (30, 13), (20, 9), (10, 5))


def severity(level: int) -> int:
    """Return OpenTelemetry's SeverityNumber (1 to 24) of a Python level."""
    for least, number in SEVERITIES:
        if level >= least:
            return min(24, number + min(3, (level - least) * 4 // 10))
    return 1


def unbroken(line: str) -> str:
    """Return a line of JSON that is one line for every program that reads lines."""
    if line.isascii() and "\x7f" not in line:
        return line
    return _BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def level_name(level: int) -> str:
    """Return the name that logging has for a level."""
    return logging.getLevelName(level)


def _caller(fields: dict[str, str | None]) -> str | None:
    file = fields["file"]
    return None if not file else f"{file}:{fields['line']}"


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)


def _iso(fields: dict[str, str | None]) -> str:
    return (fields["ts"] or "").replace(" ", "T", 1)  # RFC 3339


_IDS = ("service", "trace_id", "span_id", "correlation_id", "user_id", "organization_id")


def _said(head: dict[str, Any]) -> dict[str, Any]:
    """Return the named keys that have a value."""
    return {key: value for key, value in head.items() if value is not None and value != {}}


def _flat(head: dict[str, Any], extras: dict[str, Any]) -> dict[str, Any]:
    """Put extras beside the named keys; one that has the name of such a key, and says more, gets an underscore."""
    flat = _said(head)
    for key, value in extras.items():
        name = key
        while name in flat and str(value) != flat[name]:
            name += "_"
        flat[name] = value
    return flat


def _sluice(fields: dict[str, str | None], level: str, extras: dict[str, Any]) -> dict[str, Any]:
    head = {
        "ts": _iso(fields), "level": level, "logger": fields["logger"], "message": fields["message"],
        "caller": _caller(fields), "func": fields["func"], **{key: fields[key] for key in _IDS},
        "thread": fields["thread"], "task": fields["task"],
        **{key: fields[key] for key in ("exc_type", "exc_message", "exc_text")},
        "stream": fields.get("stream"), "seq": _whole(fields.get("seq")),
    }  # fmt: skip
    return _flat(head, extras)


def _plain(fields: dict[str, str | None], level: str, extras: dict[str, Any]) -> dict[str, Any]:
    head = {
        "asctime": _iso(fields), "levelname": level, "levelno": _whole(fields["level"]), "name": fields["logger"],
        "message": fields["message"], "pathname": fields["file"], "lineno": _whole(fields["line"]),
        "funcName": fields["func"], **{key: fields[key] for key in _IDS}, "threadName": fields["thread"],
        "taskName": fields["task"], "exc_info": fields["exc_text"],
        "stream": fields.get("stream"), "seq": _whole(fields.get("seq")),
    }  # fmt: skip
    return _flat(head, extras)


def otel_attributes(fields: dict[str, str | None], extras: dict[str, Any]) -> dict[str, Any]:
    """Return a record's attributes under OpenTelemetry's names, those without a value left out."""
    named = {
        "code.file.path": fields["file"], "code.function.name": fields["func"],
        "code.line.number": _whole(fields["line"]), "thread.name": fields["thread"],
        "exception.type": fields["exc_type"], "exception.message": fields["exc_message"],
        "exception.stacktrace": fields["exc_text"], "user.id": fields["user_id"],
        "organization.id": fields["organization_id"], "correlation_id": fields["correlation_id"],
        "task.name": fields["task"], "log.record.uid": _uid(fields),
    }  # fmt: skip
    return _flat(named, extras)


def _uid(fields: dict[str, str | None]) -> str | None:
    return f"{fields['stream']}~{fields['seq']}" if fields.get("stream") else None


def _otel(fields: dict[str, str | None], level: str, extras: dict[str, Any]) -> dict[str, Any]:
    head = {
        "Timestamp": _iso(fields),
        "SeverityText": level,
        "SeverityNumber": severity(int(fields["level"] or 0)),
        "Body": fields["message"],
        "TraceId": fields["trace_id"],
        "SpanId": fields["span_id"],
        "InstrumentationScope": {"Name": fields["logger"]},
        "Resource": {"service.name": fields["service"]} if fields["service"] else None,
        "Attributes": otel_attributes(fields, extras),
    }
    return _said(head)


def _ecs(fields: dict[str, str | None], level: str, extras: dict[str, Any]) -> dict[str, Any]:
    labels = {**{key: fields[key] for key in ("correlation_id",) if fields[key]}, **extras}
    head = {
        "@timestamp": _iso(fields),
        "log.level": level.lower(),
        "message": fields["message"],
        "ecs.version": ECS_VERSION,
        "log.logger": fields["logger"],
        "log.origin.file.name": fields["file"],
        "log.origin.file.line": _whole(fields["line"]),
        "log.origin.function": fields["func"],
        "process.thread.name": fields["thread"],
        "service.name": fields["service"],
        "trace.id": fields["trace_id"],
        "span.id": fields["span_id"],
        "user.id": fields["user_id"],
        "organization.id": fields["organization_id"],
        "error.type": fields["exc_type"],
        "error.message": fields["exc_message"],
        "error.stack_trace": fields["exc_text"],
        "event.id": _uid(fields),
        # Elastic keeps labels as keywords: a container would be refused.
        "labels": {
            key: json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
            for key, value in labels.items()
        },
    }
    return _said(head)


PRESETS: dict[str, Callable[[dict[str, str | None], str, dict[str, Any]], dict[str, Any]]] = {
    "sluice": _sluice,
    "otel": _otel,
    "ecs": _ecs,
    "plain": _plain,
}


class SluiceJsonFormatter(JsonFormatter):
    """
    A record as one JSON object on one line.

    `names`: a preset, see above. `rename_fields`, `static_fields`, `defaults`, `prefix` and `json_ensure_ascii` are
    python-json-logger's; keys without a value are left out. `redact` and `service` as the handlers have them; inside
    one of ours the handler's count, and `stream` and `seq` are there. Raises `ConfigError` for an unknown preset, and
    for what would not be one line of JSON or would do nothing: a format, a date format, an indent.
    """

    def __init__(
        self,
        fmt: None = None,
        datefmt: None = None,
        style: str = "%",
        validate: bool = True,
        *,
        names: str = "sluice",
        redact: Any = "keys",
        service: str | None = None,
        **options: Any,
    ) -> None:
        # The first four are how dictConfig's `class:` calls a formatter.
        if fmt is not None or datefmt is not None:
            raise ConfigError(
                "SluiceJsonFormatter takes no format and no datefmt: names= says which keys there are, and ts is "
                "RFC 3339; leave them out, or use rename_fields="
            )
        if options.get("json_indent") is not None:
            raise ConfigError("json_indent would break a record into several lines; show it with `jq .` instead")
        if names not in PRESETS:
            near = difflib.get_close_matches(str(names), PRESETS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, PRESETS))}"
            raise ConfigError(f"names: unknown preset {names!r}; {hint}")
        options.setdefault("json_ensure_ascii", False)  # people read it, and UTF-8 is what readers expect
        super().__init__(style=style, validate=validate, **options)
        self.names = names
        shared = Settings()
        self._rules = Rules(Limits(), shared.max_message_bytes, Redactor(redact), service, lambda: None)
        self._check_given()

    def _check_given(self) -> None:
        """Raise ConfigError for given values that JSON cannot hold: they would be in every line."""
        for option, given in (("static_fields", self.static_fields), ("defaults", self.defaults)):
            try:
                text = self.jsonify_log_record(dict(given))
                text.encode()
                json.loads(text, parse_constant=_not_json)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{option}: {given!r} is not JSON ({error})") from None
        if not self.prefix.isprintable():
            raise ConfigError(f"prefix must be printable text without a line break, got {self.prefix!r}")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without a newline at its end."""
        return self.line(capture(record, self._rules), self._rules)

    def line(self, captured: Captured, rules: Rules) -> str:
        """Return the line of what was captured; `stream` and `seq` are in its fields if it is a handler's."""
        text = attributes_json(captured, rules)
        extras: dict[str, Any] = {} if text is None else json.loads(text)
        fields = captured.fields
        level = str(extras.pop("levelname", None) or level_name(int(fields["level"] or 0)))
        found = PRESETS[self.names](fields, level, extras)
        data = {self._get_rename(key): value for key, value in self.defaults.items()}
        data.update((self._get_rename(key), value) for key, value in found.items())
        data.update((self._get_rename(key), value) for key, value in self.static_fields.items())
        return unbroken(self.serialize_log_record(self.process_log_record(data)))

    def settled(self) -> str | None:
        """
        Return all that its lines depend on beside the records, as one text; None if somebody's code has a say in them.

        Such as a subclass's, or a serializer's: what that makes of one record says nothing of the next.
        """
        code = (type(self), self.json_serializer, self.json_encoder, self.json_default)
        # By number: a method that was put on this formatter alone is one attribute more.
        if code != (SluiceJsonFormatter, json.dumps, JsonEncoder, None) or len(vars(self)) != _ATTRIBUTES:
            return None
        return repr((self.names, self.prefix, self.json_ensure_ascii, self.defaults, self.static_fields,
                     self.rename_fields))  # fmt: skip


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is none of its numbers")


_ATTRIBUTES = len(vars(SluiceJsonFormatter()))
