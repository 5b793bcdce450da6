"""The tests' own tools do what tests rely on: databases apart from each other, faults where they are asked for."""

from __future__ import annotations

import select
import signal
import threading

import psycopg
import pytest

from support.processes import run_program, until
from support.proxy import COPY_DONE, READY, Proxy, copy_data, ending, error, kind, query, reply, startup


@pytest.fixture
def table(empty_dsn):
    with psycopg.connect(empty_dsn) as conn:
        conn.execute("CREATE TABLE t (x text)")
    return empty_dsn


@pytest.fixture
def proxy(table):
    with Proxy(table) as proxy:
        yield proxy


def count(dsn):
    with psycopg.connect(dsn) as conn:
        return conn.execute("SELECT count(*) FROM t").fetchone()[0]


def copy_and_commit(dsn, rows=10):
    with psycopg.connect(dsn) as conn, conn.cursor() as cursor:
        with cursor.copy("COPY t FROM STDIN") as copy:
            for _ in range(rows):
                copy.write(b"row " * 1000 + b"\n")
        conn.commit()


@pytest.mark.parametrize("number", [1, 2])
def test_each_test_has_a_database_of_its_own(dsn, number):
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE TABLE public.only_here ()")


def test_without_a_fault_everything_passes(proxy, table):
    copy_and_commit(proxy.dsn)
    assert proxy.turns == 7  # three to connect with SCRAM, BEGIN, COPY, its data, COMMIT
    assert count(table) == 10
    assert (proxy.connections, proxy.cuts, proxy.swallowed) == (1, 0, 0)


def test_cut_after_commit_is_stored_and_unknown(proxy, table):
    proxy.cut_after(query(b"COMMIT"))
    with pytest.raises(psycopg.OperationalError):
        copy_and_commit(proxy.dsn)
    assert proxy.cuts == 1
    assert proxy.swallowed > 0
    assert count(table) == 10
    copy_and_commit(proxy.dsn)  # once was asked for
    assert (proxy.cuts, proxy.connections) == (1, 2)


def test_cut_before_commit_is_not_stored(proxy, table):
    proxy.cut_before(query(b"COMMIT"))
    with pytest.raises(psycopg.OperationalError):
        copy_and_commit(proxy.dsn)
    assert proxy.cuts == 1
    assert count(table) == 0


def test_cut_at_a_byte_forwards_exactly_so_many(proxy, table):
    proxy.cut_at(20_000)  # half of the copied text
    with pytest.raises(psycopg.OperationalError):
        copy_and_commit(proxy.dsn)
    assert (proxy.cuts, proxy.client_bytes) == (1, 20_000)
    assert count(table) == 0


def test_swallowed_answers_leave_the_connection_open(proxy, table):
    proxy.swallow_after(kind(b"c"))  # the end of the COPY
    with psycopg.connect(proxy.dsn) as conn:
        with pytest.raises(TimeoutError):
            wait_for_an_answer(conn)
        assert not conn.closed
        assert (proxy.cuts, proxy.connections) == (0, 1)
        conn.close()
    assert proxy.swallowed > 0


def wait_for_an_answer(conn):
    """A COPY whose wait for the answer has an end: psycopg itself has none."""
    conn.pgconn.send_query(b"COPY t FROM STDIN")
    while conn.pgconn.is_busy():
        conn.pgconn.consume_input()
    conn.pgconn.get_result()
    conn.pgconn.put_copy_end()
    conn.pgconn.flush()
    if not select.select([conn.fileno()], [], [], 0.3)[0]:
        raise TimeoutError


def test_refused_until_healed(proxy, table):
    open_before = psycopg.connect(proxy.dsn)
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(proxy.dsn)
    assert open_before.execute("SELECT 1").fetchone() == (1,)
    proxy.cut()
    with pytest.raises(psycopg.OperationalError):
        open_before.execute("SELECT 1")
    open_before.close()
    proxy.heal()
    assert count(proxy.dsn) == 0
    assert (proxy.connections, proxy.cuts) == (2, 1)


def test_an_extended_query_is_recognised(proxy, table):
    proxy.cut_before(query(b"SELECT $1::int8"))
    with psycopg.connect(proxy.dsn) as conn, pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT %s::int8", [1])
    assert proxy.cuts == 1


