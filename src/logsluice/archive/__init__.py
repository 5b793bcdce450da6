"""
Rows into files before they are dropped: what is written, how it is verified, and when the caller may go on.

    TARGET/logsluice/logs/date=2026-11-01/logs_20261101-9f86d081884c7d65.parquet
    TARGET/logsluice/logs/date=2026-11-01/logs_20261101-9f86d081884c7d65.manifest.json

Rules, each against an accident:

1. A file is written under another name, flushed to the device, read back from there, and compared with what PostgreSQL
   sent: the number of rows, which the server counts, and a checksum of every row. Then it gets its name, then it gets
   its manifest. A file that no manifest names is no archive.
2. The name ends in the checksum. The same rows again are the same file, whenever a run was killed.
3. A partition is read in one snapshot while writers go on. It is read again when it is detached, under a lock that lets
   nobody in, and dropped in that transaction: what came in between is in no file yet, and gets one of its own.
4. Rows that are deleted one by one are sent by the DELETE itself, and it commits after their file has its manifest.
5. Nothing here drops anything. Who wants to waits until a call has returned; `ArchiveError` says that he may not.

files.py keeps rules 1 and 2, for one file. Memory is flat: its `BATCH_ROWS` or `BATCH_BYTES` of rows at once, whichever
is less.
"""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice.archive import files, manifest, places, rows
from logsluice.archive.manifest import Manifest
from logsluice.archive.places import ArchiveError, told
from logsluice.archive.source import absent, columns_of, names, words
from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Generator, Sequence

    from logsluice.archive.source import Source

__all__ = ["Archive", "ArchiveError", "Manifest", "Settings"]

FORMATS = ("parquet", "jsonl")
# Rows that one DELETE sends: a file and a transaction of some seconds. Each begins its search at the beginning again.
CHUNK = 100_000
_STAGE = "logsluice_archived"  # a table of the transaction


class StoppedError(ArchiveError):
    """It was asked to stop."""


@dataclass(frozen=True)
class Settings:
    """Where archives go and what they are."""

    target: str
    format: str = FORMATS[0]

    @classmethod
    def of(cls, given: Any) -> Settings | None:
        """Return those of None, of a target, or of {"target": ..., "format": ...}. Raises `ConfigError`."""
        if given is None:
            return None
        values = {"target": given} if isinstance(given, str) else given
        if not isinstance(values, dict) or not {"target"} <= set(values) <= {"target", "format"}:
            raise ConfigError(f'archive is a directory or URL, or {{"target": ..., "format": "jsonl"}}, got {given!r}')
        settings = cls(**values)
        if settings.format not in FORMATS:
            raise ConfigError(f"archive: the format is one of {', '.join(FORMATS)}, got {settings.format!r}")
        if settings.format == "parquet" and importlib.util.find_spec("pyarrow") is None:
            raise ConfigError("archive: Parquet needs pyarrow: pip install 'logsluice[archive]', or take jsonl")
        if not isinstance(settings.target, str) or not settings.target or "\0" in settings.target:
            raise ConfigError(f"archive: {settings.target!r} is no directory and no URL")
        return settings


