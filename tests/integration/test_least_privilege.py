"""create=False, with a role that has what `logsluice migrate --sql --grant-to` gives it and nothing more."""

from __future__ import annotations

import logging
import re
import time
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from logsluice import schema
from support.processes import until
from support.shop import Shop, message

PASSWORD = "of-the-writer"
DAY = 86400.0  # seconds


def grants(name):
    """The statements that the DBA gets, read out of what is printed."""
    return re.findall(r"^GRANT .*;$", schema.render(grant_to=name), re.MULTILINE)


@contextmanager
def writer(dsn):
    """The dsn of a role with the printed grants."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = f"writer_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        for grant in grants(name):
            conn.execute(grant)
        try:
            yield make_conninfo(dsn, user=name, password=PASSWORD), name
        finally:
            conn.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")
            conn.execute(f"DROP OWNED BY {name}")
            conn.execute(f"DROP ROLE {name}")


def log_at(shop, moment):
    """Log one record that was made at this moment by the injected clock."""
    tid = len(shop.given)
    shop.given.append(tid)
    record = logging.LogRecord(shop.logger.name, logging.INFO, __file__, 1, message(tid), None, None)
    record.created = moment
    shop.logger.handle(record)


def heard(capfd, pattern):
    """What is on stderr, once it holds this; the failure itself is counted a moment before it is said."""
    said = []
    assert until(lambda: said.append(capfd.readouterr().err) or re.search(pattern, "".join(said))), said
    return "".join(said)


def test_three_midnights(dsn):
    """The day's partition is there before its first record, made by the role itself through make_partitions."""
    with writer(dsn) as (role_dsn, name), Shop(role_dsn, read=dsn, create=False) as shop:
        now = [time.time()]
        shop.handler._clock = lambda: now[0]
        before = {row[0] for row in shop.query("SELECT relname::text FROM pg_class WHERE relname LIKE 'logs_20%%'")}
        midnight = (now[0] // DAY + 1) * DAY
        for day in range(3):
            for moment in (midnight + day * DAY - 0.001, midnight + day * DAY, midnight + day * DAY + 3600):
                now[0] = moment
                log_at(shop, moment)
                assert shop.flush()
        shop.check()
        assert shop.failed() == []  # no batch had to wait for a partition
        days = shop.query("SELECT count(DISTINCT ts::date), count(DISTINCT tableoid) FROM logsluice.logs")
        assert [(4, 4)] == days
        after = {row[0] for row in shop.query("SELECT relname::text FROM pg_class WHERE relname LIKE 'logs_20%%'")}
        assert len(after - before) >= 3
        assert [(name,)] == shop.query(
            "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE application_name = 'logsluice' AND datname = current_database()"
        )


@pytest.mark.parametrize("number", range(len(grants("nobody"))))
def test_each_missing_grant_is_said_exactly_and_mends_it(dsn, capfd, number):
    """One grant less: everything is kept, one line holds the very GRANT, and after it all rows are there."""
    with writer(dsn) as (role_dsn, name):
        grant = grants(name)[number]
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(re.sub(r"^GRANT (.*) TO ", r"REVOKE \1 FROM ", grant))
        with Shop(role_dsn, read=dsn, create=False) as shop:
            shop.log(3)
            said = heard(capfd, "GRANT .* TO ")
            fixes = re.findall(r'GRANT [^;]*? TO "[^"]+"', said)
            assert fixes, said
            assert PASSWORD not in said
            with psycopg.connect(dsn, autocommit=True) as conn:
                for fix in fixes:
                    conn.execute(fix)
            assert shop.flush()
            shop.check()


def test_create_true_without_the_right_to_create_says_what_is_missing(empty_dsn, dsn, capfd):
    """A role that may not make the schema works where it is there, and says what to run where it is not."""
    with writer(dsn) as (role_dsn, _name), Shop(role_dsn, read=dsn) as shop:
        shop.log(3)
        assert shop.flush()
        shop.check()
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        name = f"writer_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        try:
            shop = Shop(make_conninfo(empty_dsn, user=name, password=PASSWORD), shutdown_timeout=0.1)
            shop.log(1)
            said = heard(capfd, "blocked")
            shop.handler.close()
            assert "logsluice migrate" in said
            assert 'schema "logsluice" does not exist' in said
        finally:
            conn.execute(f"DROP ROLE {name}")
