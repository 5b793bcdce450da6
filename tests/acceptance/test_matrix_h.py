"""
Fault matrix H and the rows of I about PostgreSQL: dead letters, secrets, names that are SQL, objects in the way.

H-03, replaying dead letters, is tested with the code that does it.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from logsluice import PostgresHandler, context, redaction
from logsluice.columns import quote as quoted
from logsluice.devserver import free_port
from logsluice.errors import ConfigError
from logsluice.patterns import Detector
from logsluice.redaction import SECRET_KEYS
from support import matrix
from support.canary import PASSWORD, ROW, WORDS, keeper, leaks, made, observe, pairs, uri
from support.commits import COMMIT
from support.faults import broken, reject, terminate
from support.overload import stopped
from support.processes import until
from support.proxy import Proxy, kind
from support.records import make_record
from support.shop import LIMIT, QUICK, Shop, message, writer


def files(options):
    """Path and content of everything below the journal; nothing without one."""
    root = Path(options["journal"]) if "journal" in options else None
    found = {}
    for path in root.rglob("*") if root else ():
        try:
            found[str(path.relative_to(root))] = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            pass  # settled and unlinked meanwhile
    return found


def segments(options):
    """The files that hold frames."""
    return {name: content for name, content in files(options).items() if name.endswith(".seg")}


# --- dead letters that cannot be kept ---------------------------------------------------------------------------------


def test_h_01_no_right_to_write_dead_letters(dsn, admin, mode, options, capfd):
    """INSERT on dead_letter is revoked, and a row of the batch is refused by the table."""
    with writer(dsn, admin) as (theirs, role), Shop(theirs, read=dsn, create=False, **options) as shop:
        with broken(shop, "no dead letters allowed", role) as says:
            waited = shop.stats.waiting
            assert waited
        since = time.monotonic()
        assert shop.flush()
        recovery = time.monotonic() - since
        _, dead = shop.check()
        assert dead == [150]
        lost, twice = shop.lost_and_twice()
    said = capfd.readouterr().err
    assert "blocked, records are kept" in said
    assert says in said
    matrix.row("H-01", mode, lost=lost, twice=twice, recovery=recovery, note=f"{waited} records blocked and kept, 1 dead letter after the GRANT")  # fmt: skip


def test_h_01_dead_letter_refuses_rows(dsn, mode, options, capfd):
    """A constraint that somebody put on dead_letter refuses each dead letter: no good row may be taken for the bad one."""
    with Shop(dsn, **options) as shop:
        reject(shop, "message LIKE 'tid=50 %'")
        shop.do("ALTER TABLE logsluice.dead_letter ADD CONSTRAINT none CHECK (position < 0)")
        shop.log(100)
        failures = shop.await_failure("55000", count=2)
        assert failures[-1]["verdict"] == "blocked"
        assert not shop.dead()
        assert not shop.stored()
        shop.do("ALTER TABLE logsluice.dead_letter DROP CONSTRAINT none")
        since = time.monotonic()
        assert shop.flush()
        recovery = time.monotonic() - since
        _, dead = shop.check()
        assert dead == [50]
        lost, twice = shop.lost_and_twice()
    assert "dead_letter takes no rows" in capfd.readouterr().err
    matrix.row("H-01", mode, lost=lost, twice=twice, recovery=recovery, note="100 records blocked by a constraint on dead_letter, 1 dead letter after it")  # fmt: skip


# --- the password -----------------------------------------------------------------------------------------------------


def passfile(folder, p):
    """A password file as libpq reads it; its path."""
    path = folder / "pgpass"
    path.touch(0o600)
    path.write_text(f"*:*:*:*:{p['password'].replace(chr(92), chr(92) * 2).replace(':', chr(92) + ':')}\n")
    return str(path)


def service(folder, p, env):
    path = folder / "services"
    path.write_text("[shop]\n" + "".join(f"{key}={p[key]}\n" for key in ("host", "port", "user", "dbname", "password")))
    env("PGSERVICEFILE", str(path))
    return {"dsn": "service=shop sslmode=disable"}


def bare(p):
    return pairs({key: value for key, value in p.items() if key != "password"})


# Twelve ways in which a handler comes by its password: (parameters, sets an environment variable, folder) -> options.
SHAPES = {
    "URI": lambda p, env, folder: {"dsn": uri(p)},
    "key=value": lambda p, env, folder: {"dsn": pairs(p)},
    "URI in dsn_env": lambda p, env, folder: (env("SHOP_DSN", uri(p)), {"dsn_env": "SHOP_DSN"})[1],
    "key=value in dsn_env": lambda p, env, folder: (env("SHOP_DSN", pairs(p)), {"dsn_env": "SHOP_DSN"})[1],
    "callable, URI": lambda p, env, folder: {"dsn": lambda: uri(p)},
    "callable, key=value": lambda p, env, folder: {"dsn": lambda: pairs(p)},
    "parameter of a URI": lambda p, env, folder: {
        "dsn": f"postgresql://{p['user']}@{p['host']}:{p['port']}/{p['dbname']}?sslmode=disable"
        f"&password={quote(p['password'], safe='')}"
    },
    "two hosts": lambda p, env, folder: {"dsn": uri({**p, "port": f"{free_port()},{p['host']}:{p['port']}"})},
    "PGPASSWORD": lambda p, env, folder: (env("PGPASSWORD", p["password"]), {"dsn": bare(p)})[1],
    "PGPASSFILE": lambda p, env, folder: (env("PGPASSFILE", passfile(folder, p)), {"dsn": bare(p)})[1],
    "passfile=": lambda p, env, folder: {"dsn": make_conninfo(bare(p), passfile=passfile(folder, p))},
    "service file": lambda p, env, folder: service(folder, p, env),
}  # fmt: skip


def failing_handlers(p):
    """(what, parameters, a piece of what must be said) of handlers that never get in."""
    yield "wrong password", {**p, "password": PASSWORD + "no"}, "password authentication failed"
    yield "refused", {**p, "port": str(free_port())}, "refused"
    yield "no such database", {**p, "dbname": "none_of_that_name"}, "does not exist"


def failing_batches(shop, proxy, *, some):
    """(what, what makes the next batch fail) of a handler that is in; `some`: only those after which it connects anew."""
    yield "cut in COMMIT", lambda: proxy.cut_after(COMMIT)
    yield "terminated", lambda: terminate(shop)
    if not some:
        yield "cut in COPY", lambda: proxy.cut_before(kind(b"c"))
        yield "no answer", lambda: proxy.swallow_after(COMMIT)
        yield "table missing", lambda: shop.do("ALTER TABLE logsluice.logs RENAME TO gone")


def mend(shop, proxy):
    proxy.heal()
    shop.do("ALTER TABLE IF EXISTS logsluice.gone RENAME TO logs")


def test_h_04_the_password_is_nowhere(own_server, mode, options, tmp_path, capfd, monkeypatch):
    """A password given in 12 shapes, 5 to 8 faults each, and every place looked at where people look."""
    monkeypatch.setenv("LOGSLUICE_DEBUG", "1")
    dsn, given, faults, found, names = own_server.dsn(), [], 0, [], set()
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET log_error_verbosity = 'verbose'")
        admin.execute("SELECT pg_reload_conf()")
        start = own_server.log_path.stat().st_size
        with keeper(dsn, admin) as account, Proxy(pairs(account)) as proxy:
            through = {**account, "host": "127.0.0.1", "port": str(proxy.port)}

            def look(shape, fault, options, text=""):
                tree = files(options)
                names.update(tree)
                leaking = leaks(text) + leaks(repr(tree), WORDS)
                found.extend((shape, fault, word) for word in leaking)

            for number, (shape, form) in enumerate(SHAPES.items()):
                mine = {**options, "journal": f"{options['journal']}-{number}"} if options else {}
                folder = tmp_path / f"shape-{number}"
                folder.mkdir()
                with pytest.MonkeyPatch.context() as environment:
                    shop = Shop(
                        None, read=dsn, made=made(form(through, environment.setenv, folder)), io_timeout=0.2, **mine
                    )
                    shop.given = given  # one count of ids for all shapes
                    shop.log(3, animal=ROW[0])
                    assert shop.flush(), shape
                    if not number:
                        reject(shop, "attributes ? 'refused'")
                    for fault, break_it in failing_batches(shop, proxy, some=number % 3 > 0):
                        failures = shop.stats.retries
                        break_it()
                        shop.log(2, animal=ROW[1])
                        assert until(lambda failures=failures: shop.stats.retries > failures, LIMIT), (shape, fault)
                        look(shape, fault, mine)
                        mend(shop, proxy)
                        assert shop.flush(), (shape, fault)
                        faults += 1
                    shop.log(1, refused=ROW[0])
                    shop.logger.info("%d", Hostile(), extra={"x": Hostile()})
                    assert shop.flush()
                    assert shop.stats.dead == 1
                    look(shape, "while it ran", mine, observe(shop, capfd))
                    for fault, wrong, says in failing_handlers(account):
                        aside = {**mine, "journal": f"{mine['journal']}-wrong"} if mine else {}
                        outside = made(form(wrong, environment.setenv, folder))
                        other = Shop(None, read=dsn, made=outside, shutdown_timeout=0.01, **aside)
                        other.logger.info("never stored")
                        assert says in other.await_failure()[0]["error"], (shape, fault)
                        look(shape, fault, aside, observe(other, capfd))
                        faults += 1
        with own_server.log_path.open(errors="replace") as log:
            log.seek(start)
            text = log.read()
    for said in ("password authentication failed", "terminating connection due to administrator command", "users_own"):
        assert said in text  # it is the log of these faults
    found += [("server's log", word) for word in leaks(text, WORDS)]
    assert not found
    if mode == "journal":
        assert any(name.endswith(".seg") for name in names)
    stored, dead = shop.stored(), shop.dead()
    lost, twice = set(given) - set(stored) - set(dead), len(stored) + len(dead) - len(set(stored + dead))
    note = f"{len(SHAPES)} shapes, {faults} faults, {len(names)} names in journals; the password is in 0 places"
    matrix.row("H-04", mode, lost=lost, twice=twice, note=note)


class Hostile:
    """It cannot be shown, and says a row's word when it is tried."""

    def __str__(self):
        raise RuntimeError(ROW[0])

    __repr__ = __str__


