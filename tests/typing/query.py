"""Reading records as a user writes it; mypy checks this file under `strict`, nothing runs it."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from uuid import uuid4

from logsluice.query import Count, Key, Query, Record

if TYPE_CHECKING:
    import psycopg
    from psycopg_pool import ConnectionPool


def pages(pool: ConnectionPool[psycopg.Connection[tuple[object, ...]]]) -> list[Record]:
    query = Query(pool, zone=timezone.utc, statement_timeout=None)
    page = query.logs("level>=warning", since=timedelta(hours=1), until=datetime.now(timezone.utc))
    key: Key = page[0].key
    query.logs(before=page[-1], after=key, newest_first=False)
    query.logs("", "activity")  # type: ignore[call-arg]  # the table by keyword
    query.job(7)  # type: ignore[arg-type]  # a UUID or its text
    return [*query.job(uuid4()), *query.jetstream(), *query.logs(after=page[0].id)]


def streamed() -> Count:
    with Query("dbname=logs") as query:
        with closing(query.iterate("amount>10")) as found:
            total = sum(record.seq for record in found)
        for record in query.follow():
            record.level = total  # type: ignore[misc]  # a record is what was stored
        return query.count(capped=10)
