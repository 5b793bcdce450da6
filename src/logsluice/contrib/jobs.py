"""What jobs did: their lines, and the ways of messages that they send."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal
from uuid import UUID

from logsluice.types import Sql, logtype


@logtype(table="job_log", indexes=[("job_id", "ts"), ("slice_uri", "ts")])
class JobLog:
    """One line of a job's log. A `job_id` given as text becomes a UUID, where it is one."""

    log_type: str = field(metadata={"doc": "Which kind of work: sync_job, jetstream, system, or one of your own."})
    message: str = field(metadata={"doc": "The line."})
    job_id: UUID | None = field(default=None, metadata={"doc": "Id of the job."})
    user_did: str | None = field(default=None, metadata={"doc": "DID of the user that it runs for."})
    slice_uri: str | None = field(default=None, metadata={"doc": "URI of the slice of data that it works on."})
    level: int | str | None = field(
        default=None, metadata={"doc": "Python's level number; that of the logging call unless it was given."}
    )
    metadata: dict[str, Any] | None = field(default=None, metadata={"doc": "Whatever else the job tells."})

    def __post_init__(self) -> None:
        given: object = self.job_id
        if isinstance(given, str):
            try:
                self.job_id = UUID(given)
            except ValueError:
                pass  # stays as it is, and is told as invalid where it is logged: a log must not raise here


@logtype(table="message_event", indexes=["job_id", "status", "channel", "recipient_email"])
class MessageEvent:
    """
    One step of a message's way. Nothing is ever updated: a message that is sent leaves a row for each status.

    The view `message_logs` (`logsluice migrate --compat`) folds the rows of a job into one, with its last status.
    """

    job_id: str = field(metadata={"doc": "Id of the job that sends the message: the same in each of its rows."})
    channel: str = field(metadata={"doc": "How it is sent: email, whatsapp, or one of your own."})
    status: Literal["queued", "processing", "sent", "failed"] = field(
        metadata={"doc": "How far it is: queued, processing, sent or failed."}
    )
    recipient_email: str | None = field(default=None, metadata={"doc": "Address of the recipient."})
    recipient_phone: str | None = field(default=None, metadata={"doc": "Number of the recipient, best as E.164."})
    recipient_name: str | None = field(default=None, metadata={"doc": "Name of the recipient."})
    template_id: str | None = field(default=None, metadata={"doc": "Id of the template it was made from."})
    template_name: str | None = field(default=None, metadata={"doc": "Name of that template."})
    subject: str | None = field(default=None, metadata={"doc": "Its subject."})
    attempts: Annotated[int, Sql("smallint")] = field(default=1, metadata={"doc": "Which attempt this is, from 1."})
    priority: Annotated[int, Sql("smallint")] = field(
        default=1, metadata={"doc": "Its priority; what is more, is yours to say."}
    )
    message_id: str | None = field(default=None, metadata={"doc": "Id that the provider gave it."})
    error_message: str | None = field(default=None, metadata={"doc": "Why this attempt failed."})
