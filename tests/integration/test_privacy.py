"""Two hundred secrets in nine places, and none of them anywhere; what was encrypted, read back by `logsluice decrypt`."""

from __future__ import annotations

import itertools
import json
import logging
import re
import shlex
import subprocess

import psycopg

from logsluice import JsonFileHandler, context, schema
from logsluice.devserver import free_port
from logsluice.patterns import BY_NAME
from support.endpoint import Sender, Stub
from support.faults import reject
from support.howto import BLOCK, PAGES, Page, environment, rows
from support.proxy import Proxy
from support.secrets import PLACES, SECRETS
from support.shop import LIMIT, Shop

MARK = "okapi"  # in every record: a place where it is not was not looked at
RARE = 20  # records that the table refuses: each costs a transaction


def log_all(logger):
    """Every secret in every place."""
    for own, ((text, _), made) in enumerate(itertools.product(SECRETS, PLACES.values())):
        message, args, extra, exc_info, bound = made(text)
        with context.bound(**bound):
            logger.error(message, *args, extra={"mark": MARK, "own": own, **extra}, exc_info=exc_info)


def leaks(places):
    """The places with what was found in them; each holds records of ours."""
    assert {place for place, text in places.items() if MARK not in text} == set()
    return {place: found for place, text in places.items() if (found := [part for _, part in SECRETS if part in text])}


def test_no_secret_is_in_any_place_where_records_are(own_server, tmp_path, capfd):
    """Table, dead letters, journal, file, HTTP body, fallback, PostgreSQL's log of every statement, stderr."""
    dsn, journal, records = own_server.dsn(), tmp_path / "journal", len(SECRETS) * len(PLACES)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET log_statement = 'all'")
        conn.execute("SELECT pg_reload_conf()")
        schema.migrate(conn)
    last = logging.FileHandler(tmp_path / "fallback.log")
    last.setFormatter(logging.Formatter("%(message)s %(exc_text)s %(mark)s"))
    last.set_name("last-resort")
    file = JsonFileHandler(filename=str(tmp_path / "app.log"), redact="patterns")
    options = {"redact": "patterns", "shutdown_timeout": LIMIT}
    with Stub() as stub, Proxy(dsn) as proxy:
        proxy.refuse()
        sender = Sender(stub, redact="patterns")
        nowhere = f"host=127.0.0.1 port={free_port()} dbname=x connect_timeout=2"
        lost = Shop(nowhere, fallback="last-resort", **{**options, "shutdown_timeout": 0.5})
        with Shop(proxy.dsn, read=dsn, journal=str(journal), **options) as shop:
            reject(shop, f"attributes->'own' >= '{records - RARE}'")
            for handler in (file, sender.handler, lost.handler):
                shop.logger.addHandler(handler)
            log_all(shop.logger)
            waiting = b"".join(path.read_bytes() for path in journal.rglob("*") if path.is_file())
            proxy.heal()
            assert shop.flush()
            stats = shop.stats
            assert (stats.offered, stats.stored + stats.dead, stats.dropped) == (records, records, 0)
            assert stats.dead == RARE
            queries = (
                "SELECT l::text FROM logsluice.logs l",
                "SELECT convert_from(row, 'UTF8') FROM logsluice.dead_letter",
            )
            table, dead = ["\n".join(row[0] for row in shop.query(query)) for query in queries]
            assert sender.flush()
            assert file.flush(LIMIT)
        for handler in (sender.handler, file, lost.handler):
            handler.close()
        last.close()
        body = b"".join(request.body for request in stub.requests).decode()
    log = own_server.log_path.read_text(errors="replace")
    assert "users_own" in log  # it is the log in which the server says what it refused
    said = capfd.readouterr()
    found = leaks({
        "table": table, "dead letters": dead, "journal": waiting.decode(errors="replace"), "HTTP": body,
        "file": (tmp_path / "app.log").read_text(), "fallback": (tmp_path / "fallback.log").read_text(),
        "server log": log + MARK, "stderr": said.err + said.out + MARK,
    })  # fmt: skip
    assert found == {}


TEXT = (PAGES / "privacy.md").read_text(encoding="utf-8")


def test_the_page(dsn, tmp_path):
    """docs/howto/privacy.md: its program stores what the page shows, its SQL joins, its command reads."""
    page = Page("privacy")
    page.lay_out(tmp_path)
    env = environment(LOGS_DSN=dsn, LOGSLUICE_DSN=dsn, LOGS_SALT="of-the-page-0123456789")

    def run(start):
        done = subprocess.run(
            shlex.split(page.command(start)), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    for command in ("openssl genpkey", "openssl pkey", "python shop.py"):
        run(command)
    stored = rows(dsn)
    signed, paid, bounced = [row["attributes"] for row in stored]
    shown = re.findall(r"^\| `(.*)` \| `\"user_email|^\| `(paid by .*?)` \|", TEXT, re.MULTILINE)
    assert [row["message"] for row in stored] == [one or other for one, other in shown]
    assert signed["pin"] == "[redacted]"
    assert signed["user_email"] == bounced["user_email"] != stored[0]["user_id"]
    assert {row["user_id"][:10] for row in stored} == {signed["user_email"][:10]} == {"pseudonym:"}
    words = ("bob@", "'u-17'", "'1234'", "4111 1111", "12 Elm St", "CUST-123456")
    assert [word for word in words if word in str(stored)] == []
    with psycopg.connect(dsn) as conn:
        query = next(text for language, _, text in BLOCK.findall(TEXT) if language == "sql")
        assert conn.execute(query).fetchall() == [(signed["user_email"], 2)]
    read = [json.loads(line) for line in run("logsluice decrypt").splitlines()]
    assert read == [{**paid, "address": {"street": "12 Elm St", "zip": "01234"}}]


def test_what_the_page_says_of_patterns_and_cost():
    """Every pattern has its line; the figures are those of benchmarks/results."""
    table = TEXT.partition("## Patterns")[2].partition("| `all`")[0]
    named = {
        name
        for line in table.splitlines()
        if line[:3] == "| `"
        for name in re.findall(r"`(\w+)`", line.split(" | ")[0])
    }
    assert named == set(BY_NAME)
    kept = json.loads((PAGES.parents[1] / "benchmarks" / "results" / "instructions.json").read_text())["3.11"]
    counts = [one["logsluice"] for one in kept["instructions_a_call"].values()]
    cost = TEXT.partition("## What it costs")[2].partition("The first line")[0]
    figures = [int(figure.replace(",", "")) for figure in re.findall(r"(\d+,000) \|", cost)]
    assert len(figures) == 8
    # Two runs of the benchmark differ by 1 %.
    assert all(any(abs(figure - count) < 0.02 * count for count in counts) for figure in figures)
