"""Quantities, as Kubernetes reads them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.compute import Resources
from kumulus.api.image import ImageStatus
from kumulus.api.quantity import from_bytes, parse, rounded, to_bytes
from kumulus.api.volumes import Progress


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1", 1),
        ("+1", 1),
        ("512Mi", 512 * 2**20),
        ("1.5Gi", 3 * 2**29),
        (".5Ki", 512),
        ("1.Ki", 1024),
        ("1k", 1000),
        ("2M", 2_000_000),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("1Ei", 2**60),
        ("12e-1", Decimal("1.2")),
        ("500m", Decimal("0.5")),
        (1024, 1024),
    ],
)
def test_reading(text: str | int, value: int | Decimal) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    "text", ["", "-1", "-1Gi", "1GiB", "one", "1 Gi", "Gi", "1e", "0x10", "1e999", "\u0661Gi", "1\n2"]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse(text)


def test_bytes_are_rounded_up() -> None:
    assert to_bytes("1500m") == 2
    assert to_bytes("0.1Ki") == 103


@given(st.integers(min_value=0, max_value=2**63))
def test_bytes_survive_writing(count: int) -> None:
    assert to_bytes(from_bytes(count)) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1Ki"),
        (20 * 2**30, "20Gi"),
        (105089261568, "97.9Gi"),
        (2**40 - 1, "1Ti"),
        (1000 * 2**30, "1000Gi"),
        (5 * 2**60, "5Ei"),
    ],
)
def test_what_was_measured_is_written_as_people_read_it(count: int, text: str) -> None:
    assert rounded(count) == text


@given(st.integers(min_value=0, max_value=2**63))
def test_rounding_is_close_and_settles_at_once(count: int) -> None:
    once = rounded(count)
    assert rounded(to_bytes(once)) == once
    assert abs(to_bytes(once) - count) <= 0.006 * count + 1


def test_a_status_has_quantities_and_the_code_whole_numbers() -> None:
    status = ImageStatus(virtual_size=2**31 + 512, size=105089261568, progress=Progress(bytes=2**20))
    written = status.to_json()
    assert written["virtualSize"] == str(2**31 + 512)
    assert (written["size"], written["progress"]["bytes"]) == ("97.9Gi", "1Mi")
    assert ImageStatus.model_validate(written).virtual_size == 2**31 + 512
    assert ImageStatus.model_validate({"virtualSize": 2**31}).to_json()["virtualSize"] == "2Gi"


def test_a_model_keeps_the_text_as_it_was_written() -> None:
    assert Resources.model_validate({"cpus": 1, "memory": "1.5Gi"}).memory == "1.5Gi"
    assert Resources.model_validate({"cpus": 1, "memory": 1024}).memory == "1024"


@pytest.mark.parametrize("value", [True, 1.5, None, [], "lots"])
def test_a_model_takes_nothing_else(value: object) -> None:
    with pytest.raises(ValueError, match="memory"):
        Resources.model_validate({"cpus": 1, "memory": value})
