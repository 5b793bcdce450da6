"""`logsluice doctor`: why no record arrives. Finds the configuration, prints what doctor.py and its parts found."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from logsluice import doctor
from logsluice.cli import common
from logsluice.config import FileSettings, PostgresSettings, switched_off
from logsluice.configfile import CannotReadError, load
from logsluice.doctor import FAIL, OK, WARN, Finding
from logsluice.doctor.database import check_database
from logsluice.doctor.dictconfig import accepted, handlers_of, resolved
from logsluice.doctor.endpoint import check_endpoint
from logsluice.doctor.file import check_file
from logsluice.doctor.journal import check_journal
from logsluice.doctor.sink import check_sink
from logsluice.errors import ConfigError
from logsluice.handlers import HttpHandler, JsonFileHandler, PostgresHandler, SinkHandler
from logsluice.httpconfig import HttpSettings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping

    from logsluice.base import BaseHandler

COLOURS = {OK: "32", WARN: "33", FAIL: "1;31"}  # SGR: green, yellow, bold red


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="find out why no row appears, no line, no request")
    common.add_dsn(parser)
    parser.add_argument(
        "--config", metavar="FILE", help="your dictConfig: a JSON or YAML file, or module:NAME such as settings:LOGGING"
    )
    parser.add_argument(
        "--logger",
        action="append",
        default=[],
        metavar="NAME",
        help="with --config: judge this logger only; repeatable",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print findings as they come; 0 when none is a failure, else 1."""
    if args.config is None and args.logger:
        raise ConfigError("--logger goes with --config: loggers are what a configuration is about")
    if args.config is not None and (args.dsn is not None or args.schema != "logsluice"):
        raise ConfigError("--config says where the rows go: give it, or --dsn and --schema")
    counts = dict.fromkeys(COLOURS, 0)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    findings = _by_dsn(args) if args.config is None else _by_config(args.config, args.logger)
    for finding in itertools.chain(_off(), findings):
        counts[finding.status] += 1
        _print(finding, colour=colour)
    print(f"\n{_summary(counts, configured=args.config is not None)}")
    return 1 if counts[FAIL] else 0


def _off() -> Iterator[Finding]:
    """See whether the environment keeps every handler from storing, and look at the rest as if it did not."""
    if switched_off():
        del os.environ["LOGSLUICE_OFF"]
        what = "LOGSLUICE_OFF is set: every handler only counts, nothing is stored"
        yield Finding(FAIL, "handler", what, "unset LOGSLUICE_OFF where your program runs")


def _by_dsn(args: argparse.Namespace) -> Iterator[Finding]:
    dsn = args.dsn if args.dsn is not None else os.environ.get(common.DSN_VARIABLE, "")
    try:
        handler = PostgresHandler(dsn=dsn, schema=args.schema, create=False)
    except ConfigError as error:
        what, _, step = str(error).partition(". ")
        yield Finding(FAIL, "connect", what, step or "correct --dsn")
        return
    yield from check_database(handler._settings)  # noqa: SLF001 - what the handler was told, checked


def _by_config(name: str, asked: list[str]) -> Iterator[Finding]:
    existing = set(logging.root.manager.loggerDict)
    # `logsluice` is a script: unlike `python -m`, it does not look for modules in the folder it is run in.
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    try:
        config, source = load(name)
        config = resolved(config)
    except CannotReadError as error:
        yield Finding(FAIL, "config", *error.args)
        return
    except ValueError as error:  # of `resolved`: an ext:// that names nothing, a list where a mapping belongs
        yield Finding(FAIL, "config", f"dictConfig refuses {name}: {error}", f"correct that in {name}")
        return
    made = [one for one, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)]
    made = [one for one in made if one not in existing and not one.startswith("logsluice")]
    findings, makers = handlers_of(config, source)
    yield from findings
    refused = any(finding.status == FAIL for finding in findings)
    if not refused and not config.get("incremental"):
        proof = accepted(config, source, makers)
        refused = proof.status == FAIL
        yield proof
    if not refused:  # else nothing is configured: what loggers would do is beside the point
        imported = doctor.PACKAGES & set(sys.modules)
        kinds = {name: config["handlers"][name].get("class") for name in makers}
        yield from doctor.check_loggers(config, source, makers, asked=asked, packages=imported, made=made, kinds=kinds)
        yield from _installed(asked, imported)
    yield from _places(makers, config)


