"""The ASGI middleware, its protocol driven by hand: what is sent stays the same, and one row says what it was."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

from logsluice import context, tracing
from logsluice.errors import ConfigError
from logsluice.middleware import note_error, requests
from logsluice.middleware.asgi import LogMiddleware
from support.served import answering, body, scope, served, start, talk

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def make(rows):
    return lambda app, **options: LogMiddleware(app, logger=rows.name_of_logger, **options)


def test_a_request_is_one_row(make, rows):
    app = make(answering(start(201), body(b"hel", more=True), body(b"lo")))
    sent = served(app, scope(method="POST", headers=[("User-Agent", "curl/8"), ("Content-Length", "7")]))
    assert [message.get("body") for message in sent[1:]] == [b"hel", b"lo"]
    row = rows.one
    assert (row.method, row.path, row.status, row.response_bytes) == ("POST", "/orders/17", 201, 5)
    assert (row.client_ip, row.user_agent, row.request_bytes, row.error) == ("10.1.2.3", "curl/8", 7, None)
    assert (row.route, row.request_body) == (None, None)
    assert row.duration_ms >= 0
    assert rows.last_level == logging.INFO


def test_the_row_comes_with_the_last_byte_not_with_the_background_task(make, rows):
    seen = []

    async def app(_scope, _receive, send):
        await send(start())
        await send(body(b"a", more=True))
        seen.append(len(rows.all))
        await send(body(b"b"))
        seen.append(len(rows.all))  # a background task begins here

    served(make(app))
    assert seen == [0, 1]
    assert rows.one.response_bytes == 2


def test_what_a_background_task_raises_is_a_record_of_its_own(make, rows):
    async def app(_scope, _receive, send):
        await send(start())
        await send(body(b"ok"))
        raise ValueError("mail server away")

    with pytest.raises(ValueError, match="mail server away"):
        served(make(app))
    row, late = rows.all[0], rows.records[1]
    assert (row.status, row.error) == (200, None)
    assert late.levelno == logging.ERROR
    assert late.getMessage() == "GET /orders/17: failed after its answer: ValueError: mail server away"
    assert late.exc_info[1].args == ("mail server away",)
    assert rows.bound[0]["correlation_id"] == rows.bound[1]["correlation_id"]


def test_an_exception_goes_on_unchanged_and_is_told(make, rows):
    error = ValueError("no such order")

    async def app(*_):
        raise error

    with pytest.raises(ValueError) as caught:
        served(make(app))
    assert caught.value is error
    assert (rows.one.status, rows.one.error) == (500, "ValueError: no such order")
    assert rows.last_level == logging.ERROR


def test_an_exception_behind_an_answer_of_500_is_told_in_its_row(make, rows):
    """Starlette's outermost middleware answers, and raises then."""

    async def app(_scope, _receive, send):
        await send(start(500))
        await send(body(b"Internal Server Error"))
        raise ValueError("no such order")

    with pytest.raises(ValueError):
        served(make(app))
    assert (rows.one.status, rows.one.error) == (500, "ValueError: no such order")


def test_an_exception_in_the_middle_of_an_answer(make, rows):
    async def app(_scope, _receive, send):
        await send(start(200))
        await send(body(b"half", more=True))
        raise ValueError("the rest is missing")

    with pytest.raises(ValueError):
        served(make(app))
    row = rows.one
    assert (row.status, row.response_bytes, row.error) == (200, 4, "ValueError: the rest is missing")
    assert rows.last_level == logging.ERROR


def test_an_error_that_the_application_answered_for_can_be_noted(make, rows):
    async def app(_scope, _receive, send):
        note_error(KeyError("order"))
        note_error(ValueError("the answer for it"))
        await send(start(500))
        await send(body())

    served(make(app))
    assert rows.one.error == "KeyError: 'order'"
    note_error(KeyError("outside of a request"))


@pytest.mark.parametrize(
    ("messages", "status", "error"),
    [
        ([], 500, "no answer"),
        ([start(200), body(b"half", more=True)], 200, "answer broken off after 4 bytes"),
    ],
)
def test_an_answer_that_does_not_end(make, rows, messages, status, error):
    served(make(answering(*messages)))
    assert (rows.one.status, rows.one.error) == (status, error)


@pytest.mark.parametrize(
    ("first", "status", "error"),
    [
        ([], 499, "client disconnected after 0 bytes"),
        ([start(200), body(b"half", more=True)], 200, "client disconnected after 4 bytes"),
    ],
)
def test_a_client_that_leaves(make, rows, first, status, error):
    async def app(_scope, receive, send):
        for message in first:
            await send(message)
        while (await receive())["type"] != "http.disconnect":
            pass

    served(make(app))
    assert (rows.one.status, rows.one.error) == (status, error)
    assert rows.last_level == logging.WARNING


