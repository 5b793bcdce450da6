"""Reports of `logs`: levels, services, loggers, messages, errors."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from logsluice.reports.scope import (
    BUCKET,
    ERROR,
    ERRORS,
    IN_SCOPE,
    RECORDS,
    WARNINGS,
    Scope,
    counts,
    fetch,
    has,
    percent,
    report,
)

if TYPE_CHECKING:
    from logsluice.reports.scope import Conn


@dataclass(frozen=True)
class LevelCounts:
    """Records of one bucket of time, by level number; a level without records is not among them."""

    at: datetime  # when the bucket begins
    counts: dict[int, int]

    @property
    def records(self) -> int:
        """Records of all levels."""
        return sum(self.counts.values())

    @property
    def errors(self) -> int:
        """Records of level ERROR and above."""
        return sum(count for level, count in self.counts.items() if level >= ERROR)


@dataclass(frozen=True)
class ErrorRate:
    """Which share of a bucket's records were errors (ERROR and above)."""

    at: datetime
    records: int
    errors: int
    error_percent: float | None  # None: no records


@dataclass(frozen=True)
class ServiceCount:
    """Records of a service."""

    service: str | None
    records: int
    errors: int  # ERROR and above
    warnings: int  # from WARNING to below ERROR
    error_percent: float
    last: datetime


@dataclass(frozen=True)
class LoggerCount:
    """Records of a logger."""

    logger: str | None
    records: int
    errors: int
    warnings: int
    last: datetime


@dataclass(frozen=True)
class TemplateCount:
    """Records of one message before its arguments were filled in."""

    template: str
    level: int  # the highest of them
    logger: str | None
    records: int
    first: datetime
    last: datetime
    example: str  # the newest


@dataclass(frozen=True)
class ErrorPattern:
    """Errors whose text is the same but for numbers and ids."""

    pattern: str  # numbers are #, ids <id>, addresses <email>
    source: str  # the table
    error_type: str | None
    records: int
    first: datetime
    last: datetime
    example: str  # the newest, as it is


@dataclass(frozen=True)
class LastError:
    """One record of level ERROR or above."""

    ts: datetime
    level: int
    logger: str | None
    message: str | None
    service: str | None
    exc_type: str | None


@dataclass(frozen=True)
class _Count:
    at: datetime
    level: int
    records: int


@report
def levels(conn: Conn, scope: Scope, every: timedelta) -> list[LevelCounts]:
    """Return the counts by level of each bucket of time, oldest first; a bucket without records is there, empty."""
    buckets = scope.buckets(every)
    counted, values = counts(conn, scope)
    query = f"SELECT {BUCKET} AS at, level, {RECORDS} AS records FROM {counted} GROUP BY 1, 2 ORDER BY 1, 2"
    found: dict[datetime, dict[int, int]] = defaultdict(dict)
    for one in fetch(conn, _Count, query, scope.values(every=every, **values)):
        found[one.at.astimezone(timezone.utc)][one.level] = one.records
    return [LevelCounts(at, found.get(at, {})) for at in buckets]


@report
def error_rate(conn: Conn, scope: Scope, every: timedelta) -> list[ErrorRate]:
    """Return the share of errors in each bucket of time, oldest first."""
    return [
        ErrorRate(one.at, one.records, one.errors, 100.0 * one.errors / one.records if one.records else None)
        for one in levels(conn, scope, every)
    ]


@report
def services(conn: Conn, scope: Scope) -> list[ServiceCount]:
    """Return the counts of each service, the one with most records first."""
    counted, values = counts(conn, scope)
    query = (
        f"SELECT service, {RECORDS} AS records, {ERRORS} AS errors, {WARNINGS} AS warnings, "
        f"{percent(ERRORS, RECORDS)} AS error_percent, max(last) AS last FROM {counted} "
        "GROUP BY service ORDER BY 2 DESC, service"
    )
    return fetch(conn, ServiceCount, query, scope.values(**values))


@report
def loggers(conn: Conn, scope: Scope, limit: int = 20) -> list[LoggerCount]:
    """Return the loggers with most records."""
    counted, values = counts(conn, scope)
    query = (
        f"SELECT logger, {RECORDS} AS records, {ERRORS} AS errors, {WARNINGS} AS warnings, max(last) AS last "
        f"FROM {counted} GROUP BY logger ORDER BY 2 DESC, logger LIMIT %(limit)s"
    )
    return fetch(conn, LoggerCount, query, scope.values(limit=limit, **values))


