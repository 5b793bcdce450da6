"""
The generated parts of docs/reference, made from the code, and of schema.md, made from a database:

    PYTHONPATH=tests python -m support.reference

It rewrites what stands between a page's markers. The same pages come from every Python and PostgreSQL that is tested;
tests/unit/test_reference.py and tests/integration/test_reference.py compare.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import io
import logging
import re
import textwrap
import tokenize
from typing import Protocol

import psycopg

from logsluice import PostgresHandler, cli, contrib, filters, schema
from logsluice.base import BaseHandler
from logsluice.config import FileSettings, Limits, PostgresSettings, Settings, SinkSettings
from logsluice.console import ConsoleHandler
from logsluice.devserver import EmbeddedPostgres
from logsluice.httpconfig import HttpSettings
from logsluice.tracing import SpanRow
from support.tables import DOCS, default, options_of, own_options, table

PAGES = DOCS / "reference"
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"


def page(name, body):
    """A page's text with this body between its markers."""
    text = (PAGES / name).read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1), f"{name} has no place for what is generated"
    above, rest = text.split(BEGIN)
    return f"{above}{BEGIN}\n{body}\n{END}{rest.split(END)[1]}"


def cell(text):
    """Plain text for a cell of a table; what stands in back-ticks stays as it is, but for the bar."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part.replace("|", "\\|") if part.startswith("`") else re.sub(r"([\\*_~<|\[])", r"\\\1", part) for part in parts
    )


# --- cli.md ---------------------------------------------------------------------------------------------------------


def commands():
    """Each command, with those below it: argparse's text of help differs between versions of Python, so not that."""
    parser = argparse.ArgumentParser()
    below = parser.add_subparsers()
    for name in cli.COMMANDS:
        importlib.import_module(f"logsluice.cli.{name}").register(below)
    return "\n".join(_commands("logsluice", below, "##"))


def _commands(above, below, mark):
    helps = {action.dest: action.help for action in below._choices_actions}
    for name, parser in below.choices.items():
        full = f"{above} {name}"
        deeper = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        actions = [
            action for action in parser._actions
            if action not in deeper and not isinstance(action, argparse._HelpAction)
            and action.help is not argparse.SUPPRESS
        ]  # fmt: skip
        yield f"{mark} {full}\n\n{_sentence(parser.description or helps[name])}\n"
        if actions:
            positional = "".join(f" {_values(one)}" for one in actions if not one.option_strings)
            options = " [OPTIONS]" * any(one.option_strings for one in actions)
            yield f"    {full}{options}{positional}\n"
            lines = [(f"`{_spelling(one)}`", cell(_help(one))) for one in actions]
            yield table(("argument", "meaning"), lines).replace("`{", "`").replace("}`", "`") + "\n"
        for one in deeper:
            yield from _commands(full, one, f"{mark}#")


def _sentence(text):
    text = cell(text)
    return text[:1].upper() + text[1:] + "." * (text[-1] not in ".!?")


def _values(action):
    if action.nargs == 0:
        return ""
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(action.nargs, name)


def _spelling(action):
    values = _values(action)
    if not action.option_strings:
        return values
    return ", ".join(action.option_strings) + f" {values}" * bool(values)


def _help(action):
    text = (action.help or "") % {**vars(action), "prog": "logsluice"}
    if action.choices is not None:
        text += f"; one of {', '.join(map(str, action.choices))}"
    return text + ("; must be given" if action.required and action.option_strings else "")


# --- options.md -----------------------------------------------------------------------------------------------------

# Where more is told of an option.
MORE = {
    "journal": "journal", "fsync": "journal", "journal_bytes": "journal", "connections": "far-server",
    "shard_by": "far-server", "redact": "privacy", "limits": "typed-logs", "maintenance": "retention",
    "partition": "tune", "synchronous_commit": "tune", "sink": "own-sink", "token": "http", "format": "http",
    "names": "file", "dead_letters": "http",
}  # fmt: skip


def options():
    """The options of every handler, each with its default, and the meaning that the code gives it."""
    shown = {"mode": "`0o640`"}
    kinds = (
        ("All handlers but the console's", Settings, options_of(Settings)),
        ("Caps on one record: `limits`", Limits, [(name, value) for name, value in options_of(Limits)]),
        ("PostgresHandler", PostgresSettings, own_options(PostgresSettings)),
        ("JsonFileHandler", FileSettings, own_options(FileSettings, **shown)),
        ("HttpHandler", HttpSettings, own_options(HttpSettings)),
        ("SinkHandler", SinkSettings, own_options(SinkSettings)),
    )
    made = []
    for head, kind, rows in kinds:
        said = meanings(kind)
        made.append(f"## {head}\n\n" + table(("option", "default", "meaning"), [
            (f"`{name}`", value, cell(said[name]) + _more(name, kind)) for name, value in rows
        ]))  # fmt: skip
    made += [f"## {kind.__name__}\n\n{_keywords(kind)}" for kind in (
        ConsoleHandler, filters.SampleFilter, filters.RateLimitFilter, filters.DuplicateFilter,
    )]  # fmt: skip
    return "\n\n".join(made) + "\n"


