"""Ages and sizes as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kumulus.cli.amounts import age, count, duration, moment, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (200, "3m20s"),
        (3599, "59m"),
        (7200, "120m"),
        (86400, "24h"),
        (864000, "10d"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (128 * 2**20, "128 MiB"),
        (2**40, "1 TiB"),
        (150 * 2**30, "150 GiB"),
    ],
)
def test_size(bytes_: int | None, text: str) -> None:
    assert size(bytes_) == text


def test_an_age_that_is_not_known_is_a_dash() -> None:
    now = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    assert (age(None, now), age("yesterday", now), age("2026-11-20T11:59:00Z", now)) == ("-", "-", "60s")


def test_times_with_microseconds_and_without_a_zone_are_read() -> None:
    assert moment("2026-11-20T11:59:00.123456Z") is not None
    assert moment("2026-11-20T11:59:00") == datetime(2026, 11, 20, 11, 59, tzinfo=UTC)


def test_count() -> None:
    assert (count(1, "host"), count(2, "host"), count(0, "entry", "entries")) == ("1 host", "2 hosts", "0 entries")
