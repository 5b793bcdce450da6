"""Partitions are made and dropped beside readers and writers, by roles that may do little, at odd moments."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone

import psycopg
import pytest

from logsluice import partitions, schema
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.partitions import drop, ensure, ensure_at, expired, listed, moment_of
from support.processes import until
from support.servers import acting_as

LIMIT = 20  # seconds: a net below waits that end in milliseconds
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
SHORT = "50ms"  # lock_timeout: whoever has to wait at all fails
INSERT = "INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (%s, 20, 1, 1)"
COPY = "COPY logsluice.logs (seq, ts, stream, level, message) FROM STDIN"
EXECUTE = "EXECUTE ON FUNCTION logsluice.make_partitions(timestamptz, timestamptz, text, text)"


def connect(dsn):
    return psycopg.connect(dsn, autocommit=True)


@pytest.fixture
def conn(dsn):
    with connect(dsn) as conn:
        yield conn


@pytest.fixture
def now(conn):
    return conn.execute("SELECT now()").fetchone()[0].astimezone(timezone.utc)


@pytest.fixture
def writer(conn):
    """A role that may INSERT and call make_partitions, nothing else."""
    name = f"writer_{conn.info.dbname}"
    conn.execute(f"CREATE ROLE {name}")
    conn.execute(f"GRANT USAGE ON SCHEMA logsluice TO {name}; GRANT INSERT ON logsluice.logs TO {name}")
    conn.execute(f"GRANT {EXECUTE} TO {name}")
    yield name
    conn.execute(f"RESET ROLE; DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@pytest.fixture
def open_reader(dsn):
    """A transaction that has read logs and stays open: it holds ACCESS SHARE, as a report or pg_dump does."""
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT count(*) FROM logsluice.logs")
        yield reader
        reader.rollback()


def names(conn):
    return [part.name for part in listed(conn, "logsluice")]


def ranges(conn):
    return [(part.lower, part.upper) for part in listed(conn, "logsluice")]


def covers(conn, lower, upper):
    """Whether the partitions lie end to end, without overlap, and hold this range."""
    found = ranges(conn)
    together = all(one[1] == two[0] for one, two in itertools.pairwise(found))
    return together and found[0][0] <= lower and upper <= found[-1][1]


def lock_waits(dsn):
    """How many sessions of this database wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connect(dsn) as conn:
        return conn.execute(query).fetchone()[0]


# Making


def test_every_width_has_bounds_in_utc_and_a_name_of_its_own(conn, now):
    # 5:45 ahead: no bound in local time would be a whole hour; and days before months.
    conn.execute("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'")
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for number, (width, name) in enumerate(
        {"hour": "%Y%m%d%H", "day": "%Y%m%d", "week": "%Gw%V", "month": "%Y%m"}.items(), start=1
    ):
        moment = now - timedelta(days=62 * number)  # apart from each other, whatever the width
        start = moment.replace(minute=0, second=0, microsecond=0)
        if width != "hour":
            start = midnight - timedelta(days=62 * number)
        if width == "week":
            start -= timedelta(days=start.weekday())
        if width == "month":
            start = start.replace(day=1)
        length = {"hour": HOUR, "day": DAY, "week": 7 * DAY}.get(width)
        end = start + length if length else (start + 31 * DAY).replace(day=1)
        # Called as anybody may, with settings of the session: what ensure_at sets would hide it.
        call = "SELECT logsluice.make_partitions(%s, %s, 'logs', %s)"
        assert conn.execute(call, [moment, moment, width]).fetchall() == [(f"logs_{start.strftime(name)}",)]
        assert conn.execute(call, [moment, moment, width]).fetchall() == []
        assert (start, end) in ranges(conn)
        assert ensure_at(conn, "logsluice", width, moment) == []
        conn.execute(INSERT, [start])
        conn.execute(INSERT, [end - timedelta(microseconds=1)])


def test_yesterday_today_and_tomorrow_are_kept_ready(conn, now):
    made = ensure(conn, "logsluice", "day", now)
    assert made == [f"logs_{now + days * DAY:%Y%m%d}" for days in (-1, 0, 1)]
    assert ensure(conn, "logsluice", "day", now) == []
    assert covers(conn, now - DAY, now + DAY)


