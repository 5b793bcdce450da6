"""`logsluice doctor` against a real server: nothing to find, and each thing that breaks with its next step."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice import PostgresHandler, partitions, schema
from logsluice.cli import main
from logsluice.config import PostgresSettings, settings_from
from logsluice.devserver import free_port
from logsluice.doctor import upkeep
from logsluice.doctor.database import check_database
from logsluice.folder import file_system
from support.journals import streams
from support.left import leave
from support.shop import Shop

CANARY = "canary7secret"
LIMIT = 30  # seconds: a net; a run takes less than one


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PG") or name in {"LOGSLUICE_DSN", "LOGS_DSN"}]:
        monkeypatch.delenv(name)


def connect(dsn):
    return psycopg.connect(dsn, autocommit=True)


def program(folder, *args, **environment):
    """`python -m logsluice doctor`: (exit status, stdout). Nothing may come on stderr."""
    command = [sys.executable, "-m", "logsluice", "doctor", *args]
    environment = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def config(dsn, **options):
    handler = {"class": "logsluice.PostgresHandler", "dsn": dsn, **options}
    made = {"version": 1, "disable_existing_loggers": False, "handlers": {"db": handler}}
    return {**made, "root": {"level": "INFO", "handlers": ["db"]}}


def handler(dsn, **options):
    """What check_database is given for a handler with these options."""
    return settings_from({"dsn": dsn, **options}, PostgresSettings), lambda: PostgresHandler(dsn=dsn, **options)


def by_config(folder, given):
    (folder / "log.json").write_text(json.dumps(given), encoding="utf-8")
    return program(folder, "--config", "log.json")


@pytest.fixture
def by_dsn(capsys):
    """Run `--dsn` in this process (it applies no configuration): (exit status, stdout)."""

    def run(dsn, *args):
        status = main(["doctor", "--dsn", dsn, *args])
        out, err = capsys.readouterr()
        assert err == ""
        return status, out

    return run


def marks(out):
    """The findings: (mark, about) a line."""
    return [tuple(line.split()[:2]) for line in out.splitlines() if line[:4] in {"ok  ", "warn", "FAIL"}]


def failed(out):
    """The one failure's line, and its next step."""
    lines = out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("FAIL")]
    mark, _, step = lines[at + 1].partition("next: ")
    assert mark == " " * 17
    return lines[at], step


@contextmanager
def role(dsn, grants):
    """A role that may log in; the dsn for it."""
    with connect(dsn) as conn:
        name = f"writer_{conn.info.dbname}"
        conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{CANARY}'")
        for grant in grants(name):
            conn.execute(grant)
        try:
            yield make_conninfo(dsn, user=name, password=CANARY)
        finally:
            conn.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER")
            conn.execute(f"DROP OWNED BY {name}")
            conn.execute(f"DROP ROLE {name}")


def rows(dsn):
    with connect(dsn) as conn:
        return conn.execute(
            "SELECT (SELECT count(*) FROM logsluice.logs), (SELECT count(*) FROM logsluice.stream)"
        ).fetchone()


# nothing to find


def test_healthy_and_nothing_is_left_behind(dsn, tmp_path):
    given = config(dsn, service="shop")
    given["handlers"]["file"] = {"class": "logging.FileHandler", "filename": str(tmp_path / "app.log")}
    given["root"]["handlers"].append("file")
    status, out = by_config(tmp_path, given)
    assert status == 0, out
    about = ["handler", "config", "logger", "connect", "rights", "clock", "partition", "dead", "streams"]
    about += ["gaps", "indexes", "record"]
    # Once: a framework that happens to be installed gets a line of its own.
    assert list(dict.fromkeys(marks(out))) == [("ok", one) for one in about]
    assert "stored and read back in" in out
    assert "and deleted again" in out
    assert "\x1b" not in out
    assert conninfo_to_dict(dsn)["password"] not in out
    assert rows(dsn) == (0, 0)
    assert not (tmp_path / "app.log").exists()


