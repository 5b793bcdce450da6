"""
`logsluice top`: what happens now, on one screen, again every few seconds.

    logsluice top  logs@localhost  2026-11-22 09:01:02 UTC, every 5 s

    waiting  stored/s   stored  dropped  dead  last  process
        310     1,204  801,332        0     0   1 s  shop 2.1 web-1:4242

What waits is known as of the last batch; `handler.stats()` says it now, `logsluice journal` of a journal.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TextIO

from logsluice import reports
from logsluice.cli import common
from logsluice.cli.arguments import seconds, utf8
from logsluice.cli.output import name, paint, say_anything, visible, wants_colour
from logsluice.cli.streams import AHEAD, who
from logsluice.cli.tables import Column, count, cut, screen, table, text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    import psycopg

_SPAN = timedelta(minutes=5)  # of the counts by level: what happens now, and enough to be more than chance
_ACTIVE = timedelta(hours=1)  # a stream that stored nothing for so long is not shown
_LAST = 5  # errors, and failed messages
_LOW, _LAST_LOW = 30, 3  # of a terminal with so few lines: the streams need some, too
_PROCESS = 20  # columns for a process, cut: on a line of its own there would be half as many of them
_LOOK_BACK = timedelta(days=1)  # for these: they are found by indexes, and no partition older than that is read
_FIRST_LOOK = 1.0  # seconds from the first look to the first page: a rate needs two looks
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the terminal's other screen, without a cursor
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"


@dataclass(frozen=True)
class Look:
    """What was seen at one moment."""

    clock: float  # monotonic, seconds
    now: datetime
    streams: Sequence[reports.StreamState]
    levels: Sequence[reports.LevelCounts]
    errors: Sequence[reports.LastError]
    failed: Sequence[reports.FailedMessage]


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("top", help="show what happens now, on one screen, until Ctrl-C")
    parser.add_argument(
        "--every", type=seconds, default=5.0, metavar="SECONDS", help="between two pages (default: %(default)g)"
    )
    parser.add_argument("--once", action="store_true", help="one page, after a second at most, and end")
    parser.add_argument("--service", type=utf8, help="only of this program (default: all)")
    common.add_dsn(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show pages until Ctrl-C (130), or one; 1 when the database cannot be read (any more)."""
    say_anything(sys.stdout)
    full = sys.stdout.isatty() and not args.once
    never = threading.Event()  # whose wait Ctrl-C ends
    with common.connect(args) as conn, common.said("cannot read the database"):
        before = look(conn, args)
        never.wait(min(args.every, _FIRST_LOOK))
        try:
            if full:
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as a shell says it
                sys.stdout.write(_ENTER)
            while True:
                now = look(conn, args)
                height = shutil.get_terminal_size().lines - 1 if full else None
                where = f"{conn.info.dbname}@{conn.info.host}  {now.now:%Y-%m-%d %H:%M:%S} UTC"
                lines = page(before, now, f"logsluice top  {where}, every {args.every:g} s", screen(), height)
                _show(sys.stdout, lines, full=full)
                if args.once:
                    return 0
                never.wait(args.every)
                before = now
        finally:
            if full:
                sys.stdout.write(_LEAVE)
                sys.stdout.flush()


def _show(stream: TextIO, lines: Sequence[str], *, full: bool) -> None:
    """Write a page: over the last one, on a terminal, without a flicker; else below it."""
    if full:
        stream.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_REST)
    else:
        stream.write("\n".join([*lines, "", ""]))
    stream.flush()


def look(conn: psycopg.Connection[Any], args: argparse.Namespace) -> Look:
    """Read what a page shows."""
    now = datetime.now(timezone.utc)

    def last(span: timedelta) -> reports.Scope:
        return reports.Scope(now - span, now + AHEAD, args.service, args.schema)

    with reports.snapshot(conn, timeout=60) as seen:  # seconds; a page that takes longer is none
        return Look(
            time.monotonic(), now, reports.streams(seen, last(_ACTIVE)),
            reports.levels(seen, last(_SPAN), _SPAN + 2 * AHEAD), reports.last_errors(seen, last(_LOOK_BACK), _LAST),
            reports.failed_messages(seen, last(_LOOK_BACK), _LAST),
        )  # fmt: skip


