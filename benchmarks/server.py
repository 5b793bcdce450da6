"""
What the server pays for a stored row: each index, the partition scheme, the commit, the width of the row.

    python benchmarks/server.py [--rounds 5] [--rows 16000] [--quick] [--only GROUP] [--json FILE] [--page]

Frames made by `Intake.prepare` are sent with plain psycopg in the sink's transaction, so the server alone is measured.
Each case has a schema of its own and is loaded in three equal parts: one that fills caches and tables; one that is
`steady`, between two checkpoints; one right after a CHECKPOINT, where the first change of a page writes the whole page
to the WAL (full_page_writes). Rows/s are ratios to the shipped schema, which is run again after every eighth case;
cases by turns, order drawn, medians. WAL and disk bytes are counted, so the machine's noise does not touch them:
autovacuum is off, and what GIN and BRIN put off until it runs is done, and counted, within each part.
`--page` rewrites docs/howto/tune.md's tables from the JSON (by default benchmarks/results/server.json), runs nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import json
import logging
import random
import re
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import common
import psycopg
from common import row
from tables import between, machine, number

from logsluice import PostgresHandler, context, schema
from logsluice.columns import LOG_COLUMNS

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "tune.md"
BATCH = 2 * 1024 * 1024  # bytes: the handler's own batch_bytes
PART = 5 * 1024 * 1024  # bytes of one part at most: a case of 8 KB messages takes no longer than one of short ones
STREAM = 1  # any: the sink's watermark row
EVERY = 8  # cases between two runs of the shipped schema: a machine that slows down slows both
DAY = dt.datetime.now(dt.timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
PARTS = ("fill", "steady", "checkpointed")
SECONDS_A_DAY = 86_400
POOL = 499  # a prime: texts and what else repeats do not go in step
TRACE = 4  # records of one request have one trace id


@dataclass(frozen=True)
class Case:
    """One variant. `ddl`: after the shipped files, `{s}` is the schema; `leaf`: of each partition, `{p}`."""

    group: str
    name: str
    ddl: str = ""
    leaf: str = ""
    partition: str = "day"
    days: int = 1  # partitions present, the last is that of the rows
    settings: dict[str, str] = field(default_factory=dict)  # of the session
    rows: str = "usual"  # kind of rows: `_record`
    batch: int | None = None  # rows in a transaction; None: BATCH bytes
    most: int | None = None  # rows of a part at most
    questions: tuple[str, ...] = ()  # what the index is for: pages read with it and without


SHIPPED = Case("indexes", "as shipped")
TS, LEVEL, TRACE_ID = ("DROP INDEX {s}.logs_" + f"{name};" for name in ("ts", "level_ts", "trace_id"))
NEWEST = "ORDER BY ts DESC LIMIT 100"
A_MINUTE = "ts >= '{day}'::timestamptz + '12:00' AND ts < '{day}'::timestamptz + '12:01'"
AN_HOUR = "ts >= '{day}'::timestamptz + '12:00' AND ts < '{day}'::timestamptz + '13:00'"
LEVELS_ASKED = (
    "level >= 40 ORDER BY ts DESC LIMIT 20",
    "level >= 50 ORDER BY ts DESC LIMIT 20",
    f"level >= 40 AND {AN_HOUR}",
)
ADDED = {
    "(user_id, ts) WHERE user_id IS NOT NULL": "user_id = '{user_id}' ORDER BY ts DESC LIMIT 100",
    "(correlation_id) WHERE correlation_id IS NOT NULL": "correlation_id = '{correlation_id}'",
    "(logger, ts)": "logger = 'shop.rare' ORDER BY ts DESC LIMIT 20",
    "(stream, seq)": "stream = {stream} AND seq = {seq}",
    "GIN (attributes jsonb_path_ops)": 'attributes @> \'{{"request": "{request}"}}\'',
    "GIN (attributes)": 'attributes @> \'{{"request": "{request}"}}\'',
    "GIN (to_tsvector('simple', message))": "to_tsvector('simple', message) @@ plainto_tsquery('simple', '{number}')",
    "GIN (message gin_trgm_ops)": "message LIKE '%{number}%'",
}


def _cases(compressions, toasts):
    def instead(name, old, ddl, questions):
        return Case("indexes", f"{name} in the place of {old}", ddl, questions=questions)

    yield SHIPPED
    yield Case("indexes", "as shipped, rows without trace ids", rows="untraced")
    yield Case("indexes", "- (ts)", TS, questions=(NEWEST, A_MINUTE))
    yield Case("indexes", "- (level, ts) WHERE level >= 30", LEVEL, questions=LEVELS_ASKED)
    yield Case("indexes", "- (trace_id) WHERE trace_id IS NOT NULL", TRACE_ID, questions=("trace_id = '{trace_id}'",))
    yield Case("indexes", "none", TS + LEVEL + TRACE_ID)
    yield instead("BRIN (ts)", "(ts)", TS + "CREATE INDEX ON {s}.logs USING brin (ts);", (NEWEST, A_MINUTE))
    yield instead("(ts) WHERE level >= 30", "(level, ts)",
                  LEVEL + "CREATE INDEX ON {s}.logs (ts) WHERE level >= 30;", LEVELS_ASKED)  # fmt: skip
    for name, question in ADDED.items():
        ddl = name if name[0] == "(" else f"USING {name}"
        yield Case("indexes", f"+ {name}", f"CREATE INDEX ON {{s}}.logs {ddl};", questions=(question,))
    for width in ("none", "hour", "week", "month"):
        yield Case("partitions", f'partition="{width}"', partition=width)
    for days in (30, 400):
        yield Case("partitions", f"by day, {days} present", days=days)
    for batch, most in ((1, 300), (100, None), (1000, None)):
        for commit in ("on", "off"):
            yield Case("commits", f"{batch:,} {'row' if batch == 1 else 'rows'}, synchronous_commit={commit}",
                       batch=batch, most=most, settings={"synchronous_commit": commit})  # fmt: skip
    yield Case("commits", "8,000 rows, synchronous_commit=on", batch=8000)
    for commit in ("off", "local"):
        yield Case("commits", f"as shipped, synchronous_commit={commit}", settings={"synchronous_commit": commit})
    for method in compressions:
        yield Case("WAL", f"wal_compression={method}", settings={"wal_compression": method})
    yield Case("WAL", "UNLOGGED", leaf="ALTER TABLE {p} SET UNLOGGED;")
    yield Case("rows", "fillfactor=90", leaf="ALTER TABLE {p} SET (fillfactor = 90);")
    yield Case("rows", "the three ids with extra=, not bound", rows="ids")
    for size in (50, 200, 1000):
        yield Case("rows", f"message of {size:,} bytes", rows=f"message {size}")
    for name, what in (("message of 8,000 bytes of JSON", "message 8000"), ("exc_text of 3,000 bytes", "traceback")):
        for method in toasts:
            settings = {"default_toast_compression": method}
            yield Case("rows", f"{name}, {method}", rows=what, settings=settings)
    for count in (0, 10):
        yield Case("rows", f"{count} attributes", rows=f"attributes {count}")


# --- the rows ----------------------------------------------------------------------------------------------------

_draw = random.Random(17)
WORDS = ["".join(_draw.choices("etaoinshrdlucmfw", k=_draw.randint(2, 10))) for _ in range(2000)]
LEVELS, WEIGHTS = (10, 20, 30, 40, 50), (20, 70, 8, 1.9, 0.1)  # 10 % in the index on levels


@functools.cache
def _texts(size):
    """Some hundred texts: drawing one a record would take longer than sending it."""
    return [_text(size) for _ in range(POOL)]


def _text(size):
    """That many characters: short ones are words, long ones JSON, as programs log it."""
    if size > 1000:
        return json.dumps([_item() for _ in range(size // 60)])[:size]
    return " ".join(_draw.choices(WORDS, k=size // 3 + 1))[:size]


def _item():
    return {
        "sku": _draw.choice(WORDS),
        "count": _draw.randint(1, 9),
        "price": _draw.randint(1, 99999),
        "in_stock": True,
    }


@functools.cache
def _tracebacks():
    return [_traceback(n) for n in range(POOL)]


def _traceback(n):
    frames = [
        f'  File "/srv/shop/{_draw.choice(WORDS)}/{_draw.choice(WORDS)}.py", line {_draw.randint(1, 900)}, in '
        f"{_draw.choice(WORDS)}\n    {_draw.choice(WORDS)} = self.{_draw.choice(WORDS)}({_draw.choice(WORDS)}, {n})"
        for _ in range(27)
    ]
    return "\n".join(["Traceback (most recent call last):", *frames, f"ValueError: order {n}"])


def _record(n, of, kind):
    """Record n of the day, which has `of`: a message of 60 bytes, two attributes."""
    what, _, size = kind.partition(" ")
    text = (
        _texts(int(size))[n % POOL]
        if what == "message"
        else f"order {n} of {_texts(25)[n % POOL]} paid after {n % 997} ms, {n % 3} tries"
    )
    (level,) = _draw.choices(LEVELS, WEIGHTS)
    name = "shop.rare" if n % 1000 == 17 else f"shop.{WORDS[n % 40]}"
    record = logging.LogRecord(name, level, "/srv/shop/orders.py", 10 + n % 40, text, None, None, "pay")
    record.created = DAY.timestamp() + n * SECONDS_A_DAY / of
    if what == "traceback":
        record.exc_text = _tracebacks()[n % POOL]
    extras = {"request": f"{n // TRACE:08x}", "ms": n % 997}
    if what == "attributes":
        extras = {f"attribute_{i}": (n, _texts(12)[(n + i) % POOL], True)[(n + i) % 3] for i in range(int(size))}
    if what == "ids":
        extras |= _ids(n // TRACE, what)
    record.__dict__.update(extras)
    return record


def _ids(request, kind):
    """What the records of one request share."""
    draw = random.Random(request)
    ids = {"user_id": f"u{draw.randint(1, 5000)}"}
    if kind != "untraced":
        ids |= {"trace_id": f"{draw.getrandbits(128):032x}", "correlation_id": f"{draw.getrandbits(64):016x}"}
    return ids


def parts_of(dsn, kind, rows):
    """Return PARTS lists of frames as the project encodes them."""
    handler = PostgresHandler(dsn=dsn, service="shop")
    with common.no_listener():
        intake = handler._open()[0]

    def frames(count):
        for first in range(0, count, TRACE):
            with context.bound(**({} if kind == "ids" else _ids(first // TRACE, kind))):
                for n in range(first, min(first + TRACE, count)):
                    yield intake.prepare(_record(n, count, kind))

    size = len(next(frames(1)))
    rows = max(1, min(rows, PART // size))
    made = list(frames(rows * len(PARTS)))
    handler.close()
    assert all(made)
    return [made[n * rows : (n + 1) * rows] for n in range(len(PARTS))]


def batches(frames, rows):
    """Cut as the listener does, by bytes; or by rows."""
    if rows:
        return [b"".join(frames[at : at + rows]) for at in range(0, len(frames), rows)]
    made, waiting, size = [], [], 0
    for frame in frames:
        if size + len(frame) > BATCH:
            made.append(b"".join(waiting))
            waiting, size = [], 0
        waiting.append(frame)
        size += len(frame)
    return [*made, b"".join(waiting)]


# --- one case ----------------------------------------------------------------------------------------------------


def leaves(conn, name):
    """Names of the tables that hold the rows."""
    found = conn.execute("SELECT relid::regclass::text FROM pg_partition_tree(%s) WHERE isleaf", [f"{name}.logs"])
    return [text for (text,) in found] or [f"{name}.logs"]


def make(conn, name, case):
    """Make the case's schema, table and partitions."""
    schema.migrate(conn, name, case.partition)
    conn.execute(case.ddl.format(s=name))
    if case.partition != "none":
        starts, ends = DAY - dt.timedelta(days=case.days - 1), DAY + dt.timedelta(days=1, microseconds=-1)
        conn.execute(f"SELECT {name}.make_partitions(%s, %s, 'logs', %s)", [starts, ends, case.partition])
    if case.leaf:
        for leaf in leaves(conn, name):
            conn.execute(case.leaf.format(p=leaf))
    conn.execute(f"INSERT INTO {name}.stream (stream) VALUES ({STREAM})")


