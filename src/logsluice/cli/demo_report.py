"""
What `logsluice demo` shows, and its judgement: the shop's own list of ids against the rows in the table.

logsluice's counters stand beside the figures, for comparison; nothing is judged by them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from logsluice.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    import psycopg

NAMED = 5  # ids shown of those that are lost or doubled: enough to look for them
SAMPLES = 10
HEAD = ("", "counted", "logsluice says", "")
MARGIN = 9  # columns of the time in front of an event
CLEAR = "\r\x1b[2K"  # back to the first column, and the line wiped
PLAIN_SECONDS = 1.0  # between two lines of progress where a line cannot be rewritten


@dataclass(frozen=True)
class Verdict:
    """Ids against rows. `lost`: the call returned and there is no row; `twice`: every row beyond one for a call."""

    accepted: int
    stored: int
    lost: tuple[str, ...]
    twice: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether there is exactly one row for each call."""
        return not self.lost and not self.twice


def judge(accepted: Iterable[str], stored: Iterable[str]) -> Verdict:
    """Compare the ids of all calls that returned with the ids of all rows. A row that nobody logged counts as twice."""
    calls, rows = Counter(accepted), Counter(stored)
    lost, twice = calls - rows, rows - calls
    return Verdict(calls.total(), rows.total(), tuple(sorted(lost.elements())), tuple(sorted(twice.elements())))


def stored_ids(conn: psycopg.Connection[Any], since: datetime) -> list[str]:
    """Return the shop's ids of all rows since then: a kept database holds the rows of other days too."""
    query = """
        SELECT attributes ->> 'id' FROM logsluice.logs
         WHERE ts >= %s AND service = 'bakery' AND attributes ->> 'id' IS NOT NULL"""
    return [row[0] for row in conn.execute(query, [since])]


def counters(conn: psycopg.Connection[Any], since: datetime) -> dict[str, int]:
    """Return logsluice's own figures, as its last batch left them in `stream`, and the dead letters that there are."""
    query = """
        SELECT sum(offered - dropped), sum(stored), sum(dead), sum(dropped),
               (SELECT count(*) FROM logsluice.dead_letter WHERE at >= %s)
          FROM logsluice.stream WHERE started >= %s"""
    found = conn.execute(query, [since, since]).fetchone() or ()
    names = ("accepted", "stored", "dead", "dropped", "dead_letters")
    return dict(zip(names, (int(one or 0) for one in found), strict=True))


