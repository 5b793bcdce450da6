"""Reports of how long it took: requests by service and endpoint, models' calls, retrievals, spans."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta  # noqa: TC003 - fields of dataclasses
from typing import TYPE_CHECKING

from logsluice.reports.scope import BUCKET, IN_SCOPE, Scope, fetch, figures, has, percent, report

if TYPE_CHECKING:
    from logsluice.reports.scope import Conn


@dataclass(frozen=True)
class Durations:
    """What one kind of work took, of those whose time was measured."""

    kind: str  # request, llm call, retrieval, processing, span
    name: str | None  # of the span; None for the others
    measured: int
    avg_ms: float
    max_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class RequestStats:
    """Requests of a service in a bucket of time. An error: status 500 and above, or no answer."""

    service: str | None
    at: datetime  # when the bucket begins
    requests: int
    errors: int
    error_percent: float
    avg_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class EndpointStats:
    """Requests of one method and route (the path, where no route was known), errors as above."""

    method: str
    route: str
    requests: int
    errors: int
    error_percent: float
    avg_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


_FAILED = "count(*) FILTER (WHERE status IS NULL OR status >= 500)"
_REQUESTS = f"count(*) AS requests, {_FAILED} AS errors, {percent(_FAILED, 'count(*)')} AS error_percent"

# (table, kind, name, milliseconds)
_MEASURED = (
    ("api_request", "request", "NULL", "duration_ms"),
    ("activity", "llm call", "NULL", "llm_call_duration_ms"),
    ("activity", "retrieval", "NULL", "retrieval_duration_ms"),
    ("activity", "processing", "NULL", "processing_time_ms"),
    ("spans", "span", "name", "extract(epoch FROM ended - started)::float8 * 1000"),
)


@report
def durations(conn: Conn, scope: Scope, limit: int = 20) -> list[Durations]:
    """Return what requests, models' calls, retrievals and processing took, then the spans that took most in all."""
    there = has(conn, scope, *{table for table, *_ in _MEASURED})
    found = []
    for table, kind, name, x in _MEASURED:
        if table not in there:
            continue
        query = (
            f"SELECT '{kind}' AS kind, name, count(x) AS measured, {figures('x')} FROM "
            f"(SELECT {name}::text AS name, {x} AS x FROM {scope.table(table)} WHERE {IN_SCOPE}) AS m "
            "GROUP BY name HAVING count(x) > 0 ORDER BY sum(x) DESC, name LIMIT %(limit)s"
        )
        found += fetch(conn, Durations, query, scope.values(limit=limit))
    return found


@report
def requests(conn: Conn, scope: Scope, every: timedelta) -> list[RequestStats]:
    """Return the requests of each service and bucket of time, oldest first; a bucket without requests is not there."""
    scope.buckets(every)  # says what is wrong with the width
    if not has(conn, scope, "api_request"):
        return []
    query = (
        f"SELECT service, {BUCKET} AS at, {_REQUESTS}, {figures('duration_ms')} FROM {scope.table('api_request')} "
        f"WHERE {IN_SCOPE} GROUP BY 1, 2 ORDER BY 2, 1"
    )
    return fetch(conn, RequestStats, query, scope.values(every=every))


@report
def endpoints(conn: Conn, scope: Scope, limit: int = 20) -> list[EndpointStats]:
    """Return the slowest endpoints, by p95; those whose time is not known come last."""
    if not has(conn, scope, "api_request"):
        return []
    query = (
        f"SELECT method, coalesce(route, path) AS route, {_REQUESTS}, {figures('duration_ms')} "
        f"FROM {scope.table('api_request')} WHERE {IN_SCOPE} GROUP BY 1, 2 "
        "ORDER BY p95_ms DESC NULLS LAST, requests DESC, 1, 2 LIMIT %(limit)s"
    )
    return fetch(conn, EndpointStats, query, scope.values(limit=limit))