def send(conn, name, batch):
    """One batch in the sink's transaction."""
    conn.execute(f"BEGIN; SELECT position FROM {name}.stream WHERE stream = {STREAM} FOR UPDATE")
    with conn.cursor().copy(f"COPY {name}.logs ({', '.join(LOG_COLUMNS)}) FROM STDIN (ENCODING 'UTF8')") as copy:
        copy.write(batch)
    conn.execute(
        f"SET CONSTRAINTS ALL IMMEDIATE; UPDATE {name}.stream SET position = position + {len(batch)}, updated = now() "
        f"WHERE stream = {STREAM}; COMMIT"
    )


def put_off(conn, name):
    """The statements that do what GIN and BRIN leave to a vacuum."""
    found = conn.execute(
        "SELECT a.amname, c.oid FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = "
        "c.relnamespace WHERE n.nspname = %s AND c.relkind = 'i' AND a.amname IN ('gin', 'brin')", [name])  # fmt: skip
    call = {"gin": "gin_clean_pending_list", "brin": "brin_summarize_new_values"}
    return "; ".join(f"SELECT {call[method]}({oid}::regclass)" for method, oid in found)


def position(conn):
    return conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]


def wal(conn, start):
    """Bytes of WAL since then: in all, of full pages, and by resource manager without them."""
    end = position(conn)
    # A commit that waits for the device: what synchronous_commit=off left unflushed cannot be read.
    conn.execute("SELECT pg_logical_emit_message(true, 'bench', '')")
    found = conn.execute("SELECT * FROM pg_get_wal_stats(%s, %s)", [start, end]).fetchall()
    (total,) = conn.execute("SELECT pg_wal_lsn_diff(%s, %s)", [end, start]).fetchone()
    managers = {line[0]: int(line[3]) for line in found if line[3]}
    full = sum(line[5] for line in found)
    return {"bytes": int(total), "full_pages": int(full), "records": managers}


