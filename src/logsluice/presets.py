"""
Configurations to begin with: plain data for `logging.config.dictConfig`, printed by `logsluice preset NAME`.

    three_level   a console, an errors' file, a file of all, PostgreSQL
    activity      many small records of what users do: batches by size or time, two connections
    batched       a batch when it is full or after five seconds, and a line when one was slow
    audit         one connection, small batches, three attempts, and a file for what PostgreSQL would not take
    structured    PostgreSQL with a journal: what a call returned from survives the process
    basic         a console and PostgreSQL: Flask, uWSGI, a script
    uvicorn, gunicorn, celery, django    the same, with that program's own loggers

Each function returns a new dict of what JSON can hold; change it as you like, or print it and edit it by hand. Further
keywords are options of its `PostgresHandler`, over the preset's own.
`logrotate` returns the file of another program, for those who want that to rotate.
"""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

from logsluice.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.config import FileSettings

TIME = "%Y-%m-%d %H:%M:%S"  # on the console
PRODUCTION = ("LOGSLUICE_ENV", "APP_ENV")  # environment variables that say "production"
KEPT = 30  # rotated files: a month of days
# A week is ours, Monday to Sunday: logrotate's own begins on Sunday.
_PERIODS = {"hour": "hourly", "midnight": "daily", "week": "weekly 1", "month": "monthly"}
_GLOBBED = re.compile(r"""[*?\[\]{}"'\\\n]""")  # what logrotate would read as a pattern, or as an end


def level_of_environment() -> str:
    """Return the level that LOG_LEVEL names, INFO if it is not set. Raises ConfigError for one that there is not."""
    name = os.environ.get("LOG_LEVEL", "").strip().upper() or "INFO"
    if not isinstance(logging.getLevelName(name), int):
        raise ConfigError(
            f"LOG_LEVEL={os.environ['LOG_LEVEL']!r} is no level: write DEBUG, INFO, WARNING, ERROR or CRITICAL"
        )
    return name


def in_production() -> bool:
    """Whether LOGSLUICE_ENV, or else APP_ENV, is `production`."""
    named = next((os.environ[name] for name in PRODUCTION if os.environ.get(name)), "")
    return named.strip().lower() == "production"


