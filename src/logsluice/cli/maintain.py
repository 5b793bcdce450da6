"""`logsluice maintain`: what retention rules say, done once or every few hours; partitions made ahead."""

from __future__ import annotations

import signal
import sys
import threading
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from logsluice import maintenance, retention
from logsluice.archive import FORMATS, Settings
from logsluice.cli import common
from logsluice.config import PARTITION_WIDTHS
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from logsluice.retention import Rules

LEAST = timedelta(minutes=1)  # between two runs: each looks through the catalogue


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("maintain", help="make partitions ahead, drop and delete what is old")
    common.add_dsn(parser)
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument("--once", action="store_true", help="one run, for cron")
    when.add_argument("--every", type=common.duration, metavar="DURATION", help="run now and then every: 6h; until ^C")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="RULE=DURATION",
        help="how long rows are kept, by table, level or log type: '*=30d', DEBUG=3d, jetstream=1d, activity=forever",
    )  # fmt: skip
    parser.add_argument("--rules", metavar="FILE", help='the same as JSON: {"jetstream": "1d", "*": "30d"}')
    parser.add_argument(
        "--types", action="append", default=[], metavar="MODULE", help="module that declares typed logs, with retention"
    )
    parser.add_argument("--archive", metavar="TARGET", help="directory or URL where rows go before they are dropped")
    parser.add_argument("--format", choices=FORMATS, help="of the archive's files (default: as rules say, or parquet)")
    parser.add_argument("--partition", choices=PARTITION_WIDTHS, help="width of what is made ahead (default: as it is)")
    parser.add_argument("--dry-run", action="store_true", help="only show what would go")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run once or until a signal; 1 when the last run left something undone."""
    rules = _rules(args.rules, args.keep)
    args.settings = _archive(args)
    if args.every is not None and args.every < LEAST:
        raise ConfigError(f"--every must be at least 1 minute, got {args.every}")
    for name in args.types:
        common.imported(name)
    if args.every is None:
        return _once(args, rules)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    status = 0
    while not ended.is_set():
        try:
            status = _once(args, rules, ended)
        except ConfigError:
            raise
        except LogsluiceError as error:  # the server is away: the next run may find it
            status = 1
            print(f"logsluice: {error}", file=sys.stderr, flush=True)
        ended.wait(args.every.total_seconds())
    return status


def _rules(file: str | None, keep: Sequence[str]) -> Rules:
    given: dict[str, Any] = {}
    for text in keep:
        key, equals, value = text.rpartition("=")
        if not equals:
            raise ConfigError(f"--keep {text!r}: write RULE=DURATION, for example '*=30d'")
        if key == retention.ARCHIVE:  # in a file of rules it says where rows go; here it would be no rule at all
            raise ConfigError(f"--keep {text!r}: write --archive TARGET, or log_type=archive for a log type")
        given[key] = value
    return {**retention.rules_from(file), **retention.rules_from(given)}


def _archive(args: argparse.Namespace) -> Settings | None:
    """Return what --archive and --format say, or else the rules' file."""
    given = retention.archive_in(args.rules) if args.archive is None else args.archive
    if args.format is None:
        return Settings.of(given)
    if given is None:
        raise ConfigError("--format is about an archive: say with --archive where it is")
    given = {"target": given} if isinstance(given, str) else given
    return Settings.of({**given, "format": args.format} if isinstance(given, dict) else given)


def _once(args: argparse.Namespace, rules: Rules, ended: threading.Event | None = None) -> int:
    now = datetime.now(timezone.utc)
    with common.connect(args) as conn, common.said("maintenance failed"):
        report = maintenance.run(
            conn, args.schema, rules, now=now, width=args.partition, dry_run=args.dry_run,
            archive=args.settings, stop=ended.is_set if ended is not None else lambda: False,
        )  # fmt: skip
    print(f"{now:%Y-%m-%d %H:%M:%SZ}{' dry run: nothing is changed' if args.dry_run else ''}")
    for line in report.lines():
        print(f"  {line}", flush=True)
    return 1 if report.skipped else 0
