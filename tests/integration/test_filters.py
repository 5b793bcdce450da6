"""Filters by dictConfig over a real server: rows, summaries and figures add up to what was given. docs/howto/sampling.md."""

from __future__ import annotations

import ast
import logging
import logging.config
import shlex
import subprocess
import threading

import psycopg
import pytest

from logsluice import filters
from support.howto import BLOCK, PAGES, Page, environment, rows

LIMIT = 60  # seconds; it takes about one


@pytest.fixture
def configured(dsn):
    """A function that configures the logger `filters` with these filters on its handler; the handler."""
    logger = logging.getLogger("filters")
    made = []

    def configure(given, **options):
        handler = {"class": "logsluice.PostgresHandler", "dsn": dsn, "linger": 0.01, "filters": list(given), **options}
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "filters": given,
                "handlers": {"db": handler},
                "loggers": {"filters": {"level": "DEBUG", "handlers": ["db"], "propagate": False}},
            }
        )
        made.append(logger.handlers[0])
        return logger.handlers[0]

    yield configure
    for handler in made:
        logger.removeHandler(handler)
        handler.close()


@pytest.mark.parametrize("journal", [False, True])
def test_rows_and_figures_add_up(dsn, configured, tmp_path, journal):
    handler = configured(
        {
            "sample": {"()": "logsluice.filters.SampleFilter", "rates": {"DEBUG": 0.25}, "key": "extra.order"},
            "fold": {"()": "logsluice.filters.DuplicateFilter", "logger": "filters.driver"},
            "limit": {"()": "logsluice.filters.RateLimitFilter", "per_second": 50, "keep_level": "ERROR"},
        },
        **({"journal": str(tmp_path / "journal")} if journal else {}),
    )
    log, driver = logging.getLogger("filters.shop"), logging.getLogger("filters.driver")
    threads, count = 4, 500

    def work(number):
        for n in range(count):
            log.debug("first of %d", n, extra={"order": n, "step": 1})
            log.debug("second of %d", n, extra={"order": n, "step": 2})
            log.info("flood", extra={"thread_number": number})
            log.error("failed", extra={"id": f"{number}-{n}"})
            driver.warning("connection lost")

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LIMIT)
    filters.report(handler.filters, everything=True)
    assert handler.flush(LIMIT)
    stats, found = handler.stats(), rows(dsn)
    given = 5 * threads * count
    for row in found:
        row["attributes"] = row["attributes"] or {}
    summaries = [row for row in found if "suppressed" in row["attributes"]]
    assert len(found) - len(summaries) + sum(stats.suppressed_by.values()) == given
    said = sum(row["attributes"]["suppressed"] for row in summaries)
    assert said == sum(number for (reason, _), number in stats.suppressed_by.items() if reason != "sample")
    assert (stats.offered, stats.stored, stats.dropped, stats.waiting) == (len(found), len(found), 0, 0)
    assert len({row["attributes"]["id"] for row in found if row["level"] == logging.ERROR}) == threads * count
    assert set(stats.suppressed_by) == {
        ("sample", logging.DEBUG), ("rate_limit", logging.DEBUG), ("rate_limit", logging.INFO),
        ("duplicate", logging.WARNING),
    }  # fmt: skip
    assert len([row for row in found if row["logger"] == "filters.driver"]) == 2
    # The sample by itself: what came through it is in the table or in a summary of the limit.
    whole = filters.SampleFilter(rates={"DEBUG": 0.25}, key="extra.order")
    kept = [n for n in range(count) if whole.filter(log.makeRecord("", 10, "", 0, "", (), None, extra={"order": n}))]
    assert stats.suppressed_by["sample", logging.DEBUG] == 2 * threads * (count - len(kept))
    assert {row["attributes"]["order"] for row in found if "order" in row["attributes"]} <= set(kept)


def test_close_says_what_is_left(dsn, configured):
    handler = configured({"fold": {"()": "logsluice.filters.DuplicateFilter"}})
    for _ in range(3):
        logging.getLogger("filters.shop").warning("down")
    handler.close()
    assert [row["message"] for row in rows(dsn)] == ["down", "2 more were suppressed: down"]
    assert handler.stats().stored == 2


def test_the_page(dsn, tmp_path):
    """docs/howto/sampling.md: its program, and its SQL on what that stored."""
    page = Page("sampling")
    page.lay_out(tmp_path)
    done = subprocess.run(
        shlex.split(page.command("python")), cwd=tmp_path, env=environment(LOGS_DSN=dsn), capture_output=True,
        text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "slow batch" not in line]  # a busy machine may be
    assert (done.returncode, said) == (0, [])
    by, *listed = done.stdout.splitlines()
    figures = ast.literal_eval(by.partition(": ")[2])
    assert set(figures) == {("sample", 10), ("sample", 20), ("rate_limit", 30), ("duplicate", 30)}
    names = [line.split("(", 1)[0] for line in listed]
    assert sorted(names) == ["DuplicateFilter", "RateLimitFilter", "SampleFilter"]
    text = (PAGES / "sampling.md").read_text(encoding="utf-8")
    summed, told = [sql for language, _, sql in BLOCK.findall(text) if language == "sql"]
    with psycopg.connect(dsn) as conn:
        found = {(level, logger): (count, said) for level, logger, count, said in conn.execute(summed).fetchall()}
        summaries = conn.execute(told).fetchall()
    traces = found[10, "shop.orders"][0]
    assert found[20, "shop.orders"] == (traces, None)  # each trace whole
    assert figures["sample", 10] == figures["sample", 20] == 300 - traces
    # What the page shows, but for the seconds that its loop of 1,000 may take more on a busy machine.
    shown = [line.split("|") for line in text.split("```text\n")[1].split("```")[0].splitlines()]
    shown = {(int(level), logger.strip()): (int(count), int(said or 0)) for level, logger, count, said in shown}
    assert {key: found[key] for key in found if key[0] < 30} == {k: (v[0], None) for k, v in shown.items() if k[0] < 30}
    assert found[30, "shop.bank.driver"] == shown[30, "shop.bank.driver"] == (2, 49)
    count, said = found[30, "shop.bank"]
    limited = [message for _, message, _ in summaries if "attempt" in message]
    assert count - len(limited) + said == 1000
    assert figures["rate_limit", 30] == said
    assert all(message.endswith(" more were suppressed: cannot reach the bank, attempt %d") for message in limited)
    assert [message for _, message, _ in summaries if "lost" in message] == ["49 more were suppressed: connection lost"]


def test_every_option_is_on_the_page():
    text = (PAGES / "sampling.md").read_text(encoding="utf-8")
    for kind in (filters.SampleFilter, filters.RateLimitFilter, filters.DuplicateFilter):
        with pytest.raises(ValueError, match="known options: ") as caught:
            kind(zzzzz=1)
        for option in str(caught.value).partition("known options: ")[2].split(", "):
            assert f"| `{option}` | `{kind.__name__}` |" in text or f"| `{option}` | all |" in text
