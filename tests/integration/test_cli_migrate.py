"""`logsluice migrate`, and what it shares with the other commands: where to connect, and no secret in any output."""

import argparse
import os
import re

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from logsluice import privileges, schema
from logsluice.cli import common, migrate
from logsluice.errors import ConfigError, LogsluiceError
from support.shop import Shop


def logsluice(*argv):
    parser = argparse.ArgumentParser(prog="logsluice")
    migrate.register(parser.add_subparsers(required=True))
    args = parser.parse_args(argv)
    return args.run(args)


def connect(dsn):
    return psycopg.connect(dsn, autocommit=True)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PG") or name == "LOGSLUICE_DSN"]:
        monkeypatch.delenv(name)


def test_it_makes_the_tables_and_says_where_and_as_whom(empty_dsn, capsys):
    assert logsluice("migrate", "--dsn", empty_dsn) == 0
    out = capsys.readouterr().out
    given = conninfo_to_dict(empty_dsn)
    names = ", ".join(file.name for file in schema.sql_files())
    assert f'schema "logsluice" in database "{given["dbname"]}" as "{given["user"]}": applied {names}\n' in out
    with connect(empty_dsn) as conn:
        assert privileges.missing(conn) == []
        conn.execute("INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (now(), 20, 1, 1)")
        made = (
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'logsluice.logs'::regclass ORDER BY 1"
        )
        assert out.splitlines()[1] == "made " + ", ".join(row[0].split(".")[1] for row in conn.execute(made))
    assert logsluice("migrate", "--dsn", empty_dsn) == 0
    assert capsys.readouterr().out.endswith(": nothing to apply\n")


def test_schema_and_partition_are_taken(empty_dsn, capsys):
    assert logsluice("migrate", "--dsn", empty_dsn, "--schema", 'my "logs"', "--partition", "none") == 0
    assert "made" not in capsys.readouterr().out
    with connect(empty_dsn) as conn:
        kind = "SELECT relkind::text FROM pg_class WHERE oid = %s::regclass"
        assert conn.execute(kind, ['"my ""logs""".logs']).fetchone() == ("r",)


def test_sql_is_printed_without_a_connection_and_does_the_same(empty_dsn, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(psycopg, "connect", lambda *_args, **_kwargs: pytest.fail("it connected"))
        assert logsluice("migrate", "--sql", "--grant-to", "postgres") == 0
    printed = capsys.readouterr().out
    assert printed == schema.render(grant_to="postgres")
    with connect(empty_dsn) as conn:
        conn.execute(printed.replace('"postgres"', "CURRENT_USER"))
        assert privileges.missing(conn) == []


@pytest.fixture
def older(empty_dsn):
    """A database that an earlier logsluice made; its dsn."""
    with connect(empty_dsn) as conn, pytest.MonkeyPatch.context() as patch:
        files = schema.sql_files()
        patch.setattr(schema, "sql_files", lambda: files[:1])
        assert schema.migrate(conn)
    return empty_dsn


def test_what_an_older_database_lacks_is_printed_alone(older, capsys):
    assert logsluice("migrate", "--sql", "--after", "1") == 0
    printed = capsys.readouterr().out
    assert printed == schema.render(after=1)
    with connect(older) as conn:
        conn.execute(printed)
        assert schema.pending(conn) == []
    with pytest.raises(ConfigError, match="--sql"):
        logsluice("migrate", "--dsn", older, "--after", "1")
    with pytest.raises(ConfigError, match="got 99"):
        logsluice("migrate", "--sql", "--after", "99")


def test_a_role_that_may_not_alter_is_told_what_the_owner_runs(older):
    """What the whole DDL begins with is there already, and would fail."""
    with connect(older) as conn:
        name = f"nobody_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name}; GRANT USAGE ON SCHEMA logsluice TO {name}")
        conn.execute(f"GRANT SELECT ON logsluice.version TO {name}")
        try:
            with pytest.raises(
                LogsluiceError, match=r"must be owner of table dead_letter.*`logsluice migrate --sql --after 1`"
            ):
                logsluice("migrate", "--dsn", psycopg.conninfo.make_conninfo(older, options=f"-c role={name}"))
        finally:
            conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_table_in_use_is_said_and_no_reason_to_stop_writing(older, capsys, monkeypatch):
    monkeypatch.setattr(schema, "_LATER_LOCK_TIMEOUT", "50ms")
    with connect(older) as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM logsluice.dead_letter")
        with pytest.raises(
            LogsluiceError,
            match=r"0002_dead_letters, 0003_traces, 0004_retention, 0005_views not applied, somebody uses the table.*run the same again",
        ):
            logsluice("migrate", "--dsn", older)
    assert "nothing to apply" not in capsys.readouterr().out
    assert logsluice("migrate", "--dsn", older) == 0
    assert "applied 0002_dead_letters" in capsys.readouterr().out


