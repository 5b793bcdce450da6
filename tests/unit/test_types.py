"""`logtype`: what a class becomes, and what it says of instances and of classes that cannot be a table."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Mapping  # noqa: TC003 - annotations are read at run time
from dataclasses import dataclass
from datetime import date, timedelta  # noqa: TC003 - as above
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional

import pytest

from logsluice import types
from logsluice.errors import ConfigError
from logsluice.types import Sql, level_number, logtype, snake


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Types of this module alone: others' tables are theirs."""
    monkeypatch.setattr(types, "known", {})


def test_columns_of_annotations():
    @logtype(table="all_kinds")
    class AllKinds:
        text: str
        number: int
        share: float
        flag: bool
        day: date
        took: timedelta
        key: uuid.UUID
        price: Decimal
        raw: bytes
        items: list[int]
        pairs: Mapping[str, Any]
        choice: Literal["a", "b"]
        small: Annotated[int, Sql("smallint")]
        old: Optional[str] = None  # noqa: UP045 - the older way to write it
        small_or_none: Annotated[int, Sql("smallint")] | None = None
        address: Annotated[str | None, Sql("inet")] = None

    columns = {one.name: (one.sql, one.null) for one in AllKinds.__logtype__.fields}
    assert columns == {
        "text": ("text", False), "number": ("bigint", False), "share": ("double precision", False),
        "flag": ("boolean", False), "day": ("date", False), "took": ("interval", False), "key": ("uuid", False),
        "price": ("numeric", False), "raw": ("bytea", False), "items": ("jsonb", False), "pairs": ("jsonb", False),
        "choice": ("text", False), "small": ("smallint", False), "old": ("text", True),
        "small_or_none": ("smallint", True), "address": ("inet", True),
    }  # fmt: skip
    assert [one.name for one in AllKinds.__logtype__.columns][:3] == ["ts", "stream", "seq"]


def test_a_plain_class_becomes_a_dataclass_and_a_dataclass_stays_what_it_is():
    @logtype
    class OrderPlaced:
        order: int

    @logtype(table="other")
    @dataclass(frozen=True)
    class Other:
        order: int

    assert (OrderPlaced.__logtype__.table, OrderPlaced(order=1).order, Other(2).order) == ("order_placed", 1, 2)
    with pytest.raises(TypeError, match="positional"):
        OrderPlaced(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Other(2).order = 3
    assert (snake("ApiRequest"), snake("HTTPCall2x")) == ("api_request", "http_call2x")


def test_the_line_that_people_read():
    @logtype(table="job")
    class Job:
        message: str | None = None
        job_id: str | None = None

    @logtype(table="spoken")
    class Spoken:
        name: str

        def __str__(self):
            return f"hello {self.name}"

    assert str(Job(job_id="7")) == "job job_id=7"
    assert str(Job(message="done", job_id="7")) == "done job_id=7"
    assert len(str(Job(message="x" * 10_000))) == types.LINE + 1
    assert str(Spoken(name="Ada")) == "hello Ada"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"number": True}, "is a bool, not a int"),
        ({"number": 2**63}, "is out of the range of bigint"),
        ({"number": "7"}, "is a str, not a int"),
        ({"key": "no uuid"}, "is 'no uuid', no uuid"),
        ({"level": "loud"}, "is 'loud', no level: a number or DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ({"level": 40_000}, "is out of the range of smallint"),
        ({"number": None}, "is missing"),
        ({"items": "abc"}, "is a str, not a list"),
    ],
)
def test_what_does_not_fit(given, why):
    @logtype(table="checked")
    class Checked:
        number: int = 1
        share: float = 1
        key: uuid.UUID | None = None
        items: list[int] | None = None
        level: int | str | None = None

    kind = Checked.__logtype__
    assert kind.problems(Checked(key=str(uuid.uuid4()), items=(1, 2), level="WARN", share=Decimal(1))) == {}
    assert kind.problems(Checked(**given)) == {next(iter(given)): why}


def test_looking_at_an_instance_never_raises():
    class Hostile:
        def __eq__(self, other):
            raise RuntimeError("no")

        __hash__ = None

    @logtype(table="hostile")
    class Chosen:
        choice: Literal["a"]

    assert Chosen.__logtype__.problems(Chosen(choice=Hostile())) == {"choice": "could not be looked at: RuntimeError"}


@pytest.mark.parametrize(
    ("options", "fields", "text"),
    [
        ({"table": "logs"}, {"a": int}, "is a table of logsluice itself"),
        ({"table": "No"}, {"a": int}, "small letters, digits and underscores"),
        ({}, {}, "has no fields"),
        ({}, {"stream": int}, "has a column 'stream' already"),
        ({}, {"thing": complex}, r"no column for thing: complex; say it: Annotated\[complex, Sql\('text'\)\]"),
        ({}, {"Thing": int}, "field 'Thing'"),
        ({"retention": "soon"}, {"a": int}, "retention is '30d'"),
        ({"indexes": ["b"]}, {"a": int}, "indexes: 'b' is no column of"),
        ({"indexes": ["a sideways"]}, {"a": int}, "'a sideways' is no column"),
    ],
)
def test_a_class_that_cannot_be_a_table_says_what_to_change(options, fields, text):
    kind = type("Kind", (), {"__annotations__": fields})
    with pytest.raises(ConfigError, match=text):
        logtype(**options)(kind)


def test_each_table_is_one_types_and_a_module_may_be_loaded_again():
    for _ in range(2):

        @logtype(table="twice")
        class Twice:
            a: int

    with pytest.raises(ConfigError, match=r"is that of .*Twice already; give this class another table="):

        @logtype(table="twice")
        class Another:
            a: int


def test_retention_in_seconds():
    def kept(given):
        types.known.clear()

        @logtype(retention=given)
        class Kept:
            a: int

        return Kept.__logtype__.retention

    assert [kept(given) for given in (None, 60, "90s", "5m", "6h", "30d", "2w")] == [
        None, 60.0, 90.0, 300.0, 21_600.0, 2_592_000.0, 1_209_600.0,
    ]  # fmt: skip


def test_levels_by_name_and_number():
    assert [level_number(one) for one in ("warn", "Error", "trace", 35, "loud", None, True)] == [
        30, 40, 5, 35, None, None, None,
    ]  # fmt: skip
    assert logging.getLevelName("WARN") == 30


def test_ddl_is_ascii_and_quotes_what_it_is_given():
    @logtype(table="wörter".replace("ö", "oe"))
    class Words:
        """It's größer."""

        a: int

    text = Words.__logtype__.ddl('a"b', "none", grant_to="c")
    assert text.isascii()
    assert 'CREATE TABLE IF NOT EXISTS "a""b"."woerter" (' in text
    assert "PARTITION BY" not in text
    assert "E'It''s gr\\\\xf6\\\\xdfer. (typed log, kept for ever)'" in text
    assert text.endswith('GRANT INSERT ON "a""b"."woerter" TO "c";\n')
