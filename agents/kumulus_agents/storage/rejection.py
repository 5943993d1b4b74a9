"""What the parsers of images have in common. Imports nothing of Kumulus, for it runs in the cage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class Rejected(Exception):
    """The image is refused; the text completes "The image is refused: it ..."."""


class TooLarge(Exception):
    """There is more in it than may be unpacked."""


Read = Callable[[int, int], bytes]
"""`read(offset, length)`: bytes of the file, fewer at its end. Parsers ask for bounded lengths only."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an image turned out to be."""

    format: str
    virtual_size: int
    """Bytes of the disk inside."""
