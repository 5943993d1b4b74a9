"""storage.kumulus.io: the pools that disks live in, classes of volumes, and volumes."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from kumulus.api.base import (
    AGE,
    DOMAIN,
    PHASE,
    VERSION,
    Column,
    DnsLabel,
    Kind,
    Model,
    Resource,
    Rule,
    Scope,
    Status,
    cel,
    immutable,
    list_map,
    reason_of,
)
from kumulus.api.placement import Selector
from kumulus.api.pools import PARAMETER_RULES, PoolDriver, PoolParameters, is_shared
from kumulus.api.qos import Qos
from kumulus.api.quantity import Amount, Bytes, DiskSize, MeasuredBytes
from kumulus.api.volumes import CacheMode, Encryption, Progress, ReclaimPolicy, VolumeSource

GROUP = f"storage.{DOMAIN}"


class PoolThresholds(Model):
    """Shares of a pool's space on a host from which something is done. What is in use counts, by anybody."""

    rules = (
        Rule(
            "!has(self.warnAt) || !has(self.stopNewVolumesAt) || self.warnAt <= self.stopNewVolumesAt",
            "must not be more than stopNewVolumesAt",
            field=".warnAt",
        ),
    )

    warn_at: int | None = Field(
        default=None,
        description="Percent of the capacity in use from which the pool says SpaceLow.",
        ge=1,
        le=100,
    )
    stop_new_volumes_at: int | None = Field(
        default=None,
        description="Percent of the capacity in use from which a host takes no new volumes and disks in the pool.",
        ge=1,
        le=100,
    )


class ImageCacheLimits(Model):
    """How much room images may take that no disk is made of. Those that have not been needed for longest go first."""

    max_size: Amount | None = Field(
        default=None, description="All images of the pool together, on each host; empty means no limit."
    )
    min_free: Amount = Field(
        default="1Gi", description="Room to be kept free on each host by removing images, as far as that goes."
    )


class StoragePoolSpec(Model):
    """Where disks live."""

    rules = PARAMETER_RULES

    driver: PoolDriver = Field(description="How disks are kept.", json_schema_extra=immutable("driver"))
    parameters: PoolParameters = Field(
        default_factory=PoolParameters,
        description="What the driver has to know.",
        json_schema_extra=immutable("parameters"),
    )
    zone: DnsLabel | None = Field(default=None, description="Only hosts of this zone; empty means all.")
    host_selector: Selector = Field(default_factory=dict, description="Only hosts with these labels.")
    overprovisioning: float = Field(
        default=2.0,
        description="How much more may be promised than there is, as a factor of the capacity.",
        ge=1,
        le=100,
    )
    reserved: Amount = Field(
        default="0", description="Space that is never given out: on each host, or of a shared pool once."
    )
    thresholds: PoolThresholds = Field(
        default_factory=PoolThresholds,
        description="From when on the pool warns and takes nothing new; never when empty.",
    )
    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Namespaces whose volumes and machines may have data in it; empty means all. What is there already stays.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    maintenance: bool = Field(
        default=False,
        description="No new disks while true, and what can be moved goes to other pools of its host: the condition Emptied"
        " says what is left, and why.",
    )
    image_cache: ImageCacheLimits = Field(
        default_factory=ImageCacheLimits, description="How much room images may take that no disk is made of."
    )

    @property
    def shared(self) -> bool:
        """Whether it is one and the same pool on all of its hosts."""
        return is_shared(self.driver, self.parameters)


class PoolHost(Model):
    """A pool as one host sees it."""

    name: str = Field(description="Name of the host.")
    ready: bool = Field(description="Whether the pool can be used there.")
    capacity: MeasuredBytes | None = Field(default=None, description="Space there is.")
    used: MeasuredBytes | None = Field(default=None, description="Space in use, by anybody.")
    allocated: MeasuredBytes | None = Field(default=None, description="Space promised to volumes and machines' disks.")
    unowned: int | None = Field(default=None, description="Files that nobody owns.")
    access: str | None = Field(default=None, description="How it reaches the pool and locks its disks, for people.")
    reason: str | None = Field(default=None, description="Why it is not ready, in one word.")
    message: str | None = Field(default=None, description="Why it is not ready.")


