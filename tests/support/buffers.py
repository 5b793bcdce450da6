"""What tests of buffers stand on: frames go in as a logging call's do, and come out as the listener has them."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading

from logsluice import buffer as module
from logsluice import journal_buffer
from logsluice.adoption import OrphanBuffer
from logsluice.buffer import Buffer
from logsluice.diagnostics import Diagnostics
from logsluice.folder import boot_id
from logsluice.journal import Header

MIB = 1024 * 1024
LIMIT = 30  # seconds: a net below what takes milliseconds


class Said(Diagnostics):
    """Keeps what would go to stderr."""

    def __init__(self):
        super().__init__("test")
        self.lines = []

    def _write(self, text):
        self.lines.append(text)


def header(stream=0xABC, *, mapped=True):
    return Header(
        stream=stream, segment=0, size=0, boot=boot_id(), sink="postgres", home="logsluice", target={"host": "db"},
        columns=("message",), mapped=mapped, who={"pid": 1},
    )  # fmt: skip


def log(buffer, frame, level=logging.INFO):
    """What `Intake` does with a frame; whether it was taken in."""
    buffer.next_seq()
    try:
        (buffer.append if level >= buffer.keep_level else buffer.append_low)(frame)
    except ValueError:
        return buffer.put(frame, level)
    return True


def drain(buffer, batch_bytes=MIB, batch_size=None, into=None):
    """Take and settle everything that waits; the frames, also those before an error, in `into`."""
    frames = [] if into is None else into
    while (batch := buffer.take(batch_bytes, batch_size)) is not None:
        # A journal's may begin behind what cannot be read any more.
        assert batch.start == buffer.settled or (batch.start > buffer.settled and type(buffer) is not Buffer)
        assert batch.data.endswith(b"\n")
        assert b"\0" not in batch.data
        assert not batch.aside
        frames += batch.data.splitlines()
        buffer.settle(batch)
        # An orphan of which nothing is left has no place.
        assert buffer.settled >= batch.end or (isinstance(buffer, OrphanBuffer) and not buffer.waiting_bytes())
    return frames


def numbers(buffer):
    return [segment.number for segment in buffer._chain()]


def law(buffer, settled, given_up=0):
    """The conservation law, by ids that were counted outside."""
    assert buffer.rows_settled == settled + given_up
    assert sum(buffer.given_up.values()) == given_up
    assert buffer.offered() == buffer.rows_settled + sum(buffer.dropped().values()) + buffer.rows_waiting()


def log_inside(buffer, count, fill, every=1):
    """
    Log so many frames, and another at every so-manieth line of the slow path; all are kept, each kind in its order.

    Returns (frames inside, lines that were passed).
    """
    inner, outer = [], []

    def call(i):
        if i % every == 0:
            inner.append(b"inner %d" % len(inner))
            log(buffer, inner[-1] + b"\n")

    with at_every_line(call) as lines:
        for n in range(count):
            outer.append(b"outer %d %s" % (n, b"x" * fill))
            log(buffer, outer[-1] + b"\n")
    assert not buffer.dropped()
    frames = drain(buffer)
    assert [frame for frame in frames if frame.startswith(b"outer")] == outer
    assert [frame for frame in frames if frame.startswith(b"inner")] == inner
    law(buffer, len(outer) + len(inner))
    return len(inner), len(lines)


def run(*functions):
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


# A line of these is where the other thread, a signal handler or a __del__ may come in between.
STEPS = {
    "put", "_live", "_publish", "_next_size", "_aim", "seal", "held_bytes", "_chain", "__init__", "_following",
    "_on_disk", "_new_file", "_take_spare", "_in_memory", "_within_memory", "_refused", "_header", "measure", "relieve",
    "_cost", "_journal_chain", "drop", "let_go", "sealed", "end",
}  # fmt: skip
MODULES = {module.__file__, journal_buffer.__file__}


@contextlib.contextmanager
def at_every_line(call, only=None, also=()):
    """Call before every line of the slow path, as a signal handler would; `only`: at that one line number alone."""
    inside = [False]
    seen = []

    def local(frame, event, _arg):
        if event == "line" and not inside[0]:
            seen.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            if only is None or only == len(seen) - 1:
                inside[0] = True
                try:
                    call(len(seen) - 1)
                finally:
                    inside[0] = False
        return local

    def trace(frame, _event, _arg):
        code = frame.f_code
        ours = (code.co_filename in MODULES and code.co_name in STEPS) or code.co_name in also
        return local if ours and not inside[0] else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)
