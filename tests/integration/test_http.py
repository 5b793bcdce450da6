"""
HTTP, against a stub that answers as a test says: every failure, with the ids that were logged and the ids that arrived.

At least once: an id may arrive twice where an answer was lost, and never not at all.
"""

from __future__ import annotations

import gzip
import json
import logging
import time
from collections import Counter
from email.utils import formatdate

import pytest

from logsluice.config import settings_from
from logsluice.diagnostics import Diagnostics
from logsluice.errors import ConfigError
from logsluice.handlers import HttpHandler
from logsluice.httpconfig import HttpSettings
from logsluice.httpformats import FORMATS
from logsluice.sinks import SinkError
from logsluice.sinks.http import HttpLink
from support.endpoint import LIMIT, Answer, Sender, Stub, nobody
from support.processes import until


@pytest.fixture
def stub():
    with Stub() as stub:
        yield stub


def once(sender, stub):
    """Every id arrived, and none of them twice."""
    assert sender.flush()
    stats = sender.law()
    assert Counter(stub.stored()) == Counter(sender.ids)
    assert stats.stored == len(sender.ids)
    return stats


def refuse_bad(status, **options):
    """Refuse a request that holds a record marked bad."""

    def decide(request):
        return Answer(status if any(one.get("bad") for one in request.lines) else 200, **options)

    return decide


# --- the request ------------------------------------------------------------------------------------------------------


def test_a_burst_is_few_requests_over_one_connection(stub):
    with Sender(stub, linger=LIMIT) as sender:  # sent by `flush` alone
        for _ in range(5):
            sender.log(200)
            assert sender.flush()
        once(sender, stub)
    assert stub.connections == 1
    assert 5 <= len(stub.requests) <= 10  # the hurry of one `flush` may still be there for the next burst


def test_bodies_are_packed_and_small_ones_are_not(stub):
    with Sender(stub, linger=LIMIT) as sender:  # sent by `flush` alone: a hundred at once
        sender.log(100)
        assert sender.flush()
        sender.log(1)
        once(sender, stub)
    large, small = stub.requests
    assert "content-encoding" not in small.headers
    assert large.headers["content-encoding"] == "gzip"
    assert large.size < len(large.body) / 3


def test_gzip_can_be_left_out(stub):
    with Sender(stub, gzip=False) as sender:
        sender.log(100)
        once(sender, stub)
    assert all("content-encoding" not in request.headers for request in stub.requests)


def test_headers_of_a_request(stub):
    with Sender(stub, headers={"X-Tag": "blue"}, content_type="text/plain") as sender:
        sender.log(1)
        once(sender, stub)
        stream = str(sender.handler._pairs[0][0].buffer.stream)
    headers = stub.requests[0].headers
    assert headers["x-tag"] == "blue"
    assert headers["content-type"] == "text/plain"
    assert headers["user-agent"].startswith("logsluice/")
    assert headers["idempotency-key"] == f"{stream}:1-1"


def test_a_request_holds_no_more_records_than_told(stub):
    with Sender(stub, max_request_records=7) as sender:
        sender.log(100)
        once(sender, stub)
    assert max(len(request.lines) for request in stub.requests) <= 7


def test_a_body_is_no_larger_than_told_and_a_larger_record_goes_alone(stub):
    with Sender(stub, max_request_bytes=10_000) as sender:
        sender.log(200, pad="x" * 100)
        sender.log(1, pad="y" * 50_000)
        sender.log(200, pad="x" * 100)
        once(sender, stub)
    large = [request for request in stub.requests if len(request.body) > 10_000]
    assert [len(request.lines) for request in large] == [1]


@pytest.mark.parametrize("connections", [1, 3])
def test_a_rate_is_kept_and_does_not_hold_up_the_end(stub, connections):
    sender = Sender(stub, max_requests_per_second=0.01, max_request_records=10, connections=connections)
    sender.log(100)
    stub.await_requests(1)
    before = time.monotonic()
    sender.close()  # hundreds of seconds by the rate
    assert time.monotonic() - before < LIMIT
    assert sender.law().stored == 100
    assert sorted(stub.stored()) == sender.ids