# --- what rows hold, and the server's log -------------------------------------------------------------------------------


def naive(dsn, canary):
    """The control: a writer that encodes a row inside its COPY, and fails."""
    with psycopg.connect(dsn) as conn, conn.cursor().copy("COPY public.naive FROM STDIN") as copy:
        copy.write_row(("fine",))
        raise ValueError(f"cannot encode {canary}")


def test_h_05_no_exception_of_ours_in_the_servers_log(own_server, mode, options):
    """Rows that Python or the server would choke on, and connections that break inside a COPY."""
    dsn, canary = own_server.dsn(), "okapi"
    start = own_server.log_path.stat().st_size

    def logged():
        with own_server.log_path.open(errors="replace") as log:
            log.seek(start)
            return log.read()

    with Proxy(dsn) as proxy, Shop(proxy.dsn, read=dsn, io_timeout=0.3, **options) as shop:
        shop.watch()
        shop.log(1)
        assert shop.flush()
        odd = [
            make_record("%s", (Hostile(),)), make_record("%d", (canary,)), make_record(f"{canary}\0\ud800"),
            make_record(canary, value=float("nan"), text=f"\0{canary}"), make_record(canary, created=1e18),
            make_record(canary, levelno=10**12, lineno=2**40), make_record(canary, v=10**5000),
            make_record(f"{canary}\\.\n\\N\t"), make_record(canary, trace_id=f"{canary}\0"),
        ]  # fmt: skip
        for record in odd:
            shop.logger.handle(record)
        assert shop.flush()
        assert shop.query("SELECT count(*) FROM logsluice.logs WHERE logger = 'shop.orders'") == [(len(odd),)]
        for fault in (proxy.swallow_after, proxy.cut_before):
            failures = shop.stats.retries
            fault(kind(b"c"))
            shop.log(5, animal=canary)
            assert until(lambda failures=failures: shop.stats.retries > failures, LIMIT)
            proxy.heal()
            assert shop.flush()
        assert proxy.cuts
        assert proxy.swallowed
        lost, twice = shop.lost_and_twice()
        shop.do("CREATE TABLE public.naive (x text)")
    assert not shop.stats.dead
    text = logged()
    for ours in (canary, "error from Python", "IoTimeout", "Traceback"):
        assert ours not in text
    assert "unexpected EOF" in text or "connection" in text  # a COPY did break, and this is the log that says so
    with pytest.raises(ValueError, match=canary):
        naive(dsn, canary)
    assert until(lambda: canary in logged(), LIMIT)
    matrix.row(
        "H-05",
        mode,
        lost=lost,
        twice=twice,
        note=f"{len(odd)} odd rows, 2 COPYs broken; in the log 0, a naive writer's 1",
    )


