"""
Archive files in Parquet, zstd, a row group at a time; the only module that knows pyarrow, which is an extra.

One column more than the table's, `_exact`: NULL, or JSON of the texts that the columns' types
cannot say.
"""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

from logsluice.archive import rows
from logsluice.errors import ConfigError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ConfigError(f"Parquet needs pyarrow: pip install 'logsluice[archive]', or take jsonl ({error})") from None

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from logsluice.archive.rows import Column

ENDING = "parquet"
_TYPES = {
    "bool": pa.bool_(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(), "float64": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"), "binary": pa.binary(), "string": pa.string(),
}  # fmt: skip


def _exact(columns: Sequence[Column]) -> str:
    """Return the name of the column of exact texts: one that the table has not."""
    name, taken = "_exact", {column.name for column in columns}
    while name in taken:
        name += "_"
    return name


class Writer:
    """It writes rows into a binary file that stays the caller's to close."""

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        self._kinds = [rows.kind(column) for column in columns]
        self._names = [column.name for column in columns]
        fields = [pa.field(name, _TYPES[kind.name]) for name, kind in zip(self._names, self._kinds, strict=True)]
        self._schema = pa.schema([*fields, pa.field(_exact(columns), pa.string())])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, batch: Sequence[Sequence[str | None]]) -> None:
        """Write the texts of these rows as one row group."""
        arrays = []
        exact: dict[int, dict[str, str]] = {}
        for name, kind, texts in zip(self._names, self._kinds, zip(*batch, strict=True), strict=True):
            values: Sequence[Any] = texts
            if kind is not rows.TEXT:
                values = [None if text is None else kind.value(text) for text in texts]
                for number, (text, value) in enumerate(zip(texts, values, strict=True)):
                    if text is not None and (value is None or kind.text(value) != text):
                        exact.setdefault(number, {})[name] = text
            arrays.append(pa.array(values, type=_TYPES[kind.name]))
        notes = [json.dumps(exact[number]) if number in exact else None for number in range(len(batch))]
        arrays.append(pa.array(notes, type=pa.string()))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(batch))

    def close(self) -> None:
        """Write the index at the end of the file."""
        self._writer.close()


def read(file: IO[bytes], columns: Sequence[Column]) -> Iterator[list[str | None]]:
    """Yield the texts of each row, a row group at a time."""
    kinds = [rows.kind(column) for column in columns]
    stored = pq.ParquetFile(file)
    for number in range(stored.num_row_groups):
        group = stored.read_row_group(number, use_threads=False)  # no threads in a program that may fork
        found = []
        for column, kind in zip(columns, kinds, strict=True):
            values = group.column(column.name)
            if kind.name == "timestamp":
                values = values.cast(pa.int64())
            texts = values.to_pylist()
            if kind is not rows.TEXT:
                texts = [None if value is None else kind.text(value) for value in texts]
            found.append(texts)
        for note, *row in zip(group.column(_exact(columns)).to_pylist(), *found, strict=True):
            if note is not None:
                exact = json.loads(note)
                yield [exact.get(column.name, text) for column, text in zip(columns, row, strict=True)]
            else:
                yield row
