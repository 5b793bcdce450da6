"""
A password and a row content whose words are looked for in every place where people look.

The password holds what people forget to encode; each of its words is looked for alone, since messages quote pieces.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice.handlers import PostgresHandler
from support.commits import COMMIT
from support.proxy import kind

PASSWORD = "zebra@yak/xerus:wolf?vole#%tapir 'sloth"
WORDS = ("zebra", "yak", "xerus", "wolf", "vole", "tapir", "sloth")
ROW = ("okapi", "numbat")  # what rows hold; it may be in the database, and nowhere else


def leaks(text, words=WORDS + ROW):
    """The secret words in it; percent-encoded they are the same."""
    return [word for word in words if word in text]


@contextmanager
def keeper(dsn, admin):
    """A role with the password; the dsn's parameters for it."""
    parameters = conninfo_to_dict(dsn)
    name = "keeper_" + parameters["dbname"]
    admin.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD {psycopg.sql.quote(PASSWORD)}")
    try:
        yield {**parameters, "user": name, "password": PASSWORD}
    finally:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [name])
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER")
        admin.execute(f"DROP ROLE {name}")


def uri(p):
    return (
        f"postgresql://{p['user']}:{quote(p['password'], safe='')}@{p['host']}:{p['port']}/"
        f"{p['dbname']}?sslmode=disable"
    )


def pairs(p):
    return make_conninfo(**{**p, "sslmode": "disable"})


FORMS = {
    "uri": lambda p, env: {"dsn": uri(p)},
    "key=value": lambda p, env: {"dsn": pairs(p)},
    "environment": lambda p, env: (env("SHOP_DSN", uri(p)), {"dsn_env": "SHOP_DSN"})[1],
    "callable": lambda p, env: {"dsn": lambda: pairs(p)},
}


def observe(shop, capfd):
    """Everything that a person or a metric may see of this handler."""
    with psycopg.connect(shop.read) as conn:
        sessions = conn.execute(
            "SELECT application_name, query FROM pg_stat_activity WHERE application_name LIKE 'logsluice%'"
        ).fetchall()
        letters = conn.execute("SELECT sqlstate, error, target, columns FROM logsluice.dead_letter").fetchall()
    pair = shop.handler._pair
    seen = (
        repr(shop.handler), str(shop.handler), repr(shop.handler._settings), repr(shop.stats), str(shop.stats.recent),
        repr(pair), repr(pair[1].routes[0].sink), repr(pair[1].routes[0].sink.link), repr(letters),
        repr(sessions),
        repr([thread.name for thread in threading.enumerate()]),
    )  # fmt: skip
    shop.handler.close()
    captured = capfd.readouterr()
    assert captured.err  # LOGSLUICE_DEBUG=1: it did speak
    return "\n".join(seen) + captured.err + captured.out


def made(options):
    """What makes a handler with these options in the place of `dsn`."""
    return lambda dsn, **others: PostgresHandler(**options, **others)


# Each: what makes a batch fail while it is written, through `shop.proxy` or in the tables.
WRITING = {
    "cut in copy": lambda shop: shop.proxy.cut_before(kind(b"c")),
    "no answer": lambda shop: shop.proxy.swallow_after(COMMIT),
    "table missing": lambda shop: shop.do("ALTER TABLE logsluice.logs RENAME TO gone"),
    "column renamed": lambda shop: shop.do("ALTER TABLE logsluice.logs RENAME message TO text"),
    "a check": lambda shop: shop.do(
        "ALTER TABLE logsluice.logs ADD CHECK (attributes->>'animal' <> 'okapi') NOT VALID"
    ),
    "conversion": lambda shop: retype(shop, "int USING 1"),
    "an enum": lambda shop: (shop.do("CREATE TYPE public.kind AS ENUM ('a')"), retype(shop, "public.kind USING 'a'")),
    "json": lambda shop: retype(shop, "json USING '1'"),
    "too long": lambda shop: retype(shop, "varchar(3) USING 'x'"),
    "a key": lambda shop: shop.do(
        "CREATE TABLE public.allowed (message text PRIMARY KEY)",
        "ALTER TABLE logsluice.logs ADD FOREIGN KEY (message) REFERENCES public.allowed NOT VALID",
    ),
    "raise": lambda shop: trigger(shop, "RAISE EXCEPTION 'not %', NEW.message"),
    "raise with a code": lambda shop: trigger(shop, "RAISE EXCEPTION 'not %', NEW.message USING ERRCODE = '22003'"),
    "raise not null": lambda shop: trigger(shop, "RAISE not_null_violation USING MESSAGE = NEW.message"),
    "a cast in a trigger": lambda shop: trigger(shop, "PERFORM NEW.message::int"),
    "dynamic SQL": lambda shop: trigger(shop, "EXECUTE 'SELECT ' || NEW.message"),
}


def retype(shop, what):
    shop.do(
        "DROP VIEW logsluice.otel_logs, logsluice.grafana_logs", f"ALTER TABLE logsluice.logs ALTER message TYPE {what}"
    )


def trigger(shop, body):
    shop.do(
        f"CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; RETURN NEW; END$$",
        "CREATE TRIGGER refuse BEFORE INSERT ON logsluice.logs FOR EACH ROW EXECUTE FUNCTION public.refuse()",
    )