def test_a_partition_is_a_clone_of_its_parent(conn, now):
    name = ensure_at(conn, "logsluice", "day", now)[0]
    query = (
        "SELECT (SELECT count(*) FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid WHERE i.indrelid = %(p)s), "
        "(SELECT array_agg(contype::text) FROM pg_constraint WHERE conrelid = %(p)s AND contype = 'c'), "
        "(SELECT count(*) FROM pg_attribute WHERE attrelid = %(p)s AND attnum > 0 AND col_description(%(p)s, attnum) <> ''), "
        "(SELECT count(*) FROM pg_attribute WHERE attrelid = 'logsluice.logs'::regclass AND attnum > 0)"
    )
    oid = conn.execute(f"SELECT 'logsluice.{name}'::regclass::oid").fetchone()[0]
    indexes, checks, commented, columns = conn.execute(query, {"p": oid}).fetchone()
    assert (indexes, checks) == (3, ["c"])
    assert commented == columns


def test_ten_that_make_the_same_at_once_make_it_once(dsn, conn, now):
    with ThreadPoolExecutor(10) as pool, connect(dsn) as first:
        with first.transaction():
            # The first one is not finished, so that all the others have seen nothing and wait for it.
            first.execute("SELECT logsluice.make_partitions(%s, %s)", [now, now])

            def start():
                with connect(dsn) as other:
                    return ensure(other, "logsluice", "day", now)

            results = [pool.submit(start) for _ in range(9)]
            assert until(lambda: lock_waits(dsn) == 9, LIMIT)
        made = [result.result(LIMIT) for result in results]
    assert sorted(filter(None, made)) == [[f"logs_{now + days * DAY:%Y%m%d}" for days in (-1, 1)]]
    assert len(names(conn)) == 3