def test_yaml_and_a_variable(dsn, tmp_path):
    text = """
version: 1
disable_existing_loggers: false
handlers:
  db: {class: logsluice.PostgresHandler, dsn_env: LOGS_DSN}
loggers:
  shop: {level: DEBUG}
root: {level: INFO, handlers: [db]}
"""
    (tmp_path / "log.yaml").write_text(text, encoding="utf-8")
    status, out = program(tmp_path, "--config", "log.yaml", LOGS_DSN=dsn)
    assert status == 0, out
    assert "shop (level DEBUG): INFO, WARNING and ERROR reach 'db'" in out


def test_a_module_whose_loggers_come_first(dsn, tmp_path):
    text = "import logging\nlogging.getLogger('shop.early')\nclass Dev:\n    LOGGING = %r\n"
    given = {**config(dsn), "disable_existing_loggers": True}
    (tmp_path / "settings.py").write_text(text % given, encoding="utf-8")
    status, out = program(tmp_path, "--config", "settings:Dev.LOGGING", "--logger", "shop.early")
    assert status == 1
    assert "shop.early, made while settings:Dev.LOGGING was imported, stay silent" in out
    assert "shop.early: not stored: a module makes this logger first" in failed(out)[0]
    assert failed(out)[1].startswith('add "shop.early": {"handlers": ["db"]')


def test_the_database_alone(dsn, by_dsn):
    status, out = by_dsn(dsn)
    assert status == 0, out
    assert out.splitlines()[-1].endswith("logsluice doctor --config FILE does.")
    assert rows(dsn) == (0, 0)


def test_the_width_of_the_partitions_that_are_there_is_kept(dsn, by_dsn):
    with connect(dsn) as conn:
        past = "now() - interval '60 days'"  # so that the one of today is yet to be made
        conn.execute(f"SELECT logsluice.make_partitions({past}, {past}, 'logs', 'month')")
    assert by_dsn(dsn)[0] == 0
    with connect(dsn) as conn:
        after = partitions.listed(conn, "logsluice")
    assert len(after) >= 2
    assert all(len(part.name.rpartition("_")[2]) == len("202611") for part in after)


def test_create_makes_the_schema_as_the_handler_would(empty_dsn):
    found = list(check_database(*handler(empty_dsn)))
    assert {one.status for one in found} == {"ok"}
    made = "0001_schema, 0002_dead_letters, 0003_traces, 0004_retention, 0005_views"
    assert found[1].what == f'made schema "logsluice" ({made}), as the handler does (create=True)'


# connecting


def test_the_server_is_down(dsn, tmp_path):
    port = free_port()
    status, out = by_config(tmp_path, config(make_conninfo(dsn, port=port)))
    assert status == 1
    what, step = failed(out)
    assert what == f"FAIL  connect    nothing listens at 127.0.0.1:{port}"
    assert step == "start PostgreSQL there, or correct host and port in the dsn"


def test_a_wrong_password_is_said_and_never_shown(dsn, tmp_path):
    status, out = by_config(tmp_path, config(make_conninfo(dsn, password=CANARY)))
    assert status == 1
    what, step = failed(out)
    assert "role postgres and this password do not fit at 127.0.0.1" in what
    assert step.startswith("correct user and password (dsn, PGPASSWORD or ~/.pgpass)")
    assert CANARY not in out


@pytest.mark.parametrize(
    ("change", "what", "step"),
    [
        ({"dbname": "nodb"}, "there is no database nodb at 127.0.0.1", "make it: createdb nodb"),
        ({"host": "nowhere.invalid"}, "host nowhere.invalid is not known here", "getent hosts nowhere.invalid"),
        ({"sslmode": "require"}, "offers no TLS, and the dsn demands it", "take sslmode out of the dsn"),
        ({"host": "/nowhere"}, "no PostgreSQL listens on the socket /nowhere", "start PostgreSQL on this machine"),
        ({"options": "-c default_transaction_read_only=on"}, "no rows are taken", "take it out of the dsn (options=)"),
    ],
)
def test_other_reasons_not_to_get_there(dsn, by_dsn, change, what, step):
    status, out = by_dsn(make_conninfo(dsn, **change))
    assert status == 1
    found, then = failed(out)
    assert what in found
    assert step in then


def test_a_wrong_dsn(by_dsn):
    status, out = by_dsn(f"host=h passwort={CANARY}")
    assert status == 1
    assert "did you mean 'password'?" in failed(out)[0]
    assert CANARY not in out


