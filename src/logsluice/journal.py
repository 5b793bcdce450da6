r"""
The journal: segments that are files. The format, and what a file holds after any accident. Pure: no system call here.

A journal is a folder, `journal="DIR"`. Each stream has a sub-folder named by its id, and in it one file for each
segment, `NUMBER-RANDOM.seg` (both hexadecimal), and `owner`, whose flock is held by the process that the stream is of.
`lock` is held while a file is made, so that `journal_bytes` bounds all processes together. `quarantine/` keeps files
that cannot be read. No file says how far a stream is stored: the watermark in PostgreSQL does, and acknowledging is
unlinking a whole segment. A sink without books (HTTP) has its stream's `owner` hold a hint: one line, how far it was
acknowledged, with a CRC-32. A hint that is missing, damaged or old costs a second delivery, never a record.

A file is text, and of a fixed size from its first moment:

    logsluice-journal 1 {"stream": …, "segment": 7, "size": 262144, "boot": …, "target": …, "columns": […], …} 1f0e…
    one frame a line: a row of COPY text                           from here to the first NUL
    NUL … NUL                                                      up to `size`
    \.                                                            COPY's end of data; only when the segment is sealed
    logsluice-sealed 1 end=262100 crc=9a3b…,77f0…,… 5c21…         and had to wait

The first line is the header. A line's last word is the CRC-32 of what stands before it, eight hexadecimal digits. `crc`
has one CRC-32 for each 64 KiB of the bytes from 0 to `end`. `size` counts up to where `\.` may stand.

Invariants:

1. The header is written before the segment is published, so a file without a whole header never held a frame.
2. Frames hold no NUL and files start zeroed: while the machine runs, and after any death of the process, the data ends
   at the first NUL, and only the last frame can be torn. A torn frame lacks its newline, and is cut.
3. After a change of the boot id, pages that never reached the disk are zeros: a run of NULs is a hole. Reading goes on
   behind the next newline, and each hole is counted.
4. A position names one frame: the number of a segment is given once, and of two files with one number at most one was
   published. The other holds no frame.
5. Positions only grow: what is read from a file is sent under the stream in its header, in the order of the numbers.
6. A sealed segment that had to wait has checksums. Rows that touch a damaged block are never stored as log rows: they
   are dead letters. A segment without the last line has no checksums, and damage other than zeros is not seen.
7. A damaged header, a number that stands twice, a newer format: the file is moved to `quarantine/`, whole.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from logsluice.buffer import Batch, first_rows, position
from logsluice.delivery import Failure
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator

VERSION = 1
MAGIC = "logsluice-journal"
SEALED = "logsluice-sealed"
ACKNOWLEDGED = "logsluice-acknowledged"
MOST_HINT = 128  # bytes; one is 69
BLOCK = 64 * 1024  # bytes under one checksum: what is lost to a flipped bit at most, for 9 bytes of text
PIECE = 16 * BLOCK  # bytes after which who reads a whole segment lets others have the GIL: 0.3 ms of counting
# Bytes of which zlib makes a checksum without giving up the GIL. A block at a time gave it up 64 times for 4 MiB, for
# 10 µs each: too short for who waits to wake up, and where he did the keeper had to wait 5 ms for it (4 MiB took up to
# 230 ms beside a thread that logs).
CRUMB = 5 * 1024
MOST_HEADER = 64 * 1024  # bytes: 1,600 columns, PostgreSQL's limit, with names of 40 characters; more is no header
SEGMENT_NAME = re.compile(r"([0-9a-f]{8})-[0-9a-f]{8}\.seg")
STREAM_NAME = re.compile(r"[0-9a-f]{16}")
END_OF_DATA = b"\\.\n"
_NULS = re.compile(rb"\0+")


class UnreadableError(LogsluiceError):
    """A segment that is not what its name says. The message says why; the file goes to quarantine."""


class UnfinishedError(LogsluiceError):
    """A file whose maker died before it was published: it never held a frame."""


@dataclass(frozen=True)
class Header:
    """What the first line says. `target` has no secret: host, port, dbname, schema, table."""

    stream: int
    segment: int
    size: int  # bytes up to the end of the data's place
    boot: str  # of the machine, while the file was written
    sink: str  # "postgres"
    home: str  # schema of stream and dead_letter
    target: dict[str, str]
    columns: tuple[str, ...]
    mapped: bool  # a table of the user's own: rows hold no seq of ours in a known place
    who: dict[str, Any] = field(default_factory=dict)  # service, environment, version, host, pid of the writer

    def encode(self) -> bytes:
        """Return the first line."""
        text = json.dumps(
            {**vars(self), "columns": list(self.columns)}, separators=(",", ":")
        )  # ASCII: no NUL, no break
        return _checked(f"{MAGIC} {VERSION} {text}")


def _checked(text: str) -> bytes:
    data = text.encode("ascii")
    return b"%s %08x\n" % (data, zlib.crc32(data))


def acknowledged(stream: int, where: int) -> bytes:
    """Return the hint of a position, always of the same length: it is written over the one before."""
    return _checked(f"{ACKNOWLEDGED} {VERSION} {stream:016x} {where:016x}")


def read_acknowledged(data: bytes, stream: int) -> int:
    """Return the position in a stream's hint; 0, all is sent again, for what is not one, whole and of this stream."""
    line, _, crc = data.partition(b"\n")[0].rpartition(b" ")
    found = re.fullmatch(rb"%s %d ([0-9a-f]{16}) ([0-9a-f]{16})" % (ACKNOWLEDGED.encode(), VERSION), line)
    if found is None or crc != b"%08x" % zlib.crc32(line) or int(found[1], 16) != stream:
        return 0
    return int(found[2], 16)


