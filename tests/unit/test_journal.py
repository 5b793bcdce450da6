"""
What a segment's file gives back after any accident: cut, zeroed or flipped at every place.

The oracle is a list of rows with their places, made before the damage: each must be found whole at its place or not at
all. Real-size files are damaged where something can change (ends of rows, pages and blocks) and at a stride of a prime;
small ones at every single byte.
"""

import dataclasses
import json
import random
import re
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logsluice import journal
from logsluice.buffer import position
from logsluice.journal import (
    Header,
    Image,
    Span,
    UnfinishedError,
    UnreadableError,
    file_size,
    read_header,
    read_image,
    trailer,
    trailer_room,
)

BOOT, LATER = "boot-1", "boot-2"
PAGE = 4096  # bytes
STRIDE = 499  # bytes: a prime, so that no regular place is always missed
QUICKLY = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.fixture
def small_blocks(monkeypatch):
    """Checksums over half a KiB, so that a small file has several."""
    monkeypatch.setattr(journal, "BLOCK", 512)


def head(size, **changes):
    return dataclasses.replace(
        Header(
            stream=0x1F0E, segment=7, size=size, boot=BOOT, sink="postgres", home="logsluice",
            target={"host": "db", "port": "5432", "dbname": "app", "table": "logs"}, columns=("ts", "message", "seq"),
            mapped=False, who={"service": "shop", "pid": 17},
        ),
        **changes,
    )  # fmt: skip


class Written:
    """A segment's file as it was before the accident: `rows` is a list of (offset, row)."""

    def __init__(self, lengths, room=300, seed=1, **changes):
        chance = random.Random(seed)
        size = 1000 + sum(lengths) + room
        self.header = head(size, **changes)
        first = self.header.encode()
        self.start = len(first)
        self.size = size
        self.rows = []
        data = first
        for n, length in enumerate(lengths):
            text = b"%d\t" % n + bytes(chance.choices(b"abcdefghij \\", k=length))
            row = text[: length - 1] + b"\n"
            self.rows.append((len(data), row))
            data += row
        self.data = data
        self.end = len(data)
        self.ends = [at + len(row) for at, row in self.rows]
        assert self.end <= size

    def file(self, *, sealed=False):
        whole = self.data.ljust(self.size, b"\0") + (trailer(self.data) if sealed else b"")
        return whole.ljust(file_size(self.size), b"\0")

    def before(self, offset):
        return [(at, row) for at, row in self.rows if at + len(row) <= offset]

    def starts(self, image, offset):
        """Whether an image holds exactly the rows before an offset, each at its place; return their end."""
        end = max((end for end in self.ends if end <= offset), default=self.start)
        assert image.spans == ([Span(self.start, end)] if end > self.start else []), offset
        assert image.data[self.start : end] == self.data[self.start : end]
        return end


def found(image, *, damaged=False):
    """The rows with their places, of good spans or of damaged ones; every span is whole rows."""
    rows = []
    for span in image.spans:
        if span.damaged is damaged:
            at = span.begin
            for row in image.data[span.begin : span.end].splitlines(keepends=True):
                rows.append((at, bytes(row)))
                at += len(row)
    return rows


def in_order(image):
    """Spans neither overlap nor go backwards."""
    assert all(one.begin < one.end for one in image.spans)
    assert all(one.end <= two.begin for one, two in pairwise(image.spans))
    assert all(image.start <= one.begin for one in image.spans)
    assert all(image.data[one.end - 1] == 0x0A for one in image.spans if not one.damaged)


def small(**changes):
    return Written([1 + n * 37 % 101 for n in range(30)], **changes)


def large(**changes):
    """Three blocks of 64 KiB, rows of 1 B to 3 KB."""
    chance = random.Random(4)
    lengths = []
    while sum(lengths) < 2.5 * 64 * 1024:
        lengths.append(chance.choice([1, 2, 30, 200, 900, 3000]))
    return Written(lengths, room=20_000, **changes)


