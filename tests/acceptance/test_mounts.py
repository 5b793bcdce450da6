"""What the commands say of a journal on a disk that is read-only, in memory or too small: mounted here, so by root."""

import json
import subprocess
import sys

from support.journals import lost_and_twice, mounted, remount
from support.left import leave

LIMIT = 60  # seconds: a net


def logsluice(*argv):
    """Run the command: (exit status, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "logsluice", *map(str, argv)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_read_only_disk(dsn, tmp_path):
    place = tmp_path / "disk"
    with mounted(place, "-t", "tmpfs", "-o", "mode=700,size=16m", "tmpfs"):
        leave(dsn, tmp_path, place / "j", count=30)
        remount(place, "ro")
        status, _, err = logsluice("journal", place / "j")
        assert status == 1
        assert "read-only: copy the folder with cp -a to another disk, and name the copy" in err
        copied = tmp_path / "copy"
        subprocess.run(["cp", "-a", place / "j", copied], check=True, timeout=LIMIT)
    assert logsluice("journal", copied, "--load", "--dsn", dsn)[0] == 0
    assert lost_and_twice(dsn, tmp_path) == ([], [])


def test_a_journal_in_memory_and_a_small_disk(dsn, tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "mode=700,size=8m", "tmpfs") as small:
        journal = small / "j"
        handler = {"class": "logsluice.PostgresHandler", "dsn": dsn, "journal": str(journal), "journal_bytes": 16 << 20}
        given = {"version": 1, "disable_existing_loggers": False, "handlers": {"db": handler},
                 "root": {"level": "INFO", "handlers": ["db"]}}  # fmt: skip
        (tmp_path / "log.json").write_text(json.dumps(given), encoding="utf-8")
        status, out, err = logsluice("doctor", "--config", tmp_path / "log.json")
        assert status == 0, out + err
        place, room = [line for line in out.splitlines() if "  journal " in line][:2]
        assert "is on tmpfs, which is memory: it survives the process, not" in place
        assert "0 bytes are in it, it may grow to 16.0 MiB (journal_bytes), and 8.0 MiB" in room
        assert "make room there, or set journal_bytes to at most 8388608" in out