def test_the_plan_changes_nothing_and_says_what_would_be_done(older, capsys):
    with connect(older) as conn:
        assert logsluice("migrate", "--plan", "--dsn", older) == 0
        out = capsys.readouterr().out.splitlines()
        assert schema.version(conn) == 1
        given = conninfo_to_dict(older)
        assert out[0] == f'schema "logsluice" in database "{given["dbname"]}" as "{given["user"]}":'
        assert re.fullmatch(r"  0001_schema +applied 20\d\d-\d\d-\d\d \d\d:\d\d UTC: logsluice\'s tables", out[1])
        at = out.index("  0004_retention     to apply: What retention must know")
        assert out[at + 1].strip() == "ALTER TABLE locks stream for a moment; no row of it is rewritten."
        assert out[-1] == f"{len(schema.sql_files()) - 1} to apply, and the role may: logsluice migrate --apply"
        assert logsluice("migrate", "--apply", "--dsn", older) == 0
        capsys.readouterr()
        assert logsluice("migrate", "--plan", "--dsn", older) == 0
        assert capsys.readouterr().out.endswith("nothing to apply\n")


def test_the_plan_for_an_empty_database_and_for_a_role_that_may_not(empty_dsn, capsys):
    assert logsluice("migrate", "--plan", "--dsn", empty_dsn) == 0
    assert "0001_schema" in capsys.readouterr().out
    with connect(empty_dsn) as conn:
        assert conn.execute("SELECT to_regnamespace('logsluice')").fetchone() == (None,)
        name = f"nobody_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name}")
        as_nobody = psycopg.conninfo.make_conninfo(empty_dsn, options=f"-c role={name}")
        try:
            assert logsluice("migrate", "--plan", "--dsn", as_nobody) == 1
            said = f'role "{name}" may not make schema "logsluice": GRANT CREATE ON DATABASE'
            assert said in capsys.readouterr().out
            conn.execute(f"CREATE SCHEMA logsluice; GRANT USAGE ON SCHEMA logsluice TO {name}")
            assert logsluice("migrate", "--plan", "--dsn", as_nobody) == 1
            assert f'role "{name}" may not CREATE in schema "logsluice"' in capsys.readouterr().out
            conn.execute(f"GRANT CREATE ON SCHEMA logsluice TO {name}")
            assert logsluice("migrate", "--plan", "--dsn", as_nobody) == 0
            capsys.readouterr()
            with pytest.MonkeyPatch.context() as patch:
                files = schema.sql_files()
                patch.setattr(schema, "sql_files", lambda: files[:1])
                schema.migrate(conn)
            conn.execute(f"GRANT SELECT ON logsluice.version TO {name}")
            assert logsluice("migrate", "--plan", "--dsn", as_nobody) == 1
            assert f'role "{name}" may not: "dead_letter" belongs to "{conn.info.user}"' in capsys.readouterr().out
        finally:
            conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_file_that_was_changed_is_refused_by_name_and_stops_no_handler(older, capsys):
    with connect(older) as conn:
        schema.migrate(conn)
        conn.execute("UPDATE logsluice.version SET checksum = 'of another file' WHERE version = 2")
        conn.execute("DELETE FROM logsluice.version WHERE version = 5")  # so that there is something to apply
        with pytest.raises(LogsluiceError, match="0002_dead_letters was changed after it was applied") as seen:
            logsluice("migrate", "--dsn", older)
        assert logsluice("migrate", "--plan", "--dsn", older) == 1
        assert "refused: 0002_dead_letters was changed" in capsys.readouterr().out
        with Shop(older) as shop:
            shop.log(3)
            assert shop.flush()
            shop.check()
        assert schema.pending(conn) == [], "the handler applied what was missing"
        conn.execute(str(seen.value).rpartition("record that: ")[2])  # what the sentence says, done
    assert logsluice("migrate", "--dsn", older) == 0
    assert "nothing to apply" in capsys.readouterr().out


def test_a_checksum_that_nobody_recorded_is_told_and_no_trouble(older, capsys):
    with connect(older) as conn:
        conn.execute("UPDATE logsluice.version SET checksum = NULL")
    assert logsluice("migrate", "--dsn", older) == 0
    capsys.readouterr()
    assert logsluice("migrate", "--plan", "--dsn", older) == 0
    assert "  0001_schema        applied, checksum not recorded" in capsys.readouterr().out


def test_the_plan_says_that_a_later_logsluice_was_here(dsn, capsys):
    with connect(dsn) as conn:
        conn.execute("INSERT INTO logsluice.version (version, name) VALUES (1000, '1000_later')")
    assert logsluice("migrate", "--dsn", dsn, "--plan") == 0
    assert "nothing to apply: a later logsluice made these tables" in capsys.readouterr().out