def loaded(dsn, admin, name, case, data):
    """Load the three parts; what each took. The rows are counted in the end."""
    admin.execute(f"TRUNCATE {', '.join(leaves(admin, name)[-24:])}")  # the rows lie in the last day's: 24 hours
    admin.execute("CHECKPOINT")
    figures = {}
    with psycopg.connect(dsn, autocommit=True) as conn:
        for setting, value in case.settings.items():
            conn.execute(f"SET {setting} = '{value}'")
        later = put_off(conn, name)
        for part, frames in zip(PARTS, data, strict=True):
            if part == "checkpointed":
                admin.execute("CHECKPOINT")
            ready, start = batches(frames, case.batch), position(admin)
            started = time.perf_counter()
            for batch in ready:
                send(conn, name, batch)
            if later:
                conn.execute(later)
            seconds = time.perf_counter() - started
            figures[part] = {"seconds": seconds, "per_second": len(frames) / seconds, "wal": wal(admin, start)}
    count, ids = admin.execute(f"SELECT count(*), count(DISTINCT seq) FROM {name}.logs").fetchone()
    sent = sum(map(len, data))
    assert (count, ids) == (sent, sent), f"{case.name}: {sent} rows sent, {count} stored, {ids} different"
    sizes = admin.execute(
        "SELECT sum(pg_relation_size(c.oid)), sum(pg_table_size(c.oid)), sum(pg_total_relation_size(c.oid)) "
        "FROM unnest(%s::text[]) AS leaf JOIN pg_class c ON c.oid = leaf::regclass", [leaves(admin, name)])  # fmt: skip
    heap, table, total = map(int, sizes.fetchone())
    figures["disk"] = {"heap": heap, "toast": table - heap, "indexes": total - table}
    return figures


