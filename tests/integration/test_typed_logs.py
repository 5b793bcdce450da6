"""Typed logs in real tables: what each becomes, one that does not fit, a missing table, kills, limits, orphans."""

from __future__ import annotations

import functools
import threading
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import psycopg
import pytest
from psycopg.rows import dict_row

from logsluice import context
from logsluice.types import Sql, deliver, logtype
from support.commits import COMMIT
from support.processes import run_program, until
from support.proxy import Proxy
from support.shop import LIMIT, Shop, message, writer


class Colour(Enum):
    RED = "red"


@logtype(table="payment", retention="90d", indexes=["customer", ("status", "ts desc")])
class Payment:
    """A payment that was tried."""

    customer: str
    amount: Decimal = Decimal(1)
    status: Literal["paid", "refused"] = "paid"
    attempts: Annotated[int, Sql("smallint")] = 1
    share: float | None = None
    again: bool | None = None
    due: datetime | None = None
    order: uuid.UUID | None = None
    colour: Colour | None = None
    basket: list[str] | None = None
    more: dict[str, Any] | None = None
    anything: Any = None
    blob: bytes | None = None
    user_id: str | None = None
    level: int | str | None = None


@logtype(table="visit")
@dataclass
class Visit:
    tid: int
    note: str | None = field(default=None, metadata={"doc": "What the visitor said."})


@pytest.fixture
def shop(dsn):
    with Shop(dsn) as shop:
        yield shop


def payments(shop, columns="*"):
    with psycopg.connect(shop.read, row_factory=dict_row) as conn:
        return conn.execute(f"SELECT {columns} FROM logsluice.payment ORDER BY seq").fetchall()


def visits(dsn):
    with psycopg.connect(dsn) as conn:
        return sorted(row[0] for row in conn.execute("SELECT tid FROM logsluice.visit").fetchall())


def test_an_instance_becomes_a_typed_row(shop):
    due, order = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), uuid.uuid4()
    shop.logger.error(
        Payment(
            customer="c\t7\n", amount=Decimal("9.90"), attempts=3, share=0.5, again=False, due=due, order=order,
            colour=Colour.RED, basket=["a", "b"], more={"x": {"y": 1}}, anything="text", blob=b"\x00\\",
        ),
        extra={"shelf": 4},
    )  # fmt: skip
    assert shop.flush()
    (row,) = payments(shop)
    stream, ts = row.pop("stream"), row.pop("ts")
    assert stream > 0
    assert abs((datetime.now(timezone.utc) - ts).total_seconds()) < LIMIT
    assert row == {
        "seq": 1, "customer": "c\t7\n", "amount": Decimal("9.90"), "status": "paid", "attempts": 3, "share": 0.5,
        "again": False, "due": due, "order": order, "colour": "red", "basket": ["a", "b"], "more": {"x": {"y": 1}},
        "anything": "text", "blob": b"\x00\\", "user_id": None, "level": 40, "logger": shop.logger.name,
        "service": None, "trace_id": None, "span_id": None, "correlation_id": None, "organization_id": None,
        "attributes": {"shelf": 4},
    }  # fmt: skip
    shop.given = [0]
    shop.law()
    assert shop.query("SELECT count(*) FROM logsluice.logs") == [(0,)]


def test_what_is_none_comes_from_the_context(shop):
    with context.bound(user_id="u-1", trace_id="0af7651916cd43dd8448eb211c80319c", tenant="t"):
        shop.logger.info(Payment(customer="a"))
        shop.logger.info(Payment(customer="b", user_id="u-2", level="warn"))
    assert shop.flush()
    assert [(row["user_id"], row["trace_id"], row["level"], row["attributes"]) for row in payments(shop)] == [
        ("u-1", "0af7651916cd43dd8448eb211c80319c", 20, {"tenant": "t"}),
        ("u-2", "0af7651916cd43dd8448eb211c80319c", 30, {"tenant": "t"}),
    ]


def test_as_an_extra_the_message_and_an_exception_stay_with_it(shop):
    try:
        raise KeyError("gone")
    except KeyError:
        shop.logger.exception("charging %s", "c-7", extra={"logsluice": Payment(customer="c-7", status="refused")})
    assert shop.flush()
    ((status, attributes),) = shop.query("SELECT status, attributes FROM logsluice.payment")
    assert (status, attributes["message"], attributes["exc_type"]) == ("refused", "charging c-7", "KeyError")
    assert "Traceback" in attributes["exc_text"]


def test_one_that_does_not_fit_is_a_row_of_logs_that_says_why(shop):
    shop.logger.info(Payment(customer=None, status="lost", attempts=70_000, level="loud"))
    assert shop.flush()
    ((text, attributes),) = shop.query("SELECT message, attributes FROM logsluice.logs")
    assert text.startswith("payment ")
    assert attributes["status"] == "lost"
    assert attributes["logsluice"]["invalid"] == {
        "table": "payment",
        "customer": "is missing",
        "status": "is 'lost', not one of ['paid', 'refused']",
        "attempts": "is out of the range of smallint",
        "level": "is 'loud', no level: a number or DEBUG, INFO, WARNING, ERROR, CRITICAL",
    }
    shop.given = [0]
    shop.law()


