"""Tables of docs/ that tests make from themselves, so that a page and the tests cannot disagree."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def table(heads, lines):
    """Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def shown(page, name):
    """What stands on a page between `<!-- name: begin -->` and its end."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return text.partition(f"<!-- {name}: begin -->\n")[2].partition(f"\n<!-- {name}: end -->")[0]


def rule_number(rule):
    return int(rule.__name__.removeprefix("rule_"))


def numbered(docstring):
    """The numbers of the rules in a docstring."""
    return [int(number) for number in re.findall(r"^(\d+)\. ", docstring, re.MULTILINE)]


def rule_text(rule):
    return f"{rule_number(rule)}. {rule.__doc__.strip()}"