# rights, tables, partitions: the printed step, done, mends it


def test_a_missing_grant_is_named_and_the_step_mends_it(dsn, tmp_path):
    def grants(name):
        return [one for one in schema.grants("logsluice", name) if '"logs"' not in one]

    with role(dsn, grants) as writer:
        status, out = by_config(tmp_path, config(writer, create=False))
        assert status == 1
        what, step = failed(out)
        name = conninfo_to_dict(writer)["user"]
        assert what == f'FAIL  rights     role "{name}" may not INSERT on "logsluice"."logs"'
        assert step == f'GRANT INSERT ON "logsluice"."logs" TO "{name}"; -- as postgres, who owns the schema'
        with connect(dsn) as conn:
            conn.execute(step)
        found = list(check_database(*handler(writer, create=False)))
        assert {one.status for one in found} == {"ok"}
        assert found[-1].what.startswith("a test record was committed in")
        assert found[-1].what.endswith(
            'it stays (logger logsluice_doctor), as the role may not read "logsluice"."logs"'
        )
        assert [one for one in found if one.what.startswith("whether dead letters wait is not known")]
        assert CANARY not in out
    with connect(dsn) as conn:
        assert conn.execute("SELECT logger FROM logsluice.logs").fetchall() == [("logsluice_doctor",)]


def test_a_role_that_may_not_make_the_schema(empty_dsn):
    with role(empty_dsn, lambda _name: []) as writer:
        _, found = check_database(*handler(writer))
    what = 'schema "logsluice" does not exist; create=True could not make it: permission denied for database'
    assert (found.status, found.what.startswith(what)) == ("fail", True)
    name = conninfo_to_dict(writer)["user"]
    assert f"logsluice migrate --sql --grant-to {name} | psql; and set create=False" in found.next


def test_no_schema(empty_dsn, by_dsn):
    status, out = by_dsn(empty_dsn)
    assert status == 1
    assert failed(out)[1].startswith("logsluice migrate")
    with connect(empty_dsn) as conn:
        assert conn.execute("SELECT to_regnamespace('logsluice')").fetchone() == (None,)


def test_a_table_that_was_dropped(dsn, by_dsn):
    with connect(dsn) as conn:
        conn.execute("DROP TABLE logsluice.logs CASCADE")
    status, out = by_dsn(dsn)
    assert status == 1
    what, step = failed(out)
    assert 'table "logsluice"."logs" does not exist' in what
    command = 'ALTER SCHEMA "logsluice" RENAME TO "logsluice_old";'
    assert step.startswith(f"{command} -- keeps the rest; then logsluice migrate")
    with connect(dsn) as conn:
        conn.execute(command)
        schema.migrate(conn)
    assert by_dsn(dsn)[0] == 0


def test_partitions_that_cannot_be_made(dsn, by_dsn):
    with role(dsn, lambda _name: []) as other, connect(dsn) as conn:
        name = conninfo_to_dict(other)["user"]
        conn.execute(f"GRANT USAGE ON SCHEMA logsluice TO {name}")
        conn.execute(f"ALTER FUNCTION logsluice.make_partitions OWNER TO {name}")
        status, out = by_dsn(dsn)
        assert status == 1
        what, step = failed(out)
        assert (
            "there is none for today and tomorrow, and none can be made: make_partitions: schema logsluice has" in what
        )
        assert "record" not in dict(map(reversed, marks(out)))
        conn.execute(step)
        assert by_dsn(dsn)[0] == 0


def test_partitions_that_a_lock_holds_up(dsn, by_dsn, monkeypatch):
    monkeypatch.setattr(partitions, "MAKE_LOCK_TIMEOUT", "50ms")
    with connect(dsn) as conn, conn.transaction():
        conn.execute("LOCK TABLE logsluice.logs IN SHARE UPDATE EXCLUSIVE MODE")
        status, out = by_dsn(dsn)
        assert status == 1
        with connect(dsn) as second:
            query = failed(out)[1].removeprefix("end what locks it: ")
            assert second.execute(query).fetchone()[0] == conn.info.backend_pid