# --- secrets by key -------------------------------------------------------------------------------------------------------


def spelled(key, number):
    """The same key as programs write it."""
    return (key, key.upper(), key.replace("_", "-"), key.title())[number % 4]


# Where a secret stands in a record: (key, secret) -> (the record, what is bound meanwhile).
PLACES = {
    "extra": lambda key, secret: (make_record("x", **{key: secret}), {}),
    "nested": lambda key, secret: (make_record("x", request={"form": {key: secret, "page": 2}}), {}),
    "in a list": lambda key, secret: (make_record("x", jobs=[{"n": 1}, {key: [secret]}]), {}),
    "headers": lambda key, secret: (make_record("x", headers={key.encode(): secret.encode()}), {}),
    "bound": lambda key, secret: (make_record("x"), {key: secret}),
    "message": lambda key, secret: (make_record({"event": "paid", key: secret, "more": {key: secret}}), {}),
    "arguments": lambda key, secret: (make_record("%d %d", ({key: secret},)), {}),
    "URL": lambda key, secret: (make_record("see https://shop:%s@host/%s", (secret, key)), {}),
    "exception": lambda key, secret: (
        make_record("x", exc_info=(OSError, OSError(f"no route to amqp://shop:{secret}@mq/{key}"), None)),
        {},
    ),
}
SECRET = re.compile(rb"canary\d{4}")


