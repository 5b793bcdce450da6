"""docs/howto/file.md: its files configure and log, its commands run, what it says of options and lnav is so."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import subprocess
import sys

import pytest

from logsluice.config import FileSettings
from support.files import LIMIT, find, lines_of, logging_to
from support.howto import PAGES, Page, environment
from support.tables import options_shown, own_options

TEXT = (PAGES / "file.md").read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path):
    page = Page("file")
    page.lay_out(tmp_path)
    return page


def run(command, folder, **env):
    words = shlex.split(command)
    done = subprocess.run(
        [find(words[0]) if words[0] == "lnav" else words[0], *words[1:]], cwd=folder,
        env=environment(HOME=str(folder), TZ="UTC", **env), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_writes_what_the_page_shows(page, tmp_path):
    assert page.command("python shop.py")
    subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, check=True, timeout=LIMIT)
    lines = lines_of(tmp_path / "logs" / "combined.log")
    shown = json.loads(re.search(r"```text\n(\{.*\})\n```", TEXT)[1])
    assert list(lines[0]) == list(shown)
    same = ("level", "logger", "message", "func", "service", "thread", "seq", "amount", "token")
    assert {key: lines[0][key] for key in same} == {key: shown[key] for key in same}
    assert [line["message"] for line in lines_of(tmp_path / "logs" / "error.log")] == ["order 18 failed"]
    assert not list((tmp_path / "logs" / "journal").glob("*/*.seg"))


def test_the_configuration_for_stdout(page, tmp_path):
    program = (tmp_path / "shop.py").read_text().replace("logging.json", "stdout.json")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=LIMIT
    )
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert (first["Body"], first["deployment"], second["SeverityText"]) == ("order 17 paid", "blue", "ERROR")


def test_the_options_table_is_the_settings():
    """Every option of a file's own, with its default and its meaning, in the order of the code."""
    assert options_shown(TEXT) == own_options(FileSettings, mode="`0o640`")
    code = (PAGES.parents[1] / "src" / "logsluice" / "config.py").read_text(encoding="utf-8")
    for name, meaning in re.findall(r"^\| `(\w+)` \| .+? \| (.+) \|$", TEXT, re.MULTILINE):
        assert re.search(rf"^    {name}: .*  # {re.escape(meaning)}$", code, re.MULTILINE), (name, meaning)


def test_the_preset_is_printed(page, tmp_path):
    command = page.command("logsluice preset logrotate")
    assert "rotate 14" in run(command, tmp_path)


# --- lnav ------------------------------------------------------------------------------------------------------------


def understood(folder, log):
    """(time, level, format) of each message that lnav sees in a file."""
    query = ";select log_time, log_level, log_format from all_logs"
    out = run(shlex.join(["lnav", "-n", "-c", query, "-c", ":write-csv-to -", str(log)]), folder)
    rows = list(csv.DictReader(io.StringIO(out[out.find("log_time,") :])))
    return [(row["log_time"][:19], row["log_level"], row["log_format"]) for row in rows]


def format_of(folder, log):
    """The format that lnav recognised in a file, "<NULL>" for none."""
    out = run(
        shlex.join(["lnav", "-n", "-c", ";select format from lnav_file", "-c", ":write-csv-to -", str(log)]), folder
    )
    return out.splitlines()[1]


def test_lnav_without_configuration_shows_the_lines(page, tmp_path):
    """And no more: 0.11 knows no format of theirs."""
    subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, check=True, timeout=LIMIT)
    log = tmp_path / "logs" / "combined.log"
    assert run(page.command("lnav -n"), tmp_path) == log.read_text(encoding="utf-8")
    assert format_of(tmp_path, log) == "<NULL>"


def test_lnav_with_the_format_of_the_page_knows_time_and_level(page, tmp_path):
    subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, check=True, timeout=LIMIT)
    run(page.command("lnav -i"), tmp_path)
    log = tmp_path / "logs" / "combined.log"
    times = [line["ts"][:19].replace("T", " ") for line in lines_of(log)]
    assert understood(tmp_path, log) == [(times[0], "info", "logsluice_log"), (times[1], "error", "logsluice_log")]
    assert "order 17 paid" in run(page.command("lnav -n"), tmp_path)


def test_lnav_reads_a_plain_formatters_lines_at_once(tmp_path):
    (shown,) = re.findall(r'`"(%\(asctime\)s [^"]+)"`', TEXT)
    path = tmp_path / "plain.log"
    with logging_to(path, formatters={"plain": {"format": shown}}, formatter="plain") as log:
        for level in (10, 20, 30, 40, 50):
            log(1, level=level)
        try:
            1 / 0
        except ZeroDivisionError:
            log.logger.exception("bad")
    found = understood(tmp_path, path)
    assert [level for _, level, _ in found] == ["debug", "info", "warning", "error", "critical", "error"]
    assert {one for _, _, one in found} == {"generic_log"}