def test_grants_are_printed_not_given(empty_dsn):
    with pytest.raises(ConfigError, match="--sql"):
        logsluice("migrate", "--dsn", empty_dsn, "--grant-to", "somebody")


def test_roles_are_printed_without_a_connection(capsys):
    assert logsluice("migrate", "--roles", "--writer", "w", "--schema", "mine") == 0
    assert capsys.readouterr().out == schema.roles("mine", "w")
    with pytest.raises(ConfigError, match="--writer goes with --roles"):
        logsluice("migrate", "--sql", "--writer", "w")


def test_a_name_that_cannot_be_one_is_refused_before_anything_is_planned():
    for name in ("x" * 64, "a%b"):
        with pytest.raises(ConfigError, match="schema: "):
            logsluice("migrate", "--dsn", "host=/nowhere", "--schema", name, "--plan")


def test_a_role_that_may_not_is_told_who_may(empty_dsn):
    with connect(empty_dsn) as conn:
        name = f"nobody_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name}")
        try:
            with pytest.raises(LogsluiceError, match=r"permission denied for database .*migrate --sql") as seen:
                logsluice("migrate", "--dsn", psycopg.conninfo.make_conninfo(empty_dsn, options=f"-c role={name}"))
        finally:
            conn.execute(f"DROP ROLE {name}")
    assert "\n" not in str(seen.value)


def test_an_error_of_the_server_is_one_line(empty_dsn):
    with connect(empty_dsn) as conn:
        conn.execute("CREATE SCHEMA logsluice; CREATE TABLE logsluice.logs (x text)")
    with pytest.raises(LogsluiceError, match=r'relation "logs" already exists') as seen:
        logsluice("migrate", "--dsn", empty_dsn)
    assert "\n" not in str(seen.value)


# Connecting


def test_the_dsn_comes_from_the_argument_then_the_environment_then_libpq(empty_dsn, capsys, monkeypatch):
    given = conninfo_to_dict(empty_dsn)
    for name, key in {
        "PGHOST": "host",
        "PGPORT": "port",
        "PGUSER": "user",
        "PGPASSWORD": "password",
        "PGDATABASE": "dbname",
    }.items():
        if given.get(key):
            monkeypatch.setenv(name, str(given[key]))
    assert logsluice("migrate") == 0
    assert f'"{given["dbname"]}"' in capsys.readouterr().out
    monkeypatch.setenv("LOGSLUICE_DSN", "host=/nowhere/at/all")
    with pytest.raises(LogsluiceError, match="/nowhere/at/all"):
        logsluice("migrate")
    assert logsluice("migrate", "--dsn", empty_dsn) == 0


def test_the_connection_commits_by_itself_and_says_who_it_is(empty_dsn):
    args = argparse.Namespace(dsn=empty_dsn)
    with common.connect(args) as conn:
        assert conn.autocommit
        assert conn.execute("SHOW application_name").fetchone() == ("logsluice",)
    args = argparse.Namespace(dsn=psycopg.conninfo.make_conninfo(empty_dsn, application_name="mine"))
    with common.connect(args) as conn:
        assert conn.execute("SHOW application_name").fetchone() == ("mine",)


SECRET = "hun=ter%2"


@pytest.mark.parametrize(
    "dsn",
    [
        f"host=127.0.0.1 port=1 user=u password={SECRET}",  # nobody listens
        "postgresql://u:hun%3Dter%252@127.0.0.1:1/db",
        f"host=127.0.0.1 port=1 user=u password={SECRET} connect_timeout={SECRET}",  # libpq quotes the odd value
        f"postgresql://u:{SECRET}x@127.0.0.1:1/db",  # no percent code: libpq quotes what it cannot read
        f"password = '{SECRET}",  # an open quote
        f"{SECRET}",  # somebody pasted only that
        f"host=127.0.0.1 {SECRET} {SECRET}",
    ],
)
def test_no_password_in_any_error(dsn):
    with pytest.raises(LogsluiceError) as seen:
        logsluice("migrate", "--dsn", dsn)
    assert SECRET not in str(seen.value)
    assert "ter%2" not in str(seen.value)
    assert "\n" not in str(seen.value)
    assert seen.value.__suppress_context__


def test_a_wrong_password_is_told_without_it(empty_dsn):
    if not conninfo_to_dict(empty_dsn).get("password"):
        pytest.fail("the test server asks for no password: this test would show nothing", pytrace=False)
    with pytest.raises(LogsluiceError, match=r"cannot connect: .*authentication failed") as seen:
        logsluice("migrate", "--dsn", psycopg.conninfo.make_conninfo(empty_dsn, password=SECRET))
    assert SECRET not in str(seen.value)
