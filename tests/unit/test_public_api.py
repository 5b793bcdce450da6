"""What users may rely on: the names, their arguments, what an import costs, and that they are typed."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import logging.handlers
import subprocess
import sys

import pytest

import logsluice


def test_the_public_names():
    """A name more or less is a decision, not an accident."""
    assert logsluice.__all__ == [
        "ConfigError", "ConsoleHandler", "HttpHandler", "JsonFileHandler", "LogsluiceError", "PostgresHandler",
        "SinkHandler", "Stats", "active_traces", "child_init", "context", "drain_on_sigterm", "extract", "inject",
        "span", "start_span", "testing", "trace", "traces", "tracing",
    ]  # fmt: skip
    assert all(getattr(logsluice, name) is not None for name in logsluice.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    """As of any module; `from logsluice import nothing` is an ImportError."""
    with pytest.raises(AttributeError, match="module 'logsluice' has no attribute 'nothing'"):
        logsluice.nothing
    with pytest.raises(ImportError):
        from logsluice import nothing  # noqa: F401


def test_star_import_gives_the_public_names():
    """And nothing else."""
    names: dict = {}
    exec("from logsluice import *", names)
    assert set(logsluice.__all__) == set(names) - {"__builtins__"}


def test_importing_costs_no_driver():
    """Neither psycopg nor anything optional comes with `import logsluice`, nor with its context."""
    program = (
        "import sys; import logsluice; from logsluice import context; context.bind(a=1);"
        "print(sorted({'psycopg', 'psycopg_pool', 'rich', 'asyncio', 'logging'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_handlers_methods_and_their_arguments():
    """Names that programs call."""
    handler = logsluice.PostgresHandler
    assert list(inspect.signature(handler.__init__).parameters) == ["self", "level", "options"]
    assert str(inspect.signature(handler.flush)) == "(self, timeout: 'float | None' = None) -> 'bool'"
    assert str(inspect.signature(handler.stats)) == "(self) -> 'Stats'"
    assert list(inspect.signature(handler.wait_ready).parameters) == ["self", "timeout"]
    assert isinstance(handler.pressure, property)
    assert issubclass(handler, logging.Handler)
    assert not issubclass(handler, logging.handlers.QueueHandler), "dictConfig would take it over from Python 3.12 on"


def test_options_are_keyword_only():
    """Nobody relies on their order."""
    with pytest.raises(TypeError):
        logsluice.PostgresHandler("dbname=logs")


def test_an_unknown_option_says_what_was_meant():
    """A ConfigError, which is a ValueError too: dictConfig shows it."""
    with pytest.raises(logsluice.ConfigError, match="did you mean 'capacity_bytes'"):
        logsluice.PostgresHandler(dsn="", capacity_byte=5)
    assert issubclass(logsluice.ConfigError, (logsluice.LogsluiceError, ValueError))


def test_the_fields_of_stats():
    """What dashboards read."""
    expected = [
        "offered",
        "accepted",
        "stored",
        "dead",
        "dropped",
        "dropped_by",
        "abandoned",
        "abandoned_by",
        "waiting",
        "waiting_bytes",
        "capacity_bytes",
        "full",
        "sanitized",
        "own_noise",
        "markers",
        "batches",
        "retries",
        "breaker",
        "watermark_missing",
        "last_stored_at",
        "oldest_waiting_seconds",
        "histograms",
        "recent",
        "journal",
        "suppressed_by",
    ]
    assert expected == [field.name for field in dataclasses.fields(logsluice.Stats)]


def test_stats_of_a_handler_that_has_done_nothing():
    """All is zero, nothing was opened."""
    stats = logsluice.PostgresHandler(dsn="dbname=logs").stats()
    assert (
        stats.offered, stats.stored, stats.waiting, stats.batches, stats.breaker, stats.last_stored_at,
    ) == (0, 0, 0, 0, "closed", None)  # fmt: skip
    assert {"batch_records", "batch_bytes", "batch_seconds", "call_to_commit_seconds"} == set(stats.histograms)
    assert stats.recent == {"stored": [], "failed": []}


def test_the_functions_of_context():
    """Names as in structlog's contextvars, too."""
    names = [
        "around", "bind", "bind_contextvars", "bound", "bound_contextvars", "carried", "carry", "clear",
        "clear_contextvars", "current", "get_contextvars", "unbind", "unbind_contextvars",
    ]  # fmt: skip
    assert names == sorted(
        name for name, value in vars(logsluice.context).items()
        if inspect.isfunction(value) and value.__module__ == "logsluice.context" and name[0] != "_"
    )  # fmt: skip


def test_the_package_says_that_it_is_typed():
    """Without py.typed mypy ignores every annotation here."""
    from importlib.resources import files

    assert (files("logsluice") / "py.typed").is_file()