def test_several_connections_send_everything(stub):
    with Sender(stub, connections=3, max_request_records=5) as sender:
        sender.log(200)
        once(sender, stub)


# --- failures that pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 507, 408, 425])
def test_a_status_that_passes_is_tried_again(stub, status):
    stub.script += [Answer(status), Answer(status)]
    with Sender(stub) as sender:
        sender.log(50)
        stats = once(sender, stub)
    assert stats.retries == 2
    assert {(f["status"], f["verdict"]) for f in sender.failed} == {(status, "retry")}


@pytest.mark.parametrize("how", ["drop", "cut", "close", "hang up"])
def test_a_connection_that_breaks(stub, how):
    with Sender(stub) as sender:
        sender.log(1)
        assert sender.flush()
        if how == "hang up":
            stub.hang_up()
        else:
            stub.script.append(Answer(**{how: True}, stores=how == "close"))
        sender.log(20)
        assert sender.flush()
        assert sender.law().stored == 21
    assert set(stub.stored()) == set(sender.ids)
    if how != "cut":  # there it was taken, and said so to nobody
        assert len(stub.stored()) == len(sender.ids)


def test_an_answer_that_was_lost_is_sent_again_under_the_same_key(stub):
    stub.script.append(Answer(drop=True, stores=True))
    with Sender(stub) as sender:
        sender.log(20)
        assert sender.flush()
        assert sender.law().stored == 20
    first, second = stub.requests[:2]
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body
    assert set(stub.stored()) == set(sender.ids)


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_an_answer_that_does_not_come_ends_at_io_timeout(stub, how):
    stub.script.append(Answer(**{how: True}, stores=False))
    with Sender(stub, io_timeout=0.3) as sender:
        sender.log(20)
        failure = sender.await_failure()[0]
        assert failure["verdict"] == "shrink"
        assert failure["seconds"] < LIMIT
        assert sender.flush()
        assert sender.law().stored == 20
    assert set(stub.stored()) == set(sender.ids)  # twice, where a busy machine answers after 0.3 s


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_the_end_waits_for_no_answer(stub, how):
    stub.decide = lambda request: Answer(**{how: True}, stores=False)
    sender = Sender(stub, io_timeout=600, shutdown_timeout=0.3)
    sender.log(20)
    stub.await_requests(1)
    before = time.monotonic()
    sender.close()
    assert time.monotonic() - before < LIMIT
    stats = sender.law()
    assert stats.abandoned_by == {"exit": 20}


def test_nobody_listens():
    with nobody() as url, Sender(url=url, shutdown_timeout=0.1) as sender:
        sender.log(30)
        assert sender.await_failure()[0]["verdict"] == "retry"
        assert url.removesuffix("/in") in sender.failed[0]["error"]
        assert sender.law().waiting == 30


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_retry_after_is_waited_for(stub, kind):
    moments = []

    def decide(request):
        moments.append(time.time())
        if len(moments) > 1:
            return Answer()
        wait = "1" if kind == "seconds" else formatdate(moments[0] + 2, usegmt=True)  # a date has no fractions
        return Answer(503, headers={"Retry-After": wait})

    stub.decide = decide
    with Sender(stub) as sender:
        sender.log(5)
        once(sender, stub)
    assert moments[1] - moments[0] > 0.5  # without it the back-off is 5 ms


def test_retry_after_is_bounded_and_the_end_does_not_wait_for_it(stub):
    stub.script += [Answer(429, headers={"Retry-After": "86400"}), Answer(429, headers={"Retry-After": "86400"})]
    with Sender(stub, retry_after_max=0.01) as sender:
        sender.log(5)
        once(sender, stub)
    stub.script.append(Answer(429, headers={"Retry-After": "86400"}))
    sender = Sender(stub)
    sender.log(5)
    sender.await_failure()
    before = time.monotonic()
    sender.close()
    assert time.monotonic() - before < LIMIT
    assert sender.law().stored == 5