class StoragePoolStatus(Status):
    """What is known of the pool."""

    phase: str | None = Field(default=None, description="Pending, Ready, Degraded or Maintenance.")
    capacity: MeasuredBytes | None = Field(
        default=None, description="Space on all hosts together; of a shared pool counted once."
    )
    used: MeasuredBytes | None = Field(default=None, description="Space in use, counted likewise.")
    allocated: MeasuredBytes | None = Field(
        default=None, description="Space promised to volumes and machines' disks, counted likewise."
    )
    unowned_files: int | None = Field(
        default=None, description="Files in it that nobody owns: `kumulusctl pool unowned` lists them."
    )
    unowned_bytes: MeasuredBytes | None = Field(default=None, description="Space they take.")
    ready_hosts: int | None = Field(default=None, description="Hosts on which it can be used.")
    hosts: tuple[PoolHost, ...] = Field(
        default=(),
        description="The pool as each host sees it; at most 256 are listed.",
        max_length=256,
        json_schema_extra=list_map("name"),
    )


class StoragePool(Resource):
    """A place where disks live, on hosts or reachable from them."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="StoragePool",
        plural="storagepools",
        scope=Scope.CLUSTER,
        short_names=("pool", "pools"),
        categories=("kumulus-admin",),
        columns=(
            Column("Driver", ".spec.driver"),
            PHASE,
            Column("Hosts", ".status.readyHosts", "integer"),
            Column("Capacity", ".status.capacity"),
            Column("Used", ".status.used"),
            Column("Allocated", ".status.allocated"),
            reason_of("AcceptsVolumes"),
            Column("Emptied", ".status.conditions[?(@.type=='Emptied')].status", priority=1),
            Column("Unowned", ".status.unownedFiles", "integer", priority=1),
            AGE,
        ),
    )

    spec: StoragePoolSpec = Field(description="Where disks live.")
    status: StoragePoolStatus = Field(default_factory=StoragePoolStatus, description="What is known of it.")


class Provisioning(StrEnum):
    """When a volume's space is taken."""

    THIN = "Thin"
    THICK = "Thick"


class VolumeClassSpec(Model):
    """How volumes of the class are made."""

    default: bool = Field(
        default=False, description="Volumes that name no class are of this one. One class should say so."
    )
    pool_selector: Selector = Field(default_factory=dict, description="Labels of the StoragePools they may be in.")
    provisioning: Provisioning = Field(
        default=Provisioning.THIN, description="Thin takes space as it is written, Thick all of it at once."
    )
    reclaim_policy: ReclaimPolicy = Field(
        default=ReclaimPolicy.DELETE, description="What becomes of the data of a deleted volume that does not say."
    )
    qos: Qos | None = Field(
        default=None,
        description="How fast volumes of the class may be. A change applies at once to all of them, in use or not.",
    )
    encryption: Encryption | None = Field(
        default=None,
        description="Volumes are encrypted with LUKS by a Secret of their own namespace. A change is for new volumes only.",
    )
    cache: CacheMode | None = Field(
        default=None,
        description="How hosts cache them; none when empty. A change applies when a machine starts, or a volume is attached.",
    )
    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Namespaces that may use it; empty means all.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class VolumeClass(Resource):
    """A kind of volume that an operator offers."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="VolumeClass",
        plural="volumeclasses",
        scope=Scope.CLUSTER,
        short_names=("volclass",),
        categories=("kumulus-admin",),
        columns=(
            Column("Default", ".spec.default", "boolean"),
            Column("Provisioning", ".spec.provisioning"),
            Column("Reclaim", ".spec.reclaimPolicy"),
            Column("IOPS", ".spec.qos.iops", "integer", priority=1),
            Column("Bytes/s", ".spec.qos.bytesPerSecond", priority=1),
            Column("Cache", ".spec.cache", priority=1),
            Column("Secret", ".spec.encryption.secret", priority=1),
            AGE,
        ),
        status=False,
    )

    spec: VolumeClassSpec = Field(description="How volumes of the class are made.")


class VolumeSpec(Model):
    """What the volume shall be."""

    rules = (Rule("has(self.size) || has(self.source)", "set size, source or both", field=".size"),)

    size: DiskSize | None = Field(
        default=None,
        description="Size of the disk; default and least is the size of its source. It can grow, also while a machine uses it.",
        json_schema_extra=cel(
            Rule(
                "quantity(self).compareTo(quantity(oldSelf)) >= 0", "size can grow, but not shrink: data would be lost"
            )
        ),
    )
    volume_class: DnsLabel | None = Field(
        default=None,
        alias="class",
        description="Name of a VolumeClass; the default one when empty.",
        json_schema_extra=immutable("class"),
    )
    source: VolumeSource | None = Field(
        default=None, description="What it begins with; blank when empty.", json_schema_extra=immutable("source")
    )
    pool: DnsLabel | None = Field(
        default=None,
        description="Name of the StoragePool to be in; chosen when empty. A change moves the volume, also while a machine uses it; left out again, the volume stays where it is.",
    )
    reclaim_policy: ReclaimPolicy | None = Field(
        default=None, description="What becomes of the data when the volume is deleted; default is the class's."
    )
    deletion_protection: bool = Field(default=False, description="Refuse to delete the volume while true.")


class VolumePhase(StrEnum):
    """A volume's state in one word; derived."""

    PENDING = "Pending"
    CREATING = "Creating"
    AVAILABLE = "Available"
    IN_USE = "InUse"
    RESIZING = "Resizing"
    MOVING = "Moving"
    RESTORING = "Restoring"
    DELETING = "Deleting"
    FAILED = "Failed"


