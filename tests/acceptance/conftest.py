"""The fault matrix: both modes of the handler for its tests, its table at the end of the session (support/matrix.py)."""

from __future__ import annotations

import pytest

from support import matrix

FAILED = pytest.StashKey[bool]()


@pytest.fixture(params=["memory", "journal"])
def mode(request):
    """Where records wait: in memory, or in files that a kill does not take."""
    return request.param


@pytest.fixture
def options(mode, tmp_path):
    """The handler's options of this mode."""
    return {"journal": str(tmp_path / "journal")} if mode == "journal" else {}


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test with a row in its name must judge it: else it would pass without having looked."""
    value = yield
    assert not matrix.unjudged(pyfuncitem.name), "passed without matrix.row() or matrix.control()"
    return value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fixtures may fail as well, before the test or after it: the row is known when both are through."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    if report.when == "teardown":
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        failed = item.stash.get(FAILED, False)
        rows = matrix.finish(item.nodeid, item.name, str(parameters.get("mode", "-")), "failed" if failed else "passed")
        report.user_properties += [("matrix", row) for row in rows]
    return report


def pytest_runtest_logreport(report):
    """Where the table is printed: not in the process that ran the test, when there are several."""
    if report.when == "teardown":
        matrix.finished.extend(matrix.Row(**row) for name, row in report.user_properties if name == "matrix")


def pytest_terminal_summary(terminalreporter):
    """One line for each row."""
    if lines := matrix.table():
        terminalreporter.section("fault matrix")
        for line in lines:
            terminalreporter.write_line(line)
