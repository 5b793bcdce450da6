"""
`logsluice demo`: a program logs, its database is killed in the middle, and afterwards every record is looked for.

    demo.py         the story: server, shop, kill, start, end
    demo_watch.py   what is seen of shop and table from outside
    demo_report.py  the judgement, and what is shown
    shop.py         the program that logs, run apart: it knows `logging` and an entry of dictConfig, nothing else of us
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import threading
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from logsluice.cli import demo_report as report
from logsluice.cli import output, shop
from logsluice.cli.demo_watch import SHARE, TICK, Shop, Sight, Table
from logsluice.devserver import EmbeddedPostgres
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logsluice.cli.common import Commands

AIM = 0.002  # seconds between two looks while we wait for a COPY to kill: one of a full segment takes 10 ms and more
AIM_LIMIT = 2.0  # seconds after which we kill without one
OUTAGE = 1.0  # seconds that the database stays away, its start not counted
PATIENCE = 60.0  # seconds without a new id or row: something hangs. Exit alone may take 30 (shop.py)


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="kill a database under a program that logs, and count",
        description="Starts a PostgreSQL of its own and a program that logs into it, kills the database while rows are "
        "in flight, starts it again, and looks for every record. Exit status 1 if one is lost or stored twice.",
    )
    parser.add_argument(
        "--seconds", type=_between(3, 600), default=8, metavar="S", help="how long the program logs (default: 8)"
    )
    parser.add_argument(
        "--records",
        type=_between(1000, 10_000_000),
        default=40_000,
        metavar="N",
        help="how many records it logs in that time; in longer, if it cannot (default: 40000)",
    )
    parser.add_argument("--data", metavar="DIR", help="keep the database in this folder; otherwise it is thrown away")
    parser.add_argument("--look", action="store_true", help="no story: only start the database that --data has kept")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tell the story; 1 if a record was lost or stored twice."""
    output.say_anything(sys.stdout)
    screen = report.Screen(sys.stdout)
    waits = screen.live and sys.stdin.isatty()
    if args.look and not (args.data and waits):
        raise ConfigError("--look goes with --data DIR, and with a terminal: the database runs until you press Enter")
    screen.progress("starting PostgreSQL ...")
    good = True
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the shop would outlive us
    with screen.cleared(), EmbeddedPostgres(data=args.data) as server:
        kept = f"its data stay in {args.data}" if args.data else "a throw-away one, for this demo only"
        screen.event(f"PostgreSQL {server.version} is up: {kept}")
        if not args.look:
            folder = server.folder / "shop"  # however we end, the server's watchdog removes it
            folder.mkdir(mode=0o700)
            story = Story(screen, server, folder, args.seconds, args.records)
            try:
                good = story.tell()
            finally:
                story.end()
        _how_to_look(screen, server, args.data, waits=waits)
    return 0 if good else 1


