"""docs/reference beside the code: what is generated is up to date, each example of the grammar is read as the page says."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timezone

import pytest

import logsluice
from logsluice import cli, grammar
from support import public, reference
from support.tables import DOCS

NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)  # as the page says
KINDS = {
    "ts": "time", "level": "level", "logger": "text", "message": "text", "service": "text", "user_id": "text",
    "line": "integer", "attributes": "json", "similarity_score": "number", "retrieval_skipped": "boolean",
    "job_id": "uuid", "ip_address": "other",
}  # fmt: skip
GRAMMAR = (DOCS / "reference" / "grammar.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "body"), [
    ("cli.md", reference.commands), ("options.md", reference.options), ("api.md", public.api),
])  # fmt: skip
def test_the_generated_pages_are_up_to_date(name, body):
    """`PYTHONPATH=tests python -m support.reference` writes them."""
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == reference.page(name, body())


def test_every_command_and_option_has_a_meaning():
    text = reference.commands()
    assert re.findall(r"^## logsluice (\S+)", text, re.MULTILINE) == list(cli.COMMANDS)
    assert re.findall(r"^\| `.*` \|  \|$", text + reference.options(), re.MULTILINE) == []


def test_the_page_says_which_commands_end_as_grep_does():
    parser = cli.parser()
    (below,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    likewise = [name for name, one in below.choices.items() if one.get_default("failed") == 2]
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    said = re.search(r"^(.*) end as grep does", text, re.MULTILINE)[1]
    assert re.findall(r"`(\w+)`", said) == likewise


def test_the_public_names_are_those_of_the_package():
    """Modules have a section of their own."""
    shown = {*public.PUBLIC["logsluice"], *(name.rpartition(".")[2] for name in public.PUBLIC)}
    assert set(logsluice.__all__) <= shown


def test_what_the_pages_import_is_public():
    """A page that shows how to do a thing makes its names public."""
    known = {(home, name) for home, names in public.PUBLIC.items() for name in names}
    known |= {(home.rpartition(".")[0], home.rpartition(".")[2]) for home in public.PUBLIC}
    used = {
        (home, name.split(" as ")[0].strip())
        for path in DOCS.rglob("*.md") for block in re.findall(r"^```python.*?^```$", path.read_text(), re.M | re.S)
        for home, names in re.findall(r"^\s*from (logsluice[\w.]*) import ([^(\n]+)$", block, re.M)
        for name in names.split(",")
    }  # fmt: skip
    assert len(used) > 10
    assert used - known == set()


# --- the grammar ----------------------------------------------------------------------------------------------------


def term_shown(term):
    value = "no value" if term.value is None else term.value
    value = f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else str(value)
    return f"{'.'.join((term.column, *term.path))} {term.operator or 'contains'} {value}"


def rows(pattern):
    found = [tuple(cell.replace("\\|", "|") for cell in row) for row in re.findall(pattern, GRAMMAR, re.MULTILINE)]
    assert found
    return found


@pytest.mark.parametrize(("text", "terms"), rows(r"^\| `(.+)` \| (`\S+ (?:[=!~<>]{1,4}|contains) .+`) \|$"))
def test_an_example_is_read_as_the_page_says(text, terms):
    made = [term_shown(term) for term in grammar.parse(text, KINDS, now=NOW)]
    assert made == [term.strip("`") for term in terms.split("; ")]


@pytest.mark.parametrize(("text", "at", "problem"), rows(r"^\| `(.+)` \| (\d+) \| (.+) \|$"))
def test_an_error_is_what_the_page_says(text, at, problem):
    with pytest.raises(grammar.FilterError) as error:
        grammar.parse(text, KINDS, now=NOW)
    assert (error.value.at, error.value.problem) == (int(at), problem.replace("\\\\", "\\"))


def test_the_page_has_all_operators_and_what_each_kind_takes():
    operators = re.search(r"operator  = (.*)$", GRAMMAR, re.MULTILINE)[1].replace('"', "").split(" | ")
    assert operators == ["=", "!=", "~=", "!~=", "~~=", "!~~=", ">", ">=", "<", "<="] == list(grammar.OPERATORS)
    kinds = rows(r"^\| (.+?) \| (\w+) \| ((?:`[=!~<>]+` ?)+) \| .+ \|$")
    assert {kind: tuple(takes.replace("`", "").split()) for _, kind, takes in kinds} == grammar._TAKES
    types = {one: kind for names, kind, _ in kinds for one in names.split(", ") if one in grammar.KINDS}
    assert types == grammar.KINDS
    assert f"{grammar.LENGTH:,} characters" in GRAMMAR