def test_looking_takes_no_lock_when_nothing_is_missing(dsn, conn, now, monkeypatch):
    monkeypatch.setattr(partitions, "MAKE_LOCK_TIMEOUT", SHORT)
    ensure(conn, "logsluice", "day", now)
    with connect(dsn) as other, other.transaction():
        other.execute("SELECT logsluice.make_partitions(%s, %s)", [now - 9 * DAY, now - 9 * DAY])
        assert ensure(conn, "logsluice", "day", now) == []
        with pytest.raises(psycopg.errors.LockNotAvailable):  # while one that has to be made waits its turn
            ensure_at(conn, "logsluice", "day", now - 20 * DAY)
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_readers_and_writers_delay_nothing(dsn, conn, now, open_reader, monkeypatch):
    monkeypatch.setattr(partitions, "MAKE_LOCK_TIMEOUT", SHORT)
    ensure_at(conn, "logsluice", "day", now)
    with psycopg.connect(dsn) as open_writer:
        open_writer.execute(INSERT, [now])
        assert ensure_at(conn, "logsluice", "day", now - 3 * DAY)
        # What we do not do is what would wait: the test can see the difference.
        blocking = (
            "CREATE TABLE logsluice.x PARTITION OF logsluice.logs FOR VALUES FROM ('1999-01-01') TO ('1999-01-02')"
        )
        conn.execute(f"SET lock_timeout = '{SHORT}'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            conn.execute(blocking)
        open_writer.commit()


def test_an_unfinished_making_delays_no_writer_and_no_reader(dsn, conn, now):
    ensure_at(conn, "logsluice", "day", now)
    with connect(dsn) as other, other.transaction():
        other.execute("SELECT logsluice.make_partitions(%s, %s)", [now - 3 * DAY, now - 3 * DAY])
        conn.execute(f"SET lock_timeout = '{SHORT}'")
        conn.execute(INSERT, [now])
        assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (1,)


def test_what_is_out_of_bounds_is_refused(conn):
    for arguments in (
        # In hours: a day of a server in another time zone has 23 of them or 25 now and then, make_partitions' is of UTC.
        "now() - interval '9600 hours 1 minute', now()",
        "now(), now() + interval '192 hours 1 minute'",
        "now(), now() - interval '1 minute'",
        "'-infinity', now()",
        "now(), 'infinity'",
        "NULL, now()",
        "now(), NULL",
        "now(), now(), 'logs', 'decade'",
        "now(), now(), 'logs', NULL",
        "now() - interval '504 hours', now(), 'logs', 'hour'",  # 505 partitions
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="make_partitions: "):
            conn.execute(f"SELECT logsluice.make_partitions({arguments})")
    assert names(conn) == []
    for inside in ("now() - interval '9600 hours'", "now() + interval '192 hours'"):
        assert conn.execute(f"SELECT logsluice.make_partitions({inside}, {inside})").fetchall()


def test_other_widths_fill_what_the_old_ones_left(conn, now):
    # Every pair, in both directions: each must leave no hole, overlap nothing, and say nothing the second time.
    for number, widths in enumerate((("hour", "day"), ("day", "week"), ("week", "month"), ("month", "hour"))):
        moment = now - timedelta(days=40 + 80 * number)
        for width in (*widths, *reversed(widths)):
            ensure_at(conn, "logsluice", width, moment)
            assert ensure_at(conn, "logsluice", width, moment) == []
        edges = sorted(edge for edge in ranges(conn) if abs(edge[0] - moment) < 35 * DAY)
        assert all(one[1] == two[0] for one, two in itertools.pairwise(edges))
        conn.execute(INSERT, [moment])


def test_a_range_that_somebody_else_made_is_left_alone(conn, now):
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    conn.execute(
        "CREATE TABLE logsluice.ancient PARTITION OF logsluice.logs FOR VALUES FROM (MINVALUE) TO "
        f"('{midnight - 2 * DAY + HOUR}')"
    )
    conn.execute("CREATE TABLE logsluice.rest PARTITION OF logsluice.logs DEFAULT")
    assert ensure_at(conn, "logsluice", "day", now - 2 * DAY) == [f"logs_{now - 2 * DAY:%Y%m%d}"]
    assert (midnight - 2 * DAY + HOUR, midnight - DAY) in ranges(conn)
    assert ensure_at(conn, "logsluice", "day", now - 100 * DAY) == []


def test_a_name_that_is_taken_gets_a_number(conn, now):
    name = ensure_at(conn, "logsluice", "day", now)[0]
    conn.execute(INSERT, [now])
    conn.execute(f"ALTER TABLE logsluice.logs DETACH PARTITION logsluice.{name}")  # somebody keeps it
    assert ensure_at(conn, "logsluice", "day", now) == [f"{name}_2"]
    conn.execute(INSERT, [now])
    assert names(conn) == [f"{name}_2"]
    assert conn.execute(f"SELECT count(*) FROM logsluice.{name}").fetchone() == (1,)


def test_long_names_are_cut_and_stay_apart(conn, now):
    long = "é" * 31  # 62 bytes of 63
    conn.execute(f'CREATE TABLE logsluice."{long}" (ts timestamptz NOT NULL) PARTITION BY RANGE (ts)')
    made = ensure(conn, "logsluice", "day", now, table=long)
    assert made == [f"{'é' * 24}_{now + days * DAY:%Y%m%d}" for days in (-1, 0, 1)]


def test_a_plain_table_needs_nothing(empty_dsn, now):
    with connect(empty_dsn) as conn:
        schema.migrate(conn, partition="none")
        assert ensure(conn, "logsluice", "day", now) == []
        assert ensure(conn, "logsluice", "none", now) == []
        with pytest.raises(LogsluiceError, match=r'no partitioned table "logsluice"\."logs"'):
            listed(conn, "logsluice")


def test_a_table_partitioned_in_another_way_is_refused(conn, now):
    conn.execute("CREATE TABLE logsluice.by_list (ts timestamptz NOT NULL) PARTITION BY LIST (ts)")
    conn.execute("CREATE TABLE logsluice.by_id (ts timestamptz, id bigint NOT NULL) PARTITION BY RANGE (id)")
    for table in ("by_list", "by_id"):
        with pytest.raises(psycopg.errors.WrongObjectType):
            ensure(conn, "logsluice", "day", now, table=table)
    with pytest.raises(psycopg.errors.UndefinedTable):
        ensure(conn, "logsluice", "day", now, table="nothing")


# The error that names a moment


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Asia/Kathmandu"])
def test_no_partition_names_the_moment_and_the_same_batch_goes_through(conn, writer, now, zone):
    moment = (now - 100 * DAY).replace(microsecond=120_000)
    row = f"17\t{moment:%Y-%m-%d %H:%M:%S.%f}Z\t8\t20\tat 1999-01-01 00:00:00+00\n"

    def send(datestyle):
        with conn.transaction(), conn.cursor() as cursor:
            conn.execute(f"SET LOCAL datestyle = '{datestyle}'")
            with cursor.copy(COPY) as copy:
                copy.write(row)

    conn.execute(f"SET timezone = '{zone}'")
    with pytest.raises(psycopg.errors.CheckViolation) as seen:
        send("ISO")
    assert seen.value.diag.constraint_name is None
    assert moment_of(seen.value.diag.message_detail) == moment_of(seen.value.diag.context) == moment
    with acting_as(conn, writer):
        with pytest.raises(psycopg.errors.CheckViolation) as seen:
            send("German")
        assert seen.value.diag.message_detail is None  # it is for roles with SELECT on ts
        assert moment_of(seen.value.diag.context) == moment
        ensure_at(conn, "logsluice", "day", moment_of(seen.value.diag.context))
        send("German")


# Who may


def test_public_may_not_make_partitions_and_the_writer_may(conn, writer, now):
    conn.execute(f"CREATE ROLE stranger_{conn.info.dbname}; GRANT USAGE ON SCHEMA logsluice TO PUBLIC")
    try:
        with acting_as(conn, f"stranger_{conn.info.dbname}"), pytest.raises(psycopg.errors.InsufficientPrivilege):
            ensure(conn, "logsluice", "day", now)
    finally:
        conn.execute(f"DROP ROLE stranger_{conn.info.dbname}")
    with acting_as(conn, writer):
        assert len(ensure(conn, "logsluice", "day", now)) == 3
        conn.execute(INSERT, [now])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):  # a partition gives no way around logs
            conn.execute(f"INSERT INTO logsluice.logs_{now:%Y%m%d} (ts, level, stream, seq) VALUES (now(), 20, 1, 1)")


