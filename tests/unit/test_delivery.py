"""The verdict table of delivery.py, row for row and in both directions; back-off and breaker on a clock of our own."""

import random

import pytest

from logsluice.delivery import Backoff, Breaker, Failure, Verdict, decide

RETRY, BLOCKED, SHRINK, REJECT = Verdict.RETRY, Verdict.BLOCKED, Verdict.SHRINK, Verdict.REJECT

# Every row of the table in delivery.py: (the row, its codes, its verdict).
TABLE = [
    ("the connection", ("08000", "08003", "08006", "08001", "08004", "08P01"), RETRY),
    ("the server's resources", ("53000", "53100", "53200", "53300", "53400"), RETRY),
    ("the server stops or starts", ("57P01", "57P02", "57P03", "57P05"), RETRY),
    ("the system under it", ("58000", "58030", "58P01", "XX000", "XX001", "XX002"), RETRY),
    ("a conflict", ("40000", "40001", "40P01", "40003"), RETRY),
    ("a lock", ("55P03",), RETRY),
    ("a transaction that was idle too long", ("25P03",), RETRY),
    ("a demoted primary", ("25006",), RETRY),
    ("login", ("28000", "28P01"), BLOCKED),
    ("database, schema", ("3D000", "3F000"), BLOCKED),
    ("privilege, table, column, syntax", ("42501", "42P01", "42703", "42601", "42883"), BLOCKED),
    ("a pooler in the way", ("26000",), BLOCKED),
    ("a wrong state", ("55000", "55006", "25000", "25P02", "25001"), BLOCKED),
    ("not supported", ("0A000",), BLOCKED),
    ("a time limit of the server", ("57014",), SHRINK),
    ("conversion", ("22000", "22001", "22003", "22007", "22008", "22021", "22P02", "22P04", "22P05"), REJECT),
    ("a constraint", ("23000", "23502", "23503", "23505", "23P01"), REJECT),
    ("the check option of a view", ("44000",), REJECT),
    ("size", ("54000", "54001", "54011"), REJECT),
    ("a trigger's refusal", ("P0001",), REJECT),
    (
        "anything else",
        ("01000", "21000", "2F000", "38000", "F0000", "HV000", "P0000", "P0002", "99999", "57000"),
        RETRY,
    ),
]
EACH = [(code, verdict) for _, codes, verdict in TABLE for code in codes]


@pytest.mark.parametrize(("code", "verdict"), EACH)
def test_a_code_has_its_verdict(code, verdict):
    assert decide(Failure("x", code)) is verdict


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_verdict_has_its_codes_and_no_others(verdict):
    expected = {code for code, wanted in EACH if wanted is verdict}
    assert {code for code, _ in EACH if decide(Failure("x", code)) is verdict} == expected
    assert expected  # the table names some for each


def test_no_code_is_the_connection():
    assert decide(Failure("x", None)) is RETRY
    assert decide(Failure("x", "")) is RETRY


@pytest.mark.parametrize(
    ("constraint", "verdict"),
    [(None, BLOCKED), ("positive", REJECT)],
)
def test_23514_is_a_missing_partition_unless_it_names_a_constraint(constraint, verdict):
    assert decide(Failure("x", "23514", constraint=constraint)) is verdict


@pytest.mark.parametrize("code", [*sorted({code for code, _ in EACH if not code.startswith("28")}), None])
def test_whatever_fails_while_connecting_is_tried_again(code):
    assert decide(Failure("x", code, connecting=True)) is RETRY
    assert decide(Failure("x", code, connecting=True, timed_out=True)) is RETRY


@pytest.mark.parametrize("code", ["28000", "28P01"])
def test_a_refused_login_is_blocked_although_it_fails_while_connecting(code):
    assert decide(Failure("x", code, connecting=True)) is BLOCKED


def test_our_own_time_limit_shrinks():
    assert decide(Failure("x", None, timed_out=True)) is SHRINK


@pytest.mark.parametrize(("code", "verdict"), EACH)
def test_a_storm_blocks_what_would_be_rejected_and_nothing_else(code, verdict):
    expected = BLOCKED if verdict is REJECT else verdict
    assert decide(Failure("x", code, constraint="c"), storm=True) is expected


def test_a_failure_does_not_show_what_was_in_the_row():
    failure = Failure("duplicate key", "23505", key=("mail",), value=("canary@example.org",))
    assert "canary" not in repr(failure)
    assert "mail" not in repr(failure)


# --- back-off -----------------------------------------------------------------------------------------------------


def waits(initial, most, attempts, seed=1):
    backoff = Backoff(initial, most, random=random.Random(seed))
    return [backoff.next() for _ in range(attempts)]


def test_each_wait_is_between_nothing_and_its_doubled_ceiling():
    for seed in range(200):
        for attempt, wait in enumerate(waits(0.2, 30, 12, seed)):
            assert 0 <= wait <= min(30, 0.2 * 2**attempt)


def test_jitter_is_full():
    """A fleet that comes back together must spread over the whole wait, not over its upper half."""
    tenth = [waits(0.2, 30, 10, seed)[-1] for seed in range(2000)]  # its ceiling is 30 s: 0.2 * 2^9 = 102
    counts = [sum(1 for wait in tenth if 3 * i <= wait < 3 * (i + 1)) for i in range(10)]
    assert all(120 <= count <= 280 for count in counts), counts  # 200 expected, 13 is its standard deviation


def test_weeks_of_outage_do_not_overflow():
    backoff = Backoff(0.2, 30, attempt=10**9)
    assert 0 <= backoff.next() <= 30


def test_a_success_begins_anew():
    backoff = Backoff(0.2, 30)
    for _ in range(20):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.2


# --- breaker ------------------------------------------------------------------------------------------------------


@pytest.fixture
def breaker():
    return Breaker(Backoff(1, 8, random=random.Random(7)))


def test_closed_lets_everything_through(breaker):
    assert breaker.state(0) == "closed"
    assert all(breaker.allows(now) for now in range(10))


def test_a_failure_opens_it_for_the_back_off(breaker):
    seconds = breaker.failed(100)
    assert 0 < seconds <= 1
    assert breaker.open_until == 100 + seconds
    assert breaker.state(100) == "open"
    assert not breaker.allows(100)
    assert breaker.failing_since == 100


def test_then_one_probe_decides(breaker):
    seconds = breaker.failed(100)
    assert breaker.allows(100 + seconds)
    assert breaker.state(100 + seconds) == "half_open"
    breaker.failed(101)
    assert breaker.failing_since == 100  # since the first, not the last
    breaker.succeeded()
    assert breaker.state(101) == "closed"
    assert breaker.failing_since is None
    assert breaker.failed(200) <= 1  # the back-off began anew


def test_slowly_is_the_longest_wait_and_costs_no_step(breaker):
    assert breaker.failed(0, slowly=True) == 8
    assert breaker.failed(8) <= 1
