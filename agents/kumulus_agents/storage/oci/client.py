"""Resolve a reference and fetch the blob that is the disk image: manifests, tokens and blobs by checked requests."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping

import aiohttp
from yarl import URL

from kumulus.api.image_order import ImageRef
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.fetch import Download, Fetcher, Only
from kumulus_agents.storage.oci import challenge, manifest
from kumulus_agents.storage.oci.manifest import Blob, Next, unfit
from kumulus_agents.storage.oci.reference import Reference, parse
from kumulus_agents.storage.origin import forbidden, parsed, trust
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import Login, RegistrySource, StorageError

_MANIFEST = 4 << 20
"""Bytes of a manifest; what registries take at most (distribution spec, Pushing Manifests)."""
_ANSWER = 64 << 10
"""Bytes of a token service's answer."""
_ACCEPT = {"Accept": ", ".join((*manifest.MANIFESTS, *manifest.INDEXES))}


async def bring(
    fetcher: Fetcher, source: RegistrySource, image: ImageRef, part: Part, pace: Pace, max_bytes: int
) -> tuple[str, str]:
    """Make the part the blob that has the disk image. Returns what the reference was resolved to, and how the image is packed.

    The manifest is verified against its digest, the blob against the manifest, and against the image's
    checksum if it has one. May be repeated: a part that is whole costs no second download.
    Raises `StorageError` like `Fetcher.fetch`, and SourceUnauthorized, ManifestRejected.
    """
    reference = parse(source.fetch.reference)
    base = parsed(f"https://{reference.registry}/v2/")
    trusted = await in_thread(trust, source.fetch.ca_bundle)
    session = _Session(fetcher, base, reference, trusted, source.login)
    pinned = source.fetch.digest or reference.digest
    body = await session.manifest(pinned or reference.tag, pinned)
    digest = pinned or _digest(body)
    found = manifest.read(body, source.fetch, image.format)
    if isinstance(found, Next):
        body = await session.manifest(found.digest, found.digest)
        found = manifest.read(body, source.fetch, image.format)
        if isinstance(found, Next):
            raise unfit("it is an index of indexes")
    blob: Blob = found
    sha256 = blob.digest.removeprefix("sha256:")
    if image.sha256 is not None and image.sha256 != sha256:
        raise StorageError(
            f"The SHA-256 of the registry's layer is {sha256}, not {image.sha256} as the image says."
            " Correct the image's checksum or its reference.",
            reason="ChecksumMismatch",
            retryable=False,
        )
    if blob.size > max_bytes:
        raise StorageError(
            f"The image is larger than the {max_bytes} bytes an import may have.",
            reason="ImageTooLarge",
            retryable=False,
        )
    await fetcher.download(
        Download(
            base / reference.repository / "blobs" / blob.digest,
            sha256,
            "the registry's manifest says. Push the image again.",
            trusted,
            blob.size,
            authorizer=session,
            version=blob.digest,
            secure=True,
        ),
        part,
        pace,
    )
    return digest, blob.packing


class _Session:
    """One import's dealings with a registry: what it sends along, and only to that registry."""

    def __init__(
        self, fetcher: Fetcher, base: URL, reference: Reference, trusted: ssl.SSLContext, login: Login | None
    ) -> None:
        self._fetcher = fetcher
        self._base = base
        self._reference = reference
        self._trusted = trusted
        self._login = login
        self._sent: str | None = None

    async def manifest(self, name: str, digest: str | None) -> bytes:
        """The manifest of that tag or digest. Raises `StorageError`."""
        url = self._base / self._reference.repository / "manifests" / name
        body = await self._fetcher.small(url, self._trusted, _MANIFEST, _ACCEPT, self)
        if digest is not None and _digest(body) != digest:
            raise StorageError(
                f"The registry's manifest has the digest {_digest(body)}, not {digest} as was asked for.",
                reason="ChecksumMismatch",
                retryable=False,
            )
        return body

    def headers(self, url: URL) -> Mapping[str, str]:
        """See `Authorizer.headers`."""
        return {"Authorization": self._sent} if self._sent is not None and self._ours(url) else {}

    async def challenged(self, url: URL, response: aiohttp.ClientResponse) -> bool:
        """See `Authorizer.challenged`. Name and password go to the registry or to the service it names, over TLS."""
        asked = challenge.read(response.headers.getall("WWW-Authenticate", []))
        if not self._ours(url) or asked is None:
            return False
        if isinstance(asked, challenge.Basic):
            if self._login is None or self._sent == self._login.basic:
                return False
            self._sent = self._login.basic
            return True
        realm = parsed(asked.realm)
        if realm.scheme != "https":
            raise forbidden("The registry's token service is not reached by https.")
        headers = {"Authorization": self._login.basic} if self._login is not None else {}
        body = await self._fetcher.small(
            challenge.ask(asked, realm, self._reference.repository), self._trusted, _ANSWER, {}, Only(realm, headers)
        )
        token = challenge.token(body)
        if token is None:
            raise StorageError(
                f"The token service {realm.host} of the registry gives no token.", reason="SourceUnauthorized"
            )
        self._sent = f"Bearer {token}"
        return True

    def _ours(self, url: URL) -> bool:
        return url.origin() == self._base.origin()


def _digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
