"""
The manifest of one archive file: JSON beside it, `NAME.manifest.json` for `NAME.parquet` or `NAME.jsonl.gz`.

It is written last: a file that no manifest names is no archive. Moments are ISO 8601 in UTC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from logsluice.archive.places import ArchiveError, told
from logsluice.archive.rows import Column, micros

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logsluice.archive.places import Place

ENDING = ".manifest.json"
VERSION = 1  # of the format: of what files and manifests hold
_BLOCK = 1 << 20  # bytes read at once
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Manifest:
    """What one file holds; `folder` is where both are, relative to the place."""

    folder: str
    schema: str
    table: str
    partition: str | None  # the partition of which these were all rows; None: rows of a rule that is finer
    starts: str | None  # the bounds of the partition, or of the day; None: without one
    ends: str | None
    clock: str  # the column that is the time
    rows: int
    checksum: str  # of all rows, see rows.Sum
    first: Mapping[str, str] | None  # the keys of the earliest and the latest row; None: beyond the years 1 to 9999
    last: Mapping[str, str] | None
    columns: tuple[Column, ...]
    format: str
    file: str  # its name
    bytes: int
    sha256: str  # of the file
    logsluice: str = field(default_factory=lambda: importlib.metadata.version("logsluice"))
    format_version: int = VERSION

    @property
    def path(self) -> str:
        """The file's path, relative to the place."""
        return f"{self.folder}/{self.file}".lstrip("/")

    def text(self) -> str:
        """Return it as the JSON of its file."""
        values = dataclasses.asdict(self)
        del values["folder"]
        values["columns"] = [column._asdict() for column in self.columns]
        return json.dumps(values, indent=1) + "\n"

    def span(self) -> tuple[datetime | None, datetime | None]:
        """Return the times of its first and its last row; None where it cannot be said."""
        edges = [None if key is None else micros(key[self.clock]) for key in (self.first, self.last)]
        first, last = (None if edge is None else _EPOCH + timedelta(microseconds=edge) for edge in edges)
        return first, last

    def overlaps(self, since: datetime | None, until: datetime | None) -> bool:
        """Whether rows of it can lie in since <= time < until."""
        first, last = self.span()
        return (until is None or first is None or first < until) and (since is None or last is None or last >= since)


def manifest_path(path: str) -> str:
    """Return where the manifest of a file is: beside it. A manifest's own path stays."""
    for ending in (ENDING, ".parquet", ".jsonl.gz"):
        if path.endswith(ending):
            return path.removesuffix(ending) + ENDING
    raise ArchiveError(f"{path}: an archive ends in .parquet, .jsonl.gz or {ENDING}")


def load(place: Place, path: str) -> Manifest:
    """Read a manifest. Raises `ArchiveError` for what is none, or of a later format."""
    with told(f"{path} cannot be read"), place.open(path) as file:
        values: dict[str, Any] = json.loads(file.read())
        if values["format_version"] != VERSION:
            raise ArchiveError(
                f"{path}: format {values['format_version']}, this logsluice reads {VERSION}: install a later one"
            )
        if "/" in values["file"]:
            raise ArchiveError(f"{path}: {values['file']!r} is not beside it")
        values["columns"] = tuple(Column(one["name"], one["type"]) for one in values["columns"])
        found = Manifest(folder=path.rpartition("/")[0], **values)
        found.span()
        if not {found.clock} <= {column.name for column in found.columns}:
            raise ArchiveError(f"{path}: there is no column {found.clock!r}")
        return found


def digest(place: Place, path: str) -> tuple[int, str]:
    """Return a file's size in bytes and its SHA-256."""
    size, sha256 = 0, hashlib.sha256()
    with place.open(path) as file:
        while block := file.read(_BLOCK):
            size += len(block)
            sha256.update(block)
    return size, sha256.hexdigest()


def check(place: Place, manifest: Manifest) -> None:
    """Raise `ArchiveError` unless the file is there and has not changed since it was written."""
    with told(f"{manifest.path} cannot be read"):
        found = digest(place, manifest.path)
    if found != (manifest.bytes, manifest.sha256):
        raise ArchiveError(f"{manifest.path} is damaged: its SHA-256 is not that of its manifest")
