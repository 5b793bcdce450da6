"""A table that the user already has: `table=` and `columns=` (DESIGN D12), unchanged, with its own names and constraints."""

from __future__ import annotations

import logging

import psycopg
import pytest
from psycopg import sql

from logsluice.errors import ConfigError
from support.commits import COMMIT
from support.processes import until
from support.proxy import Proxy
from support.shop import LIMIT, Shop, writer

USERS = 'CREATE TABLE "TblUsers" (id bigint PRIMARY KEY, name text)'
ACTIVITY = """
CREATE TABLE tbl_activity_logs (
    log_id bigserial PRIMARY KEY,
    session_id bigint NOT NULL,
    user_id bigint NOT NULL REFERENCES "TblUsers"(id) ON DELETE CASCADE,
    activity_type varchar(50) NOT NULL,
    activity_status varchar(20) NOT NULL,
    document_id bigint,
    message_content text,
    response_content text,
    token_count integer,
    retrieval_skipped boolean DEFAULT false,
    similarity_score float,
    processing_time_ms integer,
    llm_call_duration_ms integer,
    retrieval_duration_ms integer,
    error_message text,
    error_type varchar(100),
    user_agent text,
    ip_address inet,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON tbl_activity_logs (session_id);
CREATE INDEX ON tbl_activity_logs (user_id);
CREATE INDEX ON tbl_activity_logs (activity_type);
CREATE INDEX ON tbl_activity_logs (created_at DESC);
CREATE INDEX ON tbl_activity_logs (activity_status);
CREATE INDEX ON tbl_activity_logs (user_id, session_id, created_at DESC);
"""
COLUMNS = {
    "session_id": "extra.session_id",
    "user_id": "extra.user_id",
    "activity_type": "extra.activity_type",
    "activity_status": ("extra.activity_status", "ok"),
    "document_id": "extra.document_id",
    "message_content": "message",
    "response_content": "extra.response_content",
    "token_count": "extra.token_count",
    "retrieval_skipped": ("extra.retrieval_skipped", False),
    "similarity_score": "extra.similarity_score",
    "processing_time_ms": ("extra.processing_time_ms", 0),
    "error_message": "exc_message",
    "error_type": "exc_type",
    "ip_address": "extra.ip_address",
}  # llm_call_duration_ms, user_agent, created_at and others are left out
TABLE = "public.tbl_activity_logs"


def activity_shop(dsn, read, **options):
    return Shop(dsn, read=read, table=TABLE, columns=COLUMNS, **options)


