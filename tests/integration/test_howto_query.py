"""docs/howto/query.md: its programs and commands run, its tables say what is found."""

from __future__ import annotations

import re
import shlex
import subprocess
from datetime import datetime, timezone

import pytest

from logsluice import grammar
from logsluice.cli import output
from logsluice.query import Query
from support.howto import PAGES, Page, environment

TEXT = (PAGES / "query.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `([^`]+)` \| .+ \| ([\d ]*)\|$", TEXT, re.MULTILINE)
SECONDS = 60  # a second as a rule; a busy machine may take its time
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(scope="module")
def database(postgres_server, admin):
    from support.servers import create_database, drop_database

    name = create_database(admin)
    yield postgres_server.dsn(name)
    drop_database(admin, name)


@pytest.fixture(scope="module")
def said(database, tmp_path_factory):
    """{command of the page: (exit status, stdout, stderr)}, all of them run in their order."""
    folder = tmp_path_factory.mktemp("page")
    page = Page("query")
    page.lay_out(folder)
    found = {}
    for command in page.commands:
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=environment(LOGSLUICE_DSN=database), timeout=SECONDS,
            capture_output=True, text=True,
        )  # fmt: skip
        found[command] = (done.returncode, done.stdout, done.stderr)
    return found


def test_the_commands_and_what_they_print(said):
    shown = re.findall(r"^```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    wrong = said["logsluice query level>=loud"]
    assert wrong == (2, "", shown[1])
    assert [(command, one) for command, one in said.items() if one[0] and one != wrong] == []
    printed = TIME.sub("", said["logsluice query level>=warning"][1])
    assert printed.startswith(TIME.sub("", shown[0]))
    pages, *amounts, warnings, job = said["python read.py"][1].splitlines()
    assert pages == "['receipt not sent', 'card accepted'] ['Card refused: no funds', 'order received'] True"
    assert [line.split()[-1] for line in amounts] == ["12.5", "12.5", "100"]
    assert (warnings, job) == ("warnings: 2", "600 read")


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_the_table_of_filters(said, database, text, expected):
    with Query(database) as query:
        seqs = [record.key for record in query.logs(newest_first=False)]
        found = [str(seqs.index(record.key) + 1) for record in query.logs(text, newest_first=False)]
    assert " ".join(found) == expected.strip()


def test_the_tables_are_complete():
    assert len(TABLE) > 20
    columns = {"level": "level", "logger": "text", "message": "text", "user_id": "text", "exc_type": "text", "ts": "time",
               "attributes": "json"}  # fmt: skip
    now = datetime.now(timezone.utc)
    shown = {term.operator for text, _ in TABLE for term in grammar.parse(text, columns, now=now)}
    assert shown == {*grammar.OPERATORS, grammar.TEXT}
    times = re.search(r"\| write \| means \|\n(.*?)\n\n", TEXT, re.DOTALL)[1]
    for text in re.findall(r"^\| `([^`]+)` \|", times, re.MULTILINE):
        assert grammar.moment(text, now)
    formats = re.search(r"\| `-o` \| prints \|\n(.*?)\n\n", TEXT, re.DOTALL)[1]
    assert tuple(re.findall(r"^\| `(\w+)` \|", formats, re.MULTILINE)) == output.FORMATS
    calls = re.findall(r"^\| `query\.(\w+)\((.*?)\)` \|", TEXT, re.MULTILINE)
    for name, arguments in calls:
        code = getattr(Query, name).__code__
        names = code.co_varnames[1 : code.co_argcount]
        assert [part.split("=")[0] for part in arguments.split(", ")] + ["limit"] == list(names)
