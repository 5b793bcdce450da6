"""The WSGI middleware, its protocol driven by hand: what the server gets stays the same, and one row says what it was."""

from __future__ import annotations

import io
import logging
import wsgiref.util
import wsgiref.validate

import pytest

from logsluice import context
from logsluice.middleware.wsgi import LogMiddleware
from support.served import Wsgi, environ

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def make(rows):
    return lambda app, **options: LogMiddleware(app, logger=rows.name_of_logger, **options)


def answering(*pieces, status="200 OK", headers=()):
    def app(_environ, start_response):
        start_response(status, list(headers))
        return list(pieces)

    return app


def test_a_request_is_one_row(make, rows):
    data = b'{"a": 1}'
    given = environ("/orders/17", "POST", data, HTTP_USER_AGENT="curl/8", SCRIPT_NAME="/shop")
    done = Wsgi(make(answering(b"hel", b"lo", status="201 Created")), given)
    assert (done.status, done.sent) == ("201 Created", [b"hel", b"lo"])
    row = rows.one
    assert (row.method, row.path, row.status, row.response_bytes) == ("POST", "/shop/orders/17", 201, 5)
    assert (row.client_ip, row.user_agent, row.request_bytes, row.error) == ("10.1.2.3", "curl/8", 8, None)
    assert rows.last_level == logging.INFO


def test_it_keeps_to_the_protocol(make, rows):
    given = {"QUERY_STRING": ""}
    wsgiref.util.setup_testing_defaults(given)
    app = make(wsgiref.validate.validator(answering(b"hello", headers=[("Content-Type", "text/plain")])))
    done = Wsgi(wsgiref.validate.validator(app), given)
    assert done.sent == [b"hello"]
    assert rows.one.status == 200


def test_the_row_comes_when_the_server_has_all(make, rows):
    seen = []

    def app(_environ, start_response):
        start_response("200 OK", [])
        for piece in (b"a", b"b"):
            seen.append(len(rows.all))
            yield piece

    assert Wsgi(make(app)).sent == [b"a", b"b"]
    assert seen == [0, 0]
    assert rows.one.response_bytes == 2


def test_an_answer_that_starts_late(make, rows):
    """A generator calls `start_response` at its first step."""

    def app(_environ, start_response):
        start_response("404 Not Found", [])
        yield b"nothing"

    done = Wsgi(make(app))
    assert rows.one.status == 404
    assert "X-Request-ID" in done.headers


def test_an_answer_of_one_piece_still_says_so(make):
    """Of the length of the list a server makes the Content-Length."""
    assert len(Wsgi(make(answering(b"hello"))).answer) == 1
    assert not hasattr(Wsgi(make(lambda _environ, start: iter([start("200 OK", []) and b"x"]))).answer, "__len__")


def test_close_is_called_inside_of_the_request(make, rows):
    seen = []

    class Answer:
        def __iter__(self):
            return iter([b"x"])

        def close(self):
            seen.append((dict(context.get()), len(rows.all)))

    def app(_environ, start_response):
        start_response("200 OK", [])
        context.bind(user_id="ada")
        return Answer()

    Wsgi(make(app))
    ((bound, written),) = seen
    assert (bound["user_id"], written) == ("ada", 0)
    assert rows.bound[0] == bound
    assert context.get() is None


def test_an_exception_goes_on_unchanged(make, rows):
    error = ValueError("no such order")

    def app(*_):
        raise error

    with pytest.raises(ValueError) as caught:
        Wsgi(make(app))
    assert caught.value is error
    assert (rows.one.status, rows.one.error) == (500, "ValueError: no such order")
    assert rows.last_level == logging.ERROR


def test_an_exception_in_the_middle_of_an_answer(make, rows):
    def app(_environ, start_response):
        start_response("200 OK", [])
        yield b"half"
        raise ValueError("the rest is missing")

    with pytest.raises(ValueError):
        Wsgi(make(app))
    row = rows.one
    assert (row.status, row.response_bytes, row.error) == (200, 4, "ValueError: the rest is missing")


