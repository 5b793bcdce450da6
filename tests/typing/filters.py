"""What a type checker must accept, and infer, of the filters."""

from __future__ import annotations

import logging

from logsluice import filters


def use(handler: logging.Handler, record: logging.LogRecord) -> bool:
    sample = filters.SampleFilter(rates={"DEBUG": 0.01, logging.INFO: 1}, key=None)
    limit = filters.RateLimitFilter(per_second=0.5, burst=3, key="user_id", keep_level="ERROR")
    fold = filters.DuplicateFilter(seconds=60, key="template", logger="urllib3")
    for one in (sample, limit, fold):
        handler.addFilter(one)
    counts: dict[tuple[str, int], int] = limit.suppressed_by
    fold.report()
    fold.report(everything=True)
    listed: list[tuple[str, dict[tuple[str, int], int]]] = filters.figures()
    return sample.filter(record) and bool(counts or listed)
