"""
No password and no row content where people look: stderr, stats, repr, thread names, dead_letter.error, the server's log.

The password holds what people forget to encode; each of its words is looked for alone, since messages quote pieces.
"""

from __future__ import annotations

import traceback

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logsluice.errors import ConfigError
from logsluice.handlers import PostgresHandler
from support.canary import FORMS, PASSWORD, ROW, WRITING, keeper, leaks, made, observe, pairs, uri
from support.commits import COMMIT
from support.processes import until
from support.proxy import Proxy, kind
from support.shop import LIMIT, Shop


@pytest.fixture
def debug(monkeypatch):
    monkeypatch.setenv("LOGSLUICE_DEBUG", "1")


@pytest.fixture
def account(dsn, admin):
    """A role with the password, and the dsn's parameters for it."""
    with keeper(dsn, admin) as parameters:
        yield parameters


def test_with_the_right_password_nothing_is_said_of_it(account, dsn, capfd, debug, monkeypatch):
    for form, options in FORMS.items():
        shop = Shop(None, read=dsn, made=made(options(account, monkeypatch.setenv)))
        shop.log(3, animal=ROW[0])
        assert shop.flush(), form
        found = leaks(observe(shop, capfd))
        assert not found, (form, found)


# Each: what is changed in the parameters, and a piece of what must be said.
CONNECTING = {
    "wrong password": (lambda p, port: {**p, "password": PASSWORD + "no"}, "password authentication failed"),
    "refused": (lambda p, port: {**p, "port": str(port)}, "refused"),
    "no such role": (lambda p, port: {**p, "user": "nobody_of_that_name"}, "password authentication failed"),
    "no such database": (lambda p, port: {**p, "dbname": "none_of_that_name"}, "does not exist"),
    "no such host": (lambda p, port: {**p, "host": "nowhere.invalid", "hostaddr": ""}, "nowhere.invalid"),
    "TLS wanted": (lambda p, port: {**p, "sslmode": "require"}, "SSL"),
    "bad option value": (lambda p, port: {**p, "sslmode": "sideways"}, "sslmode"),
}


@pytest.mark.parametrize(
    ("form", "fault"),
    [*[("uri", fault) for fault in CONNECTING], *[(form, "wrong password") for form in FORMS if form != "uri"]],
)
def test_a_connection_that_fails(account, dsn, capfd, debug, monkeypatch, form, fault):
    change, says = CONNECTING[fault]
    from logsluice.devserver import free_port

    parameters = {k: v for k, v in change(account, free_port()).items() if v}
    if "SSL" in says or "sslmode" in says:
        options = {"dsn": make_conninfo(**parameters)}
    else:
        options = FORMS[form](parameters, monkeypatch.setenv)
    shop = Shop(None, read=dsn, made=made(options), io_timeout=2, shutdown_timeout=0.1)
    shop.log(1, animal=ROW[0])
    failures = shop.await_failure(count=1)
    assert says in failures[0]["error"]
    found = leaks(observe(shop, capfd))
    assert not found, found


# --- a dsn that libpq reads otherwise than it was meant ----------------------------------------------------------------

MISREAD = [
    "postgresql://keeper:{}@127.0.0.1:5432/shop",
    "postgres://keeper:{}@127.0.0.1/shop",
    "host=127.0.0.1 user=keeper password={} dbname=shop",
    "host=127.0.0.1 user=keeper password='{}' dbname=shop",
    "host=127.0.0.1 passwort={} dbname=shop",
    "postgresql://keeper@127.0.0.1/shop?passwort={}",
    "{}",
]
RAW = [
    PASSWORD,
    "zebra@yak",
    "zebra/yak",
    "zebra:yak/xerus",
    "zebra?yak",
    "zebra#yak",
    "zebra%yak",
    "zebra yak",
    "12/zebra",
    "zebra'yak",
    "[zebra",
]


@pytest.mark.parametrize("given", ["dsn", "callable"])
@pytest.mark.parametrize("form", MISREAD)
def test_a_dsn_that_is_not_what_was_meant(dsn, capfd, debug, form, given):
    """As text it is refused when logging is configured, in our words; from a callable it is said at each connect."""
    for raw in RAW if given == "dsn" else RAW[:3]:  # connecting takes its time
        text = form.format(raw)
        shop = None
        try:
            shop = Shop(text if given == "dsn" else lambda: text, read=dsn, io_timeout=2, shutdown_timeout=0.01)
        except ConfigError as error:
            assert given == "dsn"
            refused = error
        if shop is None:
            assert given == "dsn"
            shown = "".join(traceback.format_exception(refused))
            assert "ProgrammingError" not in shown  # libpq's own words are not behind ours
            assert not leaks(f"{refused} {refused.args!r}"), (text, refused)
            continue
        shop.log(1)
        shop.await_failure()
        found = leaks(observe(shop, capfd))
        assert not found, (text, found)


def test_a_password_that_was_not_encoded_is_named_as_the_likely_cause():
    with pytest.raises(ConfigError, match=r"(?i)percent-encode"):
        PostgresHandler(dsn="postgresql://keeper:zebra@yak@127.0.0.1/shop")
    with pytest.raises(ConfigError, match="did you mean 'password'"):
        PostgresHandler(dsn="host=127.0.0.1 pasword=zebra")


