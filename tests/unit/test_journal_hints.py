"""
How far a stream was acknowledged, where the sink keeps no books: the hint in the stream's `owner`.

A hint that is missing, damaged, old or another stream's costs a second delivery. It never skips a record.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import pytest

from logsluice import buffer
from logsluice.adoption import Adopter
from logsluice.buffer import position
from logsluice.diagnostics import Diagnostics
from logsluice.folder import Folder, boot_id
from logsluice.journal import Header, acknowledged, read_acknowledged
from logsluice.journal_buffer import JournalBuffer

MIB = 1024 * 1024
STREAM = 0xABC
FRAMES = [b"%d\t20\ta\t%s\n" % (n, b"x" * 300) for n in range(1, 101)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Segments of a page: a dozen frames each."""
    monkeypatch.setattr(buffer, "FIRST_SEGMENT", 4096)
    monkeypatch.setattr(buffer, "LARGEST_SEGMENT", 4096)


def header():
    return Header(STREAM, 0, 0, boot_id(), "http", "", {"url": "https://host/"}, ("line",), mapped=False)


def journal(path, **options):
    given = {"journal_bytes": 64 * MIB, "memory_bytes": MIB, "fsync": "never", "diagnostics": Diagnostics("test")}
    made = JournalBuffer(Folder(str(path)), header(), hints=True, **{**given, **options})
    for frame in FRAMES:
        made.next_seq()
        try:
            made.append(frame)
        except ValueError:
            assert made.put(frame, 20)
    return made


def settle(made, frames):
    """Acknowledge the first so many frames, seven at a time."""
    left = frames
    while left and (batch := made.take(MIB, min(7, left))) is not None:
        made.settle(batch)
        left -= batch.rows
    assert not left


def killed(path, acknowledged_frames, **options):
    """A process that died when so many frames were acknowledged; its hint."""
    made = journal(path, **options)
    settle(made, acknowledged_frames)
    made.discard()
    return owner(path)


def owner(path):
    return path / f"{STREAM:016x}" / "owner"


def adopt(path, *, hints=True, most=None):
    """The frames that the next process sends; `most`: it dies after so many."""
    folder = Folder(str(path))
    found = []
    for orphan in Adopter(folder, header(), set(), Diagnostics("test"), hints=hints).look(set()):
        while (batch := orphan.take(MIB, 5)) is not None and (most is None or len(found) < most):
            found += batch.data.splitlines(keepends=True)
            orphan.settle(batch)
        if most is None:
            assert orphan.remove()
        orphan.discard()
    folder.close()
    return found


@pytest.mark.parametrize("count", [0, 1, 7, 12, 13, 50, 99])
def test_the_next_process_sends_what_was_not_acknowledged(tmp_path, count):
    killed(tmp_path / "j", count)
    assert adopt(tmp_path / "j") == FRAMES[count:]


def test_it_does_so_again_when_it_dies_itself(tmp_path):
    killed(tmp_path / "j", 20)
    first = adopt(tmp_path / "j", most=30)
    second = adopt(tmp_path / "j", most=10)
    assert first + second + adopt(tmp_path / "j") == FRAMES[20:]


def test_segments_that_were_acknowledged_and_are_still_there_are_not_sent(tmp_path, monkeypatch):
    """Died between the answer and the unlink."""
    unlink = Folder.unlink
    monkeypatch.setattr(Folder, "unlink", lambda self, name: None)
    killed(tmp_path / "j", 40)
    monkeypatch.setattr(Folder, "unlink", unlink)
    assert adopt(tmp_path / "j") == FRAMES[40:]


def spoilt(text):
    """Every way to spoil a hint."""
    yield "missing", b""
    yield "a part of it", text[:40]
    yield "of another stream", acknowledged(STREAM + 1, position(2, 1000))
    yield "of another version", text.replace(b"acknowledged 1", b"acknowledged 2")
    yield "anything", b"\xff" * 69
    for at in range(len(text) - 1):
        yield f"bit {at}", bytes([*text[:at], text[at] ^ 0x10, *text[at + 1 :]])


def test_a_spoilt_hint_is_none():
    text = acknowledged(STREAM, position(2, 1000))
    assert read_acknowledged(text, STREAM) == position(2, 1000)
    for how, bad in spoilt(text):
        assert read_acknowledged(bad, STREAM) == 0, how


@pytest.mark.parametrize("how", ["missing", "a part of it", "of another stream", "anything", "bit 30"])
def test_a_spoilt_hint_sends_again_and_skips_nothing(tmp_path, how):
    path = killed(tmp_path / "j", 30)
    path.write_bytes(dict(spoilt(path.read_bytes()))[how])
    sent = adopt(tmp_path / "j")
    assert sent[-70:] == FRAMES[30:]
    assert set(sent) <= set(FRAMES)
    assert len(sent) > 70  # a part of the segment that was being acknowledged


