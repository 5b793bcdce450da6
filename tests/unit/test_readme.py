"""The README against the code: what it promises in tables and snippets must be what is there."""

import re
from pathlib import Path

import pytest

from logsluice.config import PostgresSettings, Settings
from support.tables import options_of, options_shown, own_options

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_options_in_the_table_are_those_of_the_code():
    """With their defaults, in the order of the code; docs/reference/options.md has all of them."""
    shown = options_shown(README)
    assert len(shown) >= 10
    assert shown == [one for one in (*own_options(PostgresSettings), *options_of(Settings)) if one in shown]


def test_dictconfig_snippets_are_accepted(monkeypatch):
    """What people copy must configure; nothing connects, so any dsn does."""
    import logging.config

    from logsluice import PostgresHandler

    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    full = next(block for block in blocks if "dictConfig" in block)
    called = []
    monkeypatch.setattr(logging.config, "dictConfig", called.append)
    exec(full.split('\n\nlogging.getLogger("shop')[0], {})
    options = called[0]["handlers"]["postgres"]
    assert options.pop("class") == "logsluice.PostgresHandler"
    PostgresHandler(**options)
    mapped = eval("{" + next(block for block in blocks if "tbl_activity_logs" in block) + "}")["postgres"]
    del mapped["class"]
    assert PostgresHandler(**{**mapped, "dsn": ""})._targets["logs"].name == '"public"."tbl_activity_logs"'


# --- links, of every page -------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def anchors(path):
    """What the headings of a page are called where the repository is shown; the site's names are the same."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if "_build" not in path.parts
))  # fmt: skip
def test_a_link_leads_somewhere(page):
    """Relative, so that they work in a checkout, where the repository is shown, and on the site."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        if not path.is_file() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []
