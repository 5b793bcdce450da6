"""A proxy that lets only so many bytes a second of the clients through: a sink that is slow, and neither gone nor stuck."""

from __future__ import annotations

import threading

from support.proxy import Proxy


class Throttle(Proxy):
    """
    `slow(rate)`: from now on each message waits for its share of so many bytes a second. `lift()`: no longer.

    `slowed`: bytes that had to wait.
    """

    def __init__(self, dsn):
        super().__init__(dsn)
        self.slowed = 0
        self._rate = 0
        self._lifted = threading.Event()
        self._turn = threading.Lock()  # one rate for all connections together

    def slow(self, rate):
        self._rate = rate
        self._lifted.clear()

    def lift(self):
        self._rate = 0
        self._lifted.set()

    def allow(self, size):
        with self._turn:
            if self._rate:
                self.count("slowed", size)
                self._lifted.wait(size / self._rate)
        return super().allow(size)

    def close(self):
        self.lift()  # a thread that waits for its turn would keep us
        super().close()
