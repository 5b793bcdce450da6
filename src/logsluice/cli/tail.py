"""
`logsluice tail`: the last rows as plain lines, oldest first.

    2026-11-22 09:01:02.123Z INFO  shop.orders  order 17 paid  {"amount": 12.5}

A record begins in the first column and nothing else does: its further lines and its traceback are indented, so no
message can pass itself off as another record. What was logged by strangers must not drive the terminal either:
`visible` shows control characters instead of sending them.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import sql

from logsluice.cli import common
from logsluice.columns import quote
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INDENT = "    "
# C0 and DEL, C1 (a lone \x9b is ESC [ to some terminals), marks and overrides of direction, line separators, the
# byte order mark, tags. Not the joiners U+200C and U+200D: Persian and emoji need them.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")
_SHORT = {"\t": r"\t", "\r": r"\r", "\n": r"\n"}
_STYLES = {"dim": "2", "green": "32", "yellow": "33", "red": "31", "bold": "1", "bold red": "1;31"}

# As text: Python's datetime ends at the year 9999, PostgreSQL's does not, and rows may come from elsewhere.
TIME = "coalesce(to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS') || 'Z', ts::text)"
COLUMNS = f"{TIME}, level, logger, message, exc_type, exc_message, exc_text, attributes::text"


class Row(NamedTuple):
    """What is shown of a row, in the order of COLUMNS."""

    time: str
    level: int
    logger: str | None
    message: str | None
    exc_type: str | None
    exc_message: str | None
    exc_text: str | None
    attributes: str | None  # JSON


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


def lines(row: Row, *, colour: bool = False, width: int = 0) -> Iterator[str]:
    """Yield the lines of a row, safe for a terminal. `width`: of the level, so that messages stand below each other."""
    first, more = split(row.message or "")
    level = paint(visible(name(row.level)).ljust(width), _style(row.level), on=colour)
    parts = [f"{paint(visible(row.time), 'dim', on=colour)} {level}", visible(row.logger or "-"), first]
    if row.attributes and row.attributes != "{}":
        parts.append(paint(visible(row.attributes), "dim", on=colour))
    yield "  ".join(part for part in parts if part)
    yield from _indented(more)
    if row.exc_text or row.exc_type:
        first, more = split(row.exc_text or f"{row.exc_type}: {row.exc_message}")
        yield from _indented((first, *more))


def _indented(texts: Iterable[str]) -> Iterator[str]:
    return (INDENT + text if text else "" for text in texts)


def split(text: str) -> tuple[str, Iterable[str]]:
    """Return the first line and the others, made visible. Only a newline ends a line, alone or after a CR."""
    first, *more = (visible(line) for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"))
    return first, more


def visible(text: str) -> str:
    r"""Return the text with its control characters spelled out: ESC as \x1b, a right-to-left override as \u202e."""
    return text if text.isascii() and text.isprintable() else _CONTROL.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    char = found[0]
    code = ord(char)
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def wants_colour(stream: Any) -> bool:
    """Whether to colour: only a terminal that can, and not against https://no-color.org."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, *, on: bool) -> str:
    """Return the text in a style of `_STYLES`; "" is none."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if on and style and text else text


def say_anything(stream: Any) -> None:
    """Let a stream of a narrow encoding print every text: `LC_ALL=C` must not end in a UnicodeEncodeError."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _style(level: int) -> str:
    for least, style in ((logging.CRITICAL, "bold red"), (logging.ERROR, "red"), (logging.WARNING, "yellow")):
        if level >= least:
            return style
    return "green" if level >= logging.INFO else "dim"


def name(level: int) -> str:
    """Return the name of one of Python's five levels; another level is a number here, its name was the program's."""
    known = str(logging.getLevelName(level))
    return str(level) if known.startswith("Level ") else known


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