def test_an_exception_of_close(make, rows):
    class Answer(list):
        def close(self):
            raise ValueError("cannot close")

    def app(_environ, start_response):
        start_response("200 OK", [])
        return Answer([b"x"])

    with pytest.raises(ValueError):
        Wsgi(make(app))
    assert rows.one.error == "ValueError: cannot close"


def test_an_error_that_is_answered_by_start_response(make, rows):
    def app(_environ, start_response):
        try:
            raise KeyError("order")
        except KeyError:
            import sys

            start_response("500 Oh", [], sys.exc_info())
        return [b"sorry"]

    done = Wsgi(make(app))
    assert done.exc_info[0][0] is KeyError
    assert (rows.one.status, rows.one.error) == (500, "KeyError: 'order'")


def test_write_is_counted(make, rows):
    def app(_environ, start_response):
        write = start_response("200 OK", [])
        write(b"first")
        return [b"!"]

    assert Wsgi(make(app)).sent == [b"first", b"!"]
    assert rows.one.response_bytes == 6


def test_a_client_that_leaves(make, rows):
    """The server closes the answer before its end."""

    def app(_environ, start_response):
        start_response("200 OK", [])
        yield b"half"
        yield b"rest"

    Wsgi(make(app), pieces=1)
    assert (rows.one.status, rows.one.error) == (200, "client disconnected after 4 bytes")
    assert rows.last_level == logging.WARNING


def test_a_server_that_knows_the_length_need_not_ask_for_more(make, rows):
    Wsgi(make(answering(b"half", headers=[("Content-Length", "4")])), pieces=1)
    assert rows.one.error is None
    Wsgi(make(answering(b"body")), environ(method="HEAD"), pieces=0)
    assert (rows.all[1].error, rows.all[1].response_bytes) == (None, 0)


# --- files that the server sends by itself


class Closing(io.BytesIO):
    closings = 0

    def close(self):
        self.closings += 1
        super().close()


def test_the_server_gets_its_own_file_wrapper(make, rows):
    file = Closing(b"x" * 10)

    def app(given, start_response):
        start_response("200 OK", [("Content-Length", "10")])
        return given["wsgi.file_wrapper"](file)

    def serve(given, start_response):
        answer = make(app)(given, start_response)
        assert type(answer) is wsgiref.util.FileWrapper
        return answer

    done = Wsgi(serve, environ(**{"wsgi.file_wrapper": wsgiref.util.FileWrapper}))
    assert b"".join(done.sent) == b"x" * 10
    assert (rows.one.response_bytes, rows.one.error, file.closings) == (10, None, 1)


def test_a_file_wrapper_that_is_no_class(make, rows):
    """uWSGI's is a function, and what it returns takes no attribute."""
    made = []

    def wrapper(_file, _size=0):
        made.append((b"x",))
        return made[-1]

    def app(given, start_response):
        start_response("200 OK", [("Content-Length", "10")])
        return given["wsgi.file_wrapper"](io.BytesIO(b"x"))

    done = Wsgi(make(app), environ(**{"wsgi.file_wrapper": wrapper}))
    assert done.answer is made[0]
    assert (rows.one.response_bytes, rows.one.error) == (10, None)


# --- ids, routes, bodies


def test_ids_come_in_and_go_out_and_are_bound(make, rows):
    seen = []

    def app(_environ, start_response):
        seen.append(dict(context.get()))
        start_response("200 OK", [("A", "b")])
        seen.append(dict(context.get()))
        yield b"x"
        seen.append(dict(context.get()))

    done = Wsgi(make(app), environ(HTTP_X_REQUEST_ID="abc-123", HTTP_TRACEPARENT=PARENT))
    trace_id, span_id = done.headers["traceparent"].split("-")[1:3]
    assert (done.headers["X-Request-ID"], done.headers["A"], trace_id) == ("abc-123", "b", PARENT.split("-")[1])
    bound = {"correlation_id": "abc-123", "trace_id": trace_id, "span_id": span_id}
    assert seen == [bound] * 3
    assert rows.bound == [bound]
    assert context.get() is None


