"""A real PgBouncer in transaction mode, in front of a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice.devserver import free_port
from logsluice.devserver.cluster import Account
from support.processes import until

PLACES = "/usr/sbin", "/usr/bin", "/usr/local/bin"  # beside PATH: Debian has it where users do not look
INSTALL = "PgBouncer is missing: apt-get install pgbouncer"
SECONDS = 10  # to start and to end; it takes milliseconds
CONFIG = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool}
; Seconds without a try after a server that was away. 15 would be our recovery time instead of the handler's.
server_login_retry = 0.1
"""


class PgBouncer:
    """In front of the server of this dsn; `dsn`: the same database through it. `pool`: sessions on the server."""

    def __init__(self, dsn, *, pool=3):
        self._server, self._pool = conninfo_to_dict(dsn), pool
        self.port = free_port()
        self.dsn = make_conninfo(dsn, host="127.0.0.1", hostaddr=None, port=self.port, password="unused")
        self._process = self._folder = None

    def __enter__(self):
        program = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), *PLACES]))
        if program is None:
            pytest.fail(INSTALL, pytrace=False)
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        config = self._folder / "pgbouncer.ini"
        values = {name: self._server[name] for name in ("host", "port", "user", "password")}
        config.write_text(CONFIG.format(**values, listen=self.port, pool=self._pool))
        account = Account.find(None)  # it refuses to run as root, as PostgreSQL does
        account.own(self._folder)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, config], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, **account.popen()
            )
        try:
            assert until(self._answers, SECONDS), self.log()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info):
        self._process.terminate()  # SIGTERM: at once, whoever is connected
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder)

    def log(self):
        return (self._folder / "log").read_text()

    def _answers(self):
        if self._process.poll() is not None:
            pytest.fail(f"PgBouncer ended: {self.log()}")
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