class Screen:
    """Where the demo is told: events on lines of their own; on a terminal one more line below, rewritten in place."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.live = out.isatty()
        self.colour = output.wants_colour(out)
        self.started = time.monotonic()
        self._last = 0.0  # monotonic time of the last plain line of progress

    @property
    def width(self) -> int:
        """Columns to be used. The last is left alone: in it some terminals wrap, and half a line stays behind."""
        return shutil.get_terminal_size().columns - 1

    def now(self) -> float:
        """Return the seconds since the demo began."""
        return time.monotonic() - self.started

    def event(self, text: str, style: str = "") -> None:
        """Say what has happened."""
        parts = [text]
        if self.live:  # elsewhere a line is a line: `grep` is to find it whole
            parts = textwrap.wrap(text, max(self.width - MARGIN, 20), break_long_words=False, break_on_hyphens=False)
        painted = ("\n" + " " * MARGIN).join(output.paint(part, style, on=self.colour) for part in parts)
        self._write(f"{self._wipe()}{self._at()}  {painted}\n")

    def progress(self, text: str) -> None:
        """Say how far it is: in place on a terminal, else now and then."""
        if self.live:
            self._write(CLEAR + output.paint(f"{self._at()}  {text}"[: self.width], "dim", on=self.colour))
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self._write(f"{self._at()}  {text}\n")

    def text(self, text: str = "", style: str = "") -> None:
        """Print a line without a time."""
        self._write(f"{self._wipe()}{output.paint(text, style, on=self.colour)}\n")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the second and third column hold figures."""
        if self.live and self.colour and _rich_table(head, rows):
            return
        widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
        for row in (head, *rows):
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            cells[0], cells[-1] = row[0].ljust(widths[0]), row[-1]
            self.text(("  " + "  ".join(cells)).rstrip())

    @contextlib.contextmanager
    def cleared(self) -> Iterator[None]:
        """Leave no half line behind, however it ends: an error message or the prompt comes next."""
        try:
            yield
        finally:
            self._write(self._wipe())

    def _at(self) -> str:
        return f"{self.now():5.1f} s"

    def _wipe(self) -> str:
        return CLEAR if self.live else ""

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def _rich_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Print the table with rich; False if there is no rich."""
    try:
        from rich import box  # noqa: PLC0415 - optional
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return False
    table = Table(box=box.ROUNDED, border_style="dim", header_style="bold")
    for place, title in enumerate(head):
        table.add_column(Text(title), justify="right" if place in {1, 2} else "left")
    for row in rows:
        style = "" if row[0] not in {"lost", "stored twice"} else "green" if row[1] == "0" else "bold red"
        table.add_row(*(Text(cell) for cell in row), style=style)
    Console(file=sys.stdout).print(table)
    return True


def figures(
    verdict: Verdict, own: dict[str, int], rate: tuple[float, float], speed: dict[str, float]
) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table that ends the demo."""
    mean, best = rate

    def own_too(name: str, count: str, remark: str) -> tuple[str, str, str, str]:
        return (name, count, f"{own[name]:,}", remark)

    return [
        own_too("accepted", f"{verdict.accepted:,}", "logging calls that returned"),
        own_too("stored", f"{verdict.stored:,}", "rows in the table"),
        ("stored twice", f"{len(verdict.twice):,}", "", _named(verdict.twice) or "rows beyond one for a call"),
        own_too("dead", f"{own['dead_letters']:,}", "set aside, with the reason"),
        own_too("dropped", "", "calls that were refused"),
        ("lost", f"{len(verdict.lost):,}", "", _named(verdict.lost) or "calls without a row"),
        ("rows/s", f"{mean:,.0f}", "", f"outage included; at best {best:,.0f}"),
        ("µs per call", f"{speed['added']:.1f}", "", f"added to a NullHandler's {speed['null']:.1f}"),
    ]


def samples(conn: psycopg.Connection[Any], since: datetime, outage: tuple[datetime, datetime]) -> list[output.Row]:
    """Return ten rows, oldest first, of as many kinds as there are, logged in the outage as far as there are any."""
    query = f"""
        SELECT {output.COLUMNS} FROM (
            SELECT *, ts BETWEEN %s AND %s AS dark,
                   row_number() OVER (PARTITION BY logger, level, ts BETWEEN %s AND %s ORDER BY md5(seq::text)) AS turn
              FROM logsluice.logs WHERE ts >= %s AND service = 'bakery' AND attributes ->> 'id' IS NOT NULL
             ORDER BY dark DESC, turn, ts LIMIT {SAMPLES}) AS chosen
         ORDER BY ts, seq"""
    return [output.Row(*row) for row in conn.execute(query.encode(), [*outage, *outage, since])]


def sample_lines(rows: Iterable[output.Row], screen: Screen) -> list[str]:
    """Return the rows on one line each: no date, no traceback, and on a terminal cut to its width."""
    short = [_brief(row) for row in rows]
    width = max((len(output.name(row.level)) for row in short), default=0)
    room = screen.width - 2 if screen.live else None
    return [f"  {next(output.lines(_cut(row, width, room), colour=screen.colour, width=width))}" for row in short]


def _cut(row: output.Row, width: int, room: int | None) -> output.Row:
    """Return the row with as much of its attributes, then of its message, as fits on a line."""
    over = 0 if room is None else len(next(output.lines(row, width=width))) - room
    if over <= 0:
        return row
    attributes = row.attributes or ""
    if len(attributes) > over + MARGIN:  # less of it would say nothing
        return row._replace(attributes=f"{attributes[: -over - 1]}…")
    if attributes:
        return _cut(row._replace(attributes=None), width, room)
    return row._replace(message=f"{(row.message or '')[: -over - 1]}…")


def _brief(row: output.Row) -> output.Row:
    error = f" ({row.exc_type.rpartition('.')[2]}: {row.exc_message})" if row.exc_type else ""
    attributes = json.loads(row.attributes or "{}")
    del attributes["id"]  # the demo's own; the others are what a program would log
    text = json.dumps(attributes, ensure_ascii=False)
    message = f"{row.message}{error}"
    return row._replace(time=row.time.split()[-1], message=message, exc_text=None, exc_type=None, attributes=text)


def _named(ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more
