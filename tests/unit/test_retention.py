"""Retention rules: which one decides about a row, and what a person reads who wrote one wrong."""

from __future__ import annotations

import json

import pytest

from logsluice.errors import ConfigError
from logsluice.retention import DECLARED, LogTable, declared_in, of_table, rules_from, shown, unknown_tables
from logsluice.types import logtype

DAY = 86_400.0
COLUMNS = frozenset({"ts", "stream", "seq", "level", "attributes"})
LOGS = LogTable("logs", COLUMNS, partitioned=True)
JOBS = LogTable("job_log", COLUMNS | {"log_type"}, partitioned=True)
PAYMENT = LogTable("payment", COLUMNS, partitioned=True, declared=90 * DAY)
NAMES = frozenset({"logs", "job_log", "payment"})


def keys(given, table):
    finer, base = of_table(rules_from(given), table, NAMES)
    return [rule.key for rule in finer], base.key if base else None


def test_the_rules_of_three_log_types_and_the_rest():
    given = {"jetstream": "1d", "sync_job": "7d", "system": "7d", "*": "30d"}
    finer, base = of_table(rules_from(given), JOBS, NAMES)
    assert [(rule.where, rule.value, rule.keep) for rule in finer] == [
        ('"log_type" = %s', "jetstream", DAY), ('"log_type" = %s', "sync_job", 7 * DAY),
        ('"log_type" = %s', "system", 7 * DAY),
    ]  # fmt: skip
    assert (base.key, base.keep) == ("*", 30 * DAY)
    assert of_table(rules_from(given), LOGS, NAMES)[0][0].where == "attributes->>'log_type' = %s"
    assert keys(given, PAYMENT) == ([], DECLARED), "its rows have no log type"


def test_the_nearest_rule_comes_first():
    given = {"*": "30d", "DEBUG": "3d", "job_log:DEBUG": "2d", "sync_job": "7d", "job_log:sync_job": "5d"}
    assert keys(given, JOBS) == (["job_log:sync_job", "sync_job", "job_log:DEBUG", "DEBUG"], "*")
    assert keys(given, LOGS) == (["sync_job", "DEBUG"], "*")


def test_a_table_wins_over_what_its_type_declares_and_that_over_the_star():
    assert keys({"*": "30d"}, PAYMENT) == ([], DECLARED)
    assert keys({"*": "30d", "payment": "forever"}, PAYMENT) == ([], "payment")
    assert keys({}, PAYMENT) == ([], DECLARED)
    assert keys({}, LOGS) == ([], None)


def test_a_level_reaches_up_to_the_next_one():
    def where(given):
        return {rule.key: rule.where for rule in of_table(rules_from(given), LOGS, NAMES)[0]}

    assert where({"debug": "3d", "CRITICAL": "90d"}) == {
        "debug": "level >= 10 AND level < 20",
        "CRITICAL": "level >= 50",
    }
    assert where({"INFO": "3d", "25": "9d"}) == {
        "INFO": "level >= 20 AND level < 25",
        "25": "level >= 25 AND level < 30",
    }
    (rule,) = of_table(rules_from({"log_type=error": "3d"}), JOBS, NAMES)[0]
    assert (rule.where, rule.value) == ('"log_type" = %s', "error")


def test_a_file_holds_the_same(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"*": "4w", "audit": None, "x": 90000}))
    assert rules_from(str(path)) == {"*": 28 * DAY, "audit": None, "x": 90000.0}
    assert rules_from(True) == rules_from(None) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"*": "30m"}, r"'\*' must keep at least 1 day, got '30m' \(m is minutes"),
        ({"*": "0d"}, "at least 1 day"),
        ({"*": 3600}, "at least 1 day"),
        ({"*": "30 days"}, r"'\*': its span is '30d'"),
        ({"*": True}, "its span"),
        ({"": "30d"}, "rule ''"),
        ({"logs:": "30d"}, "TABLE:LEVEL"),
        ({":debug": "30d"}, "TABLE:LEVEL"),
        (["30d"], "must be a mapping"),
        ("/nowhere/rules.json", "cannot be read as JSON"),
    ],
)
def test_what_is_wrong_is_named(given, message):
    with pytest.raises(ConfigError, match=message):
        rules_from(given)


def test_a_rule_for_a_table_that_is_not_there_is_named():
    assert unknown_tables(rules_from({"jobs:DEBUG": "3d", "logs:DEBUG": "3d", "other": "3d"}), NAMES) == ["jobs:DEBUG"]


@pytest.mark.parametrize("span", ["90d", "1d", "36h", "90000s", "7w", None])
def test_what_a_type_declares_is_read_from_its_tables_comment(span):
    @logtype(table="retention_of_a_test", retention=span)
    class Kept:
        x: int

    ddl = Kept.__logtype__.ddl()
    comment = ddl.split("COMMENT ON TABLE")[1].split(" IS ")[1].split(";")[0].strip("'")
    assert declared_in(comment) == (True, Kept.__logtype__.retention)
    from logsluice import types

    del types.known["retention_of_a_test"]


def test_other_comments_are_no_typed_logs():
    assert declared_in(None) == (False, None)
    assert declared_in("Orders, kept 3 days") == (False, None)


@pytest.mark.parametrize("text", ["1d", "7d", "30d", "36h", "8w", "forever"])
def test_spans_are_shown_as_they_are_written(text):
    assert shown(rules_from({"*": text})["*"]) == text
