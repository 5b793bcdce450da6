"""
The bakery of `logsluice demo`: an ordinary program that logs. What it knows of logsluice stands in LOGGING.

    python shop.py FOLDER SECONDS RECORDS

Threads sell and deliver, asyncio tasks look around, cards are declined, and after a third of the time there is a sale.
Each record carries an id of its own. It is appended to FOLDER/ids, by a write() of its own, once the logging call has
returned: that file, and no counter of logsluice's, says what must be in the table. FOLDER/speed.json says what the
handler added to a call.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGING = {
    "version": 1,
    "handlers": {
        "postgres": {
            "class": "logsluice.PostgresHandler",
            "dsn_env": "SHOP_DSN",  # in the environment and not on the command line, where `ps` shows it
            "service": "bakery",
            "shutdown_timeout": 30,  # seconds; 5 by default. A slow machine may have much left from the outage
        }
    },
    "root": {"level": "INFO", "handlers": ["postgres"]},
}

TICK = 0.02  # seconds between two rounds of a worker: records come in a steady trickle, not in one heap
SALE_AT, SALE_SHARE = 1 / 3, 1 / 5  # of the seconds; of the records
ROUNDS = 250  # of the measurement; their median forgets the rounds in which the machine did something else
CALLS = 20  # in a round: 0.5 ms. On a busy machine a longer one is hardly ever left alone
GOODS = ("croissant", "baguette", "café crème", "tarte tatin", "petit pain", "éclair")


class CardDeclinedError(Exception):
    """What bakeries fear."""


class Ids:
    """The ids of all records whose logging call has returned."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, *ids: str) -> None:
        """Write them at once: what is on this list outlives the program."""
        os.write(self._file, "".join(f"{one}\n" for one in ids).encode())


class Worker:
    """Somebody who logs a share of the records, one after the other, by `act(id, number)`."""

    def __init__(self, name: str, act: Callable[[str, int], None], share: int, ids: Ids) -> None:
        self.name, self._act, self._share, self._ids = name, act, share, ids
        self._done = 0

    def catch_up(self, part: float) -> bool:
        """Log until this part of the share is done; whether any is left."""
        while self._done < self._share * min(part, 1.0):
            self._done += 1
            own = f"{self.name}-{self._done}"
            self._act(own, self._done)
            self._ids.append(own)
        return self._done < self._share


def sell(own: str, number: int) -> None:
    """Log an order; now and then one whose payment fails."""
    log = logging.getLogger("bakery.orders")
    what = GOODS[number % len(GOODS)]
    if number % 601 == 99:
        try:
            charge(number)
        except CardDeclinedError:
            log.exception("order %d: payment failed", number, extra={"id": own, "what": what})
    elif number % 211 == 7:
        log.warning("only %d %s left", 1 + number % 4, what, extra={"id": own, "what": what})
    else:
        amount = round(2.4 * (1 + number % 9), 2)
        log.info("order %d paid: %s", number, what, extra={"id": own, "amount": amount, "card": number % 3 == 0})


def charge(number: int) -> None:
    """Fail, two calls deep, so that there is a traceback to store."""
    raise CardDeclinedError(f"order {number}: insufficient funds")


def deliver(own: str, number: int) -> None:
    """Log through a LoggerAdapter."""
    parcel = {"id": own, "bike": f"bike {number % 4}", "stops": [number % 7, number % 11]}
    logging.LoggerAdapter(logging.getLogger("bakery.delivery"), parcel).info("parcel %d is on its way", number)


def look_around(own: str, number: int) -> None:
    """Log from an asyncio task."""
    what = GOODS[number % len(GOODS)]
    logging.getLogger("bakery.web").info("somebody looks at the %s", what, extra={"id": own, "page": number % 40})


def snap_up(own: str, number: int) -> None:
    """Log as fast as it goes."""
    logging.getLogger("bakery.sale").info("croissant %d, half price!", number, extra={"id": own, "amount": 1.2})


def work(worker: Worker, seconds: float) -> None:
    """Spread a worker's share over the seconds. In a thread."""
    started, tick = time.monotonic(), threading.Event()
    while worker.catch_up((time.monotonic() - started) / seconds):
        tick.wait(TICK)


async def visit(worker: Worker, seconds: float) -> None:
    """Spread a worker's share over the seconds. In an asyncio task."""
    started = time.monotonic()
    while worker.catch_up((time.monotonic() - started) / seconds):  # noqa: ASYNC110 - a pace, there is no event
        await asyncio.sleep(TICK)


async def website(visitors: list[Worker], seconds: float) -> None:
    """Let the visitors in."""
    tasks = [asyncio.create_task(visit(visitor, seconds), name=visitor.name) for visitor in visitors]
    await asyncio.gather(*tasks)


def sale(worker: Worker, seconds: float) -> None:
    """Wait for the hour of the sale, then log without a pause."""
    threading.Event().wait(seconds * SALE_AT)
    worker.catch_up(1.0)


def measure(handler: logging.Handler, rounds: int, calls: int, ids: Ids) -> dict[str, float]:
    """Return the µs of a call with a NullHandler, and what this handler adds; medians of rounds taken in turn."""
    named = {"null": logging.NullHandler(), "postgres": handler}
    taken: dict[str, list[float]] = {name: [] for name in named}
    for name, one in named.items():
        log = logging.getLogger(f"bakery.speed.{name}")
        log.propagate = False
        log.addHandler(one)
    for number in range(rounds):
        for name, times in taken.items():
            log = logging.getLogger(f"bakery.speed.{name}")
            started = time.perf_counter()
            for call in range(calls):
                log.info("oven at %d °C", call, extra={"id": f"speed-{number}-{call}", "amount": 2.4, "card": True})
            times.append((time.perf_counter() - started) / calls * 1e6)
        ids.append(*(f"speed-{number}-{call}" for call in range(calls)))
    null = statistics.median(taken["null"])
    return {"null": null, "added": statistics.median(taken["postgres"]) - null}


def main(folder: Path, seconds: float, records: int) -> None:
    """Open, measure, sell for so many seconds, and end. logging closes the handler at exit, as in any program."""
    logging.config.dictConfig(LOGGING)
    ids = Ids(folder / "ids")
    log, handler = logging.getLogger("bakery"), logging.getLogger().handlers[0]
    log.info("the bakery is open", extra={"id": "open"})
    ids.append("open")
    handler.flush()  # the connection is up and the listener at rest: nothing else runs while we measure
    calls = max(1, min(CALLS, records // (4 * ROUNDS)))
    speed = measure(handler, ROUNDS, calls, ids)
    (folder / "speed.new").write_text(json.dumps(speed), encoding="ascii")
    (folder / "speed.new").rename(folder / "speed.json")  # whole, or not there

    left = records - 1 - ROUNDS * calls
    crowd = int(records * SALE_SHARE)
    team = [("till-1", sell), ("till-2", sell), ("courier", deliver)]
    team += [(f"visitor-{number}", look_around) for number in range(1, 5)]
    share, rest = divmod(left - crowd, len(team))
    workers = [Worker(name, act, share + (place < rest), ids) for place, (name, act) in enumerate(team)]
    threads = [threading.Thread(target=work, args=(one, seconds), name=one.name) for one in workers[:3]]
    buyers = Worker("sale", snap_up, crowd, ids)
    threads.append(threading.Thread(target=sale, args=(buyers, seconds), name="sale"))
    for thread in threads:
        thread.start()
    asyncio.run(website(workers[3:], seconds))
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