# --- too large -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [False, True])
def test_a_body_that_is_too_large_is_halved_until_it_fits(stub, early):
    def decide(request):
        return Answer(413 if len(request.body) > 5000 else 200, early=early)

    stub.decide = decide
    with Sender(stub) as sender:
        sender.log(300, pad="x" * 100)
        stats = once(sender, stub)
        refused = sum(request.answer.status == 413 for request in stub.requests)
        assert {f["verdict"] for f in sender.failed if f["status"]} == {"shrink"}
        assert refused <= 8  # 90 KB to 5 KB is five halvings, and what was learned is not forgotten
        sender.log(300, pad="x" * 100)
        once(sender, stub)
        assert sum(request.answer.status == 413 for request in stub.requests) <= refused + 1
    assert stats.dead == 0


def test_an_answer_before_the_body_was_read_is_heard(stub):
    stub.script.append(Answer(413, early=True))
    with Sender(stub, gzip=False) as sender:
        sender.log(3000, pad="x" * 500)
        once(sender, stub)


def test_a_single_record_that_is_too_large_is_a_dead_letter(stub, tmp_path):
    stub.decide = lambda request: Answer(413 if len(request.body) > 5000 else 200)
    path = tmp_path / "dead.jsonl"
    with Sender(stub, dead_letters=str(path)) as sender:
        sender.log(20)
        sender.log(1, pad="x" * 9000)
        sender.log(20)
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.dead) == (40, 1)
    assert sorted(stub.stored()) == [one for one in sender.ids if one != 20]
    (letter,) = map(json.loads, path.read_text().splitlines())
    assert (letter["status"], json.loads(letter["line"])["id"]) == (413, 20)


# --- blocked -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 405, 407, 410, 415, 421])
def test_what_somebody_must_mend_is_kept(stub, status, capfd):
    stub.decide = lambda request: Answer(status)
    with Sender(stub) as sender:
        sender.log(30)
        sender.await_failure(3, verdict="blocked", status=status)
        stats = sender.law()
        assert (stats.waiting, stats.dead, stats.abandoned) == (30, 0, 0)
        stub.decide = lambda request: Answer()
        once(sender, stub)
    assert f"blocked, records are kept: {stub.url()} answered {status}" in capfd.readouterr().err


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_and_its_host_is_named(stub, status, capfd):
    with Stub() as other:
        target = f"http://user:canary@localhost:{other.port}/canary?token=canary"
        stub.decide = lambda request: Answer(status, headers={"Location": target})
        with Sender(stub, token="canary", shutdown_timeout=0.1) as sender:
            sender.log(5)
            failure = sender.await_failure(verdict="blocked", status=status)[0]
            assert f"leads to http://localhost:{other.port}" in failure["error"]
        assert not other.requests
        assert not other.connections
    assert "canary" not in capfd.readouterr().err


# --- refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 402, 409, 422, 451])
def test_one_bad_record_among_many_is_found(stub, status, tmp_path):
    stub.decide = refuse_bad(status, body='{"error": "no bad ones"}')
    path = tmp_path / "folder" / "dead.jsonl"
    with Sender(stub, dead_letters=str(path)) as sender:
        sender.log(60)
        sender.log(1, bad=True)
        sender.log(60)
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.dead, stats.abandoned) == (120, 1, 0)
    assert sorted(stub.stored()) == [one for one in sender.ids if one != 60]
    (letter,) = map(json.loads, path.read_text().splitlines())
    assert letter["status"] == status
    assert letter["seq"] == 61
    assert letter["stream"].isdecimal()
    assert str(status) in letter["reason"]
    assert letter["answer"] == '{"error": "no bad ones"}'
    assert json.loads(letter["line"])["id"] == 60
    assert path.stat().st_mode & 0o777 == 0o600