def apart(work, *args):
    """Do it in a thread; a list that will hold its exception, or None."""
    result = []

    def run():
        try:
            work(*args)
        except psycopg.Error as why:
            result.append(why)
        else:
            result.append(None)

    threading.Thread(target=run, daemon=True).start()
    return result


@pytest.mark.parametrize(
    ("match", "before"),
    [(copy_data(1), 0), (COPY_DONE, 0), (ending(b"COMMIT"), 0), (reply(b"COPY"), 0), (reply(b"COMMIT"), 10)],
    ids=["copy data", "copy done", "commit", "reply to copy", "reply to commit"],
)
def test_a_message_is_held_until_it_is_released(proxy, table, match, before):
    held = proxy.hold_at(match)
    result = apart(copy_and_commit, proxy.dsn)
    assert held.wait(10)
    assert until(lambda: count(table) == before)
    assert (result, proxy.held) == ([], 1)
    held.release()
    assert until(lambda: result) == [None]
    assert count(table) == 10


def test_a_held_commit_arrives_although_its_client_has_gone(proxy, table):
    held = proxy.hold_at(query(b"COMMIT"))
    conn = psycopg.connect(proxy.dsn)
    with conn.cursor().copy("COPY t FROM STDIN") as copy:
        copy.write(b"row\n")
    conn.pgconn.send_query(b"COMMIT")
    conn.pgconn.flush()
    assert held.wait(10)
    conn.close()
    assert count(table) == 0
    held.release()
    assert until(lambda: count(table) == 1)


def test_a_number_counts_the_parts_of_one_copy(proxy, table):
    proxy.cut_before(copy_data(2))
    for _ in range(3):
        copy_and_commit(proxy.dsn, rows=1)
    assert proxy.cuts == 0
    with pytest.raises(psycopg.OperationalError):
        copy_and_commit(proxy.dsn, rows=2)  # each is written by itself
    assert proxy.cuts == 1
    assert count(table) == 3


def test_one_message_is_dropped_alone(proxy, table):
    proxy.drop(kind(b"d"))
    copy_and_commit(proxy.dsn)
    assert (proxy.dropped, proxy.cuts) == (1, 0)
    assert count(table) < 10


def test_cuts_at_what_the_server_says(proxy, table):
    proxy.cut_before(reply(b"COMMIT"))
    with pytest.raises(psycopg.OperationalError):
        copy_and_commit(proxy.dsn)
    assert (proxy.cuts, count(table)) == (1, 10)
    proxy.cut_after(error(b"42P01"))
    with psycopg.connect(proxy.dsn) as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1/0")
        conn.rollback()
        with pytest.raises(psycopg.errors.UndefinedTable):
            conn.execute("SELECT * FROM not_there")
        assert until(lambda: proxy.cuts == 2)
    proxy.cut_before(READY)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.dsn)
    assert proxy.cuts == 3


def test_a_new_connection_is_held(proxy, table):
    psycopg.connect(proxy.dsn).close()
    held = proxy.hold_at(startup)
    result = apart(copy_and_commit, proxy.dsn)
    assert held.wait(10)
    assert not result
    held.release()
    assert until(lambda: result) == [None]


def test_who_asks_for_encryption_is_answered(proxy, table):
    with psycopg.connect(proxy.dsn, sslmode="prefer") as conn:  # the server has none
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_program_that_hangs_ends_with_its_tracebacks(tmp_path):
    program = run_program(
        "import threading\ndef stuck_here():\n    threading.Event().wait()\nstuck_here()\n", timeout=3
    )
    assert program.returncode == -signal.SIGABRT
    assert "in stuck_here" in program.stderr
    assert 3 <= program.seconds < 30


def test_a_program_runs_apart_with_its_environment(tmp_path):
    (tmp_path / "p.py").write_text("import os, sys\nprint(os.environ['X'], sys.argv[1:])\nsys.exit(3)\n")
    program = run_program(tmp_path / "p.py", env={"X": "y"}, args=["z"])
    assert (program.stdout, program.returncode) == ("y ['z']\n", 3)