def waiting_bytes(shop, options):
    """What the buffer holds now: the files, and the memory without them."""
    memory = b"".join(bytes(segment.map[:]) for segment in shop.route.buffer._chain() if not segment.map.closed)
    return memory + b"".join(files(options).values())


def everything(shop):
    """All rows of the tables as the server shows them, dead letters decoded."""
    queries = (
        "SELECT l::text FROM logsluice.logs l", "SELECT convert_from(row, 'UTF8') FROM logsluice.dead_letter",
        "SELECT d::text FROM logsluice.dead_letter d", "SELECT s::text FROM logsluice.stream s",
    )  # fmt: skip
    return "\n".join(row[0] for query in queries for row in shop.query(query)).encode()


def secrets():
    """(place, key, secret): about 280 of them."""
    number = 0
    for place in PLACES:
        for key in sorted(SECRET_KEYS):
            yield place, spelled(key, number), f"canary{number:04d}"
            number += 1


@pytest.mark.parametrize("redactor", ["works", "raises"])
def test_h_06_secrets_by_their_keys(dsn, mode, options, capfd, monkeypatch, redactor):
    """Every secret key in nine places of a record, with a redactor that works and with one that raises."""
    monkeypatch.setenv("LOGSLUICE_DEBUG", "1")
    option = {"patterns": ["canary-never"]} if redactor == "raises" else "keys"
    tried = list(secrets())
    with Shop(dsn, redact=option, **options) as shop:
        if redactor == "raises":

            def raises(_text):
                raise RuntimeError("the pattern")

            def normal(_key):
                raise RuntimeError("the key")

            shop.handler._redactor._detectors = (Detector("raises", (), raises),)
            monkeypatch.setattr(redaction, "_normal", normal)
        reject(shop, "attributes->'own' >= '250'")  # some go to dead_letter
        with stopped(shop):
            for own, (place, key, secret) in enumerate(tried):
                record, bound = PLACES[place](key, secret)
                record.own = own
                with context.bound(**bound):
                    shop.logger.handle(record)
            waiting = waiting_bytes(shop, options)
            assert waiting.count(b"\n") >= shop.stats.waiting > len(tried) * 0.8
        assert shop.flush()
        stats = shop.stats
        kept = everything(shop)
        rows = shop.query("SELECT count(*), count(DISTINCT seq) FROM logsluice.logs WHERE seq > 0")
        missing = len(tried) + 1 - stats.stored - stats.dead  # `stopped` logs one as well
        assert missing == stats.dropped  # a redactor that fails may cost a record, not its count
        assert not missing or redactor == "raises"
    monkeypatch.undo()
    said = capfd.readouterr()
    control = [make_record("x", plain=secret) for _, _, secret in tried[:3]]  # under another name they would be there
    leaking = {
        "buffer": SECRET.findall(waiting), "tables": SECRET.findall(kept),
        "stderr": SECRET.findall((said.err + said.out).encode()),
    }  # fmt: skip
    assert leaking == {"buffer": [], "tables": [], "stderr": []}
    if redactor == "works":
        assert stats.dead > 20
        assert kept.count(b"[redacted]") >= len(tried) * 7 / 9
        assert kept.count(b":***@") >= len(SECRET_KEYS)
    with Shop(dsn, redact=option, **options) as shop:
        for record in control:
            shop.logger.handle(record)
        assert shop.flush()
        assert len(SECRET.findall(everything(shop))) == 3
    lost, twice = missing - stats.dropped, rows[0][0] - rows[0][1]
    note = f"{len(tried)} secrets in {len(PLACES)} places, redactor {redactor}: leaks 0; "
    note += f"{stats.dead} in dead_letter, {stats.dropped} dropped and counted"
    matrix.row("H-06", mode, lost=lost, twice=twice, note=note)


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["journal"])
def test_h_08_nobody_else_may_read_the_journal(dsn, mode, options):
    """A program whose umask lets everybody read everything: the journal's files and folders are its owner's all the same."""
    root, seen = Path(options["journal"]), {}

    def look():
        for path in [root, *root.rglob("*")]:
            try:
                seen[str(path)] = (path.is_dir(), stat.S_IMODE(path.lstat().st_mode))
            except FileNotFoundError:
                pass  # settled and unlinked meanwhile

    umask = os.umask(0)
    try:
        with Shop(dsn, **options) as shop:
            with stopped(shop):
                for _ in range(40):
                    shop.log(20, payload="x" * 2000)  # 1.6 MB: several segments
                    look()
                waiting = segments(options)
            assert shop.flush()
            look()
            lost, twice = shop.lost_and_twice()
        look()
    finally:
        os.umask(umask)
    assert len(waiting) > 2
    folders = {path: mode for path, (is_folder, mode) in seen.items() if is_folder}
    plain = {path: mode for path, (is_folder, mode) in seen.items() if not is_folder}
    assert len(folders) >= 2
    assert set(folders.values()) == {0o700}, folders
    assert set(plain.values()) == {0o600}, plain
    matrix.row(
        "H-08", mode, lost=lost, twice=twice, note=f"{len(plain)} files 0600, {len(folders)} folders 0700, umask 0"
    )


