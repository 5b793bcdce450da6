"""`logsluice forget`: a person's rows are counted first, and deleted from every table when told; holds keep theirs."""

from __future__ import annotations

import json
from datetime import timedelta, timezone

import psycopg
import pytest

from logsluice import deadletters, erasure, partitions
from logsluice.cli import main
from logsluice.contrib import Activity, JobLog
from logsluice.errors import ConfigError
from support.shop import Shop

DAY = timedelta(days=1)


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def people(conn):
    """Rows of u-7 and u-8 in a column and in attributes, over two days and three tables; the moment of now."""
    now = conn.execute("SELECT now()").fetchone()[0].astimezone(timezone.utc)
    for kind in (Activity, JobLog):
        conn.execute(kind.__logtype__.ddl())
    for days in (3, 0):
        for table in ("logs", "activity", "job_log"):
            partitions.ensure_at(conn, "logsluice", "day", now - days * DAY, table=table)
        for user in ("u-7", "u-8"):
            conn.execute(
                "INSERT INTO logsluice.logs (ts, level, user_id, attributes, stream, seq) VALUES (%s, 20, %s, '{}', 1, 1)",
                [now - days * DAY, user],
            )
            conn.execute(
                "INSERT INTO logsluice.activity (ts, user_id, activity_type, activity_status, stream, seq) "
                "VALUES (%s, %s, 'x', 'success', 1, 1)",
                [now - days * DAY, user],
            )
            conn.execute(
                "INSERT INTO logsluice.job_log (ts, log_type, message, attributes, stream, seq) "
                "VALUES (%s, 'sync', 'x', %s, 1, 1)",
                [now - days * DAY, json.dumps({"account": {"id": 7}, "session_id": f"s-{user}"})],
            )
    return now


def dead(conn, columns, *values):
    row = ("\t".join(values) + "\n").encode()
    conn.execute(
        "INSERT INTO logsluice.dead_letter (stream, position, target, columns, row) VALUES (1, 1, 't', %s, %s)",
        [columns, row],
    )


def left(conn, table, what="user_id"):
    return sorted(row[0] for row in conn.execute(f"SELECT {what} FROM logsluice.{table}").fetchall())


