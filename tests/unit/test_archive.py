"""Archives without a database: rows and their texts, settings, names, manifests."""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logsluice import archive, retention
from logsluice.archive import ArchiveError, Settings, manifest, places, rows
from logsluice.archive.files import format_module, verify
from logsluice.cli import progress
from logsluice.errors import ConfigError

COLUMNS = [rows.Column(name, name) for name in ("text", *rows.KINDS)]
CLEAN = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
# As PostgreSQL writes them, and what it would never write: whatever the text is, it comes back.
MEANT = {
    "text": CLEAN,
    "boolean": st.sampled_from("tf"),
    "smallint": st.integers(-(2**15), 2**15 - 1).map(str),
    "integer": st.integers(-(2**31), 2**31 - 1).map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "real": st.sampled_from(["0.1", "1e+10", "NaN", "-Infinity", "-0", "3"]),
    "double precision": st.floats().map(repr) | st.sampled_from(["NaN", "Infinity", "-0", "1e-05", "1e+15", "100000"]),
    "timestamp with time zone": st.datetimes().map(lambda one: one.isoformat(" ") + "+00") | CLEAN,
    "bytea": st.binary(max_size=9).map(lambda one: "\\x" + one.hex()),
}
ROWS = st.lists(st.tuples(*(st.none() | MEANT[column.name] for column in COLUMNS)).map(list), max_size=5)


@pytest.mark.parametrize("form", archive.FORMATS)
@settings(max_examples=25)
@given(batch=ROWS)
def test_texts_come_back(form, batch):
    module, file = format_module(form), io.BytesIO()
    writer = module.Writer(file, COLUMNS)
    if batch:
        writer.write(batch)
    writer.close()
    file.seek(0)
    assert list(module.read(file, COLUMNS)) == batch


@given(number=st.integers(rows.micros("0001-01-01 00:00:00+00"), rows.micros("9999-12-31 23:59:59.999999+00")))
def test_moments_come_back(number):
    assert rows.micros(rows.moment(number)) == number


@pytest.mark.parametrize(
    "text",
    [
        "infinity",
        "-infinity",
        "0044-03-15 12:00:00+00 BC",
        "294276-01-01 00:00:00+00",
        "2026-11-27 10:00:00+02",
        "",
        "x",
    ],
)
def test_moments_that_are_none(text):
    assert rows.micros(text) is None


def test_a_checksum_is_of_all_rows_in_any_order():
    lines = [b"1\ta\n", b"2\tb\n", b"2\tb\n"]

    def checksum(some):
        found = rows.Sum()
        for line in some:
            found.add(line)
        return found.rows, found.checksum

    assert len({checksum(one) for one in itertools.permutations(lines)}) == 1
    assert len({checksum(one) for one in (lines, lines[:2], lines[1:], [b"1\tb\n", b"2\ta\n", b"2\tb\n"], [])}) == 5


def test_a_column_of_the_name_that_parquet_adds():
    columns = [rows.Column("_exact", "double precision")]
    file = io.BytesIO()
    writer = format_module("parquet").Writer(file, columns)
    writer.write([["NaN"], ["1"]])
    writer.close()
    assert list(format_module("parquet").read(file, columns)) == [["NaN"], ["1"]]


def test_settings():
    assert Settings.of(None) is None
    assert Settings.of("s3://bucket/logs") == Settings("s3://bucket/logs", "parquet")
    assert Settings.of({"target": "a", "format": "jsonl"}) == Settings("a", "jsonl")
    assert retention.archive_in({"archive": "a", "*": "30d"}) == "a"
    assert retention.rules_from({"archive": "a", "*": "30d"}) == {"*": 30 * 86_400.0}
    assert retention.archive_in(True) is retention.archive_in({"*": "30d"}) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [("", "no directory"), (7, "is a directory or URL"), ({"format": "jsonl"}, "is a directory or URL"),
     ({"target": "a", "x": 1}, "is a directory or URL"), ({"target": "a", "format": "csv"}, "one of parquet, jsonl")],
)  # fmt: skip
def test_settings_that_are_wrong(given, message):
    with pytest.raises(ConfigError, match=message):
        Settings.of(given)