def test_an_old_hint_sends_again_and_skips_nothing(tmp_path):
    made = journal(tmp_path / "j")
    settle(made, 14)
    old = owner(tmp_path / "j").read_bytes()
    settle(made, 7)
    made.discard()
    owner(tmp_path / "j").write_bytes(old)
    sent = adopt(tmp_path / "j")
    assert sent[-79:] == FRAMES[21:]


@pytest.mark.parametrize("shift", [-300, -1, 1, 100])
def test_a_hint_into_the_middle_of_a_frame_is_none(tmp_path, shift):
    path = killed(tmp_path / "j", 15)
    segment, offset = divmod(read_acknowledged(path.read_bytes(), STREAM), position(1, 0))
    path.write_bytes(acknowledged(STREAM, position(segment, offset + shift)))
    sent = adopt(tmp_path / "j")
    assert sent[-85:] == FRAMES[15:]
    assert len(sent) > 85  # the segment from its beginning


def test_a_sink_with_books_of_its_own_has_no_hint(tmp_path):
    made = JournalBuffer(
        Folder(str(tmp_path / "j")), header(), journal_bytes=MIB, memory_bytes=MIB, fsync="never",
        diagnostics=Diagnostics("test"),
    )  # fmt: skip
    made.next_seq()
    made.append(FRAMES[0])
    settle(made, 1)
    assert owner(tmp_path / "j").read_bytes() == b""
    made.discard()


def test_a_hint_is_not_read_where_nobody_wants_one(tmp_path):
    killed(tmp_path / "j", 5)
    assert adopt(tmp_path / "j", hints=False) == FRAMES


def test_what_is_given_up_at_the_end_moves_no_hint(tmp_path):
    """From memory, behind files that stay: a hint there would skip those."""

    class Full(Folder):
        full = False

        def make(self, name, size):
            if self.full:
                raise OSError(28, os.strerror(28))
            return super().make(name, size)

    folder = Full(str(tmp_path / "j"))
    made = JournalBuffer(
        folder, header(), journal_bytes=64 * MIB, memory_bytes=MIB, fsync="never", diagnostics=Diagnostics("test"),
        hints=True,
    )  # fmt: skip
    for number, frame in enumerate(FRAMES):
        folder.full = number >= 40
        made.next_seq()
        try:
            made.append(frame)
        except ValueError:
            assert made.put(frame, 20)
    settle(made, 7)
    made.close()
    made.seal()
    made.keep()
    given_up = []
    while (batch := made.take(MIB)) is not None:
        given_up += batch.data.splitlines(keepends=True)
        made.settle(batch)
    kept, gone = made.finish()
    assert given_up
    assert kept == 93 - len(given_up)
    assert not gone
    with contextlib.suppress(OSError):
        folder.close()
    assert adopt(tmp_path / "j") == FRAMES[7 : 100 - len(given_up)]


def test_hints_are_within_the_bytes_of_the_folder(tmp_path):
    """Two streams, and not a byte over the limit, whoever acknowledges when."""
    limit = 60_000
    folder = Folder(str(tmp_path / "j"))
    made = [
        JournalBuffer(
            folder, replace(header(), stream=stream), journal_bytes=limit, memory_bytes=MIB, fsync="never",
            diagnostics=Diagnostics("test"), hints=True,
        )
        for stream in (STREAM, STREAM + 1)
    ]  # fmt: skip
    taken = True
    while taken:
        taken = False
        for one in made:
            one.next_seq()
            try:
                one.append(FRAMES[0])
                taken = True
            except ValueError:
                taken = one.put(FRAMES[0], 50) or taken
            assert folder.used() <= limit
    for one in made:
        one.settle(one.take(500))
        assert folder.used() <= limit
    for one in made:
        one.discard()


def test_a_disk_that_refuses_the_hint_costs_nothing_else(tmp_path):
    class ReadOnly(Folder):
        def write(self, descriptor, data, at):
            raise OSError(30, os.strerror(30))

    made = JournalBuffer(
        ReadOnly(str(tmp_path / "j")), header(), journal_bytes=64 * MIB, memory_bytes=MIB, fsync="never",
        diagnostics=Diagnostics("test"), hints=True,
    )  # fmt: skip
    for frame in FRAMES[:5]:
        made.next_seq()
        made.append(frame)
    settle(made, 5)
    assert made.rows_waiting() == 0
    assert made.trouble is None
    made.discard()
    assert adopt(tmp_path / "j") == FRAMES[:5]
