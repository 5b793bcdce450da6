"""
The fault matrix, I-08: two processes write one file, and everything that others do to log files is done to it, again and
again: renamed by logrotate, copied and truncated, replaced, no room in the middle of a line, a kill that tears one.

Each accident by itself is in tests/integration/test_file.py. Mounts need root, logrotate Debian's package.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from support import matrix
from support.files import LIMIT, Process, config, family, ids_in, logging_to, logrotate
from support.journals import mounted, streams
from support.processes import until

TURNS = 3
WRITES = """
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
n = 0
while not stop.is_set():
    order(n, "x" * (n % 300))
    n += 1
    if n % 20 == 0:
        stop.wait(0.01)
"""
ROTATES = """{path} {{
    rotate 1000
    missingok
    {how}
}}
"""


class Writers:
    def __init__(self, folder, given):
        self.folder, self.given, self.all, self.running = folder, given, [], []

    def begin(self):
        self.all.append(Process(WRITES, self.folder, f"p{len(self.all)}", config=config({"file": self.given})))
        self.running.append(self.all[-1])

    def go_on(self):
        """Wait until each has logged more."""
        for process in self.running:
            before = len(process.ids)
            assert until(lambda one=process, before=before: len(one.ids) > before + 100, LIMIT), process.err

    def signal(self, number):
        for process in self.running:
            process.process.send_signal(number)

    @property
    def ids(self):
        return [one for process in self.all for one in process.ids]


@pytest.mark.parametrize("mode", ["memory", "journal"])
def test_i_08_whatever_is_done_to_a_log_file(tmp_path, mode):
    place, journal = tmp_path / "disk", tmp_path / "journal"
    path = place / "app.log"
    given = {"filename": str(path), "linger": 0.005, "max_frame_bytes": 1024 * 1024}
    if mode == "journal":
        given["journal"] = str(journal)
    full = 0
    with mounted(place, "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs"):
        writers = Writers(tmp_path, given)
        for _ in range(2):
            writers.begin()
        for turn in range(TURNS):
            for how in ("create 0640", "nocreate", "copytruncate"):
                writers.go_on()
                (tmp_path / "logrotate.conf").write_text(ROTATES.format(path=path, how=how))
                # copytruncate loses what comes between its copy and its cut; create and a writer may both make the file.
                if how != "nocreate":
                    writers.signal(signal.SIGSTOP)
                logrotate(tmp_path, "--force")
                writers.signal(signal.SIGCONT)
            writers.go_on()
            kept = path.with_name(f"app.log.kept-{turn}")
            path.rename(kept)  # a person's mv; the next one has the name
            path.touch(mode=0o640)
            writers.go_on()
            ballast = place / "ballast"
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(65536)):
                    pass
            writers.go_on()
            assert os.statvfs(place).f_bavail == 0
            # Each says it once a minute.
            assert until(lambda: any("No space left" in process.err for process in writers.running), LIMIT)
            full += 1
            ballast.unlink()
            writers.go_on()
            if mode == "journal":
                victim = writers.running.pop(0)
                victim.kill()
                writers.begin()
            with path.open("ab") as file:
                file.write(b'{"ts": "2026-11-27T02:56:41.4020')  # as one that dies inside of its write
        writers.go_on()
        writers.signal(signal.SIGTERM)
        for process in writers.running:
            process.wait()
        wanted = writers.ids
        if mode == "journal":
            with logging_to(path, journal=str(journal)) as log:
                log(1)
                mine = {f"{route.buffer.stream:016x}" for route in log.handler._routes()}
                assert until(lambda: streams(journal) <= mine, LIMIT), log.stats
            wanted += log.given
        found = ids_in(path)  # asserts that each line is whole and valid
        files = len(family(path))
    note = f"{len(wanted)} records in {files} files: {TURNS} times each of rename, copytruncate, mv, a full disk, a torn line"
    if mode == "journal":
        note += f"; {TURNS} kills"
    matrix.row(
        "I-08",
        mode,
        lost=set(wanted) - found.keys(),
        twice=[one for one, times in found.items() if times > 1],
        note=note,
    )
    assert full == TURNS
