"""`logsluice prune`: drop the partitions that are older than what is kept. Without --yes it only shows them."""

from __future__ import annotations

import functools
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import holds, maintenance, partitions, rollup
from logsluice.cli import common
from logsluice.cli.tables import size
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

# One day, whatever the width: the handlers keep yesterday's partitions ready and would make them again at once, and
# `--keep 30m` by somebody who meant months must not empty the table.
LEAST = timedelta(days=1)


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("prune", help="drop old partitions of logs")
    common.add_dsn(parser)
    parser.add_argument(
        "--keep", type=common.duration, required=True, metavar="DURATION", help="how much to keep: 30d, 4w; at least 1d"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="only show them: what it does without --yes")
    what.add_argument("--yes", action="store_true", help="drop them; without it they are only shown")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show what is to be dropped and, with --yes, drop it; 1 when something could not be dropped."""
    if args.keep < LEAST:
        raise ConfigError(f"--keep must be at least 1 day, got {args.keep} (m is minutes, h hours, d days, w weeks)")
    now = datetime.now(timezone.utc)
    with common.connect(args) as conn:
        with common.said("cannot list the partitions"):
            old = partitions.expired(conn, args.schema, args.keep, now)
        if not old:
            print(f"no partition lies wholly before {_minute(now - args.keep)} UTC: nothing to drop")
            return 0
        with common.said("cannot read the legal holds"):
            held = _held(conn, args.schema, old)
        print(_table(old, held))
        if not args.yes:
            print(f"\nThis was a dry run, nothing was dropped. To drop them:\n  {_for_real(args)}")
            return 0
        partitions.check_session(conn)
        # Else a maintainer could attach again, as its rules say, what we are about to drop as detached.
        with maintenance.leading(conn, args.schema, needed=True) as leads:
            if not leads:
                print(maintenance.AT_WORK, file=sys.stderr)
                return 1
            with common.said("cannot count the rows for the roll-up"):
                rollup.refresh(conn, args.schema)
            return _drop_all(conn, args.schema, old)


def _held(conn: psycopg.Connection[Any], schema: str, parts: Sequence[partitions.Partition]) -> dict[str, str]:
    """Return {partition: hold} of those in which a legal hold keeps a row."""
    columns = next(one.columns for one in maintenance.tables(conn, schema) if one.name == "logs")
    found = {}
    for part in parts:
        about = [one for one in holds.read(conn, schema) if one.about("logs", part.lower, part.upper)]
        name = holds.keeping(conn, about, part.full_name, columns)
        if name is not None:
            found[part.name] = name
    return found


def _look(conn: psycopg.Connection[Any], schema: str, part: partitions.Partition) -> None:
    held = _held(conn, schema, [part])
    if held:
        raise partitions.KeptError(f"legal hold {held[part.name]!r}")
    seen = rollup.state(conn, schema)
    if seen is not None and rollup.lacks(conn, seen, part.full_name):
        raise partitions.KeptError("rows came that the roll-up has not counted yet, run the same again")


def _drop_all(conn: psycopg.Connection[Any], schema: str, old: Sequence[partitions.Partition]) -> int:
    """Drop each by itself: one that is in use keeps no other, unless PostgreSQL says so."""
    failed = 0
    print()
    for part in old:
        try:
            if part.state == "attached":
                _look(conn, schema, part)  # before it is detached, and again when nobody adds a row any more
            partitions.drop(conn, schema, part, before=functools.partial(_look, conn, schema, part))
        except partitions.KeptError as kept:
            print(f"kept {part.name}: {kept}")
        except psycopg.Error as error:
            failed += 1
            in_use = isinstance(error, psycopg.errors.LockNotAvailable)
            why = "an open transaction still uses it" if in_use else common.reason(error) + common.next_step(error)
            print(f"not dropped: {part.name}: {why}", file=sys.stderr)
            if conn.closed:
                return 1
            if any(one.state == "pending" for one in partitions.listed(conn, schema)):
                # PostgreSQL has one pending DETACH a table: each of the others would fail now.
                print(
                    "nothing else can be dropped before it; run the same again, it goes on from there", file=sys.stderr
                )
                return 1
        else:
            print(f"dropped {part.name}")
    return 1 if failed else 0


def _table(parts: Sequence[partitions.Partition], held: Mapping[str, str]) -> str:
    rows = [("partition", "from (UTC)", "to (UTC)", "rows", "size", "")]
    for part in parts:
        state = "" if part.state == "attached" else "dropping it was interrupted"
        if part.name in held:
            state = f"kept by the legal hold {held[part.name]!r}"
        rows.append((part.name, _minute(part.lower), _minute(part.upper), f"~{part.rows:,}", size(part.size), state))
    total, room = sum(part.rows for part in parts), sum(part.size for part in parts)
    rows.append((f"{len(parts)} in all", "", "", f"~{total:,}", size(room), ""))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[3:5], widths[3:5], strict=True)]
        lines.append("  ".join([*left, *right, row[5]]).rstrip())
    return "\n".join(lines)


def _for_real(args: argparse.Namespace) -> str:
    minutes = int(args.keep.total_seconds()) // 60
    keep = f"{minutes // 1440}d" if minutes % 1440 == 0 else f"{minutes}m"
    return common.command(args, "prune", "--keep", keep, *common.schema_words(args), "--yes")


def _minute(moment: datetime | None) -> str:
    return "the beginning" if moment is None else moment.strftime("%Y-%m-%d %H:%M")
