"""
`journal="DIR"` on an ordinary day: what is in the folder, who sends what is left there, what is said and refused.

The accidents are in tests/acceptance (matrix C), each byte of a file in tests/unit/test_journal.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from logsluice import folder
from logsluice.errors import ConfigError
from logsluice.folder import Folder
from logsluice.handlers import PostgresHandler
from support.journals import (
    KEEPS,
    given,
    heir,
    ids_of,
    image_of,
    inherit,
    lost_and_twice,
    nothing_left,
    segments,
    streams,
)
from support.processes import until
from support.proxy import Proxy
from support.shop import LIMIT, Shop
from support.written import run

MIB = 1024 * 1024


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def proxy(dsn):
    with Proxy(dsn) as proxy:
        yield proxy


def run_in(dsn, tmp_path, journal, text, *, name="run", status=0, **options):
    """A program that begins with KEEPS, on this folder."""
    return run(dsn, tmp_path, KEEPS + text, status=status, **given(journal, name, **options))


def files(journal):
    return sorted(str(path.relative_to(journal)) for path in journal.rglob("*"))


def nothing_lost(dsn, tmp_path):
    assert lost_and_twice(dsn, tmp_path) == ([], [])


# --- a healthy program ----------------------------------------------------------------------------------------------


def test_a_healthy_run_leaves_no_growth_and_an_empty_folder(dsn, journal):
    with Shop(dsn, journal=str(journal)) as shop:
        for _ in range(5):
            shop.log(6000, payload="x" * 100)
            assert shop.flush()
            assert until(lambda: len(segments(journal)) <= 2, LIMIT), files(journal)  # the live one and a spare
        assert shop.route.buffer._live().number >= 3  # it has rolled
        # At most a second old.
        assert until(
            lambda: shop.stats.journal["bytes"] == sum(p.stat().st_size for p in journal.rglob("*.seg")), LIMIT
        )
        figures = shop.stats.journal
        assert (figures["trouble"], figures["in_memory_bytes"], figures["left"]) == (None, 0, {})
        shop.check()
    assert files(journal) == ["lock"]
    ((retired,),) = shop.query("SELECT retired IS NOT NULL FROM logsluice.stream")
    assert retired


def test_a_quiet_program_has_one_file_and_no_spare(dsn, journal):
    with Shop(dsn, journal=str(journal)) as shop:
        shop.log(10)
        assert shop.flush()
        assert len(segments(journal)) == 1
        assert segments(journal)[0].stat().st_size < 300 * 1024
        assert {stat.S_IMODE(path.stat().st_mode) for path in segments(journal)} == {0o600}


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(9)", 9),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.execv('/bin/true', ['true'])", 0),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
)
def test_an_end_without_a_word_loses_nothing(end, status, dsn, journal, tmp_path):
    run_in(dsn, tmp_path, journal, f"journaled()\norders(RUN, 500)\n{end}\n", status=status)
    after = inherit(dsn, journal)
    assert [one["stored"] for one in after.adopted] == [500]
    nothing_lost(dsn, tmp_path)
    assert files(journal) == ["lock"]


def test_what_is_left_at_a_normal_exit_is_sent_by_the_next_process(dsn, proxy, journal, tmp_path):
    text = "journaled(shutdown_timeout=0.2)\norders(RUN, 500)\n"
    proxy.refuse()
    ran = run_in(proxy.dsn, tmp_path, journal, text)
    assert (
        f"500 records are left in the journal {journal}: the next process that uses it sends them" in ran.program.stderr
    )
    assert ran.seconds < 10
    proxy.heal()
    inherit(proxy.dsn, journal, read=dsn)
    nothing_lost(dsn, tmp_path)


def test_what_is_left_is_abandoned_to_the_journal_in_the_book(proxy, dsn, journal):
    proxy.refuse()
    with Shop(proxy.dsn, read=dsn, journal=str(journal)) as shop:
        shop.log(5000, payload="x" * 100)  # some of it in sealed segments
        shop.handler._settings.__dict__["shutdown_timeout"] = 0.2
        shop.handler.close()
        stats = shop.law()
        assert (stats.abandoned_by, stats.waiting) == ({"journal": 5000}, 0)
    proxy.heal()
    with Shop(proxy.dsn, read=dsn, journal=str(journal)) as after:
        after.given = shop.given
        after.log()
        assert until(lambda: nothing_left(after, journal), LIMIT)
        assert after.flush()
        assert after.lost_and_twice() == ([], [])


def test_the_same_folder_again_and_again(dsn, journal, tmp_path):
    for n in range(3):
        ran = run_in(dsn, tmp_path, journal, "journaled(linger=0.01)\norders(RUN, 200)\n", name=f"life{n}")
        assert not ran.program.stderr
        assert files(journal) == ["lock"]
    nothing_lost(dsn, tmp_path)


def test_configured_again_with_the_same_folder(dsn, journal, tmp_path):
    text = """
