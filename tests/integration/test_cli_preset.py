"""`logsluice preset logrotate`: Debian's logrotate takes what is printed, and a living handler loses nothing by it."""

from __future__ import annotations

import os
import re
import stat
from datetime import datetime

import pytest

from logsluice.cli import main
from support.files import family, logging_to, logrotate


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "app.log"


@pytest.fixture
def printed(capsys, tmp_path):
    """Print the preset and put it where `logrotate` of support.files reads it."""

    def run(*argv):
        assert main(["preset", "logrotate", *map(str, argv)]) == 0
        text = capsys.readouterr().out
        (tmp_path / "logrotate.conf").write_text(text, encoding="utf-8")
        return text

    return run


def refused(capsys, *argv):
    assert main(["preset", "logrotate", *argv]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "directives"),
    [
        ((), ["daily", "rotate 30", "notifempty", "nocreate", "nocompress"]),
        (("--when", "hour"), ["hourly"]),
        (("--when", "week"), ["weekly 1"]),
        (("--when", "month", "--backup-count", "12"), ["monthly", "rotate 12"]),
        (("--max-bytes", "10000000"), ["size 10000000"]),
        (("--max-bytes", "10000000", "--when", "midnight"), ["daily", "maxsize 10000000"]),
        (("--compress",), ["compress", "delaycompress"]),
        (("--rotate-empty",), ["ifempty"]),
        (("--total-bytes", "5000000", "--when", "midnight", "--utc"), ["daily"]),
    ],
)  # fmt: skip
def test_logrotate_takes_what_is_printed(path, tmp_path, printed, options, directives):
    text = printed("--filename", path, *options)
    assert {*directives, "missingok", "dateext"} <= {line.strip() for line in text.splitlines()}
    assert ("size 10000000" not in text.split("maxsize")[0]) or "daily" not in text
    said = logrotate(tmp_path, "--debug")
    assert "error" not in said
    assert str(path) in said


def test_what_logrotate_does_not_have_is_said(path, printed):
    text = printed("--filename", path, "--total-bytes", 5000, "--when", "hour", "--utc")
    assert "# total_bytes (5000): logrotate has no such limit" in text
    assert "# utc: logrotate's days are those of local time." in text
    assert "# logrotate must be run every hour" in text


@pytest.mark.parametrize("options", [(), ("--compress",)])
def test_a_living_handler_goes_on_in_the_new_file(path, tmp_path, printed, options):
    """By rename, without a signal: nothing lost, nothing twice; the names are those that the handler itself gives."""
    printed("--filename", path, *options)
    with logging_to(path, owner="nobody:daemon", mode="0604") as log:
        log(100)
        assert log.flush()
        logrotate(tmp_path, "--force")
        log(100)
        assert log.flush()
        assert path.stat().st_size
    log.check()
    (rotated,) = [file for file in family(path) if file != path]
    stamp = re.fullmatch(r"app\.log\.(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)", rotated.name)
    assert abs(datetime.strptime(stamp[1], "%Y-%m-%d_%H-%M-%S").timestamp() - path.stat().st_mtime) < 3600
    assert (path.owner(), path.group(), stat.S_IMODE(path.stat().st_mode)) == ("nobody", "daemon", 0o604)


def test_count_and_compression(path, tmp_path, printed):
    """The oldest go, the newest is not compressed yet."""
    printed("--filename", path, "--compress", "--backup-count", 2)
    with logging_to(path) as log:
        for n in range(4):
            log(10)
            assert log.flush()
            logrotate(tmp_path, "--force")
            for file in family(path):  # its names have seconds: the next one comes an hour later
                if file != path and file.suffix != ".gz":
                    file.rename(file.with_name(f"app.log.2026-11-2{n}_00-00-00"))
    files = family(path)
    assert sorted(file.name for file in files) == [
        "app.log.2026-11-22_00-00-00.gz",
        "app.log.2026-11-23_00-00-00",
    ]


def test_what_logrotate_cannot_say_is_refused(capsys):
    assert "as a pattern" in refused(capsys, "--filename", "/var/log/*.log")
    assert "when must be one of" in refused(capsys, "--filename", "/var/log/a.log", "--when", "noon")
    with pytest.raises(SystemExit):
        main(["preset", "logrotate"])
    with pytest.raises(SystemExit):
        main(["preset"])


def test_a_relative_name_is_made_absolute(printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f'"{os.path.realpath(tmp_path)}/app.log" {{' in printed("--filename", "app.log").replace(
        str(tmp_path), os.path.realpath(tmp_path)
    )
