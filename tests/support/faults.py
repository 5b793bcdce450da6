"""
Faults of PostgreSQL and of what people do to it, for the tests of one fault each and for the fault matrix.

A context manager is inside its fault in the body, and ends it after; each proves that its fault happened.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from support.processes import until
from support.shop import LIMIT, Shop, message, writer


def terminate(shop):
    """End the handler's session, as an administrator does."""
    shop.do(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'logsluice%' "
        "AND datname = current_database()"
    )


@contextmanager
def loading(shop, rate=2000):
    """Another thread logs so many records a second. Its last record is given when the body is left."""
    stop = threading.Event()

    def load():
        while not stop.wait(0.01):  # seconds
            shop.log(rate // 100)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LIMIT)


@contextmanager
def slow_rows(shop, milliseconds, table="logsluice.logs"):
    """Each row of this table takes so long."""
    shop.do(
        f"CREATE FUNCTION public.slowly() RETURNS trigger LANGUAGE plpgsql AS "
        f"'BEGIN PERFORM pg_sleep({milliseconds / 1000}); RETURN NEW; END'",
        f"CREATE TRIGGER slowly BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION public.slowly()",
    )
    yield
    shop.do(f"DROP TRIGGER slowly ON {table}")


# --- time limits and locks ------------------------------------------------------------------------------------------


def stuck_for(shop, fault, proxy, records=10):
    """
    How long the attempt took that ran into this fault, its failure, and the seconds of recovery.

    Its connection was not used again.
    """
    connections, failures = proxy.connections, len(shop.failed())
    fault()
    began = time.monotonic()
    shop.log(records)
    failure = shop.await_failure(count=failures + 1)[-1]
    took = time.monotonic() - began
    proxy.heal()
    recovery = shop.recover()
    assert proxy.connections > connections
    assert proxy.swallowed > 0
    return took, failure, recovery


def too_slow_for_its_limit(shop):
    """400 rows that take 0.8 s at least, within slow_rows(shop, 2) and less than that: how often the batch shrank, and
    at which attempt the first rows were stored."""
    shop.log(400)
    assert shop.flush()
    failures = shop.failed()
    assert {f["verdict"] for f in failures} <= {"shrink", "retry"}  # retry: the lock of the attempt given up
    shrunk = [f for f in failures if f["verdict"] == "shrink"]
    assert shrunk
    assert len(shrunk) <= math.log2(400) + 2
    return len(shrunk), next(i for i, (_, _, error) in enumerate(shop.writes[1:], 1) if error is None)


@contextmanager
def table_locked(shop):
    """A migration holds the table; the body gets two failures of attempts that waited for it."""
    with psycopg.connect(shop.read) as other:
        other.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
        shop.handler._settings.__dict__["io_timeout"] = 1.0  # lock_timeout is a quarter of it
        shop.log(10)
        failures = shop.await_failure("55P03", count=2)
        assert all(0.2 < f["seconds"] < 2.5 for f in failures)
        assert {f["verdict"] for f in failures} == {"retry"}
        yield failures


def deadlock(shop):
    """The server chooses ours: it looks once, after 1 s of waiting, and by then the other has asked for the row."""
    shop.do("ALTER DATABASE " + conninfo_to_dict(shop.read)["dbname"] + " SET deadlock_timeout = '1s'")
    terminate(shop)
    shop.do(
        "CREATE TABLE public.turnstile (x int)",
        "INSERT INTO public.turnstile VALUES (1)",
        "CREATE FUNCTION public.turn() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN UPDATE public.turnstile SET x = x; RETURN NULL; END'",
        "CREATE TRIGGER turn AFTER INSERT ON logsluice.logs FOR EACH STATEMENT EXECUTE FUNCTION public.turn()",
    )
    with psycopg.connect(shop.read) as other:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("UPDATE public.turnstile SET x = x")
        shop.log(10)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'COPY%'"
        assert until(lambda: shop.query(f"{waiting} AND datname = current_database()") == [(1,)], LIMIT)
        shop_failed = threading.Thread(target=shop.await_failure, args=("40P01",))
        shop_failed.start()
        other.execute("SELECT * FROM logsluice.stream FOR UPDATE")
        shop_failed.join(LIMIT)
    shop.await_failure("40P01")


# --- the server is another one, or lets nobody in -------------------------------------------------------------------


@contextmanager
def demoted(shop, admin, proxy):
    """The primary takes reads only. Each attempt has a connection of its own: DNS may name the new one."""
    name = conninfo_to_dict(shop.read)["dbname"]
    admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    terminate(shop)
    shop.log(10)
    before = proxy.connections
    shop.await_failure("25006", count=3)
    attempts = len(shop.failed("25006"))
    assert proxy.connections - before >= attempts - 2  # one may be between its connection and its failure
    yield
    admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


PASSWORDS = "of-the-writer", "the-new-one"


@contextmanager
def password_rotated(dsn, admin, **options):
    """The body gets a shop that is not let in any more, and what gives it the new password."""
    with writer(dsn, admin) as (theirs, name):
        current = [theirs]

        def mend():
            current[0] = make_conninfo(theirs, password=PASSWORDS[1])

        with Shop(lambda: current[0], read=dsn, create=False, **options) as shop:
            shop.log()
            assert shop.flush()
            admin.execute(f"ALTER ROLE {name} PASSWORD '{PASSWORDS[1]}'")
            shop.log(10)
            assert shop.flush()  # the open connection goes on
            terminate(shop)
            shop.log(10)
            failures = shop.await_failure("28000", count=2)
            assert {f["verdict"] for f in failures if f["sqlstate"] == "28000"} == {"blocked"}
            yield shop, mend


# --- somebody changed the tables ------------------------------------------------------------------------------------

BREAKS = {
    "table missing": (
        "ALTER TABLE logsluice.logs RENAME TO gone",
        "ALTER TABLE logsluice.gone RENAME TO logs",
        "42P01",
        "migrate",
    ),
    "column renamed": (
        "ALTER TABLE logsluice.logs RENAME message TO text",
        "ALTER TABLE logsluice.logs RENAME text TO message",
        "42703",
        "message",
    ),
    "privilege revoked": (
        "REVOKE INSERT ON logsluice.logs FROM {role}",
        "GRANT INSERT ON logsluice.logs TO {role}",
        "42501",
        'GRANT INSERT ON "logsluice"."logs" TO',
    ),
    "schema closed": (
        "REVOKE USAGE ON SCHEMA logsluice FROM {role}",
        "GRANT USAGE ON SCHEMA logsluice TO {role}",
        "42501",
        'GRANT USAGE ON SCHEMA "logsluice" TO',
    ),
    "no dead letters allowed": (
        "REVOKE INSERT ON logsluice.dead_letter FROM {role}; ALTER TABLE logsluice.logs ADD CHECK (message !~ 'tid=150 ')",
        "GRANT INSERT ON logsluice.dead_letter TO {role}",
        "42501",
        'GRANT INSERT ON "logsluice"."dead_letter" TO',
    ),
}


@contextmanager
def broken(shop, what, role):
    """What somebody must mend; the body gets a part of what the handler says then. Nothing became a dead letter."""
    wreck, mend, code, says = BREAKS[what]
    shop.log(100)
    assert shop.flush()
    shop.do(wreck.format(role=role))
    shop.log(100)
    shop.await_failure(code)
    shop.log(100)
    failures = shop.await_failure(count=3)
    assert shop.stats.breaker in {"open", "half_open"}
    assert {f["verdict"] for f in failures} <= {"blocked", "reject"}
    assert failures[-1]["verdict"] == "blocked"
    assert not shop.dead()
    yield says
    shop.do(mend.format(role=role))


@contextmanager
def drifted(shop):
    """A column that nothing fills; the body gets the number of attempts until that was known. 1000 records wait."""
    shop.do(
        "ALTER TABLE logsluice.logs ADD COLUMN must_have int NOT NULL DEFAULT 0",
        "ALTER TABLE logsluice.logs ALTER COLUMN must_have DROP DEFAULT",
    )
    shop.log(500)
    assert until(lambda: any(f["verdict"] == "blocked" for f in shop.failed("23502")), LIMIT)
    attempts = len(shop.writes)
    assert len(shop.dead()) <= 20
    shop.log(500)
    shop.await_failure("23502", count=25)
    assert len(shop.dead()) <= 20
    yield attempts
    shop.do("ALTER TABLE logsluice.logs ALTER COLUMN must_have SET DEFAULT 0")


# --- the data -------------------------------------------------------------------------------------------------------


def dated(tid, days):
    """A record of so many days from now."""
    record = logging.LogRecord("shop", logging.INFO, __file__, 1, message(tid), None, None)
    record.created = time.time() + days * 86_400
    return record


def reject(shop, condition):
    """A CHECK of the user's own on `logs`."""
    shop.do(f"ALTER TABLE logsluice.logs ADD CONSTRAINT users_own CHECK (NOT ({condition})) NOT VALID")


def one_bad_row_in_5000(shop):
    """It is set aside in the transaction that stores the others; at most how many attempts a batch took. `linger` 0.3 s
    keeps the records together."""
    shop.watch()
    shop.log()
    assert shop.flush()
    reject(shop, "message LIKE 'tid=2500 %'")
    shop.log(5000)
    assert shop.flush()
    stored, dead = shop.check()
    assert (len(stored), dead) == (5000, [2500])
    assert max(shop.attempts_a_batch()) <= 3
    neighbour = "SELECT xmin::text FROM logsluice.logs WHERE message LIKE %s"
    letter = shop.query("SELECT xmin::text, sqlstate, error, target FROM logsluice.dead_letter")
    assert [row[0] for row in letter] == [row[0] for row in shop.query(neighbour, "tid=2499 %")]
    assert letter[0][1] == "23514"
    assert "users_own" in letter[0][2]
    assert "tid=" not in letter[0][2]
    return max(shop.attempts_a_batch())


STORM_TABLE = "public.acts"


def storm_tables(dsn):
    """A table of the user's whose rows must name one of 1000 users."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.users (id bigint PRIMARY KEY)")
        conn.execute("INSERT INTO public.users SELECT generate_series(1, 1000)")
        conn.execute(
            f"CREATE TABLE {STORM_TABLE} "
            "(message text, user_id bigint REFERENCES public.users, at timestamptz DEFAULT now())"
        )


def storm(dsn, rows, *, user, **options):
    """Fill the buffer while the table is locked, then let go: (rows a second until all is settled, the shop)."""
    columns = {"message": "message", "user_id": "extra.user_id"}
    with Shop(dsn, table=STORM_TABLE, columns=columns, capacity_bytes=2**28, **options) as shop:
        shop.watch()
        shop.log(1, user_id=1)
        assert shop.flush()
        with psycopg.connect(dsn) as other:
            other.execute(f"LOCK TABLE {STORM_TABLE} IN ACCESS EXCLUSIVE MODE")
            expected = [
                shop.log(1, user_id=user(n))[0]
                for n in range(rows)
                if user(n) > 1000 or not shop.log(1, user_id=user(n))
            ]
        began = time.monotonic()
        assert shop.flush(300)
        took = time.monotonic() - began
        _, dead = shop.check(table=STORM_TABLE)
        assert sorted(dead) == expected
        return rows / took, shop
