"""
`logsluice journal DIR`: what waits in a journal's folder, whose it was; loaded or copied by hand.

    stream 5a3c19f0e2b47d86: its process is gone
      shop (production), pid 4711 on web-1, since 2026-11-22 09:00:58Z
      for "logsluice"."logs" in database logs at db.example:5432
      3 segments, 1.0 MiB: 4,096 records from 2026-11-22 09:01:02.123Z to 2026-11-22 09:01:09.456Z

Streams whose process lives are shown, and never touched.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from logsluice import journals
from logsluice.cli import common
from logsluice.cli.output import say_anything, visible
from logsluice.columns import Table, quote
from logsluice.errors import LogsluiceError
from logsluice.folder import QUARANTINE, file_system
from logsluice.journal import STREAM_NAME
from logsluice.journals import NotLoadedError, sized
from logsluice.lines import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logsluice.folder import Folder
    from logsluice.journal import Header
    from logsluice.journals import Loaded, Place, Stream


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("journal", help="look at a journal's folder, load what dead processes left")
    parser.add_argument("folder", metavar="DIR", help="what journal= says in the handler's options")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--load",
        nargs="*",
        type=_stream,
        metavar="STREAM",
        help="store what dead processes left, or of these alone; by the next process's way, so nothing is stored twice",
    )
    what.add_argument(
        "--export",
        type=_stream,
        metavar="STREAM",
        help="write its rows to stdout as COPY text (or the lines it has for a file), and leave it there",
    )
    what.add_argument("--json", action="store_true", help="show everything as one JSON object")
    parser.add_argument(
        "--even-elsewhere",
        action="store_true",
        help="with --load: also what was meant for another database than --dsn says",
    )
    common.add_dsn(parser, schema=False)
    parser.set_defaults(run=run, wrong=parser.error)


def run(args: argparse.Namespace) -> int:
    """Show, load or copy; 1 when something could not be loaded."""
    if args.load is None and (args.even_elsewhere or args.dsn is not None):
        args.wrong("--even-elsewhere and --dsn go with --load: nothing else here asks a database")
    folder = journals.opened(args.folder)
    say_anything(sys.stdout)
    say_anything(sys.stderr)
    try:
        if args.export is not None:
            return _export(folder, args)
        if args.load is not None:
            return _load(folder, args)
        place = journals.look(folder)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise journals.refused(args.folder, error) from None
    finally:
        folder.close()
    print(json.dumps(_json(place, args.folder)) if args.json else "\n".join(_shown(place, args)))
    return 0


# --- looking --------------------------------------------------------------------------------------------------------


def _shown(place: Place, args: argparse.Namespace) -> Iterator[str]:
    yield f"{visible(args.folder)}: {sized(place.bytes)} on {file_system(args.folder)}"
    for stream in place.streams:
        yield ""
        yield from _lines(stream)
    if place.quarantine:
        yield ""
        yield f"{QUARANTINE}: {_many(len(place.quarantine), 'file')} that nothing reads or removes any more"
        for one in place.quarantine:
            yield f"  {visible(one.name)}, {sized(one.bytes)}: {visible(one.why)}"
    if place.strangers:
        yield ""
        yield f"not of a journal: {visible(', '.join(place.strangers))}"
    yield ""
    yield from _next(place, args)


def _lines(stream: Stream) -> Iterator[str]:
    yield f"stream {stream.name}: {'a living process has it' if stream.alive else 'its process is gone'}"
    if stream.header is not None:
        since = "" if stream.started is None else f", since {_second(stream.started)}"
        yield f"  {_who(stream.header)}{since}"
        yield f"  for {visible(_where(stream.header))}"
    elif stream.segments == 0:
        yield "  it holds nothing"
        return
    times = f" from {_time(stream.first)} to {_time(stream.last)}" if stream.first and stream.last else ""
    yield f"  {_many(stream.segments, 'segment')}, {sized(stream.bytes)}: {_many(stream.records, 'record')}{times}"
    if stream.damaged:
        yield f"  {_many(stream.damaged, 'row')} in damaged blocks: dead letters, once it is sent"
    if stream.holes:
        yield f"  {_many(stream.holes, 'hole')}: the machine went down before the disk had those pages"
    if stream.truncated:
        yield f"  {_many(stream.truncated, 'file')} made shorter by somebody: what stood behind is lost"
    if stream.torn and not stream.alive:  # of a living one: the record that is being written
        yield f"  {stream.torn} bytes of records that were never whole"
    for file, why in stream.unreadable.items():
        yield f"  {visible(file)}: {visible(why)}: it goes to {QUARANTINE}/ once the stream is sent"


def _who(header: Header) -> str:
    who = {key: visible(str(value)) for key, value in header.who.items() if value is not None}
    more = ", ".join(who[key] for key in ("environment", "version") if key in who)
    service = who.get("service", "a program without service=") + (f" ({more})" if more else "")
    return f"{service}, pid {who.get('pid', '?')} on {who.get('host', '?')}"


def _where(header: Header) -> str:
    if header.sink != "postgres":
        return journals.place_of(header)
    to = header.target
    return f"{_target(header).name} in database {to.get('dbname')} at {to.get('host') or 'a socket'}:{to.get('port')}"


def _target(header: Header) -> Table:
    return Table(header.home, header.target["schema"], header.target["table"], header.columns)


def _next(place: Place, args: argparse.Namespace) -> Iterator[str]:
    if not place.orphans:
        yield "nothing of a dead process waits here"
        return
    streams = f"{_many(len(place.orphans), 'stream')} of dead processes: the next process with this journal sends them."
    # One whose header cannot be read is counted with those: `--load` says what is wrong with it.
    if all(one.header is not None and one.header.sink != "postgres" for one in place.orphans):
        yield streams
        yield "Records that are where they go already are counted here, and not written again."
        return
    yield f"{streams} To store them now:"
    yield f"  {_again(args, '--load')}"
    yield "Records that PostgreSQL has already are counted here, and not stored again."


def _json(place: Place, path: str) -> dict[str, Any]:
    return {
        "folder": path,
        "file_system": file_system(path),
        "bytes": place.bytes,
        "streams": [_stream_json(one) for one in place.streams],
        "quarantine": [asdict(one) for one in place.quarantine],
        "strangers": place.strangers,
    }


def _stream_json(stream: Stream) -> dict[str, Any]:
    shown = {key: value for key, value in vars(stream).items() if key != "header"}
    header = stream.header
    if header is not None:
        shown |= {"who": header.who, "target": header.target, "home": header.home, "columns": header.columns}
    return {"stream": int(stream.name, 16), **shown}


# --- loading --------------------------------------------------------------------------------------------------------


def _load(folder: Folder, args: argparse.Namespace) -> int:
    dsn = args.dsn if args.dsn is not None else os.environ.get(common.DSN_VARIABLE, "")
    place = journals.look(folder, count=False)
    there = {one.name: one for one in place.streams}
    if not args.load and not any(not one.alive for one in place.streams):
        print("nothing of a dead process waits here")
        return 0
    failed = 0
    for name in dict.fromkeys(args.load or [one.name for one in place.streams if not one.alive]):
        try:
            if name not in there:
                raise NotLoadedError("it is not there (any more)")
            _check_place(there[name], dsn, args)
            print(_result(name, journals.load(folder, name, dsn)), flush=True)
        except NotLoadedError as error:
            failed += 1
            print(f"stream {name} is not loaded: {visible(common.one_line(str(error)))}", file=sys.stderr)
            if error.connecting:
                break
    if failed:
        print(f"What waits still:\n  {_again(args)}", file=sys.stderr)
    return 1 if failed else 0


def _check_place(stream: Stream, dsn: str, args: argparse.Namespace) -> None:
    """Refuse what was meant for another database, unless told to."""
    if stream.header is None or args.even_elsewhere or stream.header.sink != "postgres":  # which `load` refuses
        return
    differs = journals.elsewhere(stream.header, dsn)
    if differs is not None:
        raise NotLoadedError(
            f"it is for {_where(stream.header)} ({differs}). Name that one with --dsn; if this is the same one under "
            f"another name, or you want it here: {_again(args, '--load', stream.name, '--even-elsewhere')}"
        )


def _result(name: str, done: Loaded) -> str:
    given_up = "".join(f", {_many(count, 'record')} given up ({why})" for why, count in done.given_up.items())
    holes = f", {_many(done.holes, 'hole')}" if done.holes else ""
    lines = [
        f"stream {name}: {_many(done.stored, 'record')} stored, {_many(done.dead, 'dead letter')}{given_up}{holes}"
    ]
    if done.dead:
        lines.append("  logsluice dead list shows them")
    if done.given_up:
        lines.append(f"  the files are in {QUARANTINE}/")
    if not done.removed:
        lines.append("  its folder stays: somebody put files into it, or the disk does not let it go")
    return "\n".join([*lines, *(f"  {visible(common.one_line(text))}" for text in done.said)])


# --- copying --------------------------------------------------------------------------------------------------------


def _export(folder: Folder, args: argparse.Namespace) -> int:
    if args.export not in folder.streams():
        raise LogsluiceError(f"there is no stream {args.export} in {args.folder}. Those that are:\n  {_again(args)}")
    with journals.taken(folder, args.export) as orphan:
        if orphan.header is None:
            raise LogsluiceError(f"stream {args.export} has no segment that can be read:\n  {_again(args)}")
        header = orphan.header
        for part in journals.rows(orphan):
            sys.stdout.buffer.write(part if header.sink == "postgres" else lines_of(part))
        sys.stdout.buffer.flush()
    if header.sink != "postgres":
        print(
            f"These are lines for {visible(journals.place_of(header))}. Some may be there already, and the next "
            "process with this journal writes the others. The stream is still there.",
            file=sys.stderr,
        )
        return 0
    columns = ", ".join(map(quote, header.columns))
    print(
        f"These are rows of COPY {visible(_target(header).name)} ({visible(columns)}) FROM STDIN (ENCODING 'UTF8'). "
        f"Some may be stored: --load knows up to where, COPY would store them twice. The stream is still there.",
        file=sys.stderr,
    )
    return 0


# --- what they share ------------------------------------------------------------------------------------------------


def _again(args: argparse.Namespace, *words: str) -> str:
    if not words:  # what shows the folder needs no database
        return shlex.join(["logsluice", "journal", args.folder])
    return common.command(args, "journal", args.folder, *words)


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _second(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M:%S}Z"


def _time(text: str) -> str:
    """Return the time of a row as `tail` shows it: milliseconds."""
    return visible(re.sub(r"(\.\d{3})\d+", r"\1", text))


def _stream(text: str) -> str:
    if STREAM_NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no stream: write its 16 digits as `logsluice journal DIR` does")
    return text
