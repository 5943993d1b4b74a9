"""What is recorded of a logical volume, in its tags: they are in the metadata of its volume group, and change all at once
with it. Pure.

A tag is `kumulus.<key>` or `kumulus.<key>=<value>`, of the characters that LVM allows (lvm(8)). A logical volume
without `kumulus.whole` is something that was begun: it is never taken for what its name says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

_PREFIX = "kumulus."
_VALUE = re.compile(r"[A-Za-z0-9_+.\-/=!:&#]{1,900}")


class Tag(StrEnum):
    """Keys."""

    WHOLE = "whole"
    """It is what its name says. No value."""
    SIZE = "size"
    """Bytes of the disk; the logical volume has whole extents."""
    REPLACES = "replaces"
    """Name of the logical volume that was the volume before it was reverted."""
    REVERTED = "reverted"
    """Uid of the request to revert it that made it."""
    KEEPER = "keeper"
    """Epoch and name of the host that sees to the volume."""
    AT = "at"
    """When the snapshot was taken."""
    INDICATIONS = "indications"
    """How it was taken; with `+` between them."""
    SHA256 = "sha256"
    SOURCE_FORMAT = "sourceformat"
    DIGEST = "digest"
    """Of an image, and of what it came from."""
    USED = "used"
    """Bytes it took when it was sealed: of what is not active LVM does not know it."""


@dataclass(frozen=True, slots=True)
class Record:
    """The tags of one logical volume that are ours."""

    values: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, tags: Iterable[str]) -> Record:
        """From all tags; those of others are not looked at."""
        values: dict[str, tuple[str, ...]] = {}
        for tag in tags:
            if tag.startswith(_PREFIX):
                key, _, value = tag.removeprefix(_PREFIX).partition("=")
                values[key] = (*values.get(key, ()), value)
        return cls(values)

    @property
    def whole(self) -> bool:
        """Whether it is what its name says."""
        return Tag.WHOLE in self.values

    def one(self, key: Tag) -> str | None:
        """The value; None when there is none, or not one."""
        found = self.values.get(key, ())
        return found[0] if len(found) == 1 else None

    def number(self, key: Tag) -> int | None:
        """The value as a number; None when it is none."""
        found = self.one(key)
        return int(found) if found is not None and found.isdecimal() else None

    def tags(self, key: Tag) -> tuple[str, ...]:
        """As they are written."""
        return tuple(tag(key, value) for value in self.values.get(key, ()))


def tag(key: Tag, value: str | int | None = None) -> str:
    """One tag. Raises `ValueError` for what LVM would not take."""
    text = "" if value is None or value == "" else str(value)
    if not text:
        return f"{_PREFIX}{key}"
    if not _VALUE.fullmatch(text):
        raise ValueError(f"no value of a tag: {text!r}")
    return f"{_PREFIX}{key}={text}"
