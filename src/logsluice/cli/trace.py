"""
`logsluice trace ID`: one trace as a tree, each span with its time and status, its log records under it.

    trace 0af7651916cd43dd8448eb211c80319c  2 spans, 1 record, 1.204 s
    checkout  1.204 s  ok  {"customer": 7}
        +0.101 s  charge  0.953 s  error  {"exception.type": "CardError"}
            +0.120 s  WARNING  shop.pay  card refused

Times with a plus are since the trace began. Nothing that was stored can forge a line or drive the terminal: output.py.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from logsluice import traces
from logsluice.cli import common, pager
from logsluice.cli.arguments import utf8
from logsluice.cli.output import INDENT, name, paint, say_anything, split, visible, wants_colour

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from datetime import datetime


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("trace", help="show one trace as a tree, with its log records")
    parser.add_argument("trace_id", type=utf8, metavar="ID", help="trace_id of a row in `logs` or `spans`")
    common.add_dsn(parser)
    pager.add_option(parser)
    parser.set_defaults(run=run, failed=2)


def run(args: argparse.Namespace) -> int:
    """Print the tree; 1 when there is no such trace, 2 when that cannot be known."""
    with common.connect(args) as conn:
        where = common.place(args, conn)
        with common.said(f"cannot read {where}"):
            found = traces.read(conn, args.trace_id, schema=args.schema)
    if found is None:
        print(
            f"logsluice: nothing of trace {visible(args.trace_id)} is stored in {where}; a span is stored when it "
            "ends, and --schema and --dsn say where to look",
            file=sys.stderr,
        )
        return 1
    say_anything(sys.stdout)
    print("\n".join(lines(found, colour=wants_colour(sys.stdout))))
    return 0


def lines(found: traces.Trace, *, colour: bool = False) -> Iterator[str]:
    """Yield the lines of a trace, safe for a terminal."""
    spans = sum(isinstance(one, traces.StoredSpan) for _, one in found.walk())
    logs = sum(1 for _ in found.walk()) - spans
    yield (
        f"trace {visible(found.trace_id)}  {spans} span{'s' * (spans != 1)}, {logs} record{'s' * (logs != 1)}, "
        f"{found.duration:.3f} s"
    )
    for depth, one in found.walk():
        indent = INDENT * depth
        if isinstance(one, traces.StoredSpan):
            parts = [
                _since(one.started, found.started),
                paint(visible(one.name), "bold", on=colour),
                f"{one.duration:.3f} s",
                paint(visible(one.status), "red" if one.status == "error" else "green", on=colour),
                visible(one.service or ""),
            ]
            more: list[str] = []
        else:
            first, rest = split(one.message or "")
            parts = [_since(one.ts, found.started), visible(name(one.level)), visible(one.logger or "-"), first]
            more = [*rest, *(visible(line) for line in (one.exc_text or "").splitlines())]
        if one.attributes:
            parts.append(paint(visible(json.dumps(one.attributes, ensure_ascii=False)), "dim", on=colour))
        yield indent + "  ".join(part for part in parts if part)
        yield from (f"{indent}{INDENT}| {line}" for line in more)


def _since(moment: datetime, start: datetime) -> str:
    return f"+{(moment - start).total_seconds():.3f} s"