# --- names that are SQL ---------------------------------------------------------------------------------------------------

EVIL = 'x"; DROP TABLE public.victim; --'
EVIL_QUOTE = "y'; DROP TABLE public.victim; --"
EVIL_DOLLAR = "z$$; DROP TABLE public.victim; --"
LONGEST = "é" * 31 + "z"  # 63 bytes, the most that PostgreSQL keeps
BAD_NAMES = ["é" * 32, "z" * 64, "a\0b", "", "\ud800"]
# A statement's quoted names, texts, comments and function bodies: what is left is SQL.
QUOTED = re.compile(r"""\$(\w*)\$.*?\$\1\$|"(?:[^"]|"")*"|'(?:[^']|'')*'|--[^\n]*""", re.DOTALL)
ENTRY = re.compile(r"^\d{4}-\d\d-\d\d .*?(?:LOG:  (?:statement|execute [^:]*): )", re.MULTILINE)
NEXT = re.compile(r"^\d{4}-\d\d-\d\d ", re.MULTILINE)


def statements(text):
    """The statements in a server's log."""
    for found in ENTRY.finditer(text):
        end = NEXT.search(text, found.end())
        yield text[found.end() : end.start() if end else len(text)]


def drops(text):
    """Those that drop something, names and texts apart."""
    return [one for one in statements(text) if re.search(r"\bDROP\b", QUOTED.sub(" ", one))]


