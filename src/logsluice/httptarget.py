"""What an `HttpHandler`'s frames are for: an endpoint, in one format. A `Target`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logsluice.lines import LineTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from logsluice.capture import Captured, Rules
    from logsluice.formatters import SluiceJsonFormatter
    from logsluice.httpformats import Format


@dataclass(frozen=True, kw_only=True)
class HttpTarget(LineTarget):
    """An endpoint by its url without secrets; `format` says what a line is."""

    formatter: Callable[[], SluiceJsonFormatter]
    format: Format

    def line(self, captured: Captured, rules: Rules) -> str:
        """Return a record in the endpoint's format."""
        return self.format.line(self.formatter(), captured, rules)
