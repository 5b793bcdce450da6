"""The law's figures: histograms, totals, and that a snapshot holds no row."""

import pytest

from logsluice.accounting import Histogram, Ledger, Totals


def test_a_histogram_counts_by_upper_bound():
    histogram = Histogram(1, 10, 100)
    for value in (0, 1, 1.5, 10, 99, 100, 101, 10**9):
        histogram.add(value)
    shot = histogram.snapshot()
    assert shot == {"bounds": [1, 10, 100], "counts": [2, 2, 2, 2], "sum": 10**9 + 312.5}
    assert sum(shot["counts"]) == 8
    histogram.add(5)
    assert shot["counts"] == [2, 2, 2, 2]  # a snapshot, not a view


def test_totals_are_replaced_as_a_whole():
    totals = Totals()
    more = totals.abandon("exit", 3).abandon("retry_limit", 2).abandon("exit", 4)
    assert dict(more.abandoned) == {"exit": 7, "retry_limit": 2}
    assert totals.abandoned == ()
    with pytest.raises(AttributeError):
        totals.stored = 1


def test_a_ledger_remembers_ten_good_and_fifty_bad_batches():
    ledger = Ledger()
    for n in range(100):
        ledger.recent_stored.append({"n": n})
        ledger.recent_failed.append({"n": n})
    assert [entry["n"] for entry in ledger.recent_stored] == list(range(90, 100))
    assert [entry["n"] for entry in ledger.recent_failed] == list(range(50, 100))
    assert set(ledger.histograms()) == {"batch_records", "batch_bytes", "batch_seconds", "call_to_commit_seconds"}


def test_ledgers_share_nothing():
    one, two = Ledger(), Ledger()
    one.records.add(1)
    one.recent_stored.append({})
    assert sum(two.records.counts) == 0
    assert not two.recent_stored
