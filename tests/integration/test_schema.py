"""migrate, render and missing against a real server."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from logsluice import formatters, partitions, privileges, schema
from logsluice.columns import quote
from logsluice.devserver import programs
from logsluice.privileges import Missing
from support.processes import until
from support.servers import acting_as
from support.shop import Shop

LIMIT = 20  # seconds: a net below waits that end in milliseconds
SIGNATURE = "make_partitions(timestamptz, timestamptz, text, text)"
# What a writer needs, one privilege a line: (privilege, thing).
NEEDED = [
    ("USAGE", 'SCHEMA "logsluice"'),
    ("INSERT", '"logsluice"."logs"'),
    ("INSERT", '"logsluice"."dead_letter"'),
    ("SELECT", '"logsluice"."stream"'),
    ("INSERT", '"logsluice"."stream"'),
    ("UPDATE", '"logsluice"."stream"'),
    ("SELECT", '"logsluice"."version"'),
    ("EXECUTE", f'FUNCTION "logsluice".{SIGNATURE}'),
]


def connect(dsn):
    return psycopg.connect(dsn, autocommit=True)


def lock_waits(dsn):
    """How many sessions of this database wait for a lock. Apart: within a transaction the answer never changes."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connect(dsn) as conn:
        return conn.execute(query).fetchone()[0]


@contextmanager
def role(conn, name, *grants):
    """A role with these grants; gone afterwards, with all that it owns here."""
    name = f"{name}_{conn.info.dbname}"  # roles belong to the whole server
    conn.execute(f"CREATE ROLE {name}")
    try:
        for privilege, thing in grants:
            conn.execute(f"GRANT {privilege} ON {thing} TO {name}")
        yield name
    finally:
        conn.execute("RESET ROLE")
        conn.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER")
        conn.execute(f"DROP OWNED BY {name}")
        conn.execute(f"DROP ROLE {name}")


def structure(conn, name="logsluice"):
    """Everything in the schema, as text."""
    queries = (
        """SELECT c.relname, c.relkind, c.relpersistence, c.reloptions, c.relacl::text, pg_get_partkeydef(c.oid),
                  obj_description(c.oid, 'pg_class')
             FROM pg_class c WHERE c.relnamespace = %(home)s::regnamespace""",
        """SELECT a.attrelid::regclass::text, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                  pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
             FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
             LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
            WHERE c.relnamespace = %(home)s::regnamespace AND a.attnum > 0""",
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = %(home)s::regnamespace",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = %(name)s",
        "SELECT definition FROM pg_views WHERE schemaname = %(name)s",
        """SELECT pg_get_functiondef(oid), proacl::text, obj_description(oid, 'pg_proc')
             FROM pg_proc WHERE pronamespace = %(home)s::regnamespace""",
    )
    values = {"name": name, "home": quote(name)}
    found = [sorted(conn.execute(query, values).fetchall(), key=repr) for query in queries]
    versions = sql.SQL("SELECT version, name FROM {}.version").format(sql.Identifier(name))
    return [*found, conn.execute(versions).fetchall()]


