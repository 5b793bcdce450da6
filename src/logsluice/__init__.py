"""
logsluice: Python logs into PostgreSQL, files, HTTP. The map, in the order in which a record meets the stations.

    filters.py     samples, rate limits, duplicates, where people set one     caller's thread
    handlers.py    PostgresHandler, JsonFileHandler, HttpHandler, SinkHandler: their options, their sinks
    base.py        what all handlers are: handle, flush, close                caller's thread
    quick.py       an ordinary record, from `handle` to the buffer            caller's thread
    quicklines.py  the same where it becomes a line of JSON                   caller's thread
    capture.py     LogRecord -> captured fields. Pure                         caller's thread
    encoding.py    fields -> frame, one row of COPY text. Pure                caller's thread
    intake.py      Intake(QueueHandler): any record's frame, enqueue          caller's thread
    buffer.py      Buffer: the segments that wait                             both; rules on top
    journal.py, folder.py, journal_buffer.py, keeper.py, adoption.py          with journal=: segments that are files
    listener.py    Listener(QueueListener): the loop                          the listener's thread
    shards.py      with connections=N: which pair a record goes to            both
    routes.py      one table's stream, and where its delivery stands          the listener's thread
    sinks/         the Sink protocol; postgres.py: the transaction; link.py, failures.py; file.py; guard.py
                   http.py: the connection, endpoint.py: the request; wire, replies, tokens, buried
    delivery.py    verdicts on failures, back-off, breaker. Pure
    fallback.py    the last resort;  decoding.py: frames back to rows
    isolation.py   which rows a rejection names; notices.py: what is said on stderr
    lifecycle.py   fork, exit, SIGTERM;  figures.py: what `stats` says;  keys.py: what keys records have
    schema.py, partitions.py, columns.py, catalogue.py  the tables that rows go to;  targets.py: what any frames are for
    privileges.py  what a role lacks to write there, and the statement that gives it
    migrations.py  what is applied of sql/, what is not, what was changed since: the plan of `logsluice migrate`
    types.py       typed logs: a dataclass that is a table, and a route of its own;  quicktyped.py: its quick way
    lines.py, formatters.py, rotation.py    frames that are lines of JSON or text, and what becomes of full files
    httpformats.py, httprecords.py, httpreplies.py, httptarget.py    what goes over HTTP, and what comes back. Pure
    ---- ground ----
    accounting.py  redaction.py  context.py  config.py  checks.py  httpconfig.py  configfile.py  diagnostics.py
    patterns.py (what secrets look like), crypto.py (encrypted values, and back): redaction.py's
    primitives.py  crashpoints.py  errors.py
    ---- beside the path ----
    children.py    spawned children;  testing.py, pytest_plugin.py: rows for people's own tests
    middleware/    rows for requests (ASGI, WSGI) and jobs (functions, Celery)
    retention.py, holds.py: which rows go, which stay;  maintenance.py: one run; pruning.py, sweep.py: what it takes
    maintainer.py  runs from a thread of its own;  erasure.py: one person's rows
    archive/       rows into files that are verified before they are dropped;  archiving.py: by hand, and back
    rollup.py      `logs` counted by hour, right under late rows, where one asks for it
    deadletters/   dead letters, mended, sent again, dropped;  devserver/  an embedded PostgreSQL;  doctor/;  cli/
    journals.py    a journal's folder, shown and loaded by hand;  conformance.py: the rules of a sink, tried
    query.py       stored records, read: grammar.py (the filter, pure), conditions.py (its SQL), records.py, ids.py
    following.py   the same, followed as it is stored; late.py: what comes too late; snapshots.py: which rows are new
    tracing.py     traces and their spans, begun and ended; traceparent.py: W3C headers;  traces.py: one, read as a tree
    reports/       figures of what is stored, exact: `logsluice stats`
    contrib/       types of logs that many programs keep, each a table when it is first used
    console.py     ConsoleHandler: lines for people at a terminal, written by the call itself;  presets.py

A record is one `logging.LogRecord`; its frame is the record as immutable bytes; a segment is a memory map that frames
are appended to; a batch is a slice of a segment, sent in one transaction; the watermark is the position up to which a
stream is committed. docs/architecture.md tells the same in one page.

Invariants: no lock is taken in a logging call (one that rolls a journal segment may wait for the folder); frames
hold no NUL and end in a newline; one batch of a stream is in flight at a time; rows, dead letters and watermark commit
together; what is not stored is counted.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logsluice import context, testing, traces, tracing
    from logsluice.accounting import Stats
    from logsluice.children import child_init
    from logsluice.console import ConsoleHandler
    from logsluice.errors import ConfigError, LogsluiceError
    from logsluice.handlers import HttpHandler, JsonFileHandler, PostgresHandler, SinkHandler
    from logsluice.lifecycle import drain_on_sigterm
    from logsluice.tracing import active_traces, extract, inject, span, start_span, trace

__all__ = [
    "ConfigError", "ConsoleHandler", "HttpHandler", "JsonFileHandler", "LogsluiceError", "PostgresHandler",
    "SinkHandler", "Stats", "active_traces", "child_init", "context", "drain_on_sigterm", "extract", "inject", "span",
    "start_span", "testing", "trace", "traces", "tracing",
]  # fmt: skip

_HOMES = {
    "ConfigError": "logsluice.errors",
    "ConsoleHandler": "logsluice.console",
    "LogsluiceError": "logsluice.errors",
    "HttpHandler": "logsluice.handlers",
    "JsonFileHandler": "logsluice.handlers",
    "PostgresHandler": "logsluice.handlers",
    "SinkHandler": "logsluice.handlers",
    "Stats": "logsluice.accounting",
    "child_init": "logsluice.children",
    "drain_on_sigterm": "logsluice.lifecycle",
    **dict.fromkeys(("active_traces", "extract", "inject", "span", "start_span", "trace"), "logsluice.tracing"),
}


def __getattr__(name: str) -> Any:
    """Load public names when they are asked for: `import logsluice` must cost a program next to nothing."""
    if name in {"context", "testing", "traces", "tracing"}:
        return importlib.import_module(f"logsluice.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
