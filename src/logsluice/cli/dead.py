"""
`logsluice dead list|show|edit|replay|drop`: rows that their table refused.

    2026-11-22 09:01:02Z  5577006791947779410:8192  "public"."orders"  waiting  23503  insert or update on table ...

What a dead letter holds was written by strangers: it is shown as `logsluice tail` shows it, one line a column.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import deadletters, holds, privileges
from logsluice.cli import common, dead_report
from logsluice.cli.dead_report import NULL, again, nobody
from logsluice.cli.output import say_anything, visible
from logsluice.deadletters import DEAD_LETTER_RETENTION, HEALS, MOST_TRIES, Id
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.schema import migration

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

# A day, as in `prune`: `--older-than 30m` by somebody who meant months must not drop what nobody has looked at.
LEAST = timedelta(days=1)


def register(commands: common.Commands) -> None:
    """Add the command and its own commands."""
    parser = commands.add_parser("dead", help="look at rows that a table refused, send them again")
    ours = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    one = _command(ours, "list", _list, "show the latest that wait")
    one.add_argument("--limit", type=_limit, default=20, metavar="ROWS", help="how many (default: %(default)s)")
    one.add_argument("--target", metavar="TABLE", help="only those of this table: orders, or schema.orders")
    one.add_argument("--all", action="store_true", help="also those that were stored since")
    one.add_argument("--json", action="store_true", help="one JSON object a line")

    one = _command(ours, "show", _show, "show one: its values, the reason, what to do next")
    one.add_argument("id", type=_id, metavar="ID", help="stream:position, as `list` shows it")

    one = _command(ours, "edit", _edit, "replace values of one that waits")
    one.add_argument("id", type=_id, metavar="ID", help="as `list` shows it")
    one.add_argument("values", nargs="+", metavar="COLUMN=VALUE", help=rf"the new value; {NULL} is NULL")

    one = _command(ours, "replay", _replay, "send again: those named, or all that wait")
    one.add_argument("ids", nargs="*", type=_id, metavar="ID", help="as `list` shows them")
    one.add_argument(
        "--due",
        action="store_true",
        help=f"for cron: those whose reason can heal (SQLSTATE {', '.join(HEALS)}), after 1, 2 and 4 minutes; "
        f"after {MOST_TRIES} tries they are marked as stuck",
    )
    one.add_argument("--even-damaged", action="store_true", help="with ID: even from a damaged block of a journal")
    one.add_argument("--yes", action="store_true", help="without ID and --due: send all; else they are only counted")

    one = _command(ours, "drop", _drop, "delete: those named, or the old ones")
    one.add_argument("ids", nargs="*", type=_id, metavar="ID", help="as `list` shows them")
    one.add_argument(
        "--older-than",
        type=common.duration,
        metavar="DURATION",
        help=f"without ID: those of before, stored since or not (default: {DEAD_LETTER_RETENTION.days}d); at least 1d, "
        "with --replayed as short as you like",
    )
    one.add_argument("--replayed", action="store_true", help="only those that were stored since")
    one.add_argument("--yes", action="store_true", help="drop them; without it they are only counted")


def _command(commands: common.Commands, name: str, run: Any, words: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=words, description=words)
    common.add_dsn(parser)
    parser.set_defaults(run=run, wrong=parser.error)
    return parser


def now() -> datetime:
    """Return the moment by which something is due or old: this machine's."""
    return datetime.now(timezone.utc)


# --- looking -------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    """Print the latest, oldest first. That there are none is said on stderr and is no error, as in `tail`."""
    with _told(args, "SELECT") as conn:
        try:
            letters = deadletters.latest(conn, args.schema, limit=args.limit, target=args.target, replayed=args.all)
        except ConfigError as error:
            args.wrong(f"--target: {error}")
        more = len(letters) == args.limit
        where = common.place(args, conn, "dead_letter")
    say_anything(sys.stdout)
    for letter in letters:
        print(json.dumps(dead_report.as_json(letter)) if args.json else dead_report.line(letter))
    if not letters:
        print(f"no dead letter{'' if args.all else ' waits'} in {where}", file=sys.stderr)
    if more:
        print(f"there may be more than the latest {args.limit}: --limit says how many to show", file=sys.stderr)
    return 0


