"""What goes over HTTP: each format's body, read by the other side's own definitions where there are any."""

from __future__ import annotations

import base64
import json
import logging
import re
import time

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from logsluice import context
from logsluice.formatters import SluiceJsonFormatter
from logsluice.handlers import HttpHandler
from logsluice.httpformats import FORMATS, format_of, idempotency_key
from logsluice.httprecords import MOST_METADATA, any_value, nanoseconds
from logsluice.httpreplies import bulk, otlp

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WHO = {"service": "shop", "environment": "test", "version": "1.2", "host": "box", "pid": 7}
NAMES = {10: "DEBUG", 20: "INFO", 30: "WARN", 40: "ERROR", 50: "FATAL"}


class Frames:
    """Frames of a handler that sends nothing."""

    def __init__(self, format_, **options):
        handler = HttpHandler(url="http://localhost/in", format=format_, **options)
        self.entry, self.target = handler._make(journal=False)[0], handler._targets["http"]
        self.handler = handler
        self.data = b""

    def log(self, message, *args, level=logging.INFO, name="shop", exc_info=None, created=None, **extra):
        record = logging.LogRecord(name, level, "/srv/shop.py", 12, message, args, exc_info, "pay")
        if created is not None:
            record.created = created
        record.__dict__.update(extra)
        self.data += self.entry.prepare(record)
        return self

    @property
    def body(self):
        return self.target.format.body(self.data, WHO)


# --- NDJSON, JSON -------------------------------------------------------------------------------------------------------


HOSTILE = 'tab\there "quoted"\r\nnew \v line \x00 end \ud800 \u2028 ü'


def test_ndjson_is_a_line_each():
    frames = Frames("ndjson").log("one %d", 1, color="red").log(HOSTILE).log("third", exc_info=_raised())
    assert frames.body.endswith(b"\n")
    found = [json.loads(line) for line in frames.body.split(b"\n")[:-1]]
    assert [one["seq"] for one in found] == [1, 2, 3]
    assert found[0]["message"] == "one 1"
    assert found[0]["color"] == "red"
    assert found[1]["message"].startswith('tab\there "quoted"\r\nnew \v line')
    assert "ValueError: no" in found[2]["exc_text"]


def test_json_is_one_array():
    frames = Frames("json").log("one").log(HOSTILE).log("three")
    assert [one["seq"] for one in json.loads(frames.body)] == [1, 2, 3]
    assert [one["seq"] for one in json.loads(Frames("json").log("one").body)] == [1]


def test_names_and_a_formatter_of_ones_own():
    assert json.loads(Frames("ndjson", names="ecs").log("one").body)["log.level"] == "info"
    frames = Frames("json")
    frames.handler.setFormatter(SluiceJsonFormatter(rename_fields={"message": "text"}))
    assert json.loads(frames.log("one").body)[0]["text"] == "one"


def test_any_other_formatter_makes_the_message():
    frames = Frames("otlp")
    frames.handler.setFormatter(logging.Formatter("<%(message)s>"))
    (record,) = _otlp(frames.log("one").body)[1]
    assert record.body.string_value == "<one>"


def _raised():
    try:
        raise ValueError("no")
    except ValueError:
        import sys

        return sys.exc_info()


# --- OTLP ---------------------------------------------------------------------------------------------------------------


def _otlp(body):
    """Read a body as a collector does: in OTLP's JSON ids are hex, where protobuf's own JSON has base64."""
    given = json.loads(body)
    for resource in given["resourceLogs"]:
        for scope in resource["scopeLogs"]:
            for record in scope["logRecords"]:
                for key in ("traceId", "spanId"):
                    if key in record:
                        record[key] = base64.b64encode(bytes.fromhex(record[key])).decode()
    request = json_format.ParseDict(given, ExportLogsServiceRequest(), ignore_unknown_fields=False)
    (resource,) = request.resource_logs
    return request, [record for scope in resource.scope_logs for record in scope.log_records]


