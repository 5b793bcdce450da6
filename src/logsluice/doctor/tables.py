"""The tables, for `logsluice doctor`: partitions for today and tomorrow, dead letters, who wrote lately."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import psycopg

from logsluice import partitions
from logsluice.columns import quote
from logsluice.doctor import FAIL, OK, WARN, Finding
from logsluice.doctor.connect import Database, reason
from logsluice.errors import LogsluiceError

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTED = 10_000  # dead letters: more are not counted, that takes too long
# Of a stream that had records in hand when it last wrote. Five minutes: a working listener writes every `linger`. A
# day: what is older was noticed, or never will be.
SILENT = "updated < now() - interval '5 minutes' AND updated > now() - interval '1 day' AND retired IS NULL"


def check_partitions(database: Database, width: str | None, *, make: bool = True) -> tuple[list[Finding], str]:
    """Return what is to say of today's and tomorrow's partitions, made if need be and `make`, and their width."""
    conn, name = database.conn, database.settings.schema
    now = datetime.fromtimestamp(database.now(), timezone.utc)
    try:
        parts = partitions.listed(conn, name)
    except LogsluiceError:
        return [Finding(OK, "partition", f"{database.target.name} is one plain table and needs none")], "none"
    width = width or partitions.width_of(parts)
    others = list(_default(database, parts))
    made: list[str] = []
    refused: psycopg.Error | None = None
    if make and _lacking(parts, now):
        try:
            made = partitions.ensure(conn, name, width, now)
            parts = partitions.listed(conn, name)
        except psycopg.Error as error:
            refused = error
    lacking = _lacking(parts, now)
    if lacking and not make:
        what = f"there is none for {lacking}; a handler makes it when it connects, if its role may"
        return [Finding(WARN, "partition", what, "logsluice maintain --every 6h makes them ahead"), *others], width
    if refused is not None:
        what = f"there is none for {lacking}, and none can be made: {reason(refused)}"
        return [*others, Finding(FAIL, "partition", what, _unblock(database, refused))], width
    if lacking:
        what = f"there is none for {lacking}, and none is made (partition={width!r})"
        step = f'take "partition" out of the handler\'s options, or set it to {partitions.width_of(parts)!r}'
        return [*others, Finding(FAIL, "partition", what, step)], width
    done = f" ({len(made)} made now)" if made else ""
    last = max((part.upper for part in parts if part.upper and part.state == "attached"), default=None)
    ahead = f", ahead for {span((last - now).total_seconds())}" if last else ""
    what = f"today and tomorrow (UTC) have theirs{done}; {len(parts)} in all{ahead}"
    return [*others, Finding(OK, "partition", what)], width


def _lacking(parts: list[partitions.Partition], now: datetime) -> str:
    """Return the days among today and tomorrow whose rows no partition takes; empty when there is none."""
    days = {"today": now, "tomorrow": now + timedelta(days=1)}
    return " and ".join(
        day
        for day, moment in days.items()
        if not any(
            part.state == "attached"
            and (part.lower is None or part.lower <= moment)
            and (part.upper is None or moment < part.upper)
            for part in parts
        )
    )


def _default(database: Database, parts: list[partitions.Partition]) -> Iterator[Finding]:
    """Say that somebody made a DEFAULT partition, and how to be rid of it."""
    for part in (one for one in parts if one.lower is None and one.upper is None and one.state == "attached"):
        holds = "what is in it is not known"
        if database.may("SELECT", part.full_name):
            holds = "it is empty"
            if database.one(f"SELECT true FROM {part.full_name} LIMIT 1"):
                holds = "it holds rows, and no partition can be made for their days"
        logs = database.table("logs")
        what = f"{part.full_name} is a DEFAULT partition: {holds}; with one, retention cannot detach any"
        make = f"SELECT {database.table('make_partitions')}(min(ts), max(ts)) FROM {part.full_name} HAVING count(*) > 0"
        # With a limit: DETACH waits for readers, and writers wait behind it.
        step = (
            f"BEGIN; SET LOCAL lock_timeout = '2s'; ALTER TABLE {logs} DETACH PARTITION {part.full_name}; {make}; "
            f"INSERT INTO {logs} SELECT * FROM {part.full_name}; DROP TABLE {part.full_name}; COMMIT;"
        )
        yield Finding(WARN, "partition", what, step)


def _unblock(database: Database, error: psycopg.Error) -> str:
    logs = database.table("logs")
    if error.sqlstate == "55P03":
        locks = f"SELECT pid FROM pg_locks WHERE granted AND relation = '{logs}'::regclass"
        return f"end what locks it: SELECT pid, state, query FROM pg_stat_activity WHERE pid IN ({locks});"
    if error.sqlstate == "42P01":  # make_partitions makes them for its own owner's table only
        owner = database.one("SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = to_regclass(%s)", logs)
        function = database.table("make_partitions(timestamptz, timestamptz, text, text)")
        return f"ALTER FUNCTION {function} OWNER TO {quote(owner)};"
    if error.sqlstate == "22023":
        return "mend the clock first"
    return error.diag.message_hint or f"run logsluice migrate as the owner of {logs}: it makes them or says more"


def dead_letters(database: Database) -> Iterator[Finding]:
    """Say how many wait, and why the latest is one."""
    table = database.table("dead_letter")
    if not database.may("SELECT", table):
        yield Finding(OK, "dead", f"whether dead letters wait is not known: the role may not read {table}")
        return
    waiting = f"FROM {table} WHERE replayed_at IS NULL"
    count = database.one(f"SELECT count(*) FROM (SELECT {waiting} LIMIT {COUNTED + 1}) AS counted")
    if not count:
        yield Finding(OK, "dead", "no dead letter waits")
        return
    latest = f"""
        SELECT to_char(at, 'YYYY-MM-DD HH24:MI TZ'), target, sqlstate, error,
               (SELECT extract(epoch FROM now() - min(at)) {waiting}) {waiting} ORDER BY at DESC LIMIT 1
    """
    at, target, sqlstate, error, oldest = database.conn.execute(latest).fetchone() or ("", "", "", "", 0)
    number = _many(count, "dead letter") if count <= COUNTED else f"more than {COUNTED} dead letters"
    what = f"{number} wait, the oldest for {span(float(oldest))}, the latest of {at}, for {target}: {sqlstate} {error}"
    step = (
        f"logsluice dead list, then edit or replay: or SELECT at, target, sqlstate, error {waiting} ORDER BY at DESC;"
    )
    yield Finding(WARN, "dead", what, step)


def streams(database: Database) -> Iterator[Finding]:
    """Say who has written here lately, and who fell silent with records in hand."""
    table, held = database.table("stream"), "offered - dropped - stored - dead"
    row = database.conn.execute(
        f"SELECT service, host, pid, {held}, count(*) OVER () FROM {table} WHERE {SILENT} AND {held} > 0 "
        "ORDER BY updated DESC LIMIT 1"
    ).fetchone()
    if row is not None:
        service, host, pid, waiting, count = row
        who = f"{service or 'a process'} (pid {pid} on {host})"
        what = f"{_many(count, 'stream')} fell silent with records in hand, the last {who} with {waiting}"
        step = "if it still runs, look for lines that begin with logsluice[ on its stderr; if not, they went with it"
        yield Finding(WARN, "streams", what, step)
        return
    query = f"SELECT count(*), extract(epoch FROM now() - max(updated)) FROM {table}"
    count, ago = database.conn.execute(f"{query} WHERE updated > now() - interval '1 day'").fetchone() or (0, 0)
    lately = f"{_many(count, 'stream')} (one a process) wrote here within a day, the last {span(float(ago or 0))} ago"
    yield Finding(OK, "streams", lately if count else "no program wrote here within a day")


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def span(seconds: float) -> str:
    """Return a duration as people say it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
