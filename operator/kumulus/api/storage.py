"""storage.kumulus.io: images and the pools that disks live in."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from kumulus.api.base import (
    DOMAIN,
    VERSION,
    Column,
    Kind,
    Model,
    Resource,
    Rule,
    Scope,
    Status,
    cel,
    immutable,
    list_map,
)
from kumulus.api.compute import DnsLabel
from kumulus.api.placement import Selector
from kumulus.api.pools import PARAMETER_RULES, PoolDriver, PoolParameters, is_shared
from kumulus.api.qos import Qos
from kumulus.api.quantity import Amount, Bytes, DiskSize, MeasuredBytes, Memory
from kumulus.api.volumes import CacheMode, Encryption, ObjectName, ReclaimPolicy, VolumeSource

GROUP = f"storage.{DOMAIN}"

SecretName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    ),
]

Sha256 = Annotated[str, StringConstraints(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]


class HttpSource(Model):
    """An image on a web server."""

    url: str = Field(
        description="Where it is: http or https, without user name or password. Addresses of the cluster, loopback and link-local ranges are refused unless an administrator allows them.",
        max_length=2048,
        json_schema_extra=cel(
            Rule(
                # A pattern, because url(self).getHost() has no bound that the cost estimate would know.
                r"isURL(self) && self.matches(r'^https?://[^\s/?#@\\:][^\s/?#@\\]*([/?#]\S*)?$')",
                "must be an http or https URL without user name or password",
            )
        ),
    )
    ca_bundle: str | None = Field(
        default=None,
        description="PEM certificates to trust for this source, instead of the host's own.",
        max_length=65536,
    )


class OciLayout(StrEnum):
    """How a disk image lies in a registry."""

    AUTO = "Auto"
    ARTIFACT = "Artifact"
    CONTAINER_DISK = "ContainerDisk"


class OciSource(Model):
    """An image in an OCI registry. Always over TLS."""

    reference: str = Field(
        description="Registry, repository and perhaps a tag and a digest, such as quay.io/containerdisks/debian:12; the tag is latest when there is neither. A tag is looked up once: the digest that it had at the first import is kept in the status.",
        max_length=512,
        json_schema_extra=cel(
            Rule(
                r"self.matches('^([a-z0-9]([a-z0-9-]*[.])+[a-z0-9-]*[a-z0-9](:[0-9]{1,5})?|[a-z0-9][a-z0-9-]*:[0-9]{1,5})"
                r"(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[a-f0-9]{64})?$')",
                "must name a registry, a repository and perhaps a tag and a sha256 digest, such as quay.io/containerdisks/debian:12",
            )
        ),
    )
    secret: SecretName | None = Field(
        default=None,
        description="Name of a Secret of type kubernetes.io/dockerconfigjson in the image's namespace (kumulus-system for a ClusterImage) that has a login to the registry.",
    )
    ca_bundle: str | None = Field(
        default=None,
        description="PEM certificates to trust for this source, instead of the host's own.",
        max_length=65536,
    )
    layout: OciLayout = Field(
        default=OciLayout.AUTO,
        description="Artifact: the one layer that is the file, as oras pushes it. ContainerDisk: a container image whose largest layer has exactly one file below disk/. Auto: by what the manifest says it is.",
    )


class UploadSource(Model):
    """An image that its owner brings: `kumulusctl image upload`."""


class ImageSource(Model):
    """Where the image comes from."""

    rules = (
        Rule(
            "[has(self.http), has(self.oci), has(self.upload), has(self.volume), has(self.snapshot)]"
            ".filter(set, set).size() == 1",
            "an image needs one source: set exactly one of http, oci, upload, volume and snapshot",
        ),
    )

    http: HttpSource | None = Field(default=None, description="From a web server.")
    oci: OciSource | None = Field(default=None, description="From an OCI registry.")
    upload: UploadSource | None = Field(
        default=None, description="Brought by its owner, from wherever that is. Not of a ClusterImage."
    )
    volume: ObjectName | None = Field(
        default=None,
        description="Name of a Volume of the namespace, as it is when the image is made: a full copy. No machine that is on may have it meanwhile.",
    )
    snapshot: ObjectName | None = Field(
        default=None, description="Name of a VolumeSnapshot of the namespace: a full copy, also while a machine is on."
    )

    @property
    def made_here(self) -> bool:
        """Whether it is made of what a host has, and cannot be fetched from elsewhere."""
        return self.volume is not None or self.snapshot is not None


class Checksum(Model):
    """What the bytes must add up to."""

    sha256: Sha256 = Field(
        description="SHA-256 of the file as it is downloaded, 64 hexadecimal digits; of a registry, of the layer."
    )


class ImageFormat(StrEnum):
    """What a file can be. Never guessed from its content alone: it must turn out to be what was said."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"
    VHD = "vhd"
    VHDX = "vhdx"
    ISO = "iso"


OPTICAL = frozenset({ImageFormat.ISO})
"""Formats of what is no disk but a disc: fit for a CD-ROM, or for a disk that goes with its machine. Never a volume's."""