def _plain(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {one.key: _plain(one.value) for one in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


def _attributes(record):
    return {one.key: _plain(one.value) for one in record.attributes}


def test_otlp_is_read_by_its_own_definitions():
    created = time.time() - 5
    extra = {
        "count": 2**40, "huge": 2**70, "ratio": 0.5, "flag": True, "nothing": None, "words": ["a", 1, None],
        "order": {"id": 7, "lines": [{"sku": "x"}]}, "empty": {}, "odd": HOSTILE,
    }  # fmt: skip
    frames = Frames("otlp", service="shop", redact="keys")
    with context.bound(trace_id=TRACE, span_id=SPAN, user_id="u1"):
        frames.log("paid %d", 17, level=logging.ERROR, created=created, exc_info=_raised(), password="canary", **extra)
    request, (record,) = _otlp(frames.body)
    assert record.body.string_value == "paid 17"
    assert record.severity_number == 17
    assert record.severity_text == "ERROR"
    assert record.trace_id.hex() == TRACE
    assert record.span_id.hex() == SPAN
    assert record.time_unix_nano == int(created * 1e6) * 1000
    assert record.observed_time_unix_nano >= record.time_unix_nano
    found = _attributes(record)
    assert found["huge"] == str(2**70)
    assert found["order"] == {"id": 7, "lines": [{"sku": "x"}]}
    assert found["words"] == ["a", 1, None]
    assert (found["count"], found["ratio"], found["flag"]) == (2**40, 0.5, True)
    assert found["exception.type"] == "ValueError"
    assert found["code.file.path"] == "/srv/shop.py"
    assert found["code.line.number"] == 12
    assert found["user.id"] == "u1"
    assert found["password"] == "[redacted]"
    assert re.fullmatch(r"\d+~1", found["log.record.uid"])
    resource = {one.key: _plain(one.value) for one in request.resource_logs[0].resource.attributes}
    assert resource == {
        "service.name": "shop", "service.version": "1.2", "deployment.environment.name": "test", "host.name": "box",
        "process.pid": 7,
    }  # fmt: skip


def test_otlp_has_a_scope_for_each_logger_and_keeps_their_order():
    frames = Frames("otlp")
    for number, name in enumerate(["a", "b", "a", 'odd "name"\t', "b"]):
        frames.log(str(number), name=name)
    request, _ = _otlp(frames.body)
    found = {
        scope.scope.name: [one.body.string_value for one in scope.log_records]
        for scope in request.resource_logs[0].scope_logs
    }
    assert found == {"a": ["0", "2"], "b": ["1", "4"], 'odd "name" ': ["3"]}


@pytest.mark.parametrize("level", [*NAMES, 1, 25, 60])
def test_otlp_severities(level):
    _, (record,) = _otlp(Frames("otlp").log("x", level=level).body)
    assert 1 <= record.severity_number <= 24
    if level in NAMES:
        assert record.severity_text == NAMES[level]
        assert record.severity_number == {10: 5, 20: 9, 30: 13, 40: 17, 50: 21}[level]


@pytest.mark.parametrize("wrong", ["req-17", "0" * 32, TRACE[:-1], TRACE + "00"])
def test_otlp_does_not_lose_an_id_that_is_none_of_its_own(wrong):
    with context.bound(trace_id=wrong):
        _, (record,) = _otlp(Frames("otlp").log("x").body)
    assert record.trace_id == b""
    assert _attributes(record)["trace_id"] == wrong


def test_otlp_in_its_json_has_64_bit_integers_as_strings_and_enums_as_numbers():
    with context.bound(trace_id=TRACE.upper()):
        given = json.loads(Frames("otlp").log("x", n=5).body)["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    assert type(given["timeUnixNano"]) is str
    assert type(given["severityNumber"]) is int
    assert given["traceId"] == TRACE
    assert {"key": "n", "value": {"intValue": "5"}} in given["attributes"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, {}), (True, {"boolValue": True}), (2**63 - 1, {"intValue": str(2**63 - 1)}), (2**63, {"stringValue": str(2**63)}),
        (-(2**63), {"intValue": str(-(2**63))}), (1.5, {"doubleValue": 1.5}), ([], {"arrayValue": {"values": []}}),
    ],
)  # fmt: skip
def test_any_value(value, said):
    assert any_value(value) == said


def test_otlp_partial_success():
    assert otlp(b"", 5).unnamed == 0
    assert otlp(b"{}", 5).unnamed == 0
    assert otlp(b"not json", 5).unnamed == 0
    assert otlp(b'{"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "x"}}', 5).unnamed == 2
    assert otlp(b'{"partialSuccess": {"rejectedLogRecords": 7}}', 5).unnamed == 5
    assert otlp(b'{"partialSuccess": {"rejectedLogRecords": "no", "errorMessage": "a warning"}}', 5).unnamed == 0


# --- Loki -----------------------------------------------------------------------------------------------------------------


def _loki(body):
    """Read a push as Loki does: times are strings of nanoseconds, labels and metadata flat texts."""
    given = json.loads(body)
    assert given.keys() == {"streams"}
    for stream in given["streams"]:
        assert stream.keys() == {"stream", "values"}
        assert stream["stream"]
        assert all(re.fullmatch(r"[a-zA-Z_]\w*", name) and type(text) is str for name, text in stream["stream"].items())
        for entry in stream["values"]:
            assert len(entry) == 3
            ts, line, metadata = entry
            assert type(ts) is str
            assert re.fullmatch(r"\d{19}", ts)
            assert type(line) is str
            assert all(re.fullmatch(r"[a-zA-Z_]\w*", key) and type(text) is str for key, text in metadata.items())
            assert len(metadata) <= 128
    return given["streams"]


def test_loki_has_few_labels_and_the_rest_as_metadata():
    frames = Frames("loki")
    with context.bound(trace_id=TRACE):
        frames.log("one", order={"id": 7}, count=3, color="red")
    frames.log("two", level=logging.ERROR).log("three").log(HOSTILE)
    streams = _loki(frames.body)
    assert [one["stream"] for one in streams] == [
        {"service": "shop", "env": "test", "level": "info", "host": "box"},
        {"service": "shop", "env": "test", "level": "error", "host": "box"},
    ]
    assert [len(one["values"]) for one in streams] == [3, 1]
    _, line, metadata = streams[0]["values"][0]
    assert line == "one"
    assert metadata["trace_id"] == TRACE
    assert metadata["logger"] == "shop"
    assert (metadata["order"], metadata["count"], metadata["color"]) == ('{"id":7}', "3", "red")


def test_loki_shows_the_traceback_in_the_line():
    ((_, line, metadata),) = _loki(Frames("loki").log("no", exc_info=_raised()).body)[0]["values"]
    assert line.startswith("no\nTraceback")
    assert metadata["exc_type"] == "ValueError"


def test_loki_takes_records_of_one_microsecond_for_different_ones():
    created = time.time()
    frames = Frames("loki")
    for _ in range(50):
        frames.log("same", created=created)
    times = [entry[0] for entry in _loki(frames.body)[0]["values"]]
    assert len(set(times)) == 50
    assert {int(one) // 1000 for one in times} == {int(created * 1e6)}


@pytest.mark.parametrize(
    "extra",
    [
        {f"key{n}": n for n in range(MOST_METADATA + 5)},
        {"large": "x" * 70_000},
        {"a-b": 1, "a.b": 2},
        {"thread_": 1, "logger": "mine"},
        {"": 1, "1st": 2, "trace-id": 3},
    ],
    ids=["many", "large", "alike", "taken", "odd"],
)
def test_loki_loses_no_extra(extra):
    ((_, line, metadata),) = _loki(Frames("loki").log("text", **extra).body)[0]["values"]
    text = json.dumps(metadata) + line
    for key, value in extra.items():
        assert str(value) in text
        assert key in text or re.sub(r"\W", "_", key) in text


def test_nanoseconds():
    assert nanoseconds("2026-01-02 03:04:05.678901Z") == 1767323045678901000
    assert nanoseconds("2026-01-02 03:04:05.678901Z", 1234) == 1767323045678901234


# --- Elasticsearch ------------------------------------------------------------------------------------------------------------


def test_bulk_is_create_and_document_with_an_id_of_its_own():
    frames = Frames("elasticsearch", service="shop").log("one", count=3).log(HOSTILE).log("no", exc_info=_raised())
    body = frames.body
    assert body.endswith(b"\n")
    lines = [json.loads(line) for line in body.split(b"\n")[:-1]]
    assert len(lines) == 6
    stream = frames.entry.buffer.stream
    assert lines[::2] == [{"create": {"_id": f"{stream}~{n}"}} for n in (1, 2, 3)]
    document = lines[1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", document["@timestamp"])
    assert (document["message"], document["log.level"], document["labels"]) == ("one", "info", {"count": 3})
    assert lines[5]["error.type"] == "ValueError"


def test_bulk_items():
    def reply(*statuses):
        items = [{"create": {"status": status, "error": {"type": "t", "reason": "canary"}}} for status in statuses]
        return json.dumps({"errors": True, "items": items}).encode()

    found = bulk(reply(201, 409, 429, 503, 400, 403, 404), 7).items
    assert [one if one is None else one.verdict.value for one in found] == [
        None, None, "retry", "retry", "reject", "blocked", "blocked",
    ]  # fmt: skip
    assert "canary" not in repr(found)
    assert bulk(reply(201), 2).wrong
    assert bulk(b'{"errors": false}', 2).items is None
    for wrong in (b"", b"null", b"[" * 100_000, b'{"errors": 1}', b'{"took": 3}'):
        assert bulk(wrong, 1).wrong
    odd = bulk(b'{"errors": true, "items": [7, {}, {"create": null}, {"create": {"status": "x"}}]}', 4).items
    assert [one.verdict.value for one in odd] == ["retry"] * 4


# --- all ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_body_is_no_longer_than_its_frames_and_an_envelope(name):
    """Else the first guess at what fits into a request would be wrong each time."""
    frames = Frames(name)
    for number in range(500):
        frames.log("order %d", number, name=f"shop.{number % 3}", color="red")
    assert len(frames.body) <= len(frames.data) + 1000


@pytest.mark.parametrize("name", FORMATS)
def test_a_frame_is_one_line_without_nul(name):
    frames = Frames(name).log(HOSTILE, level=31, name="a\tb\nc", exc_info=_raised(), odd=HOSTILE, deep=[{"a": HOSTILE}])
    assert frames.data.count(b"\n") == 1
    assert frames.data.count(b"\t") >= 3
    assert b"\0" not in frames.data
    seq, level, _, _ = frames.data.split(b"\t", 3)
    assert (seq, level) == (b"1", b"31")
    assert frames.target.record_of(frames.data).levelno == 31


@pytest.mark.parametrize("name", FORMATS)
def test_secrets_are_not_in_a_frame(name):
    frames = Frames(name).log("at https://me:canary@host/", token="canary", nested={"password": "canary"})
    assert b"canary" not in frames.data


def test_a_callable_gets_dicts_and_must_return_bytes():
    frames = Frames("ndjson").log("one").log(HOSTILE)
    got = []
    assert format_of(lambda records: got.extend(records) or b"x").body(frames.data, {}) == b"x"
    assert [one["seq"] for one in got] == [1, 2]
    with pytest.raises(TypeError, match="must return bytes, it returned str"):
        format_of(lambda records: "x").body(frames.data, {})


def test_an_idempotency_key_names_exactly_its_records():
    def key(*seqs):
        return idempotency_key(5, b"".join(b"%d\t20\ta\tx\n" % seq for seq in seqs))

    assert key(1, 2, 3) == key(3, 1, 2) == "5:1-3"
    assert key(7) == "5:7-7"
    parts = [key(1, 3), key(1, 2, 4, 3, 6), key(1, 2, 3, 6), key(1, 6), key(-1, 1, 2), key(-1)]
    assert len(set(parts)) == len(parts)
    assert all(part.count(":") == 2 for part in parts)
