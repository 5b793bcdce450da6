"""
What goes over HTTP. On the caller's thread a captured record becomes the LINE of a frame (lines.py); on the listener's,
frames are joined into the body of one request, and the reply is read. Pure.

| format        | LINE                                | body                           | reply                      |
|---------------|-------------------------------------|--------------------------------|----------------------------|
| ndjson        | SluiceJsonFormatter's object        | a line each                    | status                     |
| json          | as above                            | one array                      | status                     |
| otlp          | a LogRecord of OTLP's JSON          | resource, scopes by logger     | partialSuccess: how many   |
| loki          | [time, text, {structured metadata}] | streams by level               | status                     |
| elasticsearch | action, newline, ECS object         | all lines                      | items: which               |
| a callable    | as ndjson                           | what it makes of a list        | status                     |

https://github.com/open-telemetry/opentelemetry-proto/blob/main/docs/specification.md#otlphttp
https://github.com/grafana/loki/blob/main/docs/sources/reference/loki-http-api.md#ingest-logs
https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from logsluice import httprecords, httpreplies
from logsluice.lines import lines_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.capture import Captured, Rules
    from logsluice.formatters import SluiceJsonFormatter
    from logsluice.httpreplies import Reading

    Line = Callable[[SluiceJsonFormatter, Captured, Rules], str]
    Body = Callable[[bytes, dict[str, Any]], bytes]

_SEQ = re.compile(rb"^-?\d+", re.MULTILINE)


@dataclass(frozen=True)
class Format:
    """One way to say records over HTTP. `body` is told who writes: service, environment, version, host, pid."""

    content_type: str
    line: Line
    body: Body
    read: Callable[[bytes, int], Reading] = field(default=httpreplies.nothing)  # of a 2xx, for so many records


def format_of(given: str | Callable[[list[dict[str, Any]]], bytes]) -> Format:
    """Return the format that `format=` names, or that it is."""
    if isinstance(given, str):
        return FORMATS[given]
    make = given

    def body(frames: bytes, _who: dict[str, Any]) -> bytes:
        made = make([json.loads(line) for line in lines_of(frames).splitlines()])
        if not isinstance(made, (bytes, bytearray)):
            raise TypeError(f"format= must return bytes, it returned {type(made).__name__}")
        return bytes(made)

    return Format("application/octet-stream", _object, body)


def idempotency_key(stream: int, frames: bytes) -> str:
    """
    Return what names exactly these records: `stream:lo-hi`, where those are all from lo to hi.

    Else a checksum of the numbers follows: part of a batch must not have the name of another part, or a receiver that
    remembers names would throw it away.
    """
    found = _SEQ.findall(frames)
    seqs = [int(one) for one in found]
    low, high = min(seqs), max(seqs)
    key = f"{stream}:{low}-{high}"
    whole = len(seqs) == high - low + 1 and low > 0
    return key if whole else f"{key}:{zlib.crc32(b' '.join(found)):08x}"


def _columns(frames: bytes) -> list[list[bytes]]:
    """Return seq, level, logger and line of each frame."""
    return [frame.split(b"\t", 3) for frame in frames.split(b"\n")[:-1]]


def _object(formatter: SluiceJsonFormatter, captured: Captured, rules: Rules) -> str:
    # On one line, also of a formatter with an indent: outside of its strings JSON has no use for a newline.
    return formatter.line(captured, rules).replace("\n", " ")


def _bulk_line(_formatter: SluiceJsonFormatter, captured: Captured, rules: Rules) -> str:
    fields = captured.fields
    # `create`: the one action that data streams take. The id makes a retry a 409, which is as good as stored.
    action = f'{{"create":{{"_id":"{fields["stream"]}~{fields["seq"]}"}}}}'
    return f"{action}\n{_object(httprecords.ECS, captured, rules)}"


def _lines(frames: bytes, _who: dict[str, Any]) -> bytes:
    return lines_of(frames)


def _array(frames: bytes, _who: dict[str, Any]) -> bytes:
    return b"[" + lines_of(frames)[:-1].replace(b"\n", b",\n") + b"]"


def _otlp(frames: bytes, who: dict[str, Any]) -> bytes:
    by_logger: dict[bytes, list[bytes]] = {}
    for _, _, logger, line in _columns(frames):
        by_logger.setdefault(logger, []).append(line)
    scopes = [
        b'{"scope":{"name":%s},"logRecords":[%s]}' % (json.dumps(logger.decode()).encode(), b",".join(records))
        for logger, records in by_logger.items()
    ]
    resource = json.dumps(httprecords.otlp_resource(who), ensure_ascii=False, separators=(",", ":")).encode()
    return b'{"resourceLogs":[{"resource":%s,"scopeLogs":[%s]}]}' % (resource, b",".join(scopes))


def _loki(frames: bytes, who: dict[str, Any]) -> bytes:
    by_level: dict[bytes, list[bytes]] = {}
    for _, level, _, line in _columns(frames):
        by_level.setdefault(level, []).append(line)
    streams = [
        b'{"stream":%s,"values":[%s]}'
        % (json.dumps(httprecords.loki_labels(who, int(level)), ensure_ascii=False).encode(), b",".join(values))
        for level, values in by_level.items()
    ]
    return b'{"streams":[%s]}' % b",".join(streams)


FORMATS = {
    "ndjson": Format("application/x-ndjson", _object, _lines),
    "json": Format("application/json", _object, _array),
    "otlp": Format("application/json", httprecords.otlp_record, _otlp, httpreplies.otlp),
    "loki": Format("application/json", httprecords.loki_entry, _loki),
    "elasticsearch": Format("application/x-ndjson", _bulk_line, _lines, httpreplies.bulk),
}
