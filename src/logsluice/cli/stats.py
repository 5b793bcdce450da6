"""
`logsluice stats [REPORT]`: figures of what is stored, as tables for people or as JSON.

Without a REPORT the ones that a person asks for first; those without rows are left out there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from logsluice import reports
from logsluice.cli import common, pager
from logsluice.cli.arguments import moment, rows_wanted, seconds, utf8, width
from logsluice.cli.output import name, paint, say_anything, visible, wants_colour
from logsluice.cli.tables import Column, count, screen, share, size, table, text, took
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.types import UNITS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Conn = psycopg.Connection[Any]

# Widths of buckets, of which the first one is taken that makes no more lines than a screen has.
_WIDTHS = [
    timedelta(**{unit: number})
    for unit, numbers in {
        "seconds": (1, 5, 10, 30), "minutes": (1, 5, 10, 30), "hours": (1, 3, 6, 12), "days": (1, 7, 28),
    }.items()
    for number in numbers
]  # fmt: skip
_LINES = 12  # of time: a summary has other tables below
_SUMMARY = ("services", "levels", "errors", "messages", "loggers", "endpoints", "durations", "channels")
_ROLLED = tuple(one.replace("_", "-") for one in reports.ROLLED)  # what the roll-up knows
_SUMMARY_ROWS = 5
_BAR = 20  # columns of the longest bar


class Report(NamedTuple):
    """One report as a table."""

    title: str
    ask: Callable[[Conn, reports.Scope, Asked], Sequence[Any]]
    columns: Sequence[Column]
    below: Callable[[Any], Iterable[str]] = lambda _row: ()


class Asked(NamedTuple):
    """What else was asked for."""

    every: timedelta  # width of a bucket of time
    limit: int  # rows at most


def _number(head: str, field: str) -> Column:
    return Column(head, lambda row: count(getattr(row, field)))


def _text(head: str, field: str) -> Column:
    return Column(head, lambda row: text(getattr(row, field)), right=False)


def _clock(head: str, field: str) -> Column:
    return Column(head, lambda row: getattr(row, field))


def _share(head: str, field: str) -> Column:
    return Column(head, lambda row: share(getattr(row, field)))


def _bytes(head: str, field: str) -> Column:
    return Column(head, lambda row: size(getattr(row, field)))


def _times(*names: str) -> list[Column]:
    return [Column(one, lambda row, field=f"{one}_ms": took(getattr(row, field))) for one in names]  # type: ignore[misc]  # mypy has no type for it


_TIMES = _times("avg", "p50", "p95", "p99", "max")
_COUNTED = (_number("errors", "errors"), _number("warnings", "warnings"))
_ASKED = (_number("requests", "requests"), _number("errors", "errors"), _share("err %", "error_percent"))
_SLOW = _times("avg", "p95", "p99", "max")
_LIVED = (*_COUNTED, _number("tokens", "tokens"), _clock("last", "last"))


def _example(row: reports.ErrorPattern) -> Iterator[str]:
    yield f"{row.error_type}: {row.pattern}" if row.error_type else row.pattern
    if row.example != row.pattern:
        yield f"e.g. {row.example}"


REPORTS = {
    "services": Report("services", lambda conn, scope, _: reports.services(conn, scope), [
        _number("records", "records"), *_COUNTED, _share("err %", "error_percent"), _clock("last", "last"),
        _text("service", "service"),
    ]),
    "levels": Report("records by level", lambda conn, scope, asked: reports.levels(conn, scope, asked.every), []),
    "error-rate": Report("error rate", lambda conn, scope, asked: reports.error_rate(conn, scope, asked.every), [
        _clock("from", "at"), _number("records", "records"), _number("errors", "errors"),
        _share("err %", "error_percent"),
    ]),
    "errors": Report("errors, numbers and ids folded", lambda conn, scope, asked: reports.errors(
        conn, scope, asked.limit), [
        _number("records", "records"), _clock("first", "first"), _clock("last", "last"), _text("in", "source"),
    ], _example),
    "messages": Report("messages by template", lambda conn, scope, asked: reports.messages(conn, scope, asked.limit), [
        _number("records", "records"), _clock("last", "last"),
        Column("level", lambda row: name(row.level), right=False), _text("logger", "logger"),
        _text("message", "template"),
    ]),
    "loggers": Report("loggers", lambda conn, scope, asked: reports.loggers(conn, scope, asked.limit), [
        _number("records", "records"), *_COUNTED, _clock("last", "last"), _text("logger", "logger"),
    ]),
    "requests": Report("requests by service", lambda conn, scope, asked: reports.requests(conn, scope, asked.every), [
        _clock("from", "at"), *_ASKED, *_SLOW, _text("service", "service"),
    ]),
    "endpoints": Report("slowest endpoints", lambda conn, scope, asked: reports.endpoints(conn, scope, asked.limit), [
        *_ASKED, *_SLOW, Column("endpoint", lambda row: f"{row.method} {row.route}", right=False),
    ]),
    "durations": Report("durations", lambda conn, scope, asked: reports.durations(conn, scope, asked.limit), [
        _number("measured", "measured"), *_TIMES,
        Column("of", lambda row: f"{row.kind} {row.name}" if row.name else row.kind, right=False),
    ]),
    "channels": Report("messages by channel", lambda conn, scope, _: reports.channels(conn, scope), [
        _number("messages", "messages"), _number("sent", "sent"), _number("failed", "failed"), _number("open", "open"),
        _share("success %", "success_percent"), _text("channel", "channel"),
    ]),
    "deliveries": Report("how long messages took", lambda conn, scope, _: reports.deliveries(conn, scope), [
        _number("measured", "measured"), *_TIMES,
        Column("of", lambda row: f"{row.channel} {row.stage}", right=False),
    ]),
    "users": Report("users", lambda conn, scope, asked: reports.users(conn, scope, asked.limit), [
        _number("activities", "activities"), _number("sessions", "sessions"), *_LIVED, _text("user", "user_id"),
    ]),
    "sessions": Report("sessions", lambda conn, scope, asked: reports.sessions(conn, scope, asked.limit), [
        _number("activities", "activities"), *_LIVED, _text("user", "user_id"), _text("session", "session_id"),
    ]),
    "volume": Report("volume of logs", lambda conn, scope, _: reports.volume(conn, scope), [
        _number("records", "records"), Column("records/s", lambda row: f"{row.per_second:,.2f}"),
        _bytes("text", "text_bytes"), _bytes("a record", "avg_bytes"), _text("service", "service"),
    ]),
    "tables": Report("tables, whatever the time", lambda conn, scope, _: reports.tables(conn, scope), [
        Column("rows", lambda row: f"~{row.rows:,}"), _number("partitions", "partitions"),
        _bytes("table", "table_bytes"), _bytes("indexes", "index_bytes"), _bytes("total", "total_bytes"),
        _text("table", "table"),
    ]),
}  # fmt: skip


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("stats", help="show figures: levels, errors, durations, messages, sizes")
    parser.add_argument(
        "report", nargs="?", choices=tuple(REPORTS), metavar="REPORT",
        help=f"one of {', '.join(REPORTS)} (default: the usual ones of them, {_SUMMARY_ROWS} rows each)",
    )  # fmt: skip
    parser.add_argument(
        "--since", type=moment, default="1h", metavar="WHEN",
        help="from when: 15m, 1h, 7d ago, today, yesterday, or 2026-11-22T09:00Z (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--until", type=moment, default="now", metavar="WHEN", help="to when, as --since (default: now)"
    )
    parser.add_argument(
        "--rollup", action="store_true",
        help=f"whole hours of the roll-up, with what retention has deleted; has {', '.join(_ROLLED)}",
    )  # fmt: skip
    parser.add_argument("--service", type=utf8, help="only what this program logged (default: all)")
    parser.add_argument(
        "--by", type=width, metavar="SPAN", help="width of a line of time: 30s, 5m, 1h (default: what makes 12 lines)"
    )
    parser.add_argument("-n", type=rows_wanted, default=None, metavar="ROWS", help="how many rows (default: 20)")
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="SECONDS", help="for each query (default: %(default)g)"
    )
    parser.add_argument("-o", choices=("table", "json"), default="table", help="how (default: %(default)s)")
    common.add_dsn(parser)
    pager.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the reports; that there are no rows is said on stderr and is no error."""
    scope = reports.Scope(args.since, args.until, args.service, args.schema, rolled=args.rollup)
    if args.rollup and args.report not in {None, *_ROLLED}:
        raise ConfigError(f"the roll-up has nothing about {args.report}: only {', '.join(_ROLLED)}")
    names = (args.report,) if args.report else _ROLLED if args.rollup else _SUMMARY
    asked = Asked(args.by or _fitting(scope), args.n or (_SUMMARY_ROWS if args.report is None else 20))
    scope.buckets(asked.every)  # says what is wrong with --by before it connects
    found = {}
    with common.connect(args) as conn:
        try:
            with reports.snapshot(conn, timeout=args.timeout) as seen:
                for one in names:
                    found[one] = REPORTS[one].ask(seen, scope, asked)
        except psycopg.errors.QueryCanceled:
            raise LogsluiceError(
                f"{one}: not done in {args.timeout:g} s; ask for less time with --since, or give it more with --timeout"
            ) from None
        except psycopg.Error as error:
            raise LogsluiceError(f"{one}: {common.reason(error)}{common.next_step(error)}") from None
    say_anything(sys.stdout)
    if args.o == "json":
        print(as_json({"since": scope.since, "until": scope.until, "service": scope.service, **found}))
    else:
        print("\n".join(lines(found, scope, every=asked.every, width=screen(), colour=wants_colour(sys.stdout))))
    if not any(map(_any, found.values())):
        print(f"no rows {_span(scope)}; --since and --service say what to look at", file=sys.stderr)
    return 0


