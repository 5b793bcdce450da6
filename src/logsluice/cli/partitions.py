"""`logsluice partitions`: which partitions there are, from when to when, how large."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from logsluice import partitions
from logsluice.cli import common, tables
from logsluice.cli.arguments import utf8
from logsluice.cli.output import paint, say_anything, visible, wants_colour
from logsluice.cli.stats import as_json
from logsluice.cli.tables import Column
from logsluice.columns import quote
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    import argparse

    import psycopg

_PARENTS = """
    SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s::text AND c.relkind = 'p' AND NOT c.relispartition
       AND (%s::text IS NULL OR c.relname = %s::text)
     ORDER BY c.relname <> 'logs', c.relname
"""
_STATES = {"attached": "", "pending": "dropping it was interrupted", "detached": "dropping it was interrupted"}
_COLUMNS = [
    Column("from (UTC)", lambda part: "the beginning" if part.lower is None else tables.minute(part.lower)),
    Column("to (UTC)", lambda part: "the end" if part.upper is None else tables.minute(part.upper)),
    Column("rows", lambda part: f"~{part.rows:,}"),
    Column("size", lambda part: tables.size(part.size)),
    Column("partition", lambda part: f"{part.name}  {_STATES[part.state]}".rstrip(), right=False),
]


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("partitions", help="list the partitions of the tables, with their sizes")
    parser.add_argument("table", nargs="?", type=utf8, help="only of this table: logs, activity, ... (default: all)")
    parser.add_argument("-o", choices=("table", "json"), default="table", help="how (default: %(default)s)")
    common.add_dsn(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them; 1 when there is no partitioned table."""
    with common.connect(args) as conn:
        where = common.place(args, conn)
        with common.said(f"cannot list the partitions of {where}"):
            found = _found(conn, args.schema, args.table)
    if not found:
        what = "no partitioned table" if args.table is None else f"no partitioned table {quote(args.table)}"
        raise LogsluiceError(f"there is {visible(what)} in {where}; --schema and --dsn say where to look")
    say_anything(sys.stdout)
    if args.o == "json":
        print(as_json(found))
    else:
        colour, width = wants_colour(sys.stdout), tables.screen()
        blocks = []
        for table, parts in found.items():
            all_of_it = f"{len(parts):,} partition{'s' * (len(parts) != 1)}, ~{sum(one.rows for one in parts):,} rows, "
            title = paint(visible(table), "bold", on=colour)
            lines = tables.table(_COLUMNS, parts, width, colour=colour) if parts else ()
            blocks.append("\n".join([f"{title}  {all_of_it}{tables.size(sum(one.size for one in parts))}", *lines]))
        print("\n\n".join(blocks))
    return 0


def _found(conn: psycopg.Connection[Any], schema: str, table: str | None) -> dict[str, list[partitions.Partition]]:
    parents = [row[0] for row in conn.execute(_PARENTS, [schema, table, table]).fetchall()]
    return {one: partitions.listed(conn, schema, one) for one in parents}
