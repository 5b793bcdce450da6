"""HTTP without a network: options, urls without their secrets, what a status means, Retry-After."""

from __future__ import annotations

import fcntl
import os
import random
import re
from email.utils import formatdate
from pathlib import Path

import pytest

from logsluice.config import settings_from
from logsluice.delivery import Backoff, Breaker, Failure, Verdict, decide
from logsluice.errors import ConfigError
from logsluice.handlers import HttpHandler
from logsluice.httpconfig import HttpSettings, address_of
from logsluice.sinks import buried
from logsluice.sinks.replies import Reply, failure_of, retry_after
from support.tables import options_shown, own_options

ROOT = Path(__file__).parents[2]
URL = "https://logs.example.com/in"


def settings(**options):
    return settings_from({"url": URL, **options}, HttpSettings)


# --- options ------------------------------------------------------------------------------------------------------------


WRONG = [
    ({}, "url is missing"),
    ({"url": "logs.example.com"}, "url must be http"),
    ({"url": "ftp://logs.example.com/"}, "url must be http"),
    ({"url": "https:///in"}, "url must be http"),
    ({"url": "https://host:99999/"}, "url must be http"),
    ({"url": "https://host/a b"}, "url must be http"),
    ({"url": "https://a@b@host/"}, "url must be http"),
    ({"url": "https://host/\r\nX: y"}, "url must be http"),
    ({"url": "https://host/#a"}, "url must be http"),
    ({"url": 5}, "url must be http"),
    ({"format": "xml"}, "format must be one of 'ndjson', 'json', 'otlp', 'loki', 'elasticsearch'"),
    ({"tenant": "a"}, "tenant is Loki's"),
    ({"names": "ecs", "format": "otlp"}, "names says nothing for format='otlp'"),
    ({"token": "a", "token_env": "HOME"}, "give one of token, token_env, not 2"),
    ({"token": "a", "url": "https://u:p@host/"}, "give one of token, user:password@ in url, not 2"),
    ({"token_env": "NOT_SET_ANYWHERE"}, "which is not set"),
    ({"token": "a\r\nX: y"}, "token must be printable ASCII"),
    ({"token": ""}, "token must be printable ASCII"),
    ({"token": 5}, "token must be printable ASCII"),
    ({"token_header": "X Y", "token": "a"}, "token_header must be the name of a header"),
    ({"token_header": "X-API-Key"}, "token_header says nothing without token"),
    ({"headers": {"Content-Length": "5"}}, "is set by the handler itself"),
    ({"headers": {"X": "a\nb"}}, "must be printable ASCII"),
    ({"headers": {"X:": "a"}}, "is no name of a header"),
    ({"headers": ["X"]}, "headers must be a mapping"),
    ({"proxy": "https://proxy:3128"}, "proxy must be an http:// url"),
    ({"proxy": "proxy"}, "proxy must be http"),
    ({"ca_file": "/nowhere/ca.pem"}, "ca_file must be a PEM file that is there"),
    ({"dead_letters": ""}, "dead_letters must be the path of a file"),
    ({"token_file": 5}, "token_file must be the path of a file"),
    ({"verify": "no"}, "verify must be true or false"),
    ({"max_request_bytes": 10}, "max_request_bytes must be"),
    ({"max_requests_per_second": 0}, "max_requests_per_second must be"),
    ({"retry_limits": 3}, "did you mean 'retry_limit'"),
]


@pytest.mark.parametrize(("options", "says"), WRONG)
def test_what_is_wrong_is_said(options, says):
    given = options if "url" in options or not options else {"url": URL, **options}
    with pytest.raises(ConfigError, match=re.escape(says)):
        settings_from(given, HttpSettings)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://canary@host:x/"}, {"url": "https://u:canary@ho st/"}, {"token": "canary\n"},
        {"headers": {"X": "canary\n"}}, {"proxy": "socks://u:canary@proxy"}, {"url": "https://u:canary@@host/"},
    ],
)  # fmt: skip
def test_no_secret_is_in_what_is_said(options):
    with pytest.raises(ConfigError) as caught:
        settings(**options)
    error = caught.value
    while error is not None:
        assert "canary" not in f"{error!r} {error}"
        error = error.__cause__


def test_no_secret_is_in_a_repr():
    made = settings(
        url="https://u:canary@host/?k=canary", headers={"X": "canary1"}, proxy="http://u:canary@proxy:1", format="otlp"
    )
    handler = HttpHandler(url="https://host/", token="canary")
    assert "canary" not in f"{made!r} {handler!r} {handler._settings!r} {handler._shown()} {handler.stats()!r}"
    assert "canary" not in repr(address_of("https://u:canary@host/?k=canary"))


def test_a_batch_is_no_more_than_a_request():
    handler = HttpHandler(url=URL, max_request_bytes=100_000, max_request_records=50, batch_size=80)
    assert handler._settings.batch_size == 50
    assert handler._settings.batch_bytes * 17 // 16 <= 100_000


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://Logs.Example.com/in", "https://logs.example.com/in"),
        ("http://host", "http://host"),
        ("http://host:8080/a/b?x=1&y&z=2", "http://host:8080/a/b?x=***&***&z=***"),
        ("https://user:pass@host/in", "https://host/in"),
        ("https://t0ken1234@host/in", "https://host/in"),
        ("https://host/receiver/" + "a" * 40, "https://host/receiver/***"),
        ("http://[::1]:9200/_bulk", "http://[::1]:9200/_bulk"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
    ],
)
def test_a_url_is_shown_without_secrets(url, shown):
    assert address_of(url).shown == shown


