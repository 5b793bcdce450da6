"""What a failure says, taken from psycopg's errors, and none of the row content or secrets that they quote."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from logsluice import partitions
from logsluice.delivery import Failure
from logsluice.sinks import SinkError

if TYPE_CHECKING:
    from collections.abc import Iterator

_DETAIL = re.compile(r"\((.+?)\)=\((.+)\)", re.DOTALL)  # "Key (user_id)=(999) is not present in table …"


class IoTimeoutError(psycopg.OperationalError):
    """Our own limit, told apart from what the server says."""


@contextmanager
def translated(copying: str = "") -> Iterator[None]:
    """In this context psycopg's errors become `SinkError`s. `copying`: the table that a line number is about."""
    try:
        yield
    except SinkError:
        raise
    except Exception as error:
        raise SinkError(failure_of(error, copying)) from None  # without the cause: it may quote a row or a secret


def failure_of(error: Exception, copying: str = "") -> Failure:
    """Return what is known of an error, without row content: libpq's DETAIL and CONTEXT quote values."""
    if not isinstance(error, psycopg.Error):
        return Failure(f"{type(error).__name__} while writing", None)
    diag = error.diag
    key, value = _key_of(diag.message_detail or "")
    no_partition = error.sqlstate == "23514" and diag.constraint_name is None
    return Failure(
        _said(error),
        error.sqlstate,
        timed_out=isinstance(error, IoTimeoutError),
        constraint=diag.constraint_name,
        line=_line_of(diag.context or "", copying),
        key=key,
        value=value,
        # A role without SELECT gets no DETAIL; the CONTEXT shows the row itself.
        moment=partitions.moment_of(diag.message_detail or diag.context) if no_partition else None,
    )


def _said(error: psycopg.Error) -> str:
    """Return the server's primary message; for errors of the data only its kind, as the message may quote the value."""
    sqlstate, diag = error.sqlstate, error.diag
    if sqlstate is None:
        return first_line(str(error)) or type(error).__name__
    context = diag.context or ""
    if diag.source_function == "exec_stmt_raise":  # RAISE in PL/pgSQL: its author's words, the row's own among them
        return f"refused by {first_line(context)} [{sqlstate}]"
    primary = first_line(diag.message_primary or "")
    in_function = bool(context) and not context.startswith("COPY ")  # of a trigger: it may run the row's text as SQL
    if in_function or sqlstate.startswith(("22", "P0")):  # 'invalid input syntax for type integer: "…"': the row's
        value = primary.find('"')  # the value may hold quotes as well: nothing behind the first is shown
        primary = primary if value < 0 else f'{primary[:value]}"…"'
        column = re.search(r"column (\w+)", context)
        primary += f" (column {column[1]})" if column else ""
    return f"{primary} [{sqlstate}]"


def _line_of(context: str, table: str) -> int | None:
    """Return the row of the COPY into this table that the context names, from 1."""
    # "COPY logs, line 3, column n: …": the words are translated, the shape is not. The name is looked for, since it may
    # hold ", 7" itself; what a trigger was doing stands in lines before.
    found = re.search(rf"^COPY {re.escape(table)}, \D*(\d+)", context, re.MULTILINE)
    return int(found[1]) if found and table else None


def _key_of(detail: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = _DETAIL.search(detail)
    if not found:
        return (), ()
    columns, values = found[1].split(", "), found[2].split(", ")
    if len(columns) == 1:
        return (columns[0].strip('"'),), (found[2],)
    return (tuple(c.strip('"') for c in columns), tuple(values)) if len(columns) == len(values) else ((), ())


def first_line(text: str) -> str:
    """Return the first line of a message; libpq's go on with what a person at a terminal might try."""
    return text.strip().split("\n", 1)[0]


def escaped(text: str) -> str:
    """Return a text as an ASCII column of a COPY row: the error may hold what the database's encoding does not."""
    text = text.encode("ascii", "backslashreplace").decode().replace("\\", "\\\\")
    return text.replace("\n", " ").replace("\r", " ").replace("\t", " ").replace("\0", " ")
