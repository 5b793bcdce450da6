r"""
What docs/reference/compatibility.md promises of formats: files that 0.1.0 wrote are read, byte for byte.

A change that fails here needs a new number of the format, and a reader of the old one beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from logsluice import journal
from support.tables import DOCS

TEXT = (DOCS / "reference" / "compatibility.md").read_text(encoding="utf-8")
ROOT = Path(__file__).parents[2]

HEAD = (
    b'logsluice-journal 1 {"stream":7950,"segment":7,"size":640,"boot":"boot-1","sink":"postgres","home":"logsluice",'
    b'"target":{"host":"db","port":"5432","dbname":"app","schema":"logsluice","table":"logs"},'
    b'"columns":["ts","message","seq"],"mapped":false,'
    b'"who":{"service":"shop","environment":null,"version":null,"host":"web-1","pid":17}} 3ed426a8\n'
)
ROWS = b"2026-11-22 09:01:02.123456Z\torder 17 paid\t1042\n2026-11-22 09:01:02.123502Z\tline\\none\t1043\n"
SEAL = b"\\.\nlogsluice-sealed 1 end=430 crc=5c37b938 d0f8a3be\n"
HINT = b"logsluice-acknowledged 1 0000000000001f0e 00000007000001ae 6ae81ed2\n"
HEADER = journal.Header(
    stream=0x1F0E, segment=7, size=640, boot="boot-1", sink="postgres", home="logsluice",
    target={"host": "db", "port": "5432", "dbname": "app", "schema": "logsluice", "table": "logs"},
    columns=("ts", "message", "seq"), mapped=False,
    who={"service": "shop", "environment": None, "version": None, "host": "web-1", "pid": 17},
)  # fmt: skip


@pytest.mark.parametrize("seal", [b"", SEAL], ids=["killed", "sealed"])
def test_a_journal_file_of_format_1_is_read(seal):
    """As a killed process leaves it, and sealed; by a machine that was started again since, or not."""
    file = ((HEAD + ROWS).ljust(640, b"\0") + seal).ljust(journal.file_size(640), b"\0")
    for boot in ("boot-1", "boot-2"):
        image = journal.read_image(file, boot)
        assert image.header == HEADER
        assert b"".join(file[one.begin : one.end] for one in image.spans if not one.damaged) == ROWS


def test_the_hint_of_format_1_is_read():
    assert journal.read_acknowledged(HINT, 0x1F0E) == (7 << 32) + len(HEAD + ROWS)


def test_what_is_written_is_still_format_1():
    """An older version reads it, which shares the folder while programs are updated one by one."""
    assert HEADER.encode() == HEAD
    assert journal.trailer(HEAD + ROWS) == SEAL
    assert journal.acknowledged(0x1F0E, (7 << 32) + len(HEAD + ROWS)) == HINT
    assert f"format {journal.VERSION}." in TEXT


def test_the_tests_that_the_page_names_are_there():
    for name in re.findall(r"`(tests/[\w/.:]+)`", TEXT):
        path, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8") if function else (ROOT / path).is_file()


def test_the_versions_are_those_that_the_package_asks_for():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    least = re.search(r'requires-python = ">=([\d.]+)"', project)[1]
    assert f"| CPython | {least}," in TEXT
    driver = re.search(r"psycopg.binary.>=([0-9.]+)", project)[1]
    assert f"| {driver} and later |" in TEXT
