"""Dead letters without a server: their names, what is one line of COPY text, what an edit changes, wrong usage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsluice import deadletters
from logsluice.cli import dead, main
from logsluice.deadletters import DeadLetter, Id, is_line
from logsluice.encoding import Marks, clean, copy_row
from logsluice.errors import ConfigError, LogsluiceError
from support.strategies import ANY_TEXT

COLUMNS = ("id", "note", "a=b")


def letter(row=b"17\tnote\t\\N\n", **changes):
    given = {
        "at": "2026-11-22T09:01:02.000000Z", "id": Id(5, 70), "seq": 1, "target": '"public"."orders"', "columns": COLUMNS,
        "sqlstate": "23503", "error": "no such user [23503]", "tries": 0, "due": None, "stuck": None,
        "replayed_at": None, "damaged": False, "row": row,
    }  # fmt: skip
    return DeadLetter(**{**given, **changes})


# Names


@pytest.mark.parametrize("text", ["5:70", "0:0", f"{2**63 - 1}:{2**63 - 1}"])
def test_a_name_is_what_it_is_written_as(text):
    assert str(Id.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "5", "5:", ":7", "5:7:9", "-5:7", "5:7 ", "5: 7", "٣:٤", f"{2**63}:1", f"1:{2**63}", "1" * 20 + ":1", "a:b"],
)
def test_what_names_nothing_says_how_to_write_it(text):
    with pytest.raises(ConfigError, match="write stream:position"):
        Id.parse(text)


def test_the_state_of_each():
    assert letter().state == "waiting"
    assert letter(stuck="2026-11-22T09:09:02Z").state == "stuck"
    assert letter(damaged=True).state == "damaged"
    assert letter(damaged=True, stuck="x", replayed_at="2026-11-22T09:09:02Z").state == "replayed"


def test_a_repr_shows_no_row():
    assert "note" not in repr(letter(columns=("id", "x", "y")))


# Lines


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"17\tnote",  # torn
        b"17\tno\nte\t1\n",  # two rows
        b"17\tnote\t1\n18\tnote\t1\n",
        b"17\tnote\t1\\\n",  # the next row would be its end
        b"17\tnote\t1\\\\\\\n",
        b"\\.\n",  # the end of the COPY
        b"17\tno\\.te\t1\n",
        b"17\tno\\\\\\.te\t1\n",
        b"17\tnote\t1\r\n",
        b"17\tno\rte\t1\n",
        b"17\tno\0te\t1\n",
    ],
)
def test_rows_that_copy_would_not_read_as_one(row):
    assert not is_line(row)
    assert letter(row).texts() is None


@pytest.mark.parametrize(
    "row", [b"17\t\\\\.\t1\n", b"17\tnote\\\\\t1\\\\\n", b"\n", b"17\t.\\n.\t\\N\n", b"\xff\xfe\t1\t2\n"]
)
def test_rows_that_it_would(row):
    assert is_line(row)


@given(st.lists(st.one_of(st.none(), ANY_TEXT), min_size=1, max_size=5))
def test_every_frame_is_a_line_and_is_read_back(texts):
    cleaned = [None if text is None else clean(text, "", Marks()) for text in texts]
    row = copy_row(cleaned)
    assert is_line(row)
    names = tuple(map(str, range(len(texts))))
    assert letter(row, columns=names).texts() == dict(zip(names, cleaned, strict=True))


def test_escapes_that_others_write_are_read_as_copy_reads_them():
    row = rb"\101\x41\q\b\f\v" + b"\t" + rb"\\N" + b"\t" + rb"\xff" + b"\n"
    assert letter(row).texts() == {"id": "AAq\b\f\v", "note": r"\N", "a=b": r"\xff"}


def test_a_row_without_its_columns_has_no_texts():
    assert letter(b"17\tnote\n").texts() is None
    assert letter(columns=None).texts() is None


# Editing


@given(ANY_TEXT)
def test_an_edit_changes_one_column_and_no_byte_of_the_others(text):
    row = b"\xff\\q17\told\t\\N\n"  # bytes that we would not write so
    mended = deadletters._mended(letter(row), {"note": text})
    assert is_line(mended)
    assert (mended[:5], mended[-4:]) == (row[:5], row[-4:])
    assert letter(mended).texts()["note"] == clean(text, "", Marks())


def test_an_edit_can_say_null():
    assert deadletters._mended(letter(), {"note": None, "a=b": ""}) == b"17\t\\N\t\n"


def test_an_unknown_column_names_the_near_one():
    with pytest.raises(LogsluiceError, match=r"5:70 has no column 'notes'; did you mean 'note'\?"):
        deadletters._mended(letter(), {"notes": "x"})
    with pytest.raises(LogsluiceError, match="it has id, note, a=b"):
        deadletters._mended(letter(), {"zzz": "x"})


@pytest.mark.parametrize("changes", [{"row": b"17\tnote\n"}, {"columns": None}, {"row": b"1\t2\t3"}])
def test_what_is_no_line_with_its_columns_is_not_edited(changes):
    with pytest.raises(LogsluiceError, match="write it anew"):
        deadletters._mended(letter(**changes), {"note": "x"})


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("note=x", ("note", "x")),
        ("note=x=y", ("note", "x=y")),
        ("note=", ("note", "")),
        (r"note=\N", ("note", None)),
        ("a=b=c", ("a=b", "c")),  # the column's name holds a =
        ("other=1=2", ("other", "1=2")),
    ],
)
def test_column_and_value(text, pair):
    assert dead._value(text, COLUMNS) == pair


# Wrong usage: status 2, before anything connects


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "COMMAND"),
        (["show"], "ID"),
        (["show", "17"], "'17' names no dead letter: write stream:position"),
        (["replay", "1:2", "--due"], "give IDs or --due"),
        (["replay", "--even-damaged"], "--even-damaged goes with ID"),
        (["edit", "1:2"], "COLUMN=VALUE"),
        (["edit", "1:2", "note"], "'note' has no ="),
        (["drop", "1:2", "--older-than", "30d"], "not both"),
        (["drop", "--older-than", "30"], "'30' is no duration: write 90m, 12h, 30d or 4w"),
        (["drop", "--older-than", "30m", "--yes"], "at least 1d (m is minutes"),
        (["drop", "--older-than", "23h"], "at least 1d"),
        (["list", "--limit", "0"], "from 1 to 1,000,000"),
        (["list", "--limit", "x"], "from 1 to 1,000,000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_says_what_to_write(argv, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["dead", *argv])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