class Archive:
    """Archives of one database at one place. `progress` is told of rows that were written."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        settings: Settings,
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda _rows: None,
    ) -> None:
        self.settings = settings
        self.written: list[Manifest] = []
        self.there: set[str] = set()  # paths of files of earlier runs that hold all of a source
        self._conn = conn
        self._stop = stop
        self._progress = progress
        self._place = places.place_of(settings.target)
        files.format_module(settings.format)  # what it needs and is not there is said now
        self._sound: set[str] = set()  # paths of files that this run wrote, or has read again

    def line(self) -> str:
        """Return what was written in one line."""
        count, size = sum(one.rows for one in self.written), sum(one.bytes for one in self.written) / (1 << 20)
        text = f"{len(self.written)} files, {count:,} rows, {size:.1f} MiB in {places.shown(self.settings.target)}"
        return f"{text}; {len(self.there)} were there, and are sound" if self.there else text

    def whole(self, source: Source, *, locked: bool = False) -> None:
        """
        Return when each row of this source is in a file that was verified; it may be one of an earlier run.

        `locked`: the caller's transaction keeps others from changing it. Else it is read in one snapshot, and what is
        committed later is not looked at. Blocks for as long as reading, writing and reading back take. Raises
        `ArchiveError`, or psycopg's error.
        """
        with self._conn.transaction():
            if not locked:
                self._conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", prepare=False)
            words(self._conn)
            columns = columns_of(self._conn, source.name)
            where = source.where
            any_row = f"SELECT true FROM ONLY {source.name} WHERE {where} LIMIT 1"
            if self._conn.execute(any_row, prepare=False).fetchone() is None:
                return  # and no folder for nothing
            known = [one for one in self._known(source) if one.columns == columns]
            if known:
                found = self._scan(source, columns)
                same = [one for one in known if (one.rows, one.checksum) == (found.rows, found.checksum)]
                sound = next((one.path for one in same if self._is_sound(one)), None)
                if sound is not None:
                    self.there |= {sound} - {one.path for one in self.written}
                    return
                where = self._without(source, columns, known)
            self._write(source, columns, f"SELECT {names(columns)} FROM ONLY {source.name} WHERE {where}")

    def deleted(
        self, source: Source, delete: str, values: Sequence[Any], rule: str, its: Sequence[Any]
    ) -> Counter[int]:
        """
        Delete rows and return how many of which rule, when they are in a file: inside the caller's transaction.

        `delete`: a DELETE without RETURNING, `rule` SQL of a number; both with their parameters.
        """
        words(self._conn)
        columns = columns_of(self._conn, source.name)
        cursor = psycopg.ClientCursor(self._conn)  # COPY takes no parameters
        query = cursor.mogrify(f"{delete} RETURNING {rule}, {names(columns).replace('%', '%%')}", [*values, *its])
        return self._write(source, columns, query, ruled=True)

    def _known(self, source: Source) -> list[Manifest]:
        """Return the files of this source's folder that hold all rows of a time; those of other rules never do."""
        with told("the archive cannot be listed"):
            there = self._place.names(source.folder)
        paths = [f"{source.folder}/{name}" for name in there if name.endswith(manifest.ENDING)]
        found = [manifest.load(self._place, path) for path in paths]
        return [one for one in found if one.partition is not None and one.overlaps(source.starts, source.ends)]

    def _is_sound(self, one: Manifest) -> bool:
        """Whether the file is still what it was; one that is not counts for nothing, so that its rows get another."""
        if one.path not in self._sound:
            try:
                manifest.check(self._place, one)
            except ArchiveError:
                return False
            self._sound.add(one.path)
        return True

    def _scan(self, source: Source, columns: Sequence[rows.Column]) -> rows.Sum:
        """Return number and checksum of the rows as they are in the database."""
        found = rows.Sum()
        for line in self._sent(f"SELECT {names(columns)} FROM ONLY {source.name} WHERE {source.where}"):
            found.add(line)
        return found

    def _without(self, source: Source, columns: Sequence[rows.Column], known: Sequence[Manifest]) -> str:
        """Return SQL of the rows that these files lack: they are loaded into a table of this session, and compared."""
        every, conn = names(columns), self._conn
        like = f"SELECT {every} FROM ONLY {source.name} LIMIT 0"
        conn.execute(f"CREATE TEMP TABLE {_STAGE} ON COMMIT DROP AS {like}", prepare=False)
        for one in known:
            if self._is_sound(one):
                with (
                    conn.cursor() as cursor,
                    cursor.copy(f"COPY {_STAGE} ({every}) FROM STDIN (ENCODING 'UTF8')") as copy,
                ):
                    for line in files.read(self._place, one):
                        copy.write(line)
        conn.execute(f"ANALYZE {_STAGE}", prepare=False)
        return f"({source.where}) AND {absent(source.name, _STAGE, columns, source.key)}"

    def _sent(self, query: str) -> Generator[bytes, None, None]:
        """Yield what the server sends, a row at a time. Raises unless it counts as many."""
        number = 0
        with self._conn.cursor() as cursor:
            with cursor.copy(f"COPY ({query}) TO STDOUT (ENCODING 'UTF8')") as copy:
                for data in copy:
                    if number % files.BATCH_ROWS == 0 and self._stop():
                        raise StoppedError("stopped before it was archived")
                    number += 1
                    yield bytes(data)
            if cursor.rowcount != number:
                raise ArchiveError(f"PostgreSQL counts {cursor.rowcount} rows, {number} came")

    def _write(
        self, source: Source, columns: tuple[rows.Column, ...], query: str, *, ruled: bool = False
    ) -> Counter[int]:
        """Write the rows of a query into a file of their own and return how many are of which rule."""
        form, told_of = self.settings.format, self._progress
        # Closed also when the file cannot be written: while a COPY runs, the transaction cannot be ended.
        with contextlib.closing(self._sent(query)) as sent:
            made, rules = files.write(self._place, form, source, columns, sent, ruled=ruled, progress=told_of)
        if made is not None:
            self._sound.add(made.path)
            self.written.append(made)
        return rules
