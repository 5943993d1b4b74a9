"""What is new in the second of two looks at the end of a growing text. Pure.

Each look is a window: the last so many bytes of the console's log. The new part is what follows the
longest end of the first window that is a beginning of the second.
"""

from __future__ import annotations

_REPLACEMENT = "\ufffd"


def new_part(before: str, after: str) -> tuple[str, bool]:
    """The part of `after` that `before` did not have, and whether something in between was missed.

    Linear in both lengths. A window may begin amid a character; the marks that this leaves are not
    compared. Text that repeats itself exactly over a whole window looks as if nothing was added.
    """
    if not before:
        return after, False
    if after.startswith(before):
        return after[len(before) :], False
    window = after.lstrip(_REPLACEMENT) if len(after) - len(after.lstrip(_REPLACEMENT)) < 4 else after
    shared = _overlap(before, window)
    return window[shared:], shared == 0 and bool(window)


def _overlap(first: str, second: str) -> int:
    """Length of the longest end of `first` that `second` begins with (Knuth, Morris and Pratt)."""
    limit = min(len(first), len(second))
    if limit == 0:
        return 0
    pattern = second[:limit]
    fallback = [0] * limit
    length = 0
    for at in range(1, limit):
        while length and pattern[at] != pattern[length]:
            length = fallback[length - 1]
        if pattern[at] == pattern[length]:
            length += 1
        fallback[at] = length
    matched = 0
    for char in first[-limit:]:
        if matched == limit:
            matched = fallback[matched - 1]
        while matched and char != pattern[matched]:
            matched = fallback[matched - 1]
        if char == pattern[matched]:
            matched += 1
    return matched