class Compression(StrEnum):
    """How a download is packed. Said, never guessed from its name or content."""

    NONE = "None"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    BZIP2 = "bzip2"


class OperatingSystem(Model):
    """What is in an image, for people."""

    family: str | None = Field(default=None, description="linux, windows, bsd or other.", max_length=32)
    name: str | None = Field(default=None, description="Name, such as Debian.", max_length=64)
    version: str | None = Field(default=None, description="Version, such as 12.", max_length=64)


class CachePolicy(StrEnum):
    """When pools get an image."""

    ON_DEMAND = "OnDemand"
    EVERYWHERE = "Everywhere"


class ImageSpec(Model):
    """What the image is and where it comes from."""

    rules: ClassVar[Sequence[Rule]] = (
        Rule(
            "has(self.checksum) || !(has(self.source.http) || has(self.source.upload))",
            "an image from a web server or an upload needs its checksum: set checksum.sha256",
            field=".checksum",
        ),
        Rule(
            "!(has(self.source.volume) || has(self.source.snapshot))"
            " || (!has(self.checksum) && self.format == 'qcow2' && self.compression == 'None')",
            "an image of a volume or snapshot is made as qcow2, not compressed, and has no checksum before it is made",
            field=".source",
        ),
    )

    source: ImageSource = Field(description="Where it comes from.", json_schema_extra=immutable("source"))
    checksum: Checksum | None = Field(
        default=None,
        description="What it must add up to. Not needed for a registry, which says so itself: every download is verified against the digest in its manifest.",
        json_schema_extra=immutable("checksum"),
    )
    compression: Compression = Field(
        default=Compression.NONE,
        description="How the download is packed. It is unpacked after its checksum was verified.",
        json_schema_extra=immutable("compression"),
    )
    format: ImageFormat = Field(
        description="What it must turn out to be, unpacked. An iso can be a CD-ROM or an ephemeral disk, not a volume.",
        json_schema_extra=immutable("format"),
    )
    architecture: str = Field(
        default="x86_64", description="The processor it is for.", max_length=16, pattern=r"^[a-z0-9_]+$"
    )
    os: OperatingSystem = Field(default_factory=OperatingSystem, description="What is in it.")
    min_disk: DiskSize | None = Field(default=None, description="The smallest disk it boots from.")
    min_memory: Memory | None = Field(default=None, description="The smallest memory it boots with.")
    cache_policy: CachePolicy = Field(
        default=CachePolicy.ON_DEMAND,
        description="OnDemand: a pool gets the image with the first disk made of it, and may give its room to others when there is none any more. Everywhere: every pool that is ready has it beforehand, and keeps it.",
    )


class OwnedImageSpec(ImageSpec):
    """What the image of a namespace is, where it comes from, and who else may use it."""

    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Other namespaces that may use it; empty means none. What is made from it already stays.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class ClusterImageSpec(ImageSpec):
    """What a shared image is, where it comes from, and who may use it."""

    rules = (
        *ImageSpec.rules,
        Rule("!has(self.source.upload)", "only an Image can be uploaded, not a ClusterImage", field=".source.upload"),
        Rule(
            "!has(self.source.volume) && !has(self.source.snapshot)",
            "a ClusterImage has no namespace with volumes: make an Image, and share it by allowedNamespaces",
            field=".source",
        ),
    )

    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Namespaces that may use it; empty means all.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class ImagePhase(StrEnum):
    """An image's state in one word."""

    PENDING = "Pending"
    IMPORTING = "Importing"
    READY = "Ready"
    FAILED = "Failed"


class Progress(Model):
    """How far a transfer is."""

    bytes: MeasuredBytes = Field(default=0, description="What has arrived.")
    total: MeasuredBytes | None = Field(default=None, description="What there is to fetch, when known.")
    rate: MeasuredBytes | None = Field(default=None, description="Bytes per second, lately.")
    remaining_seconds: int | None = Field(
        default=None, description="How long this stage still takes at that rate, in seconds.", ge=0
    )


class ImageContent(Model):
    """The file of an image as a pool has it, to the byte."""

    sha256: Sha256 = Field(description="SHA-256 of the file.")
    size: int = Field(description="Its bytes.", ge=1)
    format: ImageFormat = Field(description="qcow2, or raw for a disc.")


class ImageCache(Model):
    """A pool that holds the image."""

    name: str = Field(description="`pool/host`, or `pool` for a pool that hosts share.")
    pool: str = Field(description="Name of the StoragePool.")
    host: str | None = Field(default=None, description="The host, for a pool that is local to it.")
    state: str = Field(default="", description="Importing, Ready or Failed.")
    copied_from: str | None = Field(
        default=None, description="The host it was copied from; empty when it came from the source."
    )