def test_refused_without_a_file_is_counted_and_said(stub, capfd):
    stub.decide = refuse_bad(422)
    with Sender(stub) as sender:
        sender.log(10)
        sender.log(2, bad=True)
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.dead, stats.abandoned_by) == (10, 0, {"rejected": 2})
    err = capfd.readouterr().err
    assert err.count("records were refused") == 1
    assert "422 Unprocessable" in err
    assert "dead_letters=FILE keeps them" in err


def test_refused_with_a_fallback_goes_there(stub):
    stub.decide = refuse_bad(422)
    kept = []

    class Keep(logging.Handler):
        def emit(self, record):
            kept.append(record)

    handler = Keep()
    handler.set_name("last resort")
    with Sender(stub, fallback="last resort") as sender:
        sender.log(10)
        sender.log(2, level=logging.ERROR, bad=True)
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.abandoned_by) == (10, {"fallback": 2})
    assert [json.loads(record.getMessage())["id"] for record in kept] == [10, 11]
    assert {record.levelname for record in kept} == {"ERROR"}


def test_an_endpoint_that_takes_nothing_blocks_and_makes_few_dead_letters(stub, capfd):
    stub.decide = lambda request: Answer(400)
    with Sender(stub) as sender:
        sender.log(500)
        sender.await_failure(1, verdict="blocked", status=400)
        assert sender.law().abandoned < 20  # delivery.STORM
        bad = sender.stats.abandoned
        stub.decide = lambda request: Answer()
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.abandoned) == (500 - bad, bad)
    assert len(set(stub.stored())) == 500 - bad
    assert len(stub.stored()) == 500 - bad
    assert "the endpoint takes none of the waiting records" in capfd.readouterr().err


def test_what_was_taken_as_a_sample_is_not_sent_again(stub):
    """After a storm single records are tried; one of them is good."""
    stub.decide = lambda request: Answer(200 if len(request.lines) == 1 and request.lines[0]["id"] % 7 == 0 else 400)
    with Sender(stub) as sender:
        sender.log(100)
        assert sender.flush()
        stats = sender.law()
    good = [one for one in sender.ids if one % 7 == 0]
    assert sorted(stub.stored()) == good
    assert (stats.stored, stats.abandoned_by) == (len(good), {"rejected": 100 - len(good)})


def test_dead_letters_that_cannot_be_written_wait(stub, tmp_path):
    stub.decide = refuse_bad(422)
    folder = tmp_path / "folder"
    folder.write_text("a file where a folder must be")
    with Sender(stub, dead_letters=str(folder / "dead.jsonl")) as sender:
        sender.log(10)
        sender.log(1, bad=True)
        sender.log(10)
        failure = sender.await_failure(2, verdict="blocked", status=None)[0]
        assert "dead letters cannot be written" in failure["error"]
        assert sender.law().dead == 0
        folder.unlink()
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.dead) == (20, 1)
    assert sorted(stub.stored()) == [one for one in sender.ids if one != 10]
    assert len((folder / "dead.jsonl").read_text().splitlines()) == 1


# --- so many attempts and no more ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Answer(503), Answer(drop=True), Answer(hang=True), Answer(401)], ids=repr)
def test_after_retry_limit_a_batch_is_a_dead_letter(stub, tmp_path, answer):
    stub.script += [answer] * 3
    path = tmp_path / "dead.jsonl"
    limit = 0.3 if answer.hang else LIMIT
    with Sender(stub, dead_letters=str(path), retry_limit=2, io_timeout=limit) as sender:
        sender.log(10)
        assert sender.flush()
        sender.log(10)
        assert sender.flush()
        stats = sender.law()
    assert stats.stored + stats.dead == 20
    assert stats.dead >= 1
    letters = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(letters) == stats.dead
    assert {letter["status"] for letter in letters} == {answer.status if answer.status >= 400 else None}
    assert all("given up after 2 retries" in letter["reason"] for letter in letters)
    assert len(stub.script) == 0


