"""What the body of a 2xx says of single records: OTLP's partialSuccess, the items of `_bulk`. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from logsluice.delivery import Failure, Verdict

CONFLICT = 409  # of `create`: there is a document of this id: ours, sent before
# Of an item: no right, no index. Somebody must act, and it is not the record's fault.
_BLOCKED = frozenset({401, 403, 404})
DETAIL = 500  # characters of an answer that a dead letter quotes
_KIND = 80  # characters of an error's type; Elasticsearch's longest are half of that


@dataclass(frozen=True)
class Reading:
    """What became of each record, in order; None for `items`: all were taken but for `unnamed` ones."""

    items: list[Failure | None] | None = None
    unnamed: int = 0  # that were refused, the reply does not say which
    said: str = ""  # why; may hold row content
    wrong: str = ""  # the reply is not of this format: nothing is known


def nothing(_body: bytes, _records: int) -> Reading:
    """Take the status for all that there is to know."""
    return Reading()


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def otlp(body: bytes, records: int) -> Reading:
    """Read an ExportLogsServiceResponse; one that cannot be read says that all is well, as its status did."""
    partial = (_object(body) or {}).get("partialSuccess")
    if not isinstance(partial, dict):
        return Reading()
    said = str(partial.get("errorMessage") or "")
    try:
        refused = int(partial.get("rejectedLogRecords") or 0)  # a 64-bit integer: a string in JSON
    except (ValueError, TypeError, OverflowError):
        refused = 0
    return Reading(unnamed=max(0, min(records, refused)), said=said)


def bulk(body: bytes, records: int) -> Reading:
    """Read the reply to `_bulk`: 429 and 5xx of an item are tried again, a conflict is stored, others are dead."""
    found = _object(body)
    if found is None or not isinstance(found.get("errors"), bool):
        return Reading(wrong="the reply is none of _bulk")
    if found["errors"] is False:
        return Reading()
    items = found.get("items")
    if not isinstance(items, list) or len(items) != records:
        return Reading(wrong="the reply does not name every record")
    return Reading(items=[_item(one) for one in items])


def _item(item: Any) -> Failure | None:
    inner = next(iter(item.values()), None) if isinstance(item, dict) else None
    status = inner.get("status") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(status, int):
        return Failure("an item of the reply cannot be read", verdict=Verdict.RETRY)
    if 200 <= status < 300 or status == CONFLICT:
        return None
    error = inner.get("error")
    kind = str(error.get("type", "")) if isinstance(error, dict) else ""
    # The type alone: the reason quotes the value that was refused.
    text = f"a record was answered with {status} {''.join(c for c in kind if c.isalnum() or c in '_-')[:_KIND]}".strip()
    if status in {408, 429} or status >= 500:
        verdict, hint = Verdict.RETRY, ""
    elif status in _BLOCKED:
        verdict, hint = Verdict.BLOCKED, "see the index in url=, and what the token may do"
    else:
        verdict, hint = Verdict.REJECT, ""
    return Failure(text, verdict=verdict, status=status, hint=hint, detail=json.dumps(error)[:DETAIL])
