"""
gevent, patched as the very first thing and as the very last before logging begins.

The listener is a thread of the operating system whatever was patched, and no greenlet waits for it: the hub goes on.
"""

from __future__ import annotations

import pytest

from support.proxy import Proxy
from support.situations import judge
from support.written import run

PATCH = "from gevent import monkey; monkey.patch_all()\n"
GAP = 0.1  # seconds: longest time that the hub may stand still because of us; asserted with ten times the room

PROGRAM = """
import gevent, gevent.hub

class Ticks:
    '''A greenlet that wakes each 10 ms, and the longest time between two of its turns.'''
    def __init__(self):
        self.longest, self.turns, self.stop = 0.0, 0, False
        self.greenlet = gevent.spawn(self.work)
    def work(self):
        last = time.monotonic()
        while not self.stop:
            gevent.sleep(0.01)
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
            self.turns += 1
    def end(self):
        self.stop = True
        self.greenlet.join()
        return self.longest

def work(name):
    for n in range(100):
        order(f"{name}-{n}")
        gevent.sleep(0)
"""
# A listener in a greenlet would have stored nothing by the end of the loop: its greenlet would never have its turn.
ALL = """
ticks = Ticks()
greenlets = [gevent.spawn(work, name) for name in range(100)]
gevent.joinall(greenlets)
begun = time.monotonic()
while handler().stats().waiting and time.monotonic() < begun + 20:
    gevent.sleep(0.01)
assert not [one for one in greenlets if one.exception]
import _thread
real = gevent.monkey.get_original("_thread", "get_ident")
tell(patched=gevent.monkey.is_module_patched("threading"), longest=ticks.end(), turns=ticks.turns,
     own_thread=handler()._pair[1].thread_id != real(), stored=handler().stats().stored)
"""


def program(patched, text, options="linger=0.02"):
    """(in front of all imports, text): patched first; last; or last with a listener that runs already."""
    if patched == "first":
        return PATCH, f"configure({options})\n{PROGRAM}{text}"
    running = "order('before')\nassert handler().flush(20)\n" if patched == "running" else ""
    return "", f"configure({options})\n{running}{PATCH}{PROGRAM}{text}"


@pytest.mark.parametrize("patched", ["first", "last", "running"])
def test_a_hundred_greenlets_store_everything(dsn, tmp_path, patched):
    before, text = program(patched, ALL)
    ran = run(dsn, tmp_path, text, before=before)
    print(ran.told)
    assert ran.told["patched"]
    assert ran.told["own_thread"]
    assert ran.told["turns"] > 5
    outcome = judge(f"gevent, patched {patched}: 100 greenlets", dsn, ran.ids, seconds=ran.seconds)
    assert (outcome.logged, outcome.lost, outcome.twice) == (10_000 + (patched == "running"), 0, 0)
    print(f"gevent patched {patched}: the hub stood still for {ran.told['longest'] * 1000:.0f} ms at most")
    assert ran.told["longest"] < 10 * GAP


@pytest.mark.parametrize("patched", ["first", "last", "running"])
def test_what_waits_at_exit_is_sent(dsn, tmp_path, patched):
    """A linger of 30 s: nothing but the end sends."""
    text = "gevent.joinall([gevent.spawn(work, n) for n in range(10)])\ntell(waiting=handler().stats().waiting)\n"
    before, text = program(patched, text, "")
    ran = run(dsn, tmp_path, text, before=before)
    assert ran.told["waiting"] == 1000
    outcome = judge(f"gevent, patched {patched}: exit", dsn, ran.ids, seconds=ran.seconds)
    assert (outcome.logged, outcome.lost, outcome.twice) == (1000 + (patched == "running"), 0, 0)


FROZEN = """
swallowed = os.environ["SWALLOW"]
ticks = Ticks()
greenlets = [gevent.spawn(work, name) for name in range(20)]
gevent.joinall(greenlets)
gevent.sleep(2)                       # the listener waits for an answer that does not come
tell(longest=ticks.end(), turns=ticks.turns, waiting=handler().stats().waiting, stored=handler().stats().stored,
     offered=handler().stats().offered, dropped={why: n for (why, _), n in handler().stats().dropped_by.items()})
os._exit(0)
"""


@pytest.mark.parametrize("when_full", ["drop", "block"])
@pytest.mark.parametrize("patched", ["first", "last", "running"])
def test_a_frozen_server_does_not_stop_the_hub(dsn, tmp_path, patched, when_full):
    """A deaf connection: with when_full="block" a greenlet is not held up either, for it would be all of them."""
    with Proxy(dsn) as proxy:
        if patched != "running":
            proxy.swallow()
        options = (
            f"dsn={proxy.dsn!r}, linger=0.02, io_timeout=30, when_full={when_full!r}, block_timeout=20, capacity=500"
        )
        text = FROZEN
        if patched == "running":  # its connection is open, and goes deaf
            text = "open(os.environ['SWALLOW'], 'w').close()\n" + FROZEN
        before, text = program(patched, text, options)
        ran = run_deaf(proxy, dsn, tmp_path, text, before, patched)
    print(ran.told)
    assert proxy.swallowed > 0
    assert ran.told["waiting"] > 0
    assert ran.told["turns"] > 50
    assert ran.told["offered"] == 2000 + (patched == "running")
    assert ran.told["dropped"].keys() == {"event_loop" if when_full == "block" else "full"}
    print(f"gevent, {patched}, {when_full}: the hub stood still for {ran.told['longest'] * 1000:.0f} ms at most")
    assert ran.told["longest"] < 10 * GAP


def run_deaf(proxy, dsn, tmp_path, text, before, patched):
    """Run the program; `running`: the proxy goes deaf once the program's flag is there."""
    import threading

    from support.processes import until

    flag = tmp_path / "flag"
    if patched != "running":
        return run(dsn, tmp_path, text, before=before, SWALLOW=str(flag))

    def swallow():
        if until(flag.exists, 30):
            proxy.swallow()

    watcher = threading.Thread(target=swallow)
    watcher.start()
    text = text.replace("ticks = Ticks()", "gevent.sleep(0.5)\nticks = Ticks()")
    try:
        return run(dsn, tmp_path, text, before=before, SWALLOW=str(flag))
    finally:
        watcher.join()
