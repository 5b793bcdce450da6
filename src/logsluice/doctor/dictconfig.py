"""
The handlers of a `dictConfig`, for `logsluice doctor`: made from its options, and whether logging accepts all of it.

Only classes that it names are imported, and only handlers of ours are made: they open nothing before a record comes.
Logging gets a copy in which every handler is a silent stand-in, so that no file is opened, no mail is sent, and no log
is rotated by a person who only wanted to look.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import logging.config
import re
import sys
from typing import TYPE_CHECKING, Any

import logsluice
from logsluice.base import BaseHandler
from logsluice.checks import plain
from logsluice.console import ConsoleHandler
from logsluice.doctor import FAIL, OK, WARN, Finding
from logsluice.doctor.ways import LEVELS, Way, carriers, nodes, ways
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with `ext://` and `cfg://` replaced by what they name. Raises ValueError."""
    converted: dict[str, Any] = plain(logging.config.DictConfigurator(dict(config)).config)
    for part in ("handlers", "loggers"):
        if not isinstance(converted.get(part, {}), dict):
            raise ValueError(f"{part!r} must be a mapping of name to settings")  # noqa: TRY004 - as dictConfig
        for name, value in converted.get(part, {}).items():
            if not isinstance(value, dict):
                raise ValueError(f"{part[:-1]} {name!r} must be a mapping")  # noqa: TRY004
    if not isinstance(converted.get("root", {}), dict):
        raise ValueError("'root' must be a mapping")  # noqa: TRY004
    return converted


NAMES = [name for name in logsluice.__all__ if name.endswith("Handler")]


def handlers_of(config: Mapping[str, Any], source: str) -> tuple[list[Finding], dict[str, Callable[[], BaseHandler]]]:
    """Return what is to say of the handlers, and how to make each of ours that can be made and sends somewhere."""
    findings: list[Finding] = []
    makers: dict[str, Callable[[], BaseHandler]] = {}
    named = False
    for name, given in config.get("handlers", {}).items():
        factory, problem = _factory(name, given, source)
        if problem is not None:
            findings.append(problem)
            named = named or _looks_ours(given)
        elif isinstance(factory, type) and issubclass(factory, (BaseHandler, ConsoleHandler)):
            named = True
            findings.append(_tried(name, given, factory, source))
            # A console writes in the call: there is nothing behind it to look at.
            if findings[-1].status == OK and issubclass(factory, BaseHandler):
                makers[name] = _maker(given, factory)
    if not named:
        add = '"db": {"class": "logsluice.PostgresHandler", "dsn_env": "LOGS_DSN"}'
        step = f'add {add} to "handlers" of {source} and "db" to the handlers of root'
        findings.append(Finding(FAIL, "handler", f"{source} holds no logsluice handler", step))
    return findings, makers


def _factory(name: str, given: Mapping[str, Any], source: str) -> tuple[Any, Finding | None]:
    """Return the class or function that dictConfig would call, importing it as dictConfig does."""
    factory = given.get("()", given.get("class"))
    if not isinstance(factory, str):
        return factory, None
    try:
        return logging.config.BaseConfigurator({}).resolve(factory), None
    except Exception as error:  # the module is the program's: it may raise anything
        if _looks_ours(given):
            what = f"{name!r}: there is no class {factory}"
            near = difflib.get_close_matches(factory.rpartition(".")[2], NAMES, n=1) or ["PostgresHandler"]
            return None, Finding(FAIL, "handler", what, f'write "class": "logsluice.{near[0]}" in {source}')
        why = str(error) if isinstance(error, ValueError) else f"cannot import {factory!r}: {type(error).__name__}"
        step = f"run doctor with your program's Python and in its folder, or correct the class in {source}"
        return None, Finding(FAIL, "handler", f"{name!r}: {why}; dictConfig stops there", step)


