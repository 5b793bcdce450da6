"""Bound values as a user writes them; mypy checks this file under `strict`, nothing runs it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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


@logsluice.span("charge", kind="card")
@bound(shop="Paris")
async def charge(amount: float) -> int:
    async with logsluice.trace("checkout", parent=logsluice.extract({"traceparent": ""}), amount=amount) as t:
        headers: dict[str, str] = {}
        logsluice.inject(headers, t)
        job = logsluice.start_span("job", parent=t.context)
    ended: bool = job.end(ValueError("no"))
    return len(logsluice.active_traces()) + ended


async def call() -> int:
    with context.carry(ThreadPoolExecutor(1)) as pool:
        pool.submit(context.carried(handle_request), "ada", 7)
    return await charge(12.5)
