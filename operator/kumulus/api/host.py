"""host.kumulus.io: work orders for a host and what its agent found. Internal, in a namespace per host.

A work order is fully resolved: the agent needs to read nothing else but the Secrets it names, which
live in the same namespace. Names on a host (domain, file, device) derive from the uids here, never
from a user's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, NewType

from pydantic import Field, StringConstraints

from kumulus.api.addresses import Address
from kumulus.api.base import DOMAIN, VERSION, Column, Kind, Model, ObjectRef, Resource, Rule, immutable, list_map
from kumulus.api.compute import DRIVES_MOST, DiskName, DriveBus, PowerState, RestartPolicy, Stop
from kumulus.api.fabric import Capacity, CpuInfo, Versions
from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus.api.pools import PoolDriver, PoolParameters, is_shared
from kumulus.api.qos import Qos
from kumulus.api.segments import NetworkDriverName, Nic, NicFacts, SegmentFacts, SegmentOrder, Uid
from kumulus.api.snapshots import Indication, QuiesceMode
from kumulus.api.storage import Compression, ImageContent, ImageFormat, OciLayout, Progress, Sha256
from kumulus.api.volumes import CacheMode

GROUP = f"host.{DOMAIN}"

AGENT_SERVICE_ACCOUNT = "kumulus-agent"
"""ServiceAccount of a host's agent, in the host's namespace."""

JOIN_SERVICE_ACCOUNT = "kumulus-join"
"""ServiceAccount of a join token, in the host's namespace. It may only ask for the agent's first token."""

LEASE = "kumulus-agent"
"""Name of the agent's Lease, in the host's namespace."""

Epoch = NewType("Epoch", int)

SecretName = Annotated[str, StringConstraints(min_length=1, max_length=253)]
"""Name of a Secret of the host's namespace."""

PASSPHRASE = "passphrase"  # noqa: S105  # the name of a key
"""Key of a Secret of the host's namespace that has what a volume is encrypted with."""


class WorkType(StrEnum):
    """What a work order asks for."""

    INSTANCE = "Instance"
    DISK = "Disk"
    SNAPSHOT = "Snapshot"
    POOL = "Pool"
    CONSOLE = "Console"
    CERTIFICATE = "Certificate"
    UPLOAD = "Upload"
    SEGMENT = "Segment"
    GATEWAY = "Gateway"


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


class ImageRef(Model):
    """An image in a pool: which one, and what it must be."""

    uid: Uid = Field(description="Uid of the Image or ClusterImage; names the file.")
    sha256: Sha256 | None = Field(
        default=None, description="What the bytes of its source add up to; empty when the source says so itself."
    )
    format: ImageFormat = Field(description="What it must turn out to be.")


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

    uid: Uid = Field(description="Uid of the machine; the domain's UUID.", json_schema_extra=immutable("uid"))
    epoch: int = Field(description="The placement this order belongs to. An older one is refused.", ge=1)
    power: PowerState = Field(description="What it shall be.")
    restart_policy: RestartPolicy = Field(description="What happens when it ends by itself.")
    restart_request: str | None = Field(default=None, description="A change restarts it once.", max_length=253)
    stop: Stop = Field(default_factory=Stop, description="How it is stopped.")
    cpus: int = Field(description="Virtual CPUs.", ge=1)
    memory: int = Field(description="Memory in bytes.", ge=1)
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


class HttpFetch(Model):
    """Fetch over http or https."""

    url: str = Field(description="Where it is.", max_length=2048)
    ca_bundle: str | None = Field(default=None, description="PEM certificates to trust for it.", max_length=65536)
    compression: Compression = Field(default=Compression.NONE, description="How what is there is packed.")