def test_partitioned_and_told_otherwise(dsn):
    (found,) = [one for one in check_database(*handler(dsn, partition="none")) if one.status == "fail"]
    assert found.next == "take \"partition\" out of the handler's options, or set it to 'day'"


# the configuration, as a whole


def test_propagate_false_in_a_program(dsn, tmp_path):
    given = {**config(dsn), "loggers": {"shop": {"level": "DEBUG", "propagate": False}}}
    status, out = by_config(tmp_path, given)
    assert status == 1
    what, step = failed(out)
    assert what.endswith("nothing reaches 'db': propagate is false on shop, and 'db' is not among its handlers")
    assert step == "add 'db' to the handlers of shop, or drop its propagate: false, in log.json"


def test_a_refused_configuration_is_not_judged_further(dsn, tmp_path):
    given = config(dsn)
    given["root"]["level"] = "info"
    status, out = by_config(tmp_path, given)
    assert status == 1
    assert "Unknown level: 'info'" in failed(out)[0]
    assert ("ok", "logger") not in marks(out)
    assert ("ok", "record") in marks(out)


def test_two_handlers_on_one_table(dsn, tmp_path):
    given = config(dsn)
    given["handlers"]["errors"] = {**given["handlers"]["db"], "level": "ERROR"}
    given["root"]["handlers"].append("errors")
    status, out = by_config(tmp_path, given)
    assert status == 0
    assert "'db' and 'errors' write into one table: what reaches both is stored twice" in out
    assert marks(out).count(("ok", "record")) == 1


def test_arguments_that_do_not_go_together(capsys):
    assert main(["doctor", "--logger", "x"]) == 2
    assert main(["doctor", "--config", "x.json", "--dsn", ""]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2


# a table of the user's own


@pytest.mark.parametrize(
    ("columns", "mark", "said"),
    [
        ({"note": "message", "n": "extra.n"}, "ok", "takes a test row; it was rolled back, so nothing stays"),
        ({"note": "extra.note"}, "warn", 'columns={"note": ["extra.note", "..."]}'),
    ],
)
def test_a_table_of_the_users_own_stays_as_it_was(dsn, columns, mark, said):
    with connect(dsn) as conn:
        conn.execute("CREATE TABLE orders (note text NOT NULL, n integer)")
        found = list(check_database(*handler(dsn, table="public.orders", columns=columns)))
        assert (found[-1].status, found[-1].about) == (mark, "record")
        assert said in found[-1].what + found[-1].next
        assert conn.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    assert rows(dsn) == (0, 0)


def test_columns_that_do_not_fit_the_table(dsn):
    with connect(dsn) as conn:
        conn.execute("CREATE TABLE orders (note text, must integer NOT NULL)")
    for columns, step in [
        ({"notes": "message"}, "(did you mean 'note'?)"),
        ({"note": "message"}, "add it to columns="),
    ]:
        found = list(check_database(*handler(dsn, table="public.orders", columns=columns)))
        (wrong,) = [one for one in found if one.status == "fail"]
        assert step in wrong.next
        assert found[-1].about != "record"


# what waits, and the clock


def test_dead_letters_and_silent_streams(dsn, by_dsn):
    with connect(dsn) as conn:
        conn.execute(
            "INSERT INTO logsluice.dead_letter (stream, position, target, row, sqlstate, error) "
            "VALUES (1, 1, 'logs', '', '22P02', 'old'), (1, 2, 'logs', '', '22003', 'too \x1b[2J large'), (1, 3, 'logs', '', '22P02', 'done')"
        )
        conn.execute("UPDATE logsluice.dead_letter SET replayed_at = now() WHERE error = 'done'")
        conn.execute("UPDATE logsluice.dead_letter SET at = now() - interval '1 hour' WHERE error = 'old'")
        conn.execute(
            "INSERT INTO logsluice.stream (stream, service, host, pid, offered, stored, updated) "
            "VALUES (1, 'shop', 'web1', 17, 9, 5, now() - interval '1 hour'), (2, 'ok', 'web1', 18, 5, 5, now()), "
            "(3, 'done', 'web1', 19, 5, 5, now() - interval '1 hour'), (4, 'busy', 'web1', 20, 9, 5, now())"
        )
    status, out = by_dsn(dsn)
    assert status == 0
    assert "2 dead letters wait, the oldest for 60 min, the latest of " in out
    assert "for logs: 22003 too \\x1b[2J large" in out
    assert "1 stream fell silent with records in hand, the last shop (pid 17 on web1) with 4" in out
    assert rows(dsn) == (0, 4)


def next_of(out, what):
    """The step that belongs to the one line with this text."""
    lines = out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if what in line]
    return lines[at + 1].partition("next: ")[2]


