"""docs/howto/tune.md: its SQL runs on a server, its handlers store a record, the benchmark finds where its tables go."""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import datetime, timedelta, timezone

import psycopg
import pytest

from logsluice import partitions, schema
from support.howto import BLOCK, PAGES, rows
from support.processes import until
from support.shop import LIMIT

NOW = datetime.now(timezone.utc)
TEXT = (PAGES / "tune.md").read_text(encoding="utf-8")
SHOWN = "logs_20261122"  # the partition as the page names it


def blocks(language):
    return [text for name, _, text in BLOCK.findall(TEXT) if name == language]


@pytest.fixture
def conn(own_server):
    """Its own server: the page changes settings and roles."""
    with psycopg.connect(own_server.dsn(), autocommit=True) as conn:
        schema.migrate(conn)
        partitions.ensure(conn, "logsluice", "day", NOW)
        for role in ("shop", "reader"):
            conn.execute(f"CREATE ROLE {role} LOGIN")
        yield conn


def test_every_statement_runs(conn):
    today = f"logs_{NOW:%Y%m%d}"
    statements = [text.strip() for block in blocks("sql") for text in block.replace(SHOWN, today).split(";")]
    statements = [text for text in statements if text]
    if not conn.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'").fetchone():
        # The wheel's PostgreSQL comes without contrib and lz4. Debian's has them, and there all of the page runs.
        missing = (
            psycopg.errors.FeatureNotSupported,
            psycopg.errors.UndefinedObject,
            psycopg.errors.InvalidParameterValue,
        )
        foreign = [text for text in statements if "trgm" in text or "lz4" in text]
        for statement in foreign:
            statements.remove(statement)
            with pytest.raises(missing):
                conn.execute(statement)
    for statement in statements:
        conn.execute(statement)
    valid = dict(conn.execute("SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"))
    made = [text.split(" INDEX ")[1].split()[0] for text in statements if "CREATE INDEX logs" in text]
    assert len(made) >= 7
    # Complete only when each partition has its part; the page attaches that of one day.
    assert {name: valid[name] for name in made} == {name: name != "logs_user_ts2" for name in made}
    assert valid[f"{today}_user_ts2"]
    # The postmaster reads it anew when it has the time.
    assert until(lambda: conn.execute("SHOW max_wal_size").fetchone() == ("8GB",), LIMIT)


def test_a_partition_made_later_has_the_indexes(conn):
    for statement in blocks("sql")[0].split(";"):
        if statement.strip():
            conn.execute(statement)
    later = partitions.ensure_at(conn, "logsluice", "day", NOW - timedelta(days=9))
    ((count,),) = conn.execute(
        "SELECT count(*) FROM pg_index WHERE indrelid = ('logsluice.' || %s)::regclass AND indisvalid", later
    )
    assert count == 3 + 5  # those of the schema and those of the page's first block


def test_every_handler_stores(own_server, conn, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DSN", own_server.dsn())
    entries = [json.loads(text) for text in blocks("json")]
    assert len(entries) >= 5
    for n, entry in enumerate(entries):
        if "journal" in entry:
            entry["journal"] = str(tmp_path / "journal")
        config = {
            "version": 1, "disable_existing_loggers": False, "handlers": {"postgres": entry},
            "loggers": {f"tune.{n}": {"level": "INFO", "handlers": ["postgres"]}},
        }  # fmt: skip
        logging.config.dictConfig(config)
        logger = logging.getLogger(f"tune.{n}")
        logger.info("stored with entry %d", n)
        handler = logger.handlers[0]
        assert handler.flush(30), entry
        logger.removeHandler(handler)
        handler.close()
    found = sorted(line["message"] for line in rows(own_server.dsn(), "logger LIKE 'tune.%'"))
    assert found == [f"stored with entry {n}" for n in range(len(entries))]


def test_the_benchmark_fills_the_page(monkeypatch):
    monkeypatch.syspath_prepend(str(PAGES.parents[1] / "benchmarks"))
    import server  # a program beside the tests, no package

    pages = {"pages": 7}
    cases = [
        {
            "group": group, "name": server.SHIPPED.name if group == "indexes" else f"of {group}",
            "ratio": {"steady": [1.0, 0.5, 0.25]}, "wal_a_row": {"steady": 466.4, "checkpointed": 1513.6},
            "disk_a_row": {"heap": 300, "toast": 1, "indexes": 69},
        }
        for group in server.HEADS
    ]  # fmt: skip
    question = {
        "index": "+ (user_id, ts)",
        "question": "user_id = '{user_id}'",
        "with": pages,
        "without": {"pages": 3344},
    }
    facts = {"cpu": "Z80", "cores": 2, "os": "OS", "python": "3.11.7", "psycopg": "3", "postgresql": "15"}
    details = {"cases": cases, "questions": [question], "vacuum": {"VACUUM": {"wal_a_row": 4.79}}}
    result = {"facts": facts, "rounds": 3, "details": details}
    made = server.server_page(result, TEXT)
    assert made.count("| as shipped | 0.50 | 466 | 1,514 | 370 |") == len(server.HEADS)
    assert "| of rows | 0.50 | 466 | 1,514 | 370 |" in made
    assert "| `(user_id, ts)` | `user_id = '17'` | 3,344 | 7 |" in made
    assert "| VACUUM | 4.8 |" in made
    assert server.server_page(result, made) == made