def test_a_client_that_left_is_seen_by_sending_too(make, rows):
    app = make(answering(start(200), body(b"half", more=True), body(b"rest")))
    with pytest.raises(OSError):
        served(app, refuses=lambda message: message.get("body") == b"rest")
    assert rows.one.status == 200
    assert rows.one.error.startswith("client disconnected")


@pytest.mark.parametrize("status", [200, 500])  # of 500 and above the row is still to be written then
def test_a_disconnect_behind_the_last_byte_is_none(make, rows, status):
    async def app(_scope, receive, send):
        await send(start(status))
        await send(body(b"all"))
        assert (await receive())["type"] == "http.disconnect"

    served(make(app), messages=())
    assert rows.one.error is None


@pytest.mark.parametrize(("first", "level"), [([], logging.ERROR), ([start(200)], logging.WARNING)])
def test_a_task_that_is_cancelled(make, rows, first, level):
    async def app(_scope, _receive, send):
        for message in first:
            await send(message)
        await asyncio.Event().wait()

    async def main():
        task = asyncio.ensure_future(talk(make(app), scope()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (rows.one.error, rows.last_level) == ("CancelledError", level)


def test_files_that_the_server_sends_and_trailers(make, rows):
    length = (b"content-length", b"4096")
    served(make(answering(start(200, [length]), {"type": "http.response.pathsend", "path": "/etc/hosts"})))
    assert rows.all[-1].response_bytes == 4096
    end = {"type": "http.response.trailers", "headers": [], "more_trailers": False}

    async def app(_scope, _receive, send):
        for message in (start(200, trailers=True), body(b"x"), end):
            assert len(rows.all) == 1, "the one of before"
            await send(message)

    assert served(make(app))[-1] == end
    assert [row.error for row in rows.all] == [None, None]


def test_the_body_of_an_answer_to_head_is_not_sent(make, rows):
    served(make(answering(start(), body(b"hello"))), scope(method="HEAD"))
    assert rows.one.response_bytes == 0


def test_messages_that_it_does_not_know_pass_through(make, rows):
    hint = {"type": "http.response.early_hint", "links": []}
    assert served(make(answering(hint, start(), body())))[0] is hint
    assert rows.one.status == 200


# --- ids


def headers_of(sent):
    return dict(sent[0]["headers"])


def test_ids_come_in_and_go_out_and_are_bound(make, rows):
    seen = {}

    async def app(_scope, _receive, send):
        seen.update(context.get())
        await send(start())
        await send(body())

    sent = served(make(app), scope(headers=[("X-Request-ID", "abc-123"), ("traceparent", PARENT)]))
    assert headers_of(sent)[b"x-request-id"] == b"abc-123"
    version, trace_id, span_id, _flags = headers_of(sent)[b"traceparent"].decode().split("-")
    assert (version, trace_id) == ("00", "0af7651916cd43dd8448eb211c80319c")
    assert seen == {"correlation_id": "abc-123", "trace_id": trace_id, "span_id": span_id}
    assert rows.bound[0] == seen
    assert context.get() is None
    assert tracing.current() is None


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "evil\r\nset-cookie: a=b", "ä", "<script>"])
def test_a_request_id_that_is_no_id_is_replaced(make, given):
    made = headers_of(served(make(answering(start(), body())), scope(headers=[("x-request-id", given)])))
    assert len(made[b"x-request-id"]) == 32
    assert int(made[b"x-request-id"], 16)


def test_two_request_ids_are_none(make):
    given = scope(headers=[("x-request-id", "one"), ("x-request-id", "two")])
    assert len(headers_of(served(make(answering(start(), body())), given))[b"x-request-id"]) == 32


def test_the_applications_own_header_stays(make):
    app = make(answering(start(headers=[(b"X-Request-Id", b"its own")]), body()))
    sent = served(app)
    assert [value for name, value in sent[0]["headers"] if name.lower() == b"x-request-id"] == [b"its own"]


def test_the_applications_message_is_not_changed(make):
    message = start(headers=[(b"a", b"b")])
    served(make(answering(message, body())))
    assert message == start(headers=[(b"a", b"b")])


def test_what_the_application_binds_is_in_the_row_and_gone_after(make, rows):
    async def app(_scope, _receive, send):
        context.bind(user_id="ada")
        await send(start())
        await send(body())

    async def main():
        await talk(make(app), scope())
        return context.get()

    assert asyncio.run(main()) is None
    assert rows.bound[0]["user_id"] == "ada"


# --- routes


class Route:
    def __init__(self, path):
        self.path = self.path_format = path


