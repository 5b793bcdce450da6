"""
What wears out while all goes well, for `logsluice doctor`: files of `sql/` that are not applied, records that are no
rows, indexes that cost more than they give.

Only looked at, never changed; nothing here keeps a record from being stored, so nothing is a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logsluice import migrations, schema
from logsluice.columns import quote
from logsluice.doctor import OK, WARN, Finding
from logsluice.doctor.tables import span
from logsluice.journals import sized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logsluice.doctor.connect import Database

# Rows that are counted: so many are read in about a second, from partitions that are in memory anyhow.
COUNTED = 1_000_000
# Records older than their stream by more than this waited in a journal for days, and their rows are not looked for.
OLDER = "2 days"
STREAMS = 20  # whose rows are counted: the last that wrote
# Bytes of an index from which on it is worth a line: what smaller ones cost nobody feels.
MUCH = 64 << 20
TUNE = "docs/howto/tune.md says what each costs"
DROP = "SET lock_timeout = '2s'; DROP INDEX"  # it waits for readers, and writers wait behind it


def unapplied(database: Database) -> Iterator[Finding]:
    """Name the files that are not applied, and those that were changed since."""
    name = database.settings.schema
    steps = migrations.plan(database.conn, name)
    pending = [step.file.name for step in steps if step.state == migrations.PENDING]
    if pending:
        what = f"{', '.join(pending)} not applied: records are stored, what needs it does not work yet"
        refusal = migrations.refusal(database.conn, name)
        step = schema.migration(name) + (f", as somebody else: {refusal}" if refusal else "")
        yield Finding(WARN, "schema", what, f"{step} (--plan shows what it does)")
    if wrong := migrations.changed(steps, name):
        what, _, step = wrong.partition(". ")
        yield Finding(WARN, "schema", what, step)


# --- gaps -------------------------------------------------------------------------------------------------------------


def gaps(database: Database) -> Iterator[Finding]:
    """
    Say which records of the last day's streams are no rows: dropped ones, and ones that were rows.

    A stream counts what it stored where it keeps its watermark, in the same transaction. Fewer rows than that are there
    only when somebody deleted some, or brought one table back from a backup and not the other.
    """
    found = list(_dropped(database))
    lost, how = _missing(database)
    yield from found
    if lost:
        stream, stored, rows = lost[0]
        what = (
            f"{len(lost)} of the last streams have fewer rows in logs than their watermarks say: {stored - rows:,} of "
            f"{stored:,} of stream {stream} are gone"
        )
        step = f"ask who deleted rows (forget, DELETE, a restored backup); SELECT * FROM {database.table('stream')}"
        yield Finding(WARN, "gaps", what, f"{step} WHERE stream = {stream}; says whose they were")
    elif not found:
        yield Finding(OK, "gaps", f"no stream of the last day dropped a record{how}")


def _dropped(database: Database) -> Iterator[Finding]:
    row = database.conn.execute(
        "SELECT service, host, pid, dropped, count(*) OVER (), (sum(dropped) OVER ())::bigint "
        f"FROM {database.table('stream')} WHERE dropped > 0 AND updated > now() - interval '1 day' "
        "ORDER BY dropped DESC LIMIT 1"
    ).fetchone()
    if row is not None:
        service, host, pid, most, count, total = row
        who = f"{service or 'a process'} (pid {pid} on {host}) with {most:,}"
        what = f"{count} of the last day's streams dropped {total:,} records, most of them {who}"
        step = (
            "rows of logger logsluice say when and why: logsluice query logger=logsluice since=1d; "
            "raise capacity_bytes or, with a journal, journal_bytes. Without such rows they were given up "
            "(retry_limit), or fallback= has them"
        )
        yield Finding(WARN, "gaps", what, step)


def _missing(database: Database) -> tuple[list[Any], str]:
    """Return (stream, stored, rows) of streams that lack rows, and what to add where there are none."""
    conn, logs = database.conn, database.table("logs")
    if not database.may("SELECT", logs):
        return [], f"; whether rows are gone is not known: the role may not read {logs}"
    recent = f"started > now() - interval '1 day' AND stored BETWEEN 1 AND {COUNTED}"
    oldest = database.one(f"SELECT min(started) - interval '{OLDER}' FROM {database.table('stream')} WHERE {recent}")
    if oldest is None:
        return [], ""
    plan = conn.execute(f"EXPLAIN (FORMAT JSON) SELECT FROM {logs} WHERE ts >= %s", [oldest]).fetchone()
    expected = 0 if plan is None else int(plan[0][0]["Plan"]["Plan Rows"])
    if expected > COUNTED:
        return [], f"; whether rows are gone was not counted: about {expected:,} would have to be read"
    # Rows of our own count downwards and are no records. A stream without any row here is one of another table.
    query = f"""
        SELECT s.stream, s.stored, count(*) FROM (
            SELECT stream, stored FROM {database.table("stream")} WHERE {recent} ORDER BY updated DESC LIMIT {STREAMS}
        ) AS s JOIN {logs} l ON l.stream = s.stream AND l.seq >= 0 AND l.ts >= %s
         GROUP BY s.stream, s.stored HAVING count(*) < s.stored ORDER BY s.stored - count(*) DESC
    """
    return conn.execute(query, [oldest]).fetchall(), ", and the rows of its last streams are there"


# --- indexes ----------------------------------------------------------------------------------------------------------

# One row an index, with all its parts on partitions.
_INDEXES = """
    WITH family AS (
        SELECT t.oid, coalesce(h.inhparent, t.oid) AS root FROM pg_class t
          LEFT JOIN pg_inherits h ON h.inhrelid = t.oid
         WHERE t.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND t.relkind IN ('r', 'p')
    ), one AS (
        SELECT f.root, coalesce(h.inhparent, x.indexrelid) AS index, x.indexrelid, x.indisunique, x.indisvalid
          FROM pg_index x JOIN family f ON f.oid = x.indrelid
          LEFT JOIN pg_inherits h ON h.inhrelid = x.indexrelid
    )
    SELECT (SELECT relname::text FROM pg_class WHERE oid = root),
           (SELECT relname::text FROM pg_class WHERE oid = index),
           sum(pg_relation_size(indexrelid))::bigint, sum(coalesce(pg_stat_get_numscans(indexrelid), 0))::bigint,
           bool_or(indisunique), bool_and(indisvalid),
           (SELECT sum(pg_table_size(oid))::bigint FROM family WHERE family.root = one.root)
      FROM one GROUP BY root, index ORDER BY 3 DESC, 2
