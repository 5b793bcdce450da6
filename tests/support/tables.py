"""Tables of docs/ that tests make from themselves, so that a page and the tests cannot disagree."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

from logsluice.config import GIB, KIB, MIB, Settings

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


# --- options --------------------------------------------------------------------------------------------------------


def options_shown(text):
    """What a page says of options: (name, default) of each row."""
    return re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", text, re.MULTILINE)


def options_of(kind, **shown):
    """The same of settings, in the order of the code. `shown`: defaults that a page writes in another way."""
    settings = kind()
    return [
        (field.name, shown.get(field.name) or default(field.name, getattr(settings, field.name)))
        for field in dataclasses.fields(kind)
    ]


def own_options(kind, **shown):
    """Of these only what not all handlers share."""
    shared = {field.name for field in dataclasses.fields(Settings)}
    return [option for option in options_of(kind, **shown) if option[0] not in shared]


def default(name, value):
    if name.endswith("level") and value is not None:
        value = logging.getLevelName(value)
    if dataclasses.is_dataclass(value):
        return "see `config.Limits`"
    if type(value) is int and value:
        for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
            if value % size == 0:
                return f"{value // size} {unit}"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"
