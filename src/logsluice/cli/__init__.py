"""
The command line: argparse, one module and one function a command.

Each module below offers `register(commands)`, which adds its parser and sets `run` to its function;
`run(args)` returns the exit status. rich only adds colour; every command works without it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from logsluice.cli import pager
from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the order in which a newcomer meets them.
COMMANDS = (
    "demo", "preset", "tail", "query", "show", "trace", "stats", "top", "doctor", "dead", "journal", "decrypt",
    "migrate", "types", "maintain", "prune", "archive", "restore", "forget", "partitions", "streams",
    "completion", "version",
)  # fmt: skip

BUG = 70  # EX_SOFTWARE of sysexits.h: 1 would tell a script that `query` found nothing


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command and return its exit status.

    0: it did what was asked; 1: not; 2: wrong usage; 130: Ctrl-C; 70: a bug. query, tail, show and trace end as grep
    does: 1 when nothing was found, 2 for any other failure.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we began (`>&-`): a connection must not get its number
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the process ends
    args = _parsed(argv)
    failed = int(getattr(args, "failed", 1))  # of what ends as grep does 1 says that nothing was found
    try:
        with pager.paged(args):
            status = int(args.run(args))
            sys.stdout.flush()  # here, where the BrokenPipeError of `| head` is expected
            return status
    except LogsluiceError as error:
        print(f"logsluice: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else failed  # ConfigError: of an argument
    except BrokenPipeError:  # `logsluice tail | head` closes our output early: that is not an error
        sys.stderr.close()
        _drop_output()
        return 0
    except OSError as error:  # above all a full disk, of what stdout goes to
        if os.environ.get("LOGSLUICE_DEBUG"):
            raise
        print(f"logsluice: {error}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return failed
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("LOGSLUICE_DEBUG"):
            raise
        # Its text alone may hold a row or a password: who reports it decides what of the traceback he shows.
        print(
            f"logsluice: {type(error).__name__}: this is a bug in logsluice. The same again with LOGSLUICE_DEBUG=1 "
            "shows the traceback; please report it, without what is secret in it",
            file=sys.stderr,
        )
        return BUG


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; of a filter also the words behind an option, which argparse leaves: `card -n 5 refused`."""
    commands = parser()
    args, left = commands.parse_known_args(argv)
    if left and (not hasattr(args, "filter") or any(word.startswith("-") for word in left)):
        commands.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        args.filter += left
    return args


def _drop_output() -> None:
    """Send nowhere what was not written: at exit it is flushed once more, and a failure then would be status 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="logsluice", description="Python logs into PostgreSQL.")
    parser.add_argument("--version", action="version", version=f"logsluice {importlib.metadata.version('logsluice')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"logsluice.cli.{name}").register(commands)
    return parser
