"""Work orders for a pool's presence on a host, and what the agent found there: its space, and what nobody owns."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from kumulus.api.base import Model, list_map
from kumulus.api.pools import PoolDriver, PoolParameters, is_shared
from kumulus.api.segments import Uid


class PoolRef(Model):
    """A pool with all that a driver needs to use it."""

    uid: Uid = Field(description="Uid of the StoragePool.")
    name: str = Field(description="Its name, for people.", max_length=63)
    driver: PoolDriver = Field(description="How disks are kept.")
    parameters: PoolParameters = Field(default_factory=PoolParameters, description="What the driver has to know.")

    @property
    def shared(self) -> bool:
        """Whether it is one and the same pool on all of its hosts: other agents work in it too."""
        return is_shared(self.driver, self.parameters)


class PoolOrder(Model):
    """A pool's presence on this host."""

    pool: PoolRef = Field(description="The pool.")


class UnownedKind(StrEnum):
    """What a file is that nobody owns."""

    VOLUME = "Volume"
    FILE = "File"
    DISK = "Disk"
    IMAGE = "Image"
    OTHER = "Other"


class UnownedFile(Model):
    """Something in a pool's directory that nobody owns. It is left alone."""

    id: Uid = Field(description="Names it: the uid of the volume that it was, or one made from its name.")
    kind: UnownedKind = Field(
        description="Volume: data of a volume that is gone. File: any other file. Both can become volumes, the others cannot."
    )
    name: str = Field(description="Its name below the pool's directory, for people.", max_length=253)
    size: int = Field(default=0, description="Bytes it takes.")
    virtual_size: int | None = Field(
        default=None, description="Bytes of the disk inside; empty when it is no qcow2 file."
    )
    namespace: str | None = Field(
        default=None, description="Namespace of the volume that it was, when that was retained.", max_length=63
    )
    volume: str | None = Field(default=None, description="Name of that volume.", max_length=253)
    encrypted: bool = Field(default=False, description="That volume was encrypted.")


class PoolFacts(Model):
    """What is so of a pool on this host."""

    met: bool = Field(
        default=False, description="The host had the pool once: its directory is not made anew when it is away."
    )
    capacity: int | None = Field(default=None, description="Bytes there are.")
    used: int | None = Field(default=None, description="Bytes in use, by anybody; rounded so that it changes seldom.")
    unowned: tuple[UnownedFile, ...] = Field(
        default=(),
        description="Files that nobody owns; at most 64 are listed.",
        max_length=64,
        json_schema_extra=list_map("id"),
    )
    unowned_count: int = Field(default=0, description="How many there are.")
    unowned_bytes: int = Field(default=0, description="Bytes they take together.")
    access: str | None = Field(
        default=None, description="How the host reaches the pool and locks its disks, for people.", max_length=512
    )