def test_secrets_of_a_url_are_known_in_every_spelling():
    found = address_of("https://me:p%40ss@host/in?api_key=abc%2Fdef&x=1&flag12").secrets
    assert {"p@ss", "p%40ss", "abc/def", "abc%2Fdef", "bWU6cEBzcw==", "flag12"} == set(found)
    assert "t0ken1234" in address_of("https://t0ken1234@host/").secrets


def test_a_target_is_as_a_request_wants_it():
    assert address_of("https://host").target == "/"
    assert address_of("https://host?a=b").target == "/?a=b"
    assert address_of("https://host/a%20b/ü?q=ä").target == "/a%20b/%C3%BC?q=%C3%A4"


def test_the_table_of_options_is_the_settings():
    """Every option of HTTP's own is in the page's table with its default, in the order of the code."""
    page = (ROOT / "docs" / "howto" / "http.md").read_text()
    assert options_shown(page) == own_options(HttpSettings)


# --- what a status means ---------------------------------------------------------------------------------------------------

RETRY, BLOCKED, SHRINK, REJECT = Verdict.RETRY, Verdict.BLOCKED, Verdict.SHRINK, Verdict.REJECT

# Every row of the table in sinks/replies.py.
TABLE = [
    ((300, 301, 302, 303, 304, 307, 308), BLOCKED),
    ((401, 403, 407), BLOCKED),
    ((404, 405, 406, 410, 411, 415, 421, 426, 431), BLOCKED),
    ((408, 425, 429), RETRY),
    ((413,), SHRINK),
    ((400, 402, 409, 412, 414, 416, 417, 418, 422, 423, 424, 428, 451, 499), REJECT),
    ((500, 501, 502, 503, 504, 505, 507, 511, 520, 599), RETRY),
    ((100, 199, 600, 999), RETRY),
]


def judged(status, records=5, headers=None, *, loki=False):
    reply = Reply(status, headers or {}, b"canary")
    return failure_of(reply, "https://host/", records, now=1000.0, most_wait=60.0, loki=loki)


@pytest.mark.parametrize(("status", "verdict"), [(status, verdict) for row, verdict in TABLE for status in row])
def test_a_status_has_its_verdict(status, verdict):
    failure = judged(status)
    assert failure.verdict is verdict
    assert decide(failure) is verdict
    assert failure.status == status
    assert str(status) in failure.message
    assert "canary" not in f"{failure!r}{failure.message}{failure.hint}"
    assert failure.detail == "canary"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_2xx_is_taken(status):
    assert judged(status) is None
    assert judged(260) is None
    assert judged(260, loki=True).verdict is BLOCKED


def test_413_of_one_record_is_its_fault():
    assert judged(413, records=1).verdict is REJECT
    assert judged(413).wait == 0.0


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("https://u:canary@other.example:8443/canary?canary", "https://other.example:8443"),
        ("/canary", "another path of the same host"),
        ("", "nowhere"),
        ("http://[", "an unreadable address"),
        ("//other/canary", "://other"),
        ("https://a\x1b[31mb\ncanary/", "an unreadable address"),
    ],
)
def test_a_redirect_names_the_host_alone(location, says):
    message = judged(302, headers={"location": location}).message
    assert "canary" not in message
    assert "\x1b" not in message
    assert says in message or "https://a" in message


@pytest.mark.parametrize("status", [503, 429, 500])
def test_retry_after_is_of_what_is_tried_again(status):
    assert judged(status, headers={"retry-after": "7"}).wait == 7


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5), (" 5 ", 5), ("0", None), ("-5", None), ("1.5", None), ("", None), (None, None), ("soon", None),
        ("99999", 60), ("9" * 400, 60), ("٣", None), ("nan", None), ("inf", None),
        (formatdate(1030, usegmt=True), 30), (formatdate(900, usegmt=True), None), (formatdate(10**9, usegmt=True), 60),
        ("Mon, 99 Foo 2026", None), ("Sunday, 06-Nov-94 08:49:37 GMT", 60),
    ],
)  # fmt: skip
def test_retry_after(text, seconds):
    assert retry_after(text, 1000.0, 60.0) == seconds


# --- what delivery makes of it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_verdict_that_a_sink_gives_is_taken_whatever_else_is_said(verdict):
    failure = Failure("x", "28000", connecting=True, timed_out=True, verdict=verdict)
    assert decide(failure) is verdict
    assert decide(failure, storm=True) is (BLOCKED if verdict is REJECT else verdict)


def test_a_wait_that_the_server_asked_for_comes_before_the_back_off():
    for seed in range(100):
        breaker = Breaker(Backoff(1, 8, random=random.Random(seed)))
        seconds = breaker.failed(100, wait=7)
        assert 7 <= seconds <= 8
        assert not breaker.allows(106.9)


def test_no_wait_lets_the_next_attempt_through_at_once():
    breaker = Breaker(Backoff(1, 8))
    assert breaker.failed(100, wait=0.0) == 0
    assert breaker.allows(100)


def test_a_failure_does_not_show_what_was_answered():
    assert "canary" not in repr(Failure("x", detail="canary"))


# --- dead letters -------------------------------------------------------------------------------------------------------


def test_a_child_that_is_forked_while_a_letter_is_written_does_not_hold_the_lock(tmp_path, monkeypatch):
    """The lock is of the open file, which a child has, too: every later letter, of any process, waited for its end."""
    real, children = os.write, []

    def forked(descriptor, data):
        children.append(os.dup(descriptor))  # as a fork does
        return real(descriptor, data)

    path = tmp_path / "dead.jsonl"
    monkeypatch.setattr(buried.os, "write", forked)
    buried.bury(str(path), [buried.letter("now", 1, b"1\t1\tx\n", Failure("no"))])
    monkeypatch.undo()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(*children)
