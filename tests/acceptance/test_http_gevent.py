"""HTTP under gevent: the listener is a thread of the operating system, its sockets are gevent's."""

from support.endpoint import Stub
from support.processes import run_program

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import logging, sys
import gevent
from logsluice import HttpHandler

handler = HttpHandler(url=sys.argv[1], linger=0.05)
log = logging.getLogger("shop")
log.setLevel(logging.INFO)
log.addHandler(handler)

def work(first):
    for number in range(first, first + 20):
        log.info("order %d", number, extra={"id": number})
        gevent.sleep(0.001)

gevent.joinall([gevent.spawn(work, 20 * one) for one in range(5)])
print(handler.flush(20), handler.stats().stored)
"""


def test_greenlets_log_and_a_thread_sends():
    with Stub() as stub:
        program = run_program(PROGRAM, args=[stub.url()])
        assert (program.stdout, program.returncode) == ("True 100\n", 0), program.stderr
        assert sorted(stub.stored()) == list(range(100))
