"""The console as a user writes it; mypy checks this file under `strict`, nothing runs it."""

from __future__ import annotations

import logging
import sys

from logsluice import ConsoleHandler
from logsluice.console import ConsoleFormatter


def configure() -> logging.Handler:
    handler = ConsoleHandler(
        level="INFO", stream="stdout", colors="never", time_format=None, utc=True, extras=False, redact=["pin"]
    )
    handler.setFormatter(ConsoleFormatter(colors="always", time_format="%H:%M"))
    handler.setStream(sys.stdout)
    logging.getLogger().addHandler(handler)
    return handler
