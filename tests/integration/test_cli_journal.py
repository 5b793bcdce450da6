"""`logsluice journal`: what waits and whose it is, loaded by the next process's own way, and nothing living touched."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice.cli import main
from logsluice.journal import BLOCK, Header, file_size, trailer
from support.files import Process, config
from support.journals import NOWHERE, image_of, inherit, lost_and_twice, only_segment, segments, streams
from support.left import files_of, leave, reboot, tear
from support.processes import until
from support.shop import Shop

LIMIT = 60  # seconds: a net
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PG") or name == "LOGSLUICE_DSN"]:
        monkeypatch.delenv(name)


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def logsluice(capfd):
    """Run the command here: (exit status, stdout, stderr)."""

    def run(*argv):
        capfd.readouterr()
        try:
            status = main(["journal", *map(str, argv)])
        except SystemExit as ended:
            status = ended.code
        return status, *capfd.readouterr()

    return run


def query(dsn, text):
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(text)
        return cursor.fetchall() if cursor.description else []


def shown(logsluice, journal):
    """What --json says."""
    status, out, err = logsluice(journal, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def only(place):
    (stream,) = place["streams"]
    return stream


# --- looking --------------------------------------------------------------------------------------------------------


def test_whose_it_is_and_how_much(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=3000, first=100)
    files = segments(journal)
    stream = only(shown(logsluice, journal))
    holding = sum(image_of(file).rows() for file in files_of(journal, name))
    assert (stream["name"], stream["stream"], stream["alive"]) == (name, int(name, 16), False)
    assert (stream["records"], stream["segments"]) == (holding, len(files))
    assert stream["bytes"] == sum(file.stat().st_size for file in files)
    assert holding == 3100, "the first segment is not settled: what was stored of it is still there"
    assert {key: stream["who"][key] for key in ("service", "environment")} == {
        "service": "shop", "environment": "production",
    }  # fmt: skip
    assert stream["who"]["pid"] != os.getpid()
    assert stream["target"]["table"] == "logs"
    first, last = query(dsn, "SELECT min(ts), max(ts) FROM logsluice.logs")[0]
    assert stream["first"] == f"{first:%Y-%m-%d %H:%M:%S.%f}Z"
    assert stream["last"] > f"{last:%Y-%m-%d %H:%M:%S.%f}Z"
    assert abs(stream["started"] - first.timestamp()) < LIMIT
    status, out, err = logsluice(journal)
    assert (status, err) == (0, "")
    assert f"stream {name}: its process is gone\n  shop (production), pid {stream['who']['pid']} on " in out
    assert "3,100 records from 20" in out
    assert out.splitlines()[-2] == f"  logsluice journal {journal} --load"
    assert sorted(segments(journal)) == files


def test_a_living_process_is_shown_and_never_touched(dsn, tmp_path, journal, logsluice):
    with Shop(dsn, journal=str(journal), linger=60) as shop:
        shop.log(10)
        before = {file: file.stat().st_mtime_ns for file in journal.rglob("*")}
        stream = only(shown(logsluice, journal))
        assert (stream["alive"], stream["records"]) == (True, 10)
        status, out, _ = logsluice(journal)
        assert f"stream {stream['name']}: a living process has it" in out
        assert out.endswith("nothing of a dead process waits here\n")
        assert logsluice(journal, "--load", "--dsn", dsn) == (0, "nothing of a dead process waits here\n", "")
        for action in (["--load", stream["name"], "--dsn", dsn], ["--export", stream["name"]]):
            status, out, err = logsluice(journal, *action)
            assert (status, out) == (1, "")
            assert "held by a living process, which sends it itself: leave it alone" in err
        assert {file: file.stat().st_mtime_ns for file in journal.rglob("*")} == before
        assert only(shown(logsluice, journal))["alive"], "its flock is still its own"
        assert shop.flush()
        shop.check()


def test_probing_does_not_keep_a_process_from_adopting(dsn, tmp_path, journal, logsluice):
    """Looking takes each owner for a moment: a process that looks for orphans in just that moment must find them."""
    leave(dsn, tmp_path, journal, count=500)
    over = threading.Event()
    looks = []
    looking_often = "from logsluice import journals; f = journals.opened({!r}); [journals.look(f) for _ in range(200)]"

    def looking():
        while not over.is_set():
            command = [sys.executable, "-c", looking_often.format(str(journal))]
            looks.append(subprocess.run(command, timeout=LIMIT, check=False, capture_output=True).returncode)

    thread = threading.Thread(target=looking)
    thread.start()
    try:
        inherit(dsn, journal)
    finally:
        over.set()
        thread.join(LIMIT)
    assert set(looks) == {0}
    assert lost_and_twice(dsn, tmp_path) == ([], [])


def test_control_characters_are_shown_and_not_sent(dsn, tmp_path, journal, logsluice):
    leave(dsn, tmp_path, journal, count=3, service="\x1b[31mshop\u202e")
    (journal / "a\x1bb").mkdir()
    _, out, _ = logsluice(journal)
    assert "\\x1b[31mshop\\u202e (production)" in out
    assert "not of a journal: a\\x1bb" in out
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_an_empty_folder(tmp_path, logsluice):
    (tmp_path / "empty").mkdir(mode=0o700)
    status, out, _ = logsluice(tmp_path / "empty")
    assert status == 0
    assert out.splitlines()[-1] == "nothing of a dead process waits here"


def made(journal, count, size=4 * MIB):
    """A dead stream of so many full segments, each of 4 MiB."""
    folder = journal / "00000000000000aa"
    folder.mkdir(parents=True, mode=0o700)
    journal.chmod(0o700)
    row = b"1\t2026-11-22 09:01:02.000000Z\t" + b"x" * 1000 + b"\n"
    target = {"host": "", "port": "", "dbname": "", "schema": "logsluice", "table": "logs"}
    for number in range(count):
        header = Header(0xAA, number, size, "", "postgres", "logsluice", target, ("seq", "ts", "message"), mapped=False)
        data = header.encode()
        data += row * ((size - len(data)) // len(row))
        end = trailer(data)
        text = data.ljust(size, b"\0") + end
        (folder / f"{number:08x}-00000000.seg").write_bytes(text.ljust(file_size(size), b"\0"))
    return count * ((size - len(header.encode())) // len(row))


def test_counting_takes_the_memory_of_one_segment(tmp_path):
    peaks = {}
    for count in (1, 32):
        journal = tmp_path / f"journal-{count}"
        rows = made(journal, count)
        command = [sys.executable, "-m", "logsluice", "journal", str(journal), "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            out = process.stdout.read()
            _, process.returncode, usage = os.wait4(process.pid, 0)
        assert process.returncode == 0
        assert only(json.loads(out))["records"] == rows
        peaks[count] = usage.ru_maxrss / 1024
    print(f"peak memory: {peaks[1]:.0f} MiB for 1 segment of 4 MiB, {peaks[32]:.0f} MiB for 32")
    assert peaks[32] - peaks[1] < 3 * 4


# --- loading --------------------------------------------------------------------------------------------------------


def test_loaded_under_its_own_name_and_once(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=4000, first=200)
    who = only(shown(logsluice, journal))["who"]
    status, out, err = logsluice(journal, "--load", "--dsn", dsn)
    assert (status, out, err) == (0, f"stream {name}: 4,200 records stored, 0 dead letters\n", "")
    assert streams(journal) == set()
    row = query(dsn, "SELECT stream, service, host, pid, stored, retired IS NOT NULL FROM logsluice.stream")
    assert row == [(int(name, 16), "shop", who["host"], who["pid"], 4200, True)]
    assert query(dsn, "SELECT DISTINCT stream FROM logsluice.logs") == [(int(name, 16),)]
    assert logsluice(journal, "--load", "--dsn", dsn)[:2] == (0, "nothing of a dead process waits here\n")
    inherit(dsn, journal)
    lost, twice = lost_and_twice(dsn, tmp_path)
    print(f"--load: 4200 records, lost {len(lost)}, twice {len(twice)}")
    assert (lost, twice) == ([], [])


def test_the_one_that_is_named_and_the_dsn_of_the_environment(dsn, tmp_path, journal, logsluice, monkeypatch):
    first = leave(dsn, tmp_path, journal, "a", count=20)
    second = leave(dsn, tmp_path, journal, "b", count=30)
    monkeypatch.setenv("LOGSLUICE_DSN", dsn)
    assert logsluice(journal, "--load", second)[:2] == (0, f"stream {second}: 30 records stored, 0 dead letters\n")
    assert streams(journal) == {first}
    status, out, err = logsluice(journal, "--load", second, first)
    assert (status, out) == (1, f"stream {first}: 20 records stored, 0 dead letters\n")
    assert f"stream {second} is not loaded: it is not there (any more)" in err
    assert lost_and_twice(dsn, tmp_path) == ([], [])


def test_another_database_is_left_unless_told(dsn, empty_dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=20)
    dbname, other = (conninfo_to_dict(one)["dbname"] for one in (dsn, empty_dsn))
    status, out, err = logsluice(journal, "--load", "--dsn", empty_dsn)
    assert (status, out) == (1, "")
    assert f'it is for "logsluice"."logs" in database {dbname} at 127.0.0.1:' in err
    assert f"(dbname '{dbname}', not '{other}')" in err
    assert conninfo_to_dict(dsn)["password"] not in err
    assert streams(journal) == {name}
    # What it tells to run: there the tables are missing, which it says as well.
    command = shlex.split(err.split("you want it here: ")[1].splitlines()[0])
    assert command[:2] == ["logsluice", "journal"]
    assert command[-2:] == ["--dsn", "..."]
    status, out, err = logsluice(*command[2:-1], empty_dsn)
    assert (status, out) == (1, "")
    assert 'schema "logsluice" does not exist; to mend it: logsluice migrate' in err
    assert main(["migrate", "--dsn", empty_dsn]) == 0
    assert logsluice(*command[2:-1], empty_dsn)[0] == 0
    assert query(empty_dsn, "SELECT count(*) FROM logsluice.logs") == [(20,)]
    assert query(dsn, "SELECT count(*) FROM logsluice.logs") == [(0,)]


def test_a_computed_dsn_is_another_database(dsn, tmp_path, journal, logsluice):
    shop = Shop(lambda: dsn, read=dsn, journal=str(journal), linger=60)
    name = None
    with shop:
        shop.log(5)
        (name,) = streams(journal)
        # As a process leaves it that is killed: nothing is closed but by the system.
        shop.handler._pair[1].adopter = None
        copied = journal.with_name("copy")
        subprocess.run(["cp", "-a", journal, copied], check=True, timeout=LIMIT)
        assert shop.flush()
    status, _, err = logsluice(copied, "--load", "--dsn", dsn)
    assert status == 1
    assert "(host '(callable)', not '127.0.0.1')" in err
    # A copy of what is stored meanwhile: the watermark knows.
    status, out, err = logsluice(copied, "--load", "--even-elsewhere", "--dsn", dsn)
    assert (status, out) == (0, f"stream {name}: 5 records stored, 0 dead letters\n"), err
    assert shop.lost_and_twice() == ([], [])


def test_a_refused_row_is_set_aside(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=300)
    query(dsn, "ALTER TABLE logsluice.logs ADD CONSTRAINT no_7 CHECK (attributes->>'id' NOT IN ('run-7', 'run-77'))")
    status, out, err = logsluice(journal, "--load", "--dsn", dsn)
    assert (status, err) == (0, "")
    assert out == f"stream {name}: 298 records stored, 2 dead letters\n  logsluice dead list shows them\n"
    assert lost_and_twice(dsn, tmp_path) == ([], [])


def test_a_table_that_takes_nothing_stops_it(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=100)
    query(dsn, "ALTER TABLE logsluice.logs ADD CONSTRAINT none CHECK (level > 100)")
    status, out, err = logsluice(journal, "--load", "--dsn", dsn)
    assert (status, out) == (1, "")
    assert f"stream {name} is not loaded: " in err
    assert "none" in err
    assert "the table takes none of the waiting records" in err
    assert err.endswith(f"What waits still:\n  logsluice journal {journal}\n")
    query(dsn, "ALTER TABLE logsluice.logs DROP CONSTRAINT none")
    assert logsluice(journal, "--load", "--dsn", dsn)[0] == 0
    assert lost_and_twice(dsn, tmp_path) == ([], [])


def test_the_server_is_away(dsn, tmp_path, journal, logsluice):
    names = {leave(dsn, tmp_path, journal, name, count=5) for name in "ab"}
    status, out, err = logsluice(journal, "--load", "--even-elsewhere", "--dsn", NOWHERE)
    assert (status, out) == (1, "")
    assert err.count("is not loaded: ") == 1, "the second stream would meet the same"
    assert "refused" in err
    assert streams(journal) == names


def test_a_password_is_never_shown(dsn, tmp_path, journal, logsluice):
    leave(dsn, tmp_path, journal, count=5)
    wrong = make_conninfo(dsn, password="canary7secret")
    status, out, err = logsluice(journal, "--load", "--dsn", wrong)
    assert status == 1
    assert "password authentication failed" in err
    assert "canary7secret" not in out + err
    status, out, err = logsluice(journal, "--load", "--even-elsewhere", "--dsn", "postgresql://u:canary7@secret@h/db")
    assert status == 1
    assert "canary7" not in out + err
    assert "Percent-encode" in err


def test_a_table_of_the_users_own(dsn, tmp_path, journal, logsluice):
    query(dsn, "CREATE TABLE public.orders (note text NOT NULL, id text)")
    options = {"table": "public.orders", "columns": {"note": "message", "id": "extra.id"}}
    name = leave(dsn, tmp_path, journal, count=20, **options)
    stream = only(shown(logsluice, journal))
    assert (stream["records"], stream["first"], stream["columns"]) == (20, None, ["note", "id"])
    _, out, _ = logsluice(journal)
    assert 'for "public"."orders" in database' in out
    assert ": 20 records\n" in out
    assert logsluice(journal, "--load", "--dsn", dsn)[:2] == (0, f"stream {name}: 20 records stored, 0 dead letters\n")
    assert query(dsn, "SELECT count(*), count(DISTINCT id) FROM public.orders") == [(20, 20)]
    assert query(dsn, "SELECT stored FROM logsluice.stream") == [(20,)]


# --- damage ---------------------------------------------------------------------------------------------------------


def change(file, at, data):
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


def test_a_torn_tail_and_a_hole(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=3000)
    last = files_of(journal, name)[-1]
    tear(last)
    for file in files_of(journal, name):
        reboot(file)
    change(last, 8192, bytes(4096))
    stream = only(shown(logsluice, journal))
    assert stream["holes"] == 1
    assert 44 <= stream["torn"] <= 4096 + 44
    gone = 3000 - stream["records"]
    assert 4096 / 500 < gone < 4096 / 150
    _, out, _ = logsluice(journal)
    assert "1 hole: the machine went down before the disk had those pages" in out
    assert f"{stream['torn']} bytes of records that were never whole" in out
    status, out, _ = logsluice(journal, "--load", "--dsn", dsn)
    assert (status, out) == (0, f"stream {name}: {3000 - gone:,} records stored, 0 dead letters, 1 hole\n")
    lost, twice = lost_and_twice(dsn, tmp_path)
    assert (len(lost), twice) == (gone, [])


def test_a_damaged_block_becomes_dead_letters(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=6000, sealed=True)
    file = next(one for one in files_of(journal, name) if image_of(one).sealed)
    change(file, BLOCK + 100, b"\x7f")
    stream = only(shown(logsluice, journal))
    assert BLOCK / 500 < stream["damaged"] < BLOCK / 150
    assert f"  {stream['damaged']} rows in damaged blocks: dead letters, once it is sent\n" in logsluice(journal)[1]
    status, out, _ = logsluice(journal, "--load", "--dsn", dsn)
    assert status == 0
    assert f"stream {name}: {6000 - stream['damaged']:,} records stored, {stream['damaged']} dead letters\n" in out
    assert lost_and_twice(dsn, tmp_path)[1] == []


def test_what_cannot_be_read_goes_to_quarantine_with_its_reason(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=3000)
    first, second = files_of(journal, name)[:2]
    rows = image_of(second).rows()
    change(second, 30, b"\x7f")
    stream = only(shown(logsluice, journal))
    assert stream["unreadable"] == {second.name: "its first line is damaged (checksum)"}
    assert f"{second.name}: its first line is damaged (checksum): it goes to quarantine/" in logsluice(journal)[1]
    status, out, _ = logsluice(journal, "--load", "--dsn", dsn)
    assert status == 0
    assert f"{3000 - rows:,} records stored, 0 dead letters, {rows:,} records given up (quarantined)" in out
    assert "the files are in quarantine/" in out
    place = shown(logsluice, journal)
    assert place["streams"] == []
    assert [(one["name"], one["why"]) for one in place["quarantine"]] == [
        (f"{name}-{second.name}", "its first line is damaged (checksum)")
    ]
    assert "quarantine: 1 file that nothing reads or removes any more\n" in logsluice(journal)[1]
    assert first.name not in out


def test_a_stream_without_any_readable_segment(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=10)
    (file,) = segments(journal)
    change(file, 0, b"LOG")
    stream = only(shown(logsluice, journal))
    assert (stream["records"], "who" in stream) == (0, False)
    status, out, _ = logsluice(journal, "--load", "--dsn", dsn)
    told = f"stream {name}: 0 records stored, 0 dead letters, 10 records given up (quarantined)\n"
    assert (status, out) == (0, told + "  the files are in quarantine/\n")
    assert streams(journal) == set()
    assert len(list((journal / "quarantine").iterdir())) == 1


def test_a_truncated_file(dsn, tmp_path, journal, logsluice):
    leave(dsn, tmp_path, journal, count=500)
    file = only_segment(journal)
    os.truncate(file, 50_000)
    stream = only(shown(logsluice, journal))
    assert stream["truncated"] == 1
    assert 0 < stream["records"] < 500
    assert "1 file made shorter by somebody: what stood behind is lost" in logsluice(journal)[1]


# --- copying --------------------------------------------------------------------------------------------------------


def test_exported_rows_are_copy_text_and_stay(dsn, tmp_path, journal, logsluice):
    name = leave(dsn, tmp_path, journal, count=3000)
    tear(files_of(journal, name)[-1])
    command = [sys.executable, "-m", "logsluice", "journal", str(journal), "--export", name]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT, check=True)
    told = done.stderr.decode()
    statement = told[told.index("COPY ") : told.index(" FROM STDIN")]
    assert "Some may be stored: --load knows up to where" in told
    assert "The stream is still there." in told
    query(dsn, "CREATE TABLE public.copied (LIKE logsluice.logs)")
    with psycopg.connect(dsn) as conn:
        into = statement.replace('"logsluice"."logs"', "public.copied")
        with conn.cursor().copy(f"{into} FROM STDIN (ENCODING 'UTF8')") as copy:
            copy.write(done.stdout)
    assert query(dsn, "SELECT count(*), count(DISTINCT attributes->>'id') FROM public.copied") == [(3000, 3000)]
    assert only(shown(logsluice, journal))["records"] == 3000
    assert logsluice(journal, "--export", "0" * 16)[::2] == (
        1, f"logsluice: there is no stream {'0' * 16} in {journal}. Those that are:\n  logsluice journal {journal}\n",
    )  # fmt: skip


# --- the place ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_not_made(tmp_path, logsluice):
    status, out, err = logsluice(tmp_path / "nowhere")
    assert (status, out) == (1, "")
    assert "there is no folder" in err
    assert "journal= says" in err
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_others_may_write_into(dsn, tmp_path, journal, logsluice):
    leave(dsn, tmp_path, journal, count=3)
    journal.chmod(0o777)
    status, _, err = logsluice(journal)
    assert status == 1
    assert "others may write into it (mode 777): chmod go-w it" in err
    assert "sudo -u USER" not in err


def test_somebody_elses_folder(journal, logsluice, monkeypatch):
    journal.mkdir()
    owner, other = os.geteuid(), os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    status, _, err = logsluice(journal)
    assert status == 1
    assert f"it belongs to user {owner}, this is user {other}; run this as the user whose programs write there" in err


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--even-elsewhere"], "go with --load"),
        (["--dsn", "x"], "go with --load"),
        (["--json", "--export", "0" * 16], "not allowed with"),
        (["--load", "shop"], "'shop' is no stream: write its 16 digits"),
    ],
)
def test_wrong_usage(tmp_path, logsluice, argv, why):
    status, out, err = logsluice(tmp_path, *argv)
    assert (status, out) == (2, "")
    assert why in err


def test_its_own_reader_may_go(dsn, tmp_path, journal):
    leave(dsn, tmp_path, journal, count=2000)
    (name,) = streams(journal)
    for option in ("", f"--export {name}"):
        command = f"{shlex.quote(sys.executable)} -m logsluice journal {shlex.quote(str(journal))} {option} | head -n 1"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=LIMIT, check=True)
        assert len(done.stdout.splitlines()) == 1
        assert "Traceback" not in done.stderr
        assert until(lambda: streams(journal) == {name})


def test_a_file_handlers_journal(tmp_path, journal, logsluice):
    """It is shown, its lines can be copied out, and PostgreSQL does not get them."""
    path = tmp_path / "logs" / "app.log"
    given = {"filename": str(path), "journal": str(journal), "linger": 30, "service": "shop"}
    text = "for n in range(20): order(n)\nos.kill(os.getpid(), 9)\n"
    process = Process(text, tmp_path, "a", config=config({"file": given}))
    process.wait(-9)
    (stream,) = streams(journal)
    status, out, err = logsluice(journal)
    assert (status, err) == (0, "")
    assert f"for the file {path}\n" in out
    assert "20 records" in out
    assert "--load" not in out
    (one,) = json.loads(logsluice(journal, "--json")[1])["streams"]
    assert (one["target"], one["records"]) == ({"filename": str(path)}, 20)
    for more in ((), ("--even-elsewhere",)):
        status, out, err = logsluice(journal, "--load", stream, "--dsn", NOWHERE, *more)
        assert (status, out) == (1, "")
        assert f"stream {stream} is not loaded: it is for the file {path}, not for PostgreSQL: a program with" in err
    status, out, err = logsluice(journal, "--export", stream)
    assert status == 0
    assert [json.loads(line)["id"] for line in out.splitlines()] == process.ids
    assert f"These are lines for the file {path}." in err
    assert streams(journal) == {stream}
