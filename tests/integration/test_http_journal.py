"""HTTP with `journal=`: a process that is killed loses nothing; secrets are in no file of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from support.endpoint import LIMIT, Answer, Sender, Stub
from support.processes import until

PROGRAM = """
import logging, os, sys
from logsluice import HttpHandler

url, journal, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
handler = HttpHandler(url=url, journal=journal, linger=0.01, backoff_initial=0.01, backoff_max=0.05,
                      max_request_records=20, token="canary-t0ken")
log = logging.getLogger("shop")
log.setLevel(logging.INFO)
log.addHandler(handler)
done = os.open(journal + ".ids", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for number in range(first, first + 1_000_000):
    log.info("order %d", number, extra={"id": number})
    os.write(done, b"%d\\n" % number)
"""


def killed_at(stub, journal, first, count):
    """Run the program until so many calls have returned, and kill it."""
    written = journal.with_name(journal.name + ".ids")
    before = written.read_bytes().count(b"\n") if written.exists() else 0
    with subprocess.Popen([sys.executable, "-c", PROGRAM, stub.url(), str(journal), str(first)]) as process:
        try:
            assert until(
                lambda: (
                    process.poll() is not None
                    or (written.exists() and written.read_bytes().count(b"\n") >= before + count)
                ),
                LIMIT,
            )
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGKILL)
    return [int(line) for line in written.read_bytes().split(b"\n")[:-1]]


def inherit(stub, journal, **options):
    """Be the next process until nothing of a dead one is left."""
    with Sender(stub, journal=str(journal), **options) as sender:
        sender.logger.info("the heir")  # without an id
        mine = f"{sender.handler._pairs[0][0].buffer.stream:016x}"
        assert until(lambda: {one.name for one in journal.iterdir() if one.is_dir()} == {mine}, LIMIT)
        assert sender.flush()
        return sender.stats


@pytest.mark.parametrize("fault", ["none", "errors", "down"])
def test_a_killed_process_loses_nothing(tmp_path, fault):
    journal = tmp_path / "journal"
    chance = random.Random(fault)
    with Stub() as stub:
        if fault == "errors":
            stub.decide = lambda request: Answer(
                **chance.choice(
                    [{}, {}, {"status": 503}, {"drop": True, "stores": True}, {"cut": True, "stores": True}]
                )
            )
        if fault == "down":
            stub.decide = lambda request: Answer(503)
        returned = []
        for run in range(4):
            returned = killed_at(stub, journal, run * 1_000_000, 300)
        stub.decide = lambda request: Answer()
        stats = inherit(stub, journal, token="canary-t0ken")
        stored = stub.stored()
        lost = set(returned) - set(stored)
        assert lost == set()
        # The one that was killed inside its call may be there as well.
        assert len(set(stored) - set(returned)) <= 4
        if fault == "down":
            assert len(set(stored)) == len(stored)  # nothing was taken before
        assert sum(one["stored"] for one in stats.journal["adopted"]) > 0


def test_what_was_acknowledged_is_not_sent_again(tmp_path):
    """But for what was in flight: a batch of 20 for each death."""
    journal = tmp_path / "journal"
    with Stub() as stub:
        for run in range(3):
            killed_at(stub, journal, run * 1_000_000, 500)
        inherit(stub, journal, token="canary-t0ken")
        assert len(stub.stored()) - len(set(stub.stored())) <= 3 * 20


def test_no_secret_is_in_a_file_of_the_journal(tmp_path):
    journal = tmp_path / "journal"
    url = "http://me:canary-pass@127.0.0.1:1/in?api_key=canary-key"
    with Sender(url=url, journal=str(journal), shutdown_timeout=0.1, headers={"X-Key": "canary-header"}) as sender:
        sender.log(50)
        sender.await_failure()
    files = [one for one in journal.rglob("*") if one.is_file()]
    assert any(one.suffix == ".seg" for one in files)
    for one in files:
        assert b"canary" not in one.read_bytes()
        assert b"bWU6" not in one.read_bytes()
    assert sender.law().abandoned_by == {"journal": 50}


def test_another_endpoint_leaves_what_is_not_its_own(tmp_path, capfd):
    journal = tmp_path / "journal"
    with Stub() as one, Stub() as other:
        one.decide = lambda request: Answer(503)
        with Sender(one, journal=str(journal), shutdown_timeout=0.1) as sender:
            sender.log(5)
            sender.await_failure()
        with Sender(other, journal=str(journal)) as sender:
            sender.log(5)
            assert sender.flush()
            assert until(lambda: sender.stats.journal["left"], LIMIT)
        assert len(other.stored()) == 5
        one.decide = lambda request: Answer()
        inherit(one, journal)
        assert sorted(one.stored()) == [0, 1, 2, 3, 4]
    assert "another target" in capfd.readouterr().err


def test_an_orphan_says_who_wrote_it(tmp_path):
    journal = tmp_path / "journal"
    with Stub() as stub:
        stub.decide = lambda request: Answer(503)
        options = {"journal": str(journal), "format": "loki"}
        with Sender(stub, service="old", shutdown_timeout=0.1, **options) as sender:
            sender.log(5)
            sender.await_failure()
        stub.decide = lambda request: Answer(204)
        with Sender(stub, service="new", **options) as sender:
            sender.log(1)
            assert until(lambda: sender.stats.journal["adopted"], LIMIT)
            assert until(lambda: sender.stats.journal["adopted"][0]["state"] == "done", LIMIT)
            assert sender.flush()
        streams = [
            stream
            for request in stub.requests
            if request.answer.status == 204
            for stream in json.loads(request.body)["streams"]
        ]
    counts = {stream["stream"]["service"]: len(stream["values"]) for stream in streams}
    assert counts == {"old": 5, "new": 1}


def test_a_forked_child_has_a_connection_of_its_own(tmp_path):
    with Stub() as stub, Sender(stub) as sender:
        sender.log(5)
        assert sender.flush()
        child = os.fork()
        if child == 0:
            try:
                sender.log(5)
                os._exit(0 if sender.handler.flush(LIMIT) else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        sender.log(5)
        assert sender.flush()
        assert len(stub.stored()) == 15
        assert stub.connections == 2
        assert threading.active_count() < 100