class ImageStatus(Status):
    """What the image is known to be."""

    phase: ImagePhase | None = Field(default=None, description="The state in one word.")
    progress: Progress | None = Field(default=None, description="How far the import is.")
    sha256: str | None = Field(default=None, description="SHA-256 of the download, as verified.")
    digest: str | None = Field(
        default=None, description="What the reference of a registry was resolved to at the first import; kept."
    )
    made_of: str | None = Field(default=None, description="Uid of the Volume that it was made of, or whose snapshot.")
    format: str | None = Field(default=None, description="What it turned out to be.")
    virtual_size: Bytes | None = Field(default=None, description="Size of the disk inside.")
    size: MeasuredBytes | None = Field(default=None, description="What it takes in a pool.")
    content: ImageContent | None = Field(
        default=None,
        description="The file that the first import made of it. Hosts copy it from each other and take nothing else for it.",
    )
    caches: tuple[ImageCache, ...] = Field(
        default=(), description="The pools that hold it.", max_length=1024, json_schema_extra=list_map("name")
    )


_IMAGE_COLUMNS = (
    Column("Phase", ".status.phase"),
    Column("Format", ".spec.format"),
    Column("Arrived", ".status.progress.bytes", priority=1),
    Column("Total", ".status.progress.total", priority=1),
    Column("Rate", ".status.progress.rate", priority=1),
    Column("Seconds-Left", ".status.progress.remainingSeconds", "integer", priority=1),
    Column("Virtual-Size", ".status.virtualSize"),
    Column("Reason", ".status.conditions[?(@.type=='Ready')].reason", priority=1),
    Column("Age", ".metadata.creationTimestamp", "date"),
)


class Image(Resource):
    """A disk image that machines of its namespace start from, and of those it names."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="Image",
        plural="images",
        short_names=("img",),
        categories=("kumulus",),
        columns=_IMAGE_COLUMNS,
    )

    spec: OwnedImageSpec = Field(description="What the image is, where it comes from, and who else may use it.")
    status: ImageStatus = Field(default_factory=ImageStatus, description="What is known of it.")


class ClusterImage(Resource):
    """A disk image shared by all namespaces, or by those it names."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="ClusterImage",
        plural="clusterimages",
        scope=Scope.CLUSTER,
        short_names=("cimg",),
        categories=("kumulus", "kumulus-admin"),
        columns=_IMAGE_COLUMNS,
    )

    spec: ClusterImageSpec = Field(description="What the image is, where it comes from, and who may use it.")
    status: ImageStatus = Field(default_factory=ImageStatus, description="What is known of it.")


class ImageUploadSpec(Model):
    """Which image somebody is going to upload, and how they are known."""

    rules = (Rule("self == oldSelf", "an upload cannot be changed: make a new one"),)

    image: DnsLabel = Field(description="Name of an Image of the same namespace whose source is upload.")
    token_sha256: Sha256 = Field(
        description="SHA-256 of the token that will be shown, 64 hexadecimal digits. Whoever uploads makes up the token and tells it to nobody but the host: it is nowhere in the cluster.",
    )
    ttl_seconds: int = Field(
        default=3600, description="The upload ends so long after it was made, and is deleted.", ge=60, le=86400
    )


class ImageUploadStatus(Status):
    """Where to upload."""

    phase: str | None = Field(default=None, description="Pending, Ready, Complete or Failed.")
    url: str | None = Field(default=None, description="Where the image is brought to: by PUT, in parts.")
    server_name: str | None = Field(default=None, description="The name that the server's certificate is for.")
    ca_bundle: str | None = Field(
        default=None, description="PEM certificates it is signed with; no others are to be trusted.", max_length=32768
    )
    host: str | None = Field(default=None, description="The host that takes it.")
    expires_at: str | None = Field(default=None, description="When the upload ends (RFC 3339).")


class ImageUpload(Resource):
    """Lets whoever made it upload one image for a while; deletes itself. What has arrived outlives it."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="ImageUpload",
        plural="imageuploads",
        categories=("kumulus",),
        columns=(
            Column("Image", ".spec.image"),
            Column("Phase", ".status.phase"),
            Column("Host", ".status.host", priority=1),
            Column("Expires", ".status.expiresAt"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )

    spec: ImageUploadSpec = Field(description="Which image, and how the one who uploads is known.")
    status: ImageUploadStatus = Field(default_factory=ImageUploadStatus, description="Where to upload.")


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
            Column("Phase", ".status.phase"),
            Column("Hosts", ".status.readyHosts", "integer"),
            Column("Capacity", ".status.capacity"),
            Column("Used", ".status.used"),
            Column("Allocated", ".status.allocated"),
            Column("Reason", ".status.conditions[?(@.type=='AcceptsVolumes')].reason", priority=1),
            Column("Emptied", ".status.conditions[?(@.type=='Emptied')].status", priority=1),
            Column("Unowned", ".status.unownedFiles", "integer", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
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
            Column("Age", ".metadata.creationTimestamp", "date"),
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
            Column("Phase", ".status.phase"),
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
            Column("Reason", ".status.conditions[?(@.type=='Ready')].reason", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )

    spec: VolumeSpec = Field(description="What the volume shall be.")
    status: VolumeStatus = Field(default_factory=VolumeStatus, description="What the volume is.")
