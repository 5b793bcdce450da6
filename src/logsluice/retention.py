"""
Retention rules: how long rows are kept, by table, by level and by log type. Pure.

    {"jetstream": "1d", "sync_job": "7d", "DEBUG": "3d", "activity": "90d", "job_log:system": "7d", "*": "30d"}

A key is a table's name, a level's, a log type (what the column `log_type`, or the attribute, says), or "*"; with
"TABLE:" before a level or a log type it is about that table alone. "log_type=error" is a log type that is called as a
level is. A value is a span ("30d": h, d, w; at least a day) or "forever".
The key "archive" is no rule: it says where rows go before they are dropped.

One rule decides about a row, the first of: its log type, its level, its table, the retention that its type declares,
"*"; each with the table's name before the same without. A level's rule is about the levels up to the next one: DEBUG
is 10 to 19. A row that no rule is about is kept for ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logsluice import types
from logsluice.columns import quote
from logsluice.errors import ConfigError

# One day, whatever the width of a partition: the handlers keep yesterday's partitions ready and would make them again
# at once, and "30m" by somebody who meant months must not empty the table.
LEAST = 86_400.0  # seconds
DECLARED = "(declared)"  # what the rule of a type's own retention is called in reports
FOR_EVER = "forever"
ARCHIVE = "archive"  # not a rule: where rows go first. A log type of that name is "log_type=archive"
_LEVELS = (0, 10, 20, 30, 40, 50)  # where the next level begins, for those without a rule of their own
_KEPT = re.compile(r"\(typed log, kept (?:for ever|(?:(\d+) days?)?(?:, )?(?:(\d+):(\d\d):(\d\d))?)\)$")

Rules = Mapping[str, "float | None"]  # key -> seconds, None for ever


@dataclass(frozen=True)
class LogTable:
    """One table that rules may be about."""

    name: str
    columns: frozenset[str]
    partitioned: bool
    declared: float | None = None  # seconds: its type's own retention; None: none


@dataclass(frozen=True)
class Rule:
    """One rule as it is about one table."""

    key: str  # as it was written
    keep: float | None  # seconds; None: for ever
    where: str = ""  # SQL that is true for its rows, of the table's columns; empty: all that no other is about
    value: str | None = None  # the one parameter of `where`, if it has one


def rules_from(given: Any) -> Rules:
    """
    Return {key: seconds} of a mapping, of a JSON file's path, of True or None: no rules but the types' own.

    "archive" is left to `archive_in`. Raises `ConfigError` that names the key and says what to write instead.
    """
    given = _loaded(given)
    return {str(key): _span(str(key), given[key]) for key in given if key != ARCHIVE}


def archive_in(given: Any) -> Any:
    """Return what such rules say of the archive, as it was written; None for nothing."""
    return _loaded(given).get(ARCHIVE)


def _loaded(given: Any) -> Mapping[Any, Any]:
    if given in (None, True):
        return {}
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:  # the last: lists in lists in lists
            raise ConfigError(f"retention rules: {given!r} cannot be read as JSON: {error}") from None
    if not isinstance(given, Mapping):
        raise ConfigError(f"retention rules must be a mapping, {{'*': '30d'}}, got {type(given).__name__}")
    return given


def _span(key: str, value: Any) -> float | None:
    if not key or key.startswith(":") or key.endswith((":", "=")):
        raise ConfigError(f"retention rule {key!r}: write a table, a level, a log type, TABLE:LEVEL, or '*'")
    if value is None or value == FOR_EVER:
        return None
    seconds = types.seconds(value, f"retention rule {key!r}: its span")
    if seconds is None or seconds < LEAST:
        raise ConfigError(f"retention rule {key!r} must keep at least 1 day, got {value!r} (m is minutes, d days)")
    return seconds


def declared_in(comment: str | None) -> tuple[bool, float | None]:
    """Return whether a table's comment is that of a typed log, and the seconds that it says are kept."""
    found = _KEPT.search(comment or "")
    if found is None:
        return False, None
    days, hours, minutes, seconds = (int(one or 0) for one in found.groups())
    return True, float(days * 86_400 + hours * 3600 + minutes * 60 + seconds) or None


def of_table(rules: Rules, table: LogTable, names: frozenset[str]) -> tuple[list[Rule], Rule | None]:
    """
    Return what is about one table: the rules finer than it, in the order in which they decide, and that of the rest.

    `names`: of all tables, to know them from log types.
    """
    ranked: list[tuple[int, Rule]] = []
    bases: list[tuple[int, Rule]] = []
    levels = sorted({number for key in rules if (number := _level(_split(key, names)[1])) is not None} | set(_LEVELS))
    for key, keep in rules.items():
        home, what = _split(key, names)
        if home not in {None, table.name}:
            continue
        nearer = 0 if home else 1  # with the table's name before without
        number = _level(what)
        if not what:
            bases.append((nearer, Rule(key, keep)))
        elif number is not None:
            above = next((one for one in levels if one > number), None)
            where = f"level >= {number}" + (f" AND level < {above}" if above is not None else "")
            if "level" in table.columns:
                ranked.append((2 + nearer, Rule(key, keep, where)))
        else:
            kind = _type_column(table, asked=home is not None)
            if kind:
                ranked.append((nearer, Rule(key, keep, f"{kind} = %s", what.removeprefix("log_type="))))
    finer = [rule for _, rule in sorted(ranked, key=lambda one: one[0])]
    if table.declared is not None and not any(nearer == 0 for nearer, _ in bases):
        return finer, Rule(DECLARED, max(table.declared, LEAST))
    return finer, min(bases, key=lambda one: one[0])[1] if bases else None


def _split(key: str, names: frozenset[str]) -> tuple[str | None, str]:
    """Return (table, level or log type) of a key; None for every table, an empty text for all of it."""
    if key == "*":
        return None, ""
    if key in names:
        return key, ""
    home, colon, what = key.partition(":")
    return (home, what) if colon else (None, key)


def unknown_tables(rules: Rules, names: frozenset[str]) -> list[str]:
    """Return the keys that name a table which is not there: not yet, or a slip of the pen."""
    return [key for key in rules if (home := _split(key, names)[0]) is not None and home not in names]


def _level(what: str) -> int | None:
    return int(what) if re.fullmatch(r"[0-9]{1,4}", what) else types.level_number(what)


def _type_column(table: LogTable, *, asked: bool) -> str:
    """Return the SQL of a row's log type; empty where rows have none, so that reports do not speak of it."""
    if "log_type" in table.columns:
        return quote("log_type")
    return "attributes->>'log_type'" if "attributes" in table.columns and (asked or table.name == "logs") else ""


def shown(keep: float | None) -> str:
    """Return a span as people write it."""
    if keep is None:
        return FOR_EVER
    for unit, size in (("w", 7 * 86_400), ("d", 86_400), ("h", 3600)):
        if keep % size == 0 and (unit != "w" or keep >= 8 * size):
            return f"{keep / size:.0f}{unit}"
    return f"{keep:.0f}s"
