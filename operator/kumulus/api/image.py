"""Images of storage.kumulus.io: where they come from, what is known of them, and uploads."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from kumulus.api.base import (
    AGE,
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
from kumulus.api.quantity import Bytes, DiskSize, MeasuredBytes, Memory
from kumulus.api.storage import GROUP
from kumulus.api.volumes import ObjectName, Progress

SecretName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    ),
]

Sha256 = Annotated[str, StringConstraints(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]


class HttpSource(Model):
    """An image on a web server."""

    rules = (
        Rule(
            "!has(self.secret) || self.url.startsWith('https://')",
            "a user name and a password are sent over TLS only: use an https URL",
            field=".url",
        ),
    )

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
    secret: SecretName | None = Field(
        default=None,
        description="Name of a Secret of type kubernetes.io/basic-auth in the image's namespace (kumulus-system for a ClusterImage) that has a user name and a password for that server. They are sent to no other one that it points to.",
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
    def secret(self) -> str | None:
        """Name of the Secret with the login to where it is, if there is one."""
        if self.oci is not None:
            return self.oci.secret
        return self.http.secret if self.http is not None else None

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
    PHASE,
    Column("Format", ".spec.format"),
    Column("Arrived", ".status.progress.bytes", priority=1),
    Column("Total", ".status.progress.total", priority=1),
    Column("Rate", ".status.progress.rate", priority=1),
    Column("Seconds-Left", ".status.progress.remainingSeconds", "integer", priority=1),
    Column("Virtual-Size", ".status.virtualSize"),
    reason_of(),
    AGE,
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
            PHASE,
            Column("Host", ".status.host", priority=1),
            Column("Expires", ".status.expiresAt"),
            AGE,
        ),
    )

    spec: ImageUploadSpec = Field(description="Which image, and how the one who uploads is known.")
    status: ImageUploadStatus = Field(default_factory=ImageUploadStatus, description="Where to upload.")