def test_it_counts_first_and_deletes_when_told(dsn, conn, people, capsys):
    dead(conn, ["ts", "user_id", "message"], f"{people:%Y-%m-%d %H:%M:%S}Z", "u-7", "tab\\there")
    dead(conn, ["user_id", "message"], "u-8", "says u-7")
    dead(conn, ["message", "attributes"], "x", json.dumps({"user_id": "u-7"}))
    assert main(["forget", "--dsn", dsn, "--user", "u-7"]) == 0
    out = capsys.readouterr().out
    for line in ("logs: 2 rows to delete", "activity: 2 rows to delete", "job_log: 0 rows", "dead_letter: 2 rows"):
        assert line in out
    assert "dry run" in out
    assert len(left(conn, "logs")) == 4
    assert main(["forget", "--dsn", dsn, "--user", "u-7", "--yes"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:3] == ["logs: 2 rows", "activity: 2 rows", "job_log: 0 rows"]
    assert "dead_letter: 2 rows" in out
    assert left(conn, "logs") == left(conn, "activity") == ["u-8", "u-8"]
    assert [bytes(one) for one in left(conn, "dead_letter", "row")] == [b"u-8\tsays u-7\n"]
    assert main(["forget", "--dsn", dsn, "--user", "u-7", "--yes"]) == 0
    assert "logs: 0 rows\n" in capsys.readouterr().out


def test_any_column_or_attribute_will_do_and_several_must_all_be_so(dsn, conn, people, monkeypatch):
    monkeypatch.setattr(erasure, "CHUNK", 1)
    assert main(["forget", "--dsn", dsn, "session_id=s-u-7", "log_type=sync", "--yes"]) == 0
    assert left(conn, "job_log", "attributes->>'session_id'") == ["s-u-8", "s-u-8"]
    assert main(["forget", "--dsn", dsn, "session_id=s-u-8", "log_type=other", "--yes"]) == 0
    assert len(left(conn, "job_log", "1")) == 2
    assert len(left(conn, "logs")) == 4


def test_what_a_legal_hold_keeps_is_counted_and_stays(dsn, conn, people, capsys):
    dead(conn, ["user_id", "message"], "u-7", "x")
    conn.execute(
        "INSERT INTO logsluice.hold (name, reason, target, match, ends) VALUES "
        "('case', 'asked for', 'logs', '{\"user_id\": \"u-7\"}', %s), ('dead', 'asked for', 'dead_letter', '{}', NULL)",
        [people - DAY],
    )
    for more in ([], ["--yes"]):
        assert main(["forget", "--dsn", dsn, "--user", "u-7", *more]) == 1
        out = capsys.readouterr().out
        assert "logs: 1 rows" in out
        assert out.count("1 kept by a legal hold") == 2
    assert left(conn, "logs") == ["u-7", "u-8", "u-8"]
    assert left(conn, "activity") == ["u-8", "u-8"]
    assert len(left(conn, "dead_letter", "row")) == 1


def test_a_hold_counts_from_the_next_partition_on(conn, people):
    (first, *_) = partitions.listed(conn, "logsluice")
    conn.execute(
        "CREATE FUNCTION asked() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO logsluice.hold (name, reason) VALUES ('case', 'asked for') ON CONFLICT DO NOTHING; RETURN NULL; END$$; "
        f"CREATE TRIGGER asked AFTER DELETE ON {first.full_name} EXECUTE FUNCTION asked()"
    )
    found = {one.table: (one.rows, one.held) for one in erasure.erase(conn, {"user_id": "u-7"})}
    assert found == {"logs": (1, 1), "activity": (0, 2), "job_log": (0, 0), "dead_letter": (0, 0)}
    assert left(conn, "logs") == ["u-7", "u-8", "u-8"]


def test_a_dead_letter_that_came_to_lie_where_another_was_stays(dsn, conn, monkeypatch):
    dead(conn, ["user_id"], "u-7")
    place = "SELECT ctid::text FROM logsluice.dead_letter"
    old, settings, texts, read = conn.execute(place).fetchone(), partitions.settings, erasure._texts, []

    def meanwhile(*given):
        if read:  # all were looked at, nothing is deleted yet
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute("DELETE FROM logsluice.dead_letter")
                other.execute("VACUUM (TRUNCATE false) logsluice.dead_letter")
                other.execute(
                    "INSERT INTO logsluice.dead_letter (stream, position, target, row) VALUES (1, 2, 't', 'x')"
                )
                assert other.execute(place).fetchone() == old
        settings(*given)

    monkeypatch.setattr(partitions, "settings", meanwhile)
    monkeypatch.setattr(erasure, "_texts", lambda *given: read.append(1) or texts(*given))
    assert erasure.erase(conn, {"user_id": "u-7"})[-1].rows == 0
    assert left(conn, "dead_letter", "position") == [2]


def test_a_dead_letter_that_is_sent_again_meanwhile_is_deleted_wherever_it_is(dsn, conn, monkeypatch):
    """Sent again after the tables were read, its row stayed in one of them."""
    now = conn.execute("SELECT now()").fetchone()[0]
    partitions.ensure_at(conn, "logsluice", "day", now)
    row = f"{now:%Y-%m-%d %H:%M:%S}Z\t20\tu-7\t1\t1\n".encode()
    conn.execute(
        "INSERT INTO logsluice.dead_letter (stream, position, target, columns, row) "
        "VALUES (1, 1, '\"logsluice\".\"logs\"', '{ts,level,user_id,stream,seq}', %s)",
        [row],
    )
    real = erasure._dead_letters

    def meanwhile(*given, **options):
        with psycopg.connect(dsn, autocommit=True) as other:
            assert len(deadletters.replay(other, now=now).stored) == 1
        real(*given, **options)

    monkeypatch.setattr(erasure, "_dead_letters", meanwhile)
    erasure.erase(conn, {"user_id": "u-7"})
    assert left(conn, "logs") == left(conn, "dead_letter", "position") == []


def test_a_dead_letter_that_is_changed_meanwhile_is_deleted(dsn, conn, monkeypatch):
    """It lies in another place then. `dead replay` changes each that is refused again."""
    dead(conn, ["user_id"], "u-7")
    texts, read = erasure._texts, []

    def meanwhile(*given):
        if not read:
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute("UPDATE logsluice.dead_letter SET error = 'refused again'")
        read.append(1)
        return texts(*given)

    monkeypatch.setattr(erasure, "_texts", meanwhile)
    assert erasure.erase(conn, {"user_id": "u-7"})[-1].rows == 1
    assert left(conn, "dead_letter", "position") == []


def test_dead_letters_that_take_long_to_look_through_are_looked_through(conn, monkeypatch):
    """A page of 50 with 4 MiB each takes more than the 10 s after which the server ended the transaction."""
    dead(conn, ["user_id"], "u-7")
    texts, limits = erasure._texts, []

    def looked(*given):
        limits.append(conn.execute("SHOW idle_in_transaction_session_timeout").fetchone()[0])
        return texts(*given)

    monkeypatch.setattr(erasure, "_texts", looked)
    assert erasure.erase(conn, {"user_id": "u-7"})[-1].rows == 1
    assert limits == ["0"]


@pytest.mark.parametrize("meanwhile", ["", "UPDATE logsluice.dead_letter SET error = 'kept' WHERE ctid = OLD.ctid;"])
def test_a_dead_letter_that_a_trigger_keeps_is_not_asked_for_for_ever(conn, meanwhile):
    """One that it changes as well lies in another place at each look."""
    dead(conn, ["user_id"], "u-7")
    conn.execute(
        f"CREATE FUNCTION kept() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {meanwhile} RETURN NULL; END$$; "
        "CREATE TRIGGER kept BEFORE DELETE ON logsluice.dead_letter FOR EACH ROW EXECUTE FUNCTION kept()"
    )
    assert erasure.erase(conn, {"user_id": "u-7"})[-1].rows == 0


def test_a_dead_letter_that_is_no_row_is_told(dsn, conn, people, capsys):
    dead(conn, ["user_id", "message"], "half a row of u-7")
    dead(conn, None, "u-8")
    assert main(["forget", "--dsn", dsn, "--user", "u-7", "--yes"]) == 1
    assert "1 dead letters hold the text but cannot be read as rows" in capsys.readouterr().err


def test_nothing_is_sent_again_after_it(dsn, conn):
    """The watermark stays: a stream goes on behind it."""
    with Shop(dsn) as shop:
        shop.log(5, user_id="u-7")
        assert shop.flush()
        erasure.erase(conn, {"user_id": "u-7"})
        assert shop.stored() == []
        last = shop.log(2)
        assert shop.flush()
        assert shop.stored() == last
        shop.law()


@pytest.mark.parametrize("argv", [[], ["--user", ""], ["x"], ["=7"], ["x="]])
def test_without_a_value_nothing_is_asked(argv, capsys):
    assert main(["forget", "--dsn", "host=/nowhere", *argv, "--yes"]) == 2
    assert "COLUMN=VALUE" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        erasure.erase(None, {})


def test_a_role_without_the_right_is_told(dsn, conn, people, capsys):
    name = f"reader_{conn.info.dbname}"
    conn.execute(f"CREATE ROLE {name}; GRANT USAGE ON SCHEMA logsluice TO {name}")
    conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA logsluice TO {name}")
    try:
        role = psycopg.conninfo.make_conninfo(dsn, options=f"-c role={name}")
        assert main(["forget", "--dsn", role, "--user", "u-7"]) == 0
        assert main(["forget", "--dsn", role, "--user", "u-7", "--yes"]) == 1
    finally:
        conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    said = capsys.readouterr().err
    assert "permission denied for table" in said
    assert "connect as a role that may" in said
    assert len(left(conn, "logs")) == 4
