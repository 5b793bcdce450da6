"""What a user's session did: messages, retrievals, language models' answers, and what they took."""

from __future__ import annotations

from dataclasses import InitVar, field
from typing import Literal

from logsluice.capture import safe_str, type_name
from logsluice.types import logtype

# The ones that dashboards and alerts may count on. `activity_type` is text: a program adds its own.
ACTIVITY_TYPES = (
    "message_sent", "retrieval_executed", "retrieval_skipped", "token_overflow", "sliding_window_enforced",
    "llm_error", "retrieval_error", "session_created", "session_expired", "cascade_deletion",
)  # fmt: skip


@logtype(
    table="activity",
    indexes=["session_id", ("user_id", "session_id", "ts desc"), "activity_type", "activity_status"],
)
class Activity:
    """
    One thing that a user's session did. `error=exc` fills `error_message`, `error_type` and the status.

    What was given by hand wins over what the exception says, but for the status: with an error it is "error".
    """

    activity_type: str = field(
        metadata={"doc": "What was done: message_sent, retrieval_executed, ... (ACTIVITY_TYPES)."}
    )
    activity_status: Literal["success", "error", "warning"] = field(
        default="success", metadata={"doc": "How it ended: success, error or warning."}
    )
    session_id: str | None = field(default=None, metadata={"doc": "Id of the session."})
    user_id: str | None = field(default=None, metadata={"doc": "Id of the user it was done for."})
    document_id: str | None = field(default=None, metadata={"doc": "Id of the document it was about."})
    message_content: str | None = field(default=None, metadata={"doc": "What the user wrote."})
    response_content: str | None = field(default=None, metadata={"doc": "What was answered."})
    token_count: int | None = field(default=None, metadata={"doc": "Tokens of the request and the answer."})
    retrieval_skipped: bool | None = field(default=None, metadata={"doc": "Whether it was answered without retrieval."})
    similarity_score: float | None = field(
        default=None, metadata={"doc": "Similarity of the best document found, as the search gives it, mostly 0 to 1."}
    )
    processing_time_ms: float | None = field(default=None, metadata={"doc": "All of it, milliseconds."})
    llm_call_duration_ms: float | None = field(
        default=None, metadata={"doc": "The language model's call, milliseconds."}
    )
    retrieval_duration_ms: float | None = field(default=None, metadata={"doc": "The retrieval, milliseconds."})
    error_message: str | None = field(default=None, metadata={"doc": "Text of the exception."})
    error_type: str | None = field(default=None, metadata={"doc": "Type of the exception, with its module."})
    user_agent: str | None = field(default=None, metadata={"doc": "The client's User-Agent."})
    ip_address: str | None = field(default=None, metadata={"doc": "The client's address, as the program saw it."})
    error: InitVar[BaseException | None] = None  # no column: it fills three

    def __post_init__(self, error: BaseException | None) -> None:
        if error is None:
            return
        self.activity_status = "error"
        if self.error_type is None:
            self.error_type = type_name(error)
        if self.error_message is None:
            self.error_message = safe_str(error)  # its __str__ may raise, and an error is being handled