def three_level(
    service: str = "app",
    dsn: str | None = None,
    *,
    dsn_env: str = "LOGS_DSN",
    directory: str = "logs",
    version: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """
    Return a configuration of four places: console, `error.log`, `combined.log`, PostgreSQL.

    Both files are JSON lines with tracebacks, rotated at midnight, kept for 30 days.

    No console in production (`LOGSLUICE_ENV` or `APP_ENV`). The level is LOG_LEVEL's, INFO without. `service` and
    `version` are in every line of the files, and stored with the rows. Without a `dsn` it is read from the environment
    variable `dsn_env`. Raises ConfigError for a wrong LOG_LEVEL.
    """
    file = {
        "class": "logsluice.JsonFileHandler",
        "service": service,
        "when": "midnight",
        "backup_count": KEPT,
        "compress": True,
        "delay_compress": True,
    }
    if version is not None:
        file["formatter"] = "json"
    handlers: dict[str, Any] = {
        "console": {"class": "logsluice.ConsoleHandler", "time_format": TIME},
        "error": {**file, "filename": f"{directory}/error.log", "level": "ERROR"},
        "combined": {**file, "filename": f"{directory}/combined.log"},
        "postgres": _postgres(service, dsn, dsn_env, {"service_version": version, **options}),
    }
    if in_production():
        del handlers["console"]
    config = _config(handlers, level_of_environment())
    if version is not None:
        config["formatters"] = {
            "json": {"()": "logsluice.formatters.SluiceJsonFormatter", "static_fields": {"version": version}}
        }
    return config


def activity(
    service: str = "app", dsn: str | None = None, *, dsn_env: str = "LOGS_DSN", **options: Any
) -> dict[str, Any]:
    """Return a configuration for many small records: 10,000 may wait, 100 or a second's are sent, two connections."""
    own = {"capacity": 10_000, "batch_size": 100, "linger": 1.0, "connections": 2}
    return _config({"postgres": _postgres(service, dsn, dsn_env, {**own, **options})})


def batched(
    service: str = "app", dsn: str | None = None, *, dsn_env: str = "LOGS_DSN", **options: Any
) -> dict[str, Any]:
    """Return a configuration that sends 100 records or those of 5 s, and says when a batch took over 0.1 s."""
    own = {"batch_size": 100, "linger": 5.0, "slow_batch": 0.1}
    return _config({"postgres": _postgres(service, dsn, dsn_env, {**own, **options})})


def audit(
    service: str = "app",
    dsn: str | None = None,
    *,
    dsn_env: str = "LOGS_DSN",
    directory: str = "logs",
    **options: Any,
) -> dict[str, Any]:
    """
    Return a configuration for audit records: 50 or those of 5 s by one connection, and three attempts a batch.

    What is given up after them goes into `audit-kept.log`, JSON lines: nothing leaves without a trace.
    """
    own = {"batch_size": 50, "linger": 5.0, "connections": 1, "retry_limit": 2, "fallback": "kept"}
    handlers = {
        "postgres": _postgres(service, dsn, dsn_env, {**own, **options}),
        "kept": {"class": "logsluice.JsonFileHandler", "filename": f"{directory}/audit-kept.log", "service": service},
    }
    config = _config(handlers)
    config["root"]["handlers"] = ["postgres"]
    # On a logger that nobody logs to: logging forgets a handler that is on none.
    config["loggers"] = {"logsluice-kept": {"handlers": ["kept"], "propagate": False}}
    return config


def structured(
    service: str = "app",
    dsn: str | None = None,
    *,
    dsn_env: str = "LOGS_DSN",
    journal: str = "journal",
    **options: Any,
) -> dict[str, Any]:
    """Return a configuration that keeps records in a journal until PostgreSQL has them."""
    return _config({"postgres": _postgres(service, dsn, dsn_env, {"journal": journal, **options})})


def basic(service: str = "app", dsn: str | None = None, *, dsn_env: str = "LOGS_DSN", **options: Any) -> dict[str, Any]:
    """Return a configuration of a console and PostgreSQL, for Flask, uWSGI, a script."""
    handlers = {
        "console": {"class": "logging.StreamHandler"},
        "postgres": _postgres(service, dsn, dsn_env, options),
    }
    return _config(handlers)


def uvicorn(
    service: str = "app", dsn: str | None = None, *, dsn_env: str = "LOGS_DSN", **options: Any
) -> dict[str, Any]:
    """Return a configuration for `uvicorn --log-config`: a console and PostgreSQL, uvicorn's own records, too."""
    # Each by its name: uvicorn's own configuration, which this one replaces, does not let them propagate.
    return _propagating(basic(service, dsn, dsn_env=dsn_env, **options), "uvicorn", "uvicorn.error", "uvicorn.access")


def gunicorn(
    service: str = "app", dsn: str | None = None, *, dsn_env: str = "LOGS_DSN", **options: Any
) -> dict[str, Any]:
    """Return a configuration for gunicorn's `logconfig_dict`: a console and PostgreSQL, gunicorn's own records, too."""
    # It is laid over gunicorn's dict key by key: without `root` and `loggers` of ours those of gunicorn would stay.
    return _propagating(basic(service, dsn, dsn_env=dsn_env, **options), "gunicorn.error", "gunicorn.access")


def django(
    service: str = "app", dsn: str | None = None, *, dsn_env: str = "LOGS_DSN", **options: Any
) -> dict[str, Any]:
    """Return a configuration for Django's `LOGGING`: a console and PostgreSQL, Django's own records, too."""
    config = _propagating(basic(service, dsn, dsn_env=dsn_env, **options), "django.server")
    # Said again, `django` loses the handlers that Django itself gave it: else a line is printed twice.
    config["loggers"] = {"django": {"level": "INFO"}, **config["loggers"]}
    return config


def celery(
    service: str = "app", dsn: str | None = None, *, dsn_env: str = "LOGS_DSN", **options: Any
) -> dict[str, Any]:
    """Return a configuration for a receiver of Celery's `setup_logging`: PostgreSQL, and a console with process ids."""
    handlers = {
        "postgres": _postgres(service, dsn, dsn_env, options),
        "console": {"class": "logging.StreamHandler", "formatter": "brief"},
    }
    config = _config(handlers)
    config["formatters"] = {"brief": {"format": "%(process)d %(levelname)s %(name)s: %(message)s"}}
    # The pool's logger, which tells of killed children, does not propagate.
    config["loggers"] = {"multiprocessing": {"handlers": list(handlers), "propagate": False}}
    return config


PRESETS: dict[str, Callable[..., dict[str, Any]]] = {
    "three_level": three_level,
    "activity": activity,
    "batched": batched,
    "audit": audit,
    "structured": structured,
    "basic": basic,
    "uvicorn": uvicorn,
    "gunicorn": gunicorn,
    "django": django,
    "celery": celery,
}


def _postgres(service: str, dsn: str | None, dsn_env: str, options: dict[str, Any]) -> dict[str, Any]:
    where = {"dsn_env": dsn_env} if dsn is None else {"dsn": dsn}
    return {"class": "logsluice.PostgresHandler", **where, "service": service, **options}


def _propagating(config: dict[str, Any], *loggers: str) -> dict[str, Any]:
    """Let these loggers' records go to root."""
    return {**config, "loggers": {name: {"level": "INFO", "propagate": True} for name in loggers}}


def _config(handlers: dict[str, Any], level: str = "INFO") -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": handlers,
        "root": {"level": level, "handlers": list(handlers)},
    }


