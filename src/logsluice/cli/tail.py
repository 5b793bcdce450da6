"""
`logsluice tail [-f] [FILTER]`: the last records, oldest first, and with -f those that come.

The filter and the formats are those of `logsluice query`. What -f does not show because it was stored too late is said
on stderr, with the query that finds it: following.py tells how that is known.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from typing import TYPE_CHECKING

from psycopg import conninfo

from logsluice.cli import common, query
from logsluice.cli.arguments import seconds
from logsluice.query import FOLLOW_WINDOW, MOST_WINDOW, Query

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.query import Late

_MOST = 1_000_000  # records; all are held in memory before the first is printed: the newest come first
_POLL = 1.0  # seconds between two looks: a person waits no longer, and a batch comes every 0.5 s


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("tail", help="show the last records, and with -f those that come")
    query.add_options(parser)
    parser.add_argument("-n", type=_count, default=20, metavar="ROWS", help="how many (default: %(default)s)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with those that come, until Ctrl-C")
    parser.add_argument(
        "--level", type=_level, default=None, metavar="LEVEL", help="only this level and above: WARNING, or 30"
    )
    parser.add_argument(
        "--window", type=seconds, default=FOLLOW_WINDOW, metavar="SECONDS",
        help="with -f: how long after a record was made it may be stored and is shown (default: %(default)g)",
    )  # fmt: skip

    def run(args: argparse.Namespace) -> int:
        if not args.n and not args.follow:
            parser.error("argument -n: 0 is for -f alone: write a whole number from 1 on")
        if args.follow and args.o == "json":
            parser.error("argument -o: json is one array, which -f would never end: write ndjson")
        if args.window > MOST_WINDOW:
            parser.error(f"argument --window: {MOST_WINDOW:,} seconds at most")
        if args.level is not None:
            args.filter.append(f"level>={args.level}")
        args.until = None
        return _follow(args) if args.follow else query.run(args)

    parser.set_defaults(run=run, failed=query.FAILED)


def _follow(args: argparse.Namespace) -> int:
    """Print until Ctrl-C (130)."""
    with common.connect(args) as conn:  # whose errors are better than those of a pool
        where = common.place(args, conn, args.table)
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())  # what it would say `notice` says

    def said(text: str) -> None:
        sys.stdout.flush()  # before it in a file of both
        print(f"logsluice: {text}", file=sys.stderr, flush=True)

    with (
        common.said(f"cannot read {where}"),
        Query(common.dsn(args), schema=args.schema, statement_timeout=args.timeout, zone=args.tz) as reader,
    ):
        columns = tuple(reader.columns(args.table))
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True)  # `tail -f | grep` must not wait for 8 KiB
        found = reader.follow(
            " ".join(args.filter), table=args.table, since=args.since, last=args.n, poll=_POLL, window=args.window,
            late=_teller(args, said), notice=said,
        )  # fmt: skip
        query.show(found, args, columns)
    return 0


def _teller(args: argparse.Namespace, said: Callable[[str], None]) -> Callable[[Late], None]:
    def tell(late: Late) -> None:
        rows = f"{late.count:,} older row{'s' * (late.count != 1)} came from stream {late.stream}"
        if late.found == 0:
            said(f"{rows}, and {'are' if late.count != 1 else 'is'} gone")
            return
        shown = late.found is not None and late.found > late.count
        more = f" (finds {late.found:,}, some of which were shown)" if shown else ""
        said(f"{rows}: {_command(args, late)}{more}")

    return tell


def _command(args: argparse.Namespace, late: Late) -> str:
    """Return the command that shows late rows: as it would be typed, but for a password."""
    words = ["logsluice", "query", "-n", "all"]
    if args.dsn is not None:
        given = conninfo.conninfo_to_dict(args.dsn)
        secret = any(given.get(name) for name in common.SECRETS)
        words += ["--dsn", "..." if secret else args.dsn]
    for name, value, usual in (("--schema", args.schema, "logsluice"), ("--table", args.table, "logs")):
        if value != usual:
            words += [name, value]
    for name, moment in (("--since", late.since), ("--until", late.until)):
        if moment is not None:
            words += [name, moment.isoformat().replace("+00:00", "Z")]
    return shlex.join([*words, *late.filter.split(), *args.filter])


def _level(text: str) -> int:
    number = logging.getLevelName(text.upper())
    if isinstance(number, int):
        return number
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no level: write DEBUG, INFO, WARNING, ERROR, CRITICAL or a number"
        ) from None


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = -1
    if not 0 <= count <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to {_MOST:,}; with -f also 0")
    return count
