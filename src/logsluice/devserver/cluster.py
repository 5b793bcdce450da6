"""
The files of an embedded PostgreSQL: whose they are, the temporary folder, the programs, the cluster.

PostgreSQL refuses to run as root. Then it runs as `nobody`, or as the owner of a kept cluster; nothing but our own
files is given to that user, no parent folder's permission is touched, and what the user cannot reach is copied.

    temporary folder   socket/  server.log  password (while initdb runs)  cluster/ (throw-away)  a copy of the wheel
    data=DIR           DIR/cluster  DIR/password
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsluice.devserver.programs import INSTALL, PROGRAMS, copy_programs
from logsluice.errors import DevServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

USER = "postgres"
PROGRAM_SECONDS = 60.0  # initdb takes 1.2 s; on a slow disk ten times that
SOCKET_PATH_BYTES = 100  # sun_path holds 107 on Linux and 103 on macOS
SOCKET_NAME = ".s.PGSQL.65535.lock"  # the longest that PostgreSQL makes in the socket folder
PASSWORD_BYTES = 18  # 24 characters that need no quoting in a URI


@dataclasses.dataclass(frozen=True)
class Account:
    """The user that the server runs as; uid -1: ours, which is not root."""

    uid: int = -1
    gid: int = -1

    @classmethod
    def find(cls, kept: Path | None) -> Account:
        """As root the owner of the kept cluster, else `nobody`."""
        if os.geteuid() != 0:
            return cls()
        if kept and (kept / "cluster").exists():
            owner = (kept / "cluster").stat()
            if owner.st_uid != 0:
                return cls(owner.st_uid, owner.st_gid)
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise DevServerError(
                "PostgreSQL does not run as root, and the user `nobody` does not exist: run as another user."
            ) from None
        return cls(nobody.pw_uid, nobody.pw_gid)

    @property
    def other(self) -> bool:
        """Whether the server runs as somebody else than we do."""
        return self.uid >= 0

    def popen(self) -> dict[str, Any]:
        """Arguments of subprocess.Popen; no groups of root's go along."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.other else {}

    def may_enter(self, folder: Path) -> bool:
        """Whether the permission bits let the user through to the folder (access lists are not read)."""
        real = folder.resolve()
        return not self.other or all(self._passes(path.stat()) for path in (real, *real.parents))

    def _passes(self, info: os.stat_result) -> bool:
        bit = 0o100 if info.st_uid == self.uid else 0o010 if info.st_gid == self.gid else 0o001
        return bool(info.st_mode & bit)

    def own(self, tree: Path) -> None:
        """Give our own tree to the user."""
        if self.other:
            for path in (tree, *tree.rglob("*")):
                os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def run(self, command: Sequence[str | Path]) -> str:
        """Run one of PostgreSQL's programs and return its output."""
        try:
            done = subprocess.run(
                command,
                cwd="/",  # ours may be one that the user cannot enter
                env={**os.environ, "LC_ALL": "C"},  # a locale that this system lacks would only be complained about
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROGRAM_SECONDS,
                check=True,
                **self.popen(),
            )
        except subprocess.CalledProcessError as error:
            raise DevServerError(f"{command[0]} failed: {error.stderr.strip()}") from None
        except (OSError, subprocess.SubprocessError) as error:
            raise DevServerError(f"{command[0]} did not run: {error}") from error
        return str(done.stdout)


def make_folder(account: Account, within: Path | None = None) -> Path:
    """Make the temporary folder, where the account can come and a socket's path is short enough."""
    # mkdtemp makes it private, wherever it is.
    for parent in (within,) if within else (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):  # noqa: S108
        if not account.may_enter(parent):
            continue
        folder = Path(tempfile.mkdtemp(prefix="logsluice-", dir=parent))
        if len(os.fsencode(folder / "socket" / SOCKET_NAME)) > SOCKET_PATH_BYTES:
            folder.rmdir()
            continue
        if account.other:
            folder.chmod(0o711)  # the server passes through; what we write here it cannot exchange for a link
        make_private(folder / "socket", account)
        return folder
    raise DevServerError(
        f"{within or tempfile.gettempdir()} cannot hold the server's temporary folder: its path is too long for a "
        f"socket ({SOCKET_PATH_BYTES} bytes), or user {account.uid} may not enter it. Set TMPDIR to another."
    )


def make_private(folder: Path, account: Account) -> None:
    """Make a folder that only the server enters (and root)."""
    folder.mkdir(mode=0o700)
    account.own(folder)


def reachable_programs(programs: Path, account: Account, folder: Path) -> Path:
    """Return where the account can run the programs: where they are, or a copy of the wheel's in `folder`."""
    try:
        for program in PROGRAMS:
            account.run([programs / program, "--version"])
    except DevServerError:
        # Only the wheel's install has all its parts in one tree; Debian's is open to everybody anyway.
        if not account.other or not programs.parent.name.startswith(INSTALL):
            raise
        return copy_programs(programs, folder)
    return programs


def make_cluster(data: Path, password: str, *, programs: Path, account: Account, folder: Path) -> None:
    """Run initdb. Under another name first: what a kill leaves half-made is not taken for a cluster later."""
    unfinished = _unfinished(data)
    make_private(unfinished, account)
    password_file = folder / "password"
    _write_private(password_file, password)
    account.own(password_file)
    command: list[str | Path] = [programs / "initdb", "-D", unfinished]
    command += ["-U", USER, "-E", "UTF8", "--auth=scram-sha-256"]
    command += [f"--pwfile={password_file}", "--no-sync", "--no-instructions"]
    try:
        account.run([*command, "--locale=C.UTF-8"])
    except DevServerError:  # a system without that locale; initdb leaves the folder empty when it fails
        account.run([*command, "--locale=C"])
    finally:
        password_file.unlink()
    unfinished.rename(data)


def copy_cluster(source: Path, data: Path, account: Account) -> None:
    """Copy a cluster that no server runs on."""
    unfinished = _unfinished(data)
    shutil.copytree(source, unfinished, copy_function=shutil.copyfile)
    account.own(unfinished)
    unfinished.rename(data)


def _unfinished(data: Path) -> Path:
    path = data.with_name(f"{data.name}.new")
    shutil.rmtree(path, ignore_errors=True)
    return path


def check_kept(kept: Path, account: Account) -> None:
    """Make the folder that keeps a cluster, or refuse it."""
    if not kept.exists():
        kept.mkdir(parents=True, mode=0o711 if account.other else 0o700)
    if not account.may_enter(kept):
        raise DevServerError(
            f"When root starts it, PostgreSQL runs as user {account.uid}, who may not enter {kept}: "
            "choose a folder that everybody may enter, or run as another user than root."
        )
    if not {path.name for path in kept.iterdir()} <= {"cluster", "cluster.new", "password"}:
        raise DevServerError(f"{kept} holds something else than a cluster made here: choose an empty folder.")


def kept_password(kept: Path, new: str) -> str:
    """Return the password of the kept cluster; `new`, written down, when there is none yet."""
    path = kept / "password"
    if path.exists():
        return path.read_text(encoding="ascii")
    if (kept / "cluster").exists():
        raise DevServerError(f"{path} is missing, so nobody can log in: remove {kept} to start anew.")
    _write_private(path, new)
    return new


def new_password() -> str:
    """Return a random password."""
    return secrets.token_urlsafe(PASSWORD_BYTES)


def _write_private(path: Path, text: str) -> None:
    # O_EXCL: never through a link that somebody else put there.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
