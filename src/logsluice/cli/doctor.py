"""`logsluice doctor`: why no row appears. Finds the configuration, prints what doctor.py and its parts found."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsluice import doctor
from logsluice.cli import common
from logsluice.doctor import FAIL, OK, WARN, Finding
from logsluice.doctor.database import check_database
from logsluice.doctor.dictconfig import accepted, handlers_of, resolved
from logsluice.errors import ConfigError
from logsluice.handlers import PostgresHandler

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping

COLOURS = {OK: "32", WARN: "33", FAIL: "1;31"}  # SGR: green, yellow, bold red
_MODULE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")
# Errors of an import whose text names a thing and not a value. Others may quote a setting, and that may be a password.
_SPEAKING = (ImportError, AttributeError, NameError, SyntaxError)


class CannotReadError(Exception):
    """The configuration cannot be read. Arguments: what, next."""


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="find out why no row appears")
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
    for finding in _by_dsn(args) if args.config is None else _by_config(args.config, args.logger):
        counts[finding.status] += 1
        _print(finding, colour=colour)
    print(f"\n{_summary(counts, configured=args.config is not None)}")
    return 1 if counts[FAIL] else 0


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
        config, source = _load(name)
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
        yield from doctor.check_loggers(config, source, makers, asked=asked, packages=imported, made=made)
        yield from _installed(asked, imported)
    yield from _databases(makers)


def _installed(asked: list[str], imported: frozenset[str]) -> Iterator[Finding]:
    """Mention frameworks that may run this program: a file does not say, and installed is not in use."""
    installed = sorted(one for one in doctor.PACKAGES - imported if importlib.util.find_spec(one))
    if installed and not asked:
        known = [name for name, (package, _) in doctor.FRAMEWORKS.items() if package in installed]
        what = (
            f"installed here: {', '.join(installed)}; for what becomes of their records if they run this program, add"
        )
        yield Finding(OK, "logger", f"{what} {' '.join(f'--logger {name}' for name in known)}")


def _databases(makers: Mapping[str, Callable[[], PostgresHandler]]) -> Iterator[Finding]:
    """Check each table once, however many handlers write into it."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, make in makers.items():
        settings = make()._settings  # noqa: SLF001
        key = (settings.dsn, settings.dsn_env, settings.schema, settings.table, repr(settings.columns))
        if key in seen:
            what = f"{seen[key]!r} and {name!r} write into one table: what reaches both is stored twice"
            yield Finding(WARN, "handler", what, "keep one of them, or see that no logger reaches both")
            continue
        seen[key] = name
        if len(makers) > 1:
            yield Finding(OK, "handler", f"from here on: the database of {name!r}")
        yield from check_database(settings, make)


# --- the configuration ------------------------------------------------------------------------------------------


def _load(name: str) -> tuple[dict[str, Any], str]:
    """Return the dictConfig and what to call it. Raises CannotReadError."""
    path, module = Path(name), _MODULE.fullmatch(name)
    if module is not None and not path.exists():
        found, source = _from_module(module[1], module[2]), name
    else:
        found, source = _from_file(path), path.name
    if not isinstance(found, dict):
        what = f"{source} holds {_kind(found)}, not a mapping with version, handlers, loggers and root"
        raise CannotReadError(what, "name what your program gives to logging.config.dictConfig")
    if not found.get("handlers") and not found.get("version"):
        inner = next((key for key in found if str(key).lower() == "logging" and isinstance(found[key], dict)), None)
        if inner is not None:
            raise CannotReadError(
                f"{source} is no dictConfig, but its {inner!r} may be one",
                f"name that part: put it into a file of its own, or a module, and give module:{inner}",
            )
    return found, source


def _from_file(path: Path) -> Any:
    if path.suffix == ".py":
        raise CannotReadError(f"{path} is a module", f"name the dictionary in it: --config {path.stem}:LOGGING")
    if path.suffix in {".ini", ".cfg", ".conf", ".toml"}:
        raise CannotReadError(f"{path} is no dictConfig: JSON, YAML or module:NAME are", "give one of these")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        step = f"give the path from {Path.cwd()}, or module:NAME (an importable name, such as settings:LOGGING)"
        raise CannotReadError(f"there is no file {path}", step) from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CannotReadError(f"{path} cannot be read: {why}", "correct the file or its permissions") from None
    return _yaml(path, text) if path.suffix in {".yaml", ".yml"} else _json(path, text)


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = f"{path} is no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        raise CannotReadError(what, "correct it there, or name the file .yaml if it is YAML") from None


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml  # noqa: PLC0415 - an extra
    except ImportError:
        raise CannotReadError(f"{path} is YAML, and PyYAML is not installed", "pip install PyYAML") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # its text shows the line, which may hold the password
        where = f": line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', '')}" if mark else ""
        raise CannotReadError(f"{path} is no YAML{where}", "correct it there") from None


def _from_module(module: str, name: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        why = f": {error}" if isinstance(error, _SPEAKING) else ""
        step = f"python -c 'import {module}' in {Path.cwd()} must work first, with your program's environment"
        raise CannotReadError(f"cannot import {module}: {type(error).__name__}{why}", step) from None
    for part in name.split("."):
        if isinstance(found, dict) and part in found:
            found = found[part]
            continue
        if not hasattr(found, part):
            known = ", ".join(one for one in vars(found) if one.isupper()) if hasattr(found, "__dict__") else ""
            raise CannotReadError(f"{module} has no {name}", f"name one that it has: {known or 'none is in capitals'}")
        found = getattr(found, part)
    return found


def _kind(found: Any) -> str:
    return "nothing" if found is None else f"a {type(found).__name__}"


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
        "All is well from the loggers to the table. If rows of your program are still missing: does it apply this "
        "configuration, and are there lines that begin with logsluice[ on its stderr?"
    )