def test_i_01_names_that_are_sql(own_server, mode, options):
    """Schema, table, columns, service and extras named like SQL, 63 bytes long, with quotes; all statements logged."""
    dsn, given = own_server.dsn(), []
    for bad in BAD_NAMES:
        for wrong in (
            {"schema": bad},
            {"table": quoted(bad), "columns": {"a": "message"}},
            {"columns": {bad: "message"}},
        ):
            with pytest.raises(ConfigError):
                PostgresHandler(dsn=dsn, **wrong)
    columns = {EVIL: "message", EVIL_QUOTE: "extra.value", EVIL_DOLLAR: "level", LONGEST: "logger"}
    with psycopg.connect(dsn, autocommit=True) as conn:
        for table in ("victim", "decoy"):
            conn.execute(f"CREATE TABLE public.{table} (x int)")
        conn.execute(f"CREATE TABLE public.{quoted(EVIL)} ({', '.join(f'{quoted(name)} text' for name in columns)})")
        conn.execute("ALTER SYSTEM SET log_statement = 'all'")
        conn.execute("SELECT pg_reload_conf()")
        assert until(lambda: conn.execute("SHOW log_statement").fetchone() == ("all",), LIMIT)
        start = own_server.log_path.stat().st_size

        def logged():
            with own_server.log_path.open(errors="replace") as log:
                log.seek(start)
                return log.read()

        tables = {}
        for number, schema in enumerate((EVIL, EVIL_QUOTE, EVIL_DOLLAR, LONGEST)):
            mine = {**options, "journal": f"{options['journal']}-{number}"} if options else {}
            with Shop(dsn, schema=schema, service=EVIL_QUOTE, environment=EVIL, **mine) as shop:
                shop.given = given
                shop.log(10, **{EVIL: EVIL_QUOTE})
                tables[f"{quoted(schema)}.logs"] = "message"
                assert shop.flush()
                assert shop.stats.stored == 10
        mine = {**options, "journal": f"{options['journal']}-own"} if options else {}
        with Shop(dsn, schema=EVIL, table=f"public.{quoted(EVIL)}", columns=columns, **mine) as shop:
            shop.given = given
            shop.log(10, value=EVIL)
            tables[f"public.{quoted(EVIL)}"] = quoted(EVIL)
            assert shop.flush()
        stored = [
            int(text[4:].split(" ")[0])
            for table, column in tables.items()
            for (text,) in conn.execute(f"SELECT {column} FROM {table}")
        ]
        text = logged()
        count = sum(1 for _ in statements(text))
        assert count > 50
        assert "DROP TABLE public.victim" in text  # the names are there, as names
        assert drops(text) == []
        assert conn.execute("SELECT to_regclass('public.victim') IS NOT NULL").fetchone() == (True,)
        # The control: quoted by nobody, such a name is a statement of its own.
        conn.execute('SELECT 1 AS "{}"'.format(EVIL.replace("victim", "decoy")))
        assert conn.execute("SELECT to_regclass('public.decoy')").fetchone() == (None,)
        assert until(lambda: len(drops(logged())) == 1, LIMIT)
    lost, twice = set(given) - set(stored), len(stored) - len(set(stored))
    note = f"{count} statements logged, 0 of them foreign; {3 * len(BAD_NAMES)} names refused when configured"
    matrix.row("I-01", mode, lost=lost, twice=twice, note=note)


# --- objects in the way -----------------------------------------------------------------------------------------------------

# Functions that we call, once as they are and once so that our arguments would fit better: PostgreSQL takes the best fit
# of all schemas in search_path, and of equal ones the first.
SHADOWS = """
    now() timestamptz; statement_timestamp() timestamptz; clock_timestamp() timestamptz
    hashtextextended(text, bigint) bigint; hashtextextended(text, integer) bigint; hashtextextended(varchar, integer) bigint
    pg_advisory_xact_lock(bigint) void; to_regclass(text) regclass; to_regclass(varchar) regclass
    has_schema_privilege(oid, text) boolean; has_schema_privilege(oid, varchar) boolean
    has_table_privilege(oid, text) boolean; has_any_column_privilege(oid, text) boolean
    has_function_privilege(oid, text) boolean; set_config(text, text, boolean) text; current_schemas(boolean) name[]
    pg_get_userbyid(oid) name; pg_get_expr(pg_node_tree, oid) text; date_trunc(text, timestamptz) timestamptz
    generate_series(timestamptz, timestamptz, interval) timestamptz; btrim(text, text) text; starts_with(text, text) boolean
    regexp_match(text, text) text[]; pg_backend_pid() integer; current_setting(text) text; format(text) text
    make_partitions(timestamptz, timestamptz, text, text) text; make_partitions(timestamptz, timestamptz) text
"""
OPERATORS = ["name, text", "text, text", "oid, oid", "bigint, bigint", "bigint, integer", "integer, bigint",
             "integer, integer", '"char", "char"', "name, name"]  # fmt: skip


