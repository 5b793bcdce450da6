"""The handlers that `dictConfig` names: their options, and what of base.py is another's in each."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from logsluice import lifecycle, retention
from logsluice.adoption import TYPED
from logsluice.base import BaseHandler
from logsluice.columns import LOG_COLUMNS, Table, target_from, typed_target
from logsluice.config import FileSettings, PostgresSettings, SinkSettings, identity
from logsluice.errors import ConfigError
from logsluice.formatters import SluiceJsonFormatter
from logsluice.httpconfig import HttpSettings, address_of
from logsluice.httpformats import format_of
from logsluice.httptarget import HttpTarget
from logsluice.lines import LineTarget

if TYPE_CHECKING:
    import logging

    from logsluice.adoption import OrphanBuffer
    from logsluice.base import SinkMaker
    from logsluice.journal import Header
    from logsluice.listener import Listener
    from logsluice.maintainer import Maintainer
    from logsluice.shards import Pair
    from logsluice.sinks.postgres import PostgresSink
    from logsluice.targets import Target
    from logsluice.types import LogType


class PostgresHandler(BaseHandler):
    """
    It stores every record it is given as a row in PostgreSQL, from a thread of its own.

    Options: docs/reference/options.md lists them, `logsluice.config.PostgresSettings` says their units. See
    `BaseHandler` for what a logging call does and never does.
    """

    _kind = PostgresSettings
    _settings: PostgresSettings
    _maintainer: Maintainer | None = None  # of this process, with `maintenance`

    def _targets_from(self) -> dict[str, Target]:
        settings = self._settings
        self._retention = retention.rules_from(settings.maintenance or None)  # here: a logging call reads no file
        self._archive = None
        if (archive := retention.archive_in(settings.maintenance or None)) is not None:
            self._archive = importlib.import_module("logsluice.archive").Settings.of(archive)  # a mistake is told now
            if "://" not in self._archive.target and not self._archive.target.startswith("~"):
                # A program may change its folder later.
                self._archive = replace(self._archive, target=os.path.abspath(self._archive.target))  # noqa: PTH100
        table = target_from(settings.schema, settings.table, settings.columns)
        _check_dsn(settings)
        return {"logs": table}

    def _load(self) -> None:
        # psycopg: 0.2 s that `import logsluice` must not take; and the codec of what it tells libpq.
        for name in ("logsluice.sinks.link", "logsluice.sinks.postgres", "encodings.ascii"):
            importlib.import_module(name)
        if self._settings.maintenance is not False:
            importlib.import_module("logsluice.maintainer")

    def _open(self) -> Pair:
        pair = super()._open()
        if self._settings.maintenance is not False and not self._ended:
            self._maintain()
        return pair

    def _maintain(self) -> None:
        """Start the thread of maintenance; where none can be, only maintenance is missing."""
        from logsluice.maintainer import Maintainer  # noqa: PLC0415 - loaded by `_load`

        made = Maintainer(self._settings, self._retention, self._archive, self.diagnostics, self._now)
        # Two first records at once: one of them is kept.
        self._maintainer = self.__dict__.setdefault("_first_maintainer", made)
        # Whether it is closed is looked at after it is set: a close() before that has not seen it.
        if self._ended or not lifecycle.threads_run() or lifecycle.exiting():
            return
        try:
            self._maintainer.start()
        except RuntimeError as error:
            self.diagnostics.say("maintenance-thread", f"the thread of maintenance cannot be started ({error})")

    def renew(self) -> None:
        """Forget what a fork inherited, the connection of maintenance too."""
        lifecycle.park(self.__dict__.pop("_first_maintainer", None))
        self._maintainer = None
        super().renew()

    def close(self) -> None:
        """As for all handlers. Maintenance ends after the step that it is at, and is not waited for."""
        self._stop_maintenance()
        super().close()
        self._stop_maintenance()  # one that another thread's first record began meanwhile

    def _stop_maintenance(self) -> None:
        if self._maintainer is not None:
            self._maintainer.stop()

    def _sinks(self, listener: Listener) -> SinkMaker:
        from logsluice.sinks.link import Link  # noqa: PLC0415 - loaded by `_load`
        from logsluice.sinks.postgres import PostgresSink  # noqa: PLC0415 - as above

        link = Link(self._settings, self.diagnostics, listener.deadline, self._now)

        def make(target: Target, stream: int, orphan: OrphanBuffer | None) -> PostgresSink:
            sink = PostgresSink(link, cast("Table", target), stream)
            if orphan is not None:
                sink.known_base = orphan.known
                sink.who = None if orphan.header is None else orphan.header.who
            return sink

        return make

    def _described(self, target: Target) -> tuple[str, str, dict[str, str]]:
        from logsluice.sinks.link import described  # noqa: PLC0415 - as above

        table = cast("Table", target)
        where = {**described(self._settings), "schema": table.schema, "table": table.table}
        return "postgres", table.home, where | ({TYPED: "yes"} if table.typed else {})

    def _typed_target(self, kind: LogType) -> Target | None:
        return typed_target(self._settings.schema, kind) if self._targets["logs"].plain else None

    def _target_of(self, header: Header, mine: Target) -> Target:
        typed = TYPED in header.target
        table = header.target["table"] if typed else cast("Table", mine).table
        sources = () if header.mapped else None
        return replace(cast("Table", mine), table=table, columns=header.columns, sources=sources, typed=typed)


class JsonFileHandler(BaseHandler):
    """
    It writes every record it is given into a file, one JSON object a line, from a thread of its own.

    Options: `logsluice.config.FileSettings` says them and their units. A formatter set with `setFormatter`, or by
    dictConfig, makes the line instead. See `BaseHandler` for what a logging call does and never does.
    """

    _kind = FileSettings
    _settings: FileSettings

    def _targets_from(self) -> dict[str, Target]:
        self._lines = SluiceJsonFormatter(names=self._settings.names)
        filename = self._settings.filename
        return {"file": LineTarget(filename, self._line_formatter, f"{filename}.dead")}

    def _line_formatter(self) -> logging.Formatter:
        return self.formatter or self._lines

    def _formatter(self) -> logging.Formatter | None:
        return None  # it makes the whole line, not the message

    def _load(self) -> None:
        importlib.import_module("logsluice.sinks.file")

    def _sinks(self, listener: Listener) -> SinkMaker:
        from logsluice.sinks.file import FileSink, LogFile  # noqa: PLC0415 - loaded by `_load`; fcntl: not on Windows

        file = LogFile(self._settings, self.diagnostics, listener.deadline, self._now)
        return lambda _target, stream, orphan: FileSink(file, stream, fresh=orphan is None)

    def _described(self, target: Target) -> tuple[str, str, dict[str, str]]:
        return "file", "", {"filename": target.name}

    def _target_of(self, header: Header, mine: Target) -> Target:  # noqa: ARG002 - a line is a line
        return mine


class HttpHandler(BaseHandler):
    """
    It sends every record it is given to an HTTP endpoint, many to a request, from a thread of its own.

    Options: docs/howto/http.md lists them, `logsluice.httpconfig.HttpSettings` says their units. At least once: what
    was sent and not answered is sent again. Needs the extra `[http]`. See `BaseHandler` for what a logging call does
    and never does.

    A `SluiceJsonFormatter` set with `setFormatter`, or by dictConfig, makes the objects of `ndjson` and `json`; any
    other formatter makes the message.
    """

    _kind = HttpSettings
    _settings: HttpSettings

    def _targets_from(self) -> dict[str, Target]:
        given = self._settings
        # A batch is a request: what is taken and refused is counted as what was sent. A sixteenth less, because the
        # buffer takes the rest of a segment along (buffer.CRUMB).
        self._settings = settings = replace(
            given,
            batch_bytes=min(given.batch_bytes, given.max_request_bytes * 15 // 16),
            batch_size=min((n for n in (given.batch_size, given.max_request_records) if n is not None), default=None),
        )
        self._lines = SluiceJsonFormatter(names=settings.names)
        self._format = format_of(settings.format)
        refused = settings.dead_letters or "nothing: no dead_letters= is set"
        shown = address_of(settings.url).shown
        return {"http": HttpTarget(name=shown, formatter=self._line_formatter, refused=refused, format=self._format)}

    def _line_formatter(self) -> SluiceJsonFormatter:
        return self.formatter if isinstance(self.formatter, SluiceJsonFormatter) else self._lines

    def _formatter(self) -> logging.Formatter | None:
        return None if isinstance(self.formatter, SluiceJsonFormatter) else self.formatter

    def _load(self) -> None:
        try:
            importlib.import_module("logsluice.sinks.http")
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "urllib3":
                raise
            raise ConfigError("HttpHandler needs urllib3 2 or later: pip install 'logsluice[http]'") from None
        for name in ("logsluice.sinks.endpoint", "encodings.idna"):
            importlib.import_module(name)

    def _sinks(self, listener: Listener) -> SinkMaker:
        from logsluice.sinks.endpoint import HttpSink  # noqa: PLC0415 - loaded by `_load`
        from logsluice.sinks.http import HttpLink  # noqa: PLC0415 - as above

        link = HttpLink(self._settings, self._format, self.diagnostics, listener.deadline, self._now)

        def make(target: Target, stream: int, orphan: OrphanBuffer | None) -> HttpSink:
            header = None if orphan is None else orphan.header
            who = identity(self._settings) if header is None else header.who
            return HttpSink(link, cast("HttpTarget", target), stream, who, lambda: listener.fallback)

        return make

    def _described(self, target: Target) -> tuple[str, str, dict[str, str]]:
        settings = self._settings
        kind = settings.format if isinstance(settings.format, str) else "callable"
        where = {"url": target.name, "format": kind}
        return "http", "", where | ({"tenant": settings.tenant or ""} if kind == "loki" else {})

    def _target_of(self, header: Header, mine: Target) -> Target:  # noqa: ARG002 - a line is a line
        return mine


class SinkHandler(BaseHandler):
    """
    It hands every record it is given to a sink of one's own, from a thread of its own.

    Options: `logsluice.config.SinkSettings` says them and their units. The rules that a sink keeps are in
    `logsluice.sinks`, and `logsluice.testing.check_sink` tries them. See `BaseHandler` for what a logging call does and
    never does.
    """

    _kind = SinkSettings
    _settings: SinkSettings

    def _targets_from(self) -> dict[str, Target]:
        self._lines = SluiceJsonFormatter(names=self._settings.names)
        name, refused = self._settings.sink.__qualname__, "what the sink made its dead letters"
        if self._settings.format == "json":
            return {"sink": LineTarget(name, lambda: self.formatter or self._lines, refused)}
        return {"sink": Table("", "", name, LOG_COLUMNS)}

    def _formatter(self) -> logging.Formatter | None:
        return self.formatter if self._settings.format == "copy" else None

    def _load(self) -> None:
        importlib.import_module("logsluice.sinks.guard")

    def _sinks(self, listener: Listener) -> SinkMaker:  # noqa: ARG002 - its limits are the sink's own affair
        from logsluice.sinks.guard import Guard  # noqa: PLC0415 - loaded by `_load`

        settings = self._settings
        return lambda _target, stream, _orphan: Guard(settings.sink(stream=stream, **settings.options))

    def _described(self, target: Target) -> tuple[str, str, dict[str, str]]:  # noqa: ARG002 - named by its class
        sink = self._settings.sink
        return "sink", "", {"sink": f"{sink.__module__}.{sink.__qualname__}", "format": self._settings.format}

    def _target_of(self, header: Header, mine: Target) -> Target:  # noqa: ARG002 - frames of one format are alike
        return mine


def _check_dsn(settings: PostgresSettings) -> None:
    """Let libpq read a dsn that is known already. Its message may quote the password, so only ours is shown."""
    if not isinstance(settings.dsn, str) and settings.dsn_env is None:
        return
    from logsluice.sinks.link import check_dsn  # noqa: PLC0415 - psycopg: not where `logsluice` is imported

    wrong = check_dsn(settings)
    if wrong:
        raise ConfigError(wrong)