class Story:
    """One run of the demo. One thread."""

    def __init__(
        self, screen: report.Screen, server: EmbeddedPostgres, folder: Path, seconds: int, records: int
    ) -> None:
        self._screen, self._server = screen, server
        self._seconds, self._records = seconds, records
        self._table = Table(server)
        self._shop = Shop(folder, server.dsn(), seconds, records)
        self._pause = threading.Event()  # never set
        self._seen = Sight(0, 0)
        self._moved = time.monotonic()  # when something new was seen

    def end(self) -> None:
        """End the shop if it still runs, and let go of the database."""
        self._shop.end()
        self._table.conn.close()

    def tell(self) -> bool:
        """Kill the database under the shop, start it again; judge and show. True if every record is there once."""
        self._screen.event("a bakery opens: a program of its own, 4 threads, 4 asyncio tasks, plain `logging`")
        self._watch(lambda: self._shop.speed() is not None)
        began = time.monotonic()
        sale = began + self._seconds * shop.SALE_AT
        self._watch(lambda: time.monotonic() >= sale - TICK)

        dark, in_flight = self._kill(sale + min(AIM_LIMIT, self._seconds / 3))  # before all is stored
        killed_at, gone = self._screen.now(), time.monotonic()
        self._watch(lambda: time.monotonic() >= gone + OUTAGE, away=True)
        self._server.start()
        away = time.monotonic() - gone
        self._table.reconnect()
        outage = (dark, datetime.now(timezone.utc))
        self._screen.event(f"database back after {away:.1f} s; the bakery did not wait for it", "green")

        rows, back = self._table.count(), time.monotonic()
        if self._watch(lambda: self._look().rows > rows):
            self._screen.event(f"rows arrive again, {time.monotonic() - back:.1f} s later")
        if self._watch(lambda: self._seen.accepted >= self._records):
            self._screen.event("the bakery closes: its program ends, and logging closes the handler")
        self._watch(lambda: False)
        self._look()
        rate = (self._table.rows / (time.monotonic() - began), self._table.best_second())
        return self._judge(
            outage, rate, f"killed at {killed_at:.1f} s with {in_flight:,} rows in flight, back after {away:.1f} s"
        )

    def _watch(self, until: Callable[[], bool], *, away: bool = False) -> bool:
        """Look and show until something is true; False if the shop has ended before."""
        while not until():
            if self._shop.status is not None:
                self._look(away=away)  # its last words
                if self._shop.status:
                    raise LogsluiceError(f"the bakery broke down with status {self._shop.status}: see its stderr above")
                return False
            self._pause.wait(max(TICK, SHARE * self._table.cost))
            seen = self._look(away=away)
            self._screen.progress(f"{seen}{'   database away' if away else ''}")
            if time.monotonic() > self._moved + PATIENCE:
                raise LogsluiceError(f"nothing has happened for {PATIENCE:.0f} s: {seen}")
        return True

    def _look(self, *, away: bool = False) -> Sight:
        for line in self._shop.said():
            self._screen.event(f"the bakery's stderr: {output.visible(line)}", "dim")
        accepted = self._shop.accepted()  # first: so that what is in flight is at least this
        seen = Sight(accepted, self._table.rows if away else self._table.count())
        if seen != self._seen:
            self._seen, self._moved = seen, time.monotonic()
        return seen

    def _kill(self, latest: float) -> tuple[datetime, int]:
        """Kill the database in the middle of a COPY; return when, and how many rows were in flight."""
        enough = self._records // 50  # the sale is a fifth of all: more than that piles up
        while True:
            # The same transaction before and after: nothing was committed since we counted, its rows are in flight.
            copying = self._table.copying()
            seen = self._look()
            caught = copying is not None and copying == self._table.copying()
            if (caught and seen.in_flight >= enough) or (time.monotonic() > latest and seen.in_flight):
                break
            if time.monotonic() > latest + PATIENCE or self._shop.status is not None:
                raise LogsluiceError(f"the database was never seen with rows in flight: {seen}")
            self._screen.progress(str(seen))
            self._pause.wait(AIM)
        moment = datetime.now(timezone.utc)
        self._server.kill()
        where = ", in the middle of a COPY" if caught else ""
        self._screen.event(f"database killed (SIGKILL) with {seen.in_flight:,} rows in flight{where}", "bold red")
        return moment, seen.in_flight

    def _judge(self, outage: tuple[datetime, datetime], rate: tuple[float, float], story: str) -> bool:
        """Compare the shop's list with the table, and show."""
        screen, conn, since = self._screen, self._table.conn, self._table.since
        verdict = report.judge(self._shop.ids(), report.stored_ids(conn, since))
        own = report.counters(conn, since)
        screen.text()
        screen.table(report.HEAD, report.figures(verdict, own, rate, self._shop.speed() or {}))
        screen.text()
        style = "green" if verdict.good else "bold red"
        screen.text(f"{len(verdict.lost):,} lost, {len(verdict.twice):,} twice: {story}", style)
        screen.text()
        screen.text("Ten rows that were logged while the database was away:")
        for line in report.sample_lines(report.samples(conn, since, outage), screen):
            screen.text(line)
        return verdict.good


def _how_to_look(screen: report.Screen, server: EmbeddedPostgres, data: str | None, *, waits: bool) -> None:
    """Say how to look further. On a terminal the server lives until Enter: without it the lines would be of no use."""
    screen.text()
    if waits:
        program = "psql" if shutil.which("psql") or not (server.bin / "psql").exists() else str(server.bin / "psql")
        screen.text("Look further, in another terminal:")
        screen.text(f"  export LOGSLUICE_DSN='{server.dsn()}'")
        screen.text("  logsluice tail")
        screen.text(f'  {program} "$LOGSLUICE_DSN" -c "SELECT count(*) FROM logsluice.logs"')
        screen.text(f"Press Enter to stop the database{'' if data else ' and throw it away'}.", "bold")
        try:
            sys.stdin.readline()
        except KeyboardInterrupt:  # as good as Enter
            screen.text()
    if data:
        screen.text(f"The database stops now, and its rows stay in {data}. To look at them, on a terminal:")
        screen.text(f"  logsluice demo --data {shlex.quote(data)} --look")
    elif not waits:
        screen.text("The database stops now, and its rows are gone with it. To look at them with psql, run this on a")
        screen.text("terminal, where it waits before it stops, or keep them: logsluice demo --data DIR")


def _between(least: int, most: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        if text.isdecimal() and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least:,} to {most:,}")

    return check
