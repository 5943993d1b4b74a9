"""Quantities, as Kubernetes reads them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.compute import Resources
from kumulus.api.quantity import from_bytes, parse, to_bytes


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


def test_a_model_keeps_the_text_as_it_was_written() -> None:
    assert Resources.model_validate({"cpus": 1, "memory": "1.5Gi"}).memory == "1.5Gi"
    assert Resources.model_validate({"cpus": 1, "memory": 1024}).memory == "1024"


@pytest.mark.parametrize("value", [True, 1.5, None, [], "lots"])
def test_a_model_takes_nothing_else(value: object) -> None:
    with pytest.raises(ValueError, match="memory"):
        Resources.model_validate({"cpus": 1, "memory": value})
