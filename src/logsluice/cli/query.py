"""
`logsluice query FILTER`: the newest records that fit, oldest first, in a format for people or for programs.

It ends as grep does: 0 when something was found, 1 when nothing, 2 for a filter that cannot be read or what failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import sys
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING

from logsluice.cli import common, output, pager
from logsluice.query import Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from logsluice.records import Record

FOUND, NONE, FAILED = 0, 1, 2  # grep's
MOST = 1_000_000  # records held in memory before the first is printed: 1 GB of ordinary ones


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("query", help='find records: level>=warning service=shop "card refused"')
    add_options(parser)
    pager.add_option(parser)
    parser.add_argument(
        "-n", type=_count, default=100, metavar="ROWS", help="how many of the newest, or all (default: %(default)s)"
    )
    parser.add_argument("--until", metavar="TIME", help="before then, in the words of --since")
    parser.set_defaults(run=run, failed=FAILED)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `query` and `tail` have both: the filter, where it looks, how it prints."""
    parser.add_argument(
        "filter", nargs="*", metavar="FILTER",
        help="KEY=VALUE, also != ~= ~~= !~= !~~= > >= < <=, or words of the message; all must hold. In the shell "
        "'put quotes around' what has < > or blanks",
    )  # fmt: skip
    parser.add_argument("--since", metavar="TIME", help="from then on: 15m, 2h, yesterday, today, 2026-11-22, RFC 3339")
    parser.add_argument("--table", default="logs", help="logs, or that of a typed log (default: %(default)s)")
    parser.add_argument("-o", choices=output.FORMATS, default="pretty", help="how (default: %(default)s)")
    parser.add_argument("--keys", choices=("snake", "camel"), default="snake", help="trace_id or traceId in the output")
    parser.add_argument(
        "--tz", type=_zone, default="UTC", metavar="ZONE",
        help="UTC, local, or a name such as Europe/Paris: of times that are shown and of those that are given",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="of the query (default: %(default)g)"
    )
    common.add_dsn(parser)


def run(args: argparse.Namespace) -> int:
    """Print the records; 1 when there are none."""
    text = " ".join(args.filter)
    with common.connect(args) as conn:
        where = common.place(args, conn, args.table)
        with common.said(f"cannot read {where}"):
            query = Query(conn, schema=args.schema, statement_timeout=args.timeout, zone=args.tz)
            columns = tuple(query.columns(args.table))
            wanted = {"table": args.table, "since": args.since, "until": args.until}
            if args.n is None:
                with contextlib.closing(query.iterate(text, **wanted)) as found:
                    count = show(found, args, columns)
            else:
                count = show(reversed(query.logs(text, limit=args.n, **wanted)), args, columns)
    if not count:
        print(f"no records that fit in {where}", file=sys.stderr)
    return FOUND if count else NONE


def show(found: Iterable[Record], args: argparse.Namespace, columns: tuple[str, ...]) -> int:
    """Print records as the options say, and return how many."""
    count = 0

    def counted() -> Iterator[Record]:
        nonlocal count
        for count, record in enumerate(found, 1):  # noqa: B007 - read when it is over
            yield record

    output.say_anything(sys.stdout)
    style = output.Style(
        args.o, columns, args.tz, args.keys == "camel", output.wants_colour(sys.stdout), sys.stdout.isatty()
    )
    for line in output.printed(counted(), style):
        print(line)
    return count


def _count(text: str) -> int | None:
    if text == "all":
        return None
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to {MOST:,}, or all")
    return count


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0.001 <= seconds <= 2_000_000:  # what PostgreSQL takes
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds, 0.001 to 2,000,000")
    return seconds


def _zone(text: str) -> dt.tzinfo:
    try:
        if text.upper() == "UTC":
            return dt.timezone.utc
        if text != "local":
            return zoneinfo.ZoneInfo(text)
        if named := os.environ.get("TZ", "").removeprefix(":"):  # POSIX: a file's name may have a colon before it
            text = named
            return zoneinfo.ZoneInfo(named)
        with Path("/etc/localtime").open("rb") as file:
            return zoneinfo.ZoneInfo.from_file(file)
    except (KeyError, ValueError, OSError):
        raise argparse.ArgumentTypeError(
            f"there is no time zone {text!r} here: write UTC, local, or a name such as Europe/Paris"
        ) from None
