"""The part of work orders that is about images: where their bytes come from, who has them, and uploads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.base import Model, Rule, list_map
from kumulus.api.image import Compression, ImageContent, ImageFormat, OciLayout, Sha256
from kumulus.api.segments import Uid


class ImageRef(Model):
    """An image in a pool: which one, and what it must be."""

    uid: Uid = Field(description="Uid of the Image or ClusterImage; names the file.")
    sha256: Sha256 | None = Field(
        default=None, description="What the bytes of its source add up to; empty when the source says so itself."
    )
    format: ImageFormat = Field(description="What it must turn out to be.")


LoginSecret = Annotated[
    str | None,
    Field(
        description="Name of the Secret of this namespace with the keys username and password. It is there until the image is.",
        max_length=253,
    ),
]
LoginNumber = Annotated[int, Field(description="Counts up when that Secret has come late, or changed.", ge=0)]


class HttpFetch(Model):
    """Fetch over http or https."""

    url: str = Field(description="Where it is.", max_length=2048)
    ca_bundle: str | None = Field(default=None, description="PEM certificates to trust for it.", max_length=65536)
    compression: Compression = Field(default=Compression.NONE, description="How what is there is packed.")
    secret: LoginSecret = None
    login: LoginNumber = 0


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
    secret: LoginSecret = None
    login: LoginNumber = 0


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

    @property
    def asked(self) -> HttpFetch | OciFetch | None:
        """The server that is asked for its bytes, if one is."""
        return self.http if self.http is not None else self.oci


class UploadOrder(Model):
    """Somebody may upload an image for a while."""

    image: Uid = Field(description="Uid of the Image; a Disk order of this namespace waits for it.")
    token_sha256: Sha256 = Field(description="SHA-256 of the token that will be shown.")
    expires_at: str = Field(description="When that ends (RFC 3339).", max_length=64)


class DroppedPeer(Model):
    """A host that the image was not copied from."""

    host: str = Field(description="Name of the host.", max_length=63)
    reason: str = Field(description="Why, in one word.", max_length=64)
    message: str = Field(default="", description="Why, in a sentence.", max_length=512)


WAITING_FOR_UPLOAD = "WaitingForUpload"
"""Reason of an image that nobody has uploaded yet."""

MEASURING = "Measuring"
"""Reason of an image that is ready in a pool, and of which the agent will say soon what other hosts can copy."""
