"""The embedded PostgreSQL: as whom it runs, what it leaves alone, what survives it and what it survives."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psycopg
import pytest

from logsluice import devserver
from logsluice.devserver import EmbeddedPostgres, watchdog
from logsluice.devserver.cluster import Account, make_folder
from logsluice.devserver.programs import wheel_bin
from logsluice.errors import DevServerError
from support.processes import ended, until
from support.servers import memory

ROOT = os.geteuid() == 0
# Looks at no event for 0.5 s; the division ends it with an error, whichever comes first.
BUSY = "SELECT sum(i) / 0 FROM generate_series(1, 3000000) i"
SECONDS = 10  # until something that ends or disappears has; it takes 0.1 s


def one(server, query, dbname="postgres"):
    with psycopg.connect(server.dsn(dbname), autocommit=True) as conn:
        return conn.execute(query).fetchone()[0]


def permissions(*paths):
    """Mode and owner of every folder above these paths, and who has an account."""
    folders = {folder for path in paths for folder in Path(path).resolve().parents}
    found = {str(folder): folder.stat() for folder in folders}
    return {name: (info.st_mode, info.st_uid, info.st_gid) for name, info in found.items()} | {
        "accounts": [account.pw_name for account in pwd.getpwall()]
    }


@pytest.fixture
def open_folder():
    """A folder that the server's user may enter; pytest's own are closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="logsluice-test-", dir=memory()))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def test_it_runs_as_an_ordinary_user_and_opens_no_folder_of_others(cluster):
    before = permissions(cluster.bin, sys.executable, tempfile.gettempdir() + "/x")
    with EmbeddedPostgres(template=cluster) as server:
        owner = Path(f"/proc/{server.pid}").stat().st_uid
        assert owner == (pwd.getpwnam("nobody").pw_uid if ROOT else os.geteuid())
        assert server.data.stat().st_uid == owner
        assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.folder / "socket").stat().st_mode) == 0o700
        assert stat.S_IMODE(server.folder.stat().st_mode) == (0o711 if ROOT else 0o700)
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert not ROOT or "\nGroups:\t \n" in status  # none of root's
        assert "/dev/shm/PostgreSQL" not in Path(f"/proc/{server.pid}/maps").read_text()
    assert permissions(cluster.bin, sys.executable, tempfile.gettempdir() + "/x") == before


PARENT = """
import json, os, sys, threading
from logsluice.devserver import EmbeddedPostgres
from support.servers import memory

server = EmbeddedPostgres(within=memory())
starter = threading.Thread(target=server.start)  # the server must outlive the thread that started it
starter.start()
starter.join()
read, write = os.pipe()
if os.fork() == 0:
    server.stop()  # not the child's to stop
    os.write(write, b"done")
    sys.stdin.read()  # lives on, and holds all that its parent had open
    os._exit(0)
os.read(read, 4)
print(json.dumps([server.pid, str(server.folder), server.dsn()]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent():
    """A program that has started a server and has forked a child that outlives it."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", PARENT]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_it_stops_when_its_parent_is_killed(parent):
    pid, folder, dsn = json.loads(parent.stdout.readline())
    assert Path(folder).exists()
    with psycopg.connect(dsn) as conn:
        assert conn.info.server_version
    parent.kill()
    parent.wait()
    assert ended(pid, SECONDS)
    assert until(lambda: not Path(folder).exists(), SECONDS)


def test_a_parent_killed_during_initdb_leaves_no_folder(open_folder):
    program = "from logsluice.devserver import EmbeddedPostgres\nEmbeddedPostgres().start()\n"
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(open_folder)})
    try:
        assert until(lambda: list(open_folder.glob("logsluice-*/cluster.new/base")), SECONDS)
    finally:
        process.kill()
        process.wait()
    assert until(lambda: not list(open_folder.iterdir()), SECONDS)


def test_a_killed_server_keeps_what_it_confirmed_and_its_port(own_server):
    port, pid = own_server.port, own_server.pid
    with psycopg.connect(own_server.dsn()) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS id")
        conn.commit()
        own_server.kill()
        assert own_server.pid is None
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own_server.dsn())
    own_server.start()
    assert (own_server.port, own_server.pid != pid) == (port, True)
    assert one(own_server, "SELECT count(*) FROM kept") == 1
    assert "automatic recovery in progress" in own_server.log_path.read_text()


def test_a_killed_server_starts_again_while_a_backend_has_not_noticed(own_server):
    def run():
        with pytest.raises(psycopg.Error):
            one(own_server, BUSY)

    client = threading.Thread(target=run)
    client.start()
    assert until(lambda: one(own_server, f"SELECT count(*) FROM pg_stat_activity WHERE query = '{BUSY}'"), SECONDS)
    own_server.kill()
    try:
        assert one(own_server.start(), "SELECT 1") == 1
    finally:
        client.join()


def test_a_server_that_somebody_stopped_starts_again(own_server):
    os.kill(own_server.pid, signal.SIGINT)
    assert until(lambda: own_server.pid is None, SECONDS)
    assert own_server.start().pid
    assert one(own_server, "SELECT 1") == 1


def test_stop_removes_everything_and_may_be_called_again(cluster):
    server = EmbeddedPostgres(template=cluster).start()
    folder, pid = server.folder, server.pid
    assert server.start().pid == pid  # running already
    server.stop()
    server.stop()
    assert not folder.exists()
    assert ended(pid, 0)
    with pytest.raises(DevServerError, match=r"start\(\) first"):
        server.log_path.exists()