# --- logrotate -----------------------------------------------------------------------------------------------------


def logrotate(settings: FileSettings) -> str:
    """Return the logrotate file that does what these options of a `JsonFileHandler` do. Raises ConfigError."""
    name = settings.filename
    if _GLOBBED.search(name):
        raise ConfigError(f"filename: logrotate reads {name!r} as a pattern; choose a name without quotes and brackets")
    when = settings.when or (None if settings.max_bytes else "midnight")
    return "\n".join([*_remarks(settings, when), f'"{name}" {{', *_directives(settings, when), "}", ""])


def _remarks(settings: FileSettings, when: str | None) -> list[str]:
    found = [
        "# For /etc/logrotate.d. Leave max_bytes=, when= and what goes with them out of the handler: one of the two",
        "# rotates. The handler sees by itself that another file has the name: no signal, no postrotate, no",
        "# copytruncate, which loses what is logged between its copy and its cut. It makes the new file, with its",
        "# mode= and owner=; with create logrotate may find it there already, and puts it away as .backup.",
    ]
    if when == "hour" or when is None:
        found.append("# logrotate must be run every hour (systemctl edit logrotate.timer): once a day is its habit.")
    if settings.utc:
        found.append("# utc: logrotate's days are those of local time.")
    if settings.total_bytes is not None:
        found.append(f"# total_bytes ({settings.total_bytes}): logrotate has no such limit; choose rotate by it.")
    return found


def _directives(settings: FileSettings, when: str | None) -> list[str]:
    lines = [] if when is None else [_PERIODS[when]]
    if settings.max_bytes:
        lines.append(f"{'size' if when is None else 'maxsize'} {settings.max_bytes}")
    lines += [
        f"rotate {settings.backup_count}",
        "dateext",
        "dateformat .%Y-%m-%d_%H-%M-%S",
        "missingok",
        "ifempty" if settings.rotate_empty else "notifempty",
        "nocreate",
        "# su USER GROUP   where others than root may write into the folder",
    ]
    if settings.compress:
        # With delay_compress or without: logrotate cannot know, as the handler does, that nobody writes there any more.
        lines += ["compress", "# A line that was on its way may still come into the file that was just renamed:"]
        lines.append("delaycompress")
    else:
        lines.append("nocompress")
    return [f"    {line}" for line in lines]
