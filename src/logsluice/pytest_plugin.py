"""The fixture that pytest finds by the entry point `pytest11`. It imports nothing of ours before a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def logsluice_rows() -> Iterator[list[dict[str, Any]]]:
    """Return the list of rows that the test's records would be stored as: `logsluice.testing.captured()`."""
    from logsluice.testing import captured  # noqa: PLC0415 - sessions that do not use it pay nothing

    with captured() as rows:
        yield rows