journaled()
orders("before", 300)
journaled()
orders("between", 300)
journaled(linger=0.01)
orders("after", 300)
"""
    ran = run_in(dsn, tmp_path, journal, text)
    assert not ran.program.stderr
    nothing_lost(dsn, tmp_path)
    assert files(journal) == ["lock"]


def test_two_handlers_in_one_folder(dsn, journal):
    with Shop(dsn, journal=str(journal)) as one, Shop(dsn, journal=str(journal)) as other:
        other.given = one.given
        one.log(300)
        other.log(300)
        assert len(streams(journal)) == 2
        assert one.flush()
        assert other.flush()
        assert one.lost_and_twice() == ([], [])
        assert not one.stats.journal["adopted"] + other.stats.journal["adopted"]
    assert files(journal) == ["lock"]


def test_a_forked_child_sends_its_own_and_the_parent_its_own(dsn, journal, tmp_path):
    text = """
journaled()
orders("parent-before", 200)
pid = fork(orders, "child", 200)
orders("parent-after", 200)
assert ended(pid)
tell(streams=len([name for name in os.listdir(JOURNAL) if len(name) == 16]))
"""
    ran = run_in(dsn, tmp_path, journal, text)
    assert ran.told["streams"] == 1  # the child's is gone with it
    nothing_lost(dsn, tmp_path)
    with Shop(dsn) as shop:
        rows = shop.query(
            "SELECT split_part(attributes->>'id', '-', 1), count(DISTINCT stream) FROM logsluice.logs GROUP BY 1"
        )
        assert dict(rows) == {"parent": 1, "child": 1}
        assert shop.query("SELECT count(DISTINCT stream) FROM logsluice.logs") == [(2,)]


def test_a_parent_killed_at_once_after_its_fork(dsn, journal, tmp_path):
    text = """
journaled()
orders("parent", 200)
pid = os.fork()
if pid == 0:
    orders("child", 200)
    sys.exit()
os.kill(os.getpid(), signal.SIGKILL)
"""
    run_in(dsn, tmp_path, journal, text, status=-signal.SIGKILL)
    # The child may still be at it: its own end sends what is its own.
    with heir(dsn, journal) as shop:
        assert until(lambda: nothing_left(shop, journal), LIMIT), files(journal)
    nothing_lost(dsn, tmp_path)


# --- fsync ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch):
    """When each fdatasync of a journal's file began (monotonic)."""
    calls, real = [], Folder.sync

    def sync(self, descriptor):
        calls.append(time.monotonic())
        real(self, descriptor)

    monkeypatch.setattr(Folder, "sync", sync)
    return calls


def test_fsync_never_never_syncs(dsn, journal, syncs):
    with Shop(dsn, journal=str(journal)) as shop:
        shop.log(3000, logging.ERROR)
        assert shop.flush()
    assert not syncs


def test_fsync_always_syncs_before_the_call_returns(proxy, dsn, journal, syncs):
    proxy.refuse()  # nothing is settled meanwhile
    with Shop(proxy.dsn, read=dsn, journal=str(journal), fsync="always") as shop:
        for n in range(1, 21):
            shop.log()
            buffer = shop.route.buffer
            assert buffer.synced >= buffer.tail()
            assert len(syncs) >= n
        proxy.heal()
        assert shop.flush()
        shop.check()


def test_fsync_seconds_syncs_while_something_is_logged_and_rests_when_nothing_is(dsn, journal, syncs):
    with Shop(dsn, journal=str(journal), fsync=0.05) as shop:
        shop.log()
        assert until(lambda: shop.route.buffer.synced >= shop.route.buffer.tail(), LIMIT)
        first = len(syncs)
        shop.log()
        assert until(lambda: len(syncs) > first, LIMIT)
        assert shop.flush()
        assert until(lambda: shop.listener.keeper.idle and shop.route.buffer.synced >= shop.route.buffer.tail(), LIMIT)
        count = len(syncs)
        assert not until(lambda: len(syncs) > count, 0.3)  # six times the interval


