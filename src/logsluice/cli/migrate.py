"""`logsluice migrate`: make or update the tables, or print the DDL for somebody who may."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import psycopg

from logsluice import contrib, migrations, partitions, schema
from logsluice.cli import common, tables
from logsluice.cli.arguments import utf8
from logsluice.cli.output import say_anything
from logsluice.columns import quote, target_from
from logsluice.config import PARTITION_WIDTHS
from logsluice.errors import ConfigError, LogsluiceError
from logsluice.tracing import SpanRow

if TYPE_CHECKING:
    import argparse


_ROLES = {"writer": "writes", "reader": "reads", "admin": "migrates, maintains and deletes"}


def register(commands: common.Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("migrate", help="make or update the tables in PostgreSQL")
    common.add_dsn(parser)
    parser.add_argument(
        "--partition",
        choices=PARTITION_WIDTHS,
        default="day",
        help="width of a partition of `logs`, as in the handler's option (default: %(default)s)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="apply what is missing: what it does without any of these")
    what.add_argument(
        "--plan", action="store_true", help="change nothing: show what would be applied, and whether the role may"
    )
    what.add_argument("--sql", action="store_true", help="print the DDL and connect to nothing")
    what.add_argument(
        "--roles",
        action="store_true",
        help="print what makes the roles of writer, reader and admin; connect to nothing",
    )
    for kind, may in _ROLES.items():
        parser.add_argument(
            f"--{kind}", metavar="ROLE", help=f"with --roles: who {may} (default: logsluice_{kind})", type=utf8
        )
    parser.add_argument(
        "--after",
        type=int,
        default=0,
        metavar="VERSION",
        help="with --sql: print only what is newer than the version that the database has (default: %(default)s, all)",
    )
    parser.add_argument("--grant-to", metavar="ROLE", help="with --sql: also print the GRANTs that a writer needs")
    parser.add_argument(
        "--compat",
        action="store_true",
        help="also make the views with the names of systems that logsluice replaces (log_entry, activity_logs, "
        "api_logs, message_logs, system_logs, admin_activity_logs, job_logs) and the typed tables that they read",
    )
    parser.add_argument(
        "--rollup",
        action="store_true",
        help="also make the hourly counts of `logs` that outlive its rows (logs_hourly); `maintain` keeps them",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Apply what is missing and say what was done, or show or print what would be."""
    target_from(args.schema, "logs", None)  # raises: a plan must not promise what would be refused
    named = {kind: name for kind in _ROLES if (name := getattr(args, kind)) is not None}
    if args.sql and not named:
        newest = schema.sql_files()[-1].number
        if not ((args.compat or args.rollup) and args.after == newest):  # nothing but the optional is asked for
            sys.stdout.write(schema.render(args.schema, args.partition, args.grant_to, after=args.after))
        if args.compat:
            sys.stdout.write(f"BEGIN;\n{_compat(args)}COMMIT;\n")
        if args.rollup:
            sys.stdout.write(f"BEGIN;\n{schema.rollup(args.schema)}COMMIT;\n")
        return 0
    if args.roles:
        sys.stdout.write(schema.roles(args.schema, **named))
        return 0
    if named:
        raise ConfigError(f"--{next(iter(named))} goes with --roles: what it may is printed, for somebody to run")
    if args.after:
        raise ConfigError("--after goes with --sql: without it the database is asked for its version")
    if args.grant_to is not None:
        raise ConfigError("--grant-to goes with --sql: GRANTs are printed, for somebody who may give them to run")
    with common.connect(args) as conn:
        where = f"{common.place(args, conn)} as {quote(conn.info.user)}"
        if args.plan:
            return _plan(conn, args, where)
        _apply(conn, args, where)
    return 0


