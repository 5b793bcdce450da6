"""docs/howto/middleware.md, run: FastAPI, Flask, Django under their servers, and a task that goes on with the trace."""

from __future__ import annotations

import http.client
import shlex
import subprocess

import psycopg
import pytest

from logsluice.devserver import free_port
from support.howto import Page, Service, environment
from support.processes import until

LIMIT = 30  # seconds to start, to serve, to work
TRACE = "0af7651916cd43dd8448eb211c80319c"
SENT = {"X-Request-ID": "order-17", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


def ask(port, path, **headers):
    """(status, headers) of an answer, None while there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, dict(answer.getheaders())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def query(dsn, text):
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as conn:
        found = conn.execute(
            "SELECT to_regclass(%s) AS there", (f"logsluice.{text.split('logsluice.')[1].split()[0]}",)
        )
        return conn.execute(text).fetchall() if found.fetchone()["there"] else []


def requests_of(dsn):
    return query(dsn, "SELECT * FROM logsluice.api_request ORDER BY ts, seq")


def serve(folder, dsn, start):
    page = Page("middleware")
    page.lay_out(folder)
    port = free_port()
    command = page.command(start).replace("8000", str(port))
    subprocess.run(shlex.split(page.command("mkdir")), cwd=folder, check=True, timeout=LIMIT)
    return page, port, Service(command, folder, LOGS_DSN=dsn, HOME=str(folder))


@pytest.mark.parametrize(
    ("start", "route"),
    [
        ("uvicorn", "/orders/{order}/pay"),
        ("gunicorn --bind 127.0.0.1:8000 flask_app", "/orders/<int:order>/pay"),
        ("gunicorn --bind 127.0.0.1:8000 django_app", "/orders/<int:order>/pay"),
    ],
)
def test_the_page_under_its_server(dsn, tmp_path, start, route):
    _page, port, service = serve(tmp_path, dsn, start)
    logs = "SELECT * FROM logsluice.logs WHERE message = 'order 17 paid'"
    with service:
        assert until(lambda: ask(port, "/nowhere"), LIMIT), service.output
        status, headers = ask(port, "/orders/17/pay", **SENT)
        assert status == 200, service.output
        headers = {name.lower(): value for name, value in headers.items()}
        assert (headers["x-request-id"], headers["traceparent"].split("-")[1]) == ("order-17", TRACE)
        assert ask(port, "/broken")[0] == 500
        assert until(lambda: len(requests_of(dsn)) >= 3 and query(dsn, logs), LIMIT), service.output
    found = {row["path"]: row for row in requests_of(dsn)}
    paid, broken, nowhere = found["/orders/17/pay"], found["/broken"], found["/nowhere"]
    assert (paid["method"], paid["route"], paid["status"], paid["client_ip"]) == ("GET", route, 200, "127.0.0.1")
    assert (paid["correlation_id"], paid["trace_id"], paid["error"]) == ("order-17", TRACE, None)
    assert paid["response_bytes"] > 0
    assert (broken["status"], broken["error"], broken["level"]) == (500, "ValueError: no such order", 40)
    assert (nowhere["status"], nowhere["route"]) == (404, None)
    (logged,) = query(dsn, logs)
    assert (logged["correlation_id"], logged["trace_id"]) == ("order-17", TRACE)
    assert logged["span_id"] == paid["span_id"]


def test_a_request_and_its_task_are_one_trace(dsn, tmp_path):
    page, port, service = serve(tmp_path, dsn, "uvicorn")
    events = "SELECT * FROM logsluice.message_event ORDER BY ts, seq"
    with service, Service(page.command("celery"), tmp_path, LOGS_DSN=dsn) as worker:
        assert until(lambda: ask(port, "/nowhere"), LIMIT), service.output
        assert ask(port, "/orders/17/pay", **SENT)[0] == 200
        assert until(lambda: len(query(dsn, events)) == 3, LIMIT), service.output + worker.output
        spans = f"SELECT * FROM logsluice.spans WHERE trace_id = '{TRACE}'"
        logs = "SELECT * FROM logsluice.logs WHERE message IN ('order 17 paid', 'order 17 confirmed')"
        # Of each table: they are sent apart, and at the end of this block both programs are killed.
        assert until(lambda: len(query(dsn, spans)) == len(query(dsn, logs)) == 2, LIMIT), (
            service.output + worker.output
        )
    steps = query(dsn, events)
    assert {row["status"] for row in steps} == {"queued", "processing", "sent"}
    assert {row["trace_id"] for row in steps} == {TRACE}
    assert len({row["job_id"] for row in steps}) == 1
    assert {(row["recipient_email"], row["subject"], row["attempts"]) for row in steps} == {
        ("ada@example.org", "order 17", 1)
    }
    request, task = sorted(query(dsn, spans), key=lambda one: one["name"])
    assert (request["name"], task["name"]) == ("GET /orders/{order}/pay", "tasks.confirm")
    assert (request["parent_id"], task["parent_id"]) == ("b7ad6b7169203331", request["span_id"])
    shown = subprocess.run(
        ["logsluice", "trace", TRACE, "--dsn", dsn], env=environment(), capture_output=True, text=True, timeout=LIMIT,
        check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    place = {text: next(n for n, line in enumerate(lines) if text in line) for text in (
        "GET /orders/{order}/pay", "order 17 paid", "tasks.confirm", "order 17 confirmed",
    )}  # fmt: skip
    assert list(place.values()) == sorted(place.values()), shown.stdout