def test_fsync_is_at_once_from_error(proxy, dsn, journal, syncs):
    proxy.refuse()
    with Shop(proxy.dsn, read=dsn, journal=str(journal), fsync=30) as shop:
        shop.log(10)
        shop.await_failure()  # so the listener is not asleep: to be woken is another reason to look after the files
        buffer = shop.route.buffer
        until(lambda: buffer.synced >= buffer.tail(), 0.5)
        shop.log(10)
        assert not until(lambda: buffer.synced >= buffer.tail(), 0.5)
        began = time.monotonic()
        shop.log(1, logging.ERROR)
        assert until(lambda: buffer.synced >= buffer.tail(), LIMIT)
        assert syncs
        assert time.monotonic() - began < 10  # and not 30
        proxy.heal()


# --- orphans --------------------------------------------------------------------------------------------------------


def test_an_orphan_of_another_database_is_left_said_and_shown(dsn, empty_dsn, journal, tmp_path, capfd):
    run_in(empty_dsn, tmp_path, journal, "journaled()\norders(RUN, 50)\nos._exit(9)\n", status=9)
    (name,) = streams(journal)
    before = [(path.name, path.read_bytes()) for path in segments(journal)]
    with heir(dsn, journal) as shop:
        assert until(lambda: shop.stats.journal["left"], LIMIT)
        (why,) = shop.stats.journal["left"].items()
        assert why[0] == name
        assert "dbname" in why[1]
        assert shop.flush()
        assert not shop.stats.journal["adopted"]
    said = capfd.readouterr().err
    assert said.count("holds records for another target (dbname") == 1
    assert f"`logsluice journal {journal}`" in said
    assert [(path.name, path.read_bytes()) for path in segments(journal)] == before
    inherit(empty_dsn, journal)  # whose they are
    nothing_lost(empty_dsn, tmp_path)


def test_a_blocked_orphan_does_not_delay_the_live_stream(dsn, journal, tmp_path):
    own = {"table": "public.acts", "columns": {"message": "message", "attributes": "attributes", "plan": "extra.plan"}}
    with Shop(dsn) as shop:
        shop.do("CREATE TABLE public.acts (message text, attributes jsonb, plan text)")
    run_in(dsn, tmp_path, journal, "journaled()\norders(RUN, 50)\nos._exit(9)\n", status=9, **own)
    (name,) = streams(journal)
    with Shop(dsn) as shop:
        shop.do("ALTER TABLE public.acts DROP COLUMN plan")
    del own["columns"]["plan"]
    with heir(dsn, journal, **own) as shop:
        assert until(lambda: [one["state"] for one in shop.stats.journal["adopted"]] == ["blocked"], LIMIT)
        for _ in range(20):
            began = time.monotonic()
            shop.log(10)
            assert shop.flush()
            assert time.monotonic() - began < 5  # a blocked route waits half a minute
        assert name in streams(journal)
        assert [one["stored"] for one in shop.stats.journal["adopted"]] == [0]
        shop.do("ALTER TABLE public.acts ADD COLUMN plan text")
        shop.handler.flush(0.1)
    # It is blocked for half a minute; a next process tries at once.
    with heir(dsn, journal, **own) as shop:
        assert until(lambda: nothing_left(shop, journal), LIMIT)
        ids = shop.query("SELECT attributes->>'id' FROM public.acts WHERE attributes ? 'id'")
    assert sorted(one for (one,) in ids) == sorted(f"run-{n}" for n in range(50))


