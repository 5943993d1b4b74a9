"""merge_patch: applying it gives what was wanted, and nothing to do is an empty patch."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.kube.patching import merge_patch

leaves = st.one_of(
    st.booleans(), st.integers(-3, 3), st.text("ab", max_size=2), st.lists(st.integers(0, 2), max_size=2)
)
objects = st.recursive(
    st.dictionaries(st.sampled_from("abcd"), leaves, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), st.one_of(leaves, inner), max_size=4),
    max_leaves=12,
)


def applied(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2, word by word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = applied(result.get(name), value)
    return result


@settings(max_examples=100, deadline=None)
@given(objects, objects)
def test_applying_the_patch_gives_what_was_wanted(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert applied(before, merge_patch(before, after)) == after


@settings(max_examples=100, deadline=None)
@given(objects)
def test_equal_needs_no_patch(value: dict[str, Any]) -> None:
    assert merge_patch(value, value) == {}


def test_only_what_differs_is_in_it() -> None:
    before = {"keep": {"x": 1, "y": 2}, "drop": 1, "list": [1, 2]}
    after = {"keep": {"x": 1, "y": 3}, "list": [1]}
    assert merge_patch(before, after) == {"keep": {"y": 3}, "drop": None, "list": [1]}
