"""The sink of a `SinkHandler`, for `logsluice doctor`: whether its class takes its options, is whole, and opens."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from logsluice.doctor import FAIL, OK, Finding
from logsluice.sinks import Sink, SinkError
from logsluice.sinks.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logsluice.config import SinkSettings

NOBODY = 0  # a stream that no handler has: theirs are random
METHODS = ("accepts_any", "open", "write", "idle", "retire", "forked", "close")


def check_sink(settings: SinkSettings) -> Iterator[Finding]:
    """Make the sink, open it and close it; writes nothing. Blocks for as long as its own `open` does."""
    make, options = settings.sink, settings.options
    name = f"{make.__module__}.{make.__qualname__}"
    try:
        inspect.signature(make).bind(stream=NOBODY, **options)
    except TypeError as error:  # its text names options, and no value
        yield Finding(
            FAIL, "sink", f"{name} does not take what it is given: {error}", "correct options= of the handler"
        )
        return
    except ValueError:
        pass  # a class written in C does not say what it takes
    try:
        sink = make(stream=NOBODY, **options)
    except Exception as error:  # its text may quote an option
        what = f"{name} raises {type(error).__name__} when it is made"
        yield Finding(
            FAIL, "sink", what, f"make one by hand in your program's environment: {make.__name__}(stream=0, ...)"
        )
        return
    missing = [one for one in METHODS if not callable(getattr(sink, one, None))]
    if getattr(type(sink), "write", None) is Sink.write:
        missing.append("write")
    if missing or not hasattr(sink, "connected"):
        what = f"{name} lacks {', '.join(missing) or 'connected'}"
        yield Finding(FAIL, "sink", what, "let it inherit from logsluice.sinks.Sink, and write `write`")
        return
    yield _opened(name, Guard(sink))


def _opened(name: str, sink: Guard) -> Finding:
    try:
        sink.open()
    except SinkError as error:
        step = error.failure.hint or f"call open() of {name} by hand: records wait until it succeeds"
        return Finding(FAIL, "sink", f"{name} does not open: {error.failure.message}", step)
    finally:
        sink.close()
    what = f"{name} takes its options and opens; nothing was written: logsluice.testing.check_sink tries its rules"
    return Finding(OK, "sink", what)
