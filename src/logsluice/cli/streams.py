"""`logsluice streams`: who sends, how much of it is stored, dropped, dead."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from logsluice import reports
from logsluice.cli import common, tables
from logsluice.cli.arguments import rows_wanted, utf8
from logsluice.cli.output import say_anything, visible, wants_colour
from logsluice.cli.stats import as_json
from logsluice.cli.tables import Column

if TYPE_CHECKING:
    import argparse

# Of streams' last batches: servers' clocks may be ahead of ours.
AHEAD = timedelta(days=1)


def who(one: reports.StreamState) -> str:
    """Return which process it is."""
    return f"{one.service or '-'} {one.version or ''} {one.host or ''}:{one.pid or ''}".replace("  ", " ")


COLUMNS = [
    Column("stored", lambda one: tables.count(one.stored)),
    Column("dropped", lambda one: tables.count(one.dropped)),
    Column("dead", lambda one: tables.count(one.dead)),
    Column("last batch (UTC)", lambda one: tables.clock(one.updated)),
    Column("process", lambda one: who(one) + (" (retired)" if one.retired else ""), right=False),
]


def _below(one: reports.StreamState) -> tuple[str]:
    return (f"stream {one.stream}, first seen {tables.clock(one.started)} UTC",)


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("streams", help="list who sends, and what became of it, the last sender first")
    parser.add_argument("--service", type=utf8, help="only of this program (default: all)")
    parser.add_argument("-n", type=rows_wanted, default=20, metavar="ROWS", help="how many (default: %(default)s)")
    parser.add_argument("-o", choices=("table", "json"), default="table", help="how (default: %(default)s)")
    common.add_dsn(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them; that there are none is said on stderr and is no error."""
    now = datetime.now(timezone.utc)
    scope = reports.Scope(datetime(1970, 1, 1, tzinfo=timezone.utc), now + AHEAD, args.service, args.schema)
    with common.connect(args) as conn, common.said("cannot read the streams"):
        found = reports.streams(conn, scope, args.n)
    say_anything(sys.stdout)
    if args.o == "json":
        print(as_json(found))
    elif found:
        print("\n".join(tables.table(COLUMNS, found, tables.screen(), below=_below, colour=wants_colour(sys.stdout))))
    if not found:
        of = "no handler" if args.service is None else f"no handler of service {visible(args.service)}"
        print(f"no streams: {of} has stored anything here yet", file=sys.stderr)
    return 0