def pages_read(conn, name, question, values):
    """Pages of 8 KiB that the question reads, and the plan's nodes."""
    where = question if question.startswith("ORDER") else f"WHERE {question}"
    query = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM {name}.logs {where.format(**values)}"
    conn.execute(query)  # the first one reads catalogues, too
    ((plan,),) = conn.execute(query)
    top, nodes = plan[0]["Plan"], []
    waiting = [top]
    while waiting:
        node = waiting.pop()
        nodes.append(node["Node Type"])
        waiting += node.get("Plans", [])
    return {"pages": top["Shared Hit Blocks"] + top["Shared Read Blocks"], "rows": top["Actual Rows"], "nodes": nodes}


def vacuumed(admin, name, data):
    """WAL of vacuuming a loaded partition: as autovacuum does and frozen later, or frozen at once."""
    figures, leaf = {}, leaves(admin, name)[-1]
    rows = sum(map(len, data))
    for ways in (("VACUUM", "VACUUM (FREEZE), later"), ("VACUUM (FREEZE), at once",)):
        admin.execute(f"TRUNCATE {leaf}")
        admin.execute("CHECKPOINT")
        for batch in batches([frame for part in data for frame in part], None):
            send(admin, name, batch)
        for way in ways:
            if "at once" not in way:
                admin.execute("CHECKPOINT")
            start, started = position(admin), time.perf_counter()
            admin.execute(f"{way.split(',')[0]} {leaf}")
            seconds, found = time.perf_counter() - started, wal(admin, start)
            figures[way] = {"seconds": seconds, "wal": found, "wal_a_row": found["bytes"] / rows}
    return figures


# --- the run -----------------------------------------------------------------------------------------------------