def places(written, end):
    """Where the outcome of an accident can change, and a stride."""
    edges = [at + len(row) for at, row in written.rows]
    edges += range(0, end, PAGE)
    near = {edge + off for edge in edges for off in (-1, 0, 1)}
    return sorted(at for at in near | set(range(0, end, STRIDE)) if 0 <= at < end)


# --- a torn tail --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot", [BOOT, LATER])
@pytest.mark.parametrize("make", [small, large])
def test_a_tail_torn_at_every_byte_costs_only_the_torn_row(make, boot):
    """Bytes from the cut on are zeros, as in a file that was made and not written so far."""
    written = make()
    file = written.file()
    cuts = range(written.end + 1) if make is small else places(written, written.end)
    assert len(cuts) > 600
    for cut in cuts:
        torn = file[:cut].ljust(len(file), b"\0")
        if cut < written.start:
            with pytest.raises(UnfinishedError):
                read_image(torn, boot)
            continue
        image = read_image(torn, boot)
        assert image.end == written.starts(image, cut)
        assert not image.sealed
        assert not image.short
        assert image.holes == 0  # the end of the data is no hole
        assert image.torn == cut - image.end
        if make is small:
            assert found(image) == written.before(cut)
            assert image.rows() == len(written.before(cut))


@pytest.mark.parametrize("boot", [BOOT, LATER])
@pytest.mark.parametrize("make", [small, large])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_file_truncated_at_every_byte_gives_the_rows_before(make, sealed, boot):
    written = make()
    file = written.file(sealed=sealed)
    cuts = range(len(file)) if make is small else places(written, len(file))
    checksums = len(written.data.ljust(written.size, b"\0") + trailer(written.data))
    for cut in cuts:
        if cut < written.start:
            with pytest.raises(UnreadableError if cut else UnfinishedError):
                read_image(file[:cut], boot)
            continue
        image = read_image(file[:cut], boot)
        written.starts(image, cut)
        # The newline is the last line's end, and the line says what it is without it.
        assert image.sealed is (sealed and cut >= checksums - 1)
        assert image.short or image.sealed


def test_a_segment_that_is_full_to_its_last_byte():
    first = len(head(4096).encode())
    written = Written([50] * 40, room=0)
    rest = written.size - written.end
    full = Written([50] * 40 + [rest], room=-rest)
    assert len(head(full.size).encode()) == first
    assert full.end == full.size
    for sealed in (False, True):
        for boot in (BOOT, LATER):
            image = read_image(full.file(sealed=sealed), boot)
            assert found(image) == full.rows
            assert image.sealed is sealed


# --- zeroed pages -------------------------------------------------------------------------------------------------------


def zeroed(file, pages, page=PAGE):
    damaged = bytearray(file)
    for one in pages:
        stop = min((one + 1) * page, len(file))
        damaged[one * page : stop] = bytes(stop - one * page)
    return bytes(damaged)


def runs_of_nuls(file, start):
    """Runs of NULs with something behind them: what a reader can know of."""
    return len(re.findall(rb"\0+", file[start:].rstrip(b"\0")))


def after_a_crash_of_the_machine(written, file, image):
    """No wrong row; what no hole touches is there, but for one row behind each hole."""
    rows = found(image)
    assert set(rows) <= set(written.rows)
    assert rows == sorted(set(rows))
    whole = [(at, row) for at, row in written.rows if b"\0" not in file[at : at + len(row)]]
    missing = set(whole) - set(rows)
    assert len(missing) <= image.holes + 1  # + 1: nothing is known of a hole that nothing stands behind
    for at, _row in missing:
        assert file[at - 1] == 0  # it follows a hole directly: where it begins cannot be known
    assert not image.sealed
    assert image.holes == runs_of_nuls(file[: written.size], written.start)


