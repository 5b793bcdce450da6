"""`logsluice preset NAME`: a configuration to begin with, printed as the JSON that dictConfig takes."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from logsluice.presets import PRESETS

if TYPE_CHECKING:
    import argparse


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "preset",
        help="print a configuration to begin with",
        description="Print a preset: JSON for logging.config.dictConfig, to keep and to change. docs/howto/presets.md",
    )
    parser.add_argument("name", choices=PRESETS, metavar="NAME", help=", ".join(PRESETS))
    parser.add_argument("--service", default="app", help="name of the program, stored with each row (default: app)")
    parser.add_argument("--version", help="of the program (three_level)")
    parser.add_argument("--directory", help="of the log files (three_level, audit; default: logs)")
    parser.add_argument("--journal", help="folder of the journal (structured; default: journal)")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Print it; 2 for an option that the preset has not."""
    preset = PRESETS[args.name]
    given = {key: value for key in ("version", "directory", "journal") if (value := getattr(args, key)) is not None}
    if wrong := given.keys() - inspect.signature(preset).parameters.keys():
        args.parser.error(f"{args.name} has no {', '.join(f'--{name}' for name in sorted(wrong))}")
    print(json.dumps(preset(args.service, **given), indent=2))
    return 0