def plant(conn, home):
    """Functions and an operator that fit make_partitions' arguments better than those of pg_catalog."""
    for signature, value in {
        "format(text, text)": "'DROP TABLE logsluice.stream'::text",
        "format(text, text, text, text, text, text, timestamptz, text, timestamptz)": "'DROP TABLE logsluice.stream'::text",
        "format(text, text, text, text, text, timestamptz, timestamptz)": "'DROP TABLE logsluice.stream'::text",
        "glue(text, integer)": "'trap'::text",
        "current_schemas(boolean)": "ARRAY['pg_temp', 'pg_temp']::name[]",
        "set_config(text, text, boolean)": "'trap'::text",
    }.items():
        kind = value.rsplit("::", 1)[1]
        text = f"INSERT INTO public.caught VALUES (current_user); SELECT {value}"
        conn.execute(f"CREATE FUNCTION {home}.{signature} RETURNS {kind} LANGUAGE sql AS $${text}$$")
    if home != "pg_temp":
        conn.execute(f"CREATE OPERATOR {home}.|| (LEFTARG = text, RIGHTARG = integer, FUNCTION = {home}.glue)")


def test_what_a_writer_plants_never_runs_as_the_owner(conn, writer, now):
    # The worst case: the writer may create in the schema itself, in public and in pg_temp.
    conn.execute(f"GRANT CREATE ON SCHEMA logsluice, public TO {writer}")
    conn.execute("CREATE TABLE public.caught (who text); GRANT INSERT, SELECT ON public.caught TO PUBLIC")
    caught = "SELECT count(*) FROM public.caught"
    with acting_as(conn, writer):
        conn.execute("CREATE TEMP TABLE logs (ts timestamptz NOT NULL) PARTITION BY RANGE (ts)")
        conn.execute(
            'CREATE TEMP TABLE pg_class (oid oid, relname name, relkind "char", relowner oid, relnamespace oid)'
        )
        for home in ("logsluice", "public", "pg_temp"):
            plant(conn, home)
        # The traps catch whoever looks into the schema, even behind pg_catalog.
        with conn.transaction(force_rollback=True):
            conn.execute("SET LOCAL search_path = pg_catalog, logsluice")
            conn.execute("SELECT format('a'::text, 'b'::text), 'c'::text || 2")
            assert conn.execute(caught).fetchone() == (2,)
        conn.execute("SET search_path = logsluice, public, pg_temp, pg_catalog")
        made = conn.execute("SELECT logsluice.make_partitions(now() - interval '1 day', now())").fetchall()
        # The name is taken: this one would meet the operator as well.
        conn.execute(f"CREATE TABLE logsluice.logs_{now + DAY:%Y%m%d} ()")
        made += conn.execute("SELECT logsluice.make_partitions(now(), now() + interval '1 day')").fetchall()
        conn.execute("RESET search_path")
    assert made == [(f"logs_{now - DAY:%Y%m%d}",), (f"logs_{now:%Y%m%d}",), (f"logs_{now + DAY:%Y%m%d}_2",)]
    assert conn.execute(caught).fetchone() == (0,)
    assert len(names(conn)) == 3


