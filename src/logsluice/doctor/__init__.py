"""
What `logsluice doctor` finds, as data: each `Finding` says what was looked at, how it is, and what to do.

Here: whose records reach which handler of ours, and why others do not. Pure; read from the dictionary alone.

    ways.py          which way records go through a dictConfig. Pure
    dictconfig.py    the handlers, made from it; whether logging accepts it
    journal.py       the journal's folder
    file.py          the file of a JsonFileHandler: rights, lock, room, who rotates it
    endpoint.py      the endpoint of an HttpHandler: token, name, TLS, an answer to a request without records
    sink.py          a SinkHandler's own sink: options, methods, `open`
    connect.py       the connection, or why there is none
    database.py      server, rights, clock, a table of the user's own
    tables.py        partitions, dead letters, who wrote lately
    upkeep.py        files not applied, records that are no rows, indexes
    record.py        one record sent and read back
    cli/doctor.py    finds the configuration, prints the findings
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from logsluice.doctor.ways import LEVELS, Node, Way, carriers, covered, nodes, ways

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    status: str  # OK, WARN, FAIL
    about: str  # one word: config, handler, logger, connect, server, ...
    what: str  # a sentence, never with a password or a dsn
    next: str = ""  # what to do, in one line


# What frameworks do to loggers that a configuration does not name: they exist before it is applied, and some do not
# propagate. logger -> (package, what keeps its records from root)
FRAMEWORKS = {
    "uvicorn.error": ("uvicorn", "uvicorn, started without this configuration (--log-config), keeps its records"),
    "uvicorn.access": ("uvicorn", "uvicorn, started without this configuration (--log-config), keeps its records"),
    "gunicorn.error": ("gunicorn", "gunicorn, started without this configuration (logconfig_dict), keeps its records"),
    "django.request": ("django", ""),
    "celery": ("celery", ""),
}
PACKAGES = frozenset(package for package, _ in FRAMEWORKS.values())


def check_loggers(
    config: Mapping[str, Any],
    source: str,
    handlers: Collection[str],
    *,
    asked: Collection[str] = (),
    packages: Collection[str] = (),
    made: Collection[str] = (),
    kinds: Mapping[str, object] | None = None,
) -> list[Finding]:
    """
    Return who reaches our handlers, logger by logger. Pure.

    `asked`: only these loggers. `packages`: frameworks that are imported. `made`: loggers that existed before the
    configuration was applied. `kinds`: what each handler is, where they are of several.
    """
    if config.get("incremental"):
        what = f"{source} says incremental: true, which changes levels only: none of its handlers is made"
        return [Finding(FAIL, "config", what, f'take "incremental" out of {source}')]
    configured = nodes(config)
    disables = bool(config.get("disable_existing_loggers", True))
    findings = list(_attached(config, configured, handlers, source))
    if disables:
        findings.append(_disabled(config, configured, made, source))
    asked = ["" if name == "root" else name for name in asked]
    used = {name.split(".")[0] for name in (*configured, *asked, *packages)}
    names = asked or [*sorted(configured), *(one for one, (package, _) in FRAMEWORKS.items() if package in used)]
    kept = {name: why for name in names if (why := _kept(name, configured, made, disables=disables))}
    on = {one for node in configured.values() for one in node.handlers}
    reachable = [one for one in handlers if on & carriers(config, one).keys()]
    found = ways(config, [name for name in dict.fromkeys(names) if name not in kept], reachable)
    fallbacks = {given.get("fallback") for given in config.get("handlers", {}).values()}
    findings += _all_judged(found, source, strict=bool(asked), kinds=kinds or {}, fallbacks=fallbacks)
    for name, why in kept.items():
        step = f'add "{name}": {{"handlers": ["{next(iter(handlers), "db")}"], "level": "INFO", "propagate": false}}'
        what = f"{name}: not stored: {why}"
        findings.append(Finding(FAIL if asked else WARN, "logger", what, f'{step} to "loggers" of {source}'))
    if "celery" in used and (lost := [one for one in reachable if one in configured[""].handlers]):
        what = f"Celery's worker takes {_and(map(repr, lost))} off root when it starts"
        step = f"connect celery.signals.setup_logging to a function that applies {source}"
        findings.append(Finding(WARN, "logger", what, step))
    return findings


def _all_judged(
    found: list[Way], source: str, *, strict: bool, kinds: Mapping[str, object], fallbacks: Collection[Any]
) -> Iterator[Finding]:
    nothing = not any(way.stored[at] for way in found for at in LEVELS)
    for way in found:
        if way.handler in fallbacks and not way.hits:
            continue  # its records come from another handler
        others = set()
        for one in found:
            if one.logger == way.logger and one is not way:
                # A file does not make up for rows, but for a level that was set on the handler itself.
                alike = kinds.get(one.handler) is kinds.get(way.handler)
                others |= {at for at in LEVELS if one.stored[at] and (alike or (way.hits and at < way.gate))}
        yield from judged(way, source, strict=strict or nothing, others=others)


def _kept(name: str, configured: Mapping[str, Node], made: Collection[str], *, disables: bool) -> str:
    """Return what keeps the records of a logger that the configuration leaves out, though they should go to root."""
    if covered(name, configured) or not name:
        return ""
    package, keeps = FRAMEWORKS.get(name, ("", ""))
    if disables and (name in made or package):
        return f"{package or 'a module'} makes this logger first, and disable_existing_loggers silences it"
    return keeps


def _attached(
    config: Mapping[str, Any], configured: Mapping[str, Node], handlers: Iterable[str], source: str
) -> Iterator[Finding]:
    """Say which handlers hang on no logger, and which only behind another handler."""
    on = {one for node in configured.values() for one in node.handlers}
    for handler in handlers:
        wraps = [name for name in carriers(config, handler) if name != handler and name in on]
        if wraps:
            what = f"{handler!r} gets records through {', '.join(wraps)}, which must be started and flushed"
            yield Finding(WARN, "handler", what, f"put {handler!r} directly on the loggers: it is a queue already")
        elif handler not in on:
            what = f"{handler!r} is defined but is on no logger: it gets nothing"
            yield Finding(FAIL, "handler", what, f"add {handler!r} to the handlers of root in {source}")


def _disabled(config: Mapping[str, Any], configured: Mapping[str, Node], made: Iterable[str], source: str) -> Finding:
    default = "" if "disable_existing_loggers" in config else ", the default"
    silent = sorted(name for name in made if not covered(name, configured))
    which = "loggers that exist before it is applied"
    if silent:
        more = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
        which = f"{', '.join(silent[:5])}{more}, made while {source} was imported,"
    what = f"disable_existing_loggers is true{default}: {which} stay silent"
    return Finding(WARN, "config", what, f'add "disable_existing_loggers": false to {source}')


def judged(way: Way, source: str, *, strict: bool, others: Collection[int] = ()) -> Iterator[Finding]:
    """
    Put one way into words.

    `strict`: nothing stored is a failure. `others`: levels that another handler of ours stores: not missed here.
    """
    who = f"{_name(way.logger)} (level {logging.getLevelName(way.level)})"
    come = [at for at in LEVELS if way.stored[at]]
    lost = [at for at in LEVELS if not way.stored[at]]
    missed = [at for at in lost if at not in others]
    if not lost:
        yield Finding(OK, "logger", f"{who}: {_levels(come)} {way.handler!r}")
    elif come:
        why, step = _why_not(way, lost[0], source)
        what = f"{who}: {_levels(come)} {way.handler!r}, {_and(map(logging.getLevelName, lost))} not: {why}"
        yield Finding(WARN, "logger", what, step) if missed else Finding(OK, "logger", what)
    else:
        why, step = _why_not(way, logging.ERROR, source)
        what = f"{who}: nothing reaches {way.handler!r}: {why}"
        status = FAIL if strict or way.stopped is not None else WARN
        yield Finding(OK, "logger", what) if others else Finding(status, "logger", what, step)
    times = max(way.stored.values())
    if times > 1:
        places = list(dict.fromkeys(_name(name) for name, _ in way.hits))
        what = f"{_name(way.logger)}: each record is stored {times} times in {way.handler!r}: it is on {_and(places)}"
        yield Finding(WARN, "logger", what, f"take it off {places[0]}, or set propagate: false there, in {source}")


def _why_not(way: Way, level: int, source: str) -> tuple[str, str]:
    """Return why records of a level do not get to the handler, and what to change."""
    if not way.hits and way.stopped is not None:
        name = _name(way.stopped)
        step = f"add {way.handler!r} to the handlers of {name}, or drop its propagate: false, in {source}"
        return f"propagate is false on {name}, and {way.handler!r} is not among its handlers", step
    if not way.hits:
        places = " or of ".join(dict.fromkeys(("root", _name(way.logger))))
        return "it is on no logger on their way", f"add {way.handler!r} to the handlers of {places} in {source}"
    if level < way.level:
        name = _name(way.level_of)
        step = f'set "level": "INFO" on {name} in {source}'
        return f"the level of {name} is {logging.getLevelName(way.level)}", step
    names = _and(dict.fromkeys(repr(carrier) for _, carrier in way.hits))
    step = f'set "level": "INFO" on handler {names} in {source}, or take it out'
    return f"the level of handler {names} is {logging.getLevelName(way.gate)}", step


def _name(logger: str) -> str:
    return logger or "root"


def _levels(levels: Iterable[int]) -> str:
    names = [logging.getLevelName(at) for at in levels]
    return f"{_and(names)} {'reaches' if len(names) == 1 else 'reach'}"


def _and(given: Iterable[str]) -> str:
    words = list(given)
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