@pytest.mark.parametrize(
    ("path", "root", "template", "params", "expected"),
    [
        ("/orders/17", "", "/orders/{id}", {"id": 17}, "/orders/{id}"),
        ("/api/v1/orders/17", "", "/orders/{id}", {"id": "17"}, "/api/v1/orders/{id}"),  # include_router(prefix=)
        ("/t/acme/orders/17", "", "/orders/{id}", {"tenant": "acme", "id": 17}, "/t/{tenant}/orders/{id}"),  # a mount
        ("/proxied/orders/17", "/proxied", "/orders/{id}", {"id": 17}, "/orders/{id}"),
        ("/orders/17/", "", "/orders/{id}", {"id": 17}, "/orders/{id}"),
        ("/static/a.css", "", "/static/{path}", {}, "/static/{path}"),
    ],
)
def test_the_template_of_a_starlette_route(make, rows, path, root, template, params, expected):
    async def app(given, _receive, send):
        given.update(route=Route(template), path_params=params)
        await send(start())
        await send(body())

    served(make(app), scope(path, root_path=root))
    assert rows.one.route == expected


def test_an_application_may_say_its_route(make, rows):
    async def app(given, _receive, send):
        given["logsluice.route"] = "/orders/<id>"
        await send(start())
        await send(body())

    served(make(app))
    assert rows.one.route == "/orders/<id>"


# --- what is left out


def test_skipped_paths_are_left_alone(make, rows):
    seen = []

    async def app(given, receive, send):
        seen.append((receive.__name__, context.get()))
        await send(start())
        await send(body())

    log = make(app, skip=["/health", "/static/*"])
    for path in ("/health", "/static/a.css", "/healthy"):
        served(log, scope(path))
    assert [row.path for row in rows.all] == ["/healthy"]
    assert [bound is None for _, bound in seen] == [True, True, False]


def test_a_sample_keeps_errors_and_slow_requests(make, rows):
    served(make(answering(start(200), body()), sample=0))
    assert rows.all == []
    log = make(answering(start(503), body()), sample=0)
    served(log)
    assert rows.one.status == 503
    served(make(answering(start(200), body()), sample=0, slow_ms=0))
    assert (len(rows.all), rows.last_level) == (2, logging.WARNING)
    assert log.stats() == {"rows": 1, "sampled": 0, "failures": 0}


def test_a_sample_is_of_whole_traces(make, rows):
    """Each program decides by the trace's id, so all of them keep the same traces."""
    random.seed(7)
    logs = [make(answering(start(), body()), sample=0.5) for _ in range(2)]
    kept = []
    for log in logs:
        before = len(rows.all)
        random.seed(7)
        for _ in range(200):
            parent = f"00-{random.getrandbits(128):032x}-b7ad6b7169203331-01"
            served(log, scope(headers=[("traceparent", parent)]))
        kept.append([bound["trace_id"] for bound in rows.bound[before:]])
    assert kept[0] == kept[1]
    assert 60 < len(kept[0]) < 140
    assert logs[0].stats()["rows"] + logs[0].stats()["sampled"] == 200


# --- bodies


def reading(app_messages=(start(), body())):
    async def app(_scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        for message in app_messages:
            await send(message)

    return app


def posted(make, data, kind="application/json", pieces=1, **options):
    step = -(-len(data) // pieces)
    messages = [
        {"type": "http.request", "body": data[at : at + step], "more_body": at + step < len(data)}
        for at in range(0, len(data), step)
    ]
    served(make(reading(), **options), scope(method="POST", headers=[("Content-Type", kind)]), messages)


def test_no_body_is_kept_unless_asked_for(make, rows):
    posted(make, b'{"a": 1}')
    assert (rows.one.request_body, rows.one.request_bytes) == (None, 8)


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("application/json; charset=utf-8", b'{"a": [{"Password": "x"}], "token_count": 3}',
         '{"a": [{"Password": "[redacted]"}], "token_count": 3}'),
        ("application/problem+json", b'{"api-key": {"deep": 1}}', '{"api-key": "[redacted]"}'),
        ("application/json", b'{"url": "postgres://me:secret@db/x"}', '{"url": "postgres://me:***@db/x"}'),
        ("application/x-www-form-urlencoded", b"user=ada&pass%77ord=x&cvv=", "user=ada&pass%77ord=[redacted]&cvv="),
        ("application/json", b'{"password": "x"', "[16 bytes that are no JSON: could not be masked]"),
        ("application/json", b"[" * 3000, "[3000 bytes that are no JSON: could not be masked]"),
        ("application/json", b'{"password": "' + b"x" * 5000 + b'"}',
         "[JSON of 5016 bytes, over body_bytes=4096: cut it could not be masked]"),
        ("application/x-www-form-urlencoded", b"token=" + b"x" * 5000, "token=[redacted]… [5006 bytes]"),
        ("text/plain", b"hello", None),
        ("multipart/form-data; boundary=x", b"--x", None),
    ],
)  # fmt: skip
def test_what_is_kept_of_a_body(make, rows, kind, data, expected):
    posted(make, data, kind, pieces=3, request_body=True)
    assert rows.one.request_body == expected
    assert rows.one.request_bytes == len(data)