def _show(args: argparse.Namespace) -> int:
    with _told(args, "SELECT") as conn:
        letter = deadletters.find(conn, [args.id], args.schema).get(args.id)
    if letter is None:
        return nobody(args, [args.id])
    say_anything(sys.stdout)
    print("\n".join(dead_report.whole(letter, args)))
    return 0


# --- mending and sending again -------------------------------------------------------------------------------------


def _edit(args: argparse.Namespace) -> int:
    for text in args.values:
        if "=" not in text:
            args.wrong(f"{text!r} has no =: write COLUMN=VALUE, in quotes when it holds blanks")
    with _told(args, "SELECT", "UPDATE") as conn:
        letter = deadletters.find(conn, [args.id], args.schema).get(args.id)
        if letter is None:
            return nobody(args, [args.id])
        values = dict(_value(text, letter.columns or ()) for text in args.values)
        letter = deadletters.edit(conn, args.id, values, args.schema)
    say_anything(sys.stdout)
    texts = letter.texts() or {}
    for column in values:
        print(f"{visible(column)} = {NULL if texts[column] is None else visible(texts[column] or '')}")
    print(f"It waits with its new values. Next:\n  {again(args, 'replay', str(args.id))}")
    return 0


def _value(text: str, columns: Collection[str]) -> tuple[str, str | None]:
    """Split COLUMN=VALUE. A column's name may hold a =: the longest one that fits is meant."""
    fitting = [column for column in columns if text.startswith(f"{column}=")]
    name = max(fitting, key=len, default=text.partition("=")[0])
    value = text[len(name) + 1 :]
    return name, None if value == NULL else value


def _replay(args: argparse.Namespace) -> int:
    """Send; 1 when one stays dead or is not there."""
    if args.ids and args.due:
        args.wrong("give IDs or --due, not both: --due takes those whose time has come")
    if args.even_damaged and not args.ids:
        args.wrong("--even-damaged goes with ID: damaged rows are looked at and sent one by one")
    with _told(args, "SELECT", "UPDATE") as conn:
        if args.ids:
            return _replay_named(conn, args)
        if not (args.due or args.yes):
            return _count(conn, args)
        done = deadletters.replay(conn, args.schema, now=now(), due=args.due)
        damaged = sum(one.number for one in deadletters.waiting(conn, args.schema) if one.damaged)
    status = dead_report.replayed(args, done, say_none="no dead letter is due" if args.due else "no dead letter waits")
    if damaged and not args.due:
        print(
            f"{damaged} from a damaged block of a journal were not sent: look at each, then\n"
            f"  {again(args, 'replay', '--even-damaged')} ID",
            file=sys.stderr,
        )
        return 1
    return status


def _replay_named(conn: psycopg.Connection[Any], args: argparse.Namespace) -> int:
    ids = set(args.ids)
    found = deadletters.find(conn, ids, args.schema)
    status = 0 if len(found) == len(ids) else nobody(args, ids - found.keys())
    waiting = {one for one, letter in found.items() if letter.replayed_at is None}
    for one in sorted(found.keys() - waiting):
        print(f"{one} was stored {dead_report.second(found[one].replayed_at)}, and is not sent again")
    damaged = set() if args.even_damaged else {one for one in waiting if found[one].damaged}
    for one in sorted(damaged):
        print(f"{one} comes from a damaged block of a journal and may hold anything. When you have looked at it:")
        print(f"  {again(args, 'replay', '--even-damaged', str(one))}")
    wanted = waiting - damaged
    if not wanted:
        return 1 if damaged else status
    done = deadletters.replay(conn, args.schema, now=now(), ids=wanted, even_damaged=args.even_damaged)
    told = {*done.stored, *(one for one, _ in (*done.refused, *done.held))}
    busy = "another replay or edit has it now: run the same again"
    done.held += [(one, busy) for one in sorted(wanted - told)]
    return max(status, dead_report.replayed(args, done, say_none=""), 1 if damaged else 0)


