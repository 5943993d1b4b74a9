"""Work orders for machines on a host, and what the agent says of them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from kumulus.api.addresses import Address
from kumulus.api.base import Model, Rule, immutable, list_map
from kumulus.api.compute import PowerState, RestartPolicy, Stop
from kumulus.api.disks import DRIVES_MOST, DiskName, DriveBus
from kumulus.api.hardware import MachineTypeName, Shape
from kumulus.api.image_order import HostAddress, ImageRef
from kumulus.api.pool_order import PoolRef
from kumulus.api.qos import Qos
from kumulus.api.segments import Nic, NicFacts, Uid
from kumulus.api.volume_order import SecretName
from kumulus.api.volumes import CacheMode

STALE_TERM = "StaleTerm"
"""Why an agent does nothing about an order: controllers of an older term wrote it than wrote the one of that name before."""


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


class CopiedDisk(Model):
    """A disk that a guest brings along from another host."""

    name: DiskName = Field(description="Name of the disk.")
    size: int = Field(description="Size in bytes, to the byte.", ge=1)


class Incoming(Model):
    """The guest of this machine is to come from another host. It is not started here, and the order's `power` is Stopped; it
    goes on by the word of that host, or when this field is taken out of the order."""

    migration: Uid = Field(description="Uid of the VirtualMachineMigration.")
    host: str = Field(description="Name of the host it comes from; its certificate has to say so.", max_length=63)
    disks: tuple[CopiedDisk, ...] = Field(
        default=(),
        description="Disks whose content comes along: they are made empty here, in the pool that the order names.",
        max_length=16,
        json_schema_extra=list_map("name"),
    )


class Outgoing(Model):
    """The guest of this machine is to go to another host."""

    migration: Uid = Field(description="Uid of the VirtualMachineMigration.")
    host: str = Field(description="Name of the host it goes to; its certificate has to say so.", max_length=63)
    address: HostAddress = Field(description="Where its agent takes guests.")
    port: int = Field(description="Port there.", ge=1, le=65535)
    bandwidth: int | None = Field(
        default=None, description="MiB a second at most; as fast as it goes when empty.", ge=1
    )
    max_downtime_ms: int = Field(
        default=300, description="The guest is halted for the rest at most so long, in milliseconds.", ge=1
    )
    converge: bool = Field(
        default=False, description="Slow the guest down when it writes faster than its memory can be copied."
    )
    disks: tuple[DiskName, ...] = Field(
        default=(),
        description="Names of the disks that are copied along.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


PRIORITY = 100
"""Of a machine whose order names none."""


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
    priority: int | None = Field(
        default=None,
        description="When the host has booted, machines with a higher one are started first; 100 when empty.",
        ge=0,
        le=1000000,
    )
    stop: Stop = Field(default_factory=Stop, description="How it is stopped.")
    cpus: int = Field(description="Virtual CPUs. A change applies at once where it can, else at the next start.", ge=1)
    memory: int = Field(
        description="Memory in bytes. A change applies at once where it can, else at the next start.", ge=1
    )
    max_cpus: int | None = Field(
        default=None,
        description="CPUs that it can get while it is on, where that is more; from its next start on.",
        ge=1,
    )
    max_memory: int | None = Field(
        default=None,
        description="Bytes of memory that it can get while it is on, where that is more; from its next start on.",
        ge=1,
    )
    shape: Shape | None = Field(default=None, description="What it is made of. A change applies at the next start.")
    machine_type: MachineTypeName | None = Field(
        default=None,
        description="Its board; when empty the one that it has, or the newest. A change applies at the next start.",
    )
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
    incoming: Incoming | None = Field(default=None, description="Its guest is to come from another host.")
    outgoing: Outgoing | None = Field(default=None, description="Its guest is to go to another host.")
    adopt: bool = Field(
        default=False,
        description="A domain that has this uid as its UUID and is not Kumulus' own becomes the machine, as it is. Nothing is"
        " started before that.",
    )
    unmanage: bool = Field(
        default=False,
        description="The end of the order leaves the domain as it is, and it is not Kumulus' own any more.",
    )
    superseded: bool = Field(
        default=False,
        description="The host was fenced, and the machine has another placement: what is here of it is ended at once, and removed.",
    )


class MigrationState(StrEnum):
    """How far one side of a migration is."""

    PREPARED = "Prepared"
    """The guest may come."""
    ARRIVED = "Arrived"
    """The guest has come, and is this host's."""
    SENDING = "Sending"
    SENT = "Sent"
    """The guest has gone, and is the other host's."""
    FAILED = "Failed"
    """The guest is this host's, and was not brought to the other one."""


