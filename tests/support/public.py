"""docs/reference/api.md: what a program may import, and what the code says of it (reference.py writes the page)."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import textwrap
from typing import Protocol

from logsluice import PostgresHandler, contrib, reports
from logsluice.base import BaseHandler

# What a program may import, and we keep. Other names of these modules, and other modules, may change at any time.
PUBLIC = {
    "logsluice": (
        "PostgresHandler", "JsonFileHandler", "HttpHandler", "SinkHandler", "ConsoleHandler", "Stats",
        "drain_on_sigterm", "child_init", "trace", "span", "start_span", "active_traces", "extract", "inject",
        "LogsluiceError", "ConfigError",
    ),
    "logsluice.context": ("bind", "bound", "unbind", "clear", "current", "carry", "carried", "around"),
    "logsluice.tracing": ("Span", "current", "use"),
    "logsluice.traces": ("read", "Trace", "StoredSpan", "StoredLog"),
    "logsluice.types": ("logtype", "Sql", "deliver"),
    "logsluice.contrib": contrib.__all__[1:],
    "logsluice.middleware.asgi": ("LogMiddleware",),
    "logsluice.middleware.wsgi": ("LogMiddleware",),
    "logsluice.middleware.jobs": ("message_job", "job", "Job"),
    "logsluice.middleware.celery": ("connect",),
    "logsluice.query": ("Query", "Late"),
    "logsluice.records": ("Record", "Key", "Count"),
    "logsluice.grammar": ("FilterError",),
    "logsluice.reports": reports.__all__,
    "logsluice.filters": ("SampleFilter", "RateLimitFilter", "DuplicateFilter", "figures"),
    "logsluice.console": ("ConsoleFormatter",),
    "logsluice.formatters": ("SluiceJsonFormatter",),
    "logsluice.presets": (
        "basic", "three_level", "activity", "batched", "audit", "structured", "uvicorn", "gunicorn", "django", "celery",
    ),
    "logsluice.sinks": ("Sink", "Outcome", "Counts", "SinkError", "rows"),
    "logsluice.testing": ("captured", "check_sink"),
    "logsluice.devserver": ("EmbeddedPostgres",),
}  # fmt: skip


def api():
    """Each public name: its signature, and what its docstring says."""
    made = []
    for name, names in PUBLIC.items():
        module = importlib.import_module(name)
        said = inspect.getdoc(module)
        above = said.split("\n\n")[0] if name != "logsluice" else ""
        first = f"{said if above.endswith(':') else above}\n\n" * bool(above)
        made.append(f"## {name}\n\n{first}" + "\n\n".join(_described(one, getattr(module, one)) for one in names))
    return "\n\n".join(made) + "\n"


# What programs call of a handler, beside logging's own; the rest is called by other modules of ours.
HANDLER = ("flush", "stats", "pressure", "wait_ready", "close")


def _described(name, value):
    signature = _signature(name, value) if callable(value) else name
    # 96: what is wider does not fit beside the site's menu. Folded behind commas alone.
    whole = signature.replace(" ", "\0").replace(",\0", ", ")
    folded = textwrap.fill(whole, 96, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    folded = folded.replace("\0", " ")
    text = f"### {name}\n\n" + f"```python\n{folded}\n```\n\n" * (signature != name)
    text += "\n".join(line.rstrip() for line in (inspect.getdoc(value) or "").splitlines())
    members = "".join(f"\n- {line}" for line in _members(value)) if inspect.isclass(value) else ""
    return text + f"\n{members}" * bool(members)


def _members(kind):
    """Fields, methods and properties that are public, of its bases too."""
    fields = {one.name: one.type for one in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    yield from (f"`{name}`: `{type_}`" for name, type_ in fields.items() if name[0] != "_")
    if issubclass(kind, BaseHandler):
        names = HANDLER if kind is PostgresHandler else ()  # once: they are alike
    elif issubclass(kind, (logging.Handler, logging.Formatter, logging.Filter)):
        names = ()
    else:
        homes = [home for home in kind.__mro__ if home.__module__.startswith("logsluice")]
        names = [name for home in homes for name in vars(home) if name[0] != "_" and name not in fields]
    for name in dict.fromkeys(names):
        value = inspect.getattr_static(kind, name)
        value = getattr(value, "__func__", value)  # of a class method
        if inspect.isfunction(value) or isinstance(value, property):
            shown = name if isinstance(value, property) else _signature(name, value)
            yield f"`{shown}`: {' '.join((inspect.getdoc(value) or '').split(chr(10) * 2)[0].split())}".rstrip(": ")


class _Annotation(str):
    __slots__ = ()
    __repr__ = str.__str__  # a signature shows an annotation by its repr: with quotes, if it is a text


def _signature(name, value):
    """One line for people, without self. Of a record of fields its name alone: the fields follow."""
    if inspect.isclass(value) and (
        # Not by issubclass: any class that looks like a runtime_checkable Protocol, of structlog's, say, is one of Protocol.
        dataclasses.is_dataclass(value) or issubclass(value, (BaseException, tuple)) or Protocol in value.__mro__
        or value.__init__ is object.__init__
    ):  # fmt: skip
        return name
    made = inspect.signature(value)
    known = [
        one if one.annotation is one.empty else one.replace(annotation=_Annotation(one.annotation))
        for one in made.parameters.values() if one.name not in {"self", "cls", "unknown"}
    ]  # fmt: skip
    nothing = made.return_annotation in {made.empty, None, "None"}
    made = made.replace(
        parameters=known, return_annotation=made.empty if nothing else _Annotation(made.return_annotation)
    )
    return f"{'async ' * inspect.iscoroutinefunction(value)}{name}{made}"