@pytest.mark.parametrize(
    "fine",
    [
        "",
        "postgresql://",
        "postgresql://a:b@h1:1,h2:2/db?application_name=x@y",
        "postgresql://a:b%40c@[::1]:5432/my%40db",
        "postgresql:///db?host=/var/run/postgresql",
        "host=/tmp dbname=a@b password='x y@z'",
        "postgresql://a:b:c#d@h/db",
        "service=shop",
        "postgresql://%2Ftmp/db",
        "postgresql://h:/db",
    ],
)
def test_what_libpq_reads_as_it_was_meant_is_taken(fine):
    PostgresHandler(dsn=fine).close()


# --- while writing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(account, dsn, debug):
    with Proxy(pairs(account)) as proxy:
        shop = Shop(proxy.dsn, read=dsn, io_timeout=1, shutdown_timeout=0.1)
        shop.proxy = proxy
        shop.watch()
        yield shop
        shop.handler.close()


@pytest.mark.parametrize("fault", WRITING)
def test_a_batch_that_fails(shop, capfd, fault):
    shop.log(1, animal=ROW[0])  # not in the fixture: what is said between its end and the test is captured by nobody
    assert shop.flush()
    if fault == "a key":
        shop.do("ALTER TABLE logsluice.logs RENAME TO parts", "CREATE TABLE logsluice.logs (LIKE logsluice.parts)")
    WRITING[fault](shop)
    for _ in range(3):
        shop.logger.info('numbat "okapi" numbat, %s\nokapi\tnumbat', '"', extra={"animal": "okapi"})
    failures = shop.await_failure()
    assert until(lambda: shop.failed() or shop.dead(), LIMIT)
    assert failures[0]["error"]
    found = leaks(observe(shop, capfd))
    assert not found, (failures, found)


def test_the_servers_log_gets_no_password_and_no_message_of_ours(own_server, capfd, debug, monkeypatch):
    """An exception inside copy() would be sent to the server (CopyFail) and logged there."""
    name, dsn = "keeper", own_server.dsn()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD {psycopg.sql.quote(PASSWORD)}")
        conn.execute("ALTER SYSTEM SET log_statement = 'none'")
    written = own_server.log_path.stat().st_size
    account = {**conninfo_to_dict(dsn), "user": name, "password": PASSWORD}
    with Proxy(pairs(account)) as proxy:
        shop = Shop(proxy.dsn, read=dsn, io_timeout=0.3, shutdown_timeout=0.5)
        shop.log(5)
        assert shop.flush()
        for fault in (kind(b"c"), kind(b"d"), COMMIT):
            proxy.swallow_after(fault)
            shop.log(5)
            assert until(lambda: proxy.swallowed, LIMIT)
            proxy.heal()
            assert shop.flush()
            proxy.cut_before(fault)
            shop.log(5)
            assert shop.flush()
        assert proxy.cuts == 3
        _, dead = shop.check()
        assert not dead
        wrong = Shop(pairs({**account, "password": PASSWORD + "no"}), read=dsn, shutdown_timeout=0.1)
        wrong.log()
        wrong.await_failure()
        wrong.handler.close()
        shop.handler.close()
    with own_server.log_path.open() as log:
        log.seek(written)
        text = log.read()
    assert "password authentication failed" in text  # it is the log of these sessions
    assert not leaks(text)
    for ours in ("logsluice[", "IoTimeout", "did not answer", "Traceback"):
        assert ours not in text


def test_no_row_content_on_stderr_when_a_record_cannot_be_encoded(dsn, capfd):
    class Hostile:
        def __str__(self):
            raise RuntimeError("okapi")

        __repr__ = __str__

    with Shop(dsn) as shop:
        shop.logger.info("%s", Hostile())
        shop.logger.info("%d", "numbat")
        shop.logger.info(Hostile(), extra={"x": Hostile()})
        assert shop.flush()
        assert shop.query("SELECT count(*) FROM logsluice.logs") == [(3,)]
    captured = capfd.readouterr()
    assert not leaks(captured.err + captured.out)


def test_dictconfig_says_what_is_wrong_without_the_password():
    import logging.config

    for options in (
        {"dns": uri({"user": "u", "password": PASSWORD, "host": "h", "port": 1, "dbname": "d"})},
        {"dsn": ["postgresql://u:zebra@h/d"]},
        {"dsn": {"password": "zebra"}},
        {"dsn": b"postgresql://u:zebra@h/d"},
        {"dsn": "password=zebra", "dsn_env": "NOT_SET"},
        {"dsn": "password=zebra nonsense"},
    ):
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"db": {"class": "logsluice.PostgresHandler", **options}},
        }
        with pytest.raises(ValueError, match="db") as caught:
            logging.config.dictConfig(config)
        cause = caught.value.__cause__
        assert isinstance(cause, ConfigError)
        assert not leaks(f"{caught.value} {cause}"), options
    assert logging.getLogger().level == logging.WARNING