def test_after_retry_limit_without_a_file_it_is_counted(stub):
    stub.decide = lambda request: Answer(503)
    with Sender(stub, retry_limit=1) as sender:
        sender.log(10)
        assert sender.flush()
        assert sender.law().abandoned_by == {"retry_limit": 10}


def test_after_retry_limit_while_nobody_listens(tmp_path):
    path = tmp_path / "dead.jsonl"
    with nobody() as url, Sender(url=url, retry_limit=2, dead_letters=str(path)) as sender:
        sender.log(10)
        assert sender.flush()
        assert sender.law().dead == 10
    assert len(path.read_text().splitlines()) == 10


# --- single items ------------------------------------------------------------------------------------------------------------


def bulk_ids(request):
    return [json.loads(line)["labels"]["id"] for line in request.body.splitlines()[1::2]]


class Bulk:
    """Elasticsearch, as its documentation says: a document of each id once, items in order."""

    def __init__(self, status_of=lambda number, id_: 201):
        self.documents: dict[str, int] = {}
        self.status_of = status_of
        self.tries = Counter()

    def __call__(self, request):
        assert request.body.endswith(b"\n")
        lines = [json.loads(line) for line in request.body.splitlines()]
        items = []
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            id_ = action["create"]["_id"]
            number = document["labels"]["id"]
            self.tries[number] += 1
            status = 409 if id_ in self.documents else self.status_of(number, self.tries[number])
            if status == 201:
                self.documents[id_] = number
            item = {"_index": "logs", "_id": id_, "status": status}
            if status >= 400:
                item["error"] = {"type": "document_parsing_exception", "reason": "field [id]: 'canary'"}
            items.append({"create": item})
        errors = any(item["create"]["status"] >= 400 for item in items)
        return Answer(200, {"took": 3, "errors": errors, "items": items})


def test_bulk_items_are_counted_one_by_one(stub, tmp_path, capfd):
    def status_of(number, tries):
        if number % 10 == 3:
            return 400
        if number % 10 == 5 and tries < 3:
            return 429
        if number % 10 == 7 and tries < 2:
            return 503
        return 201

    elastic = stub.decide = Bulk(status_of)
    path = tmp_path / "dead.jsonl"
    with Sender(stub, format="elasticsearch", dead_letters=str(path)) as sender:
        sender.log(100)
        assert sender.flush()
        stats = sender.law()
    dead = [one for one in sender.ids if one % 10 == 3]
    assert (stats.stored, stats.dead) == (90, 10)
    assert sorted(elastic.documents.values()) == sorted(set(sender.ids) - set(dead))
    assert all(elastic.tries[number] == 1 for number in sender.ids if number % 10 not in {5, 7})
    letters = [json.loads(line) for line in path.read_text().splitlines()]
    assert [json.loads(letter["line"].splitlines()[1])["labels"]["id"] for letter in letters] == dead
    assert "canary" in letters[0]["answer"]
    assert "canary" not in capfd.readouterr().err
    assert "canary" not in repr(stats)


def test_a_bulk_that_is_sent_twice_is_stored_once(stub):
    elastic = Bulk()
    stub.decide = elastic

    def lose(request):
        elastic(request)
        stub.decide = elastic
        return Answer(drop=True)

    stub.decide = lose
    with Sender(stub, format="elasticsearch") as sender:
        sender.log(50)
        assert sender.flush()
        assert sender.law().stored == 50
    assert sorted(elastic.documents.values()) == sender.ids


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_bulk_item_that_somebody_must_mend_is_kept(stub, status):
    elastic = stub.decide = Bulk(lambda number, tries: status if number == 5 else 201)
    with Sender(stub, format="elasticsearch") as sender:
        sender.log(10)
        sender.await_failure(2, verdict="blocked", status=status)
        assert sender.law().dead == 0
        elastic.status_of = lambda number, tries: 201
        assert sender.flush()
        assert sender.law().stored == 10
    assert sorted(elastic.documents.values()) == sender.ids
    assert elastic.tries[4] == 1