def test_a_handler_says_so_when_it_is_made():
    from logsluice import PostgresHandler

    with pytest.raises(ConfigError, match="one of parquet, jsonl"):
        PostgresHandler(dsn="", maintenance={"*": "30d", "archive": {"target": "a", "format": "csv"}})


@pytest.mark.parametrize("target", ["s3://bucket/logs", "~/logs", "/var/logs", "logs"])
def test_a_handlers_archive_stays_where_it_is_when_the_program_goes_elsewhere(tmp_path, monkeypatch, target):
    """A daemon that went to / after it had configured its logging wrote its archives there."""
    from logsluice import PostgresHandler

    monkeypatch.chdir(tmp_path)
    handler = PostgresHandler(dsn="", maintenance={"archive": {"target": target, "format": "jsonl"}})
    monkeypatch.chdir("/")
    wanted = str(tmp_path / "logs") if target == "logs" else target
    assert handler._archive == Settings(wanted, "jsonl")


@settings(max_examples=40)
@given(name=CLEAN)
def test_names_stay_in_their_folder(name):
    part = places.encoded(name)
    assert set(part) <= set("%ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def test_a_url_is_shown_without_its_password():
    assert places.shown("ftp://user:secret@host/logs") == "ftp://host/logs"


WHOLE = {
    "schema": "logsluice", "table": "logs", "partition": "logs_1", "starts": None, "ends": None, "clock": "ts", "rows": 1,
    "checksum": "0", "first": None, "last": None, "columns": [{"name": "ts", "type": "text"}], "format": "csv",
    "file": "x.csv", "bytes": 1, "sha256": "", "logsluice": "0", "format_version": 1,
}  # fmt: skip


def test_what_a_manifest_says_is_not_believed(tmp_path):
    (tmp_path / "x.manifest.json").write_text(json.dumps(WHOLE))
    (tmp_path / "x.csv").write_text("x")
    place = places.place_of(str(tmp_path))
    one = manifest.load(place, "x.manifest.json")
    with pytest.raises(ArchiveError, match="damaged"):
        manifest.check(place, one)
    with pytest.raises(ArchiveError, match="KeyError"):
        verify(place, one)


def test_a_manifest_of_another_format(tmp_path):
    place = places.place_of(f"file://{tmp_path}")
    for text, message in (("{}", "KeyError"), ("no", "JSONDecodeError"), ('{"format_version": 2}', "later one")):
        (tmp_path / "x.manifest.json").write_text(text)
        with pytest.raises(ArchiveError, match=message):
            manifest.load(place, "x.manifest.json")
    for changes, message in (({"format": 1, "first": 7}, "TypeError"), ({"clock": "at"}, "no column 'at'")):
        (tmp_path / "x.manifest.json").write_text(json.dumps({**WHOLE, **changes}))
        with pytest.raises(ArchiveError, match=message):
            manifest.load(place, "x.manifest.json")
    values = {"format_version": 1, "file": "../x.parquet"}
    Path(tmp_path / "x.manifest.json").write_text(json.dumps(values))
    with pytest.raises(ArchiveError, match="not beside it"):
        manifest.load(place, "x.manifest.json")
    with pytest.raises(ArchiveError, match="ends in"):
        manifest.manifest_path("x.csv")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("rich", [True, False])
def test_a_bar_is_for_terminals_alone(monkeypatch, rich):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)  # as if it were not installed
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.shown("lo[gs]\x1b[2J", 10) as told:
            told(7)
            told(3)
        assert ("lo[gs]" in stream.getvalue()) == stream.isatty()
        assert "\x1b[2J" not in stream.getvalue()
    assert stream.getvalue() == ""
