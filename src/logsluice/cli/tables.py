"""
Tables for people: numbers first, the longest text last, where it may be cut to the width of the terminal.

What was logged by strangers goes through `output.visible` here, cell by cell: it can neither drive the terminal nor
begin a line.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from logsluice.cli.output import INDENT, paint, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

MOST = 1000  # characters of a cell where nothing else cuts it, in a pipe: a message may have megabytes
LEAST = 30  # columns: where the last text has fewer left, and does not fit, it gets a line of its own


class Column(NamedTuple):
    """One column of a table."""

    head: str
    cell: Callable[[Any], str | datetime | None]  # of a row
    right: bool = True  # numbers


def screen() -> int | None:
    """Return the columns of the terminal; None where stdout is none: there nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    columns: Sequence[Column],
    rows: Iterable[Any],
    width: int | None,
    *,
    below: Callable[[Any], Iterable[str]] = lambda _row: (),
    colour: bool = False,
    least: int = LEAST,
) -> Iterator[str]:
    """Yield the lines, safe for a terminal: the heads, then each row, with what is `below` it, indented."""
    rows = list(rows)
    cells = [_texts([column.cell(row) for row in rows]) for column in columns]
    sizes = [max(map(columns_of, (column.head, *texts))) for column, texts in zip(columns, cells, strict=True)]
    last = None if width is None else width - sum(sizes[:-1]) - 2 * len(sizes[:-1])
    apart = last is not None and last < min(least, sizes[-1])
    beside = columns[:-1] if apart else columns
    yield paint(_line([column.head for column in beside], beside, sizes, last), "dim", on=colour)
    for number, row in enumerate(rows):
        yield _line([texts[number] for texts in cells[: len(beside)]], beside, sizes, last)
        for text in filter(None, [cells[-1][number]] * apart + [visible(text[:MOST]) for text in below(row)]):
            yield INDENT + cut(text, None if width is None else width - len(INDENT))


def _texts(cells: Sequence[str | datetime | None]) -> list[str]:
    """Return a column's cells as texts. Of its times no more than tells them apart: the title says of which day."""
    times = [one.astimezone(timezone.utc) for one in cells if isinstance(one, datetime)]
    day = "" if len({one.date() for one in times}) == 1 else "%m-%d "
    form = day + ("%H:%M:%S" if any(one.second for one in times) else "%H:%M")
    return [
        one.astimezone(timezone.utc).strftime(form)
        if isinstance(one, datetime)
        else visible(("-" if one is None else one)[:MOST])
        for one in cells
    ]


def _line(texts: Sequence[str], columns: Sequence[Column], sizes: Sequence[int], last: int | None) -> str:
    parts = []
    for text, column, size in zip(texts, columns, sizes, strict=False):
        blanks = " " * (size - columns_of(text))
        parts.append(blanks + text if column.right else text + blanks)
    if len(columns) == len(sizes) and not columns[-1].right:
        parts[-1] = cut(texts[-1], last)
    return "  ".join(parts).rstrip()


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for CJK and emoji, none for an accent of its own."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in text)


def cut(text: str, width: int | None) -> str:
    """Return the text, its end replaced by "..." where it does not fit."""
    if width is None or columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 3:
        text = text[: len(text) - max(1, (columns_of(text) - width + 3) // 2)]
    return text + "..."


# --- cells -----------------------------------------------------------------------------------------------------------


def count(number: int) -> str:
    """Return 1,234."""
    return f"{number:,}"


def share(percent: float | None) -> str:
    """Return a rate in percent."""
    return "-" if percent is None else f"{percent:.2f}"


def took(ms: float | None) -> str:
    """Return milliseconds as people read them: 0.12 ms, 812 ms, 1.25 s, 4m05s, 2h10m."""
    if ms is None:
        return "-"
    if abs(ms) < 999.5:
        return f"{_three(ms)} ms"
    if abs(ms) < 59_950:
        return f"{_three(ms / 1000)} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes}m{seconds:02}s" if minutes < 60 else f"{minutes // 60:,}h{minutes % 60:02}m"


def _three(number: float) -> str:
    """Return three figures of a number, all those before the point."""
    return f"{number:,.0f}" if abs(number) >= 99.95 else f"{number:.1f}" if abs(number) >= 9.995 else f"{number:.2f}"


def size(number: float) -> str:
    """Return bytes as people read them, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.5 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def clock(moment: datetime | None) -> str:
    """Return the day and the second, UTC."""
    return "-" if moment is None else moment.astimezone(timezone.utc).strftime("%m-%d %H:%M:%S")


def minute(moment: datetime | None) -> str:
    """Return the date and the minute, UTC."""
    return "-" if moment is None else moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M")


def text(given: object) -> str:
    """Return a text, "-" for none."""
    return "-" if given is None or not str(given) else str(given)
