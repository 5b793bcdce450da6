"""`logsluice version`: of this client and of the tables in the database, and whether they fit."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import schema
from logsluice.cli import common

if TYPE_CHECKING:
    import argparse


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("version", help="show the versions of this client and of the tables")
    common.add_dsn(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print both; 1 when the database cannot be asked, or its tables are older than this client."""
    print(f"logsluice   {importlib.metadata.version('logsluice')}")
    print(
        f"python      {platform.python_version()}, psycopg {psycopg.__version__}, libpq {_dotted(psycopg.pq.version())}"
    )
    sys.stdout.flush()  # known without a server, and said before it is asked for
    with common.connect(args) as conn:
        print(f"postgresql  {_dotted(conn.info.server_version)}")
        where = common.place(args, conn)
        with common.said(f"cannot read {where}"):
            fits, what = _schema(conn, args.schema)
        print(f"tables      {what} ({where})")
    return 0 if fits else 1


def _schema(conn: psycopg.Connection[Any], name: str) -> tuple[bool, str]:
    try:
        has = schema.version(conn, name)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        has = 0
    newest = schema.sql_files()[-1].number
    there = "" if name == "logsluice" else f" --schema {shlex.quote(name)}"
    if not has:
        return False, f"none: run `logsluice migrate{there}`"
    if has < newest:
        return False, f"version {has}, this client has {newest}: run `logsluice migrate{there}`"
    if has > newest:
        return True, f"version {has}, newer than this client, which has {newest}: it goes on working"
    return True, f"version {has}, as this client"


def _dotted(number: int) -> str:
    """Return 180004 as 18.4."""
    return f"{number // 10000}.{number % 10000}"
