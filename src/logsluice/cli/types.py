"""`logsluice types MODULE`: the DDL of the typed logs that a module declares, for somebody who may make tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from logsluice import types
from logsluice.cli import common
from logsluice.config import PARTITION_WIDTHS
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("types", help="print the tables of typed logs as SQL")
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="what declares them, as in `import MODULE`")
    parser.add_argument("--schema", default="logsluice", help="schema of the tables (default: %(default)s)")
    parser.add_argument("--partition", choices=PARTITION_WIDTHS, default="day", help="as in the handler's option")
    parser.add_argument("--grant-to", metavar="ROLE", help="also print what lets a role write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import the modules and print what their types become."""
    found = []
    for name in args.modules:
        common.imported(name)
        # Of the module and what is below it: another part of its package may declare what nobody asked for.
        mine = [kind for kind in types.known.values() if f"{kind.kind.__module__}.".startswith(f"{name}.")]
        if not mine:
            raise ConfigError(f"module {name!r} declares no typed log: decorate a class with logsluice.types.logtype")
        found += mine
    for kind in dict.fromkeys(found):
        sys.stdout.write(kind.ddl(args.schema, args.partition, args.grant_to) + "\n")
    return 0
