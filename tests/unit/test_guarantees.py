"""docs/explanation/guarantees.md and SECURITY.md against the tests: each sentence names one that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["docs/explanation/guarantees.md", "SECURITY.md"]


def sentences(page):
    text = (ROOT / page).read_text()
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| sentence")]


ROWS = [row for page in PAGES for row in sentences(page)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_each_sentence_names_tests_that_exist(row):
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
    assert named
    for path, name in named:
        assert (ROOT / path).exists(), path
        functions = {
            node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert not name or name in functions, f"{path} has no {name}"


@pytest.mark.parametrize(("page", "least"), [(PAGES[0], 26), (PAGES[1], 20)])
def test_there_are_sentences(page, least):
    assert len(sentences(page)) >= least


def test_the_links_of_the_security_page_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "SECURITY.md").read_text()):
        assert (ROOT / target).exists(), target