def _plan(conn: psycopg.Connection[Any], args: argparse.Namespace, where: str) -> int:
    """Print how each file stands; 0 when `--apply` would do it or has nothing to do, else 1."""
    with common.said(f"{where}: what is applied cannot be read"):
        steps = migrations.plan(conn, args.schema)
        refusal = migrations.refusal(conn, args.schema)
    say_anything(sys.stdout)
    print(f"{where}:")
    width = max(len(step.file.name) for step in steps)
    for step in steps:
        at = f" {tables.minute(step.applied)} UTC" if step.applied else ""
        print(f"  {step.file.name.ljust(width)}  {step.state}{at}: {step.about}")
        if step.state == migrations.PENDING and step.lock:
            print(f"  {'':{width}}  {step.lock}")
    wanted = sum(step.state == migrations.PENDING for step in steps)
    if other := migrations.changed(steps, args.schema):
        print(f"refused: {other}")
        return 1
    if not wanted:
        newer = schema.version(conn, args.schema) > steps[-1].file.number
        print(
            "nothing to apply: a later logsluice made these tables, and this one goes on"
            if newer
            else "nothing to apply"
        )
    elif refusal:
        print(f"{refusal}; have its owner run the output of `{_sql(conn, args)}`")
        return 1
    else:
        print(f"{wanted} to apply, and the role may: logsluice migrate --apply")
    return 0


def _apply(conn: psycopg.Connection[Any], args: argparse.Namespace, where: str) -> None:
    try:
        if other := migrations.changed(migrations.plan(conn, args.schema), args.schema):
            raise LogsluiceError(f"{where}: {other}")
        applied = schema.migrate(conn, args.schema, args.partition)
        left = schema.pending(conn, args.schema)
        if args.compat:
            schema.apply(conn, _compat(args), args.schema)
        if args.rollup:
            schema.apply(conn, schema.rollup(args.schema), args.schema)
    except psycopg.errors.InsufficientPrivilege as error:
        raise LogsluiceError(
            f"{where}: {common.reason(error)}; have its owner run the output of `{_sql(conn, args)}`"
        ) from None
    except psycopg.Error as error:
        raise LogsluiceError(f"{where}: {common.reason(error)}") from None
    if applied or not left:
        print(f"{where}: applied {', '.join(applied)}" if applied else f"{where}: nothing to apply")
    if args.compat:
        print("made the views of --compat, and the typed tables that they read")
    if args.rollup:
        print("made the roll-up; `logsluice maintain` counts what is there, and from then on what is new")
    # Apart from the above: the tables are there, whatever becomes of the first partitions.
    with common.said("the tables are there, but not the partitions that rows of today need"):
        made = partitions.ensure(conn, args.schema, args.partition, datetime.now(timezone.utc))
    if made:
        print(f"made {', '.join(made)}")
    if left:
        raise LogsluiceError(
            f"{where}: {', '.join(left)} not applied, somebody uses the table that it alters (pg_dump, an open "
            "transaction); run the same again later. Handlers do not need it, and go on writing"
        )


def _compat(args: argparse.Namespace) -> str:
    """Return the SQL of the views, before them that of the tables that they read: no handler may have made these."""
    kinds = [getattr(contrib, name) for name in contrib.__all__ if hasattr(getattr(contrib, name), "__logtype__")]
    tables = [kind.__logtype__.ddl(args.schema, args.partition, args.grant_to) for kind in (*kinds, SpanRow)]
    return "\n".join([*tables, schema.compat(args.schema)])


def _sql(conn: psycopg.Connection[Any], args: argparse.Namespace) -> str:
    """Return the command that prints what is missing here: DDL of what is there already would fail."""
    try:
        version = schema.version(conn, args.schema)
    except psycopg.Error:
        version = 0  # may not be read: the owner sees it
    command = ["logsluice", "migrate", "--sql"]
    command += ["--after", str(version)] if version else []
    command += [f"--{one}" for one in ("compat", "rollup") if getattr(args, one)]
    return shlex.join(command + common.schema_words(args))