def test_secrets_are_redacted_and_indexes_and_comments_made(shop):
    shop.logger.info(Payment(customer="postgresql://u:hunter2@h/d", more={"password": "hunter2"}))
    assert shop.flush()
    (row,) = payments(shop)
    assert "hunter2" not in str(row)
    indexes = {row[0] for row in shop.query("SELECT indexname FROM pg_indexes WHERE tablename = 'payment'")}
    assert indexes == {"payment_ts", "payment_customer", "payment_status_ts"}
    (child,) = shop.query(
        "SELECT min(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'logsluice.payment'::regclass"
    )
    name = child[0].partition(".")[2]
    assert len(shop.query("SELECT 1 FROM pg_indexes WHERE tablename = %s", name)) == 3
    ((comment,),) = shop.query("SELECT obj_description('logsluice.payment'::regclass)")
    assert comment == "A payment that was tried. (typed log, kept 90 days)"


def test_a_plain_install_has_five_tables(shop):
    shop.log(1)
    assert shop.flush()
    tables = shop.query(
        "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE nspname = 'logsluice' AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1"
    )
    assert [name for (name,) in tables] == ["dead_letter", "hold", "logs", "stream", "version"]


def test_every_one_once_beside_logs_from_eight_threads(dsn):
    """The first ones of all threads open the route at once."""
    with Shop(dsn) as shop:
        ready = threading.Barrier(8)

        def work(number):
            ready.wait(LIMIT)
            for tid in range(number, 4000, 8):
                shop.logger.info(Visit(tid))
                shop.logger.info(message(tid))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        shop.given = list(range(4000))
        assert shop.flush()
        assert visits(dsn) == list(range(4000))
        assert len(shop.listener.routes) == 2
        stats = shop.stats
        assert (stats.offered, stats.stored, stats.waiting) == (8000, 8000, 0)
    assert sorted(tid for tid in range(4000)) == visits(dsn)


def test_lost_commit_answers_double_nothing(dsn):
    with Proxy(dsn) as proxy, Shop(proxy.dsn, backoff_initial=0.01, backoff_max=0.05) as shop:
        for tid in range(2000):
            if tid % 400 == 200:
                proxy.cut_after(COMMIT)
            shop.logger.info(Visit(tid))
            if tid % 100 == 0:
                assert shop.flush()
        assert shop.flush()
        assert shop.stats.retries
    assert visits(dsn) == list(range(2000))


def test_without_the_right_to_make_it_only_its_own_rows_wait(dsn, admin):
    with writer(dsn, admin) as (role_dsn, role), Shop(role_dsn, create=False) as shop:
        shop.logger.info(Visit(1))
        shop.log(20)
        assert until(lambda: shop.stats.stored == 20, LIMIT)
        assert until(lambda: any("visit" in one["error"] for one in shop.stats.recent["failed"]), LIMIT)
        assert (shop.stats.waiting, shop.stats.dead) == (1, 0)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(Visit.__logtype__.ddl(grant_to=role))
        assert shop.flush()
    assert visits(dsn) == [1]


def test_a_column_that_is_missing_is_said_with_the_sql_that_adds_it(shop, capfd):
    shop.do("CREATE TABLE logsluice.visit (ts timestamptz NOT NULL, stream bigint, seq bigint, tid bigint)")
    shop.logger.info(Visit(1, note="again"))
    assert until(lambda: "ADD COLUMN" in capfd.readouterr().err, LIMIT)
    shop.do(
        'ALTER TABLE logsluice.visit ADD COLUMN "note" text, ADD COLUMN "level" smallint, ADD COLUMN "logger" text, '
        'ADD COLUMN "service" text, ADD COLUMN "trace_id" text, ADD COLUMN "span_id" text, ADD COLUMN '
        '"correlation_id" text, ADD COLUMN "user_id" text, ADD COLUMN "organization_id" text, ADD COLUMN "attributes" jsonb'
    )
    shop.listener.probe()
    assert shop.flush()
    assert shop.query("SELECT tid, note FROM logsluice.visit") == [(1, "again")]


def test_a_row_that_the_table_refuses_is_a_dead_letter_with_its_number(shop):
    shop.logger.info(Visit(1))
    assert shop.flush()
    shop.do("ALTER TABLE logsluice.visit ADD CHECK (tid <> 3)")
    for tid in (2, 3, 4):
        shop.logger.info(Visit(tid))
    assert shop.flush()
    assert visits(shop.read) == [1, 2, 4]
    assert shop.query("SELECT target, seq FROM logsluice.dead_letter") == [('"logsluice"."visit"', 3)]


