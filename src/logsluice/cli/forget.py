"""`logsluice forget`: delete a person's rows from every table. Without --yes it only counts them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from logsluice import erasure
from logsluice.cli import common
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("forget", help="delete a person's rows from every table")
    common.add_dsn(parser)
    parser.add_argument("--user", metavar="ID", help="the same as user_id=ID")
    parser.add_argument(
        "match",
        nargs="*",
        metavar="COLUMN=VALUE",
        help="a column or attribute and its value; of several, all must be so",
    )
    parser.add_argument("--yes", action="store_true", help="delete them; without it they are only counted")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Count the rows and, with --yes, delete them; 1 when a hold kept some or a dead letter could not be read."""
    match = {} if args.user is None else {"user_id": args.user}
    for text in args.match:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{text!r}: write COLUMN=VALUE, for example session_id=s-7")
        match[name] = value
    if not match or not all(match.values()):
        raise ConfigError("say whose rows: --user ID, or COLUMN=VALUE")
    with common.connect(args) as conn, common.said("not all could be deleted; when this is mended, run the same again"):
        found = erasure.erase(conn, match, args.schema, dry_run=not args.yes)
    for one in found:
        kept = f", {one.held:,} kept by a legal hold" if one.held else ""
        print(f"{one.table}: {one.rows:,} rows{'' if args.yes else ' to delete'}{kept}")
        if one.unread:
            print(
                f"{one.unread:,} dead letters hold the text but cannot be read as rows: look at them with "
                "`logsluice dead list`",
                file=sys.stderr,
            )
    if not args.yes:
        print("\nThis was a dry run, nothing was deleted. To delete them, the same with --yes.")
    print("Records that still wait in memory or in a journal come later: run it again when they are stored.")
    return 1 if any(one.held or one.unread for one in found) else 0
