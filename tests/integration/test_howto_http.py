"""docs/howto/http.md, run: each backend's snippet as a program of its own, against a stub in the backend's place."""

from __future__ import annotations

import json
import re

import pytest

from support.endpoint import Answer, Stub
from support.howto import Page
from support.processes import run_program

PAGE = Page("http")
BULK = Answer(200, {"took": 1, "errors": False, "items": [{"create": {"status": 201}}]})


def seen(name, request):
    """What one record became."""
    body = request.body
    if name == "ndjson.py":
        return json.loads(body)["message"]
    if name == "otlp.py":
        (scope,) = json.loads(body)["resourceLogs"][0]["scopeLogs"]
        assert scope["scope"]["name"] == "shop"
        return scope["logRecords"][0]["body"]["stringValue"]
    if name == "loki.py":
        (stream,) = json.loads(body)["streams"]
        assert stream["stream"].items() >= {"service": "shop", "env": "production", "level": "info"}.items()
        return stream["values"][0][1]
    if name == "elasticsearch.py":
        return json.loads(body.splitlines()[1])["message"]
    return json.loads(body)["events"][0]["text"]


@pytest.mark.parametrize("name", PAGE.files)
def test_a_snippet_does_what_it_says(name, tmp_path):
    text = PAGE.files[name]
    with Stub(*[BULK] * (name == "elasticsearch.py")) as stub:
        url = re.search(r'"url": "(https://[\w.]+(?::\d+)?)(/[^"]*)"', text)
        text = text.replace(url[1], stub.url("")).replace('"dead.jsonl"', repr(str(tmp_path / "dead.jsonl")))
        keys = {"COLLECTOR_TOKEN": "t0", "ELASTIC_API_KEY": "t0", "INTAKE_KEY": "t0"}
        program = run_program(text, env=keys)
        assert (program.returncode, program.stderr) == (0, "")
        (request,) = stub.requests
    assert request.path == url[2]
    assert seen(name, request) == "order 17 paid"
    headers = request.headers
    expected = {
        "ndjson.py": ("authorization", "Bearer t0"), "elasticsearch.py": ("authorization", "ApiKey t0"),
        "own.py": ("x-api-key", "t0"), "loki.py": ("x-scope-orgid", "shop"), "otlp.py": ("content-type", "application/json"),
    }  # fmt: skip
    header, value = expected[name]
    assert headers[header] == value


def test_the_page_has_a_snippet_for_each_format():
    from logsluice.httpconfig import FORMATS

    page = "".join(PAGE.files.values())
    assert {"ndjson.py", "otlp.py", "loki.py", "elasticsearch.py", "own.py"} == set(PAGE.files)
    assert all(f'"{name}"' in page for name in FORMATS if name not in {"ndjson", "json"})