def page(before: Look, now: Look, head: str, width: int | None, height: int | None) -> list[str]:
    """Return the lines, no more than `height`: where they are too many, streams are left out."""
    on = wants_colour(sys.stdout)
    most = _LAST if height is None or height >= _LOW else _LAST_LOW
    below = ["", *_levels(now, width, on), "", *_errors(now, most, width, on)]
    if now.failed:
        below += ["", *_failed(now, most, width, on)]
    room = None if height is None else height - len(below) - 3  # the head, an empty line, the table's heads
    return [cut(visible(head), width), "", *_streams(before, now, room, width, on), *below][:height]


def _streams(before: Look, now: Look, room: int | None, width: int | None, on: bool) -> Iterator[str]:
    known = {one.stream: one.stored for one in before.streams}
    passed = now.clock - before.clock or 1.0

    def rate(one: reports.StreamState) -> float:
        return (one.stored - known.get(one.stream, 0 if one.started > before.now else one.stored)) / passed

    shown = sorted(now.streams, key=lambda one: (rate(one), one.updated), reverse=True)
    if not shown:
        yield "no stream has stored anything in the last hour"
        return
    columns = [
        Column("waiting", lambda one: count(one.waiting)),
        Column("stored/s", lambda one: f"{rate(one):,.0f}"),
        Column("stored", lambda one: count(one.stored)),
        Column("dropped", lambda one: count(one.dropped)),
        Column("dead", lambda one: count(one.dead)),
        Column("last", lambda one: _ago(now.now - one.updated)),
        Column("process", who, right=False),
    ]
    fitting = shown if room is None or len(shown) <= room else shown[: max(room - 1, 0)]
    yield from table(columns, fitting, width, colour=on, least=_PROCESS)
    if len(fitting) < len(shown):
        yield f"... and {len(shown) - len(fitting)} more: logsluice streams"


def _levels(now: Look, width: int | None, on: bool) -> Iterator[str]:
    yield paint(f"records of the last {_SPAN.seconds // 60} minutes", "bold", on=on)
    counts: dict[int, int] = {20: 0, 30: 0, 40: 0, 50: 0}
    for bucket in now.levels:
        for level, number in bucket.counts.items():
            counts[level] = counts.get(level, 0) + number
    columns = [Column(name(one), lambda row, level=one: count(row[level])) for one in sorted(counts)]  # type: ignore[misc]  # no name for it
    yield from table(columns, [counts], width, colour=on)


def _errors(now: Look, most: int, width: int | None, on: bool) -> Iterator[str]:
    yield paint("last errors" if now.errors else "no errors in the last 24 hours", "bold", on=on)
    columns = [
        Column("ago", lambda one: _ago(now.now - one.ts)),
        Column("level", lambda one: name(one.level), right=False),
        Column("logger", lambda one: cut(text(one.logger), 24), right=False),
        Column("message", _said, right=False),
    ]
    if now.errors:
        yield from table(columns, now.errors[:most], width, colour=on)


def _said(one: reports.LastError) -> str:
    first = (one.message or "").partition("\n")[0]
    return f"{first} ({one.exc_type})" if one.exc_type else first


def _failed(now: Look, most: int, width: int | None, on: bool) -> Iterator[str]:
    yield paint("last failed messages", "bold", on=on)
    columns = [
        Column("ago", lambda one: _ago(now.now - one.ts)),
        Column("channel", lambda one: text(one.channel), right=False),
        Column("try", lambda one: count(one.attempts)),
        Column("job", lambda one: cut(text(one.job_id), 24), right=False),
        Column("why", lambda one: text(one.error_message).partition("\n")[0], right=False),
    ]
    yield from table(columns, now.failed[:most], width, colour=on)


def _ago(span: timedelta) -> str:
    """Return how long ago: 3 s, 12 min, 5 h. A server's clock may be ahead of ours: that is 0 s."""
    passed = max(span.total_seconds(), 0.0)
    for most, unit, one in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if passed < most:
            return f"{passed // one:.0f} {unit}"
    return f"{passed // 86400:.0f} d"
