"""Settings of storage on a host: what an administrator decides. No I/O."""

from __future__ import annotations

import ipaddress
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

GIB = 1 << 30
TIB = 1 << 40


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FetchSettings(_Section):
    """How image sources are fetched."""

    forbidden_networks: tuple[Network, ...] = Field(
        default=(),
        description="Addresses no image may come from, besides loopback, link-local and special ranges: "
        "service and pod ranges, the API server, management networks.",
    )
    allowed_networks: tuple[Network, ...] = Field(
        default=(), description="Addresses images may come from although a rule forbids them. Wins over everything."
    )
    max_bytes: int = Field(default=100 * GIB, description="Largest download, and largest file in one, in bytes.", ge=1)
    connect_timeout: float = Field(default=10.0, description="Seconds to connect, TLS included.", gt=0)
    idle_timeout: float = Field(default=30.0, description="Seconds without a byte.", gt=0)
    total_timeout: float = Field(default=12 * 3600.0, description="Seconds for one import's download in all.", gt=0)
    retries: int = Field(default=5, description="Attempts in a row that may bring nothing new.", ge=0)
    backoff: float = Field(default=1.0, description="Seconds before the first retry; doubles each time.", ge=0)
    max_redirects: int = Field(default=5, description="Redirects that are followed.", ge=0)


class CageSettings(_Section):
    """How files nobody trusts are read."""

    uid: int = Field(
        default=65531,
        description="User and group number in the cage; nobody else's, and no entry in passwd is needed.",
        ge=1,
        lt=2**32 - 1,
    )
    qemu_img: PurePosixPath = Field(default=PurePosixPath("/usr/bin/qemu-img"), description="The program, below /usr.")
    address_space: int = Field(default=GIB, description="Address space in bytes.", ge=64 << 20)
    inspect_seconds: float = Field(default=30.0, description="Seconds to inspect an image.", gt=0)
    convert_seconds: float = Field(
        default=2 * 3600.0, description="Seconds to convert an image; as many to unpack it.", gt=0
    )


class CephSettings(_Section):
    """How pools of the driver rbd are used."""

    rbd: PurePosixPath = Field(default=PurePosixPath("/usr/bin/rbd"), description="The program.")
    ceph: PurePosixPath = Field(default=PurePosixPath("/usr/bin/ceph"), description="The program.")
    rados: PurePosixPath = Field(default=PurePosixPath("/usr/bin/rados"), description="The program.")
    runtime: PurePosixPath = Field(
        default=PurePosixPath("/run/kumulus/ceph"),
        description="Directory for the keys of Ceph users, of root alone; in memory.",
    )
    answer_seconds: float = Field(
        default=5.0, description="Seconds within which a cluster has to answer a question, or it is stalled.", gt=0
    )
    change_seconds: float = Field(default=300.0, description="Seconds a change may take while it answers.", gt=0)
    copy_seconds: float = Field(
        default=24 * 3600.0, description="Seconds a copy of data may take while it answers.", gt=0
    )


class LvmSettings(_Section):
    """How pools of the driver lvm are used."""

    lvm: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/lvm"), description="The program.")
    dmsetup: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/dmsetup"), description="The program.")
    modprobe: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/modprobe"), description="The program.")
    blkdiscard: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/blkdiscard"), description="The program.")
    system_dir: PurePosixPath | None = Field(
        default=None, description="Directory with the lvm.conf to be used in place of the host's own."
    )
    answer_seconds: float = Field(default=10.0, description="Seconds within which LVM has to answer a question.", gt=0)
    change_seconds: float = Field(default=120.0, description="Seconds a change may take.", gt=0)
    copy_seconds: float = Field(default=24 * 3600.0, description="Seconds a copy of data may take.", gt=0)


class SimulatedSettings(_Section):
    """How simulated pools behave."""

    capacity: int = Field(default=10 * TIB, description="Bytes each pool has.", ge=1)
    virtual_size: int = Field(default=2 * GIB, description="Size of every image's disk, in bytes.", ge=1)
    image_bytes: int = Field(default=400 << 20, description="Bytes of every image.", ge=1)
    import_seconds: float = Field(default=2.0, description="Seconds an import takes.", ge=0)
    disk_seconds: float = Field(default=0.05, description="Seconds a disk takes to make or remove.", ge=0)


class StorageSettings(_Section):
    """Everything about storage on this host."""

    roots: tuple[PurePosixPath, ...] = Field(
        default=(PurePosixPath("/var/lib/kumulus/pools"),),
        description="Directories below which pools of the driver dir may lie.",
        min_length=1,
    )
    mounts: PurePosixPath = Field(
        default=PurePosixPath("/run/kumulus/mounts"), description="Directory in which exports of NFS pools are mounted."
    )
    host: str = Field(
        default="", description="Name of this host: its unfinished files in pools that hosts share bear its mark."
    )
    readers: tuple[str, ...] = Field(
        default=("libvirt-qemu", "qemu"),
        description="Groups that QEMU runs in; the first that exists may pass through pools and read images. "
        "None exists: only root may.",
    )
    max_virtual_size: int = Field(default=64 * TIB, description="Largest disk in an image, in bytes.", ge=512)
    fetch: FetchSettings = FetchSettings()
    cage: CageSettings = CageSettings()
    scratch: PurePosixPath = Field(
        default=PurePosixPath("/var/lib/kumulus/scratch"),
        description="Directory in which images are checked and converted on their way to a pool that keeps no files;"
        " of root alone. It needs room for three times an image.",
    )
    ceph: CephSettings = CephSettings()
    lvm: LvmSettings = LvmSettings()
    simulated: SimulatedSettings = SimulatedSettings()

    def forbidding(self, *networks: Network) -> StorageSettings:
        """The same settings with more networks no image may come from, such as the API server's address."""
        fetch = self.fetch.model_copy(update={"forbidden_networks": (*self.fetch.forbidden_networks, *networks)})
        return self.model_copy(update={"fetch": fetch})
