"""
Types of logs that many programs keep, each with a table of its own: declared, checked, indexed.

Nothing of this is made before a program uses it: a plain install has no table of these. Import from here; each class
says what a row of its table is. All fields are given by keyword; those without a default must be given.

    log.info(Activity(activity_type="message_sent", session_id="s-1", token_count=812))

Besides its own fields each row has when (`ts`), how serious (`level`), which logger and service, the ids of trace,
span, request, user and organization, and `attributes`: what was bound or given as `extra` and has no column.
docs/howto/typed-logs.md shows them at work.
"""

from __future__ import annotations

from logsluice.contrib.activity import ACTIVITY_TYPES, Activity
from logsluice.contrib.api import ApiRequest
from logsluice.contrib.events import AdminActivity, SystemEvent
from logsluice.contrib.jobs import JobLog, MessageEvent

__all__ = ["ACTIVITY_TYPES", "Activity", "AdminActivity", "ApiRequest", "JobLog", "MessageEvent", "SystemEvent"]
