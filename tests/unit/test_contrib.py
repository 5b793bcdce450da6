"""The shipped types of logs: their columns, literals, indexes and comments; what an exception fills in."""

from __future__ import annotations

import uuid

import pytest

from logsluice import contrib
from logsluice.contrib import ACTIVITY_TYPES, Activity, AdminActivity, ApiRequest, JobLog, MessageEvent, SystemEvent
from support.processes import run_program

FIELDS = {
    Activity: """activity_type activity_status session_id user_id document_id message_content response_content token_count
        retrieval_skipped similarity_score processing_time_ms llm_call_duration_ms retrieval_duration_ms error_message
        error_type user_agent ip_address""",
    JobLog: "log_type message job_id user_did slice_uri level metadata",
    ApiRequest: """method path route status duration_ms client_ip request_bytes response_bytes user_agent request_body
        error""",
    MessageEvent: """job_id channel status recipient_email recipient_phone recipient_name template_id template_name
        subject attempts priority message_id error_message""",
    AdminActivity: "admin_id action resource_type resource_id changes ip_address",
    SystemEvent: "message level metadata",
}
INDEXES = {
    Activity: [("session_id",), ("user_id", "session_id", "ts desc"), ("activity_type",), ("activity_status",)],
    JobLog: [("job_id", "ts"), ("slice_uri", "ts")],
    ApiRequest: [],
    MessageEvent: [("job_id",), ("status",), ("channel",), ("recipient_email",)],
    AdminActivity: [("admin_id", "ts"), ("resource_type", "resource_id")],
    SystemEvent: [("level", "ts")],
}
LEAST = {
    Activity: {"activity_type": "message_sent"},
    JobLog: {"log_type": "sync_job", "message": "begun"},
    ApiRequest: {"method": "GET", "path": "/"},
    MessageEvent: {"job_id": "j-1", "channel": "email", "status": "queued"},
    AdminActivity: {"admin_id": "a-1", "action": "update"},
    SystemEvent: {"message": "begun"},
}


@pytest.mark.parametrize("kind", FIELDS)
def test_each_has_the_fields_and_the_indexes(kind):
    assert [column.name for column in kind.__logtype__.fields] == FIELDS[kind].split()
    assert list(kind.__logtype__.indexes) == INDEXES[kind]
    assert kind.__logtype__.retention is None
    for column in kind.__logtype__.columns:
        assert column.doc.endswith("."), column  # each column of the table has a comment, a sentence


@pytest.mark.parametrize("kind", LEAST)
def test_the_least_that_is_given_fits(kind):
    made = kind(**LEAST[kind])
    assert kind.__logtype__.problems(made) == {}
    assert all(str(value) in str(made) for value in LEAST[kind].values())
    with pytest.raises(TypeError):
        kind()


def test_the_types_are_what_the_columns_need():
    of = {kind: {column.name: (column.sql, column.null) for column in kind.__logtype__.fields} for kind in FIELDS}
    assert of[JobLog]["job_id"] == ("uuid", True)
    assert of[JobLog]["level"][0] == of[SystemEvent]["level"][0] == "smallint"
    assert of[JobLog]["metadata"] == of[AdminActivity]["changes"] == of[SystemEvent]["metadata"] == ("jsonb", True)
    assert of[MessageEvent]["attempts"] == of[MessageEvent]["priority"] == ("smallint", False)
    assert of[MessageEvent]["status"] == ("text", False)
    assert of[Activity]["similarity_score"] == of[Activity]["processing_time_ms"] == ("double precision", True)
    assert of[Activity]["retrieval_skipped"] == ("boolean", True)


def test_an_activity_type_may_be_any_and_a_status_may_not():
    assert len(ACTIVITY_TYPES) == len(set(ACTIVITY_TYPES)) == 10
    for name in (*ACTIVITY_TYPES, "one_of_mine"):
        assert Activity.__logtype__.problems(Activity(activity_type=name)) == {}
    wrong = [
        Activity(activity_type="x", activity_status="done"),
        MessageEvent(**{**LEAST[MessageEvent], "status": "x"}),
    ]
    for instance in wrong:
        assert len(type(instance).__logtype__.problems(instance)) == 1


class HostileError(Exception):
    def __str__(self):
        raise RuntimeError


def test_an_exception_fills_the_three_error_fields():
    made = Activity(activity_type="llm_error", error=TimeoutError("no answer in 30 s"))
    assert (made.error_message, made.error_type, made.activity_status) == ("no answer in 30 s", "TimeoutError", "error")
    given = Activity(activity_type="llm_error", error_message="mine", activity_status="warning", error=ValueError("x"))
    assert (given.error_message, given.error_type, given.activity_status) == ("mine", "ValueError", "error")
    hostile = Activity(activity_type="llm_error", error=HostileError())
    assert hostile.error_message == "<unprintable HostileError: RuntimeError>"
    assert hostile.error_type == f"{__name__}.HostileError"
    assert Activity(activity_type="message_sent").activity_status == "success"


def test_a_job_id_may_be_text():
    known = uuid.uuid4()
    assert JobLog(log_type="system", message="m", job_id=str(known)).job_id == known
    odd = JobLog(log_type="system", message="m", job_id="job 17")
    assert list(JobLog.__logtype__.problems(odd)) == ["job_id"]


def test_they_are_imported_only_when_they_are_used():
    program = run_program("import sys, logsluice, logsluice.handlers; print('logsluice.contrib' in sys.modules)")
    assert program.stdout == "False\n", program.stderr
    assert set(contrib.__all__) == {"ACTIVITY_TYPES", *(kind.__name__ for kind in FIELDS)}
