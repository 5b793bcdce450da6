"""Bound values as a user writes them; mypy checks this file under `strict`, nothing runs it."""

from __future__ import annotations

from typing import Any

import logsluice
from logsluice import context
from logsluice.context import bind, bound, clear, unbind


def handle_request(user: str, tenant: int) -> dict[str, Any] | None:
    context.bind(user_id=user, tenant=tenant)
    bind(correlation_id="c-17")
    with bound(order={"id": 17}, flag=True), context.bound(trace_id="abc"):
        seen: dict[str, Any] | None = context.current()
    unbind("tenant", "never")
    clear()
    logsluice.context.clear()
    return seen
