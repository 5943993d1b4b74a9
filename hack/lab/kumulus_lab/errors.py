"""What can go wrong in the lab, in words for the person who started it."""

from __future__ import annotations


class LabError(Exception):
    """One sentence that says what is wrong and what to do about it."""