def test_what_is_not_applied_and_what_was_changed(dsn, by_dsn):
    with connect(dsn) as conn:
        conn.execute("DELETE FROM logsluice.version WHERE version = 5")  # which can be applied again
        conn.execute("UPDATE logsluice.version SET checksum = 'another' WHERE version = 3")
    status, out = by_dsn(dsn)
    assert status == 0
    assert next_of(out, "0005_views not applied: records are stored") == "logsluice migrate (--plan shows what it does)"
    assert next_of(out, "0003_traces was changed after it was applied here").startswith("Install the logsluice that")
    with connect(dsn) as conn:
        conn.execute(out.partition("record that: ")[2].splitlines()[0])
    assert main(["migrate", "--dsn", dsn]) == 0


def test_a_default_partition_and_how_to_be_rid_of_it(dsn, by_dsn):
    with connect(dsn) as conn:
        assert by_dsn(dsn)[0] == 0  # today and tomorrow
        conn.execute("CREATE TABLE logsluice.rest PARTITION OF logsluice.logs DEFAULT")
        assert "it is empty; with one, retention cannot detach any" in by_dsn(dsn)[1]
        conn.execute("INSERT INTO logsluice.logs (ts, level, stream, seq) VALUES (now() + interval '4 days', 20, 1, 1)")
        status, out = by_dsn(dsn)
        assert status == 0
        conn.execute(next_of(out, '"rest" is a DEFAULT partition: it holds rows, and no partition can be made'))
        assert conn.execute("SELECT count(*) FROM logsluice.logs").fetchone() == (1,)
        out = by_dsn(dsn)[1]
    assert "DEFAULT" not in out
    assert "ahead for 4 d" in out or "ahead for 5 d" in out


def test_records_that_are_no_rows(dsn, by_dsn):
    with Shop(dsn, capacity=50, keep_level="CRITICAL", service="shop") as shop, connect(dsn) as conn:
        shop.log(5)
        assert shop.flush()
        assert (
            "no stream of the last day dropped a record, and the rows of its last streams are there" in by_dsn(dsn)[1]
        )
        with conn.transaction():
            conn.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
            shop.log(200)
        assert shop.flush()
        dropped = shop.stats.dropped
        assert dropped
        shop.log(1)  # this batch tells the server
        assert shop.flush()
        out = by_dsn(dsn)[1]
        assert f"1 of the last day's streams dropped {dropped} records, most of them shop (pid {os.getpid()} on" in out
        assert "given up (retry_limit), or fallback= has them" in next_of(out, "streams dropped")
        assert "fewer rows" not in out, "a dropped one was never stored"
        conn.execute("DELETE FROM logsluice.logs WHERE seq IN (1, 3)")
        status, out = by_dsn(dsn)
        assert status == 0
        stored = shop.stats.stored
        assert (
            f"1 of the last streams have fewer rows in logs than their watermarks say: 2 of {stored} of stream" in out
        )
        query = next_of(out, "fewer rows").partition("restored backup); ")[2].partition(";")[0]
        assert len(conn.execute(query).fetchall()) == 1


def test_indexes_that_cost_more_than_they_give(dsn, by_dsn, monkeypatch):
    monkeypatch.setattr(upkeep, "MUCH", 1)
    with Shop(dsn) as shop, connect(dsn) as conn:
        shop.log(2)
        assert shop.flush()
        part = conn.execute("SELECT DISTINCT tableoid::regclass::text FROM logsluice.logs").fetchone()[0]
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute(f"CREATE UNIQUE INDEX CONCURRENTLY broken ON {part} (level)")
        status, out = by_dsn(dsn)
        assert status == 0
        assert "indexes of logs take " in out
        for what in ('"logsluice"."broken" on logs is not valid', 'index "logsluice"."logs_trace_id" ('):
            conn.execute(next_of(out, what).partition("; ")[2].partition(";")[0])
        out = by_dsn(dsn)[1]
    assert "not valid" not in out
    assert "logs_trace_id" not in out
    assert '"logsluice"."logs_ts"' not in out, "commands need it"


