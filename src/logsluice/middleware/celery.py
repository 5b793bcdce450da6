"""
Celery's signals: a task goes on with the trace of whoever sent it, and one decorated by jobs.py is `queued` when sent.

    from logsluice.middleware import celery as logsluice_celery
    logsluice_celery.connect()        in the module of the Celery app, which senders and workers import

`traceparent` goes among the task's headers. In the worker the task is a span, `correlation_id` its id.
"""

from __future__ import annotations

from typing import Any

from logsluice import context, traceparent, tracing
from logsluice.middleware.jobs import MARK, Job
from logsluice.middleware.requests import say

_running: dict[str, tuple[tracing.Span, list[Any]]] = {}  # id of a task that runs here -> its span, what it entered
_IDS = (traceparent.TRACEPARENT, traceparent.TRACESTATE)


def connect() -> None:
    """Connect the signals, once however often it is called. Imports Celery."""
    from celery import signals  # noqa: PLC0415 - here alone: a program without Celery has none

    for signal, receiver in (
        (signals.before_task_publish, _publish),
        (signals.task_prerun, _begin),
        (signals.task_postrun, _end),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=f"logsluice.{receiver.__name__}")


def _publish(sender: Any = None, headers: Any = None, body: Any = None, **_more: Any) -> None:
    try:
        if not isinstance(headers, dict):
            return
        tracing.inject(headers)
        made = _job(sender)
        if made is not None and isinstance(body, (tuple, list)):
            made.queued_as(headers["id"], body[0], body[1], headers.get("retries") or 0)
    except Exception as error:
        say("sending a task's trace", error)


def _job(name: Any) -> Job | None:
    from celery import current_app  # noqa: PLC0415 - as above

    return getattr(getattr(current_app.tasks.get(name), "run", None), MARK, None)


def _begin(task_id: str = "", task: Any = None, **_more: Any) -> None:
    try:
        # Not `request.headers` alone: a task called in the same process, by `apply`, has none.
        headers = {name: value for name in _IDS if isinstance(value := task.request.get(name), str)}
        span = tracing.start_span(task.name, tracing.extract(headers))
        entered: list[Any] = [context.bound(correlation_id=task_id), tracing.use(span)]
        for one in entered:
            one.__enter__()
        _running[task_id] = (span, entered)
    except Exception as error:
        say("the beginning of a task", error)


def _end(task_id: str = "", retval: Any = None, state: Any = None, **_more: Any) -> None:
    try:
        span, entered = _running.pop(task_id, (None, []))
        if span is not None:
            failed = state == "FAILURE"
            span.attributes["celery.state"] = state
            span.end((retval if isinstance(retval, BaseException) else "failed") if failed else None)
        for one in reversed(entered):
            one.__exit__(None, None, None)
    except Exception as error:
        say("the end of a task", error)
