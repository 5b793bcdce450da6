"""`logsluice restore`: archive files, verified, back into tables; what is there already is not stored twice."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from logsluice import archiving
from logsluice.archive import places
from logsluice.archive.manifest import ENDING
from logsluice.cli import common, progress
from logsluice.cli.arguments import moment, utf8
from logsluice.cli.output import say_anything, visible
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    import argparse

    from logsluice.archiving import Restored

_FILES = (".parquet", ".jsonl.gz", ENDING)


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("restore", help="load archived files into tables again")
    parser.add_argument("source", type=utf8, metavar="FILE|FOLDER", help="one file, or all below a directory or URL")
    parser.add_argument("--table", type=utf8, help="only files of this table: logs, activity, ... (default: all)")
    parser.add_argument("--into", type=utf8, metavar="TABLE", help="another table of the schema, made if need be")
    parser.add_argument(
        "--since", type=moment, metavar="TIME", help="only rows from then on: 90d, 2026-11-01, RFC 3339"
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="only rows before")
    parser.add_argument("--dry-run", action="store_true", help="only verify the files, and count")
    common.add_dsn(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Restore file by file; 1 when one could not be, or there is none."""
    folder, path = args.source, None
    if args.source.endswith(_FILES):
        folder, slash, path = args.source.rpartition("/")
        folder = folder or slash or "."
    place = places.place_of(folder)
    there = archiving.manifests(place, path)
    if not there:
        raise LogsluiceError(f"no archive in {places.shown(args.source)}: name what `archive` or `maintain` wrote into")
    found = [one for one in there if args.table in {None, one.table} and one.overlaps(args.since, args.until)]
    if not found:
        raise LogsluiceError(f"no archive of that table and time in {places.shown(args.source)}")
    say_anything(sys.stdout)
    done: list[Restored] = []
    with common.connect(args) as conn, common.said("cannot restore"):
        work = archiving.Restore(conn, place, args.schema, args.into, args.since, args.until)
        for one in found:
            try:
                with progress.shown(one.file, one.rows) as told, common.said(one.path):
                    done.append(work.file(one, dry_run=args.dry_run, progress=told))
            except LogsluiceError as error:
                print(visible(f"logsluice: not restored: {error}"), file=sys.stderr)
                if conn.closed:
                    return 1
            else:
                print(visible(_line(done[-1], args)), flush=True)
    if (text := archiving.warning(done)) is not None and args.into is None:
        print(f"logsluice: {text}", file=sys.stderr)
    return 0 if len(done) == len(found) else 1


def _line(one: Restored, args: argparse.Namespace) -> str:
    if args.dry_run:
        return f"{one.manifest.path}: sound, {one.wanted:,} rows for {args.into or one.manifest.table}"
    there = one.wanted - one.stored
    return f"{one.manifest.path}: {one.stored:,} rows into {args.into or one.manifest.table}, {there:,} were there"
