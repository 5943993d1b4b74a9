"""A host's part in the exchange of images: its identity, its port, and what it asks others for."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import structlog

from kumulus.api.host import CertificateOrder, MigrationEndpoint, TransferFacts
from kumulus_agents.transfer import alive
from kumulus_agents.transfer.fetch import PeerFetcher
from kumulus_agents.transfer.identity import TransferIdentity
from kumulus_agents.transfer.listener import Listener
from kumulus_agents.transfer.server import Find, ImageServer
from kumulus_agents.transfer.settings import TransferSettings
from kumulus_agents.transfer.tunnel import End, Tunnel
from kumulus_agents.transfer.uploads import Uploads

log = structlog.get_logger(__name__)

CONNECTIONS = 64


def address_towards(server: str) -> str:
    """The own address from which that URL is reached. Sends nothing. Raises `OSError`."""
    parts = urlsplit(server)
    found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, target = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


class Transfer:
    """One host's. `open` before anything else; `close` at the end."""

    def __init__(self, host: str, settings: TransferSettings, server: str, *, also: str | None = None) -> None:
        """`server` is the API server's URL. `also` is an address at which other hosts reach this one too, at the same port: one that
        they can still ask when the network of the first is cut."""
        self._also = also
        self._second: Listener | None = None
        self._settings = settings
        self._api = server
        self._identity = TransferIdentity(host)
        self._listener: Listener | None = None
        self._public: Listener | None = None
        self._at: tuple[str, int] | None = None
        self.upload_port: int | None = None
        """Where uploads are taken; None: they are not."""
        self.uploads = Uploads(settings)
        self.fetcher = PeerFetcher(settings, lambda: self._identity.client)
        self.tunnel = Tunnel(lambda: self._identity.client)

    def facts(self) -> TransferFacts | None:
        """What others have to know; None while there is nothing to offer."""
        if self._at is None or self._identity.request is None:
            return None
        return TransferFacts(
            address=self._at[0],
            port=self._at[1],
            request=self._identity.request,
            upload_port=self.upload_port,
            tunnel=self.tunnel.port is not None,
        )

    def migration_facts(self) -> MigrationEndpoint | None:
        """Where guests come from other hosts; None while none can."""
        if self._at is None or self.tunnel.port is None or self._identity.server is None:
            return None
        return MigrationEndpoint(address=self._at[0], port=self.tunnel.port, disks=True)

    async def unproved(self, end: End) -> str | None:
        """See `alive.unproved`."""
        return await alive.unproved(self._identity.client, end)

    @property
    def certified(self) -> bool:
        """Whether it has a certificate to show."""
        return self._identity.public is not None

    @property
    def upload_idle_seconds(self) -> float:
        """What has arrived of an upload is removed when nothing is added for so long."""
        return self._settings.upload_idle_seconds

    async def open(self, find: Find) -> None:
        """Make a key and take the port. Does not work: nothing is exchanged, and the log says why."""
        try:
            address = str(self._settings.address or address_towards(self._api))
            await self._identity.prepare()
            listener = Listener(ImageServer(self._settings, find).answer, connections=CONNECTIONS)
            self._at = (address, listener.open(address, self._settings.port))
            self._listener = listener
            self._open_second(find, *self._at)
            if self._settings.upload_port is not None:
                public = Listener(self.uploads.answer, connections=CONNECTIONS)
                self.upload_port = public.open(address, self._settings.upload_port)
                self._public = public
            if self._settings.migration_port is not None:
                self.tunnel.listen(address, self._settings.migration_port)
        except (OSError, TimeoutError, ValueError) as error:
            log.warning("no images are exchanged with other hosts", error=str(error), port=self._settings.port)

    def _open_second(self, find: Find, first: str, port: int) -> None:
        """Listen at the other address too, if there is one. It cannot be: then not."""
        if self._also in (None, first):
            return
        second = Listener(ImageServer(self._settings, find).answer, connections=CONNECTIONS)
        try:
            second.open(str(self._also), port)
        except OSError as error:
            log.warning("other hosts reach this one at one address only", error=str(error), address=self._also)
        else:
            self._second = second

    async def adopt(self, given: CertificateOrder) -> bool:
        """Use a certificate; False when it is for another key than this process has."""
        if self._listener is None or not self._identity.adopt(given):
            return False
        assert self._identity.server is not None and self._identity.public is not None
        await self._listener.use(self._identity.server)
        if self._second is not None:
            await self._second.use(self._identity.server)
        if self._public is not None:
            await self._public.use(self._identity.public)
        await self.tunnel.use(self._identity.server)
        return True

    async def close(self) -> None:
        """Give up the port."""
        if self._listener is not None:
            await self._listener.close()
        if self._second is not None:
            await self._second.close()
        if self._public is not None:
            await self._public.close()
        await self.tunnel.close()
        await self.uploads.close()
        self._listener = self._second = self._public = self._at = self.upload_port = None
