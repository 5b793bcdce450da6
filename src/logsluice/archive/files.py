"""
One file of an archive: written, read back and compared, and then given its name and its manifest. Rules 1 and 2 of the
package.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from logsluice import crashpoints, decoding
from logsluice.archive import manifest, places, rows
from logsluice.archive.manifest import Manifest
from logsluice.archive.places import ArchiveError, encoded, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from logsluice.archive.source import Source

BATCH_ROWS = 20_000  # a row group: large enough to compress well, some 40 MB as Python's texts
BATCH_BYTES = 16 << 20  # of one: records may have 4 MiB each
_TELL = 1000  # rows; drawing a bar costs as much as some of them


def format_module(name: str) -> Any:
    """Return the module that writes and reads a format. Raises `ConfigError` where its package is missing."""
    return importlib.import_module("logsluice.archive." + {"parquet": "parquet", "jsonl": "jsonlines"}[name])


@dataclass
class _Draft:
    """A file that is being written: what PostgreSQL sent, and between which keys."""

    columns: tuple[rows.Column, ...]
    key: Sequence[str]
    sum: rows.Sum = field(default_factory=rows.Sum)
    first: tuple[int, list[str]] | None = None
    last: tuple[int, list[str]] | None = None
    bounded: bool = True
    rules: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        self._places = [names.index(name) for name in self.key]

    def saw(self, line: bytes) -> list[str | None]:
        """Count a row, and return the texts of its columns."""
        self.sum.add(line)
        texts = decoding.texts(line)
        when = rows.micros(texts[self._places[0]] or "")
        if when is None:
            self.bounded = False
        elif self.first is None or self.last is None or not self.first[0] <= when <= self.last[0]:
            edge = (when, [texts[place] or "" for place in self._places])
            if self.first is None or when < self.first[0]:
                self.first = edge
            if self.last is None or when > self.last[0]:
                self.last = edge
        return texts

    def edge(self, which: tuple[int, list[str]] | None) -> Mapping[str, str] | None:
        return dict(zip(self.key, which[1], strict=True)) if which is not None and self.bounded else None


def write(
    place: places.Place,
    form: str,
    source: Source,
    columns: tuple[rows.Column, ...],
    sent: Iterable[bytes],
    *,
    ruled: bool = False,
    progress: Callable[[int], None] = lambda _rows: None,
) -> tuple[Manifest | None, Counter[int]]:
    """
    Write rows into a file of their own; return its manifest, None without a row, and how many rows are of which rule.

    `sent`: lines of COPY text; `ruled`: each with the number of a rule before it. `progress` is told of rows that were
    written. Blocks until the file was read back. Raises `ArchiveError`, and what `sent` raises; then there is no file.
    """
    draft = _Draft(columns, source.key)
    label = encoded(source.label)
    working = f"{source.folder}/{label}-{secrets.token_hex(4)}.tmp"
    made = None
    try:
        with told("the archive cannot be written"):
            for name in place.names(source.folder):
                if name.startswith(f"{label}-") and name.endswith(".tmp"):  # of a run that was killed
                    place.remove(f"{source.folder}/{name}")
        with (
            told("the archive cannot be written"),
            place.create(working) as file,
            # Closed also when it fails: a gzip file that nobody closed writes its end when it is collected.
            contextlib.closing(format_module(form).Writer(file, columns)) as writer,
        ):
            _fill(writer, draft, sent, ruled=ruled, progress=progress)
        if draft.sum.rows:
            crashpoints.reach("archive-written")
            made = _finish(place, form, source, draft, working)
    finally:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            place.remove(working)
    return made, draft.rules


def _fill(writer: Any, draft: _Draft, sent: Iterable[bytes], *, ruled: bool, progress: Callable[[int], None]) -> None:
    batch: list[list[str | None]] = []
    size = 0
    for each in sent:
        line = each
        if ruled:
            rule, _, line = each.partition(b"\t")
            draft.rules[int(rule)] += 1
        batch.append(draft.saw(line))
        size += len(line)
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            writer.write(batch)
            progress(len(batch))
            batch, size = [], 0
    if batch:
        writer.write(batch)
        progress(len(batch))


def _finish(place: places.Place, form: str, source: Source, draft: _Draft, working: str) -> Manifest:
    """Read the file back, give it its name and its manifest: rule 1."""
    checksum = draft.sum.checksum
    # 16 of its 32 digits: a name is for people, the manifest has them all.
    stem = f"{encoded(source.label)}-{checksum[:16]}"
    with told("the archive cannot be read back"):
        size, sha256 = manifest.digest(place, working)
    made = Manifest(
        folder=source.folder, schema=source.schema, table=source.table,
        partition=source.label if source.whole else None,
        starts=source.starts.isoformat() if source.starts is not None else None,
        ends=source.ends.isoformat() if source.ends is not None else None,
        clock=source.key[0], rows=draft.sum.rows, checksum=checksum, first=draft.edge(draft.first),
        last=draft.edge(draft.last), columns=draft.columns, format=form,
        file=f"{stem}.{format_module(form).ENDING}", bytes=size, sha256=sha256,
    )  # fmt: skip
    verify(place, replace(made, file=working.rpartition("/")[2]))
    crashpoints.reach("archive-verified")
    with told("the archive cannot be written"):
        place.rename(working, made.path)
        crashpoints.reach("archive-renamed")
        with place.create(working) as file:
            file.write(made.text().encode())
        place.rename(working, f"{source.folder}/{stem}{manifest.ENDING}")
    crashpoints.reach("archive-manifest")
    return made


def read(place: places.Place, one: Manifest, progress: Callable[[int], None] = lambda _rows: None) -> Iterator[bytes]:
    """
    Yield the rows of a file as lines of COPY text. Raises `ArchiveError` at its end if they are not as they were.

    `progress` is told of rows that were read, by the thousand.
    """
    found = rows.Sum()
    with told(f"{one.path} cannot be read"), place.open(one.path) as file:
        for texts in format_module(one.format).read(file, one.columns):
            line = rows.line(texts)
            found.add(line)
            if found.rows % _TELL == 0:
                progress(_TELL)
            yield line
    if (found.rows, found.checksum) != (one.rows, one.checksum):
        raise ArchiveError(
            f"{one.path} holds {found.rows:,} rows with checksum {found.checksum}, not the {one.rows:,} with "
            f"{one.checksum} that PostgreSQL sent"
        )


def verify(place: places.Place, one: Manifest) -> None:
    """Read a file to its end. Raises `ArchiveError` unless it holds every row as PostgreSQL sent it."""
    for _ in read(place, one):
        pass