class Attachment(Model):
    """The one machine that may write to a volume."""

    vm: str = Field(description="Name of the VirtualMachine.")
    uid: str = Field(description="Its uid.")


class VolumeStatus(Status):
    """What the volume is."""

    phase: VolumePhase | None = Field(default=None, description="The state in one word.")
    pool: str | None = Field(default=None, description="The StoragePool it is in.")
    moving_to: str | None = Field(default=None, description="The StoragePool that it is being moved to.")
    progress: Progress | None = Field(default=None, description="How far a copy or a move is.")
    unlinked: bool | None = Field(
        default=None,
        description="It was linked to a snapshot and was moved: now it has all of its content itself, and holds nothing.",
    )
    host: str | None = Field(
        default=None,
        description="The host that has it; in a pool that hosts share, the one whose agent sees to it now.",
    )
    epoch: int | None = Field(
        default=None, description="How often it was handed from host to host, in a pool that hosts share."
    )
    size: Bytes | None = Field(default=None, description="Size of the disk as it is now.")
    used: MeasuredBytes | None = Field(default=None, description="What it takes in the pool.")
    attached_to: Attachment | None = Field(default=None, description="The one machine that may write to it.")
    volume_class: str | None = Field(
        default=None,
        alias="class",
        description="Name of the VolumeClass it got when it was given a place; empty when there was none. It stays so.",
    )
    encryption: Encryption | None = Field(
        default=None, description="How it is encrypted, from when it was given a place; empty: it is not."
    )
    qos: Qos | None = Field(
        default=None,
        description="How fast it may be, as the hypervisor says of a machine that is on; empty: no limits.",
    )
    cache: CacheMode | None = Field(
        default=None, description="How its host caches it, as the hypervisor says of a machine that is on."
    )


class Volume(Resource):
    """A disk with a life of its own: it outlives the machines that use it."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="Volume",
        plural="volumes",
        short_names=("vol", "vols"),
        categories=("kumulus",),
        columns=(
            PHASE,
            Column("Size", ".status.size"),
            Column("VM", ".status.attachedTo.vm"),
            Column("Pool", ".status.pool"),
            Column("Host", ".status.host"),
            Column("Class", ".spec.class", priority=1),
            Column("Used", ".status.used", priority=1),
            Column("Moving-To", ".status.movingTo", priority=1),
            Column("Arrived", ".status.progress.bytes", priority=1),
            Column("Total", ".status.progress.total", priority=1),
            Column("Rate", ".status.progress.rate", priority=1),
            Column("Seconds-Left", ".status.progress.remainingSeconds", "integer", priority=1),
            reason_of(),
            AGE,
        ),
    )

    spec: VolumeSpec = Field(description="What the volume shall be.")
    status: VolumeStatus = Field(default_factory=VolumeStatus, description="What the volume is.")
