"""What administrators did, and what befell the system."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from logsluice.types import logtype


@logtype(table="admin_activity", indexes=[("admin_id", "ts"), ("resource_type", "resource_id")])
class AdminActivity:
    """One thing that an administrator did."""

    admin_id: str = field(metadata={"doc": "Id of the administrator."})
    action: str = field(metadata={"doc": "What was done: update, delete, ..."})
    resource_type: str | None = field(
        default=None, metadata={"doc": "Kind of the thing it was done to: user, order, ..."}
    )
    resource_id: str | None = field(default=None, metadata={"doc": "Id of that thing."})
    changes: dict[str, Any] | None = field(
        default=None, metadata={"doc": "What was changed, for example {field: [old, new]}."}
    )
    ip_address: str | None = field(
        default=None, metadata={"doc": "The administrator's address, as the program saw it."}
    )


@logtype(table="system_event", indexes=[("level", "ts")])
class SystemEvent:
    """One event of the system itself: a start, a full disk, a job that was put off."""

    message: str = field(metadata={"doc": "What happened."})
    level: int | str | None = field(
        default=None, metadata={"doc": "Python's level number; that of the logging call unless it was given."}
    )
    metadata: dict[str, Any] | None = field(default=None, metadata={"doc": "Whatever else there is to tell."})