def lines(
    found: dict[str, Sequence[Any]], scope: reports.Scope, *, every: timedelta, width: int | None, colour: bool = False
) -> Iterator[str]:
    """Yield a title and a table for each report that has rows."""
    yield visible(_span(scope))
    for key, rows in found.items():
        if not _any(rows):
            continue
        one = REPORTS[key]
        yield ""
        by = f", by {_spelled(every)}" if key in {"levels", "error-rate", "requests"} else ""
        yield paint(f"{one.title}{by}", "bold", on=colour)
        columns = level_columns(rows) if key == "levels" else one.columns
        yield from table(columns, rows, width, below=one.below, colour=colour)


def level_columns(rows: Sequence[reports.LevelCounts]) -> list[Column]:
    """Return a column for each level that there is, and a bar."""
    most = max((row.records for row in rows), default=0) or 1
    there = sorted({level for row in rows for level in row.counts})
    return [
        _clock("from", "at"),
        *(Column(name(one), lambda row, level=one: count(row.counts.get(level, 0))) for one in there),  # type: ignore[misc]  # as above
        Column("", lambda row: "#" * math.ceil(row.records / most * _BAR), right=False),
    ]


def _any(rows: Sequence[Any]) -> bool:
    return any(getattr(row, "records", 1) for row in rows)


def _span(scope: reports.Scope) -> str:
    times = [f"{one.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}" for one in (scope.since, scope.until)]
    return (
        f"from {times[0]} to {times[1]} UTC, {'all services' if scope.service is None else f'service {scope.service}'}"
    )


def as_json(value: Any) -> str:
    """Return a value as JSON, ASCII without control characters."""
    return json.dumps(_plain(value)).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    """Return what JSON has: objects as their fields, moments as RFC 3339, NaN and infinity as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fitting(scope: reports.Scope) -> timedelta:
    span = scope.until - scope.since
    hour = timedelta(hours=1)
    widths = [one for one in _WIDTHS if not scope.rolled or one >= hour]
    return next((one for one in widths if span / one <= _LINES), -(-span // (_LINES * hour)) * hour)


def _spelled(every: timedelta) -> str:
    seconds = every.total_seconds()
    unit = next((one for one in reversed(UNITS) if seconds % UNITS[one] == 0), "s")
    return f"{seconds / UNITS[unit]:g}{unit}"