def test_who_wrote_lately(dsn, by_dsn):
    with connect(dsn) as conn:
        conn.execute("INSERT INTO logsluice.stream (stream, offered, stored) VALUES (2, 5, 5)")
    assert re.search(r"1 stream \(one a process\) wrote here within a day, the last \d+ s ago", by_dsn(dsn)[1])


@pytest.mark.parametrize(
    ("seconds", "status", "said"),
    [
        (-30, "ok", "differ by 30.0 s"),
        (300, "warn", "this machine is 5 min ahead of the server"),
        (-3 * 86400, "fail", "this machine is 3 d behind the server"),
    ],
)
def test_clocks_that_differ(dsn, seconds, status, said):
    found = list(check_database(settings_from({"dsn": dsn}, PostgresSettings), now=lambda: time.time() + seconds))
    (clock,) = [one for one in found if one.about == "clock"]
    assert (clock.status, said in clock.what) == (status, True)
    assert ("NTP" in clock.next) == (status != "ok")


# a journal


def lines_about(out, about):
    return [line for line in out.splitlines() if line[6:].startswith(about)]


def test_a_journal_and_what_waits_in_it(dsn, tmp_path):
    """Looking sends nothing of what a dead process left, and leaves no file there."""
    journal = tmp_path / "journal"
    stream = leave(dsn, tmp_path, journal, count=300)
    files = sorted(journal.rglob("*"))
    status, out = by_config(tmp_path, config(dsn, journal=str(journal)))
    assert status == 0, out
    place, room, waits, fsync = lines_about(out, "journal")
    kind = file_system(str(journal))
    assert place.startswith(f"ok    journal    {journal} is on {kind}, user {os.geteuid()} alone may write into it: ")
    # 256 KiB, or more where it was killed after its keeper had made the next segment.
    assert re.match(r"ok    journal    \d+ KiB are in it, it may grow to 1.0 GiB \(journal_bytes\), and ", room)
    assert re.match(
        r"warn  journal    1 stream of dead processes, \d+ KiB: the next process with this journal sends", waits
    )
    assert f"next: logsluice journal {journal} shows whose they are, and loads them" in out
    assert "fsync is never: records survive the process" in fsync
    assert "stored and read back in" in out
    assert sorted(journal.rglob("*")) == files
    assert rows(dsn) == (0, 0)
    # Of a table of the user's own the test row is made by a handler, too.
    with connect(dsn) as conn:
        conn.execute("CREATE TABLE public.orders (note text)")
    own = {"table": "public.orders", "columns": {"note": "message"}, "fsync": 2.5}
    status, out = by_config(tmp_path, config(dsn, journal=str(journal), **own))
    assert status == 0, out
    assert sorted(journal.rglob("*")) == files
    assert "fsync is 2.5 s: so much a power loss may take at most" in out
    assert stream in streams(journal)


def test_a_journal_in_use_with_a_file_in_quarantine(dsn, tmp_path):
    journal = tmp_path / "journal"
    with Shop(dsn, journal=str(journal), linger=60) as shop:
        shop.log(3)
        (journal / "quarantine").mkdir()
        (journal / "quarantine" / "old").write_bytes(b"x" * 2048)
        status, out = by_config(tmp_path, config(dsn, journal=str(journal), fsync="always"))
        assert shop.flush()
        shop.check()
    assert status == 0, out
    assert "ok    journal    nothing of a dead process waits in it; 1 stream in use" in out
    assert f"warn  journal    1 file in {journal}/quarantine: they cannot be read, and count as used" in out
    assert "fsync is always: a call returns when its record is on the device" in out


def test_a_journal_that_cannot_be(dsn, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    status, out = by_config(tmp_path, config(dsn, journal=str(tmp_path / "file" / "j")))
    assert status == 1
    what, step = failed(out)
    assert "cannot be used by user" in what
    assert step == "run doctor as the user that your program runs as, or correct journal of 'db' in log.json"
