"""`logsluice preset NAME`: print a configuration, to be read, edited and put where it belongs."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from logsluice import presets
from logsluice.config import FileSettings, settings_from

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from logsluice.cli import common


_OPTIONS = {
    "service": "name of the program, stored with each row",
    "version": "of the program",
    "dsn_env": "environment variable that holds the dsn",
    "directory": "folder of the log files",
    "journal": "folder of the journal",
}


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("preset", help="print a configuration to begin with")
    names = parser.add_subparsers(title="presets", metavar="NAME", required=True)
    for name, preset in presets.PRESETS.items():
        _dictconfig(names, name, preset)
    _logrotate(names)


def _dictconfig(names: common.Commands, name: str, preset: Callable[..., dict[str, Any]]) -> None:
    """Add a preset for dictConfig; its parameters are the options."""
    text = (inspect.getdoc(preset) or "").partition("\n")[0]
    what = text.removeprefix("Return a ").rstrip(".")
    parser = names.add_parser(name, help=what, description=f"Print a {what}: JSON for logging.config.dictConfig.")
    for parameter in inspect.signature(preset).parameters.values():
        # Not `dsn`: its password would be in the shell's history. Not the handler's options: edit what is printed.
        if parameter.name in _OPTIONS:
            default = "" if parameter.default is None else f" (default: {parameter.default})"
            parser.add_argument(f"--{parameter.name.replace('_', '-')}", help=f"{_OPTIONS[parameter.name]}{default}")

    def run(args: argparse.Namespace) -> int:
        given = {key: value for key, value in vars(args).items() if key in _OPTIONS and value is not None}
        print(json.dumps(preset(**given), indent=2))
        return 0

    parser.set_defaults(run=run)


def _logrotate(names: common.Commands) -> None:
    parser = names.add_parser("logrotate", help="logrotate's file for the log of a JsonFileHandler")
    parser.add_argument("--filename", required=True, help="of the log, as in the handler's options")
    for option, kind, text in (
        ("when", str, "hour, midnight, week or month (default: midnight, if there is no --max-bytes)"),
        ("max-bytes", int, "size from which it is rotated"),
        ("backup-count", int, "rotated files that are kept (default: 30)"),
        ("total-bytes", int, "of the file and all rotated ones; for the remark that logrotate has no such limit"),
    ):
        parser.add_argument(f"--{option}", type=kind, help=text)
    for option, text in (
        ("compress", "gzip what was rotated, but for the newest"),
        ("rotate-empty", "rotate a file without a line, too"),
        ("utc", "for the remark that logrotate's days are local"),
    ):
        parser.add_argument(f"--{option}", action="store_const", const=True, help=text)
    parser.set_defaults(run=_print_logrotate)


def _print_logrotate(args: argparse.Namespace) -> int:
    given: dict[str, Any] = {key: value for key, value in vars(args).items() if key != "run" and value is not None}
    print(presets.logrotate(settings_from(given, FileSettings)), end="")
    return 0