class OciFetch(Model):
    """Fetch from an OCI registry."""

    reference: str = Field(description="Registry, repository, tag, digest.", max_length=512)
    digest: str | None = Field(
        default=None,
        description="What the reference was resolved to before; it counts from then on.",
        max_length=71,
        pattern=r"^sha256:[0-9a-f]{64}$",
    )
    architecture: str = Field(description="Which of several images.", max_length=16)
    layout: OciLayout = Field(default=OciLayout.AUTO, description="How the image lies there.")
    ca_bundle: str | None = Field(default=None, description="PEM certificates to trust for it.", max_length=65536)
    compression: Compression = Field(default=Compression.NONE, description="How the file in an artifact is packed.")
    secret: str | None = Field(
        default=None,
        description="Name of the Secret of this namespace with the keys username and password. It is there until the image is.",
        max_length=253,
    )
    login: int = Field(default=0, description="Counts up when that Secret has come late, or changed.", ge=0)


HostAddress = Annotated[str, StringConstraints(min_length=2, max_length=45, pattern=r"^[0-9a-f.:]+$")]
"""An IPv4 or IPv6 address, no name."""


class ImagePeer(Model):
    """A host that has the whole image in one of its pools."""

    host: str = Field(description="Name of the host; its certificate has to say so.", max_length=63)
    address: HostAddress = Field(description="Where its agent serves images.")
    port: int = Field(description="Port there.", ge=1, le=65535)


class ImageCopy(Model):
    """The image as other pools have it: converted, inspected, whole. Asked for before the source is."""

    content: ImageContent = Field(description="What it is, to the byte.")
    peers: tuple[ImagePeer, ...] = Field(
        description="Who has it, the best first.", min_length=1, max_length=8, json_schema_extra=list_map("host")
    )


class UploadFetch(Model):
    """Wait for an upload."""

    compression: Compression = Field(default=Compression.NONE, description="How what is uploaded is packed.")


class ImageImport(Model):
    """Bring an image into a pool: fetch, verify, inspect, convert."""

    rules = (
        Rule(
            "[has(self.http), has(self.oci), has(self.upload), has(self.volume)].filter(set, set).size() == 1",
            "set exactly one of http, oci, upload and volume",
        ),
    )

    image: ImageRef = Field(description="The image.")
    http: HttpFetch | None = Field(default=None, description="Its bytes are on a web server.")
    oci: OciFetch | None = Field(default=None, description="Its bytes are in a registry.")
    upload: UploadFetch | None = Field(default=None, description="Its bytes are brought by its owner.")
    volume: Uid | None = Field(
        default=None, description="Uid of a Volume: a full copy of it, where it is in the same pool of this host."
    )
    snapshot: Uid | None = Field(
        default=None, description="Uid of a VolumeSnapshot of that volume: of that, in place of what it has now."
    )
    copy_: ImageCopy | None = Field(
        default=None, alias="copy", description="Other hosts have it: it is copied from one of them, if one will."
    )
    wait_for: str | None = Field(
        default=None,
        description="Name of a host of the same zone that is fetching it from its source: it is copied from there when that is done.",
        max_length=63,
    )


class SnapshotRef(Model):
    """The content that a volume had at one instant."""

    snapshot: Uid = Field(description="Uid of the VolumeSnapshot.")
    volume: Uid = Field(description="Uid of the Volume that it was taken of.")


class VolumeOrigin(Model):
    """What a volume begins with."""

    rules = (
        Rule(
            "(has(self.image) ? 1 : 0) + (has(self.volume) ? 1 : 0) + (has(self.snapshot) ? 1 : 0)"
            " + (has(self.existing) ? 1 : 0) == 1",
            "set exactly one of image, volume, snapshot and existing",
        ),
        Rule("!has(self.linked) || !self.linked || has(self.snapshot)", "only a snapshot can be linked to"),
        Rule(
            "!has(self.secret) || has(self.volume) || has(self.snapshot)", "only volumes are encrypted", field=".secret"
        ),
    )

    image: ImageRef | None = Field(default=None, description="An image in the same pool; the volume waits for it.")
    volume: Uid | None = Field(default=None, description="Uid of a Volume in the same pool: a full copy.")
    snapshot: SnapshotRef | None = Field(
        default=None, description="A snapshot in the same pool: a full copy, or linked to it."
    )
    existing: ExistingFile | None = Field(
        default=None, description="A file in the same pool that nobody owns becomes the volume."
    )
    linked: bool = Field(
        default=False, description="Stand on the snapshot, which cannot be removed then, in place of copying it."
    )
    secret: SecretName | None = Field(
        default=None,
        description="Name of the Secret with the passphrase of the volume, or of that of the snapshot, if it is encrypted."
        " It is read while the volume is made.",
    )