def turns(cases, rounds):
    """Yield (round, case): order drawn, the shipped schema before, after and between."""
    for turn in range(rounds):
        others = [case for case in cases if case is not SHIPPED]
        random.shuffle(others)
        for at, case in enumerate(others):
            if at % EVERY == 0:
                yield turn, SHIPPED
            yield turn, case
        yield turn, SHIPPED


def measure(server, args):
    dsn = server.dsn()
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION pg_walinspect; CREATE EXTENSION pg_trgm")
        # Its WAL would be counted, and its moment is not ours to choose.
        admin.execute("ALTER SYSTEM SET autovacuum = off")
        admin.execute("SELECT pg_reload_conf()")
        built = dict(
            admin.execute("SELECT name, enumvals FROM pg_settings WHERE name ~ 'wal_comp|toast_comp'").fetchall()
        )
        methods = [m for m in ("pglz", "lz4", "zstd") if m in built["wal_compression"]]
        toasts = [m for m in ("pglz", "lz4") if m in built["default_toast_compression"]]
        cases = [c for c in _cases(methods, toasts) if c is SHIPPED or args.only in (None, c.group)]
        data = {kind: parts_of(dsn, kind, args.rows) for kind in {case.rows for case in cases}}
        names = {case.name: f"case_{n}" for n, case in enumerate(cases)}
        for case in cases:
            make(admin, names[case.name], case)
        raw, base = {case.name: [] for case in cases}, []
        for turn, case in turns(cases, args.rounds):
            rows = [part[: case.most] for part in data[case.rows]]
            figures = loaded(dsn, admin, names[case.name], case, rows)
            # The shipped schema's run before; the one after is filled in below.
            figures |= {"round": turn, "before": len(base) - (case is not SHIPPED)}
            raw[case.name].append(figures)
            if case is SHIPPED:
                base.append(figures)
        questions = asked(admin, cases, names)
        vacuum = vacuumed(admin, names[SHIPPED.name], data[SHIPPED.rows])
    return {
        "cases": [result_of(case, runs, base, data[case.rows]) for case, runs in zip(cases, raw.values(), strict=True)],
        "questions": questions, "rows_a_day": sum(map(len, data[SHIPPED.rows])),
        "vacuum": vacuum,
    }  # fmt: skip


def asked(admin, cases, names):
    """What each index's questions read with it and without: the tables hold the same rows."""
    shipped = names[SHIPPED.name]
    for case in cases:
        if case.questions or case is SHIPPED:
            admin.execute(f"VACUUM (ANALYZE) {', '.join(leaves(admin, names[case.name]))}")
    columns = ("trace_id", "user_id", "correlation_id", "stream", "seq")
    one = admin.execute(
        f"SELECT {', '.join(columns)}, attributes->>'request', split_part(message, ' ', 2) FROM {shipped}.logs "
        f"ORDER BY ts OFFSET (SELECT count(*) / 2 FROM {shipped}.logs) LIMIT 1"
    ).fetchone()
    values = {**dict(zip((*columns, "request", "number"), one, strict=True)), "day": DAY.isoformat()}
    found = []
    for case in cases:
        for question in case.questions:
            mine, other = (pages_read(admin, names[name], question, values) for name in (case.name, SHIPPED.name))
            assert mine["rows"] == other["rows"], (case.name, question, mine, other)
            with_it, without = (other, mine) if case.name[0] == "-" else (mine, other)
            found.append({"index": case.name, "question": question, "with": with_it, "without": without})
    return found


def result_of(case, runs, base, data):
    """A case's figures: ratios to the shipped schema's runs before and after it, bytes a row, all that is raw."""
    rows = len(data[0][: case.most])
    frames = data[1][: case.most]
    ratios = {part: [] for part in PARTS[1:]}
    for run in runs:
        beside = base[run["before"] :][: 1 if case is SHIPPED else 2]
        for part, found in ratios.items():
            found.append(run[part]["per_second"] / statistics.mean(b[part]["per_second"] for b in beside))

    def a_row(get):
        return statistics.median(get(run) for run in runs) / rows

    return {
        "group": case.group, "name": case.name, "rows_a_part": rows, "bytes_a_row": sum(map(len, frames)) / rows,
        "ratio": ratios,
        "per_second": {part: [run[part]["per_second"] for run in runs] for part in ratios},
        "wal_a_row": {part: a_row(lambda run, p=part: run[p]["wal"]["bytes"]) for part in ratios},
        "full_pages_a_row": {part: a_row(lambda run, p=part: run[p]["wal"]["full_pages"]) for part in ratios},
        "disk_a_row": {what: a_row(lambda run, w=what: run["disk"][w]) / len(PARTS) for what in runs[0]["disk"]},
        "runs": runs,
    }  # fmt: skip