@pytest.mark.parametrize("body", ["", "<html>", "[]", {}, {"errors": True, "items": []}])
def test_an_answer_that_is_none_of_bulk_is_not_believed(stub, body):
    stub.decide = lambda request: Answer(200, body)
    with Sender(stub, format="elasticsearch", shutdown_timeout=0.1) as sender:
        sender.log(10)
        sender.await_failure(verdict="blocked", status=200)
        assert sender.law().waiting == 10


@pytest.mark.parametrize("refused", [3, "3"])
def test_otlp_says_how_many_were_refused_and_not_which(stub, tmp_path, capfd, refused):
    stub.script.append(
        Answer(200, {"partialSuccess": {"rejectedLogRecords": refused, "errorMessage": "too old, canary"}})
    )
    path = tmp_path / "dead.jsonl"
    with Sender(stub, format="otlp", linger=LIMIT, dead_letters=str(path)) as sender:
        sender.log(10)
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.dead, stats.abandoned_by) == (7, 0, {"rejected": 3})
    assert len(stub.requests) == 1  # it must not be sent again
    (said,) = map(json.loads, path.read_text().splitlines())
    assert (said["lowest"], said["highest"], said["line"]) == (1, 10, None)
    assert "too old" in said["answer"]
    err = capfd.readouterr().err
    assert "refused 3 of 10 records and does not say which" in err
    assert "canary" not in err


def test_a_blocked_tenant_of_loki_is_blocked(stub):
    stub.decide = lambda request: Answer(260)
    with Sender(stub, format="loki", tenant="shop") as sender:
        sender.log(10)
        sender.await_failure(verdict="blocked", status=260)
        assert sender.law().waiting == 10
        stub.decide = lambda request: Answer(204)
        assert sender.flush()
        assert sender.law().stored == 10
    assert {request.headers["x-scope-orgid"] for request in stub.requests} == {"shop"}


class Loki:
    """Loki, as its documentation says: 400 for a time that is no string, and one entry of each time and line."""

    def __init__(self):
        self.entries: dict[tuple, str] = {}

    def __call__(self, request):
        try:
            for stream in json.loads(request.body)["streams"]:
                labels = tuple(sorted(stream["stream"].items()))
                assert labels
                for ts, line, metadata in stream["values"]:
                    assert all(type(text) is str for text in (ts, line, *metadata, *metadata.values()))
                    assert abs(int(ts) / 1e9 - time.time()) < 3600
                    self.entries[labels, ts, line] = metadata.get("id")
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            return Answer(400, repr(error))
        return Answer(204)


def test_a_push_that_is_sent_twice_is_one_entry_in_loki(stub):
    loki = Loki()

    def lose(request):
        assert loki(request).status == 204
        stub.decide = loki
        return Answer(drop=True)

    stub.decide = lose
    with Sender(stub, format="loki", service="shop", environment="test") as sender:
        sender.log(50)
        for _ in range(50):  # one text, most of them of one microsecond or two
            sender.logger.warning("again", extra={"id": "same"})
        assert sender.flush()
    found = Counter(loki.entries.values())
    assert found.pop("same") == 50
    assert found == {str(number): 1 for number in sender.ids}
    assert {dict(labels)["level"] for labels, _, _ in loki.entries} == {"info", "warning"}


def test_a_collector_reads_every_record_by_otlps_own_definitions(stub):
    from google.protobuf import json_format
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    found = []

    def collect(request):
        assert request.headers["content-type"] == "application/json"
        message = json_format.Parse(request.body, ExportLogsServiceRequest())
        for scope in message.resource_logs[0].scope_logs:
            for record in scope.log_records:
                found.extend(int(one.value.int_value) for one in record.attributes if one.key == "id")
        return Answer(200, {})

    stub.decide = collect
    with Sender(stub, format="otlp", service="shop") as sender:
        sender.log(200, pad="ü" * 50)
        assert sender.flush()
        assert sender.law().stored == 200
    assert sorted(found) == sender.ids


