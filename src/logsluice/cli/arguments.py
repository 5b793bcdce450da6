"""What arguments of commands mean: times, spans, seconds, numbers of rows."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta, timezone

from logsluice import grammar
from logsluice.types import UNITS


def width(given: str) -> timedelta:
    """Return a span of time, of `30s`, `5m`, `1h`. An argparse type."""
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", given)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{given!r} is no span of time: write 30s, 15m, 12h, 7d or 4w")
    return timedelta(seconds=int(found[1]) * UNITS[found[2]])


def moment(given: str) -> datetime:
    """Return when `15m` (ago), `yesterday` or an RFC 3339 time is, as filters have it. An argparse type."""
    try:
        return grammar.moment(given, datetime.now(timezone.utc))
    except grammar.FilterError as error:
        raise argparse.ArgumentTypeError(error.problem) from None


def rows_wanted(given: str) -> int:
    """Return a number of rows. An argparse type."""
    if re.fullmatch("[0-9]{1,6}", given) and 1 <= int(given) <= 100_000:  # all are held in memory
        return int(given)
    raise argparse.ArgumentTypeError(f"{given!r} must be a whole number from 1 to 100,000")


def seconds(given: str) -> float:
    """Return seconds, written as `5`, `0.5` or `5s`. An argparse type."""
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?s?", given) and (found := float(given.removesuffix("s"))) >= 0.1:
        return found
    raise argparse.ArgumentTypeError(f"{given!r} must be seconds, 0.1 at least: write 5 or 0.5")


def utf8(given: str) -> str:
    """Return the text, if the database can be asked for it: a shell passes any bytes. An argparse type."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{given!a} is not UTF-8") from None
    return given