def test_somebody_else_s_table_is_not_cloned_with_our_rights(conn, writer, now):
    conn.execute(f"GRANT CREATE ON SCHEMA logsluice TO {writer}")
    with acting_as(conn, writer):
        conn.execute("CREATE TABLE logsluice.trap (ts timestamptz NOT NULL) PARTITION BY RANGE (ts)")
        with pytest.raises(psycopg.errors.UndefinedTable, match="trap that belongs to"):
            ensure(conn, "logsluice", "day", now, table="trap")


# Dropping


@pytest.fixture
def old(conn, now):
    """Three day partitions, 40, 39 and 38 days old, with a row each, and those of today."""
    for days in (40, 39, 38, 0):
        ensure_at(conn, "logsluice", "day", now - days * DAY)
        conn.execute(INSERT, [now - days * DAY])
    return [f"logs_{now - days * DAY:%Y%m%d}" for days in (40, 39, 38)]


def count(conn):
    return conn.execute("SELECT count(*) FROM logsluice.logs").fetchone()[0]


def test_only_whole_partitions_expire(conn, now, old):
    conn.execute("CREATE TABLE logsluice.rest PARTITION OF logsluice.logs FOR VALUES FROM ('2999-01-01') TO (MAXVALUE)")
    conn.execute(
        "CREATE TABLE logsluice.ancient PARTITION OF logsluice.logs FOR VALUES FROM (MINVALUE) TO ('2001-01-01')"
    )
    middle = (now - 39 * DAY).replace(hour=12)
    assert [part.name for part in expired(conn, "logsluice", timedelta(0), middle)] == ["ancient", old[0]]
    end = (now - 38 * DAY).replace(hour=0, minute=0, second=0, microsecond=0)
    assert [part.name for part in expired(conn, "logsluice", timedelta(0), end)] == ["ancient", *old[:2]]
    just_before = end - timedelta(microseconds=1)
    assert [part.name for part in expired(conn, "logsluice", timedelta(0), just_before)] == ["ancient", old[0]]
    conn.execute("ANALYZE logsluice.logs")
    part = expired(conn, "logsluice", 39 * DAY, now)[1]
    assert (part.rows, part.state, part.upper - part.lower) == (1, "attached", DAY)
    assert part.size > 8192  # a page of rows, and indexes


def test_a_dropped_partition_is_gone_and_can_be_made_again(conn, now, old):
    for part in expired(conn, "logsluice", 39 * DAY, now):
        drop(conn, "logsluice", part)
        drop(conn, "logsluice", part)  # gone: nothing happens
    assert names(conn) == [*old[1:], f"logs_{now:%Y%m%d}"]
    assert count(conn) == 3
    assert ensure_at(conn, "logsluice", "day", now - 40 * DAY) == [old[0]]
    conn.execute(INSERT, [now - 40 * DAY])
    assert count(conn) == 4
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_a_partition_that_was_made_again_with_other_bounds_is_left_alone(conn, now, old):
    seen = expired(conn, "logsluice", 39 * DAY, now)[0]
    drop(conn, "logsluice", seen)
    ensure_at(conn, "logsluice", "hour", now - 40 * DAY)
    ensure_at(conn, "logsluice", "day", now - 40 * DAY)
    drop(conn, "logsluice", seen)
    assert old[0] in names(conn)