def test_a_text_is_kept_when_its_type_is_listed(make, rows):
    posted(make, b"hello world", "text/plain", request_body=True, body_types=["text/*"], body_bytes=5)
    assert rows.one.request_body == "hello… [11 bytes]"


# --- other connections


def test_lifespan_passes_through(make, rows):
    seen = []

    async def app(given, receive, send):
        seen.append((given, receive, send))

    log = make(app)
    asyncio.run(log({"type": "lifespan"}, "receive", "send"))
    assert seen == [({"type": "lifespan"}, "receive", "send")]
    assert rows.all == []


def websocket(**more):
    return {**scope("/chat"), "type": "websocket", **more}


def test_a_websocket_is_one_row_at_its_end(make, rows):
    async def app(_scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"] * 2})
        assert rows.all == []

    told = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hé"}]
    given = websocket()
    del given["method"]
    sent = served(make(app), given, told)
    assert (b"x-request-id" in dict(sent[0]["headers"]), sent[1]["text"]) == (True, "héhé")
    row = rows.one
    assert (row.method, row.status, row.request_bytes, row.response_bytes) == ("WEBSOCKET", 101, 3, 6)
    assert row.error is None


def test_a_websocket_that_is_refused_and_one_that_raises(make, rows):
    served(make(answering({"type": "websocket.close", "code": 1000})), websocket(), ())
    assert rows.one.status == 403

    async def app(_scope, _receive, send):
        await send({"type": "websocket.accept"})
        raise ValueError("bad frame")

    with pytest.raises(ValueError):
        served(make(app), websocket(), ())
    assert (rows.all[1].status, rows.all[1].error) == (101, "ValueError: bad frame")


def test_websockets_can_be_left_alone(make, rows):
    served(make(answering({"type": "websocket.close"}), websockets=False), websocket(), ())
    assert rows.all == []


# --- its own failures


def test_a_logger_that_raises_breaks_no_request_and_is_said_once(make, rows, said):
    def raising(_record):
        raise RuntimeError("secret of a row")

    rows.logger.addFilter(raising)
    log = make(answering(start(), body(b"ok")))
    for _ in range(3):
        assert served(log)[1] == body(b"ok")
    assert len(said) == 1
    assert "the row of a request failed" in said[0]
    assert "secret" not in said[0]
    assert log.stats()["failures"] == 3


@pytest.mark.parametrize("broken", [{"headers": None}, {"client": 7}, {"headers": [(1, 2, 3)]}])
def test_a_scope_that_cannot_be_read_is_served_without_a_row(make, rows, said, broken):
    sent = served(make(answering(start(), body(b"ok"))), scope() | broken)
    assert sent == [start(), body(b"ok")]
    assert rows.all == []
    assert len(said) == 1


def test_messages_that_are_not_as_specified_are_sent_as_they_are(make, said):
    odd = {"type": "http.response.start", "status": "200", "headers": [(None, None)]}
    sent = served(make(answering(odd, body(b"ok"))))
    assert sent == [odd, body(b"ok")]
    assert "an answer failed" in said[0]


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skipp": []}, "did you mean 'skip'"),
        ({"skip": "/health"}, "skip is a list of paths"),
        ({"skip": ["health"]}, "skip is a list of paths"),
        ({"sample": 2}, "sample must be a number from 0 to 1"),
        ({"sample": float("nan")}, "sample must be"),
        ({"slow_ms": -1}, "slow_ms must be a number from 0, got -1"),
        ({"trusted_proxies": ["10.0.0.0/8", "nonsense"]}, "trusted_proxies: 'nonsense'"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "host bits set"),
        ({"trusted_proxies": "10.0.0.0/8"}, "is a list of networks"),
        ({"forwarded_header": "x-real-ip"}, "forwarded_header must be one of"),
        ({"body_bytes": 0}, "body_bytes must be"),
        ({"body_types": ["json"]}, "body_types is a list"),
        ({"redact": "everything"}, "redact must be"),
        ({"request_id_header": "X Request"}, "request_id_header"),
    ],
)
def test_wrong_options_say_what_to_write(options, message):
    with pytest.raises(ConfigError, match=message):
        LogMiddleware(None, **options)


def test_the_pages_table_names_every_option():
    import inspect
    import re

    from support.howto import PAGES

    table = re.findall(r"^\| `(\w+)` \|", (PAGES / "middleware.md").read_text(encoding="utf-8"), re.MULTILINE)
    options = inspect.signature(requests.Middleware).parameters.values()
    assert table == [one.name for one in options if one.kind is one.KEYWORD_ONLY]
