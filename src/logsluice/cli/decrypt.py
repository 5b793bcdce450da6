"""
`logsluice decrypt`: what `redact={"encrypt": ...}` encrypted, in lines from stdin or in a column of a table.

    psql -Atc 'SELECT to_json(l) FROM logsluice.logs l' | logsluice decrypt --key private.pem
    logsluice decrypt --key private.pem --table logsluice.logs --column attributes

A line that is JSON stays JSON: an encrypted value becomes what it was. In any other line it becomes its text. What
cannot be opened stays as it is, is counted on stderr, and makes the exit status 1.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from psycopg import sql

from logsluice.cli import common
from logsluice.crypto import SEALED, Keys
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    import argparse
    import re
    from collections.abc import Iterator

_ROWS = 1000  # of a column, fetched at a time: a table may be larger than memory


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("decrypt", help="show values that were encrypted")
    parser.add_argument(
        "--key", action="append", required=True, metavar="FILE", help="a private key, or a Fernet key; may be repeated"
    )
    parser.add_argument("--table", help="read this table instead of stdin, for example logsluice.logs")
    parser.add_argument("--column", help="the column to read, for example attributes")
    common.add_dsn(parser, schema=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the lines; 1 when a value could not be opened."""
    if (args.table is None) != (args.column is None):
        raise ConfigError("--table and --column go together: say both, or neither to read stdin")
    if args.table is None and args.dsn is not None:
        raise ConfigError("--dsn says nothing without --table and --column")
    reader = Reader(Keys(args.key))
    for line in _column(args) if args.table else _stdin():
        print(reader.line(line))
    sys.stdout.flush()  # here, where main() expects a BrokenPipeError
    for reason, count in reader.failed.items():
        print(f"logsluice: {count} not decrypted: {reason}", file=sys.stderr)
    return 1 if reader.failed else 0


def _stdin() -> Iterator[str]:
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # any bytes go through as they are
    for line in sys.stdin:
        yield line.removesuffix("\n")


def _column(args: argparse.Namespace) -> Iterator[str]:
    name, column = sql.Identifier(*args.table.split(".")), sql.Identifier(args.column)
    query = sql.SQL("SELECT to_json({0})::text FROM {1} WHERE {0}::text LIKE '%encrypted:%'").format(column, name)
    with (
        common.connect(args) as conn,
        common.said(f"cannot read {args.column} of {args.table}"),
        conn.transaction(),
        conn.cursor(name="decrypt") as cursor,
    ):
        cursor.itersize = _ROWS
        for row in cursor.execute(query):
            yield row[0]


class Reader:
    """It opens what is encrypted in lines, and counts what it cannot open."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.failed: Counter[str] = Counter()  # reason -> values

    def line(self, line: str) -> str:
        """Return a line with its values opened."""
        if "encrypted:" not in line:
            return line
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, or lists in lists in lists
            return SEALED.sub(self._text, line)
        return json.dumps(self._opened(tree), ensure_ascii=False)

    def _opened(self, value: Any) -> Any:
        if isinstance(value, str):
            found = SEALED.fullmatch(value)
            return SEALED.sub(self._text, value) if found is None else self._value(found)
        if isinstance(value, dict):
            return {key: self._opened(one) for key, one in value.items()}
        return [self._opened(one) for one in value] if isinstance(value, list) else value

    def _value(self, found: re.Match[str]) -> Any:
        try:
            return self._keys.value(found)
        except LogsluiceError as error:
            self.failed[str(error)] += 1
            return found[0]

    def _text(self, found: re.Match[str]) -> str:
        """Return a value as text within a line: printable, for a line break would begin another one."""
        value = self._value(found)
        if not isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        return value if value.isprintable() else json.dumps(value, ensure_ascii=False)[1:-1]