@pytest.fixture
def activity(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(USERS)
        conn.execute(ACTIVITY)
        conn.execute("""INSERT INTO "TblUsers" SELECT n, 'user ' || n FROM generate_series(1, 100) AS n""")
    return dsn


@pytest.fixture
def shop(activity):
    with activity_shop(activity, activity) as shop:
        yield shop.watch()


def act(shop, count=1, user=7, **extra):
    return shop.log(count, **{"session_id": 3, "user_id": user, "activity_type": "chat", **extra})


def check(shop, **options):
    return shop.check(table=TABLE, column="message_content", **options)


def test_the_columns_get_what_they_are_mapped_to(shop):
    act(
        shop,
        document_id=9,
        token_count=250,
        retrieval_skipped=True,
        similarity_score=0.25,
        ip_address="2001:db8::1",
        response_content='a\tb\nc\\d "é" \N{PILE OF POO}',
    )
    act(shop, similarity_score=float("nan"))
    act(shop, activity_status="failed", processing_time_ms=12)
    assert shop.flush()
    check(shop)
    rows = shop.query(
        "SELECT session_id, user_id, activity_type, activity_status, document_id, response_content, token_count, "
        f"retrieval_skipped, similarity_score::text, processing_time_ms, host(ip_address), error_type FROM {TABLE} ORDER BY 1, log_id"
    )
    assert rows == [
        (3, 7, "chat", "ok", 9, 'a\tb\nc\\d "é" \N{PILE OF POO}', 250, True, "0.25", 0, "2001:db8::1", None),
        (3, 7, "chat", "ok", None, None, None, False, "NaN", 0, None, None),
        (3, 7, "chat", "failed", None, None, None, False, None, 12, None, None),
    ]


def test_columns_left_out_get_the_defaults_of_the_table(shop):
    act(shop)
    assert shop.flush()
    rows = shop.query(
        f"SELECT log_id, created_at BETWEEN now() - interval '1 minute' AND now(), user_agent FROM {TABLE}"
    )
    assert rows == [(1, True, None)]


def test_an_exception_goes_where_it_is_mapped(shop):
    shop.given.append(0)
    try:
        raise KeyError("gone")
    except KeyError:
        shop.logger.exception("tid=0 f4dbdf21 .", extra={"session_id": 1, "user_id": 1, "activity_type": "x"})
    assert shop.flush()
    assert shop.query(f"SELECT error_type, error_message FROM {TABLE}") == [("KeyError", "'gone'")]


def test_an_unknown_user_is_a_dead_letter_and_its_99_neighbours_are_stored(shop):
    act(shop, 50)
    (bad,) = act(shop, user=999)
    act(shop, 49)
    assert shop.flush()
    stored, dead = check(shop)
    assert (len(stored), dead) == (99, [bad])
    assert max(shop.attempts_a_batch()) <= 3
    letters = shop.query("SELECT sqlstate, target, columns, error, seq FROM logsluice.dead_letter")
    assert letters[0][:3] == ("23503", '"public"."tbl_activity_logs"', list(COLUMNS))
    assert "TblUsers" not in letters[0][3] or "999" not in letters[0][3]


@pytest.mark.parametrize("grant_select", [True, False])
def test_many_unknown_users_go_in_one_attempt_each_or_by_bisection(activity, admin, grant_select):
    """Without SELECT the server hides which key it was (its DETAIL): then halves are tried."""
    with writer(activity, admin) as (theirs, role), activity_shop(theirs, activity, create=False) as shop:
        shop.do(f"GRANT INSERT ON {TABLE} TO {role}; GRANT USAGE ON SEQUENCE tbl_activity_logs_log_id_seq TO {role}")
        if grant_select:
            shop.do(f'GRANT SELECT ON {TABLE}, "TblUsers" TO {role}')
        shop.watch()
        bad = []
        for n in range(600):
            ids = act(shop, user=1000 + n % 5 if n % 60 == 0 else 1 + n % 100)
            bad += ids if n % 60 == 0 else []
        assert shop.flush()
        _, dead = check(shop)
        assert sorted(dead) == bad
        worst = max(shop.attempts_a_batch())
        print(f"10 rows of 5 unknown users in 600, SELECT {grant_select}: {len(shop.writes)} attempts, {worst} for one")
        assert worst <= 32


def test_rejections_of_other_kinds_find_their_row(shop):
    act(shop, 20)
    bad = [
        *act(shop, activity_type="x" * 51),  # 22001
        *act(shop, token_count="many"),  # 22P02
        *act(shop, token_count=2**40),  # 22003
        *act(shop, ip_address="300.1.1.1"),  # 22P02
        *shop.log(1, session_id=3, user_id=7),  # 23502: activity_type is missing
    ]
    act(shop, 20)
    assert shop.flush()
    stored, dead = check(shop)
    assert (len(stored), sorted(dead)) == (40, bad)
    codes = shop.query("SELECT sqlstate FROM logsluice.dead_letter ORDER BY position")
    assert [code for (code,) in codes] == ["22001", "22P02", "22003", "22P02", "23502"]


def test_a_lost_answer_to_commit_stores_nothing_twice(activity):
    with Proxy(activity) as proxy, activity_shop(proxy.dsn, activity) as shop:
        shop.watch()
        act(shop)
        assert shop.flush()
        for _ in range(10):
            proxy.cut_after(COMMIT)
            act(shop, 20)
            act(shop, user=555)
            assert shop.flush()
        _, dead = check(shop)
        assert len(dead) == 10
        assert proxy.cuts == 10
        assert shop.known >= 7


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keyed(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.keyed (message text, key int UNIQUE)")
        conn.execute("INSERT INTO public.keyed VALUES ('there before', 100)")
    columns = {"message": "message", "key": "extra.key"}
    with Shop(dsn, table="public.keyed", columns=columns, linger=0.2) as shop:
        yield shop.watch()


def test_of_a_key_that_stands_twice_in_a_batch_the_first_row_is_stored(keyed):
    keyed.log(1, key=1)
    first = keyed.log(1, key=5)
    keyed.log(1, key=2)
    bad = keyed.log(2, key=5)
    keyed.log(1, key=3)
    assert keyed.flush()
    stored, dead = keyed.check(table="public.keyed")
    assert sorted(dead) == bad
    assert first[0] in stored


def test_a_key_that_the_table_holds_already_takes_all_its_rows(keyed):
    keyed.log(1, key=1)
    bad = keyed.log(3, key=100)
    keyed.log(1, key=2)
    assert keyed.flush()
    _, dead = keyed.check(table="public.keyed")
    assert sorted(dead) == bad
    assert len(keyed.writes) == 2  # all three at once


@pytest.mark.parametrize(
    "deferred", ["UNIQUE DEFERRABLE INITIALLY DEFERRED", "REFERENCES public.there DEFERRABLE INITIALLY DEFERRED"]
)
def test_a_deferred_constraint_fails_before_commit(dsn, deferred):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.there (key int PRIMARY KEY)")
        conn.execute("INSERT INTO public.there SELECT generate_series(1, 100)")
        conn.execute(f"CREATE TABLE public.late (message text, key int {deferred})")
        conn.execute("INSERT INTO public.late VALUES ('there before', 100)")
    with Shop(dsn, table="public.late", columns={"message": "message", "key": "extra.key"}, linger=0.2) as shop:
        shop.watch()
        for n in range(1, 30):
            shop.log(1, key=n)
        (bad,) = shop.log(1, key=100 if "UNIQUE" in deferred else 999)
        for n in range(31, 60):
            shop.log(1, key=n)
        assert shop.flush()
        _, dead = shop.check(table="public.late")
        assert dead == [bad]
        assert {f["verdict"] for f in shop.failed()} == {"reject"}


# --- names ----------------------------------------------------------------------------------------------------------

ODD = 'odd, 7 "name" %s \\é.x'


def test_odd_names(dsn):
    """The table's name holds what the server's error context is parsed for: a row must not be blamed for it."""
    column = 'a "b" \\c, 3: %s'
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            sql.SQL("CREATE TABLE public.{} (message text, {} int CHECK ({} < 50), rest jsonb)").format(
                sql.Identifier(ODD), sql.Identifier(column), sql.Identifier(column)
            )
        )
    quoted = '"' + ODD.replace('"', '""') + '"'
    columns = {"message": "message", column: "extra.n", "rest": "attributes"}
    with Shop(dsn, table=f"public.{quoted}", columns=columns, linger=0.2) as shop:
        shop.watch()
        ids = [shop.log(1, n=n, more={"a": [1, None]})[0] for n in range(60)]
        wrong = shop.log(1, n="x")
        assert shop.flush()
        _, dead = shop.check(table=f"public.{quoted}")
        assert sorted(dead) == ids[50:] + wrong
        assert max(shop.attempts_a_batch()) == 12  # each bad row was named at once
        assert shop.query(f"SELECT rest FROM public.{quoted} LIMIT 1") == [({"more": {"a": [1, None]}},)]
        assert shop.query("SELECT DISTINCT target, columns FROM logsluice.dead_letter") == [
            (f'"public".{quoted}', ["message", column, "rest"])
        ]


def test_attributes_hold_what_is_not_mapped(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.few (message text, lvl int, name text, host text, pid int, rest jsonb)")
    columns = {
        "message": "message",
        "lvl": "level",
        "name": "levelname",
        "host": "host",
        "pid": "pid",
        "rest": "attributes",
    }
    with Shop(dsn, table="public.few", columns=columns) as shop:
        shop.log(1, logging.WARNING, order=17, card={"password": "canary"})
        shop.log(1)
        assert shop.flush()
        shop.check(table="public.few")
        rows = shop.query(
            "SELECT lvl, name, host <> '', pid > 0, rest->'order', rest->'card', rest IS NULL FROM public.few"
        )
        assert rows[0] == (30, "WARNING", True, True, 17, {"password": "[redacted]"}, False)
        assert rows[1] == (20, "INFO", True, True, None, None, True)


def test_a_partitioned_table_of_the_users_own_is_never_given_partitions(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.parts (message text, at timestamptz) PARTITION BY RANGE (at)")
    with Shop(dsn, table="public.parts", columns={"message": "message", "at": "ts"}) as shop:
        shop.log(10)
        failures = shop.await_failure("23514", count=2)
        assert failures[-1]["verdict"] == "blocked"
        shop.do("CREATE TABLE public.parts_all PARTITION OF public.parts DEFAULT")
        assert shop.flush()
        _, dead = shop.check(table="public.parts")
        assert not dead


# --- mistakes are said once, and nothing is rejected for them ---------------------------------------------------------

MISTAKES = {
    "unknown column": (
        {"mesage": "message"},
        "ALTER TABLE public.t ADD COLUMN mesage text",
        "no column 'mesage'; did you mean 'message'?",
        "mesage",
    ),
    "nothing fills it": (
        {"message": "message"},
        "ALTER TABLE public.t ALTER COLUMN must SET DEFAULT 1",
        '\'must\' of "public"."t" is NOT NULL without a default and nothing fills it',
        "message",
    ),
    "generated": (
        {"message": "message", "must": ("extra.must", 1), "len": "line"},
        "ALTER TABLE public.t ALTER COLUMN len DROP EXPRESSION",
        '\'len\' of "public"."t" is generated by the server; take it out of columns=',
        "message",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mapping_that_cannot_be_right_is_blocked_with_one_clear_line(dsn, capfd, mistake):
    columns, mend, says, column = MISTAKES[mistake]
    with psycopg.connect(dsn, autocommit=True) as conn:
        default = "DEFAULT 1" if mistake == "unknown column" else ""
        conn.execute(
            f"CREATE TABLE public.t (message text, must int NOT NULL {default}, "
            "len int GENERATED ALWAYS AS (length(message)) STORED)"
        )
    with Shop(dsn, table="public.t", columns=columns) as shop:
        shop.log(100)
        failures = shop.await_failure("42703", count=3)
        assert {f["verdict"] for f in failures} == {"blocked"}
        assert not shop.dead()
        assert not shop.flush(0)
        shop.do(mend)
        assert shop.flush()
        _, dead = shop.check(table="public.t", column=column)
        assert not dead
    lines = [line for line in capfd.readouterr().err.splitlines() if "blocked" in line]
    assert len(lines) == 1
    assert says in lines[0]


def test_a_table_that_is_not_there_is_blocked_until_it_is(dsn, capfd):
    with Shop(dsn, table="public.later", columns={"message": "message"}) as shop:
        shop.log(10)
        assert shop.await_failure(count=2)[-1]["verdict"] == "blocked"
        shop.do("CREATE TABLE public.later (message text)")
        assert shop.flush()
        shop.check(table="public.later")
    assert 'table "public"."later" does not exist' in capfd.readouterr().err


def test_a_table_that_changes_under_load_is_read_again(shop):
    act(shop, 10)
    assert shop.flush()
    shop.do(f"ALTER TABLE {TABLE} RENAME token_count TO tokens")
    act(shop, 10)
    assert shop.await_failure("42703", count=2)[-1]["verdict"] == "blocked"
    shop.do(f"ALTER TABLE {TABLE} RENAME tokens TO token_count")
    assert shop.flush()
    shop.do(
        f"ALTER TABLE {TABLE} ADD COLUMN tenant int NOT NULL DEFAULT 1",
        f"ALTER TABLE {TABLE} ALTER COLUMN tenant DROP DEFAULT",
    )
    act(shop, 300)
    assert until(lambda: any(f["verdict"] == "blocked" for f in shop.failed("23502")), LIMIT)
    shop.do(f"ALTER TABLE {TABLE} ALTER COLUMN tenant SET DEFAULT 1")
    assert shop.flush()
    _, dead = check(shop)
    assert len(dead) <= 20


def test_a_dead_letter_table_that_takes_nothing_blocks_and_blames_no_good_row(shop, capfd):
    shop.do("ALTER TABLE logsluice.dead_letter ADD CONSTRAINT nothing CHECK (false)")
    act(shop, 20)
    (bad,) = act(shop, user=999)
    act(shop, 20)
    failures = shop.await_failure("55000", count=2)
    assert failures[-1]["verdict"] == "blocked"
    shop.do("ALTER TABLE logsluice.dead_letter DROP CONSTRAINT nothing")
    assert shop.flush()
    _, dead = check(shop)
    assert dead == [bad]
    assert "dead_letter takes no rows" in capfd.readouterr().err


# --- before anything is opened ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"table": "public.t"}, "columns="),
        ({"table": "a.b.c", "columns": {"x": "message"}}, "name or schema.name"),
        ({"table": 'a"b', "columns": {"x": "message"}}, "double quotes"),
        ({"table": "t" * 64, "columns": {"x": "message"}}, "64 bytes"),
        ({"table": "é" * 32, "columns": {"x": "message"}}, "64 bytes"),
        ({"table": "a\0b", "columns": {"x": "message"}}, "NUL"),
        ({"table": "t", "columns": {"x" * 64: "message"}}, "64 bytes"),
        ({"table": "t", "columns": {"": "message"}}, "non-empty"),
        ({"table": "t", "columns": {"x": "mesage"}}, "did you mean 'message'"),
        ({"table": "t", "columns": {"x": "session"}}, "extra.session"),
        ({"table": "t", "columns": {"x": 5}}, "a source is a string"),
        ({"table": "t", "columns": {"x": ("message", 1, 2)}}, "pair"),
        ({"table": "t", "columns": {}}, "mapping"),
        ({"table": 5}, "string"),
        ({"schema": "s" * 64}, "64 bytes"),
    ],
)
def test_what_cannot_be_right_is_said_when_logging_is_configured(options, says):
    with pytest.raises(ConfigError, match=says):
        Shop("", **options)
