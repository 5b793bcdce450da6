"""When a file is rotated, what it is called, what is kept: rotation.py, with a clock of the test's own."""

from __future__ import annotations

import gzip
import os
import stat
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from logsluice import rotation as module
from logsluice.config import FileSettings, settings_from
from logsluice.diagnostics import Diagnostics
from logsluice.errors import ConfigError
from logsluice.rotation import PART, Rotation

HOUR, DAY = 3600, 86_400


@pytest.fixture
def zone(monkeypatch):
    """Set the local time zone of the process."""

    def use(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield use
    monkeypatch.undo()
    time.tzset()


class Place:
    """A file and its rotation; `at` is the clock."""

    def __init__(self, folder, **options):
        self.path = Path(folder) / "app.log"
        self.settings = settings_from({"filename": str(self.path), **options}, FileSettings)
        self.at = 0.0
        self.deadline = None
        self.rotation = Rotation(self.settings, Diagnostics("file"), lambda: self.deadline, lambda: self.at)

    def write(self, at, text="x" * 99 + "\n"):
        """As the sink does: rotate if it is due, and write; whether it was rotated."""
        self.at = at
        due = self.rotation.due(self.path, len(text))
        if due:
            self.rotation.rotate(self.path)
        with self.path.open("a") as file:
            file.write(text)
        os.utime(self.path, (at, at))
        self.rotation.tidy(self.path)
        return due

    @property
    def rotated(self):
        return [file.name.removeprefix("app.log.") for file in self.rotation.rotated(self.path)]


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def local(text):
    return datetime.fromisoformat(text).timestamp()


# --- when ------------------------------------------------------------------------------------------------------------


def test_neither_size_nor_time_rotates_unasked(tmp_path):
    place = Place(tmp_path)
    assert not any(place.write(at) for at in (0, DAY, 400 * DAY))
    assert place.rotated == []


def test_by_size_before_it_is_larger(tmp_path):
    place = Place(tmp_path, max_bytes=1024)
    assert [place.write(n) for n in range(25)] == [n in {10, 20} for n in range(25)]
    assert place.path.stat().st_size == 500


def test_a_line_longer_than_the_limit_has_a_file_of_its_own(tmp_path):
    place = Place(tmp_path, max_bytes=1024)
    long = "x" * 5000 + "\n"
    assert [place.write(1), place.write(2, long), place.write(3)] == [False, True, True]
    assert [file.stat().st_size for file in place.rotation.rotated(place.path)] == [100, 5001]


@pytest.mark.parametrize(
    ("when", "same", "other"),
    [
        ("hour", ("2026-11-27T09:00:00", "2026-11-27T09:59:59"), "2026-11-27T10:00:00"),
        ("hour", ("2026-11-27T23:10:00", "2026-11-27T23:59:59"), "2026-11-28T00:00:00"),
        ("midnight", ("2026-11-27T00:00:00", "2026-11-27T23:59:59"), "2026-11-28T00:00:00"),
        ("midnight", ("2025-12-31T10:00:00", "2025-12-31T23:59:59"), "2026-12-31T10:00:00"),
        ("week", ("2026-11-23T00:00:00", "2026-11-29T23:59:59"), "2026-11-30T00:00:00"),
        # New Year, in the middle of a week: 2025 had 365 days, 2024 had 366.
        ("week", ("2025-12-29T00:00:00", "2026-01-04T23:59:59"), "2026-01-05T00:00:00"),
        ("week", ("2024-12-30T00:00:00", "2025-01-05T23:59:59"), "2025-01-06T00:00:00"),
        ("week", ("2028-12-31T00:00:00", "2028-12-31T23:59:59"), "2029-01-01T00:00:00"),
        ("month", ("2026-11-01T00:00:00", "2026-11-30T23:59:59"), "2026-12-01T00:00:00"),
        ("month", ("2026-12-01T00:00:00", "2026-12-31T23:59:59"), "2027-01-01T00:00:00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_by_time(tmp_path, zone, when, same, other, name):
    zone(name)
    for moment, is_utc in ((utc, True), (local, False)):
        folder = tmp_path / str(is_utc)
        folder.mkdir()
        place = Place(folder, when=when, utc=is_utc)
        assert [place.write(moment(at)) for at in (*same, other)] == [False, False, True]
        assert place.rotated == [same[1].replace("T", "_").replace(":", "-")]


def test_every_week_of_forty_years_begins_on_a_monday(tmp_path):
    place = Place(tmp_path, when="week", utc=True)
    period = place.rotation._period
    at = utc("2000-01-01T12:00:00")
    for _ in range(40 * 366):
        following = at + DAY
        monday = datetime.fromtimestamp(following, timezone.utc).weekday() == 0
        assert (period(at) != period(following)) == monday, datetime.fromtimestamp(following, timezone.utc)
        at = following


def test_summer_time_begins_and_ends(tmp_path, zone):
    """A day of 23 hours and one of 25 are one day each; the hour that comes twice is two hours."""
    zone("Europe/Berlin")
    place = Place(tmp_path, when="midnight", backup_count=100)
    spring = local("2026-03-29T00:30:00")
    assert [place.write(spring + n * HOUR) for n in range(24)] == [False] * 23 + [True]
    autumn = local("2026-10-25T00:30:00")
    assert place.write(autumn)
    assert [place.write(autumn + n * HOUR) for n in range(1, 26)] == [False] * 24 + [True]
    (tmp_path / "hours").mkdir()
    hours = Place(tmp_path / "hours", when="hour", backup_count=100)
    assert [hours.write(autumn + n * HOUR) for n in range(6)] == [False] + [True] * 5
    # The name comes twice, and the order is that of time all the same.
    assert hours.rotated == [
        "2026-10-25_00-30-00", "2026-10-25_01-30-00", "2026-10-25_02-30-00", "2026-10-25_02-30-00.1",
        "2026-10-25_03-30-00",
    ]  # fmt: skip
    times = [file.stat().st_mtime for file in hours.rotation.rotated(hours.path)]
    assert times == [autumn + n * HOUR for n in range(5)]


def test_the_oldest_goes_also_where_the_names_go_back(tmp_path, zone):
    zone("Europe/Berlin")
    place = Place(tmp_path, max_bytes=1024, backup_count=1)
    before = local("2026-10-25T02:50:00")  # then the clock is put back to 02:00
    after = before + 20 * 60  # 02:10
    long = "x" * 1000 + "\n"
    assert [place.write(before, long), place.write(after, long), place.write(after + 5, long)] == [False, True, True]
    assert place.rotated == ["2026-10-25_02-10-00"]


def test_a_clock_that_was_put_back_rotates_once(tmp_path):
    place = Place(tmp_path, when="midnight", utc=True)
    noon = utc("2026-11-27T12:00:00")
    assert [place.write(noon), place.write(noon - 3 * DAY), place.write(noon - 3 * DAY + 1)] == [False, True, False]


def test_a_restart_forgets_nothing(tmp_path):
    """The state is the file's own: another process the next day rotates, another one the same day does not."""
    noon = utc("2026-11-27T12:00:00")
    assert not Place(tmp_path, when="midnight", utc=True).write(noon)
    assert not Place(tmp_path, when="midnight", utc=True).write(noon + HOUR)
    assert Place(tmp_path, when="midnight", utc=True).write(noon + DAY)


@pytest.mark.parametrize("rotate_empty", [False, True])
def test_an_empty_file(tmp_path, rotate_empty):
    place = Place(tmp_path, when="midnight", utc=True, rotate_empty=rotate_empty)
    noon = utc("2026-11-27T12:00:00")
    place.path.touch()
    os.utime(place.path, (noon, noon))
    assert place.write(noon + DAY) is rotate_empty
    assert place.rotated == (["2026-11-27_12-00-00"] if rotate_empty else [])


def test_a_file_that_is_not_there_is_not_due(tmp_path):
    place = Place(tmp_path, when="hour", max_bytes=1024, rotate_empty=True)
    assert not place.rotation.due(place.path, 5000)


# --- names, counts, bytes --------------------------------------------------------------------------------------------


def test_names_of_one_second(tmp_path):
    place = Place(tmp_path, max_bytes=1024, utc=True, backup_count=100)
    at = utc("2026-11-27T12:00:00")
    for n in range(6):
        place.write(at + n / 1000, "x" * 1000 + "\n")
    assert place.rotated == [f"2026-11-27_12-00-00{n}" for n in ("", ".1", ".2", ".3", ".4")]


def test_a_name_is_not_given_again_in_its_second(tmp_path):
    """Another process that was about to compress or to delete what had it before took the new lines instead."""
    place = Place(tmp_path, max_bytes=1024, backup_count=1, utc=True)
    for n in range(4):
        place.write(0, f"{n:01000}\n")
    assert place.rotated == ["1970-01-01_00-00-00.2"]
    assert place.rotation.rotated(place.path)[0].read_text() == f"{2:01000}\n"


def test_a_name_that_is_taken_by_a_compressed_file(tmp_path):
    place = Place(tmp_path, max_bytes=1024, utc=True, compress=True)
    at = utc("2026-11-27T12:00:00")
    for n in range(4):
        place.write(at, f"{n}" * 1000 + "\n")
    assert place.rotated == ["2026-11-27_12-00-00.gz", "2026-11-27_12-00-00.1.gz", "2026-11-27_12-00-00.2.gz"]
    texts = [gzip.decompress(file.read_bytes())[:1] for file in place.rotation.rotated(place.path)]
    assert texts == [b"0", b"1", b"2"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_backup_count(tmp_path, count):
    place = Place(tmp_path, max_bytes=1024, utc=True, backup_count=count)
    at = utc("2026-11-27T12:00:00")
    for n in range(8):
        place.write(at + n, "x" * 1000 + "\n")
    assert place.rotated == [f"2026-11-27_12-00-0{n}" for n in range(7 - count, 7)]


def test_files_of_others_are_left_alone(tmp_path):
    """A name that only begins like ours, another log's, a person's copy: neither counted nor deleted."""
    names = ["app.log.bak", "app.log.1", "app.log.2026-11-27", "app.logs.2026-11-27_12-00-00", "app.log.dead",
             "app.log.2026-11-27_12-00-00.txt", "error.log.2026-11-27_12-00-00"]  # fmt: skip
    for name in names:
        (tmp_path / name).write_text("theirs")
    place = Place(tmp_path, max_bytes=1024, backup_count=0, compress=True, total_bytes=1024)
    for n in range(5):
        place.write(n, "x" * 1000 + "\n")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*names, "app.log"])
    assert all((tmp_path / name).read_text() == "theirs" for name in names)


def test_total_bytes(tmp_path):
    place = Place(tmp_path, max_bytes=1024, utc=True, total_bytes=3500)
    at = utc("2026-11-27T12:00:00")
    for n in range(9):
        place.write(at + n, "x" * 1000 + "\n")
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3500
    assert place.rotated == ["2026-11-27_12-00-06", "2026-11-27_12-00-07"]


def test_total_bytes_counts_what_is_compressed_as_it_is(tmp_path):
    place = Place(tmp_path, max_bytes=1024, utc=True, total_bytes=3500, compress=True)
    for n in range(20):
        place.write(n, "x" * 1000 + "\n")
    assert len(place.rotated) == 19


# --- compressing -----------------------------------------------------------------------------------------------------


def test_compressed_as_it_was(tmp_path):
    place = Place(tmp_path, max_bytes=1024, utc=True, compress=True)
    at = utc("2026-11-27T12:00:00")
    place.write(at, "x" * 1000 + "\n")
    place.path.chmod(0o604)
    os.chown(place.path, 65534, 65534)
    place.write(at + 1)
    (file,) = place.rotation.rotated(place.path)
    there = file.stat()
    assert gzip.decompress(file.read_bytes()) == b"x" * 1000 + b"\n"
    assert (stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid, there.st_mtime) == (0o604, 65534, 65534, at)
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(PART)] == []


def test_delay_compress_leaves_the_newest(tmp_path):
    place = Place(tmp_path, max_bytes=1024, utc=True, compress=True, delay_compress=True)
    at = utc("2026-11-27T12:00:00")
    for n in range(4):
        place.write(at + n, "x" * 1000 + "\n")
    assert place.rotated == ["2026-11-27_12-00-00.gz", "2026-11-27_12-00-01.gz", "2026-11-27_12-00-02"]


def test_what_a_dead_process_left_is_done(tmp_path):
    """It died while it compressed: half a file, and the whole one; and another half, whose whole one is gone."""
    place = Place(tmp_path, max_bytes=1024, utc=True, compress=True)
    old = place.path.with_name("app.log.2026-11-26_12-00-00")
    old.write_text("y\n")
    old.with_name(old.name + PART).write_bytes(b"half")
    place.path.with_name(f"app.log.2026-11-25_12-00-00{PART}").write_bytes(b"half")
    place.write(utc("2026-11-27T12:00:00"))
    assert place.rotated == ["2026-11-26_12-00-00.gz"]
    assert gzip.decompress(old.with_name(old.name + ".gz").read_bytes()) == b"y\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_given_up_at_the_deadline_and_done_by_the_next(tmp_path, monkeypatch):
    place = Place(tmp_path, max_bytes=1024, utc=True, compress=True)
    flock, children = module.fcntl.flock, []

    def forked(file, how):
        children.append(os.dup(file.fileno()))  # as a child has it
        flock(file, how)

    place.deadline = 0.0  # of exit: over
    place.write(1, "x" * 1000 + "\n")
    with monkeypatch.context() as patched:
        patched.setattr(module.fcntl, "flock", forked)
        place.write(2)
    assert place.rotated == ["1970-01-01_00-00-01"]
    assert len(list(tmp_path.iterdir())) == 2
    following = Place(tmp_path, max_bytes=1024, utc=True, compress=True)
    following.write(3)
    assert following.rotated == ["1970-01-01_00-00-01.gz"]
    for child in children:
        os.close(child)


def test_a_file_that_another_process_compresses_is_left_to_it(tmp_path):
    import fcntl

    place = Place(tmp_path, max_bytes=1024, utc=True, compress=True)
    old = place.path.with_name("app.log.2026-11-26_12-00-00")
    old.write_text("y\n")
    with old.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        place.write(1)
        assert place.rotated == ["2026-11-26_12-00-00"]
    place.write(2)
    assert place.rotated == ["2026-11-26_12-00-00.gz"]


def test_a_folder_that_cannot_be_looked_after_is_said(tmp_path, capfd):
    place = Place(tmp_path, max_bytes=1024, compress=True)
    (tmp_path / "app.log.2026-11-26_12-00-00").mkdir()
    place.write(1)
    assert "rotated files of" in capfd.readouterr().err


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "filename is missing"),
        ({"when": "noon"}, "when must be one of"),
        ({"when": 5}, "when must be one of"),
        ({"mode": "0400"}, "mode must be a file mode that its owner can write with"),
        ({"mode": "rw-r--r--"}, "mode must be a file mode"),
        ({"mode": True}, "mode must be a file mode"),
        ({"owner": "no-such-user"}, "owner must be 'user:group'"),
        ({"owner": ":"}, "owner must be"),
        ({"owner": 5}, "owner must be"),
        ({"owner": "a\0b"}, "owner must be"),
        ({"owner": ":\ud800"}, "owner must be"),
        ({"total_bytes": 5000}, "total_bytes needs rotation"),
        ({"delay_compress": True}, "delay_compress says nothing without compress"),
        ({"connections": 2}, "connections says nothing for a file"),
        ({"max_bytes": 5}, "max_bytes must be a number of bytes of at least 1024"),
        ({"backup_count": -1}, "backup_count must be"),
        ({"names": "otl"}, "unknown preset 'otl'; did you mean 'otel'"),
        ({"file_name": "x"}, "did you mean 'filename'"),
    ],
)  # fmt: skip
def test_wrong_options(options, text):
    from logsluice.handlers import JsonFileHandler

    given = {} if text.startswith("filename is") else {"filename": "logs/app.log"}
    with pytest.raises(ConfigError, match=text):
        JsonFileHandler(**given, **options)


@pytest.mark.parametrize(("given", "meant"), [("D", "midnight"), ("H", "hour"), ("day", "midnight"), (None, None)])
def test_names_of_logging_own_handler(given, meant):
    assert settings_from({"filename": "x", "when": given}, FileSettings).when == meant