@report
def messages(conn: Conn, scope: Scope, limit: int = 20) -> list[TemplateCount]:
    """Return the templates with most records, by logger. A message without arguments is its own template."""
    table, group = (
        scope.table("logs"),
        "max(level) AS level, logger, count(*) AS records, min(ts) AS first, max(ts) AS last",
    )
    # By two halves: of coalesce(template, message) PostgreSQL expects millions of groups, and would sort every row. The
    # example is looked up by the index on ts, for the rows that are shown: to aggregate it would sort them all, too.
    query = (
        f"WITH half AS (SELECT template AS text, {group} FROM {table} WHERE {IN_SCOPE} AND template IS NOT NULL "
        f"GROUP BY template, logger UNION ALL SELECT coalesce(message, ''), {group} FROM {table} "
        f"WHERE {IN_SCOPE} AND template IS NULL GROUP BY message, logger), "
        "top AS (SELECT text, max(level) AS level, logger, sum(records)::bigint AS records, min(first) AS first, "
        "max(last) AS last FROM half GROUP BY text, logger ORDER BY records DESC, text, logger LIMIT %(limit)s) "
        "SELECT top.text AS template, top.level, top.logger, records, first, last, example FROM top CROSS JOIN LATERAL "
        f"(SELECT coalesce(message, '') AS example FROM {table} AS l WHERE {IN_SCOPE} AND ts = top.last "
        "AND coalesce(template, message, '') = top.text AND l.logger IS NOT DISTINCT FROM top.logger "
        "ORDER BY stream, seq DESC LIMIT 1) AS newest ORDER BY records DESC, 1, 3"
    )
    return fetch(conn, TemplateCount, query, scope.values(limit=limit))


# What is folded, in this order; \m and \M are the edges of a word in PostgreSQL. Each has text that it must leave:
# words of hexadecimal letters alone ("facade"), long names without a digit.
_FOLDS = (
    (r"[^\s<>\"',;()]+@[^\s<>\"',;()]+", "<email>"),
    (r"\m[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\M", "<id>"),
    (r"\m0x[0-9a-f]+\M", "<id>"),
    (r"\m(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{8,}\M", "<id>"),
    (r"\m(?=[a-z_]*[0-9])[a-z0-9_]{20,}\M", "<id>"),
    (r"[0-9]+(?:[.,:][0-9]+)*", "#"),
)
_FOLDED = 300  # characters of a text that make its pattern: what follows is seldom what went wrong
# Where errors are: table -> (text, type, condition). A failed message, or activity, is no record of `logs`.
_SOURCES = {
    "logs": ("message", "exc_type", f"level >= {ERROR}"),
    "activity": ("coalesce(error_message, activity_type)", "error_type", "activity_status = 'error'"),
    "api_request": ("error", "NULL", "error IS NOT NULL"),
    "job_log": ("message", "NULL", f"level >= {ERROR}"),
    "message_event": ("error_message", "NULL", "status = 'failed'"),
    "system_event": ("message", "NULL", f"level >= {ERROR}"),
}


@report
def errors(conn: Conn, scope: Scope, limit: int = 20) -> list[ErrorPattern]:
    """
    Return the commonest errors, of `logs` and of the shipped types, their texts folded to patterns.

    The pattern is made of the first line (300 characters at most); in `logs` the exception's type parts them further.
    """
    there = ["logs", *has(conn, scope, *(name for name in _SOURCES if name != "logs"))]
    rows = " UNION ALL ".join(
        f"SELECT '{name}' AS source, ts, stream, seq, coalesce({text}, '') AS text, {kind}::text AS error_type "
        f"FROM {scope.table(name)} WHERE {IN_SCOPE} AND {failed}"
        for name, (text, kind, failed) in _SOURCES.items()
        if name in there
    )
    folded, values = "left(split_part(text, chr(10), 1), %(folded)s)", scope.values(limit=limit, folded=_FOLDED)
    for number, (pattern, sign) in enumerate(_FOLDS):
        folded = f"regexp_replace({folded}, %(find{number})s, %(sign{number})s, 'gi')"
        values |= {f"find{number}": pattern, f"sign{number}": sign}
    query = (
        f"SELECT {folded} AS pattern, source, error_type, count(*) AS records, min(ts) AS first, max(ts) AS last, "
        "(array_agg(text ORDER BY ts DESC, stream, seq DESC))[1] AS example "
        f"FROM ({rows}) AS failed GROUP BY 1, 2, 3 ORDER BY records DESC, last DESC, 1, 2, 3 LIMIT %(limit)s"
    )
    return fetch(conn, ErrorPattern, query, values)


@report
def last_errors(conn: Conn, scope: Scope, limit: int = 5) -> list[LastError]:
    """Return the last records of level ERROR and above, newest first."""
    query = (
        f"SELECT ts, level, logger, message, service, exc_type FROM {scope.table('logs')} "
        f"WHERE {IN_SCOPE} AND level >= {ERROR} ORDER BY ts DESC, stream, seq DESC LIMIT %(limit)s"
    )
    return fetch(conn, LastError, query, scope.values(limit=limit))
