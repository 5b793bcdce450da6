"""
The screenshots of these pages: real commands on a real terminal over a shop that runs meanwhile, as SVG.

    python docs/screens.py

It writes _static/screens/NAME.svg, which hold text and no scripts. Needs the extra `demo`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pty
import random
import re
import shlex
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

import logsluice
from logsluice import context, span, trace
from logsluice.contrib import ApiRequest, MessageEvent
from logsluice.devserver import EmbeddedPostgres

HERE = Path(__file__).parent
COLUMNS, LINES = 118, 34  # of the terminal: what a page shows without scrolling sideways
SECONDS = 20  # that the shop has run before the first picture: enough for rates and percentiles
PAUSE = 0.004  # seconds between two orders at most
SCREENS = {
    "tail": "tail -n 16",
    "stats": "stats",
    "top": "top --once",
    "doctor": "doctor",
    "trace": "trace {trace}",
}
# Without the fonts that it would have a browser load from elsewhere.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
log = logging.getLogger("shop.orders")
GOODS = ("croissant", "baguette", "tarte tatin", "éclair")


def main() -> None:
    """Write all of them."""
    with EmbeddedPostgres() as server:
        handler = logsluice.PostgresHandler(dsn=server.dsn(), service="shop", service_version="2.4.1")
        logging.getLogger("shop").addHandler(handler)
        logging.getLogger("shop").setLevel("DEBUG")
        ended, traces = threading.Event(), []
        shop = threading.Thread(target=run, args=(ended, traces))
        shop.start()
        ended.wait(SECONDS)
        handler.flush(SECONDS)
        try:
            for name, command in SCREENS.items():
                shown = f"logsluice {command.format(trace=traces[0])}"
                picture(name, shown, printed(shown, server.dsn()))
        finally:
            ended.set()
            shop.join()
            handler.close()


def run(ended: threading.Event, traces: list[str]) -> None:
    """Take orders until it is told to end; `traces` gets the ids of those that went wrong on the way."""
    chance = random.Random(7)  # the same shop each time
    number = 0
    while not ended.wait(chance.random() * PAUSE):
        number += 1
        with trace("POST /orders", order=number) as order, context.bound(user_id=f"u-{number % 23}"):
            log.debug("basket of %d goods", 1 + number % 4)
            failed = take(chance, number)
        if failed and len(traces) < 1:
            traces.append(order.trace_id)


def take(chance: random.Random, number: int) -> bool:
    """Serve one order; whether its payment failed."""
    what, failed = GOODS[number % len(GOODS)], number % 97 == 60
    log.info("order %d received: %s", number, what, extra={"amount": round(2.4 * (1 + number % 9), 2)})
    try:
        with span("charge"):
            charge(number, failed)
    except ConnectionError:
        log.exception("order %d: payment failed", number)
    with span("mail"):
        mail = {"job_id": f"m-{number}", "channel": "email", "template_name": "receipt"}
        for status in ("queued", "processing"):
            logging.getLogger("shop.mail").info(MessageEvent(**mail, status=status))
        refused = number % 61 == 0
        last = {"status": "failed", "error_message": "550 no such mailbox"} if refused else {"status": "sent"}
        logging.getLogger("shop.mail").info(MessageEvent(**mail, **last))
        if refused:
            log.warning("order %d: the mail is refused", number)
    took = chance.lognormvariate(3.4, 0.6)
    logging.getLogger("shop.http").info(
        ApiRequest(method="POST", path="/orders", route="/orders", status=502 if failed else 201, duration_ms=took)
    )
    return failed


def charge(number: int, failed: bool) -> None:
    """Ask the bank."""
    if failed:
        raise ConnectionError(f"card network unreachable for order {number}")
    log.info("card accepted", extra={"bank": "north"})


def printed(command: str, dsn: str) -> str:
    """Run a command on a terminal of its own and return what it wrote."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    program = [sys.executable, "-m", *shlex.split(command)]
    env = {**os.environ, "LOGSLUICE_DSN": dsn, "TERM": "xterm-256color", "LOGSLUICE_PAGER": ""}
    with subprocess.Popen(program, stdin=its, stdout=its, stderr=its, env=env):
        os.close(its)
        found = bytearray()
        while data := read(ours):
            found += data
    os.close(ours)
    return found.decode().replace("\r\n", "\n").replace(str(HERE / "screens.py"), "/srv/shop/orders.py")


def read(terminal: int) -> bytes:
    """Return what was written; nothing at its end, which Linux calls EIO."""
    try:
        return os.read(terminal, 65_536)
    except OSError as error:
        if error.errno == errno.EIO:
            return b""
        raise


def picture(name: str, command: str, output: str) -> None:
    """Write one SVG."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115, PTH123
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    console.print(Text.from_ansi(re.sub(r"\x1b\[\?[0-9]+[hl]", "", output).rstrip()))
    (HERE / "_static" / "screens" / f"{name}.svg").write_text(
        console.export_svg(title="logsluice", unique_id=name, code_format=FORMAT), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
