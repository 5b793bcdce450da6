"""The handler as a user writes it; mypy checks this file under `strict`, nothing runs it."""

from __future__ import annotations

import logging
import logging.config

import logsluice
from logsluice import ConfigError, LogsluiceError, PostgresHandler, Stats


def configure() -> PostgresHandler:
    handler = PostgresHandler(
        dsn="postgresql://localhost/logs",
        level=logging.INFO,
        service="shop",
        environment="test",
        capacity_bytes=64 * 1024 * 1024,
        when_full="drop",
        redact={"keys": ["session_id"], "patterns": [r"\d+"]},
        columns={"session_id": "extra.session_id", "flag": ("extra.flag", False)},
        table="public.orders",
    )
    handler.setLevel("INFO")
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: record.levelno > logging.DEBUG)
    logging.getLogger().addHandler(handler)
    return handler


def from_a_callable() -> logging.Handler:
    return PostgresHandler(dsn=lambda: "dbname=logs", level="WARNING")


def from_a_dict() -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {"db": {"class": "logsluice.PostgresHandler", "dsn_env": "LOG_DSN"}},
            "root": {"handlers": ["db"]},
        }
    )


def look(handler: PostgresHandler) -> tuple[int, float]:
    stats: Stats = handler.stats()
    numbers: list[int] = [
        stats.offered,
        stats.accepted,
        stats.stored,
        stats.dead,
        stats.dropped,
        stats.abandoned,
        stats.waiting,
        stats.waiting_bytes,
        stats.capacity_bytes,
        stats.sanitized,
        stats.own_noise,
        stats.markers,
        stats.batches,
        stats.retries,
    ]
    full: bool = stats.full
    breaker: str = stats.breaker
    last: float | None = stats.last_stored_at
    by: dict[tuple[str, int], int] = stats.dropped_by
    by = stats.suppressed_by
    given_up: dict[str, int] = stats.abandoned_by
    oldest: float = stats.oldest_waiting_seconds
    flushed: bool = handler.flush(timeout=1.5)
    handler.flush()
    pressure: float = handler.pressure
    print(full, breaker, last, by, given_up, flushed, oldest, stats.histograms["batch_bytes"], stats.recent["failed"])
    return sum(numbers), pressure


async def wait(handler: PostgresHandler) -> bool:
    if await handler.wait_ready(timeout=0.5):
        return True
    return await handler.wait_ready()


def wrong() -> str | None:
    try:
        PostgresHandler(dsn="", wrong=1)
    except ConfigError as error:
        return str(error)
    except LogsluiceError:
        return None
    return logsluice.PostgresHandler(dsn="").name