def test_a_page_of_zeros_at_every_place_costs_what_it_touches_and_one_row():
    written = large()
    whole = written.file()
    pages = range(len(whole) // PAGE + 1)
    assert len(pages) > 40
    with_holes = 0
    for page in pages:
        file = zeroed(whole, [page])
        if page * PAGE < written.start:
            with pytest.raises(UnreadableError):
                read_image(file, LATER)
            continue
        image = read_image(file, LATER)
        in_order(image)
        after_a_crash_of_the_machine(written, file, image)
        with_holes += image.holes
        touched = [1 for at, row in written.rows if at < (page + 1) * PAGE and at + len(row) > page * PAGE]
        assert len(found(image)) >= len(written.rows) - len(touched) - 1
        # While the machine runs a page cannot vanish: a NUL is where the data ends, whatever stands behind.
        same = read_image(file, BOOT)
        assert found(same) == written.before(page * PAGE)
        assert same.holes == 0
    assert with_holes >= 38


@QUICKLY
@given(st.data())
def test_any_set_of_pages_of_zeros_gives_no_wrong_row(data):
    written = Written(data.draw(st.lists(st.integers(1, 200), min_size=5, max_size=80)))
    page = data.draw(st.sampled_from([64, 128, 512]))  # small beside the rows, and large
    pages = data.draw(st.sets(st.integers(-(-written.start // page), len(written.file()) // page)))
    file = zeroed(written.file(), pages, page)
    image = read_image(file, LATER)
    in_order(image)
    after_a_crash_of_the_machine(written, file, image)


def test_two_holes_in_one_long_row_are_two():
    written = Written([20, 20_000, 20, 20])
    file = zeroed(written.file(), [1, 3])
    image = read_image(file, LATER)
    assert image.holes == 2
    assert found(image) == [written.rows[0], *written.rows[2:]]
    last = written.rows[1][0] + len(written.rows[1][1])
    assert image.torn == PAGE - written.rows[1][0] + PAGE + last - 4 * PAGE


# --- flipped bits -------------------------------------------------------------------------------------------------------


def flipped(file, at, bit):
    return file[:at] + bytes([file[at] ^ 1 << bit]) + file[at + 1 :]


def check_flip(written, file, at, bit, boot=BOOT):
    block = journal.BLOCK
    begin, stop = at // block * block, (at // block + 1) * block
    bad = flipped(file, at, bit)
    if at < written.start:
        with pytest.raises(UnreadableError):
            read_image(bad, boot)
        return 0
    image = read_image(bad, boot)
    in_order(image)
    if at >= written.end:  # padding, or the last lines
        assert image.sealed is (not written.size <= at < written.size + len(trailer(written.data)))
        assert found(image) == written.rows, at
        assert found(image, damaged=True) == []
        return 0
    assert image.sealed
    touching = [(o, row) for o, row in written.rows if o < stop and o + len(row) > begin]
    behind = [(o, row) for o, row in written.rows if o == stop]  # where its first byte is told by a damaged block
    good, dead = found(image), [span for span in image.spans if span.damaged]
    assert good == [one for one in written.rows if one not in touching + behind], at
    last, row = (touching + behind)[-1]
    assert [(one.begin, one.end) for one in dead] == [(touching[0][0], last + len(row))]
    return 1


def test_a_flipped_bit_in_every_byte_of_a_sealed_segment(small_blocks):
    chance = random.Random(7)
    written = small()
    assert written.end > 3 * journal.BLOCK
    file = written.file(sealed=True)
    damaged = sum(check_flip(written, file, at, chance.randrange(8)) for at in range(len(file)))
    assert damaged == written.end - written.start  # each flip in the data was noticed


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_the_bytes_at_the_edges_of_rows_and_blocks(small_blocks, bit):
    # With a row that ends with a block, and one that is longer than a block.
    first = len(small().header.encode())
    written = Written([512 - first % 512, 100, 412, 2000, 1, 1, 30])
    file = written.file(sealed=True)
    assert any((at + len(row)) % 512 == 0 for at, row in written.rows)
    edges = {at + len(row) + off for at, row in written.rows for off in (-2, -1, 0)}
    edges |= {block + off for block in range(512, written.end, 512) for off in (-1, 0)}
    for at in sorted(at for at in edges if at < written.end):
        for boot in (BOOT, LATER):
            check_flip(written, file, at, bit, boot)


def test_flipped_bits_in_a_segment_of_real_size():
    chance = random.Random(9)
    written = large()
    file = written.file(sealed=True)
    stride = 1009  # bytes: a prime; each costs three checksums of 64 KiB
    blocks = [block * journal.BLOCK + off for block in range(1, 3) for off in (-1, 0)]
    places = [*range(written.start, len(file), stride), *blocks, *range(written.start), written.end - 1]
    assert sum(check_flip(written, file, at, chance.randrange(8)) for at in places) > 150


def test_damage_in_several_blocks_is_one_dead_stretch_for_each(small_blocks):
    written = Written([40] * 100)
    file = bytearray(written.file(sealed=True))
    for block in (2, 3, 6):
        file[block * 512 + 100] ^= 4
    image = read_image(bytes(file), BOOT)
    in_order(image)
    touching = [
        (at, row)
        for at, row in written.rows
        if any(at < stop and at + len(row) > begin for begin, stop in ((1024, 2048), (3072, 3584)))
    ]
    assert found(image) == [one for one in written.rows if one not in touching]
    assert sum(one.end - one.begin for one in image.spans) == written.end - written.start


def test_a_sealed_segment_whose_pages_never_reached_the_disk(small_blocks):
    """The last lines may be written out before the data: then the zeros are found by their checksum."""
    written = Written([40] * 100)
    for page in range(1, written.end // 512):
        image = read_image(zeroed(written.file(sealed=True), [page], 512), LATER)
        in_order(image)
        assert image.sealed
        assert set(found(image)) <= set(written.rows)
        assert len(found(image)) >= 100 - 15
        assert all(b"\0" not in row for _, row in found(image))
        assert b"\0" in b"".join(row for _, row in found(image, damaged=True))


def test_a_flipped_bit_in_an_unsealed_segment_is_not_seen():
    """What the guarantee says: without checksums, a character may be another, but no row moves."""
    written = small()
    at, row = written.rows[12]
    image = read_image(flipped(written.file(), at + 3, 0), BOOT)
    assert not image.sealed
    assert len(found(image)) == 30
    assert [one for one in found(image) if one not in written.rows] == [(at, row[:3] + bytes([row[3] ^ 1]) + row[4:])]


@QUICKLY
@given(st.data())
def test_any_damage_is_read_without_another_error(data):
    """Overwritten, cut, shifted: spans stay in order, or the file is told apart as unreadable or unfinished."""
    written = small(boot=data.draw(st.sampled_from([BOOT, LATER])))
    file = bytearray(written.file(sealed=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file)))
        file[at : at + data.draw(st.integers(0, 600))] = data.draw(
            st.binary(max_size=80) | st.sampled_from([b"", b"\n", b"\0" * 512, b"\\.\n", written.data[:300]])
        )
    try:
        image = read_image(bytes(file), BOOT)
    except (UnreadableError, UnfinishedError):
        return
    in_order(image)
    assert image.end <= len(file)
    slices(image, data.draw(st.integers(1, 500)), data.draw(st.none() | st.integers(1, 9)))


@QUICKLY
@given(st.binary(max_size=600))
def test_what_is_no_segment_at_all_is_told_so(data):
    with pytest.raises((UnreadableError, UnfinishedError)):
        read_image(data, BOOT)


# --- the header ---------------------------------------------------------------------------------------------------------


def test_the_header_says_what_it_was_made_with():
    header = head(262_144, columns=("ts", "größe", 'a"b', "tab\tin", "nul\0"), who={"host": "höst\n"})
    first = header.encode()
    assert first.count(b"\n") == 1
    assert b"\0" not in first
    assert first.isascii()
    assert read_header(first.ljust(4096, b"\0")) == (header, len(first))


def test_the_most_columns_that_a_table_can_have():
    header = head(2**22, columns=tuple(f"{n:04d}" + "x" * 30 for n in range(1600)))
    assert read_header(header.encode().ljust(2**20, b"\0"))[0] == header


def test_a_file_that_was_never_finished():
    """Its maker died before it was published: it never held a frame, and may be removed."""
    whole = head(4096).encode()
    room = file_size(4096)
    for image in (b"", bytes(1), bytes(room), whole[:1].ljust(room, b"\0"), whole[:-1].ljust(room, b"\0")):
        with pytest.raises(UnfinishedError):
            read_image(image, BOOT)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: bytes(300) + file[300:], "damaged"),
        (lambda file: file.replace(b"-journal", b"-jornal!", 1), "not that of a journal"),
        (lambda file: b"\x7fELF\n" + file[5:], "not that of a journal"),
        (lambda file: b"x" * 100_000, "damaged"),
        (lambda file: file.replace(b"5432", b"5433", 1), "checksum"),
        (lambda file: file[:40] + b"\0" + file[41:], "damaged"),
        (lambda file: file[:40] + b"\n" + file[41:], "checksum"),
    ],
)
def test_what_is_no_header_of_ours_may_hold_rows_and_is_kept(change, says):
    with pytest.raises(UnreadableError, match=says):
        read_image(change(small().file()), BOOT)


def first_line(text):
    data = text.encode()
    return b"%s %08x\n" % (data, zlib.crc32(data))


@pytest.mark.parametrize("version", ["0", "2", "99", "1.1", ""])
def test_another_version_says_what_to_do(version):
    file = first_line(f"logsluice-journal {version} {{}}").ljust(8192, b"\0")
    with pytest.raises(UnreadableError, match="use the version that wrote it"):
        read_image(file, BOOT)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"columns": 7}', '{"columns": [], "stream": 1}', "\ufffd"])
def test_a_first_line_with_a_right_checksum_and_other_contents(text):
    """A version of ours that added a field and forgot to say so: kept, not a crash of whoever looks for orphans."""
    file = first_line(f"logsluice-journal 1 {text}").ljust(8192, b"\0")
    with pytest.raises(UnreadableError):
        read_image(file, BOOT)


def test_an_unknown_field_is_another_format():
    line = head(4096).encode().partition(b" ")[2].partition(b" ")[2].rpartition(b" ")[0]
    text = json.dumps({**json.loads(line), "compressed": True})
    with pytest.raises(UnreadableError):
        read_image(first_line(f"logsluice-journal 1 {text}").ljust(8192, b"\0"), BOOT)


# --- the last lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_536, 65_537, 300_000, 4 * 1024 * 1024])
def test_the_last_lines_fit_their_room(length):
    data = b"x" * length
    assert len(trailer(data)) <= trailer_room(length)
    assert trailer(data).startswith(b"\\.\n")  # psql's COPY ends here
    assert trailer(data) == trailer(memoryview(data))


@pytest.mark.parametrize("length", [0, 1, 5 * 1024, 5 * 1024 + 1, 64 * 1024 - 1, 64 * 1024])
def test_a_checksum_in_pieces_is_zlibs(length):
    block = random.Random(length).randbytes(length)
    assert journal.checksum(block) == journal.checksum(memoryview(block)) == zlib.crc32(block)


def test_a_trailer_rests_after_each_mebibyte():
    rests = []
    data = bytes(2 * 1024 * 1024 + 1)
    assert trailer(data, rest=lambda: rests.append(True)) == trailer(data)
    assert len(rests) == 2


def test_the_room_is_enough_for_the_largest_numbers():
    """`end` has as many digits as the largest segment that a position can name."""
    text = f"{journal.SEALED} {journal.VERSION} end={2**32 - 1} crc="
    for size in (1, 2**32 - 1):
        sums = -(-size // journal.BLOCK)
        assert len(journal.END_OF_DATA) + len(text) + 9 * sums - 1 + len(" 00000000\n") <= trailer_room(size)


@pytest.mark.parametrize("end", [0, 10, 10**9])
def test_last_lines_that_name_a_place_outside_of_the_file_are_no_seal(end):
    written = small()
    line = first_line(f"{journal.SEALED} 1 end={end} crc={0:08x}")
    file = written.data.ljust(written.size, b"\0") + b"\\.\n" + line
    image = read_image(file.ljust(file_size(written.size), b"\0"), BOOT)
    assert not image.sealed
    assert found(image) == written.rows


def test_a_sealed_segment_without_rows():
    written = Written([])
    for boot in (BOOT, LATER):
        image = read_image(written.file(sealed=True), boot)
        assert (image.sealed, image.spans, image.end, image.rows()) == (True, [], written.start, 0)
        assert image.batch(0, 1000) is None


# --- batches ------------------------------------------------------------------------------------------------------------


def slices(image, batch_bytes, batch_size):
    """Read all batches; each position of a span once, in order, and every batch ends with a newline."""
    read, out = image.start, []
    while (batch := image.batch(read, batch_bytes, batch_size)) is not None:
        assert batch.data
        assert batch.data.endswith(b"\n")
        begin = batch.start - position(image.header.segment, 0)
        end = batch.end - position(image.header.segment, 0)
        assert begin >= read
        span = next(one for one in image.spans if one.begin <= begin < one.end)
        assert end <= span.end
        assert begin == max(read, span.begin)
        if batch.rows > 1:
            assert len(batch.data) <= batch_bytes
            assert batch_size is None or batch.rows <= batch_size
        places = [at for at, _ in batch.lines()]
        assert list(batch.aside) == (places if span.damaged else [])
        out.append((begin, end))
        read = end
        assert image.batch(begin, batch_bytes, batch_size).data == batch.data  # until it is settled, the same again
    covered = [at for begin, end in out for at in (begin, end)]
    assert covered == sorted(covered)
    assert sum(end - begin for begin, end in out) == sum(one.end - one.begin for one in image.spans)
    return out


@QUICKLY
@given(st.data())
def test_batches_of_any_size_cover_each_span_once(data):
    written = Written(data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=60)))
    damage = data.draw(st.sampled_from(["none", "holes", "flips"]))
    file, boot = written.file(), BOOT
    if damage == "holes":
        pages = data.draw(st.sets(st.integers(-(-written.start // 256), len(file) // 256)))
        file, boot = zeroed(file, pages, 256), LATER
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "BLOCK", 512)
        if damage == "flips":
            file = written.file(sealed=True)
            for at in data.draw(st.sets(st.integers(written.start, written.end - 1), max_size=4)):
                file = flipped(file, at, data.draw(st.integers(0, 7)))
        image = read_image(file, boot)
    slices(image, data.draw(st.integers(1, 3000)), data.draw(st.none() | st.integers(1, 20)))
    read = data.draw(st.integers(written.start, written.end))
    assert image.rows(read) <= image.rows()


def test_a_damaged_batch_whose_last_newline_was_flipped_is_one_row(small_blocks):
    written = Written([30] * 10)
    image = read_image(flipped(written.file(sealed=True), written.end - 1, 0), BOOT)
    assert image.spans[-1].damaged
    batch = None
    read = image.start
    while (following := image.batch(read, 10**6)) is not None:
        batch, read = following, following.end - position(7, 0)
    assert batch.data.endswith(b"\n")
    assert batch.end == position(7, written.end)
    assert len(batch.aside) == batch.rows
    assert all("damaged (checksum)" in why.message for why in batch.aside.values())


def test_a_watermark_inside_of_a_damaged_stretch_makes_no_row_of_it(small_blocks):
    """Some of it was sent before it was damaged: the watermark stands where a newline is no more."""
    written = Written([30] * 60)
    for at, row in written.rows[20:22]:
        newline = at + len(row) - 1
        image = read_image(flipped(written.file(sealed=True), newline, 3), BOOT)
        read = image.start
        while not (batch := image.batch(read, 10**6)).aside:
            read = batch.end - position(7, 0)
        rest = batch.after(position(7, newline + 1))
        assert rest.rows > 1
        assert [place for place, _ in rest.lines()] == sorted(rest.aside)


def test_the_places_of_spans_are_the_places_in_the_stream():
    image = Image(head(100, segment=3), b"....ab\ncd\n", 4, [Span(4, 7), Span(7, 10, damaged=True)], sealed=True)
    first, second = image.batch(0, 100), image.batch(7, 100)
    assert (first.start, first.data, first.aside) == (position(3, 4), b"ab\n", {})
    assert (second.start, second.data, list(second.aside)) == (position(3, 7), b"cd\n", [position(3, 7)])
    assert image.batch(10, 100) is None
    assert (image.rows(), image.rows(4), image.rows(7), image.rows(10)) == (2, 2, 1, 0)