def _looks_ours(given: Mapping[str, Any]) -> bool:
    factory = given.get("()", given.get("class"))
    return (
        isinstance(factory, str)
        and re.search(r"logsluice|postgres(ql)?handler|jsonfilehandler", factory, re.IGNORECASE) is not None
    )


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what dictConfig passes to the class."""
    return {key: given[key] for key in given if key not in {"class", "()", ".", "level", "formatter", "filters"}}


def _maker(given: Mapping[str, Any], factory: Callable[..., Any]) -> Callable[[], Any]:
    def make() -> Any:
        with _unsaid():
            return factory(**_options(given))

    return make


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """Keep a handler from saying on stderr where its journal lies: here that is a finding."""
    stream = sys.__stderr__
    setattr(sys, "__stderr__", None)  # noqa: B010 - it is Final to type checkers
    try:
        yield
    finally:
        setattr(sys, "__stderr__", stream)  # noqa: B010


def _tried(name: str, given: Mapping[str, Any], factory: Callable[..., Any], source: str) -> Finding:
    variable = given.get("dsn_env")
    if isinstance(variable, str) and not re.fullmatch(r"\w+", variable):
        what = f"{name!r}: dsn_env holds something else than a variable's name (not shown: it may be a secret)"
        return Finding(
            FAIL, "handler", what, f'rename it to "dsn" in {source}, or name the variable that holds the dsn'
        )
    try:
        _maker(given, factory)()
    except ConfigError as error:
        return Finding(FAIL, "handler", f"{name!r}: {error}", _step(str(error), name, given, source))
    except Exception as error:  # of a class derived from ours; its text may quote an option
        what = f"{name!r}: {getattr(factory, '__name__', 'its class')} raises {type(error).__name__}"
        return Finding(FAIL, "handler", what, f"correct handler {name!r} in {source}")
    filters = given.get("filters") or ()
    tail = (
        f"; its filters ({', '.join(map(str, filters))}) may hold records back, they are not judged" if filters else ""
    )
    return Finding(OK, "handler", f"{name!r} of {source}: its options are right{tail}")


def _step(said: str, name: str, given: Mapping[str, Any], source: str) -> str:
    """Return what to do about a ConfigError."""
    if "cannot be used by user" in said:  # its folder
        return f"run doctor as the user that your program runs as, or correct journal of {name!r} in {source}"
    for option in ("dsn_env", "token_env"):
        if said.startswith(f"{option} names"):
            return f"export {given[option]}=... in this shell as for your program, and run doctor again"
    if "pip install" in said:
        return f"{said[said.index('pip install') :]} for the Python that runs your program"
    if "cannot be imported" in said:
        return f"run doctor with your program's Python and in its folder, or correct sink of {name!r} in {source}"
    return f"correct handler {name!r} in {source}"


_KEPT = ("level", "filters", "formatter")


def accepted(config: Mapping[str, Any], source: str, handlers: Collection[str]) -> Finding:
    """Have logging apply a copy with silent handlers, and compare what it does with what was read. Changes logging."""
    silent = {
        name: {"class": "logging.NullHandler", **{key: given[key] for key in given if key in _KEPT}}
        for name, given in config.get("handlers", {}).items()
    }
    try:
        # Existing loggers are left alone: they are this program's.
        logging.config.dictConfig({**plain(config), "handlers": silent, "disable_existing_loggers": False})
    except Exception as error:
        reasons = [str(error)]
        cause = error.__cause__
        while cause is not None and len(reasons) < 5:
            reasons.append(str(cause))
            cause = cause.__cause__
        return Finding(FAIL, "config", f"dictConfig refuses {source}: {': '.join(reasons)}", _mend(reasons, source))
    for way in ways(config, sorted(nodes(config)), handlers):
        if _observed(way, carriers(config, way.handler)) != way.stored:
            what = f"logging treats {way.logger or 'root'} otherwise than the lines below say"
            return Finding(WARN, "config", what, f"please report this with the loggers and handlers of {source}")
    return Finding(OK, "config", f"dictConfig accepts {source} (tried here with silent handlers)")


def _mend(reasons: list[str], source: str) -> str:
    text = " ".join(reasons)
    if "version" in text:
        return f'add "version": 1 at the top of {source}'
    if "Unknown level" in text:
        return f"write DEBUG, INFO, WARNING, ERROR or CRITICAL in {source}, in capitals"
    if "Unable to add handler" in text:
        return f'in {source} give a list of names that stand under "handlers", such as ["db"]'
    return f"correct that in {source}; nothing is logged until dictConfig accepts all of it"


def _observed(way: Way, brings: Mapping[str, int]) -> dict[int, int]:
    """Count what real loggers would hand to these handlers, as Logger.callHandlers goes."""
    start = logging.getLogger(way.logger)
    counts = dict.fromkeys(LEVELS, 0)
    for at in LEVELS:
        logger: logging.Logger | None = start if at >= start.getEffectiveLevel() else None
        while logger is not None:
            counts[at] += sum(one.get_name() in brings and at >= one.level for one in logger.handlers)
            logger = logger.parent if logger.propagate else None
    return counts