def _more(name, kind):
    if name not in MORE or kind is Limits or (kind is SinkSettings and name != "sink"):
        return ""
    return f" ([more](../howto/{MORE[name]}.md))"


def _keywords(kind):
    """The keywords of a class that is no dataclass, and its docstring, which says what they mean."""
    known = [one for one in inspect.signature(kind).parameters.values() if one.kind is one.KEYWORD_ONLY]
    lines = [(f"`{one.name}`", default(one.name, one.default)) for one in known]
    return table(("option", "default"), lines) + f"\n\n{inspect.getdoc(kind)}"


def meanings(kind):
    """{option: the comment beside it, or else the one above it}; the first line after a gap is a heading."""
    found = {}
    for home in reversed(kind.__mro__[:-1]):
        if dataclasses.is_dataclass(home):
            found |= _comments(textwrap.dedent(inspect.getsource(home)))
    return found


def _comments(source):
    lines = source.splitlines()
    said = {
        token.start[0]: re.sub(r"^# (noqa: \w+ - )?", "", token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT
    }  # fmt: skip
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        beside = [said[line] for line in range(node.lineno, node.end_lineno + 1) if line in said]
        above, at = [], node.lineno - 1
        while lines[at - 1].strip().startswith("#"):
            above.insert(0, said[at])
            at -= 1
        heading = not lines[at - 1].strip() or lines[at - 1].strip().endswith('"""')
        found[node.target.id] = " ".join(beside or (above[1:] if heading else above))
    return found


# --- api.md ---------------------------------------------------------------------------------------------------------

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
    "logsluice.query": ("Query",),
    "logsluice.records": ("Record", "Key", "Count"),
    "logsluice.grammar": ("FilterError",),
    "logsluice.reports": importlib.import_module("logsluice.reports").__all__,
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
        dataclasses.is_dataclass(value) or issubclass(value, (BaseException, tuple, Protocol))
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


# --- schema.md ------------------------------------------------------------------------------------------------------


def fill(conn):
    """Make in a database all that the project makes: tables, typed logs, spans, views."""
    schema.migrate(conn)
    kinds = [kind for name in contrib.__all__ if hasattr(kind := getattr(contrib, name), "__logtype__")]
    for kind in (*kinds, SpanRow):
        conn.execute(kind.__logtype__.ddl("logsluice", "day", None))
    schema.apply(conn, schema.compat())


def tables(conn):
    """Every table, view and function of the schema, with what its COMMENT says."""
    relations = conn.execute(
        """SELECT c.oid, c.relname, c.relkind, obj_description(c.oid, 'pg_class') FROM pg_class c
            WHERE c.relnamespace = 'logsluice'::regnamespace AND NOT c.relispartition AND c.relkind IN ('r', 'p', 'v', 'm')
            ORDER BY c.relkind IN ('v', 'm'), c.relname""",
    ).fetchall()
    made = [_relation(conn, *one) for one in relations]
    functions = conn.execute(
        """SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
                  obj_description(p.oid, 'pg_proc') FROM pg_proc p
            WHERE p.pronamespace = 'logsluice'::regnamespace ORDER BY p.proname""",
    ).fetchall()
    for name, arguments, result, said in functions:
        made.append(f"## Function {name}\n\n{cell(said or '')}\n\n    {name}({arguments})\n      RETURNS {result}")
    return "\n\n".join(made) + "\n"


def _relation(conn, oid, name, kind, said):
    columns = conn.execute(
        """SELECT a.attname, format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END,
                  coalesce(col_description(a.attrelid, a.attnum), '')
             FROM pg_attribute a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum""",
        [oid],
    ).fetchall()
    indexes = conn.execute(
        """SELECT pg_get_indexdef(indexrelid), indisprimary FROM pg_index WHERE indrelid = %s ORDER BY 1""", [oid]
    ).fetchall()
    what = "View" if kind in {"v", "m"} else "Table"
    text = f"## {what} {name}\n\n{cell(said or '')}\n\n"
    text += table(("column", "type", "meaning"), [(f"`{a}`", b, cell(c)) for a, b, c in columns])
    lines = [f"- {'primary key' if primary else 'index'}: `{how.partition(' USING ')[2]}`" for how, primary in indexes]
    return "\n".join([text, *([""] * bool(lines)), *lines])


def main():
    """Write them."""
    written = {"cli.md": commands(), "options.md": options(), "api.md": api()}
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn(), autocommit=True) as conn:
        fill(conn)
        written["schema.md"] = tables(conn)
    for name, body in written.items():
        text = page(name, body)  # read before the file is emptied
        (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