# --- a callable --------------------------------------------------------------------------------------------------------------


def test_a_callable_makes_the_body(stub):
    def ids(records):
        return json.dumps([one["id"] for one in records]).encode()

    with Sender(stub, format=ids, content_type="application/json") as sender:
        sender.log(50)
        assert sender.flush()
        assert sender.law().stored == 50
    assert sorted(one for request in stub.requests for one in json.loads(request.body)) == sender.ids


def test_a_callable_that_chokes_on_one_record(stub, capfd):
    def ids(records):
        assert all(one["id"] != 13 for one in records), "canary"
        return json.dumps([one["id"] for one in records]).encode()

    with Sender(stub, format=ids) as sender:
        sender.log(50)
        assert sender.flush()
        stats = sender.law()
    assert (stats.stored, stats.abandoned_by) == (49, {"rejected": 1})
    found = [one for request in stub.requests for one in json.loads(request.body)]
    assert sorted(found) == [one for one in sender.ids if one != 13]
    assert "canary" not in capfd.readouterr().err


def test_a_callable_whose_bodies_are_larger_than_its_records(stub):
    with Sender(stub, format=lambda records: b" " * 2000 * len(records), max_request_bytes=10_000) as sender:
        sender.log(50)
        assert sender.flush()
        assert sender.law().stored == 50
    assert max(len(request.body) for request in stub.requests) <= 10_000


# --- the token ---------------------------------------------------------------------------------------------------------------


def wants(token, header="authorization"):
    return lambda request: Answer(200 if request.headers.get(header) == token else 401)


@pytest.mark.parametrize("way", ["value", "variable", "file", "callable"])
def test_where_a_token_comes_from(stub, way, tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "t0ken")
    (tmp_path / "token").write_text("t0ken\n")
    options = {
        "value": {"token": "t0ken"},
        "variable": {"token_env": "A_TOKEN"},
        "file": {"token_file": str(tmp_path / "token")},
        "callable": {"token": lambda: "t0ken"},
    }[way]
    stub.decide = wants("Bearer t0ken")
    with Sender(stub, **options) as sender:
        sender.log(5)
        assert once(sender, stub).retries == 0


def test_an_api_key_in_a_header_of_its_own(stub):
    stub.decide = wants("t0ken", "x-api-key")
    with Sender(stub, token="t0ken", token_header="X-API-Key") as sender:
        sender.log(5)
        assert once(sender, stub).retries == 0
    stub.decide = wants("ApiKey t0ken")
    with Sender(stub, token="t0ken", token_scheme="ApiKey") as sender:
        sender.log(5)
        assert sender.flush()
        assert sender.law().retries == 0


def test_userinfo_in_the_url_is_basic(stub):
    stub.decide = wants("Basic c2hvcDpwQHNz")
    with Sender(url=stub.url(userinfo="shop:p%40ss@")) as sender:
        sender.log(5)
        assert once(sender, stub).retries == 0


@pytest.mark.parametrize("way", ["variable", "file", "callable"])
def test_a_refused_token_is_read_anew(stub, way, tmp_path, monkeypatch):
    path = tmp_path / "token"

    def renew(token):
        monkeypatch.setenv("A_TOKEN", token)
        path.write_text(token)

    renew("old")
    options = {
        "variable": {"token_env": "A_TOKEN"},
        "file": {"token_file": str(path)},
        "callable": {"token": path.read_text},
    }[way]
    with Sender(stub, **options, backoff_max=600) as sender:
        sender.log(5)
        assert sender.flush()
        renew("new")
        stub.decide = wants("Bearer new")
        sender.log(5)
        once(sender, stub)  # at once: a blocked one would wait for ten minutes


