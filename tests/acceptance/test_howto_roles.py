"""docs/howto/roles.md: its commands make the roles, and each may what the page says and nothing more."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from logsluice import partitions, privileges, schema
from logsluice.cli import main
from logsluice.columns import quote
from logsluice.devserver import programs
from logsluice.query import Query
from logsluice.tracing import SpanRow, trace
from logsluice.types import logtype
from support.howto import BLOCK, PAGES, Page, environment
from support.shop import Shop

TEXT = (PAGES / "roles.md").read_text(encoding="utf-8")
SECONDS = 60  # a net: a command takes one
ROLES = ("shop", "grafana", "ops", "logsluice_writer", "logsluice_reader", "logsluice_admin")
RECORDS = """
    SELECT c.oid::regclass::text, (SELECT min(attname::text) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)
      FROM pg_class c WHERE c.relnamespace = 'logsluice'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1
"""


@logtype(table="refund")
@dataclass
class Refund:
    tid: int


def run(command, dsn):
    """Run a line of the page as a shell does, with the server's psql."""
    env = environment(LOGSLUICE_DSN=dsn)
    env["PATH"] += f"{os.pathsep}{programs.find_programs()}"
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, env=env, timeout=SECONDS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def logins(empty_dsn):
    """The page, run: the dsn of each of its logins."""
    first, second, *_ = Page("roles").commands
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        try:
            run(first, empty_dsn)
            run(second, empty_dsn)
            for language, _, text in BLOCK.findall(TEXT):
                if language == "sql":
                    conn.execute(text)
            yield {name: make_conninfo(empty_dsn, user=name, password=f"of {name}") for name in ROLES[:3]}
        finally:
            there = [row[0] for row in conn.execute("SELECT rolname::text FROM pg_roles")]
            for name in (name for name in ROLES if name in there):
                conn.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")
                conn.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_each_may_what_the_page_says(logins, empty_dsn, tmp_path, capsys):
    as_ops = logins["ops"]
    with psycopg.connect(as_ops, autocommit=True) as ops:
        # Made by the admin after the roles: the typed logs and spans.
        run(Page("roles").commands[2], as_ops)
        for kind in (Refund, SpanRow):
            ops.execute(kind.__logtype__.ddl(grant_to="logsluice_writer"))
        ops.execute("ALTER TABLE logsluice.logs ADD CONSTRAINT tame CHECK (message NOT LIKE 'tid=1 %') NOT VALID")
        writes(logins["shop"], empty_dsn, tmp_path)
        changes_nothing(logins["shop"], ops)
        reads(logins["grafana"], capsys)
        looks_after(as_ops, capsys)
        owners = (
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'logsluice'::regnamespace"
        )
        assert ops.execute(owners).fetchall() == [("logsluice_admin",)]


def writes(dsn, read, folder):
    """A handler of the writer makes its partitions, stores records of three tables and sets one aside."""
    with Shop(dsn, read=read, create=True, journal=str(folder / "journal"), service="shop") as shop:
        shop.log(5)
        shop.logger.info(Refund(7))
        with trace("checkout"):
            shop.log(1)
        assert shop.flush()
        assert (sorted(shop.stored()), shop.dead()) == ([0, 2, 3, 4, 5], [1])
        assert shop.query("SELECT count(*) FROM logsluice.refund") == [(1,)]
        assert shop.query("SELECT count(*) FROM logsluice.spans") == [(1,)]
        assert shop.query(
            "SELECT count(DISTINCT relowner) FROM pg_class WHERE relname LIKE 'refund%' AND relkind <> 'i'"
        ) == [(1,)]


