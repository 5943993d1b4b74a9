"""Hosts that exchange images over real TLS, each with a pool that is a directory; and ones that only say they are hosts."""

from __future__ import annotations

import hashlib
import os
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Any

from kumulus.api.host import CertificateOrder
from kumulus.api.image import ImageContent, ImageFormat
from kumulus.api.image_order import DroppedPeer, ImageCopy, ImagePeer
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.transfer import keys
from kumulus_agents.transfer.settings import TransferSettings
from kumulus_agents.transfer.transfer import Transfer
from kumulus_controllers.fabric.authority import Authority
from tests.patience import PATIENCE
from tests.unit.storage.server import Server, serving

UID = str(uuid.uuid5(uuid.NAMESPACE_DNS, "image"))
DATA = os.urandom(16 << 20)
"""More than the buffers of a connection take when nobody reads."""
SHA256 = hashlib.sha256(DATA).hexdigest()
CONTENT = ImageContent(sha256=SHA256, size=len(DATA), format=ImageFormat.QCOW2)


def now() -> datetime:
    return datetime.now(UTC)


def settings(**changes: Any) -> TransferSettings:
    """Quick to give up, on loopback."""
    quick = {
        "address": ip_address("127.0.0.1"),
        "port": 0,
        "upload_port": None,
        "connect_timeout": 5.0 * PATIENCE,
        "idle_timeout": 5.0 * PATIENCE,
    }
    return TransferSettings(**{**quick, **changes})


@dataclass
class Peer:
    """A host."""

    name: str
    transfer: Transfer
    images: dict[tuple[str, str], Path] = field(default_factory=dict)

    async def find(self, uid: str, sha256: str) -> int | None:
        path = self.images.get((uid, sha256))
        return os.open(path, os.O_RDONLY) if path is not None else None

    def peer(self) -> ImagePeer:
        facts = self.transfer.facts()
        assert facts is not None
        return ImagePeer(host=self.name, address=facts.address, port=facts.port)

    async def certified(self, authority: Authority, at: datetime | None = None, name: str | None = None) -> bool:
        """Take a certificate, as a controller signs it."""
        facts = self.transfer.facts()
        assert facts is not None
        signed = authority.sign(facts.request, name or self.name, at or now())
        return await self.transfer.adopt(CertificateOrder(certificate=signed, authorities=authority.pem()))

    async def fetch(self, directory: Path, *peers: ImagePeer, content: ImageContent = CONTENT) -> Fetched:
        """Fetch the image into a part in that directory."""
        with Directory.trusted(PurePosixPath(directory)) as opened:
            part = await Part.open(opened, f"{UID}.copy", Claims("pool"))
            try:
                had = part.size
                copy = ImageCopy(content=content, peers=peers)
                host, dropped = await self.transfer.fetcher.fetch(UID, copy, part, Pace(lambda _: None))
            finally:
                part.close()
        return Fetched(host, dropped, had, (directory / f"{UID}.copy").read_bytes())


@dataclass
class Fetched:
    host: str
    dropped: tuple[DroppedPeer, ...]
    had: int
    data: bytes

    @property
    def reasons(self) -> dict[str, str]:
        return {peer.host: peer.reason for peer in self.dropped}


@asynccontextmanager
async def host(
    name: str, authority: Authority | None, directory: Path | None = None, **changes: Any
) -> AsyncIterator[Peer]:
    """A host that is open; with a directory it has the image."""
    peer = Peer(name, Transfer(name, settings(**changes), "https://127.0.0.1:6443"))
    if directory is not None:
        path = directory / f"{name}.qcow2"
        path.write_bytes(DATA)
        peer.images[UID, SHA256] = path
    identity = peer.transfer._identity

    async def prepare() -> None:
        given = keys.made(name)  # what its program prints, without the half second that a program takes
        identity._key, identity.request = given["key"], given["request"]

    identity.prepare = prepare  # type: ignore[method-assign]
    await peer.transfer.open(peer.find)
    try:
        if authority is not None:
            assert await peer.certified(authority)
        yield peer
    finally:
        await peer.transfer.close()


def context(authority: Authority, name: str, directory: Path) -> ssl.SSLContext:
    """What somebody with a good certificate in that name answers with, and does not look who asks."""
    given = keys.made("whoever")
    file = directory / f"{name}.pem"
    file.write_text(given["key"] + authority.sign(given["request"], name, now()))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(file)
    return made


@asynccontextmanager
async def liar(name: str, authority: Authority, directory: Path) -> AsyncIterator[tuple[Server, ImagePeer]]:
    """A host of the installation that somebody has taken over: it answers what the test says."""
    async with serving(tls=context(authority, name, directory)) as server:
        yield server, ImagePeer(host=name, address="127.0.0.1", port=server.port)


PATH = f"/v1/images/{UID}/{SHA256}"