def test_smaller_journal_bytes_after_a_restart(dsn, proxy, journal, tmp_path):
    proxy.refuse()
    text = "journaled()\nfor n in range(500): order(f'{RUN}-{n}', 'x' * 8000)\nos._exit(9)\n"
    run_in(proxy.dsn, tmp_path, journal, text, status=9)
    held = sum(path.stat().st_size for path in segments(journal))
    small = {"journal_bytes": 2 * MIB, "max_frame_bytes": MIB // 2}
    assert held > 2 * small["journal_bytes"]
    # Its own first segment has no place in the folder: it begins in memory, and drops what does not fit.
    with Shop(proxy.dsn, read=dsn, journal=str(journal), **small) as shop:
        shop.log(500, payload="x" * 2000)
        dropped = shop.stats.dropped
        assert {reason for reason, _ in shop.stats.dropped_by} == {"journal_full"}
        proxy.heal()
        assert until(lambda: nothing_left(shop, journal), LIMIT), files(journal)
        assert until(lambda: not shop.stats.full, LIMIT)
        shop.log(10)
        assert shop.flush()
        lost, twice = shop.lost_and_twice()
        assert (len(lost), twice) == (dropped, [])
        shop.law()
        assert until(lambda: segments(journal), LIMIT)  # in files again
    nothing_lost(dsn, tmp_path)


def test_a_watermark_that_was_deleted_under_an_orphan_is_said_and_counted(dsn, proxy, journal, tmp_path, capfd):
    # Two segments stored and gone, then the server goes away with records in the third.
    text = """
journaled(linger=0.01)
for n in range(200): order(f"{RUN}-{n}", "x" * 8000)
handler().flush()
tell(oldest=handler()._pair[0].buffer._oldest.number)
os.write(1, b'{"flushed": 1}\\n')
for n in range(200, 300): order(f"{RUN}-{n}", "x" * 8000)
os._exit(9)
"""
    ran = run_in(proxy.dsn, tmp_path, journal, text, status=9)
    assert ran.told["oldest"] > 0
    with Shop(dsn) as shop:
        shop.do("DELETE FROM logsluice.stream")
    with heir(proxy.dsn, journal, read=dsn) as shop:
        assert until(lambda: nothing_left(shop, journal), LIMIT)
        assert shop.stats.watermark_missing == 1
    assert "watermark_missing: the row of this stream is gone" in capfd.readouterr().err
    lost, _ = lost_and_twice(dsn, tmp_path)  # at least once
    assert not lost


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fsync": "sometimes"}, "fsync must be 'never', 'always', or seconds of at least 0.01"),
        ({"fsync": 0}, "fsync must be"),
        ({"fsync": True}, "fsync must be"),
        ({"journal": 7}, "journal must be the path of a folder or None"),
        ({"journal": ""}, "journal must be the path of a folder or None"),
        ({"journal_bytes": MIB}, "max_frame_bytes (4194304) must be at most a quarter of journal_bytes (1048576)"),
        ({"journal_bytes": "1 GiB"}, "journal_bytes must be a number of bytes"),
        ({"journal_unsafe_fs": "yes"}, "journal_unsafe_fs must be true or false"),
        ({"journl": "x"}, "did you mean 'journal'?"),
    ],
)
def test_wrong_options_are_refused(options, says, journal):
    with pytest.raises(ConfigError) as raised:
        PostgresHandler(**{"dsn": "", "journal": str(journal), **options})
    assert says in str(raised.value)
    assert not journal.exists()


@pytest.mark.parametrize("name", ["journal_bytes", "fsync", "journal_unsafe_fs"])
def test_options_of_the_journal_say_nothing_without_one(name):
    value = {"journal_bytes": 2**26, "fsync": "always", "journal_unsafe_fs": True}[name]
    with pytest.raises(ConfigError, match=f"{name} says nothing without journal="):
        PostgresHandler(dsn="", **{name: value})


def test_an_unknown_file_system_is_refused_unless_the_user_insists(journal, monkeypatch):
    monkeypatch.setattr(folder, "file_system", lambda _path: "btrfs")
    with pytest.raises(ConfigError, match=r"is on btrfs: .* journal_unsafe_fs=True"):
        PostgresHandler(dsn="", journal=str(journal))
    PostgresHandler(dsn="", journal=str(journal), journal_unsafe_fs=True).close()


def test_a_folder_that_is_none_or_is_others_names_the_path_and_the_user(journal):
    journal.write_text("a file")
    with pytest.raises(ConfigError, match=f"journal='{journal}' cannot be used by user {os.geteuid()}: File exists"):
        PostgresHandler(dsn="", journal=str(journal))
    journal.unlink()
    journal.mkdir()
    journal.chmod(0o777)
    with pytest.raises(ConfigError, match=r"others may write into it \(mode 777\): chmod go-w it"):
        PostgresHandler(dsn="", journal=str(journal))


def test_configuring_leaves_no_file(journal):
    PostgresHandler(dsn="", journal=str(journal)).close()
    assert files(journal) == []


