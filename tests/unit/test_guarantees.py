"""docs/explanation/guarantees.md against the tests: each sentence names one that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "guarantees.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| sentence")]


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


def test_there_are_sentences():
    assert len(ROWS) > 25