def shadow(conn, home):
    """Put functions, operators, tables and types of our names there; each that is used counts, rolled back or not."""
    conn.execute(f"CREATE SEQUENCE IF NOT EXISTS public.calls; CREATE SCHEMA IF NOT EXISTS {home}")
    count = "PERFORM pg_catalog.nextval('public.calls'); RETURN NULL"
    for one in SHADOWS.replace("\n", ";").split(";"):
        if one := one.strip():
            head, _, kind_ = one.rpartition(") ")
            body = count.replace(" NULL", "") if kind_ == "void" else count
            conn.execute(f"CREATE FUNCTION {home}.{head}) RETURNS {kind_} LANGUAGE plpgsql AS $$BEGIN {body}; END$$")
    for number, types in enumerate(OPERATORS):
        left, right = types.split(", ")
        conn.execute(
            f"CREATE FUNCTION {home}.same{number}({types}) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN {count}; END$$"
        )
        for sign in ("=", "<>", "+") if left == "bigint" else ("=", "<>"):
            conn.execute(
                f"CREATE OPERATOR {home}.{sign} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {home}.same{number})"
            )
    for table in ("logs", "stream", "dead_letter", "version"):
        conn.execute(f"CREATE TABLE {home}.{table} (LIKE logsluice.{table} INCLUDING ALL)")
        conn.execute(
            f"CREATE FUNCTION {home}.on_{table}() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {count}; END$$;"
            f"CREATE TRIGGER taken BEFORE INSERT OR UPDATE ON {home}.{table} EXECUTE FUNCTION {home}.on_{table}()"
        )
    for view in ("pg_class", "pg_namespace", "pg_proc", "pg_inherits"):
        conn.execute(f"CREATE VIEW {home}.{view} AS SELECT * FROM pg_catalog.{view} WHERE {home}.now() IS NOT NULL")
    conn.execute(f"GRANT USAGE ON SCHEMA {home} TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA {home} TO PUBLIC;"
                 "GRANT USAGE ON SEQUENCE public.calls TO PUBLIC")  # fmt: skip


def calls(conn):
    return conn.execute("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM public.calls").fetchone()[0]


def test_i_03_objects_of_our_names_in_the_search_path(dsn, admin, mode, options):
    """Functions, operators, tables and views of the names that we use, in public and in the schema of our role."""
    with writer(dsn, admin) as (theirs, role), psycopg.connect(dsn, autocommit=True) as conn:
        for home in ("public", role):
            shadow(conn, home)
        with psycopg.connect(
            theirs, autocommit=True
        ) as naive:  # the control: the traps are set, and this role may fall in
            naive.execute("SELECT hashtextextended('x'::text, 0)")
            naive.execute("INSERT INTO logs (ts, level, stream, seq) VALUES ('now', 20, 1, 1)")
        trapped = calls(conn)
        assert trapped == 2
        with Shop(theirs, read=dsn, create=False, **options) as shop:
            shop.log(100)
            assert shop.flush()
            reject(shop, "message LIKE 'tid=150 %'")
            shop.given.append(100)
            late = logging.LogRecord("shop", logging.INFO, __file__, 1, message(100), None, None)
            late.created = time.time() - 40 * 86400  # a partition is made for it
            shop.handler.handle(late)
            shop.log(100)
            assert shop.flush()
            terminate(shop)
            shop.log(100)
            assert shop.flush()
            _, dead = shop.check()
            assert dead == [150]
            lost, twice = shop.lost_and_twice()
        made_too = PostgresHandler(dsn=dsn, schema="other", **QUICK)  # as the owner: it makes a schema among the traps
        made_too.handle(make_record("x"))
        assert made_too.flush(LIMIT)
        made_too.close()
        taken = calls(conn) - trapped
        rows = sum(conn.execute(f"SELECT count(*) FROM {home}.logs").fetchone()[0] for home in ("public", role)) - 1
        number = conn.execute("SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace").fetchone()[0]
        conn.execute(f"DROP SCHEMA {role} CASCADE")
    assert (taken, rows) == (0, 0)
    matrix.row(
        "I-03",
        mode,
        lost=lost,
        twice=twice,
        note=f"2 x {number} functions and operators in the way, calls 0; naive ones 2",
    )