def psql(dsn, text, *args):
    """Run text with psql, from where the server's programs are."""
    program = programs.find_programs() / "psql"
    program = str(program) if program.exists() else shutil.which("psql")
    assert program, "psql is missing: apt-get install postgresql-client"
    command = [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", *args, "-d", dsn, "-f", "-"]
    done = subprocess.run(
        command, input=text, text=True, capture_output=True, timeout=LIMIT, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


# migrate


def test_migrating_twice_is_a_no_op(empty_dsn):
    with connect(empty_dsn) as conn:
        assert privileges.missing(conn) == [Missing('schema "logsluice" does not exist', "logsluice migrate")]
        assert schema.migrate(conn) == [file.name for file in schema.sql_files()]
        before = structure(conn)
        rows = conn.execute("SELECT version, checksum, applied FROM logsluice.version").fetchall()
        assert schema.migrate(conn) == []
        assert structure(conn) == before
        assert conn.execute("SELECT version, checksum, applied FROM logsluice.version").fetchall() == rows
        assert [row[:2] for row in rows] == [(file.number, file.checksum) for file in schema.sql_files()]
        assert privileges.missing(conn) == []


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_ten_that_start_at_once_migrate_once(empty_dsn, isolation):
    with connect(empty_dsn) as first, ThreadPoolExecutor(10) as pool:
        with first.transaction():
            # Held, so that all ten have looked and found nothing before any of them may begin.
            first.execute("SELECT pg_advisory_xact_lock(hashtextextended('logsluice migrate logsluice', 0))")

            def start():
                with connect(empty_dsn) as conn:
                    conn.execute(f"SET default_transaction_isolation = '{isolation}'")
                    return schema.migrate(conn)

            results = [pool.submit(start) for _ in range(10)]
            assert until(lambda: lock_waits(empty_dsn) == 10, LIMIT)
        applied = [result.result(LIMIT) for result in results]
        # Each file by one of them; not all by the same one, as each file is a transaction of its own.
        assert sorted(name for names in applied for name in names) == [file.name for file in schema.sql_files()]
        assert privileges.missing(first) == []


def test_a_lock_that_is_not_given_up_ends_in_an_error_and_nothing_half_done(empty_dsn, monkeypatch):
    monkeypatch.setattr(schema, "_SETTINGS", schema._SETTINGS.replace("lock_timeout = '10s'", "lock_timeout = '50ms'"))
    with connect(empty_dsn) as holder, connect(empty_dsn) as conn:
        with holder.transaction():
            holder.execute("SELECT pg_advisory_xact_lock(hashtextextended('logsluice migrate logsluice', 0))")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                schema.migrate(conn)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert schema.migrate(conn)


def test_the_server_ends_a_migration_whose_process_is_silent(empty_dsn, monkeypatch):
    """Its locks would stay as long as a child of a killed process has its socket."""
    settings = "idle_in_transaction_session_timeout = '10s'"
    assert settings in schema._SETTINGS
    monkeypatch.setattr(schema, "_SETTINGS", schema._SETTINGS.replace(settings, settings.replace("10s", "50ms")))
    with connect(empty_dsn) as silent, connect(empty_dsn) as other:

        def say_nothing_until_it_is_gone():
            alive = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
            assert until(lambda: not other.execute(alive, [silent.info.backend_pid]).fetchone(), LIMIT)
            silent.execute("SELECT 1")

        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout), schema._alone(silent, "logsluice"):
            say_nothing_until_it_is_gone()


def test_a_file_that_fails_leaves_nothing(empty_dsn, monkeypatch):
    files = schema.sql_files()
    broken = schema.SqlFile(1, files[0].name, files[0].text + "SELECT 1/0;", files[0].checksum)
    with connect(empty_dsn) as conn:
        with monkeypatch.context() as patch:
            patch.setattr(schema, "sql_files", lambda: [broken])
            with pytest.raises(psycopg.errors.DivisionByZero):
                schema.migrate(conn)
        assert conn.execute("SELECT to_regnamespace('logsluice')").fetchone() == (None,)
        assert schema.migrate(conn) == [file.name for file in files]


def test_odd_schema_names_work(empty_dsn):
    name = 'Weird "Schema" über'
    with connect(empty_dsn) as conn:
        assert schema.migrate(conn, name)
        assert privileges.missing(conn, name) == []
        now = conn.execute("SELECT now()").fetchone()[0]
        assert len(partitions.ensure(conn, name, "day", now)) == 3
        conn.execute(f"INSERT INTO {quote(name)}.logs (ts, level, stream, seq) VALUES (now(), 20, 1, 1)")
        assert conn.execute("SELECT to_regnamespace('logsluice')").fetchone() == (None,)


def test_an_existing_schema_may_hold_other_things(empty_dsn):
    with connect(empty_dsn) as conn:
        conn.execute("CREATE TABLE public.orders (id bigint)")
        assert schema.migrate(conn, "public")
        assert privileges.missing(conn, "public") == []


def test_owning_the_database_is_enough(empty_dsn):
    with connect(empty_dsn) as conn, role(conn, "owner") as owner:
        conn.execute(f"ALTER DATABASE {conn.info.dbname} OWNER TO {owner}")
        with acting_as(conn, owner):
            assert schema.migrate(conn)
            assert privileges.missing(conn) == []
            assert len(partitions.ensure(conn, "logsluice", "day", conn.execute("SELECT now()").fetchone()[0])) == 3
        conn.execute(f"ALTER DATABASE {conn.info.dbname} OWNER TO CURRENT_USER")


def test_owning_the_schema_is_enough(empty_dsn):
    # CREATE SCHEMA IF NOT EXISTS would be refused: that role may make no schema.
    with connect(empty_dsn) as conn, role(conn, "tenant") as tenant:
        conn.execute(f"CREATE SCHEMA logsluice AUTHORIZATION {tenant}")
        with acting_as(conn, tenant):
            assert schema.migrate(conn)
            assert privileges.missing(conn) == []


def test_a_database_of_another_encoding(admin, postgres_server):
    name = f"logsluice_latin1_{os.getpid()}"
    admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with connect(postgres_server.dsn(name)) as conn:
            assert schema.migrate(conn)
            dead = "INSERT INTO logsluice.dead_letter (stream, position, target, row) VALUES (1, 1, 'logs', %s)"
            conn.execute(dead, ["snow \u2603".encode()])
    finally:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_nothing_trails_in_the_session(empty_dsn):
    state = (
        # transaction_isolation ends with its transaction.
        "SELECT array_agg(name) FROM pg_settings WHERE source = 'session' AND name <> 'transaction_isolation'",
        "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'",
        "SELECT count(*) FROM pg_prepared_statements",
        "SELECT current_setting('search_path')",
    )
    with connect(empty_dsn) as conn:
        conn.prepare_threshold = 0  # psycopg would name each statement at its first use
        before = [conn.execute(query, prepare=False).fetchone() for query in state]
        schema.migrate(conn)
        privileges.missing(conn)
        now = conn.execute("SELECT now()", prepare=False).fetchone()[0]
        partitions.ensure(conn, "logsluice", "day", now)
        partitions.drop(conn, "logsluice", partitions.listed(conn, "logsluice")[0])
        assert [conn.execute(query, prepare=False).fetchone() for query in state] == before


# The files


@pytest.mark.parametrize(("name", "partition"), [("logsluice", "none"), ('Weird "Schema"', "day")])
def test_what_a_dba_runs_is_what_migrate_makes(empty_dsn, admin, postgres_server, name, partition):
    other = f"{psycopg.conninfo.conninfo_to_dict(empty_dsn)['dbname']}_psql"
    admin.execute(f"CREATE DATABASE {other}")
    try:
        printed = psql(postgres_server.dsn(other), schema.render(name, partition))
        with connect(empty_dsn) as migrated, connect(postgres_server.dsn(other)) as by_hand:
            schema.migrate(migrated, name, partition)
            assert structure(by_hand, name) == structure(migrated, name)
            assert schema.migrate(by_hand, name, partition) == []
        assert not printed
    finally:
        admin.execute(f"DROP DATABASE {other} WITH (FORCE)")


def test_the_file_itself_runs_in_psql(empty_dsn, admin, postgres_server):
    other = f"{psycopg.conninfo.conninfo_to_dict(empty_dsn)['dbname']}_file"
    admin.execute(f"CREATE DATABASE {other}")
    try:
        for file in schema.sql_files():
            psql(postgres_server.dsn(other), file.text, "-1", "-v", "schema=logsluice")
        with connect(empty_dsn) as migrated, connect(postgres_server.dsn(other)) as by_hand:
            schema.migrate(migrated)
            assert structure(by_hand) == structure(migrated)
            assert privileges.missing(by_hand) == []
            assert schema.migrate(by_hand) == []
    finally:
        admin.execute(f"DROP DATABASE {other} WITH (FORCE)")


def test_render_runs_through_the_driver_with_its_grants(empty_dsn):
    with connect(empty_dsn) as conn, role(conn, "writer") as writer:
        conn.execute(schema.render(grant_to=writer))
        with acting_as(conn, writer):
            assert privileges.missing(conn) == []


def test_everything_has_a_comment(dsn):
    with connect(dsn) as conn:
        bare = conn.execute(
            "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
            "WHERE c.relnamespace = 'logsluice'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.attnum > 0 "
            "AND (coalesce(obj_description(c.oid, 'pg_class'), '') = '' "
            "OR coalesce(col_description(c.oid, a.attnum), '') = '')"
        ).fetchall()
        assert bare == []
        functions = "SELECT obj_description(oid, 'pg_proc') FROM pg_proc WHERE pronamespace = 'logsluice'::regnamespace"
        assert all(row[0] for row in conn.execute(functions).fetchall())


def test_the_tables_have_the_columns_and_indexes_of_the_design(dsn):
    columns = {
        "logs": "ts level logger message service trace_id span_id correlation_id user_id organization_id file line func "
        "thread task exc_type exc_message exc_text template attributes stream seq",
        "stream": "stream position stored dead offered dropped service environment version host pid started updated "
        "retired journal",
        "dead_letter": "at stream seq position target columns row sqlstate error replayed_at tries due stuck",
        "version": "version name checksum applied",
        "hold": "name reason target starts ends match made",
    }
    with connect(dsn) as conn:
        for table, names in columns.items():
            description = conn.execute(f"SELECT * FROM logsluice.{table}").description
            assert [column.name for column in description] == names.split()
        indexes = conn.execute(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'logsluice' AND tablename = 'logs' ORDER BY 1"
        ).fetchall()
        assert [row[0].split("USING ")[1] for row in indexes] == [
            "btree (level, ts) WHERE (level >= 30)",
            "btree (trace_id) WHERE (trace_id IS NOT NULL)",
            "btree (ts)",
        ]
        options = "SELECT reloptions FROM pg_class WHERE oid = 'logsluice.stream'::regclass"
        assert conn.execute(options).fetchone() == (["fillfactor=50"],)
        # With a DEFAULT partition DETACH CONCURRENTLY would be refused.
        assert conn.execute("SELECT count(*) FROM pg_partitioned_table WHERE partdefid <> 0").fetchone() == (0,)


def test_views_speak_opentelemetry_and_grafana(dsn):
    with connect(dsn) as conn:
        now = conn.execute("SELECT now()").fetchone()[0]
        partitions.ensure(conn, "logsluice", "day", now)
        conn.cursor().executemany(
            "INSERT INTO logsluice.logs (ts, level, logger, message, service, trace_id, line, exc_type, attributes, stream, seq) "
            "VALUES (%s, %s, 'shop', 'paid', 'checkout', 'abc', 17, 'ValueError', %s, 1, %s)",
            [(now, level, '{"order": 5}', level) for level in (0, 5, 10, 12, 20, 25, 30, 40, 50, 99)],
        )
        query = "SELECT severity_number, severity_text FROM logsluice.otel_logs ORDER BY 1, 2 NULLS FIRST"
        assert conn.execute(query).fetchall() == [
            (1, None), (1, "TRACE"), (5, "DEBUG"), (5, "DEBUG"), (9, "INFO"), (11, "INFO"), (13, "WARNING"), (17, "ERROR"),
            (21, "CRITICAL"), (24, "CRITICAL"),
        ]  # fmt: skip
        one = conn.execute("SELECT * FROM logsluice.otel_logs WHERE severity_number = 9")
        names = [column.name for column in one.description]
        assert dict(zip(names, one.fetchone(), strict=True)) == {
            "timestamp": now, "observed_timestamp": now, "trace_id": "abc", "span_id": None, "severity_text": "INFO",
            "severity_number": 9, "body": "paid", "service_name": "checkout", "scope_name": "shop",
            "resource_attributes": {"service.name": "checkout"}, "attributes": {
                "order": 5, "code.line.number": 17, "exception.type": "ValueError", "log.record.uid": "1~20",
            },
        }  # fmt: skip
        grafana = "SELECT * FROM logsluice.grafana_logs WHERE severity = 'error'"
        rest = {"order": 5, "service": "checkout", "logger": "shop", "trace_id": "abc"}
        assert conn.execute(grafana).fetchone() == (now, "paid", "error", "1~40", rest, rest)
        conn.execute("UPDATE logsluice.logs SET message = NULL")
        assert conn.execute(grafana).fetchone()[1] == "", "the panel takes no NULL"


def test_the_views_have_the_number_that_is_sent_for_every_level(dsn):
    """smallint is what the column holds; below 0 and above 99 programs have levels, too."""
    levels = [*range(-5, 130), -32768, 32767]
    with connect(dsn) as conn:
        partitions.ensure(conn, "logsluice", "day", conn.execute("SELECT now()").fetchone()[0])
        conn.execute(
            "INSERT INTO logsluice.logs (ts, level, stream, seq) SELECT now(), one, 1, one FROM unnest(%s::int[]) AS one",
            [levels],
        )
        query = (
            "SELECT split_part(attributes->>'log.record.uid', '~', 2)::int, severity_number FROM logsluice.otel_logs"
        )
        assert dict(conn.execute(query).fetchall()) == {level: formatters.severity(level) for level in levels}


def test_views_read_one_day_where_one_is_asked_for(dsn):
    with connect(dsn) as conn:
        partitions.ensure(conn, "logsluice", "day", conn.execute("SELECT now()").fetchone()[0])
        assert len(partitions.listed(conn, "logsluice")) == 3
        for view in ("otel_logs", "grafana_logs"):
            today = "timestamp >= date_trunc('day', now(), 'UTC') AND timestamp < date_trunc('day', now(), 'UTC') + interval '1 hour'"
            plan = conn.execute(f"EXPLAIN SELECT * FROM logsluice.{view} WHERE {today}").fetchall()
            text = "\n".join(row[0] for row in plan)
            # Bounds that depend on now() are known when it runs: partitions are taken out then.
            assert "Subplans Removed: 2" in text, text


def test_views_read_with_the_rights_of_who_asks(dsn):
    with connect(dsn) as conn, role(conn, "reader", ("USAGE", "SCHEMA logsluice")) as reader:
        conn.execute(f"GRANT SELECT ON logsluice.otel_logs TO {reader}")
        with acting_as(conn, reader), pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT * FROM logsluice.otel_logs")
        conn.execute(f"GRANT SELECT ON logsluice.logs TO {reader}")
        with acting_as(conn, reader):
            conn.execute("SELECT * FROM logsluice.otel_logs")


def test_an_update_empties_no_dashboard(empty_dsn):
    """A role that was given a view alone goes on reading it, and what was built on the view stays."""
    with connect(empty_dsn) as conn:
        version_1(conn)
        with role(conn, "dashboard", ("USAGE", "SCHEMA logsluice"), ("SELECT", "logsluice.grafana_logs")) as dashboard:
            conn.execute("CREATE VIEW public.mine AS SELECT severity_number FROM logsluice.otel_logs")
            assert schema.migrate(conn) == LATER
            with acting_as(conn, dashboard):
                conn.execute("SELECT labels FROM logsluice.grafana_logs")
            conn.execute("SELECT severity_number FROM public.mine")


def test_views_that_somebody_changed_stop_no_handler(empty_dsn):
    """CREATE OR REPLACE is refused where columns were renamed: what writers need is there."""
    with connect(empty_dsn) as conn:
        version_1(conn)
        conn.execute("ALTER VIEW logsluice.otel_logs RENAME COLUMN body TO text")
        with Shop(empty_dsn) as shop:
            shop.log(3)
            assert shop.flush()
            shop.check()
        assert schema.pending(conn) == ["0005_views"]


# missing


def test_the_least_privileges_are_enough_to_write(dsn):
    with connect(dsn) as conn, role(conn, "writer", *NEEDED) as writer, acting_as(conn, writer):
        assert privileges.missing(conn) == []
        now = conn.execute("SELECT now()").fetchone()[0]
        assert len(partitions.ensure(conn, "logsluice", "day", now)) == 3
        conn.execute("INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (now(), 20, 1, 1)")
        conn.execute("INSERT INTO logsluice.dead_letter (stream, position, target, row) VALUES (1, 1, 'logs', '')")
        conn.execute("INSERT INTO logsluice.stream (stream) VALUES (1) ON CONFLICT DO NOTHING")
        conn.execute("SELECT position FROM logsluice.stream WHERE stream = 1 FOR UPDATE")
        conn.execute("UPDATE logsluice.stream SET position = 1 WHERE stream = 1")
        assert schema.migrate(conn) == []
        for forbidden in (
            "SELECT * FROM logsluice.logs",
            "DELETE FROM logsluice.stream",
            "CREATE TABLE logsluice.x ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(forbidden)


def test_each_missing_grant_is_named_exactly_and_its_fix_mends_it(dsn):
    with connect(dsn) as conn, role(conn, "writer", *NEEDED) as writer:
        for privilege, thing in NEEDED:
            conn.execute(f"REVOKE {privilege} ON {thing} FROM {writer}")
            with acting_as(conn, writer):
                found = privileges.missing(conn)
            assert [one.fix for one in found] == [f'GRANT {privilege} ON {thing} TO "{writer}"']
            assert writer in found[0].what
            conn.execute(found[0].fix)
            with acting_as(conn, writer):
                assert privileges.missing(conn) == []


def test_a_role_without_any_grant_hears_of_all_of_them(dsn):
    with connect(dsn) as conn, role(conn, "nobody") as nobody:
        with acting_as(conn, nobody):
            fixes = {one.fix for one in privileges.missing(conn)}
        assert fixes == {f'GRANT {privilege} ON {thing} TO "{nobody}"' for privilege, thing in NEEDED}


def test_dead_letter_is_not_asked_for_when_it_is_not_used(dsn):
    needed = [need for need in NEEDED if "dead_letter" not in need[1]]
    with connect(dsn) as conn, role(conn, "writer", *needed) as writer, acting_as(conn, writer):
        assert privileges.missing(conn, dead_letter=False) == []
        assert len(privileges.missing(conn)) == 1


def test_missing_tables_and_an_old_version_are_mended_by_migrate(dsn):
    with connect(dsn) as conn:
        conn.execute("DELETE FROM logsluice.version")
        what = 'schema "logsluice" is at version 0, this logsluice needs 1'
        assert privileges.missing(conn) == [Missing(what, "logsluice migrate")]
        conn.execute("DROP TABLE logsluice.stream, logsluice.version")
        assert [one.what for one in privileges.missing(conn)] == [
            'table "logsluice"."stream" does not exist',
            'table "logsluice"."version" does not exist',
        ]


LATER = ["0002_dead_letters", "0003_traces", "0004_retention", "0005_views"]


def version_1(conn):
    """Make the schema as it was before the second file."""
    with pytest.MonkeyPatch.context() as patch:
        files = schema.sql_files()
        patch.setattr(schema, "sql_files", lambda: files[:1])
        assert schema.migrate(conn) == [files[0].name]


def test_what_came_later_is_applied_to_an_older_database_with_its_rows(empty_dsn):
    with connect(empty_dsn) as conn:
        version_1(conn)
        conn.execute("INSERT INTO logsluice.dead_letter (stream, position, target, row) VALUES (1, 1, 'logs', 'x')")
        assert schema.pending(conn) == LATER
        assert schema.version(conn) == 1
        assert schema.migrate(conn) == LATER
        assert (schema.pending(conn), schema.version(conn)) == ([], 5)
        assert conn.execute("SELECT row, tries, due, stuck FROM logsluice.dead_letter").fetchall() == [
            (b"x", 0, None, None)
        ]


def test_what_a_dba_runs_later_is_what_migrate_makes(empty_dsn, dsn):
    with connect(empty_dsn) as conn, connect(dsn) as migrated:
        version_1(conn)
        psql(empty_dsn, schema.render(after=1))
        assert structure(conn) == structure(migrated)
        assert schema.migrate(conn) == []


def test_a_writer_needs_no_more_than_the_first_file(empty_dsn):
    """A program that is updated before its database goes on."""
    with connect(empty_dsn) as conn:
        version_1(conn)
        with role(conn, "writer", *NEEDED) as writer, acting_as(conn, writer):
            assert privileges.missing(conn) == []


def test_a_reader_of_the_table_that_a_later_file_alters_stops_no_writer(empty_dsn, monkeypatch):
    """pg_dump holds every table for as long as it runs."""
    monkeypatch.setattr(schema, "_LATER_LOCK_TIMEOUT", "50ms")
    with connect(empty_dsn) as conn:
        version_1(conn)
        with connect(empty_dsn) as reader, reader.transaction():
            reader.execute("SELECT count(*) FROM logsluice.dead_letter")
            assert schema.migrate(conn) == []
            assert schema.pending(conn) == LATER
            assert privileges.missing(conn) == []
        assert schema.migrate(conn) == LATER


def test_what_is_lacking_on_one_table_is_named_with_its_grants(dsn):
    with connect(dsn) as conn, role(conn, "reader") as reader:
        with acting_as(conn, reader):
            found = privileges.lacking(conn, "logsluice", "dead_letter", ("SELECT", "DELETE"))
        assert [one.fix for one in found] == [
            f'GRANT USAGE ON SCHEMA "logsluice" TO "{reader}"',
            f'GRANT SELECT ON "logsluice"."dead_letter" TO "{reader}"',
            f'GRANT DELETE ON "logsluice"."dead_letter" TO "{reader}"',
        ]
        for one in found:
            conn.execute(one.fix)
        with acting_as(conn, reader):
            assert privileges.lacking(conn, "logsluice", "dead_letter", ("SELECT", "DELETE")) == []


def test_a_newer_database_is_no_fault_of_an_older_program(dsn):
    with connect(dsn) as conn:
        conn.execute("INSERT INTO logsluice.version (version, name) VALUES (9999, 'later')")
        assert privileges.missing(conn) == []
        assert schema.migrate(conn) == []


def test_the_command_for_another_schema_can_be_pasted_into_a_shell(dsn):
    with connect(dsn) as conn:
        assert [one.fix for one in privileges.missing(conn, "My Logs")] == ["logsluice migrate --schema 'My Logs'"]


def test_a_table_of_the_user_s_own_needs_insert_and_no_partitions(dsn):
    needed = [need for need in NEEDED if need[1].split()[0] not in {'"logsluice"."logs"', "FUNCTION"}]
    with connect(dsn) as conn, role(conn, "writer", *needed, ("USAGE", "SCHEMA public")) as writer:
        conn.execute("CREATE TABLE public.orders (id bigint, note text)")
        conn.execute("CREATE TABLE public.audit (id bigint, note text)")
        conn.execute(f"GRANT INSERT (note) ON public.orders TO {writer}")
        with acting_as(conn, writer):
            assert privileges.missing(conn, table=("public", "orders")) == []
            assert [one.fix for one in privileges.missing(conn, table=("public", "audit"))] == [
                f'GRANT INSERT ON "public"."audit" TO "{writer}"'
            ]
            assert [one.what for one in privileges.missing(conn, table=("public", "typo"))] == [
                'table "public"."typo" does not exist'
            ]


def test_a_plain_table_needs_no_function(empty_dsn):
    with connect(empty_dsn) as conn:
        schema.migrate(conn, partition="none")
        with role(conn, "writer", *NEEDED[:-1]) as writer, acting_as(conn, writer):
            assert privileges.missing(conn) == []
            conn.execute("INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES ('1999-01-01Z', 20, 1, 1)")