def test_kept_data_and_its_password_serve_the_next_run(cluster, open_folder):
    kept = open_folder / "demo"
    with EmbeddedPostgres(data=kept, template=cluster) as server:
        assert one(server, "SHOW fsync") == "on"
        with psycopg.connect(server.dsn()) as conn:
            conn.execute("CREATE TABLE kept AS SELECT 1 AS id")
        password = server.password
        with pytest.raises(DevServerError, match=f"in use by the PostgreSQL with pid {server.pid}"):
            EmbeddedPostgres(data=kept).start()
        server.kill()
    assert stat.S_IMODE((kept / "password").stat().st_mode) == 0o600
    # The number of the dead postmaster belongs to a stranger now, as after a reboot.
    options = Account.find(kept).popen()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd="/", **options) as stranger:
        stale = kept / "cluster" / "postmaster.pid"
        stale.write_text(stale.read_text().replace(stale.read_text().split("\n")[0], str(stranger.pid), 1))
        with EmbeddedPostgres(data=kept) as server:
            assert server.password == password
            assert one(server, "SELECT count(*) FROM kept") == 1
        assert stranger.poll() is None
    assert {path.name for path in kept.iterdir()} == {"cluster", "password"}


def test_a_folder_with_something_else_in_it_is_refused(open_folder):
    (open_folder / "notes.txt").write_text("mine")
    with pytest.raises(DevServerError, match="choose an empty folder"):
        EmbeddedPostgres(data=open_folder).start()
    assert [path.name for path in open_folder.iterdir()] == ["notes.txt"]


def test_a_folder_that_the_servers_user_may_not_enter_is_refused(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not Account(uid=os.geteuid() + 1, gid=os.getegid() + 1).may_enter(closed)
    assert Account().may_enter(closed)
    if ROOT:
        with pytest.raises(DevServerError, match="may not enter"):
            EmbeddedPostgres(data=closed / "demo").start()


def test_the_password_is_on_no_command_line(monkeypatch):
    seen, over = set(), threading.Event()

    def watch():
        while not over.wait(0.1):  # seconds: initdb alone takes five times as long
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with EmbeddedPostgres(within=memory()) as server:
            assert one(server, "SELECT 1") == 1
            assert not (server.folder / "password").exists()
            wrong = server.dsn().replace(server.password, "wrong")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(wrong)
    finally:
        over.set()
        watcher.join()
    for program in (b"initdb", b"postgres", b"watchdog.py"):
        assert any(program in command for command in seen)
    assert not [command for command in seen if server.password.encode() in command]


def test_the_wheels_programs_run_when_root_alone_can_reach_them(tmp_path, monkeypatch):
    package = wheel_bin().parent.parent
    closed = tmp_path / "closed"  # as a virtual environment below root's home
    closed.mkdir(mode=0o700)
    (closed / package.name).symlink_to(package)
    libraries = f"{package.name}.libs"
    (closed / libraries).symlink_to(package.with_name(libraries))
    programs = closed / wheel_bin().relative_to(package.parent)
    monkeypatch.setenv("LOGSLUICE_PG_BIN", str(programs))
    before = permissions(programs)
    with EmbeddedPostgres(within=memory()) as server:
        assert (server.folder in server.bin.parents) == ROOT
        assert one(server, "SHOW server_version") == server.version
        assert server.version.split(".")[0] in wheel_bin().parent.name
    assert permissions(programs) == before


def test_a_port_that_is_taken_is_changed(cluster, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], devserver.free_port()]
        monkeypatch.setattr(devserver, "free_port", lambda: ports.pop(0))
        with EmbeddedPostgres(template=cluster) as server:
            assert not ports
            assert server.port != taken.getsockname()[1]
            assert "Address already in use" in server.log_path.read_text()
            assert one(server, "SELECT 1") == 1


def test_a_failing_start_quotes_the_servers_log(cluster):
    server = EmbeddedPostgres(template=cluster, settings={"shared_buffers": "plenty"})
    with pytest.raises(DevServerError, match='invalid value for parameter "shared_buffers": "plenty"'):
        server.start()
    with pytest.raises(DevServerError, match=r"start\(\) first"):
        server.folder.exists()


def test_settings_and_the_callers_environment(cluster, monkeypatch):
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    with EmbeddedPostgres(template=cluster, settings={"max_connections": 7, "work_mem": "5MB"}) as server:
        assert one(server, "SHOW max_connections") == "7"
        assert one(server, "SHOW work_mem") == "5MB"
        assert one(server, "SHOW fsync") == "off"
        assert one(server, "SHOW synchronous_commit") == "on"
        assert one(server, "SHOW server_encoding") == "UTF8"
        psycopg.connect(server.dsn(), autocommit=True).execute('CREATE DATABASE "odd name/?"').connection.close()
        assert one(server, "SELECT current_database()", "odd name/?") == "odd name/?"


def test_a_long_temporary_folder_does_not_make_the_sockets_path_too_long(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(DevServerError, match="too long"):
        make_folder(Account(), within=long)
    folder = make_folder(Account())
    try:
        assert long not in folder.parents
        assert not list(long.iterdir())
    finally:
        shutil.rmtree(folder)


def test_a_folder_that_is_still_written_to_is_removed_in_the_end(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    removals = []

    def rmtree(path, *, ignore_errors):
        removals.append(path)
        if len(removals) == 3:
            path.rmdir()

    monkeypatch.setattr(watchdog.shutil, "rmtree", rmtree)
    watchdog.remove(folder)
    assert removals == [folder] * 3
