"""One captured record in the words of OTLP, Loki and Elasticsearch; and who writes. Pure; on the caller's thread."""

from __future__ import annotations

import calendar
import json
import re
import time
from typing import TYPE_CHECKING, Any

from logsluice.capture import Captured, Rules, attributes_json
from logsluice.formatters import SluiceJsonFormatter, level_name, otel_attributes, severity

if TYPE_CHECKING:
    from collections.abc import Mapping

ECS = SluiceJsonFormatter(names="ecs")

INT64 = 2**63
# Loki's defaults, limits_config.max_structured_metadata_entries_count and _size, less what is ours: one more and the
# whole request is refused.
MOST_METADATA, MOST_METADATA_BYTES = 120, 60_000

_OTEL_NAMES = {"WARNING": "WARN", "CRITICAL": "FATAL"}  # as OpenTelemetry's own handler writes them
_TRACE, _SPAN = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{16}")


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _extras(captured: Captured, rules: Rules) -> tuple[dict[str, Any], str]:
    """Return what the program added to a record, and the name of its level."""
    found = attributes_json(captured, rules)
    extras: dict[str, Any] = {} if found is None else json.loads(found)
    return extras, str(extras.pop("levelname", None) or level_name(int(captured.fields["level"] or 0)))


def nanoseconds(ts: str, seq: int = 0) -> int:
    """Return a captured timestamp, in UTC with microseconds, as nanoseconds; `seq` gives the last three digits."""
    second = calendar.timegm(time.strptime(ts[:19], "%Y-%m-%d %H:%M:%S"))
    return (second * 1_000_000 + int(ts[20:26])) * 1000 + seq % 1000


def any_value(value: Any) -> dict[str, Any]:
    """Return a JSON value as OTLP's AnyValue: 64-bit integers are strings, {} is null."""
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)} if -INT64 <= value < INT64 else {"stringValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(one) for one in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": key_values(value)}}
    return {"stringValue": str(value)}


def key_values(pairs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return OTLP's list of KeyValue."""
    return [{"key": key, "value": any_value(value)} for key, value in pairs.items()]


def otlp_record(_formatter: SluiceJsonFormatter, captured: Captured, rules: Rules) -> str:
    """Return a LogRecord: ids in hex, enums as numbers, 64-bit integers as strings."""
    fields = captured.fields
    extras, level = _extras(captured, rules)
    ids: dict[str, str] = {}
    for name, key, pattern in (("trace_id", "traceId", _TRACE), ("span_id", "spanId", _SPAN)):
        given = fields[name]
        if given is None:
            continue
        text = given.lower()
        if pattern.fullmatch(text) and text.strip("0"):
            ids[key] = text
        else:
            extras[name] = given  # of another system: no id that OTLP can hold, and not to be lost
    return _dumps(
        {
            "timeUnixNano": str(nanoseconds(fields["ts"] or "")),
            "observedTimeUnixNano": str(int(rules.now() * 1e6) * 1000),
            "severityNumber": severity(int(fields["level"] or 0)),
            "severityText": _OTEL_NAMES.get(level, level),
            "body": {"stringValue": fields["message"] or ""},
            "attributes": key_values(otel_attributes(fields, extras)),
            **ids,
        }
    )


def otlp_resource(who: dict[str, Any]) -> dict[str, Any]:
    """Return who writes, under OpenTelemetry's names."""
    named = {
        "service.name": who.get("service") or "unknown_service:python",  # what its SDKs write where nobody says
        "service.version": who.get("version"),
        "deployment.environment.name": who.get("environment"),
        "host.name": who.get("host"),
        "process.pid": who.get("pid"),
    }
    return {"attributes": key_values({key: value for key, value in named.items() if value is not None})}


def loki_entry(_formatter: SluiceJsonFormatter, captured: Captured, rules: Rules) -> str:
    """
    Return [nanoseconds, text, {structured metadata}].

    The last three digits of the time come from `seq`: two records of one microsecond with one text would be one to
    Loki, which takes them for the same; a record that is sent twice is one indeed.
    """
    fields = captured.fields
    extras, level = _extras(captured, rules)
    text = fields["message"] or ""
    if fields["exc_text"]:
        text = f"{text}\n{fields['exc_text']}"
    seq = int(fields["seq"] or 0)
    names = ("trace_id", "span_id", "correlation_id", "user_id", "organization_id", "func", "thread", "task")
    metadata = {name: fields[name] for name in (*names, "exc_type", "stream") if fields.get(name)}
    metadata |= {"logger": fields["logger"] or "", "seq": str(seq), "level_name": level}
    if fields["file"]:
        metadata["caller"] = f"{fields['file']}:{fields['line']}"
    mine = {_label(key): value if isinstance(value, str) else _dumps(value) for key, value in extras.items()}
    size = sum(len(key.encode()) + len((value or "").encode()) for key, value in (metadata | mine).items())
    fits = len(mine) == len(extras) and len(mine | metadata) <= MOST_METADATA and size <= MOST_METADATA_BYTES
    if fits and not mine.keys() & metadata.keys():
        metadata |= mine
    elif extras:  # too much for metadata, or names that would be one: in the text
        text = f"{text}\n{_dumps(extras)}"
    return _dumps([str(nanoseconds(fields["ts"] or "", seq)), text, metadata])


def _label(key: str) -> str:
    """Return a name as Prometheus has them."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", key)
    return f"_{name}" if not name or name[0].isdecimal() else name


def loki_labels(who: dict[str, Any], level: int) -> dict[str, str]:
    """Return the few labels that make a stream: each value of each makes another, so nothing of a record is here."""
    named = {
        "service": who.get("service"),
        "env": who.get("environment"),
        "level": level_name(level).lower(),
        "host": who.get("host"),
    }
    return {key: str(value) for key, value in named.items() if value}