def changes_nothing(dsn, ops):
    with psycopg.connect(dsn, autocommit=True) as conn:
        tables = ops.execute(RECORDS).fetchall()
        names = {name.removeprefix("logsluice.") for name, _ in tables}
        assert {"logs", "refund", "spans", "dead_letter", "hold", "version"} < names
        assert sum(name.startswith(("logs_2", "refund_2")) for name in names) == 6, "partitions are tried, too"
        for name, column in tables:  # NULL: a column that is read would ask for SELECT, which it has not either
            for what in (f"UPDATE {name} SET {column} = NULL", f"DELETE FROM {name}", f"TRUNCATE {name}"):
                if name == "logsluice.stream" and what.startswith("UPDATE"):
                    continue
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(what)
        for what in (
            "SELECT * FROM logsluice.logs",
            "CREATE TABLE logsluice.x ()",
            "INSERT INTO logsluice.hold DEFAULT VALUES",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(what)


def reads(dsn, capsys):
    with Query(dsn) as query:
        assert len(list(query.iterate(""))) == 5
        assert len(list(query.iterate("", table="refund"))) == 1, "a table that was made after the roles"
    for argv in (
        ["query", ""], ["stats"], ["stats", "tables"], ["tail"], ["streams"], ["partitions"], ["top", "--once"], ["doctor"],
        ["migrate", "--plan"],
    ):  # fmt: skip
        assert main([argv[0], "--dsn", dsn, *argv[1:]]) == 0, (argv, capsys.readouterr())
    out = capsys.readouterr().out
    assert "the role may read" in out
    with psycopg.connect(dsn, autocommit=True) as conn:
        for view in ("otel_logs", "grafana_logs"):
            assert conn.execute(f"SELECT count(*) FROM logsluice.{view}").fetchone() == (5,)
        for what in (
            "INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (now(), 20, 1, 1)", "DELETE FROM logsluice.logs",
            "UPDATE logsluice.stream SET position = 0", "SELECT logsluice.make_partitions(now(), now())",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(what)


def looks_after(dsn, capsys):
    for argv in (
        ["migrate"], ["maintain", "--once", "--keep", "*=30d"], ["prune", "--keep", "30d", "--yes"],
        ["forget", "--user", "u-7", "--yes"], ["dead", "list"],
    ):  # fmt: skip
        assert main([argv[0], *argv[1:], "--dsn", dsn]) in {0}, (argv, capsys.readouterr())
    with psycopg.connect(dsn, autocommit=True) as conn:
        part = partitions.listed(conn, "logsluice")[0]
        partitions.drop(conn, "logsluice", part)
        assert part.name not in {one.name for one in partitions.listed(conn, "logsluice")}


def test_run_again_it_takes_what_is_too_much_and_changes_nothing_else(logins, empty_dsn):
    again = Page("roles").commands[1]
    rights = """
        SELECT c.relname, c.relacl::text, c.relowner FROM pg_class c WHERE relnamespace = 'logsluice'::regnamespace
        UNION ALL SELECT proname, proacl::text, proowner FROM pg_proc WHERE pronamespace = 'logsluice'::regnamespace
        UNION ALL SELECT nspname, nspacl::text, nspowner FROM pg_namespace WHERE nspname = 'logsluice' ORDER BY 1
    """
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        before = conn.execute(rights).fetchall()
        conn.execute("GRANT UPDATE (message), DELETE ON logsluice.logs TO logsluice_writer")
        conn.execute(
            "GRANT INSERT ON logsluice.logs TO logsluice_reader; CREATE TABLE logsluice.mine (ts int, stream int, seq int)"
        )
        run(again, empty_dsn)
        conn.execute("DROP TABLE logsluice.mine")
        after = conn.execute(rights).fetchall()
        assert [row[0::2] for row in after] == [row[0::2] for row in before]
        held = [{item for item in (row[1] or "").strip("{}").split(",") if item} for row in (*before, *after)]
        assert held[: len(before)] == held[len(before) :]
        # The file itself, by psql, with names of its own.
        run(
            f'psql -q -1 -v ON_ERROR_STOP=1 -d "$LOGSLUICE_DSN" -v admin=logsluice_admin -f {PAGES.parents[1] / "sql" / "roles.sql"}',
            empty_dsn,
        )
        assert conn.execute(rights).fetchall() == after
        # What a writer needs and no more: the same list as that of --grant-to.
        with psycopg.connect(logins["shop"], autocommit=True) as shop:
            assert privileges.missing(shop) == []


def test_somebody_who_is_no_superuser_may_make_them(empty_dsn):
    """From PostgreSQL 16 on, whoever makes a role may not act as it. Names of any letters will do."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(f"CREATE ROLE {name}_dba LOGIN CREATEROLE PASSWORD 'of dba'")
        conn.execute(f"GRANT CREATE ON DATABASE {name} TO {name}_dba")
        roles = {kind: f"{name}'s {kind.title()}" for kind in ("writer", "reader", "admin")}
        try:
            as_dba = make_conninfo(empty_dsn, user=f"{name}_dba", password="of dba")
            with psycopg.connect(as_dba, autocommit=True) as dba:
                schema.migrate(dba)
                for _ in range(2):
                    dba.execute(schema.roles(**roles))
                dba.execute(f"SET ROLE {quote(roles['admin'])}")
                assert (schema.migrate(dba), privileges.missing(dba)) == ([], [])
        finally:
            for role in (*roles.values(), f"{name}_dba"):
                conn.execute(f"DROP OWNED BY {quote(role)} CASCADE")
            for role in (*roles.values(), f"{name}_dba"):
                conn.execute(f"DROP ROLE {quote(role)}")
