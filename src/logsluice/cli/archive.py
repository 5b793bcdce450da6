"""`logsluice archive`: what is old into files, verified. Nothing is dropped: that is `maintain --archive`."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from logsluice import archiving, maintenance
from logsluice.archive import FORMATS, Settings
from logsluice.cli import common, progress
from logsluice.cli.arguments import moment, utf8
from logsluice.cli.output import say_anything, visible

if TYPE_CHECKING:
    import argparse


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("archive", help="write old partitions into files; nothing is dropped")
    parser.add_argument("target", type=utf8, metavar="TARGET", help="a directory, or a URL such as s3://bucket/logs")
    parser.add_argument(
        "--table", type=utf8, help="only of this table: logs, activity, dead_letter (default: all of logs)"
    )
    parser.add_argument("--since", type=moment, metavar="TIME", help="what ended after: 90d, 2026-11-01, RFC 3339")
    parser.add_argument("--until", type=moment, metavar="TIME", help="what ended before (default: now)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the files (default: %(default)s)")
    common.add_dsn(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Archive, and print the files; 1 when a maintainer is at work."""
    settings = Settings.of({"target": args.target, "format": args.format})
    assert settings is not None
    until = args.until or datetime.now(timezone.utc)
    with common.connect(args) as conn, common.said("cannot archive"), progress.shown("archiving") as told:
        done = archiving.archive_all(
            conn, settings, args.schema, table=args.table, since=args.since, until=until, progress=told
        )
    if done is None:
        print(maintenance.AT_WORK, file=sys.stderr)
        return 1
    say_anything(sys.stdout)
    for one in done.written:
        print(visible(f"{one.path}: {one.rows:,} rows"))
    print(visible(done.line()), flush=True)
    return 0
