"""A `dictConfig` by its name: a JSON or YAML file, or `module:NAME`. For `logsluice doctor` and `child_init`."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

from logsluice.errors import ConfigError

_MODULE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")
# Errors of an import whose text names a thing and not a value. Others may quote a setting, and that may be a password.
_SPEAKING = (ImportError, AttributeError, NameError, SyntaxError)


class CannotReadError(ConfigError):
    """The configuration cannot be read. Arguments: what, next."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


def load(name: str) -> tuple[dict[str, Any], str]:
    """Return the dictConfig that a file or `module:NAME` holds, and what to call it. Raises CannotReadError."""
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
    except RecursionError:
        raise CannotReadError(f"{path} has lists in lists, too deep to read", "correct it there") from None
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
