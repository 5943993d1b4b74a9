"""Something an order needs is not there yet."""

from __future__ import annotations


class Missing(Exception):
    """Not there yet, and most likely about to come. `reason` is one CamelCase word for the status."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