class ExistingFile(Model):
    """Data that is in the pool and that nobody owns."""

    id: Uid = Field(description="Its id, as the Pool order's facts list it. Never a path.")
    foreign: bool = Field(default=False, description="It need not be a volume of the same namespace that was retained.")


class Revert(Model):
    """Give a volume the content of one of its snapshots again. What it has now is lost."""

    snapshot: Uid = Field(description="Uid of the VolumeSnapshot; the volume's own.")
    request: Uid = Field(description="Uid of the VirtualMachineRestore that asks: each is carried out once.")


class Move(Model):
    """Bring a volume into another pool of this host. A machine that has it goes on meanwhile.

    As long as an order says so, the agent reports in `status.disk.pool` where the volume is.
    """

    rules = (
        Rule(
            "self.pool.uid == oldSelf.pool.uid",
            "a move that was asked for has its pool until it is over",
            field=".pool",
        ),
        Rule("!oldSelf.withdrawn || self.withdrawn", "a move that was withdrawn stays so", field=".withdrawn"),
    )

    pool: PoolRef = Field(description="Where it is to be.")
    withdrawn: bool = Field(
        default=False,
        description="Not any more: what was brought there is removed, unless all of it is there. Then it stays there.",
    )


FORGET_MOST = 64
"""Snapshots that an order of a volume says to forget, the last ones."""


