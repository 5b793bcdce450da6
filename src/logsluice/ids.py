"""
The ids of records, as people write them. Pure.

An id is one of three: the uuid of the views of `logsluice migrate --compat` (stream and seq, 16 hexadecimal digits
each); ts~stream~seq, each in base 32 (0-9a-v), the ts in microseconds since the epoch, which the index on `ts` finds
at once; stream~seq in decimal, as `grafana_logs` has it.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from logsluice.errors import LogsluiceError

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_DIGITS = "0123456789abcdefghijklmnopqrstuv"  # of base 32, as Python's int() reads them
_TOP = 1 << 63  # the first number that bigint does not hold


class Id(NamedTuple):
    """What an id says."""

    stream: int
    seq: int
    ts: datetime | None  # None: it does not say


def parse(text: str) -> Id:
    """Return what an id says. Raises `LogsluiceError` for what is none."""
    try:
        parts = text.split("~")
        if len(parts) == 3:
            ts, stream, seq = (int(part, 32) for part in parts)
            found = Id(stream, seq, _EPOCH + timedelta(microseconds=ts))
        elif len(parts) == 2:
            found = Id(int(parts[0]), int(parts[1]), None)
        else:
            number = uuid.UUID(text).int
            stream, seq = number >> 64, number & (1 << 64) - 1
            found = Id(stream, seq - (1 << 64) if seq >= _TOP else seq, None)  # rows of our own count downwards
        if not (0 <= found.stream < _TOP and -_TOP <= found.seq < _TOP):
            raise ValueError
    except (ValueError, OverflowError):
        raise LogsluiceError(
            f"{text!r} is no id: write a uuid as in log_entry.id, ts~stream~seq in base 32, or stream~seq in decimal"
        ) from None
    return found


def made(stream: int, seq: int, ts: datetime) -> str:
    """Return the id of a record that says when it was: ts~stream~seq."""
    return "~".join(map(_base32, ((ts - _EPOCH) // timedelta(microseconds=1), stream, seq)))


def _base32(number: int) -> str:
    digits = ""
    rest = abs(number)
    while True:
        digits = _DIGITS[rest % 32] + digits
        rest //= 32
        if not rest:
            return "-" + digits if number < 0 else digits
