"""`logsluice completion bash|zsh|fish`: a script that completes commands and options; shtab makes it of argparse."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    from logsluice.cli import common

SHELLS = ("bash", "zsh", "fish")
_HOW = """
  bash:  logsluice completion bash > ~/.local/share/bash-completion/completions/logsluice
  zsh:   logsluice completion zsh > DIR/_logsluice, for a DIR of your $fpath
  fish:  logsluice completion fish > ~/.config/fish/completions/logsluice.fish
"""


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "completion", help="print a script that completes commands and options in a shell", epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ImportError:
        raise LogsluiceError("completion needs shtab: pip install 'logsluice[cli]'") from None
    from logsluice.cli import parser  # noqa: PLC0415 - it registers this module

    sys.stdout.write(shtab.complete(parser(), args.shell))
    return 0
