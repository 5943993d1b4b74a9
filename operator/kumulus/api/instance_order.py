"""Work orders for machines on a host, and what the agent says of them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from kumulus.api.base import Model, Rule, immutable, list_map
from kumulus.api.compute import PowerState, RestartPolicy, Stop
from kumulus.api.disks import DRIVES_MOST, DiskName, DriveBus
from kumulus.api.image_order import ImageRef
from kumulus.api.pool_order import PoolRef
from kumulus.api.qos import Qos
from kumulus.api.segments import Nic, NicFacts, Uid
from kumulus.api.volume_order import SecretName
from kumulus.api.volumes import CacheMode


class InstanceDisk(Model):
    """A disk of an instance."""

    rules = (Rule("has(self.image) != has(self.volume)", "set exactly one of image and volume"),)

    name: DiskName = Field(description="Name within the machine; the serial the guest sees.")
    pool: PoolRef = Field(description="Where it lives.")
    image: ImageRef | None = Field(
        default=None, description="The image that a disk of the machine's own is made from; it goes with the machine."
    )
    volume: Uid | None = Field(
        default=None, description="Uid of the Volume that the disk is. A Disk order makes it; the machine waits for it."
    )
    size: int | None = Field(
        default=None, description="Size in bytes of a disk made from an image; its own when empty.", ge=1
    )
    boot_order: int = Field(description="Position in the boot order, from 1.", ge=1)
    secret: SecretName | None = Field(
        default=None, description="Name of the Secret with the passphrase of a volume that is encrypted."
    )
    qos: Qos | None = Field(default=None, description="How fast a volume may be. A change applies at once.")
    cache: CacheMode | None = Field(
        default=None, description="How the host caches a volume; none when empty. A change applies at the next start."
    )


class Drive(Model):
    """A CD-ROM drive of an instance, with a disc in it or empty."""

    rules = (Rule("has(self.image) == has(self.pool)", "set image and pool, or neither"),)

    name: DiskName = Field(description="Name within the machine; the serial the guest sees.")
    bus: DriveBus = Field(description="What it is connected to.")
    image: ImageRef | None = Field(default=None, description="The disc in it.")
    pool: PoolRef | None = Field(default=None, description="Where the disc is.")
    boot_order: int = Field(description="Position in the boot order, from 1.", ge=1)


class SeedRef(Model):
    """First-boot data: a NoCloud seed, inline or in a Secret of this namespace with the same keys."""

    rules = (Rule("has(self.secret) != has(self.data)", "set exactly one of secret and data"),)

    data: Mapping[str, str] | None = Field(
        default=None, description="Files of the seed: meta-data, user-data, network-config.", max_length=4
    )
    secret: str | None = Field(
        default=None, description="Name of the Secret that has these files as its keys.", max_length=253
    )


class InstanceOrder(Model):
    """A machine on this host."""

    rules = (
        Rule(
            "!oldSelf.superseded || self.superseded",
            "a machine that runs elsewhere does not come back",
            field=".superseded",
        ),
    )

    uid: Uid = Field(description="Uid of the machine; the domain's UUID.", json_schema_extra=immutable("uid"))
    epoch: int = Field(description="The placement this order belongs to. An older one is refused.", ge=1)
    power: PowerState = Field(description="What it shall be.")
    restart_policy: RestartPolicy = Field(description="What happens when it ends by itself.")
    restart_request: str | None = Field(default=None, description="A change restarts it once.", max_length=253)
    stop: Stop = Field(default_factory=Stop, description="How it is stopped.")
    cpus: int = Field(description="Virtual CPUs. A change applies at the next start.", ge=1)
    memory: int = Field(description="Memory in bytes. A change applies at the next start.", ge=1)
    disks: tuple[InstanceDisk, ...] = Field(
        default=(), description="Its disks.", max_length=16, json_schema_extra=list_map("name")
    )
    drives: tuple[Drive, ...] = Field(
        default=(), description="Its CD-ROM drives.", max_length=DRIVES_MOST, json_schema_extra=list_map("name")
    )
    nics: tuple[Nic, ...] = Field(
        default=(), description="Its interfaces, in order.", max_length=16, json_schema_extra=list_map("name")
    )
    seed: SeedRef | None = Field(default=None, description="First-boot data.")
    superseded: bool = Field(
        default=False,
        description="The host was fenced, and the machine has another placement: what is here of it is ended at once, and removed.",
    )


class DiskManner(Model):
    """How a machine that is on has one of its volumes."""

    volume: Uid = Field(description="Uid of the Volume.")
    qos: Qos | None = Field(default=None, description="How fast it may be.")
    cache: CacheMode | None = Field(default=None, description="How the host caches it.")


class InstanceFacts(Model):
    """What is so of an instance."""

    epoch: int | None = Field(default=None, description="The placement that is in force.")
    started_at: str | None = Field(default=None, description="When the guest last started (RFC 3339).")
    restarts: int | None = Field(default=None, description="How often restartPolicy started it again.")
    last_restart_request: str | None = Field(default=None, description="The last restartRequest carried out.")
    cpus: int | None = Field(default=None, description="Virtual CPUs of a machine that is on.")
    memory: int | None = Field(default=None, description="Memory in bytes of a machine that is on.")
    last_exit: str | None = Field(
        default=None, description="Why it last ended: shutdown, crashed, destroyed, ...", max_length=64
    )
    next_start_at: str | None = Field(default=None, description="When it will be started again, in BackOff (RFC 3339).")
    volumes: tuple[Uid, ...] = Field(
        default=(),
        description="Volumes that the hypervisor says the machine has, also one that is still being detached.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    manners: tuple[DiskManner, ...] = Field(
        default=(),
        description="How a machine that is on has them, as the hypervisor says, where that was asked for.",
        max_length=16,
        json_schema_extra=list_map("volume"),
    )
    nics: tuple[NicFacts, ...] = Field(
        default=(), description="Its interfaces.", max_length=16, json_schema_extra=list_map("name")
    )
