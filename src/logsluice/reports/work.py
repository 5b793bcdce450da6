"""Reports of messages that were sent, and of what users did in their sessions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - a field of dataclasses
from typing import TYPE_CHECKING

from logsluice.reports.scope import IN_SCOPE, Scope, fetch, figures, has, percent, report

if TYPE_CHECKING:
    from logsluice.reports.scope import Conn


@dataclass(frozen=True)
class ChannelStats:
    """Messages of a channel that something became of in the scope, by the last of it."""

    channel: str
    messages: int
    sent: int
    failed: int
    open: int  # queued or processing
    success_percent: float | None  # of sent and failed; None: neither


@dataclass(frozen=True)
class DeliveryTimes:
    """How long a channel's messages took, of those that were sent in the scope; they may have been queued before it."""

    channel: str
    stage: str  # queued to processing, processing to sent, queued to sent
    measured: int  # messages with both ends
    avg_ms: float
    max_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class FailedMessage:
    """One attempt at a message that failed."""

    ts: datetime
    channel: str
    job_id: str
    attempts: int  # which attempt it was, from 1
    error_message: str | None


@dataclass(frozen=True)
class UserStats:
    """What a user did."""

    user_id: str | None
    sessions: int
    activities: int
    errors: int
    warnings: int
    tokens: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class SessionStats:
    """What was done in a session."""

    session_id: str | None
    user_id: str | None  # the last one known
    activities: int
    errors: int
    warnings: int
    tokens: int
    first: datetime
    last: datetime


@report
def channels(conn: Conn, scope: Scope) -> list[ChannelStats]:
    """Return the messages of each channel, the busiest first: one a job, by its last event in the scope."""
    if not has(conn, scope, "message_event"):
        return []
    counts = {one: f"count(*) FILTER (WHERE status = '{one}')" for one in ("sent", "failed")}
    query = (
        f"SELECT channel, count(*) AS messages, {counts['sent']} AS sent, {counts['failed']} AS failed, "
        "count(*) FILTER (WHERE status NOT IN ('sent', 'failed')) AS open, "
        f"{percent(counts['sent'], counts['sent'] + ' + ' + counts['failed'])} AS success_percent "
        f"FROM (SELECT DISTINCT ON (job_id, channel) channel, status FROM {scope.table('message_event')} "
        f"WHERE {IN_SCOPE} ORDER BY job_id, channel, ts DESC, stream, seq DESC) AS message "
        "GROUP BY channel ORDER BY messages DESC, channel"
    )
    return fetch(conn, ChannelStats, query, scope.values())


@report
def deliveries(conn: Conn, scope: Scope) -> list[DeliveryTimes]:
    """Return how long messages waited and were worked on, from the first event of each status, retries included."""
    if not has(conn, scope, "message_event"):
        return []
    table = scope.table("message_event")
    # The jobs sent in the scope, then all their events, found by the index on job_id: a message that waited since
    # before the scope is the slow one, and must not be left out.
    moments = ", ".join(f"min(ts) FILTER (WHERE status = '{one}') AS {one}" for one in ("queued", "processing", "sent"))
    query = (
        f"WITH job AS (SELECT DISTINCT job_id, channel FROM {table} WHERE {IN_SCOPE} AND status = 'sent'), "
        f"message AS (SELECT channel, {moments} FROM {table} JOIN job USING (job_id, channel) "
        "WHERE ts < %(until)s GROUP BY job_id, channel), "
        "stage AS (SELECT channel, stage, place, extract(epoch FROM ends - begins)::float8 * 1000 AS x "
        "FROM message, LATERAL (VALUES ('queued to processing', 1, queued, processing), "
        "('processing to sent', 2, processing, sent), ('queued to sent', 3, queued, sent)) "
        "AS s (stage, place, begins, ends) WHERE begins IS NOT NULL AND ends IS NOT NULL) "
        f"SELECT channel, stage, count(x) AS measured, {figures('x')} FROM stage "
        "GROUP BY channel, stage, place ORDER BY channel, place"
    )
    return fetch(conn, DeliveryTimes, query, scope.values())


@report
def failed_messages(conn: Conn, scope: Scope, limit: int = 5) -> list[FailedMessage]:
    """Return the last attempts that failed, newest first."""
    if not has(conn, scope, "message_event"):
        return []
    query = (
        f"SELECT ts, channel, job_id, attempts, error_message FROM {scope.table('message_event')} "
        f"WHERE {IN_SCOPE} AND status = 'failed' ORDER BY ts DESC, stream, seq DESC LIMIT %(limit)s"
    )
    return fetch(conn, FailedMessage, query, scope.values(limit=limit))


_DONE = (
    "count(*) AS activities, count(*) FILTER (WHERE activity_status = 'error') AS errors, "
    "count(*) FILTER (WHERE activity_status = 'warning') AS warnings, coalesce(sum(token_count), 0)::bigint AS tokens, "
    "min(ts) AS first, max(ts) AS last"
)


@report
def users(conn: Conn, scope: Scope, limit: int = 20) -> list[UserStats]:
    """Return the users with most activities; user_id None: those of nobody known."""
    if not has(conn, scope, "activity"):
        return []
    query = (
        f"SELECT user_id, count(DISTINCT session_id) AS sessions, {_DONE} FROM {scope.table('activity')} "
        f"WHERE {IN_SCOPE} GROUP BY user_id ORDER BY activities DESC, user_id LIMIT %(limit)s"
    )
    return fetch(conn, UserStats, query, scope.values(limit=limit))


@report
def sessions(conn: Conn, scope: Scope, limit: int = 20) -> list[SessionStats]:
    """Return the sessions with most activities; session_id None: those of no session."""
    if not has(conn, scope, "activity"):
        return []
    query = (
        "SELECT session_id, (array_agg(user_id ORDER BY ts DESC, stream, seq DESC) "
        f"FILTER (WHERE user_id IS NOT NULL))[1] AS user_id, {_DONE} FROM {scope.table('activity')} "
        f"WHERE {IN_SCOPE} GROUP BY session_id ORDER BY activities DESC, session_id LIMIT %(limit)s"
    )
    return fetch(conn, SessionStats, query, scope.values(limit=limit))