def _installed(asked: list[str], imported: frozenset[str]) -> Iterator[Finding]:
    """Mention frameworks that may run this program: a file does not say, and installed is not in use."""
    installed = sorted(one for one in doctor.PACKAGES - imported if importlib.util.find_spec(one))
    if installed and not asked:
        known = [name for name, (package, _) in doctor.FRAMEWORKS.items() if package in installed]
        what = (
            f"installed here: {', '.join(installed)}; for what becomes of their records if they run this program, add"
        )
        yield Finding(OK, "logger", f"{what} {' '.join(f'--logger {name}' for name in known)}")


def _places(makers: Mapping[str, Callable[[], BaseHandler]], config: Mapping[str, Any]) -> Iterator[Finding]:
    """Check where each handler's records go, each place once, however many handlers write there."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, make in makers.items():
        handler = make()
        settings = handler._settings  # noqa: SLF001 - what the handler was told, checked
        if len(makers) > 1:
            yield Finding(OK, "handler", f"from here on: where {name!r} writes")
        yield from check_journal(settings)
        key = _place(handler)
        if key in seen:
            what = f"{seen[key]!r} and {name!r} write into one {key[0]}: what reaches both is stored twice"
            yield Finding(WARN, "handler", what, "keep one of them, or see that no logger reaches both")
            continue
        seen[key] = name
        if isinstance(handler, PostgresHandler):
            yield from check_database(handler._settings, cast("Callable[[], PostgresHandler]", make))  # noqa: SLF001
        elif isinstance(handler, JsonFileHandler):
            yield from check_file(handler._settings, config)  # noqa: SLF001
        elif isinstance(handler, HttpHandler):
            yield from check_endpoint(handler)
        elif isinstance(handler, SinkHandler):
            yield from check_sink(handler._settings)  # noqa: SLF001


def _place(handler: BaseHandler) -> tuple[Any, ...]:
    """Return what it writes into, and what tells that from another."""
    settings = handler._settings  # noqa: SLF001 - as above
    if isinstance(settings, PostgresSettings):
        return "table", settings.dsn, settings.dsn_env, settings.schema, settings.table, repr(settings.columns)
    if isinstance(settings, FileSettings):
        return "file", os.path.realpath(settings.filename)
    if isinstance(settings, HttpSettings):
        return "endpoint", settings.url, settings.format, settings.tenant
    return "sink", id(handler)


# --- the output -------------------------------------------------------------------------------------------------


def _print(finding: Finding, *, colour: bool) -> None:
    mark = (finding.status.upper() if finding.status == FAIL else finding.status).ljust(4)
    if colour:
        mark = f"\x1b[{COLOURS[finding.status]}m{mark}\x1b[0m"
    lines = [f"{mark}  {finding.about:<9}  {_tame(finding.what)}"]
    if finding.next:
        lines.append(f"{'':17}next: {_tame(finding.next)}")
    for line in lines:
        encoding = sys.stdout.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _tame(text: str) -> str:
    """Return one line that a terminal only shows: servers and files send what they like."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in common.one_line(text))


def _summary(counts: Mapping[str, int], *, configured: bool) -> str:
    if counts[FAIL] or counts[WARN]:
        looks = f", {counts[WARN]} to look at" if counts[WARN] else ""
        return f"{counts[FAIL] or 'nothing'} failed{looks}; the next: lines are what to do, in this order"
    if not configured:
        return (
            "The database is ready. Whether your loggers reach the handler is not checked: "
            "logsluice doctor --config FILE does."
        )
    return (
        "All is well from the loggers to where they write. If records of your program are still missing: does it apply "
        "this configuration, and are there lines that begin with logsluice[ on its stderr?"
    )
