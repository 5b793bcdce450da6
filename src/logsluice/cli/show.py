"""`logsluice show ID`: one record in full, of `logs` or of a typed table; ids.py says what an id is."""

from __future__ import annotations

import json
import sys
from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import rows, sql

from logsluice.cli import common, output, pager
from logsluice.columns import in_query
from logsluice.ids import Id, made, parse
from logsluice.query import TABLES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

# Around the life of a stream: a journal may have waited for a day, the clock of a host may be off.
_SLACK = timedelta(days=1)


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("show", help="show one record in full, by its id")
    parser.add_argument("id", metavar="ID", help="a uuid as in log_entry.id, ts~stream~seq, or stream~seq")
    parser.add_argument("-o", choices=("text", "json"), default="text", help="how (default: %(default)s)")
    common.add_dsn(parser)
    pager.add_option(parser)
    parser.set_defaults(run=run, failed=2)


def run(args: argparse.Namespace) -> int:
    """Print the record; 1 when there is none, 2 when that cannot be known."""
    wanted = parse(args.id)
    with common.connect(args) as conn:
        where = common.place(args, conn)
        with common.said(f"cannot read {where}"):
            found = find(conn, args.schema, wanted)
            dead = None if found else _dead(conn, args.schema, wanted)
    if found is None:
        more = "; it was refused by its table: `logsluice dead show` has it" if dead else ""
        print(f"logsluice: no record {args.id} in {where} that this role may read{more}", file=sys.stderr)
        return 1
    output.say_anything(sys.stdout)
    if args.o == "json":
        # ASCII: control characters and marks of direction are spelled out.
        print(json.dumps(found, ensure_ascii=True, indent=2))
    else:
        print("\n".join(lines(found)))
    return 0


def find(conn: psycopg.Connection[Any], schema: str, wanted: Id) -> dict[str, Any] | None:
    """Return {"id", "table", columns that are set}, of `logs` or a typed table; None when there is no such record."""
    tables = [row[0] for row in conn.execute(TABLES, [schema])]
    for since, until in _spans(conn, schema, wanted):
        for table in tables:
            query = sql.SQL(
                "SELECT to_jsonb(r) AS record, ts AT TIME ZONE 'UTC' AS ts FROM {} r WHERE stream = %s AND seq = %s "
                "AND ts >= %s::timestamptz AND ts <= %s::timestamptz LIMIT 1"
            ).format(sql.SQL(in_query(schema, table)))
            with conn.cursor(row_factory=rows.dict_row) as cursor:
                row = cursor.execute(query, [wanted.stream, wanted.seq, since, until]).fetchone()
            if row is not None:
                ts = row["ts"].replace(tzinfo=timezone.utc)
                values = {name: value for name, value in row["record"].items() if value is not None}
                return {"id": made(wanted.stream, wanted.seq, ts), "table": table, **values}
    return None


def _spans(conn: psycopg.Connection[Any], schema: str, wanted: Id) -> Iterator[tuple[Any, Any]]:
    """Yield from when to when to look: no index has the stream, so the life of the stream first, then everything."""
    if wanted.ts is not None:
        yield wanted.ts, wanted.ts
        return
    try:
        query = sql.SQL("SELECT started, updated FROM {} WHERE stream = %s").format(sql.Identifier(schema, "stream"))
        row = conn.execute(query, [wanted.stream]).fetchone()
    except psycopg.Error:
        row = None  # may not be read, or is not there
    if row is not None:
        yield row[0] - _SLACK, row[1] + _SLACK
    yield "-infinity", "infinity"


def _dead(conn: psycopg.Connection[Any], schema: str, wanted: Id) -> bool:
    try:
        query = sql.SQL("SELECT 1 FROM {} WHERE stream = %s AND seq = %s LIMIT 1")
        full = sql.Identifier(schema, "dead_letter")
        return conn.execute(query.format(full), [wanted.stream, wanted.seq]).fetchone() is not None
    except psycopg.Error:
        return False  # may not be read


def lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield a line a column, further ones indented: nothing that was logged begins in the first column."""
    width = max(map(len, record))
    for name, value in record.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
        first, more = output.split(text)
        yield f"{output.visible(name).ljust(width)}  {first}"
        yield from (output.INDENT + line for line in more)