class VolumeOrder(Model):
    """A volume in a pool on this host. It is made, grown when `size` grows, and moved."""

    rules = (
        Rule(
            "!has(self.origin) || has(oldSelf.origin) && self.origin == oldSelf.origin",
            "origin cannot be changed; it can be left out once the volume is made",
            field=".origin",
        ),
    )

    uid: Uid = Field(description="Uid of the Volume; names the file.", json_schema_extra=immutable("uid"))
    size: int | None = Field(default=None, description="Size in bytes; that of its origin when empty.", ge=1)
    thick: bool = Field(default=False, description="Take all of its space at once.")
    origin: VolumeOrigin | None = Field(default=None, description="What it begins with; blank when empty.")
    existing: bool = Field(
        default=False,
        description="It was made already: when it is not there any more, that is a failure (VolumeLost), and it is not made anew.",
    )
    secret: SecretName | None = Field(
        default=None,
        description="Name of the Secret with the passphrase that it is encrypted with; not encrypted when empty.",
        json_schema_extra=immutable("secret"),
    )
    revert: Revert | None = Field(
        default=None, description="Give it the content of a snapshot, once; no machine may have it meanwhile."
    )
    move: Move | None = Field(default=None, description="Bring it into another pool, once it is made.")
    retain: bool = Field(default=False, description="Deleting the order leaves the data where it is.")
    forget: tuple[Uid, ...] = Field(
        default=(),
        description="Uids of VolumeSnapshots of it that are wanted no more and whose orders went while the host was silent:"
        " what the host still has of them goes.",
        max_length=FORGET_MOST,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    epoch: int = Field(
        default=0,
        description="In a pool that hosts share: how often the volume was handed from host to host. A host that finds"
        " a newer one marked in the pool leaves the volume alone.",
        ge=0,
    )


class DiskOrder(Model):
    """Work on a volume or an image."""

    rules = (
        Rule("has(self.importImage) != has(self.volume)", "set exactly one of importImage and volume"),
        Rule(
            "self.pool.uid == oldSelf.pool.uid || (has(self.volume) && has(oldSelf.volume) && !has(self.volume.move)"
            " && has(oldSelf.volume.move) && self.pool.uid == oldSelf.volume.move.pool.uid)",
            "pool becomes the one that the volume was moved to, when that is over, and no other",
            field=".pool",
        ),
    )

    pool: PoolRef = Field(description="Where.")
    import_image: ImageImport | None = Field(
        default=None, description="Bring an image into the pool. Deleting the order removes it from there."
    )
    volume: VolumeOrder | None = Field(
        default=None, description="Have a volume in the pool. Deleting the order removes it, unless it says retain."
    )


class SnapshotItem(Model):
    """One volume's part of a snapshot."""

    snapshot: Uid = Field(description="Uid of the VolumeSnapshot; names the layer.")
    volume: Uid = Field(description="Uid of the Volume.")
    pool: PoolRef = Field(description="The pool that the volume is in.")
    secret: SecretName | None = Field(
        default=None, description="Name of the Secret with the passphrase of the volume, if it is encrypted."
    )


class SnapshotOrder(Model):
    """Keep the content of volumes of this host as it is at one instant. Deleting the order removes the snapshots, unless it
    says retain. An item that is taken out of it is left where it is: in a pool that hosts share, another host has it then."""

    items: tuple[SnapshotItem, ...] = Field(
        description="The volumes: of one machine, or one that no machine that is on has.",
        min_length=1,
        max_length=16,
        json_schema_extra=list_map("snapshot"),
    )
    quiesce: QuiesceMode = Field(
        default=QuiesceMode.IF_POSSIBLE, description="Whether the guest's file systems are brought to rest for it."
    )
    quiesce_seconds: int = Field(
        default=30, description="How long the guest may take for that, in seconds.", ge=1, le=600
    )
    taken: bool = Field(
        default=False,
        description="It was taken already: when it is not there any more, that is a failure (SnapshotLost), and none is taken in its place.",
    )
    retain: bool = Field(default=False, description="Deleting the order leaves the snapshots where they are.")


class PoolOrder(Model):
    """A pool's presence on this host."""

    pool: PoolRef = Field(description="The pool.")


class ConsoleOrder(Model):
    """Read the end of an instance's console log, once."""

    uid: Uid = Field(description="Uid of the machine.")
    max_bytes: int = Field(description="At most so many bytes from the end.", ge=1, le=262144)


class CertificateOrder(Model):
    """What the agent shows other hosts, and how it knows them. Public; the key has never left the host."""

    certificate: str = Field(description="Certificate of the host for the key it asked for, PEM.", max_length=8192)
    authorities: str = Field(description="Certificates that other hosts' must be signed with, PEM.", max_length=32768)


class UploadOrder(Model):
    """Somebody may upload an image for a while."""

    image: Uid = Field(description="Uid of the Image; a Disk order of this namespace waits for it.")
    token_sha256: Sha256 = Field(description="SHA-256 of the token that will be shown.")
    expires_at: str = Field(description="When that ends (RFC 3339).", max_length=64)


class WorkOrderSpec(Model):
    """What the agent shall see to."""

    rules = (
        Rule(
            "(self.type == 'Instance') == has(self.instance) && (self.type == 'Disk') == has(self.disk)"
            " && (self.type == 'Snapshot') == has(self.snapshot)"
            " && (self.type == 'Pool') == has(self.pool) && (self.type == 'Console') == has(self.console)"
            " && (self.type == 'Certificate') == has(self.certificate) && (self.type == 'Upload') == has(self.upload)"
            " && (self.type == 'Segment') == has(self.segment) && (self.type == 'Gateway') == has(self.gateway)",
            "exactly the field named like spec.type must be set: instance, disk, snapshot, pool, console, certificate, upload,"
            " segment or gateway",
        ),
        Rule("self.term >= oldSelf.term", "a controller that is no longer the leader wrote this", field=".term"),
        Rule(
            "has(self.instance) && has(oldSelf.instance) ? self.instance.epoch >= oldSelf.instance.epoch : true",
            "epoch cannot go back",
            field=".instance.epoch",
        ),
    )

    type: WorkType = Field(description="What is asked for.", json_schema_extra=immutable("type"))
    for_: ObjectRef = Field(
        alias="for",
        description="The object of a tenant or operator that this is for.",
        json_schema_extra=immutable("for"),
    )
    term: int = Field(
        default=0, description="Term of the leader that wrote this; an older leader's order is refused.", ge=0
    )
    instance: InstanceOrder | None = Field(default=None, description="A machine on this host.")
    disk: DiskOrder | None = Field(default=None, description="Work on a volume or an image.")
    snapshot: SnapshotOrder | None = Field(default=None, description="Volumes as they are at one instant.")
    pool: PoolOrder | None = Field(default=None, description="A pool's presence on this host.")
    console: ConsoleOrder | None = Field(default=None, description="Read the end of an instance's console log, once.")
    certificate: CertificateOrder | None = Field(default=None, description="What the agent shows other hosts.")
    upload: UploadOrder | None = Field(default=None, description="Somebody may upload an image for a while.")
    segment: SegmentOrder | None = Field(default=None, description="A network's presence on this host.")
    gateway: GatewayOrder | None = Field(default=None, description="A router or load balancer on this host.")


class WorkState(StrEnum):
    """How far a work order is. The first six are an instance's, the others anybody's."""

    STARTING = "Starting"
    RUNNING = "Running"
    PAUSED = "Paused"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    BACK_OFF = "BackOff"
    PENDING = "Pending"
    WAITING = "Waiting"
    WORKING = "Working"
    READY = "Ready"
    FAILED = "Failed"
    REFUSED = "Refused"


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


class DroppedPeer(Model):
    """A host that the image was not copied from."""

    host: str = Field(description="Name of the host.", max_length=63)
    reason: str = Field(description="Why, in one word.", max_length=64)
    message: str = Field(default="", description="Why, in a sentence.", max_length=512)


class DiskFacts(Model):
    """What is so of a volume or an image."""

    progress: Progress | None = Field(default=None, description="How far the work is.")
    sha256: str | None = Field(default=None, description="SHA-256 of the download, as verified.")
    digest: str | None = Field(
        default=None, description="What an image's reference was resolved to by its registry.", max_length=71
    )
    format: str | None = Field(default=None, description="What it turned out to be.")
    virtual_size: int | None = Field(default=None, description="Size of the disk inside, in bytes.")
    size: int | None = Field(default=None, description="Bytes it takes.")
    content: ImageContent | None = Field(
        default=None, description="The file of an image in the pool, as other hosts may copy it."
    )
    copied_from: str | None = Field(default=None, description="The host an image was copied from.", max_length=63)
    dropped: tuple[DroppedPeer, ...] | None = Field(
        default=None,
        description="Hosts that an image could not be copied from.",
        max_length=8,
        json_schema_extra=list_map("host"),
    )
    pool: Uid | None = Field(
        default=None,
        description="Uid of the StoragePool that a volume is in whose order says that it is to be moved. Who moves it waits until nothing of it is left in the other one.",
    )
    reverted: Uid | None = Field(
        default=None,
        description="The last request to revert that was carried out, as the volume's record has it. Whoever asked waits for it: an agent that knows of no reverts is `Ready` as well.",
    )


class SnapshotSize(Model):
    """What one volume's part of a snapshot is."""

    snapshot: Uid = Field(description="Uid of the VolumeSnapshot.")
    virtual_size: int | None = Field(default=None, description="Size of the disk at that instant, in bytes.")
    size: int | None = Field(default=None, description="Bytes it takes.")


class SnapshotFacts(Model):
    """What is so of a snapshot."""

    taken_at: str | None = Field(default=None, description="The instant (RFC 3339).")
    indications: tuple[Indication, ...] = Field(
        default=(),
        description="How far its content can be trusted.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    items: tuple[SnapshotSize, ...] = Field(
        default=(), description="The parts, by volume.", max_length=16, json_schema_extra=list_map("snapshot")
    )


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


class ConsoleFacts(Model):
    """What was read of a console."""

    log: str | None = Field(default=None, description="The text; a guest decides what is in it.", max_length=1048576)


class WorkOrderStatus(Model):
    """What the agent reports. Written by the agent alone."""

    observed_generation: int | None = Field(default=None, description="The generation of the spec this answers.")
    state: WorkState | None = Field(default=None, description="How far it is.")
    reason: str | None = Field(default=None, description="Why, in one word.", max_length=128)
    message: str | None = Field(default=None, description="Why, in a sentence that says what to do.", max_length=4096)
    instance: InstanceFacts | None = Field(default=None, description="What is so of an instance.")
    disk: DiskFacts | None = Field(default=None, description="What is so of a volume or an image.")
    snapshot: SnapshotFacts | None = Field(default=None, description="What is so of a snapshot.")
    pool: PoolFacts | None = Field(default=None, description="What is so of a pool.")
    console: ConsoleFacts | None = Field(default=None, description="What was read of a console.")
    segment: SegmentFacts | None = Field(default=None, description="What is so of a network on this host.")
    gateway: GatewayFacts | None = Field(default=None, description="What is so of a gateway on this host.")


class WorkOrder(Resource):
    """Something a host's agent shall see to, and how far it is. Written by controllers, performed by the agent."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="WorkOrder",
        plural="workorders",
        short_names=("wo",),
        categories=("kumulus-admin",),
        selectable=(".spec.type",),
        columns=(
            Column("Type", ".spec.type"),
            Column("For", ".spec.for.name"),
            Column("State", ".status.state"),
            Column("Reason", ".status.reason"),
            Column("Namespace-For", ".spec.for.namespace", priority=1),
            Column("Message", ".status.message", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )

    spec: WorkOrderSpec = Field(description="What the agent shall see to.")
    status: WorkOrderStatus = Field(default_factory=WorkOrderStatus, description="What the agent reports.")


class UnmanagedDomain(Model):
    """A domain on the host that is not Kumulus' own. It is left alone."""

    uuid: str = Field(description="UUID of the domain.", max_length=36)
    name: str = Field(description="Its name, cut to 253 characters.", max_length=253)
    state: str = Field(description="running, paused, shut off, ...", max_length=32)
    cpus: int | None = Field(default=None, description="Virtual CPUs.")
    memory: int | None = Field(default=None, description="Memory in bytes.")


class TransferFacts(Model):
    """Where the agent serves images to other hosts, and the certificate it asks for."""

    address: HostAddress = Field(description="Address other hosts reach it at.")
    port: int = Field(description="Port there.", ge=1, le=65535)
    upload_port: int | None = Field(
        default=None, description="Port at which it takes uploads; empty when it takes none.", ge=1, le=65535
    )
    request: str = Field(
        description="Certificate signing request for a key that this host has made and keeps, PEM.", max_length=4096
    )


class FunctionFacts(Model):
    """A function of gateways that a driver has."""

    name: GatewayFunction = Field(description="Which one.")
    message: str | None = Field(
        default=None, description="Why this host cannot serve it, and what to do; empty: it can.", max_length=512
    )


class DriverFunctions(Model):
    """What a driver can make on a host besides networks."""

    driver: NetworkDriverName = Field(description="The driver.")
    functions: tuple[FunctionFacts, ...] = Field(
        default=(),
        description="The functions of gateways that it has. One that is not here it makes on no host.",
        max_length=8,
        json_schema_extra=list_map("name"),
    )


class NetworkFacts(Model):
    """What of networks a host can do."""

    drivers: tuple[NetworkDriverName, ...] = Field(
        default=(),
        description="What can make networks here.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    functions: tuple[DriverFunctions, ...] | None = Field(
        default=None,
        description="What its drivers can make besides; empty when the agent is too old to say.",
        max_length=8,
        json_schema_extra=list_map("driver"),
    )
    underlay: Address | None = Field(default=None, description="Address at which other hosts reach its tunnels.")
    message: str | None = Field(default=None, description="What it lacks, and what to do.", max_length=1024)


class HostReportSpec(Model):
    """Empty: a report is all status."""


class HostReportStatus(Model):
    """What the agent found."""

    capacity: Capacity = Field(default_factory=Capacity, description="What the host has.")
    cpu: CpuInfo = Field(default_factory=CpuInfo, description="Its processor.")
    versions: Versions = Field(default_factory=Versions, description="What software it runs.")
    addresses: tuple[str, ...] = Field(default=(), description="Its addresses.", max_length=32)
    machine_types: tuple[str, ...] = Field(default=(), description="Machine types its emulator offers.", max_length=64)
    unmanaged: tuple[UnmanagedDomain, ...] = Field(
        default=(),
        description="Domains that are not Kumulus' own; at most 64 are listed.",
        max_length=64,
        json_schema_extra=list_map("uuid"),
    )
    unmanaged_count: int = Field(default=0, description="How many there are.")
    hypervisor_ready: bool = Field(default=False, description="Whether the hypervisor answers.")
    hypervisor_message: str | None = Field(default=None, description="Why it does not.", max_length=1024)
    credentials_expire_at: str | None = Field(
        default=None, description="When the agent's token ends (RFC 3339), rounded down to 30 minutes."
    )
    transfer: TransferFacts | None = Field(
        default=None, description="How other hosts get images from it; empty when they cannot."
    )
    network: NetworkFacts | None = Field(default=None, description="What of networks it can do; empty: nothing.")


class HostReport(Resource):
    """What an agent found on its host. Written by the agent alone; the Host's status is made from it."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="HostReport",
        plural="hostreports",
        categories=("kumulus-admin",),
        columns=(
            Column("CPUs", ".status.capacity.cpus", "integer"),
            Column("Hypervisor", ".status.versions.hypervisor"),
            Column("Ready", ".status.hypervisorReady", "boolean"),
            Column("Unmanaged", ".status.unmanagedCount", "integer"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )

    spec: HostReportSpec = Field(default_factory=HostReportSpec, description="Empty.")
    status: HostReportStatus = Field(default_factory=HostReportStatus, description="What the agent found.")


def instance_order_name(vm_uid: str) -> str:
    """Name of the work order of a machine."""
    return f"instance-{vm_uid}"


def image_order_name(image_uid: str, pool_uid: str) -> str:
    """Name of the work order that keeps an image in a pool: one an image and pool on each host."""
    return f"image-{image_uid[:8]}-{image_uid[-12:]}-{pool_uid[:8]}-{pool_uid[-12:]}"


def pull_secret_name(image_uid: str, pool_uid: str) -> str:
    """Name of the Secret in a host's namespace with which an image is fetched into a pool."""
    return image_order_name(image_uid, pool_uid).replace("image-", "pull-", 1)


def volume_order_name(volume_uid: str) -> str:
    """Name of the work order that keeps a volume on a host."""
    return f"volume-{volume_uid}"


def luks_secret_name(volume_uid: str) -> str:
    """Name of the Secret in a host's namespace with the passphrase of a volume."""
    return f"luks-{volume_uid}"


def snapshot_order_name(snapshot_uid: str) -> str:
    """Name of the work order that keeps a snapshot: of a VolumeSnapshot or of a VirtualMachineSnapshot."""
    return f"snapshot-{snapshot_uid}"


def upload_order_name(upload_uid: str) -> str:
    """Name of the work order of an upload."""
    return f"upload-{upload_uid}"


WAITING_FOR_UPLOAD = "WaitingForUpload"
"""Reason of an image that nobody has uploaded yet."""

MEASURING = "Measuring"
"""Reason of an image that is ready in a pool, and of which the agent will say soon what other hosts can copy."""

CERTIFICATE_ORDER = "certificate"
"""Name of the work order that gives an agent its certificate."""


def transfer_name(host: str) -> str:
    """The name that the certificate of a host's agent is for. No name server knows it."""
    return f"{host}.hosts.kumulus.internal"


def console_order_name(request_uid: str) -> str:
    """Name of the work order that answers a console request."""
    return f"console-{request_uid}"


def segment_order_name(network_uid: str) -> str:
    """Name of the work order of a network's presence on a host."""
    return f"segment-{network_uid}"


def gateway_order_name(gateway_uid: str) -> str:
    """Name of the work order of a router or load balancer on a host."""
    return f"gateway-{gateway_uid}"


def pool_order_name(pool_uid: str) -> str:
    """Name of the work order of a pool's presence on a host."""
    return f"pool-{pool_uid}"


def pool_secret_name(pool_uid: str) -> str:
    """Name of the copy, in a host's namespace, of the Secret that a pool's parameters name."""
    return f"pool-{pool_uid}"