def _count(conn: psycopg.Connection[Any], args: argparse.Namespace) -> int:
    counted = deadletters.waiting(conn, args.schema)
    say_anything(sys.stdout)
    if not counted:
        print("no dead letter waits")
        return 0
    for one in counted:
        note = "  from a damaged block of a journal: not sent" if one.damaged else ""
        print(f"{one.number:>9,}  {visible(one.target)}  {visible(one.sqlstate or '-')}{note}")
    print(f"\nThis was a dry run, nothing was sent. To send them:\n  {again(args, 'replay', '--yes')}")
    return 0


# --- dropping ------------------------------------------------------------------------------------------------------


def _drop(args: argparse.Namespace) -> int:
    if args.ids and args.older_than is not None:
        args.wrong("give IDs or --older-than, not both")
    if args.older_than is not None and args.older_than < LEAST and not args.replayed:
        args.wrong("--older-than must be at least 1d (m is minutes, h hours, d days, w weeks), or goes with --replayed")
    age = args.older_than if args.older_than is not None else DEAD_LETTER_RETENTION
    moment = None if args.ids or (args.replayed and args.older_than is None) else now() - age
    what = {"ids": args.ids or None, "before": moment, "replayed": args.replayed}
    with _told(args, "SELECT", "DELETE") as conn:
        waiting, replayed = deadletters.droppable(conn, args.schema, **what)
        lacking = set(args.ids) - deadletters.find(conn, args.ids, args.schema).keys() if args.ids else set()
        dropped = deadletters.drop(conn, args.schema, **what) if args.yes else 0
    status = nobody(args, lacking) if lacking else 0
    if args.yes:
        print(f"dropped {dropped}")
        return status
    print(f"{waiting} that wait and were never stored, {replayed} that were stored since")
    if waiting or replayed:
        words = [str(one) for one in args.ids]
        if args.older_than is not None:
            words += ["--older-than", f"{int(age.total_seconds()) // 60}m" if age % LEAST else f"{age.days}d"]
        words += ["--replayed"] if args.replayed else []
        print(f"\nThis was a dry run, nothing was dropped. To drop them:\n  {again(args, 'drop', *words, '--yes')}")
    return status


# --- what they share -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _told(args: argparse.Namespace, *needed: str) -> Iterator[psycopg.Connection[Any]]:
    """Connect, and turn an error of the server into one line that says what to do."""
    with common.connect(args) as conn:
        where = common.place(args, conn, "dead_letter")
        migrate = migration(args.schema)
        try:
            yield conn
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise LogsluiceError(
                f"there is no table {where}. A handler makes it with its first record; `{migrate}` makes it now; "
                "--schema and --dsn say where to look"
            ) from None
        except psycopg.errors.UndefinedColumn:
            raise LogsluiceError(f"{where} was made by an earlier logsluice: run `{migrate}`") from None
        except psycopg.errors.InsufficientPrivilege as error:
            lacks = privileges.lacking(conn, args.schema, "dead_letter", needed, home=args.schema)
            if "DELETE" in needed and holds.there(conn, args.schema):  # who drops must know what may not go
                lacks += privileges.lacking(conn, args.schema, "hold", ("SELECT",), home=args.schema)
            what = "; ".join(lack.what for lack in lacks) or common.reason(error)
            fix = "".join(f"\n  {lack.fix};" for lack in lacks)
            raise LogsluiceError(f"{what}. Use another role, or have the owner run:{fix}" if fix else what) from None
        except psycopg.Error as error:
            hint = ". What was being sent is stored whole or not at all: run the same again" if conn.closed else ""
            raise LogsluiceError(f"{where}: {common.reason(error)}{hint}") from None


def _id(text: str) -> Id:
    try:
        return Id.parse(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):  # all are held before one is printed
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 1,000,000")
    return int(text)
