"""The shipped types of logs as a user writes them; mypy checks this file under `strict`, nothing runs it."""

from __future__ import annotations

import logging
from uuid import uuid4

from logsluice.contrib import Activity, AdminActivity, ApiRequest, JobLog, MessageEvent, SystemEvent

log = logging.getLogger(__name__)


def answer(session: str) -> float | None:
    log.info(Activity(activity_type="message_sent", session_id=session, token_count=812, similarity_score=0.83))
    try:
        raise ValueError(session)
    except ValueError as exc:
        failed = Activity(activity_type="llm_error", session_id=session, error=exc)
        log.exception(failed)
    Activity()  # type: ignore[call-arg]  # what was done must be said
    Activity("message_sent")  # type: ignore[call-arg]  # by keyword
    Activity(activity_type="mine", activity_status="done")  # type: ignore[arg-type]  # one of three
    Activity(activity_type="mine", tokens=3)  # type: ignore[call-arg]  # no such field
    return failed.processing_time_ms


def others() -> str | None:
    log.info(JobLog(log_type="sync_job", message="begun", job_id=uuid4(), level="INFO", metadata={"pages": 3}))
    log.info(MessageEvent(job_id="j-1", channel="email", status="queued", recipient_email="a@example.org"))
    MessageEvent(job_id="j-1", channel="email", status="lost")  # type: ignore[arg-type]  # one of four
    log.info(AdminActivity(admin_id="a-1", action="update", resource_type="user", changes={"name": ["a", "b"]}))
    log.info(SystemEvent(message="disk nearly full", level=logging.WARNING))
    request = ApiRequest(method="GET", path="/orders/17", route="/orders/{id}", status=200, duration_ms=1.5)
    log.info(request)
    return request.route