class MigrationFacts(Model):
    """One side of a migration."""

    migration: Uid = Field(description="Uid of the VirtualMachineMigration.")
    state: MigrationState = Field(description="How far it is.")
    reason: str | None = Field(default=None, description="Why, in one word.", max_length=64)
    message: str | None = Field(default=None, description="Why, in a sentence.", max_length=1024)
    total_bytes: int | None = Field(default=None, description="Bytes to copy, all in all.")
    remaining_bytes: int | None = Field(default=None, description="Bytes left to copy.")
    dirty_rate: int | None = Field(default=None, description="Bytes a second that the guest writes anew.")
    iteration: int | None = Field(default=None, description="How often its memory was gone through, from 1.")
    downtime_ms: int | None = Field(
        default=None, description="For how long it would be halted, as it looks now, in milliseconds."
    )
    stalled_seconds: int | None = Field(
        default=None, description="For how many seconds the copy has got no closer to its end; not said of a moment."
    )
    disk_total_bytes: int | None = Field(default=None, description="Of the bytes to copy, those of disks.")
    disk_remaining_bytes: int | None = Field(default=None, description="Of the bytes left to copy, those of disks.")


class DiskManner(Model):
    """How a machine that is on has one of its volumes."""

    volume: Uid = Field(description="Uid of the Volume.")
    qos: Qos | None = Field(default=None, description="How fast it may be.")
    cache: CacheMode | None = Field(default=None, description="How the host caches it.")


class GuestFacts(Model):
    """What the agent in a guest says of it. It is the guest's word."""

    connected: bool = Field(default=False, description="Whether it answers.")
    hostname: str | None = Field(default=None, description="Name of the guest.", max_length=253)
    os: str | None = Field(default=None, description="Operating system.", max_length=128)
    agent_version: str | None = Field(default=None, description="Version of the agent.", max_length=32)
    addresses: tuple[Address, ...] = Field(
        default=(), description="Addresses that the guest has given itself, or got.", max_length=16
    )


class InstanceFacts(Model):
    """What is so of an instance."""

    epoch: int | None = Field(default=None, description="The placement that is in force.")
    started_at: str | None = Field(default=None, description="When the guest last started (RFC 3339).")
    restarts: int | None = Field(default=None, description="How often restartPolicy started it again.")
    last_restart_request: str | None = Field(default=None, description="The last restartRequest carried out.")
    cpus: int | None = Field(default=None, description="Virtual CPUs of a machine that is on.")
    memory: int | None = Field(
        default=None, description="Memory in bytes of a machine that is on, as far as the guest has taken it."
    )
    max_cpus: int | None = Field(default=None, description="CPUs that it can get while it is on, where that is more.")
    max_memory: int | None = Field(
        default=None, description="Bytes of memory that it can get while it is on, where that is more."
    )
    shape: Shape | None = Field(
        default=None, description="What a machine that is on is made of, where that was asked for."
    )
    machine_type: str | None = Field(default=None, description="The board of a machine that is on.", max_length=64)
    adopted: bool | None = Field(
        default=None, description="It is on as somebody else defined it, before it was Kumulus' own."
    )
    guest: GuestFacts | None = Field(
        default=None, description="What the guest says of itself, if it had an agent since it was started."
    )
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
    migration: MigrationFacts | None = Field(
        default=None, description="How far it is on its way to or from another host."
    )
