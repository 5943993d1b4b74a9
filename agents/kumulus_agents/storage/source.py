"""Where the bytes of a disk are: a closed union that storage drivers make and hypervisor drivers understand. No I/O.

Every source has a `path`, which tells it apart from all others and has no secret in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file on this host."""

    path: str
    """Absolute."""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A file that another one stands on, or that is to stand on another one."""

    path: str
    """Absolute."""
    format: str
    """qcow2 or raw."""
    encrypted: bool = False
    """With LUKS, by the passphrase of the disk that it is a part of."""


@dataclass(frozen=True, slots=True)
class BlockSource:
    """A block device of this host."""

    path: str
    """Absolute."""


@dataclass(frozen=True, slots=True)
class RbdSource:
    """An image in a Ceph cluster, which the emulator reaches by itself."""

    monitors: tuple[str, ...]
    """`host` or `host:port`; IPv6 addresses in brackets."""
    pool: str
    image: str
    user: str
    """Without `client.`."""
    key: str = field(repr=False, compare=False)
    """The user's key: never in a log, an argument, a status or a definition."""

    @property
    def path(self) -> str:
        """As QEMU names it."""
        return f"rbd:{self.pool}/{self.image}"


DiskSource = FileSource | BlockSource | RbdSource
