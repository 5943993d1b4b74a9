"""`vm logs --follow` prints each piece of a console once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.cli.overlap import new_part


@pytest.mark.parametrize(
    ("before", "after", "fresh", "missed"),
    [
        pytest.param("", "hello\n", "hello\n", False, id="first output"),
        pytest.param("a\nb\n", "a\nb\n", "", False, id="nothing new"),
        pytest.param("a\nb\n", "a\nb\nc\n", "c\n", False, id="grown"),
        pytest.param("a\nb\nc\n", "b\nc\nd\n", "d\n", False, id="the window moved"),
        pytest.param("a\nb\nc\n", "x\ny\nz\n", "x\ny\nz\n", True, id="more than a window was printed"),
        pytest.param("aé\nb\n", "\ufffd\nb\nc\n", "c\n", False, id="the window begins amid a character"),
        pytest.param("a\nb\n", "", "", False, id="the log was emptied"),
        pytest.param("long before the window\nx\n", "x\n", "", False, id="a smaller window, nothing new"),
    ],
)
def test_only_what_is_new_is_told(before: str, after: str, fresh: str, missed: bool) -> None:
    assert new_part(before, after) == (fresh, missed)


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=60, unique=True), st.integers(1, 59), st.integers(20, 200))
def test_following_a_growing_log_prints_it_once(numbers: list[int], cut: int, window: int) -> None:
    lines = [f"line {number}\n" for number in numbers]
    early, whole = "".join(lines[:cut]), "".join(lines)
    before, after = early[-window:], whole[-window:]
    fresh, missed = new_part(before, after)
    if not missed:
        assert (before + fresh).endswith(after) or after in before + fresh
    else:
        assert fresh == after
