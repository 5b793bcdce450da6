"""The decorators of jobs: a row for each step, whatever the function does; its exceptions unchanged."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import NamedTuple

import pytest

from logsluice.contrib import JobLog, MessageEvent
from logsluice.errors import ConfigError
from logsluice.middleware import jobs
from logsluice.middleware.jobs import job, message_job


class Order(NamedTuple):
    id: int
    email: str


def test_a_message_leaves_a_row_for_each_step(rows):
    @message_job(
        "email", subject=lambda order: f"order {order.id}", recipient_email=lambda order: order.email,
        template_id="t-1", returns="message_id", logger=rows.name_of_logger,
    )  # fmt: skip
    def confirm(order):
        """Send it."""
        return "mid-7"

    assert confirm(Order(17, "ada@example.org")) == "mid-7"
    assert (confirm.__name__, confirm.__doc__) == ("confirm", "Send it.")
    first, last = rows.all
    job_id = first.job_id
    assert uuid.UUID(job_id)
    common = {"job_id": job_id, "channel": "email", "subject": "order 17", "recipient_email": "ada@example.org",
              "template_id": "t-1"}  # fmt: skip
    assert first == MessageEvent(status="processing", **common)
    assert last == MessageEvent(status="sent", message_id="mid-7", **common)


def test_fields_come_from_arguments_of_their_names(rows):
    @message_job("whatsapp", logger=rows.name_of_logger)
    def send(job_id, recipient_phone, text, priority=1):
        pass

    send("j-1", "+4930", text="hello", priority=3)
    assert rows.all[1] == MessageEvent(
        job_id="j-1", channel="whatsapp", status="sent", recipient_phone="+4930", priority=3
    )


def test_failures_are_counted_by_job_and_go_on_unchanged(rows):
    error = OSError("no route")

    @message_job("email", logger=rows.name_of_logger)
    def send(job_id, *, fails):
        if fails:
            raise error

    for fails in (True, True, False, False):
        if fails:
            with pytest.raises(OSError) as caught:
                send("j-2", fails=fails)
            assert caught.value is error
        else:
            send("j-2", fails=fails)
    told = [(row.status, row.attempts, row.error_message) for row in rows.all]
    assert told == [
        ("processing", 1, None), ("failed", 1, "OSError: no route"),
        ("processing", 2, None), ("failed", 2, "OSError: no route"),
        ("processing", 3, None), ("sent", 3, None),
        ("processing", 1, None), ("sent", 1, None),  # another message with the id of one that is done
    ]  # fmt: skip
    assert [record.levelno for record in rows.records[:2]] == [logging.INFO, logging.ERROR]


def test_the_count_of_failed_jobs_is_bounded(rows, monkeypatch):
    monkeypatch.setattr(jobs, "_REMEMBERED", 3)

    @job("sync_job", logger=rows.name_of_logger)
    def sync(job_id):
        raise ValueError

    for n in range(10):
        with pytest.raises(ValueError):
            sync(f"bounded-{n}")
    assert len(jobs._attempts) <= 3


def test_what_waits_is_told_by_whoever_makes_it_wait(rows):
    @message_job("email", logger=rows.name_of_logger)
    def send(recipient_email, job_id=None):
        pass

    job_id = send.queued("ada@example.org")
    send("ada@example.org", job_id=job_id)
    assert [(row.status, row.job_id) for row in rows.all] == [
        ("queued", job_id), ("processing", job_id), ("sent", job_id),
    ]  # fmt: skip


def test_a_job_log_has_its_step_in_metadata(rows):
    job_id = uuid.uuid4()

    @job("sync_job", metadata=lambda job_id, slice_uri: {"shard": 3}, logger=rows.name_of_logger)
    def sync(job_id, slice_uri):
        raise ValueError("bad slice")

    with pytest.raises(ValueError, match="bad slice"):
        sync(job_id, "at://x")
    first, last = rows.all
    common = {"log_type": "sync_job", "job_id": job_id, "slice_uri": "at://x"}
    assert first == JobLog(
        message="sync processing", metadata={"shard": 3, "status": "processing", "attempts": 1}, **common
    )
    assert last.metadata.pop("duration_ms") >= 0
    told = {"shard": 3, "status": "failed", "attempts": 1, "error": "ValueError: bad slice"}
    assert last == JobLog(message="sync failed", metadata=told, **common)


def test_an_id_that_is_no_uuid_is_kept_beside(rows):
    @job("system", logger=rows.name_of_logger)
    def clean(job_id):
        pass

    clean("nightly")
    assert (rows.all[1].job_id, rows.all[1].metadata["job_id"], rows.all[1].metadata["status"]) == (
        None, "nightly", "done",
    )  # fmt: skip


def test_coroutine_functions(rows):
    @message_job("email", logger=rows.name_of_logger)
    async def send(job_id):
        await asyncio.sleep(0)
        return 7

    assert asyncio.iscoroutinefunction(send)
    coroutine = send("j")
    assert rows.all == []
    assert asyncio.run(coroutine) == 7
    assert [row.status for row in rows.all] == ["processing", "sent"]


def test_a_cancelled_coroutine_failed(rows):
    @message_job("email", logger=rows.name_of_logger)
    async def send(job_id):
        await asyncio.Event().wait()

    async def main():
        task = asyncio.ensure_future(send("j"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (rows.all[1].status, rows.all[1].error_message) == ("failed", "CancelledError: ")


def test_a_field_that_cannot_be_made_stops_nothing(rows, said):
    @message_job("email", subject=lambda order: order.nothing, template_id="t", logger=rows.name_of_logger)
    def send(order):
        return order

    assert send(1) == 1
    assert [(row.status, row.template_id, row.subject) for row in rows.all] == [
        ("processing", "t", None), ("sent", "t", None),
    ]  # fmt: skip
    assert len(said) == 1
    assert "the fields of send failed" in said[0]


def test_a_call_that_does_not_fit_raises_what_it_raises(rows, said):
    @message_job("email", logger=rows.name_of_logger)
    def send(order):
        pass

    with pytest.raises(TypeError, match="unexpected keyword"):
        send(ordre=1)
    assert [row.status for row in rows.all] == ["processing", "failed"]


def test_a_logger_that_raises_stops_nothing(rows, said):
    def raising(_record):
        raise RuntimeError

    rows.logger.addFilter(raising)

    @job("system", logger=rows.name_of_logger)
    def clean():
        return 1

    assert clean() == 1
    assert len(said) == 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: message_job("email", recipient_mail="x"), "did you mean 'recipient_email'"),
        (lambda: message_job("email", status="sent"), "unknown option 'status'"),
        (lambda: job("sync_job", returns="slice"), "did you mean 'slice_uri'"),
        (lambda: message_job(len), "channel must be a text"),
    ],
)
def test_unknown_fields_are_told_when_it_is_decorated(made, message):
    with pytest.raises(ConfigError, match=message):
        made()


# --- Celery, without a broker: `apply` runs a task here, with all its signals


@pytest.fixture
def app():
    celery = pytest.importorskip("celery")
    from logsluice.middleware import celery as ours

    ours.connect()
    ours.connect()
    made = celery.Celery("tasks", set_as_current=True)
    yield made
    made.close()


def test_a_task_that_is_retried_waits_again_and_counts(app, rows):
    @app.task(shared=False, bind=True, max_retries=2)
    @message_job("email", logger=rows.name_of_logger)
    def send(self, recipient_email):
        if self.request.retries < 2:
            raise self.retry(exc=OSError("no route"), countdown=0)
        return "sent"

    assert send.apply(("ada@example.org",)).get() == "sent"
    told = [(row.status, row.attempts, row.error_message, row.recipient_email) for row in rows.all]
    ada = "ada@example.org"
    assert sorted(told, key=str) == [
        ("processing", 1, None, ada), ("processing", 2, None, ada), ("processing", 3, None, ada),
        ("queued", 2, "OSError: no route", ada), ("queued", 3, "OSError: no route", ada), ("sent", 3, None, ada),
    ]  # fmt: skip
    assert len({row.job_id for row in rows.all}) == 1


def test_autoretry_for_is_a_retry_until_the_last(app, rows):
    @app.task(shared=False, autoretry_for=(OSError,), max_retries=1, retry_backoff=False, default_retry_delay=0)
    @job("sync_job", logger=rows.name_of_logger)
    def sync():
        raise OSError("no route")

    with pytest.raises(OSError, match="no route"):
        sync.apply().get()
    told = [(row.metadata["status"], row.metadata["attempts"]) for row in rows.all]
    assert sorted(told) == [("failed", 2), ("processing", 1), ("processing", 2), ("queued", 2)]


def test_a_task_is_a_span_and_its_id_is_bound(app, rows):
    @app.task(shared=False)
    @job("sync_job", logger=rows.name_of_logger)
    def sync():
        pass

    result = sync.apply()
    assert {bound["correlation_id"] for bound in rows.bound} == {result.id}
    assert len({bound["trace_id"] for bound in rows.bound}) == 1
    assert {str(row.job_id) for row in rows.all} == {result.id}


def test_the_trace_goes_along_with_a_task_and_it_is_queued(app, rows):
    from logsluice import tracing

    @app.task(shared=False, name="shop.send")
    @message_job("email", logger=rows.name_of_logger)
    def send(recipient_email):
        pass

    app.conf.broker_url = "memory://"
    with tracing.trace("order") as span:
        sent = send.delay("ada@example.org")
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery", no_ack=True)
    assert message.headers["traceparent"] == f"00-{span.trace_id}-{span.span_id}-01"
    assert [(row.status, row.job_id, row.recipient_email) for row in rows.all] == [
        ("queued", sent.id, "ada@example.org")
    ]