def test_no_secret_is_in_the_files_or_their_names(dsn, journal):
    secret = "of-the-writer-0815"
    dsn = make_conninfo(dsn, application_name="shop")
    with Shop(dsn) as shop:
        shop.do(f"CREATE ROLE keeper_{os.getpid()} SUPERUSER LOGIN PASSWORD '{secret}'")
    try:
        theirs = make_conninfo(dsn, user=f"keeper_{os.getpid()}", password=secret)
        with Shop(theirs, read=dsn, journal=str(journal), linger=30) as shop:
            shop.log(10)
            (file,) = segments(journal)
            header = file.read_bytes().split(b"\n")[0]
            assert secret.encode() not in file.read_bytes()
            assert b'"dbname"' in header
            assert b"password" not in header
            assert secret not in "".join(files(journal))
            assert secret not in repr(shop.stats)
            assert shop.flush()
    finally:
        with Shop(dsn) as shop:
            shop.do(f"DROP OWNED BY keeper_{os.getpid()}", f"DROP ROLE keeper_{os.getpid()}")


def test_switched_off_there_is_no_folder(journal, tmp_path):
    text = "journaled()\norders(RUN, 10)\ntell(dropped=handler().stats().dropped, journal=handler().stats().journal)\n"
    ran = run("", tmp_path, KEEPS + text, LOGSLUICE_OFF="1", **given(journal))
    assert ran.told == {"dropped": 10, "journal": None}
    assert not journal.exists()


def test_captured_for_a_test_nothing_is_written(journal):
    from logsluice import testing

    with testing.captured(journal=str(journal)) as rows:
        logging.getLogger("shop").info("order 17 paid")
    assert [row["message"] for row in rows] == ["order 17 paid"]
    assert files(journal) == []


# --- the folder, and other people -------------------------------------------------------------------------------------


def test_files_of_others_in_the_folder_are_left_alone(dsn, journal):
    journal.mkdir(mode=0o700)
    (journal / "README").write_text("ours")
    (journal / "old").mkdir()
    (journal / "old" / "00000000-00000000.seg").write_text("not ours")
    (journal / "0123456789abcdef").mkdir()
    (journal / "0123456789abcdef" / "notes.txt").write_text("not a segment")
    with heir(dsn, journal) as shop:
        assert shop.flush()
        assert until(lambda: shop.stats.journal["adopted"] or shop.stats.journal["left"], LIMIT)
    assert (journal / "README").read_text() == "ours"
    assert (journal / "old" / "00000000-00000000.seg").read_text() == "not ours"
    assert (journal / "0123456789abcdef" / "notes.txt").read_text() == "not a segment"


def test_removed_with_segments_that_wait_unmapped_what_is_gone_is_counted(dsn, proxy, journal, capfd):
    with Shop(proxy.dsn, read=dsn, journal=str(journal)) as shop:
        proxy.refuse()
        shop.log(5000, payload="x" * 200)
        chain = shop.route.buffer._journal_chain
        assert until(lambda: list(chain())[1].map.closed, LIMIT)
        while journal.exists():  # it is made anew in the middle
            shutil.rmtree(journal, ignore_errors=True)
        assert until(lambda: segments(journal) if journal.exists() else [], LIMIT)
        shop.log(100)
        proxy.heal()
        shop.recover()
        lost, twice = shop.lost_and_twice()
        stats = shop.law()
        assert stats.abandoned_by == {"journal_lost": len(lost)}
        assert 0 < len(lost) < 5000
        assert not twice
    assert "records of a journal segment are given up (journal_lost)" in capfd.readouterr().err


def test_a_segment_is_text_that_a_person_can_read(proxy, dsn, journal):
    proxy.refuse()
    with Shop(proxy.dsn, read=dsn, journal=str(journal), service="shop") as shop:
        shop.log(3)
        lines = segments(journal)[0].read_bytes().rstrip(b"\0").decode().split("\n")
        assert lines[0].startswith("logsluice-journal 1 {")
        assert len(lines) == 5  # the header, three rows, nothing
        header = image_of(segments(journal)[0]).header
        assert (header.who["service"], header.who["pid"]) == ("shop", os.getpid())
        assert not ids_of(segments(journal)[0])
        proxy.heal()
        assert shop.flush()


def test_the_folder_may_be_named_by_a_path_object_and_relative(dsn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Shop(dsn, journal=Path("here")) as shop:
        monkeypatch.chdir("/")
        shop.log()
        assert shop.flush()
        assert len(segments(tmp_path / "here")) == 1
