"""How packed files begin. Imports nothing of Kumulus, for it runs in the cage."""

from __future__ import annotations

MAGIC = {"gzip": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd", "bzip2": b"BZh"}
"""Compression -> its first bytes."""

LENGTH = 8
"""Bytes that `begins_with` needs."""


def begins_with(head: bytes) -> str | None:
    """What the file that begins so is packed with; None when it is not, as far as can be seen."""
    return next((name for name, magic in MAGIC.items() if head.startswith(magic)), None)
