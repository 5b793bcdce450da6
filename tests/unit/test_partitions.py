"""Which moment a "no partition" error is about."""

from datetime import datetime, timedelta, timezone

import pytest

from logsluice.partitions import Partition, moment_of

DETAIL = "Partition key of the failing row contains (ts) = ({})."
MOMENT = datetime(2026, 11, 22, 9, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22 09:00:00+00", MOMENT),
        ("2026-11-22 14:30:00+05:30", MOMENT),
        ("2026-11-22 01:00:00-08", MOMENT),
        ("2026-11-22 05:30:00-03:30", MOMENT),
        ("2026-11-22 09:00:00.5+00", MOMENT.replace(microsecond=500_000)),
        ("2026-11-22 09:00:00.000001+00", MOMENT.replace(microsecond=1)),
        # Before railways: the local mean time of Amsterdam has seconds.
        (
            "1936-11-22 09:00:00+00:19:32",
            datetime(1936, 11, 22, 9, tzinfo=timezone.utc) - timedelta(minutes=19, seconds=32),
        ),
        ("2026-11-23 08:59:59+23:59:59", MOMENT),
    ],
)
def test_detail_is_read_in_any_time_zone(text, moment):
    assert moment_of(DETAIL.format(text)) == moment


def test_context_is_read_which_every_role_sees():
    assert moment_of('COPY logs, line 3: "17\t2026-11-22 09:00:00.250000Z\t8\t20\tshop"') == MOMENT.replace(
        microsecond=250_000
    )


def test_a_timestamp_in_the_message_is_not_taken_for_the_row_s_own():
    row = "17\t2026-11-22 09:00:00.000000Z\t8\t20\tat 1999-01-01 00:00:00+00"
    assert moment_of(f'COPY logs, line 3: "{row}"') == MOMENT


def test_words_do_not_matter():
    assert moment_of("Partitionierungsschlüssel der Zeile enthält (ts) = (2026-11-22 09:00:00+00).") == MOMENT


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        DETAIL.format("infinity"),
        DETAIL.format("22.11.2026 09:00:00 UTC"),  # datestyle German
        DETAIL.format("Sun Nov 22 09:00:00 2026 UTC"),  # datestyle Postgres
        DETAIL.format("12026-11-22 09:00:00+00"),
        DETAIL.format("0000-11-22 09:00:00+00"),
        DETAIL.format("9999-12-31 23:59:59-12"),
        DETAIL.format("2026-11-22 09:00:00"),  # a column without a zone is not ours
        "Failing row contains (1, null).",
    ],
)
def test_what_names_no_moment_gives_none(text):
    assert moment_of(text) is None


def test_a_partition_s_name_is_quoted():
    assert Partition('a"b', "logs_1", None, MOMENT, 0, 0, "attached").full_name == '"a""b"."logs_1"'
