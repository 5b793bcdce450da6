"""Archives: rows into files that are verified, before anything is dropped, and back as they were."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from logsluice import archive, archiving, maintenance, partitions, retention, schema, types
from logsluice.archive import Settings, manifest, places
from logsluice.archive import files as archive_files
from logsluice.archive.files import format_module
from logsluice.cli import main
from logsluice.tracing import SpanRow
from support.processes import until
from support.shop import LIMIT, Shop

DAY = timedelta(days=1)
INSERT = "INSERT INTO logsluice.logs (ts, level, message, attributes, stream, seq) VALUES (%s, %s, %s, %s, 1, %s)"
FORMATS = pytest.mark.parametrize("form", archive.FORMATS)
NASTY = ["", " ", "\\N", "\\.", "a\n\\.\nb", "\t\r\n\b\f\v\x01\x7f", 'quote " and \' and \\', "é\u2028\ufeff\U0010ffff", "NULL",
         "{}", "x" * 5000]  # fmt: skip
# Texts of values that a file's own types cannot say, and of those that only nearly fit.
MORE = {
    "uuid": ["00000000-0000-0000-0000-000000000001"],
    "numeric": ["12345678901234567890.1234567890", "1.500", "NaN", "-0.0"],
    "double precision": ["0.1", "1e+300", "-0", "NaN", "-Infinity", "123456789012345680", "1e-05", "1500"],
    "real": ["0.1", "3.4e+38", "Infinity", "16777216"],
    "boolean": ["t", "f"],
    "bigint": ["9223372036854775807", "-9223372036854775808"],
    "bytea": ["\\x", "\\x00ff0a5c"],
    "text[]": ["{}", '{a,NULL,"","b,c"}', "[0:1]={x,y}", "{{1,2},{3,4}}"],
    "jsonb": ["null", '{"a": 1.10, "b": [1e400, "\\u2028"], "": null}', '"text"'],
    "timestamptz": ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "294276-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00"],
    "interval": ["1 year 2 mons -3 days 04:05:06.7"],
    "date": ["infinity", "2026-02-28"],
}  # fmt: skip


@pytest.fixture
def conn(dsn):
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def target(tmp_path):
    return tmp_path / "archive"


def put(conn, moment, message="m", seq=1, level=20, *, width="day", **attributes):
    partitions.ensure_at(conn, "logsluice", width, moment)
    conn.execute(INSERT, [moment, level, message, json.dumps(attributes), seq])


def run(conn, given, now, target=None, **options):
    settings = Settings(str(target), options.pop("form", "jsonl")) if target is not None else None
    return maintenance.run(conn, rules=retention.rules_from(given), now=now, archive=settings, **options)


def rows(conn, table="logs"):
    """All rows as texts."""
    return sorted(row[0] for row in conn.execute(f"SELECT t::text FROM logsluice.{table} t").fetchall())


def messages(conn):
    return sorted(row[0] for row in conn.execute("SELECT message FROM logsluice.logs").fetchall())


def files(target):
    return archiving.manifests(places.place_of(str(target)), None)


def restore(conn, target, **options):
    place = places.place_of(str(target))
    work = archiving.Restore(conn, place, **options)
    return [work.file(one).stored for one in archiving.manifests(place, None)]


def names(target):
    return sorted(path.name for path in Path(target).rglob("*") if path.is_file())


def make_tables(conn, now):
    """`logs`, spans, a typed log with columns of all types, dead letters, all with nasty rows; their names."""

    @types.logtype(table="test_nasty")
    class Nasty:
        text: str

    types.known.pop("test_nasty")
    for kind in (Nasty.__logtype__, SpanRow.__logtype__):
        conn.execute(kind.ddl())
        partitions.ensure_at(conn, "logsluice", "day", now - 5 * DAY, table=kind.table)
    for number, text in enumerate(NASTY):
        moment = now - 5 * DAY + timedelta(microseconds=number)
        put(conn, moment, text, number, attributes={text: text, "deep": [None, 1.5, {"": text}]})
        conn.execute(
            "INSERT INTO logsluice.dead_letter (at, stream, position, target, columns, row, error) VALUES (%s, 7, %s, 'logs', %s, %s, %s)",
            [moment, number, None if number == 3 else ["ts", text], bytes(range(256)) * number, text],
        )
        conn.execute(
            "INSERT INTO logsluice.spans (ts, stream, seq, name, started, ended, trace_id, span_id, status) VALUES (%s, 1, %s, %s, now(), %s, %s, 's', 'ok')",
            [moment, number, text, moment + DAY / 7, text],
        )
    for number, (kind, texts) in enumerate(MORE.items()):
        conn.execute(f'ALTER TABLE logsluice.test_nasty ADD COLUMN "odd % ""{number}" {kind}')
        for seq, text in enumerate(texts):
            conn.execute(
                f'INSERT INTO logsluice.test_nasty (ts, stream, seq, text, "odd %% ""{number}") VALUES (%s, %s, %s, %s, %s::text::{kind})',
                [now - 5 * DAY, number, seq, text, text],
            )
    return "logs", "spans", "test_nasty", "dead_letter"


@FORMATS
def test_every_value_comes_back_as_it_was(conn, now, target, form):
    tables = make_tables(conn, now)
    conn.execute("INSERT INTO logsluice.stream (stream, position) VALUES (1, 99)")
    before = {table: rows(conn, table) for table in (*tables, "stream")}
    assert sum(map(len, before.values())) > 60
    for table in (None, "dead_letter"):
        assert archiving.archive_all(conn, Settings(str(target), form), table=table, until=now).written
    assert not [name for name in names(target) if name.endswith(".tmp")]
    assert sum(restore(conn, target)) == 0, "all are there"
    for table in tables:
        conn.execute(f"DELETE FROM logsluice.{table}")
    assert sum(restore(conn, target)) == sum(len(before[table]) for table in tables)
    assert sum(restore(conn, target)) == 0, "restored again"
    assert {table: rows(conn, table) for table in before} == before
    archiving.archive_all(conn, Settings(str(target), form), until=now)
    assert len(files(target)) == 4, "what was restored is in its file"


@FORMATS
def test_a_partition_is_archived_before_it_goes(conn, now, target, form):
    put(conn, now - 40 * DAY, "old")
    put(conn, now - 5 * DAY, "new")
    report = run(conn, {"*": "30d"}, now, target, form=form)
    assert (messages(conn), report.skipped) == (["new"], [])
    assert "1 files, 1 rows" in report.archived
    (one,) = files(target)
    day = now - 40 * DAY
    assert one.folder == f"logsluice/logs/date={day:%Y-%m-%d}"
    assert (one.rows, one.table, one.partition) == (1, "logs", f"logs_{day:%Y%m%d}")
    assert one.first == one.last == {"ts": f"{day:%Y-%m-%d %H:%M:%S}+00", "stream": "1", "seq": "1"}
    assert one.span() == (day, day)
    assert {"name": "attributes", "type": "jsonb"} in json.loads(one.text())["columns"]
    assert restore(conn, target) == [1]
    assert messages(conn) == ["new", "old"]
    run(conn, {"*": "30d"}, now, target, form=form)
    assert (messages(conn), len(files(target))) == (["new"], 1), "it is in a file already"


def test_what_cannot_be_archived_is_not_dropped(conn, now, tmp_path):
    put(conn, now - 40 * DAY, "old")
    put(conn, now - 5 * DAY, "debug", level=10)
    (tmp_path / "file").write_text("no directory")
    report = run(conn, {"DEBUG": "2d", "*": "30d"}, now, tmp_path / "file")
    assert messages(conn) == ["debug", "old"]
    assert [one for one in report.skipped if "the archive cannot be written" in one], report.skipped
    assert partitions.listed(conn, "logsluice")[0].state == "attached", "readers see it as before"


def test_a_place_that_is_full_while_the_server_still_sends(conn, now, target, monkeypatch):
    """COPY ends with the file that cannot be written: the run goes on, on the same connection."""
    put(conn, now - 40 * DAY, "old")
    conn.execute(
        "INSERT INTO logsluice.logs (ts, level, message, stream, seq) "
        "SELECT %s, 20, repeat('x', 1000), 2, number FROM generate_series(1, 5000) AS number", [now - 40 * DAY],
    )  # fmt: skip

    def full(_writer, _batch):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive_files, "BATCH_ROWS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(format_module("jsonl").Writer, "write", full)
        (said,) = run(conn, {"*": "30d"}, now, target).skipped
    assert "No space left on device" in said
    assert names(target) == []
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert run(conn, {"*": "30d"}, now, target).skipped == []
    assert sum(one.rows for one in files(target)) == 5001


def test_a_file_that_is_not_what_was_written_lets_nothing_go(conn, now, target, monkeypatch):
    """A disk that returns other bytes than it was given: only reading back finds that."""
    put(conn, now - 40 * DAY, "old")
    put(conn, now - 5 * DAY, "debug", level=10)
    read = format_module("jsonl").read

    def other(file, columns):
        for texts in read(file, columns):
            yield [None if text in {"old", "debug"} else text for text in texts]

    monkeypatch.setattr(format_module("jsonl"), "read", other)
    report = run(conn, {"DEBUG": "2d", "*": "30d"}, now, target)
    assert messages(conn) == ["debug", "old"]
    assert "checksum" in report.skipped[0]
    assert names(target) == []
    monkeypatch.setattr(format_module("jsonl"), "read", read)
    assert run(conn, {"DEBUG": "2d", "*": "30d"}, now, target).skipped == []
    assert (messages(conn), len(files(target))) == ([], 2)


def test_a_file_that_was_damaged_since_is_no_reason_to_drop(conn, now, target):
    put(conn, now - 40 * DAY, "old")
    (one,) = archiving.archive_all(conn, Settings(str(target), "jsonl"), until=now - 30 * DAY).written
    (target / one.path).write_bytes(b"of another disk")
    report = run(conn, {"*": "30d"}, now, target)
    assert (messages(conn), report.skipped) == ([], [])
    assert restore(conn, target) == [1]
    assert messages(conn) == ["old"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_row_that_comes_after_its_partition_was_archived(conn, dsn, now, target, monkeypatch, fails):
    put(conn, now - 40 * DAY, "early", 1)
    drop = partitions.drop

    def late(*given, before, **options):
        with psycopg.connect(dsn, autocommit=True) as other:
            put(other, now - 40 * DAY, "late", 2)
        if fails:
            (target / files(target)[0].path).parent.rename(target / "gone")
            (target / "logsluice" / "logs" / f"date={now - 40 * DAY:%Y-%m-%d}").write_text("no directory")
        drop(*given, before=before, **options)

    monkeypatch.setattr(partitions, "drop", late)
    report = run(conn, {"*": "30d"}, now, target)
    if fails:
        assert report.skipped, "kept, detached"
        monkeypatch.setattr(partitions, "drop", drop)
        (target / "logsluice" / "logs" / f"date={now - 40 * DAY:%Y-%m-%d}").unlink()
        (target / "gone").rename(target / "logsluice" / "logs" / f"date={now - 40 * DAY:%Y-%m-%d}")
        report = run(conn, {"*": "30d"}, now, target)
    assert (messages(conn), report.skipped) == ([], [])
    assert [one.rows for one in files(target)] == [1, 1], "the difference alone"
    assert restore(conn, target) == [1, 1]
    assert messages(conn) == ["early", "late"]
    monkeypatch.setattr(partitions, "drop", drop)
    run(conn, {"*": "30d"}, now, target)
    assert (messages(conn), len(files(target))) == ([], 2), "two files hold the partition: no third"


def test_rows_of_finer_rules_and_dead_letters(conn, now, target, monkeypatch):
    monkeypatch.setattr(archive, "CHUNK", 3)
    for number in range(7):
        put(conn, now - 5 * DAY, f"debug {number}", number, 10)
    put(conn, now - 5 * DAY, "info", 9)
    put(conn, now - 6 * DAY, "% of a type", 10, log_type="100% odd")
    conn.execute(
        "INSERT INTO logsluice.dead_letter (at, stream, position, target, row) VALUES (%s, 1, 1, 'logs', 'x')",
        [now - 9 * DAY],
    )
    conn.execute(
        "INSERT INTO logsluice.hold (name, reason, match) VALUES ('case', 'asked for', %s)",
        [json.dumps({"message": "debug 6"})],
    )
    before = rows(conn), rows(conn, "dead_letter")
    report = run(conn, {"DEBUG": "2d", "log_type=100% odd": "3d", "dead_letter": "3d"}, now, target)
    assert report.skipped == []
    went = {one.rule: one.rows for one in report.gone if one.table in {"logs", "dead_letter"}}
    assert went == {"DEBUG": 6, "log_type=100% odd": 1, "dead_letter": 0}, (
        "a hold without a time keeps all dead letters"
    )
    assert messages(conn) == ["debug 6", "info"]
    assert sorted(one.rows for one in files(target)) == [1, 3, 3]
    conn.execute("DELETE FROM logsluice.hold")
    run(conn, {"DEBUG": "2d", "dead_letter": "3d"}, now, target)
    assert rows(conn, "dead_letter") == []
    assert sum(restore(conn, target)) == 9
    assert (rows(conn), rows(conn, "dead_letter")) == before


def test_a_dead_letter_that_was_stored_since_does_not_wait_again(conn, now, target):
    conn.execute(
        "INSERT INTO logsluice.dead_letter (at, stream, position, target, row) VALUES (%s, 1, 1, 'logs', 'x')",
        [now - 9 * DAY],
    )
    assert archiving.archive_all(conn, Settings(str(target), "jsonl"), table="dead_letter", until=now).written
    conn.execute("UPDATE logsluice.dead_letter SET replayed_at = now()")
    assert restore(conn, target) == [0]
    assert conn.execute("SELECT count(*), count(replayed_at) FROM logsluice.dead_letter").fetchall() == [(1, 1)]


def test_plain_tables_go_by_day(empty_dsn, now, target):
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        schema.migrate(conn, partition="none")
        for seq, days in enumerate((41, 40, 40, 5)):
            conn.execute(INSERT, [now - days * DAY, 20, f"{seq}", "{}", seq])
        before = rows(conn)
        done = archiving.archive_all(conn, Settings(str(target), "jsonl"), until=now - 10 * DAY)
        assert [one.rows for one in done.written] == [1, 2]
        assert run(conn, {"*": "30d"}, now, target).skipped == []
        assert messages(conn) == ["3"]
        assert {one.starts[:10] for one in files(target)} == {f"{now - days * DAY:%Y-%m-%d}" for days in (40, 41)}
        restore(conn, target)
        assert rows(conn) == before


def test_it_can_be_stopped_and_nothing_is_dropped(conn, now, target):
    put(conn, now - 40 * DAY, "old")
    asked = []

    def stop():
        """Once the partition is being read."""
        asked.append(1)
        return bool(conn.info.transaction_status)

    assert run(conn, {"*": "30d"}, now, target, stop=stop).skipped == []
    assert messages(conn) == ["old"]
    assert len(asked) > 1
    assert names(target) == []


def test_a_handler_archives_what_its_rules_name(dsn, conn, now, target):
    put(conn, now - 40 * DAY, "old")
    given = {"*": "30d", "archive": {"target": str(target), "format": "jsonl"}}
    with Shop(dsn, maintenance=given) as shop:
        shop.log(1)
        assert until(lambda: shop.handler._maintainer.last, LIMIT)
    assert "old" not in messages(conn)
    assert [one.rows for one in files(target)] == [1]


def test_other_places_through_fsspec(conn, now):
    put(conn, now - 40 * DAY, "old")
    place = f"memory://{now:%f}{id(conn)}/logs"
    assert run(conn, {"*": "30d"}, now, place, form="parquet").skipped == []
    assert messages(conn) == []
    assert restore(conn, place) == [1]
    assert messages(conn) == ["old"]
    run(conn, {"*": "30d"}, now, place, form="parquet")
    assert len(files(place)) == 1


# The commands


@pytest.fixture
def archived(conn, dsn, now, target, monkeypatch, capsys):
    """Three days in files, and no more in the table."""
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    for days in (12, 11, 10):
        put(conn, now - days * DAY, f"{days}")
    assert main(["archive", str(target), "--format", "jsonl", "--until", "5d"]) == 0
    assert "3 files, 3 rows" in capsys.readouterr().out
    assert main(["archive", str(target), "--format", "jsonl", "--until", "5d"]) == 0
    assert capsys.readouterr().out.endswith("; 3 were there, and are sound\n")
    conn.execute("DELETE FROM logsluice.logs")
    return target


def test_restore_leaves_a_generated_column_to_the_table(archived, conn, now):
    """PostgreSQL takes no value for one: nothing could be restored into a table that has one."""
    conn.execute("ALTER TABLE logsluice.logs ADD COLUMN size int GENERATED ALWAYS AS (length(message)) STORED")
    put(conn, now - 9 * DAY, "nine")
    assert main(["archive", str(archived), "--format", "jsonl", "--until", "5d"]) == 0
    conn.execute("DELETE FROM logsluice.logs")
    for _ in range(2):  # the second time none is missing
        assert main(["restore", str(archived)]) == 0
        found = conn.execute("SELECT message, size FROM logsluice.logs ORDER BY ts").fetchall()
        assert found == [("12", 2), ("11", 2), ("10", 2), ("nine", 4)]


def test_restore_chooses_by_table_time_and_file(archived, conn, now, capsys):
    assert main(["restore", str(archived), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("sound, 1 rows for logs") == 3
    assert messages(conn) == []
    edge = f"{now - 11 * DAY:%Y-%m-%dT%H:%M:%SZ}"
    assert main(["restore", str(archived), "--since", edge, "--until", f"{now - 10.5 * DAY:%Y-%m-%dT%H:%M:%SZ}"]) == 0
    assert messages(conn) == ["11"]
    assert "takes them away again. A row in the table `hold` keeps them" in capsys.readouterr().err
    assert main(["restore", str(archived), "--table", "spans"]) == 1
    assert "no archive of that table" in capsys.readouterr().err
    one = files(archived)[0]
    assert main(["restore", str(archived / one.path)]) == 0
    assert messages(conn) == ["11", "12"]
    assert main(["restore", str(archived), "--into", "old_logs"]) == 0
    assert conn.execute("SELECT count(*) FROM logsluice.old_logs").fetchone() == (3,)
    assert main(["restore", str(archived), "--into", "old_logs"]) == 0
    assert conn.execute("SELECT count(*), min(attributes->>'x') FROM logsluice.old_logs").fetchone() == (3, None)


def test_two_restores_at_once_store_a_row_once(archived, conn, dsn):
    lock = 'SELECT pg_advisory_xact_lock(hashtextextended(\'logsluice restore "logsluice"."logs"\', 0))'
    waits = "SELECT true FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(dsn) as other, ThreadPoolExecutor(1) as pool:
        other.execute(lock)  # as the other one has it
        second = pool.submit(main, ["restore", str(archived), "--dsn", dsn])
        assert until(lambda: conn.execute(waits).fetchone(), LIMIT)
        archiving.Restore(other, places.place_of(str(archived))).file(files(archived)[0])
        other.commit()
        assert second.result(LIMIT) == 0
    assert messages(conn) == ["10", "11", "12"]


def test_a_damaged_file_is_told_and_the_others_are_restored(archived, conn, capsys):
    damaged = archived / files(archived)[0].path
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert main(["restore", str(archived)]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert messages(conn) == ["10", "11"]


def test_a_manifest_cannot_reach_watermarks_nor_run_sql(archived, conn, capsys):
    path = archived / manifest.manifest_path(files(archived)[0].path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "table": "stream"}))
    assert main(["restore", str(path)]) == 1
    assert "no table" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["restore", str(archived), "--into", "x" * 64]) == 2
    assert "--into: 'xxxx" in capsys.readouterr().err
    for own in ("stream", "version", "hold", "logs_hourly", "logs_hourly_state"):
        assert main(["restore", str(archived), "--into", own]) == 2
        assert f"{own!r} is logsluice's own table" in capsys.readouterr().err
    columns = [{**one, "type": "text); DROP SCHEMA logsluice CASCADE; --"} for one in values["columns"]]
    path.write_text(json.dumps({**values, "columns": columns}))
    main(["restore", str(path), "--into", "copied"])
    assert conn.execute("SELECT to_regclass('logsluice.logs')").fetchone()[0]


def test_rows_that_are_too_old_for_a_partition_go_into_another_table(conn, dsn, now, target, capsys):
    conn.execute(
        "CREATE TABLE logsluice.ancient PARTITION OF logsluice.logs FOR VALUES FROM ('2001-01-01') TO ('2001-01-02')"
    )
    conn.execute(INSERT, ["2001-01-01 12:00Z", 20, "old", "{}", 1])
    run(conn, {"*": "30d"}, now, target)
    assert messages(conn) == []
    assert main(["restore", str(target), "--dsn", dsn]) == 1
    assert "--into another table" in capsys.readouterr().err
    assert main(["restore", str(target), "--dsn", dsn, "--into", "old_logs"]) == 0
    assert rows(conn, "old_logs")


def test_a_column_that_is_gone(archived, conn, capsys):
    conn.execute("ALTER TABLE logsluice.logs DROP COLUMN template CASCADE")
    assert main(["restore", str(archived)]) == 1
    assert "has no column template" in capsys.readouterr().err


def test_one_at_a_time(archived, dsn, capsys):
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('logsluice maintain logsluice', 0))")
        assert main(["archive", str(archived), "--format", "jsonl"]) == 1
    assert "a maintainer is at work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["maintain", "--once", "--format", "jsonl"], 2, "--archive"),
        (["maintain", "--once", "--format", "jsonl", "--rules", "rules.json"], 2, "is a directory or URL"),
        (["maintain", "--once", "--archive", "nowhere://x"], 2, "cannot be used"),
        (["archive", "nowhere://user:secret@x"], 2, "cannot be used"),
        (["restore", "/nowhere"], 1, "no archive in /nowhere: name what"),
        (["restore", "/nowhere/x.parquet"], 1, "cannot be read"),
        (["archive", "."], 1, "is no table of logs"),
        (["archive", "~nobody-here"], 2, "is no directory"),
        (["restore", ""], 2, "is a directory's path or a URL"),
    ],
)
def test_what_is_wrong_is_said(dsn, argv, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rules.json").write_text('{"archive": 5}')
    more = ["--table", "nothing"] if argv == ["archive", "."] else []
    assert main([*argv, "--dsn", dsn, *more]) == status
    told = capsys.readouterr().err
    assert message in told
    assert "secret" not in told
