"""
Where archives are: a directory, or what fsspec reaches (`s3://bucket/logs`, `memory://`), by paths relative to it.

A directory needs nothing but the standard library: files are flushed to the device before they are renamed, and so is
the folder after. Elsewhere a file is there when it is closed; a rename there is a copy that the service makes.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from logsluice.errors import ConfigError, LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Iterator


class ArchiveError(LogsluiceError):
    """An archive cannot be written or read, or is not what it should be. Nothing was dropped for it."""


class Place(Protocol):
    """A folder of archives. Paths are relative, with "/" between their parts. Raises whatever its system raises."""

    def create(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a new file for writing; when the context ends it is safe from a power failure."""

    def open(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file for reading, seekable."""

    def rename(self, old: str, new: str) -> None:
        """Give a file its name, in the place of one that has it."""

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the files of one folder, none where it is not there."""

    def find(self) -> list[str]:
        """Return the paths of all files below."""


class Directory:
    """A directory of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        """As `Place.create`."""
        full = self.root / path
        missing = [folder for folder in full.parents if not folder.exists()]
        full.parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _sync(folder.parent)  # else a power failure could take the new folder with all that is in it
        with full.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # forgotten by the kernel, so that it is read back from the device
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def open(self, path: str) -> IO[bytes]:
        """As `Place.open`."""
        return (self.root / path).open("rb")

    def rename(self, old: str, new: str) -> None:
        """As `Place.rename`."""
        (self.root / old).replace(self.root / new)
        _sync((self.root / new).parent)

    def remove(self, path: str) -> None:
        """As `Place.remove`."""
        (self.root / path).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """As `Place.names`."""
        full = self.root / folder
        return sorted(one.name for one in full.iterdir() if one.is_file()) if full.is_dir() else []

    def find(self) -> list[str]:
        """As `Place.find`."""
        return sorted(one.relative_to(self.root).as_posix() for one in self.root.rglob("*") if one.is_file())


class Remote:
    """A folder that fsspec reaches."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigError(f"{shown(url)} needs fsspec: pip install 'logsluice[archive]'") from None
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:  # each system has its own; an ImportError names the package that is missing
            raise ConfigError(f"{shown(url)} cannot be used: {type(error).__name__}: {error}") from None

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        """As `Place.create`."""
        full = self._full(path)
        if not self._fs.async_impl:  # those are services without folders: S3's would make a bucket of a misspelt name
            self._fs.makedirs(full.rpartition("/")[0], exist_ok=True)
        with self._fs.open(full, "wb") as file:
            yield file

    def open(self, path: str) -> IO[bytes]:
        """As `Place.open`."""
        return cast("IO[bytes]", self._fs.open(self._full(path), "rb"))

    def rename(self, old: str, new: str) -> None:
        """As `Place.rename`."""
        self._fs.mv(self._full(old), self._full(new))

    def remove(self, path: str) -> None:
        """As `Place.remove`."""
        if self._fs.exists(self._full(path)):
            self._fs.rm_file(self._full(path))

    def names(self, folder: str) -> list[str]:
        """As `Place.names`."""
        full = self._full(folder)
        self._fs.invalidate_cache()  # what another process wrote since counts
        if not self._fs.exists(full):
            return []
        found: list[dict[str, Any]] = self._fs.ls(full, detail=True)
        return sorted(one["name"].rpartition("/")[2] for one in found if one["type"] == "file")

    def find(self) -> list[str]:
        """As `Place.find`."""
        start = len(self._root.rstrip("/")) + 1
        return sorted(one[start:] for one in self._fs.find(self._root))


def place_of(target: str) -> Place:
    """Return the place of a directory's path or a URL. Raises `ConfigError` for what cannot be one."""
    if not isinstance(target, str) or not target or "\0" in target:
        raise ConfigError(f"an archive is a directory's path or a URL such as s3://bucket/logs, got {target!r}")
    if target.startswith("file://"):
        target = target.removeprefix("file://")
    if "://" in target:
        return Remote(target)
    try:
        return Directory(Path(target).expanduser())
    except RuntimeError as error:  # "~nobody"
        raise ConfigError(f"{target!r} is no directory: {error}") from None


def shown(target: str) -> str:
    """Return the target without a user and a password."""
    return re.sub(r"(?<=://)[^/@]*@", "", target)


def encoded(name: str) -> str:
    """Return a name as a part of a path: no separator, no dots that mean a folder."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Raise what a place or a format raises as an `ArchiveError`, in one line: each system has errors of its own."""
    try:
        yield
    except LogsluiceError:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] == "psycopg":
            raise
        text = " ".join(str(error).split())
        raise ArchiveError(f"{what}: {type(error).__name__}: {text}"[:_LONGEST]) from error


_LONGEST = 500  # characters: a cloud's errors quote the whole reply


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
