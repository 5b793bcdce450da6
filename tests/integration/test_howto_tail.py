"""docs/howto/tail.md: its commands and its program run."""

from __future__ import annotations

import logging
import re
import shlex
import signal
import subprocess

import pytest

from logsluice import PostgresHandler
from logsluice.cli import tail
from logsluice.query import Late
from support.howto import PAGES, Page, Service, environment
from support.processes import until

TEXT = (PAGES / "tail.md").read_text(encoding="utf-8")
LIMIT = 60  # seconds: a moment as a rule


@pytest.fixture
def log(dsn):
    handler = PostgresHandler(dsn=dsn)
    logger = logging.getLogger("shop.pay")
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    logger.propagate = True
    handler.close()


def test_the_commands_and_the_program(dsn, log, tmp_path):
    page = Page("tail")
    page.lay_out(tmp_path)
    log.warning("card refused")
    assert log.handlers[0].flush(LIMIT)
    *ending, following, program = page.commands
    for command in (*ending, program):
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment(LOGSLUICE_DSN=dsn), timeout=LIMIT, capture_output=True,
            text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "card refused" in done.stdout
    with Service(following, tmp_path, LOGSLUICE_DSN=dsn) as service:
        assert until(lambda: "card refused" in service.output, LIMIT)
        log.warning("card lost")
        assert log.handlers[0].flush(LIMIT)
        assert until(lambda: "card lost" in service.output, LIMIT)
        assert service.stop(signal.SIGINT) == 130
        assert len(service.output.splitlines()) == 2


def test_the_line_about_late_rows_is_what_is_printed(capsys):
    (shown,) = re.findall(r"^```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    count, stream, since, until_, first, last = re.search(
        r"(\d+) older rows came from stream (\d+): .* --since (\S+) --until (\S+) .*seq>=(\d+).*seq<=(\d+)", shown
    ).groups()
    from datetime import datetime

    moments = [datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (since, until_)]
    late = Late("logs", int(stream), int(count), int(count), *moments, (int(first), int(last)))
    args = tail.argparse.Namespace(dsn=None, schema="logsluice", table="logs", filter=[])
    tail._teller(args, lambda text: print(f"logsluice: {text}"))(late)
    assert capsys.readouterr().out == shown
    args = tail.argparse.Namespace(dsn="password=secret", schema="x y", table="spans", filter=["level>=warning"])
    assert tail._command(args, late).startswith(
        "logsluice query -n all --dsn ... --schema 'x y' --table spans --since "
    )
    assert tail._command(args, late).endswith(" 'level>=warning'")


def test_the_options_are_those_of_the_command(capsys):
    from logsluice.cli import main

    with pytest.raises(SystemExit):
        main(["tail", "--help"])
    said = capsys.readouterr().out
    for option in re.findall(r"^\| `(--?\w+)", TEXT, re.MULTILINE):
        assert option in said
