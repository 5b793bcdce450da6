"""Fixtures of the tests of the middleware."""

from __future__ import annotations

import pytest

from logsluice.middleware import requests
from support.served import Rows


@pytest.fixture
def rows():
    """A logger of this test alone, and the rows that it was given."""
    return Rows()


@pytest.fixture
def said(monkeypatch):
    """What was said on stderr."""
    lines = []
    monkeypatch.setattr("logsluice.diagnostics.write_line", lines.append)
    monkeypatch.setattr(requests, "_diagnostics", requests.Diagnostics("middleware"))
    return lines