# --- the page ----------------------------------------------------------------------------------------------------

HEADS = {
    "indexes": "index", "partitions": "partitions", "commits": "a transaction", "WAL": "setting", "rows": "row",
}  # fmt: skip


def server_table(result, group):
    """The table of one group of cases in docs/howto/tune.md; the shipped schema is its first line."""
    cases = result["details"]["cases"]
    lines = [
        f"| {HEADS[group]} | rows/s, of the shipped | WAL bytes a row | just after a checkpoint | disk bytes a row |",
        "|---|---|---|---|---|",
    ]
    for case in cases:
        if case["group"] == group or case["name"] == SHIPPED.name:
            ratio, (steady, after) = statistics.median(case["ratio"]["steady"]), case["wal_a_row"].values()
            disk = sum(case["disk_a_row"].values())
            lines.append(f"| {case['name']} | {number(ratio)} | {steady:,.0f} | {after:,.0f} | {disk:,.0f} |")
    return "\n".join(lines)


def question_table(result):
    """What each index is for: pages of 8 KiB that its question reads."""
    lines = ["| index | question | pages read without it | with it |", "|---|---|---|---|"]
    for found in result["details"]["questions"]:
        text = found["question"].replace("'{day}'::timestamptz + ", "").replace("{{", "{").replace("}}", "}")
        text = re.sub(r"\{[a-z_]+\}", "17", text)
        without, with_it = (f"{found[way]['pages']:,}" for way in ("without", "with"))
        lines.append(f"| `{found['index'].removeprefix('+ ').removeprefix('- ')}` | `{text}` | {without} | {with_it} |")
    return "\n".join(lines)


def vacuum_table(result):
    lines = ["| of a day's partition | WAL bytes a row |", "|---|---|"]
    for way, found in result["details"]["vacuum"].items():
        lines.append(f"| {way} | {found['wal_a_row']:,.1f} |")
    return "\n".join(lines)


def server_page(result, text):
    """The page with its tables made of this result."""
    text = between(text, "server", f"`benchmarks/server.py` ({result['rounds']} rounds): {machine(result['facts'])}.")
    for group in HEADS:
        text = between(text, f"server {group}", server_table(result, group))
    text = between(text, "server questions", question_table(result))
    return between(text, "server vacuum", vacuum_table(result))


def rows_of(details):
    """Two lines a case: speed and WAL, of the shipped schema's."""
    cases = details["cases"]
    shipped = next(case for case in cases if case["name"] == SHIPPED.name)
    rows = [
        row("as shipped", statistics.median(shipped["per_second"]["steady"]), unit="rows/s"),
        row("as shipped: WAL", shipped["wal_a_row"]["steady"], unit="bytes a row"),
        row("as shipped: disk", sum(shipped["disk_a_row"].values()), unit="bytes a row"),
    ]
    for case in cases:
        if case is not shipped:
            rows.append(
                row(f"{case['group']}: {case['name']}", statistics.median(case["ratio"]["steady"]), unit="times")
            )
            rows.append(row(f"{case['group']}: {case['name']}: WAL", case["wal_a_row"]["steady"], unit="bytes a row"))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16_000, help="of one part; a case has three")
    parser.add_argument("--quick", action="store_true", help="one round of small parts: does it work?")
    parser.add_argument("--only", choices=tuple(HEADS), help="one group of cases")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", action="store_true", help="run nothing: make docs/howto/tune.md's tables of the JSON")
    args = parser.parse_args()
    if args.page:
        result = json.loads((args.json or common.RESULTS / "server.json").read_text(encoding="utf-8"))
        PAGE.write_text(server_page(result, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if args.quick:
        args.rounds, args.rows = 1, 3000
    with common.prepared_server() as server:
        details = measure(server, args)
        machine_facts = common.facts(server)
    result = {
        "facts": machine_facts,
        "rounds": args.rounds,
        "records": args.rows,
        "rows": rows_of(details),
        "details": details,
    }
    common.report("server", result, args.json)
    print(
        "\n".join(["", *(server_table(result, group) for group in HEADS), question_table(result), vacuum_table(result)])
    )


if __name__ == "__main__":
    sys.exit(main())
