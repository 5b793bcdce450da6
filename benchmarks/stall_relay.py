"""
What stands between stall.py's programs and the server: a process of its own, which takes no GIL from who is measured.

    python benchmarks/stall_relay.py PORT SERVER_PORT

Words on its standard input say what it is from then on; each is answered by a line. `fast`: as good as not there.
`slow`: 4 MB a second to the server, and each answer 50 ms late. `away`: refuses, and cuts what is open. It is frozen by
SIGSTOP: connections stay open, the kernel takes what its buffers hold, nothing comes back.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

RATE = 4_000_000  # bytes a second, `slow`
LATE = 0.05  # seconds, `slow`
CHUNK = 65_536  # bytes


class Relay:
    def __init__(self, port, server_port):
        self.port, self.server_port = port, server_port
        self.quick = threading.Event()  # set: nobody waits
        self.quick.set()
        self.open, self.listener = [], None

    def fast(self):
        self.quick.set()
        if self.listener is None:
            self.listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def slow(self):
        self.quick.clear()

    def away(self):
        listener, self.listener = self.listener, None
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(), which close() would not
        listener.close()
        while self.open:
            hang_up(self.open.pop())

    def accept(self, listener):
        with contextlib.suppress(OSError):  # shut down
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server_port))
                self.open += [client, server]
                for side in (client, server):
                    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, target, wait in ((client, server, 1 / RATE), (server, client, None)):
                    threading.Thread(target=self.pump, args=(source, target, wait), daemon=True).start()

    def pump(self, source, target, seconds_a_byte):
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if not self.quick.is_set():
                    self.quick.wait(LATE if seconds_a_byte is None else len(data) * seconds_a_byte)
                target.sendall(data)
        for side in (source, target):
            hang_up(side)


def hang_up(side):
    with contextlib.suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)


def main():
    relay = Relay(*map(int, sys.argv[1:]))
    for line in sys.stdin:
        getattr(relay, line.strip())()
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main()
