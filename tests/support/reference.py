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
import re
import textwrap
import tokenize

import psycopg

from logsluice import cli, contrib, filters, schema
from logsluice.config import FileSettings, Limits, PostgresSettings, Settings, SinkSettings
from logsluice.console import ConsoleHandler
from logsluice.devserver import EmbeddedPostgres
from logsluice.httpconfig import HttpSettings
from logsluice.tracing import SpanRow
from support import public
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
            yield table(("argument", "meaning"), lines) + "\n"
        for one in deeper:
            yield from _commands(full, one, f"{mark}#")


def _sentence(text):
    text = cell(text)
    return text[:1].upper() + text[1:] + "." * (text[-1] not in ".!?")


def _values(action):
    if action.nargs == 0:
        return ""
    name = action.metavar or ("VALUE" if action.choices is not None else action.dest.upper())
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(action.nargs, name)


def _spelling(action):
    values = _values(action)
    if not action.option_strings:
        return values
    return ", ".join(action.option_strings) + f" {values}" * bool(values)


def _help(action):
    text = (action.help or "") % {**vars(action), "prog": "logsluice"}
    if action.choices is not None and action.metavar is None:  # else the help names them: `--help` shows nothing more
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
    written = {"cli.md": commands(), "options.md": options(), "api.md": public.api()}
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn(), autocommit=True) as conn:
        fill(conn)
        written["schema.md"] = tables(conn)
    for name, body in written.items():
        text = page(name, body)  # read before the file is emptied
        (PAGES / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