"""


def indexes(database: Database) -> Iterator[Finding]:
    """Say what the indexes take beside the rows, which ones no query used, and which do not work."""
    found = database.conn.execute(_INDEXES, [database.settings.schema]).fetchall()
    since = database.one(
        "SELECT extract(epoch FROM now() - stats_reset) FROM pg_stat_database WHERE datname = current_database()"
    )
    told = False
    for table, index, size, scans, unique, valid, _ in found:
        name = database.table(quote(index))
        if not valid:
            told = True
            what = f"index {name} on {table} is not valid: each stored row pays for it, and no query can use it"
            yield Finding(WARN, "indexes", what, f"{DROP} {name}; and make it again if you want it")
        elif size >= MUCH and not scans and not unique and index != f"{table}_ts":
            told = True
            ago = f" in {span(float(since))}" if since is not None else ""
            what = f"index {name} ({sized(size)}) was used by no query{ago}, and each stored row pays for it"
            yield Finding(WARN, "indexes", what, f"{DROP} {name}; if nobody will look for that: {TUNE}")
    for table in dict.fromkeys(row[0] for row in found):
        mine = [row for row in found if row[0] == table]
        taken, rows = sum(row[2] for row in mine), mine[0][6]
        if taken >= MUCH and taken > rows:
            told = True
            what = f"indexes of {table} take {sized(taken)}, its rows {sized(rows)}; the largest is {mine[0][1]}"
            step = f"{TUNE}; after many rows were deleted: REINDEX TABLE CONCURRENTLY {database.table(quote(table))};"
            yield Finding(WARN, "indexes", f"{what} with {sized(mine[0][2])}", step)
    if not told and found:
        table, index, size, *_, rows = found[0]
        what = f"the largest, {index}, takes {sized(size)} beside {sized(rows)} of rows; none is large and unused"
        yield Finding(OK, "indexes", what)