def test_an_open_reader_makes_dropping_fail_and_nobody_else(dsn, conn, now, old, open_reader, monkeypatch):
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", SHORT)
    monkeypatch.setattr(partitions, "MAKE_LOCK_TIMEOUT", SHORT)
    part = expired(conn, "logsluice", 39 * DAY, now)[0]
    with pytest.raises(psycopg.errors.LockNotAvailable):
        drop(conn, "logsluice", part)
    assert [one.state for one in expired(conn, "logsluice", 39 * DAY, now)] == ["pending"]
    with pytest.raises(psycopg.errors.LockNotAvailable):  # the reader is still there
        drop(conn, "logsluice", part)
    # Rows and partitions go their way meanwhile, but nothing goes into the range that is on its way out.
    conn.execute(INSERT, [now])
    assert ensure(conn, "logsluice", "day", now) == [f"logs_{now + days * DAY:%Y%m%d}" for days in (-1, 1)]
    with pytest.raises(psycopg.errors.ObjectInUse, match=f"{old[0]} was interrupted"):
        ensure_at(conn, "logsluice", "day", now - 40 * DAY)
    assert (
        len(conn.execute("SELECT logsluice.make_partitions(%s, %s)", [now - 41 * DAY, now - 40 * DAY]).fetchall()) == 1
    )
    assert open_reader.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (4 - 1 + 1,)  # not seen any more

    open_reader.rollback()
    drop(conn, "logsluice", part)
    assert old[0] not in names(conn)
    assert ensure_at(conn, "logsluice", "day", now - 40 * DAY) == [old[0]]


def test_a_drop_that_waits_delays_nobody(dsn, conn, now, old, open_reader, monkeypatch):
    monkeypatch.setattr(partitions, "DROP_LOCK_TIMEOUT", f"{LIMIT}s")
    part = expired(conn, "logsluice", 39 * DAY, now)[0]
    with ThreadPoolExecutor(1) as pool, connect(dsn) as other:
        dropping = pool.submit(drop, conn, "logsluice", part)
        assert until(lambda: lock_waits(dsn) == 1, LIMIT)
        monkeypatch.setattr(partitions, "MAKE_LOCK_TIMEOUT", SHORT)
        other.execute(f"SET lock_timeout = '{SHORT}'")
        other.execute(INSERT, [now])
        assert other.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (4,)
        assert ensure(other, "logsluice", "day", now)
        open_reader.rollback()
        dropping.result(LIMIT)
    assert old[0] not in names(conn)


def test_what_was_detached_and_not_dropped_is_found_again(conn, now, old):
    part = expired(conn, "logsluice", 39 * DAY, now)[0]
    conn.execute(f"CREATE VIEW public.report AS SELECT * FROM logsluice.{part.name}")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        drop(conn, "logsluice", part)
    found = expired(conn, "logsluice", 39 * DAY, now)
    assert [(one.name, one.state, one.lower, one.upper) for one in found] == [
        (part.name, "detached", part.lower, part.upper)
    ]
    assert ensure_at(conn, "logsluice", "day", now - 40 * DAY) == [f"{part.name}_2"]  # rows need a place meanwhile
    conn.execute("DROP VIEW public.report")
    drop(conn, "logsluice", found[0])
    assert [one.name for one in expired(conn, "logsluice", 39 * DAY, now)] == [f"{part.name}_2"]


def test_what_somebody_detached_to_keep_it_is_never_dropped(conn, now, old):
    conn.execute("CREATE TABLE logsluice.rest PARTITION OF logsluice.logs DEFAULT")
    part = expired(conn, "logsluice", 39 * DAY, now)[0]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):  # PostgreSQL refuses it beside a DEFAULT partition
        drop(conn, "logsluice", part)
    assert [one.state for one in expired(conn, "logsluice", 39 * DAY, now)] == ["attached"]
    conn.execute(f"ALTER TABLE logsluice.logs DETACH PARTITION logsluice.{part.name}")
    assert expired(conn, "logsluice", 39 * DAY, now) == []
    drop(conn, "logsluice", part)
    assert conn.execute(f"SELECT count(*) FROM logsluice.{part.name}").fetchone() == (1,)


def test_dropping_through_a_pooler_is_refused(conn, now, old, monkeypatch):
    part = expired(conn, "logsluice", 39 * DAY, now)[0]
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", 0)  # a pooler makes its own number up
    with pytest.raises(ConfigError, match="not to a pooler"):
        drop(conn, "logsluice", part)
    assert part.name in names(conn)
