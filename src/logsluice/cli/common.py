"""What the commands share: where the database is, durations, and errors in one line without a secret."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import shlex
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import conninfo

from logsluice.cli.arguments import utf8
from logsluice.columns import quote
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.sinks.link import MISREAD, misread, read_times
from logsluice.types import LONGEST, UNITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it

DSN_VARIABLE = "LOGSLUICE_DSN"
MAY_NOT = "; connect as a role that may: the owner of the tables, or one of `logsluice migrate --roles`"
# Seconds to connect, unless the DSN or PGCONNECT_TIMEOUT says otherwise: a person waits, and libpq would wait for ever.
_CONNECT_TIMEOUT = "10"
SECRETS = ("password", "sslpassword", "oauth_client_secret")


def add_dsn(parser: argparse.ArgumentParser, *, schema: bool = True) -> None:
    """Add --dsn and, where the command does not know it from elsewhere, --schema."""
    parser.add_argument(
        "--dsn",
        type=utf8,
        help=f"libpq string or URI; without it ${DSN_VARIABLE}, then libpq's own environment (PGHOST, PGSERVICE, ...). "
        "Other users of this machine can read arguments: keep passwords in the environment or in ~/.pgpass",
    )
    if schema:
        parser.add_argument(
            "--schema", type=utf8, default="logsluice", help="schema of logsluice's tables (default: %(default)s)"
        )


def dsn(args: argparse.Namespace) -> str:
    """Return where the arguments or the environment say, as libpq's string. Raises `ConfigError` without a secret."""
    text = args.dsn if args.dsn is not None else os.environ.get(DSN_VARIABLE, "")
    try:
        given = conninfo.conninfo_to_dict(text)
    except psycopg.Error:
        # libpq quotes what it cannot read, and that may be a part of the password.
        raise ConfigError(
            "the DSN cannot be read; write 'host=... dbname=... user=...' or postgresql://user@host:port/dbname, "
            "with odd characters percent-encoded in a URI"
        ) from None
    if misread(text, given):
        raise ConfigError(MISREAD)
    ours = {"fallback_application_name": "logsluice"}
    if "PGCONNECT_TIMEOUT" not in os.environ:
        ours["connect_timeout"] = _CONNECT_TIMEOUT
    return conninfo.make_conninfo(**{**ours, **given})  # type: ignore[arg-type]  # values are str


def connect(args: argparse.Namespace) -> psycopg.Connection[Any]:
    """Connect where the arguments or the environment say, with autocommit. Raises one line without a secret."""
    where = dsn(args)
    try:
        conn = psycopg.connect(where, autocommit=True)
        read_times(conn)
        return conn
    except psycopg.Error as error:
        text, given = one_line(str(error)), conninfo.conninfo_to_dict(where)
        for secret in SECRETS:
            if given.get(secret):
                text = text.replace(str(given[secret]), "***")
        raise LogsluiceError(f"cannot connect: {text}") from None


def place(args: argparse.Namespace, conn: psycopg.Connection[Any], table: str | None = None) -> str:
    """Return what is looked at, for messages: a table of the schema, or all of it."""
    what = f"schema {quote(args.schema)}" if table is None else f"{quote(args.schema)}.{quote(table)}"
    return f"{what} in database {quote(conn.info.dbname)}"


def command(args: argparse.Namespace, *words: str) -> str:
    """Return a command to run next, without the DSN: it may hold a password."""
    return shlex.join(["logsluice", *words]) + (" --dsn ..." if args.dsn is not None else "")


def schema_words(args: argparse.Namespace) -> list[str]:
    """Return what names the schema in a command, nothing for the usual one."""
    return [] if args.schema == "logsluice" else ["--schema", args.schema]


@contextlib.contextmanager
def said(action: str) -> Iterator[None]:
    """Turn an error of the server into one line that says what was being done."""
    try:
        yield
    except psycopg.Error as error:
        raise LogsluiceError(f"{action}: {reason(error)}{next_step(error)}") from None


def next_step(error: psycopg.Error) -> str:
    """Return what to do about a right that is missing, to put behind the reason; else nothing."""
    return MAY_NOT if isinstance(error, psycopg.errors.InsufficientPrivilege) else ""


def reason(error: psycopg.Error) -> str:
    """Return the server's message and hint in one line, without DETAIL: it can hold row content."""
    if not error.diag.message_primary:
        return one_line(str(error)) or type(error).__name__
    hint = f" ({error.diag.message_hint})" if error.diag.message_hint else ""
    return one_line(error.diag.message_primary + hint)


def one_line(text: str) -> str:
    """Return the text with every run of white space as one blank."""
    return " ".join(text.split())


def duration(text: str) -> timedelta:
    """Return what `90m`, `12h`, `30d` or `4w` means. An argparse type."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 90m, 12h, 30d or 4w")
    seconds = int(found[1]) * UNITS[found[2]]
    if seconds > LONGEST:  # so long ago may be before the year 1, which no datetime can say
        raise argparse.ArgumentTypeError(f"{text!r} is more than 100 years: nothing stored is so old")
    return timedelta(seconds=seconds)


def imported(name: str) -> None:
    """Import a module that somebody named, from the working folder too, as `python -m` has it."""
    sys.path.insert(0, "")
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever its own lines raise; ValueError and TypeError for a name that is none
        raise ConfigError(f"module {name!r} cannot be imported: {type(error).__name__}: {error}") from None