def test_no_row_is_larger_than_a_frame_may_be(dsn):
    """Of a typed log's table and of one's own: what is cut is marked."""
    text = "é\t" * 100_000
    with Shop(dsn, max_frame_bytes=65_536) as shop:
        shop.do("CREATE TABLE public.mine (said text, one text, other text, rest jsonb)")
        columns = {"said": "message", "one": "extra.one", "other": "extra.other", "rest": "attributes"}
        with Shop(dsn, max_frame_bytes=65_536, table="public.mine", columns=columns) as own:
            shop.logger.info(Payment(customer=text, anything=text, more={"a": text}))
            own.logger.info(text, extra={"one": text, "other": text})
            assert shop.flush()
            assert own.flush()
        sizes = "SELECT octet_length(customer), octet_length(anything::text), attributes FROM logsluice.payment"
        ((customer, anything, attributes),) = shop.query(sizes)
        assert 0 < customer + anything < 65_536
        assert "record" in attributes["logsluice"]["cut"]
        ((size, rest),) = shop.query("SELECT octet_length(said || one || other), rest FROM public.mine")
        assert 0 < size < 65_536
        assert "record" in rest["logsluice"]["cut"]


def test_all_routes_share_one_limit(dsn):
    """In an outage typed logs and messages together never take more than capacity_bytes."""
    limit = 8 * 2**20
    with Proxy(dsn) as proxy, Shop(proxy.dsn, capacity_bytes=limit, max_frame_bytes=2**20) as shop:
        proxy.refuse()
        for tid in range(20_000):
            shop.logger.info(Visit(tid, note="n" * 500))
            shop.logger.info(message(tid), extra={"text": "t" * 500})
        routes = shop.listener.routes
        assert len(routes) == 2
        assert sum(route.own.held_bytes() for route in routes) <= limit
        assert shop.stats.dropped > 0
        proxy.heal()
        assert shop.flush()
        stats = shop.stats
        stored = len(visits(dsn)) + shop.query("SELECT count(*) FROM logsluice.logs WHERE logger <> 'logsluice'")[0][0]
        assert (stored, stats.stored + stats.dropped) == (stats.stored, stats.offered)


def test_a_module_loaded_again_takes_nothing_from_what_waits(dsn):
    """Its types are declared again, and have the names of the old: one must not take the other's place."""
    with Proxy(dsn) as proxy, Shop(proxy.dsn) as shop:
        proxy.refuse()
        for tid in range(0, 600, 2):
            shop.logger.info(Visit(tid))
            shop.logger.info(again()(tid=tid + 1))
        proxy.heal()
        assert shop.flush()
        stats = shop.stats
        assert (stats.offered, stats.stored, stats.waiting) == (600, 600, 0)
    assert visits(dsn) == list(range(600))


@functools.cache
def again():
    """Visit, declared a second time."""
    fields = {"tid": int, "note": str | None}
    kind = type("Visit", (), {"__module__": __name__, "__annotations__": fields, "note": None})
    return logtype(table="visit")(kind)


def test_deliver_needs_no_logger_and_stores_once_for_each_place(dsn):
    with Shop(dsn) as first, Shop(dsn) as second:
        deliver(Visit(5))
        assert first.flush()
        assert second.flush()
    assert visits(dsn) == [5]


def test_a_fallback_gets_no_copy(dsn, empty_dsn):
    with Shop(empty_dsn) as other, Shop(dsn, fallback="of-last-resort") as shop:
        other.handler.set_name("of-last-resort")
        deliver(Visit(5))
        assert shop.flush()
        assert other.handler.stats().offered == 0
    assert visits(dsn) == [5]


PROGRAM = """
import logging, logging.config, os, signal, sys
from logsluice.types import logtype
@logtype(table="visit")
class Visit:
    tid: int
    note: str | None = None
logging.config.dictConfig({"version": 1, "handlers": {"pg": {"class": "logsluice.PostgresHandler",
    "dsn": sys.argv[1], "journal": sys.argv[2]}}, "root": {"handlers": ["pg"], "level": "INFO"}})
for tid in range(500):
    logging.info(Visit(tid=tid))
    logging.info("message %d", tid)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_journals_orphans_are_sent_by_the_next_process(dsn, tmp_path):
    """kill -9 right after the last call: typed rows and messages of the dead process are stored once."""
    result = run_program(PROGRAM, args=(dsn, str(tmp_path / "journal")))
    assert result.returncode == -9
    with Shop(dsn, journal=str(tmp_path / "journal")) as shop:
        shop.log(1)
        count = "SELECT count(*), count(DISTINCT message) FROM logsluice.logs WHERE logger = 'root'"
        assert until(lambda: shop.query(count) == [(500, 500)], LIMIT)
        assert until(lambda: shop.query("SELECT to_regclass('logsluice.visit') IS NOT NULL") == [(True,)], LIMIT)
        assert until(lambda: visits(dsn) == list(range(500)), LIMIT)
        assert until(lambda: not shop.stats.journal["left"], LIMIT)


def test_a_handler_with_a_table_of_its_own_maps_the_fields(shop, dsn):
    shop.do("CREATE TABLE public.mine (who text, said text)")
    with Shop(dsn, table="public.mine", columns={"who": "extra.customer", "said": "message"}) as own:
        own.logger.info(Payment(customer="c-7"))
        assert own.flush()
    assert shop.query("SELECT * FROM public.mine") == [("c-7", "payment customer=c-7 amount=1 status=paid attempts=1")]