def test_a_token_that_is_new_each_time_and_always_refused_is_no_loop(stub):
    stub.decide = lambda request: Answer(401)
    count = iter(range(10**6))
    with Sender(stub, token=lambda: f"t{next(count)}", backoff_max=600, shutdown_timeout=0.1) as sender:
        sender.log(5)
        sender.await_failure(verdict="blocked", status=401)
        assert len(stub.requests) <= 2


@pytest.mark.parametrize("bad", ["a\nb", "", "ü"])
def test_a_token_that_is_none_blocks_and_is_not_shown(stub, bad, tmp_path):
    path = tmp_path / "token"
    path.write_text(bad)
    with Sender(stub, token_file=str(path)) as sender:
        sender.log(5)
        failure = sender.await_failure(verdict="blocked")[0]
        assert "empty, or no printable ASCII" in failure["error"]
        path.write_text("good")
        once(sender, stub)


# --- the way there -------------------------------------------------------------------------------------------------------------


def test_a_proxy_is_not_asked_unless_told(stub, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Sender(stub) as sender:
        sender.log(5)
        once(sender, stub)


@pytest.mark.parametrize("how", ["url", "environment"])
def test_a_proxy_is_told_the_whole_url(stub, how, monkeypatch):
    proxy = stub.url("", userinfo="me:secret@")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    given = proxy if how == "url" else "environment"
    with Sender(url="http://logs.example.com/in?a=b", proxy=given) as sender:
        sender.log(5)
        once(sender, stub)
    request = stub.requests[0]
    assert request.path == "http://logs.example.com/in?a=b"
    assert request.headers["host"] == "logs.example.com"
    assert request.headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"


def test_no_proxy_is_minded(stub, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Sender(stub, proxy="environment") as sender:
        sender.log(5)
        once(sender, stub)


# --- what urllib3 would say -----------------------------------------------------------------------------------------------------


def test_urllib3_logs_no_url_of_ours(stub, caplog):
    """It warns of headers that it cannot read, with the whole url, through the program's own handlers."""
    caplog.set_level(logging.DEBUG)
    stub.script.append(Answer(503, headers={"X": "a\r\nno header at all"}, close=True))
    with Sender(url=stub.url("/in?api_key=canary-key")) as sender:
        sender.log(5)
        assert once(sender, stub).retries == 1
    assert not [record for record in caplog.records if "urllib3" in record.name]
    import urllib3

    with urllib3.HTTPConnectionPool("127.0.0.1", stub.port) as pool:  # of the program's own it does
        stub.script.append(Answer(200, headers={"X": "a\r\nno header at all"}, close=True))
        pool.request("POST", "/in", body=b"", retries=False)
    assert [record for record in caplog.records if "Failed to parse headers" in record.getMessage()]


# --- where it is missing -------------------------------------------------------------------------------------------------------


def test_without_urllib3_it_says_what_to_install(monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "urllib3"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("logsluice.sinks.http", "logsluice.sinks.endpoint"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(ConfigError, match=r"pip install 'logsluice\[http\]'"):
        HttpHandler(url="http://localhost/")


def test_the_body_of_a_request_can_be_unpacked_by_anybody(stub):
    with Sender(stub) as sender:
        sender.log(100)
        assert sender.flush()
    assert gzip.compress(b"")  # the stub used the standard library's
    assert until(lambda: stub.stored() == sender.ids, LIMIT)


def test_a_connection_that_was_idle_is_worth_another_try_at_once():
    """A server closes what was idle for long, perhaps as we send; a new one that it closes is an outage."""
    with Stub(Answer(), Answer(drop=True), Answer(drop=True)) as stub:
        settings = settings_from({"url": stub.url()}, HttpSettings)
        link = HttpLink(settings, FORMATS["ndjson"], Diagnostics("test"), lambda: None)
        link.post(b"{}\n", "1:1-1", 1)
        waits = []
        for _ in range(2):
            with pytest.raises(SinkError) as raised:
                link.post(b"{}\n", "1:2-2", 1)
            waits.append(raised.value.failure.wait)
        link.close()
    assert waits == [0.0, None]
