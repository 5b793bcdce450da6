"""`logsluice tail`: the last rows as plain lines (output.py), oldest first."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

import psycopg
from psycopg import sql

from logsluice.cli import common
from logsluice.cli.output import COLUMNS, Row, lines, name, say_anything, wants_colour
from logsluice.columns import quote
from logsluice.errors import LogsluiceError


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("tail", help="show the last rows")
    parser.add_argument("-n", type=_count, default=20, metavar="ROWS", help="how many rows (default: %(default)s)")
    parser.add_argument(
        "--level", type=_level, default=None, metavar="LEVEL", help="only rows of this level and above: WARNING, or 30"
    )
    common.add_dsn(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the rows; 1 when the table cannot be read. That there are none is said on stderr and is no error."""
    with common.connect(args) as conn:
        where = f"{quote(args.schema)}.logs in database {quote(conn.info.dbname)}"
        try:
            rows = last_rows(conn, args.schema, args.n, args.level)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise LogsluiceError(
                f"there is no table {where}. A handler makes it with its first record; `logsluice migrate` makes it "
                "now; --schema and --dsn say where to look"
            ) from None
        except psycopg.Error as error:
            raise LogsluiceError(f"cannot read {where}: {common.reason(error)}") from None
    if not rows:
        wanted = "" if args.level is None else f" of level {name(args.level)} or above"
        print(f"no rows{wanted} in {where}", file=sys.stderr)
    say_anything(sys.stdout)
    colour = wants_colour(sys.stdout)
    width = max((len(name(row.level)) for row in rows), default=0)
    for row in rows:
        print("\n".join(lines(row, colour=colour, width=width)))
    sys.stdout.flush()  # here, where main() expects the BrokenPipeError of `| head`; at exit it would be a traceback
    return 0


def last_rows(conn: psycopg.Connection[Any], schema: str, count: int, level: int | None) -> list[Row]:
    """Return the newest rows, oldest first."""
    query = sql.SQL("SELECT {} FROM {}.logs {} ORDER BY ts DESC, stream DESC, seq DESC LIMIT {}").format(
        sql.SQL(COLUMNS),
        sql.Identifier(schema),
        sql.SQL("" if level is None else "WHERE level >= {}").format(sql.Literal(level)),
        sql.Literal(count),
    )
    return [Row(*row) for row in reversed(conn.execute(query).fetchall())]


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
        count = 0
    if not 1 <= count <= 1_000_000:  # all are held in memory before the first is printed: the newest come first
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 1,000,000")
    return count
