"""
How logging will treat a `dictConfig`, read from the dictionary: which records of which logger come to which handler.

Pure: nothing is imported, made or changed. `dictconfig.accepted` compares this with logging itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LEVELS = (logging.INFO, logging.WARNING, logging.ERROR)


@dataclass(frozen=True)
class Node:
    """One logger of the configuration."""

    level: int | None  # None: none given
    handlers: tuple[str, ...] = ()
    propagate: bool = True
    filters: bool = False


@dataclass(frozen=True)
class Way:
    """How records of a logger come to a handler. `""` is root."""

    logger: str
    handler: str
    level: int  # effective
    level_of: str  # the logger that sets it
    hits: tuple[tuple[str, str], ...]  # (logger, handler) on the way that bring a record there
    gate: int  # the lowest level that one of these handlers takes
    stopped: str | None  # the logger on the way that does not propagate
    stored: dict[int, int]  # level -> how often a record of it comes there


def nodes(config: Mapping[str, Any]) -> dict[str, Node]:
    """Return the loggers that are configured, root under the empty name and always."""
    found = {"": Node(None)}
    loggers = config.get("loggers", {})
    named = {"" if name == "root" else name: given for name, given in loggers.items()}
    for name, given in {**named, **({"": config["root"]} if config.get("root") else {})}.items():
        handlers = given.get("handlers") or ()
        found[name] = Node(
            _level(given.get("level")),
            tuple(dict.fromkeys(handlers)) if isinstance(handlers, (list, tuple)) else (),
            name == "" or given.get("propagate") is None or bool(given["propagate"]),
            bool(given.get("filters")),
        )
    return found


def ways(config: Mapping[str, Any], names: Iterable[str], handlers: Iterable[str]) -> list[Way]:
    """Return, for each of these loggers and handlers, how records come from one to the other. Pure."""
    configured = nodes(config)
    return [_way(configured, name, handler, carriers(config, handler)) for handler in handlers for name in names]


def carriers(config: Mapping[str, Any], handler: str) -> dict[str, int]:
    """Return the handlers that bring a record to this one, with their levels: itself, and those that wrap it."""
    found = {}
    for name, given in config.get("handlers", {}).items():
        inner = given.get("handlers")
        if name == handler or given.get("target") == handler or (isinstance(inner, list) and handler in inner):
            found[name] = _level(given.get("level")) or logging.NOTSET
    return found


def _level(value: Any) -> int | None:
    """A wrong level counts as none here; `accepted` says that dictConfig refuses it."""
    number = logging.getLevelName(value) if isinstance(value, str) else value
    return number if isinstance(number, int) else None


def lineage(name: str) -> list[str]:
    """`a.b` -> `a.b`, `a`, root."""
    parts = name.split(".") if name else []
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]


def _way(configured: Mapping[str, Node], name: str, handler: str, brings: Mapping[str, int]) -> Way:
    path = lineage(name)
    level_of = next((one for one in path if one in configured and configured[one].level), "")
    level = configured[level_of].level
    hits: list[tuple[str, str]] = []
    stopped = None
    for one in path:
        node = configured.get(one, Node(None))
        hits += [(one, carrier) for carrier in node.handlers if carrier in brings]
        if not node.propagate:
            stopped = one
            break
    effective = logging.WARNING if level is None else level  # root's, when nobody sets one
    counts = {at: sum(at >= brings[carrier] for _, carrier in hits) if at >= effective else 0 for at in LEVELS}
    gate = min((brings[carrier] for _, carrier in hits), default=logging.NOTSET)
    return Way(name, handler, effective, level_of, tuple(hits), gate, stopped, counts)


def covered(name: str, configured: Mapping[str, Node]) -> bool:
    """Whether dictConfig leaves a logger that was made before alone: it, or a parent but root, is configured."""
    return any(one in configured for one in lineage(name)[:-1])