def test_the_list_of_headers_is_not_changed_and_the_applications_own_stays(make):
    headers = [("x-request-id", "its own")]

    def app(_environ, start_response):
        start_response("200 OK", headers)
        return []

    done = Wsgi(make(app))
    assert headers == [("x-request-id", "its own")]
    assert "X-Request-ID" not in done.headers


def test_flasks_route_is_read_while_the_application_runs(make, rows):
    class Request:
        class url_rule:
            rule = "/orders/<int:id>"

    def app(given, start_response):
        given["werkzeug.request"] = Request()
        start_response("200 OK", [])
        given["werkzeug.request"] = None  # as Flask does
        return [b"x"]

    Wsgi(make(app))
    assert rows.one.route == "/orders/<int:id>"


def test_an_application_may_say_its_route(make, rows):
    def app(given, start_response):
        given["logsluice.route"] = "/orders/:id"
        start_response("200 OK", [])
        return []

    Wsgi(make(app))
    assert rows.one.route == "/orders/:id"


@pytest.mark.parametrize("how", ["read", "some", "lines", "iter", "readlines"])
def test_a_body_is_watched_as_it_is_read(make, rows, how):
    data = b'{"token": "x",\n "n": 1}'

    def app(given, start_response):
        stream = given["wsgi.input"]
        if how == "read":
            got = stream.read()
        elif how == "some":
            got = stream.read(5) + stream.read(100)
        elif how == "lines":
            got = stream.readline() + stream.readline(100)
        else:
            got = b"".join(stream if how == "iter" else stream.readlines())
        assert got == data
        assert stream.tell() == len(data)
        start_response("200 OK", [])
        return []

    given = environ("/", "POST", data, CONTENT_TYPE="application/json")
    Wsgi(make(app, request_body=True), given)
    assert rows.one.request_body == '{"token": "[redacted]", "n": 1}'


def test_the_size_of_a_chunked_body_is_what_was_read(make, rows):
    def app(given, start_response):
        given["wsgi.input"].read()
        start_response("200 OK", [])
        return []

    given = environ("/", "POST", b"12345", HTTP_TRANSFER_ENCODING="chunked")
    del given["CONTENT_LENGTH"]
    Wsgi(make(app), given)
    assert rows.one.request_bytes == 5


def test_an_input_that_nobody_needs_watched_is_left_alone(make):
    given = environ(data=b"x")
    stream = given["wsgi.input"]
    Wsgi(make(answering()), given)
    assert given["wsgi.input"] is stream


def test_skipped_paths_are_left_alone(make, rows):
    def app(given, start_response):
        return (given, start_response)

    log = make(app, skip=["/health"])
    given = environ("/health")
    assert log(given, "start") == (given, "start")
    assert rows.all == []


def test_a_path_is_utf_8(make, rows):
    Wsgi(make(answering()), environ("/größe".encode().decode("latin-1")))
    assert rows.one.path == "/größe"


# --- its own failures


def test_a_logger_that_raises_breaks_no_request_and_is_said_once(make, rows, said):
    def raising(_record):
        raise RuntimeError("secret of a row")

    rows.logger.addFilter(raising)
    log = make(answering(b"ok"))
    for _ in range(3):
        assert Wsgi(log).sent == [b"ok"]
    assert len(said) == 1
    assert log.stats()["failures"] == 3


def test_an_environ_that_cannot_be_read_is_served_without_a_row(make, rows, said):
    assert Wsgi(make(answering(b"ok")), environ(PATH_INFO="/日")).sent == [b"ok"]  # bytes that are none
    assert rows.all == []
    assert len(said) == 1


def test_a_status_that_is_none_is_handed_on(make, said):
    assert Wsgi(make(answering(b"ok", status="fine"))).status == "fine"
    assert "an answer failed" in said[0]
