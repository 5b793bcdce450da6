"""
Figures of what is stored: how much, how often it failed, how long it took.

    from logsluice import reports

    scope = reports.Scope.last(timedelta(hours=1), service="shop")
    for pattern in reports.errors("dbname=logs", scope):
        print(pattern.records, pattern.pattern)

Each function reads the rows themselves, so its figures are exact (percentiles are `percentile_cont`), and costs what
reading all rows of the scope costs. With `rolled=True` in the scope five of them (`ROLLED`) read the hourly roll-up
instead, as exactly. It takes a psycopg connection, which stays open, or a libpq string; blocks until the server has
answered; and returns a list of frozen dataclasses, none for a typed table that no program has used here. Times are
milliseconds, rates percent, moments aware datetimes.

Raises psycopg's errors, and LogsluiceError where there is no table `logs`.

scope.py: what is looked at, and how a query is run; records.py: `logs`; requests.py: `api_request` and durations;
work.py: messages and sessions; storage.py: tables and streams.
"""

from __future__ import annotations

from logsluice.reports.records import (
    ErrorPattern,
    ErrorRate,
    LastError,
    LevelCounts,
    LoggerCount,
    ServiceCount,
    TemplateCount,
    error_rate,
    errors,
    last_errors,
    levels,
    loggers,
    messages,
    services,
)
from logsluice.reports.requests import Durations, EndpointStats, RequestStats, durations, endpoints, requests
from logsluice.reports.scope import ROLLED, Scope, snapshot
from logsluice.reports.storage import StreamState, TableSize, Volume, streams, tables, volume
from logsluice.reports.work import (
    ChannelStats,
    DeliveryTimes,
    FailedMessage,
    SessionStats,
    UserStats,
    channels,
    deliveries,
    failed_messages,
    sessions,
    users,
)

__all__ = [
    "ROLLED", "ChannelStats", "DeliveryTimes", "Durations", "EndpointStats", "ErrorPattern", "ErrorRate",
    "FailedMessage", "LastError", "LevelCounts", "LoggerCount", "RequestStats", "Scope", "ServiceCount",
    "SessionStats", "StreamState", "TableSize", "TemplateCount", "UserStats", "Volume", "channels", "deliveries",
    "durations", "endpoints", "error_rate", "errors", "failed_messages", "last_errors", "levels", "loggers",
    "messages", "requests", "services", "sessions", "snapshot", "streams", "tables", "users", "volume",
]  # fmt: skip
