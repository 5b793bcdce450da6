"""What a program leaves in a journal when SIGKILL ends it: for those who load it by hand."""

from __future__ import annotations

import signal
from dataclasses import replace

from logsluice.journal import UnfinishedError, trailer
from support.journals import KEEPS, given, image_of, segments, streams
from support.written import run

# Its table is locked by itself, so that what is logged behind the first flush waits; the lock goes with it.
PROGRAM = """
import psycopg

journaled(**{"service": "shop", "environment": "production", "linger": FIRST and 0.05 or 60, **OPTIONS})
if FIRST:
    orders(RUN, FIRST)
    assert handler().flush(20)
lock = psycopg.connect(DSN)
lock.execute("LOCK TABLE logsluice.logs IN ACCESS EXCLUSIVE MODE")
for n in range(FIRST, FIRST + COUNT):
    order(f"{RUN}-{n}", "x" * (n % 100))
until(lambda: not SEALED or b"logsluice-sealed" in open(sorted(glob.glob(JOURNAL + "/*/00000001-*.seg"))[0], "rb").read())
os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(dsn, folder, journal, name="run", *, count, first=0, sealed=False, **options):
    """
    Log `first` records that are stored and `count` that are not, and die. The name of the stream's folder.

    With `sealed` the program lives until a segment behind the first has its checksums.
    """
    before = streams(journal) if journal.exists() else set()
    text = f"import glob\nFIRST, COUNT, SEALED = {first}, {count}, {sealed}\n" + KEEPS + PROGRAM
    run(dsn, folder, text, status=-signal.SIGKILL, **given(journal, name, **options))
    (stream,) = streams(journal) - before
    return stream


def files_of(journal, stream):
    """The files of a stream that hold rows, in order. One that was just being made may be there, unfinished."""
    found = []
    for file in segments(journal):
        try:
            if file.parent.name == stream and image_of(file).spans:
                found.append(file)
        except UnfinishedError:
            pass
    return found


def tear(file):
    """Have a file end in the middle of a row, as a process leaves it that dies while it appends."""
    image = image_of(file)
    assert image.torn == 0
    with file.open("r+b") as opened:
        opened.seek(image.end)
        opened.write(b"4711\t2026-11-22 09:01:02.000000Z\thalf of a r")
    assert image_of(file).torn > 0


def reboot(file):
    """Have a file come from an earlier run of the machine: its header names another boot."""
    image = image_of(file)
    boot = "".join("0" if sign.isalnum() else sign for sign in image.header.boot)
    assert boot != image.header.boot
    header = replace(image.header, boot=boot).encode()
    assert len(header) == image.start
    with file.open("r+b") as opened:
        opened.write(header)
        if image.sealed:
            opened.seek(image.header.size)
            opened.write(trailer(header + image.data[image.start : image.end]))
    assert [one.damaged for one in image_of(file).spans] == [False]