def trailer_room(size: int) -> int:
    """Return how many bytes behind `size` a file keeps for its last lines."""
    return 96 + 9 * (-(-size // BLOCK))  # the fixed part is 73 bytes with the largest numbers


def checksum(block: bytes | memoryview) -> int:
    """Return a block's CRC-32."""
    value = 0
    for at in range(0, len(block), CRUMB):
        value = zlib.crc32(block[at : at + CRUMB], value)
    return value


def trailer(
    data: bytes | memoryview | mmap.mmap, end: int | None = None, *, rest: Callable[[], None] = lambda: None
) -> bytes:
    """
    Return the last lines of a sealed segment with this data, its header included, up to `end`.

    `rest` is called after each PIECE: nobody waits for all of it. Slices, not a memoryview of a map: while that is
    exported the map cannot be closed, in a forked child never.
    """
    end = len(data) if end is None else end
    sums = []
    for at in range(0, end, BLOCK):
        sums.append(f"{checksum(data[at : min(at + BLOCK, end)]):08x}")
        if at % PIECE == PIECE - BLOCK:
            rest()
    return END_OF_DATA + _checked(f"{SEALED} {VERSION} end={end} crc={','.join(sums)}")


def file_size(size: int) -> int:
    """Return the bytes that a segment's file takes."""
    return size + trailer_room(size)


def read_header(image: bytes) -> tuple[Header, int]:
    """
    Return the header at the beginning of a file, and where the data begins.

    Raises UnfinishedError for a file that was never published, UnreadableError for what is no header of ours.
    """
    newline = image.find(b"\n", 0, MOST_HEADER)
    nul = image.find(b"\0", 0, None if newline < 0 else newline)
    if newline < 0 or nul >= 0:
        if not image[max(nul, 0) :].strip(b"\0") and (nul >= 0 or not image):
            raise UnfinishedError("it was never finished")
        raise UnreadableError("its first line is damaged")
    line, _, crc = image[:newline].rpartition(b" ")
    magic, _, rest = line.partition(b" ")
    version, _, text = rest.partition(b" ")
    if magic != MAGIC.encode():
        raise UnreadableError("its first line is not that of a journal segment, or is damaged")
    if crc != b"%08x" % zlib.crc32(line):
        raise UnreadableError("its first line is damaged (checksum)")
    if version != str(VERSION).encode():
        raise UnreadableError(
            f"it is of format {version.decode('ascii', 'replace')}, this logsluice reads format {VERSION}: "
            "use the version that wrote it"
        )
    try:
        found = json.loads(text)
        return Header(**{**found, "columns": tuple(found["columns"])}), newline + 1
    except (ValueError, KeyError, TypeError):
        raise UnreadableError("its first line has other fields than this logsluice reads") from None


@dataclass(frozen=True)
class Span:
    """A stretch of whole rows. Damaged: its checksum is wrong, or it holds a NUL where none can be."""

    begin: int
    end: int
    damaged: bool = False


@dataclass
class Image:
    """What a segment's file was found to hold: whole rows in spans, in order; what lies between is lost."""

    header: Header
    data: bytes
    start: int  # of the data
    spans: list[Span]
    sealed: bool  # with checksums
    holes: int = 0  # runs of NULs after a crash of the machine
    torn: int = 0  # bytes of frames that were cut off: never whole, so never accepted as durable
    short: bool = False  # the file is smaller than it was made: somebody truncated it

    @property
    def end(self) -> int:
        """Offset behind the last whole row."""
        return self.spans[-1].end if self.spans else self.start

    def rows(self, after: int = 0) -> int:
        """How many rows end behind an offset."""
        return sum(self.data.count(b"\n", max(one.begin, after), one.end) for one in self.spans if one.end > after)

    def batch(self, read: int, batch_bytes: int, batch_size: int | None = None, *, marked: bool = True) -> Batch | None:
        """
        Return the first rows behind offset `read`, at most so many bytes and rows; None behind the last.

        `marked`: whether drop markers may be in it; to count them takes 2 ms for 2 MiB.
        """
        span = next((one for one in self.spans if one.end > read), None)
        if span is None:
            return None
        begin = max(read, span.begin)
        end = span.end
        if end - begin > batch_bytes:
            newline = self.data.rfind(b"\n", begin, begin + batch_bytes)
            if newline < 0:  # one frame larger than a batch
                newline = self.data.find(b"\n", begin, end)
            end = newline + 1 or span.end
        rows = self.data[begin:end]
        if batch_size is not None:
            rows = first_rows(rows, batch_size)
        start = position(self.header.segment, begin)
        if not span.damaged:
            return Batch(start, rows, marked=marked)
        if not rows.endswith(b"\n"):
            rows = rows[:-1] + b"\n"  # it was one before the damage: frames end so
        why = Failure(f"journal: a block of {BLOCK // 1024} KiB is damaged (checksum)")
        return Batch(start, rows, {at: why for at, _ in Batch(start, rows).lines()})


def read_image(image: bytes, boot: str) -> Image:
    """
    Return what a file holds. `boot`: the id of this boot of the machine.

    Raises as `read_header`. Reads any bytes without another error: damage becomes spans, holes and counts.
    """
    header, start = read_header(image)
    short = len(image) < file_size(header.size)
    seal = _read_trailer(image[header.size :])
    if seal is not None and start <= seal[0] <= header.size:
        return Image(header, image, start, list(_verified(image, start, *seal)), sealed=True)
    end = min(header.size, len(image))
    if header.boot == boot:
        nul = image.find(b"\0", start, end)
        end = end if nul < 0 else nul
        whole = image.rfind(b"\n", start, end) + 1 or start
        spans = [Span(start, whole)] if whole > start else []
        return Image(header, image, start, spans, sealed=False, torn=end - whole, short=short)
    return _with_holes(header, image, start, end, short=short)


def _read_trailer(tail: bytes) -> tuple[int, list[bytes]] | None:
    if not tail.startswith(END_OF_DATA):
        return None
    line, _, crc = tail[len(END_OF_DATA) :].partition(b"\n")[0].rpartition(b" ")
    found = re.fullmatch(rb"%s %d end=(\d+) crc=([0-9a-f,]+)" % (SEALED.encode(), VERSION), line)
    if found is None or crc != b"%08x" % zlib.crc32(line):
        return None  # damaged itself: then nothing is known of the rest, as of a segment that was never sealed
    return int(found[1]), found[2].split(b",")


def _verified(image: bytes, start: int, end: int, sums: list[bytes]) -> Iterator[Span]:
    """Yield the spans of sealed data; a damaged block takes every row along that touches it."""
    at = start
    for number, wanted in enumerate(sums):
        begin, stop = number * BLOCK, min((number + 1) * BLOCK, end)
        if wanted == b"%08x" % checksum(memoryview(image)[begin:stop]):
            continue
        # Newlines inside of the block may be the damage: only those outside tell where a row begins and ends.
        first = max(image.rfind(b"\n", at, max(begin, at)) + 1, at)
        newline = image.find(b"\n", stop, end)
        # A row that ends with the block's last byte, or that byte is damaged: the row behind goes along.
        last = end if newline < 0 else newline + 1
        if first > at:
            yield Span(at, first)
        if last > max(first, at):
            yield Span(max(first, at), last, damaged=True)
        at = max(last, at)
    if end > at:
        yield Span(at, end)


def _with_holes(header: Header, image: bytes, start: int, end: int, *, short: bool) -> Image:
    """After a crash of the machine: whole rows, without those that a hole of NULs touches."""
    found = Image(header, image, start, [], sealed=False, short=short)
    last = len(image[:end].rstrip(b"\0"))
    at = start
    while at < last:
        nul = image.find(b"\0", at, last)
        stop = last if nul < 0 else nul
        whole = image.rfind(b"\n", at, stop) + 1 or at
        if whole > at:
            found.spans.append(Span(at, whole))
        found.torn += stop - whole
        if nul < 0:
            break
        newline = image.find(b"\n", stop, last)  # the rest of a row that began inside the hole; may hold others
        at = last if newline < 0 else newline + 1
        found.holes += len(_NULS.findall(image, stop, at))
        found.torn += at - stop - image.count(b"\0", stop, at)
    return found
