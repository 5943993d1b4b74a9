"""NATS JetStream: each event to a subject of its namespace and type, and an acknowledgement from the stream that has it.

The stream drops what has the same Nats-Msg-Id within its window. Servers that a server tells of are not connected to:
nobody has looked at their addresses.

Source: https://docs.nats.io/nats-concepts/jetstream, and the NATS binding of CloudEvents 1.0
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

import nats
from nats import errors as nats_errors
from nats.aio.client import Client, RawCredentials
from nats.js import JetStreamContext
from nats.js import errors as stream_errors

from kumulus.api.events import NatsTarget
from kumulus_services.events.envelope import CONTENT_TYPE, Event
from kumulus_services.events.guard import Guard
from kumulus_services.events.transitions import PREFIX
from kumulus_services.events.transport import NoStream, Rejected, Unavailable

PORT = 4222
_CREDENTIALS = "-----BEGIN NATS USER JWT-----"


def subject(target: NatsTarget, event: Event) -> str:
    """Where an event goes."""
    return f"{target.subject}.{event.namespace or '_'}.{event.type.removeprefix(PREFIX)}"


class TlsClient(Client):
    """Says nothing to a server in clear. What it is made from does when the server does not require TLS, whatever it is
    told: credentials would go to whoever stands in between."""

    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise nats_errors.SecureConnWantedError
        return super()._connect_command()


class JetStream:
    """The way to one server."""

    def __init__(self, target: NatsTarget, guard: Guard, *, credentials: str | None, timeout: float) -> None:
        self._target = target
        self._guard = guard
        self._credentials = credentials
        self._timeout = timeout
        self._client: Client | None = None
        self._stream: JetStreamContext | None = None

    async def open(self) -> None:
        """It is connected."""
        if self._client is not None and self._client.is_connected:
            return
        await self.close()
        parts, host, port = self._where()
        address = await self._address(host, port)
        secure = parts.scheme == "tls" or self._target.ca_bundle is not None
        client, given = TlsClient() if secure else Client(), self._credentials
        heard: list[Exception] = []

        async def hear(error: Exception) -> None:
            heard[:] = [error]

        try:
            # It waits for more than what it is told to when a server does not answer.
            async with asyncio.timeout(self._timeout):
                await client.connect(
                    servers=[f"nats://{address}:{port}"],
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=max(1, int(self._timeout)),
                    tls=ssl.create_default_context(cadata=self._target.ca_bundle) if secure else None,
                    tls_hostname=host if secure else None,
                    error_cb=hear,
                    name="kumulus-events",
                    token=given.strip() if given is not None and _CREDENTIALS not in given else None,
                    user_credentials=RawCredentials(given) if given is not None and _CREDENTIALS in given else None,
                )
        except (nats_errors.Error, OSError, TimeoutError, ValueError) as error:
            with suppress(nats_errors.Error, OSError, TimeoutError):
                await client.close()
            why = heard[-1] if heard else error
            raise Unavailable(f"{self._target.url}: {str(why) or 'no answer in time'}"[:500]) from error
        self._client, self._stream = client, client.jetstream(timeout=self._timeout)

    def _where(self) -> tuple[SplitResult, str, int]:
        """The URL, its host, its port. Raises `Unavailable`: servers know less of URLs than is needed to refuse all."""
        try:
            parts = urlsplit(self._target.url)
            host, port = parts.hostname, parts.port or PORT
        except ValueError as error:
            raise Unavailable(f"{self._target.url}: {error}"[:500]) from error
        if not host:
            raise Unavailable(f"{self._target.url}: it names no server"[:500])
        return parts, host, port

    async def _address(self, host: str, port: int) -> str:
        """The address that is connected to, looked at."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise Unavailable(f"{host}: {error}"[:500]) from error
        address = str(found[0][4][0])
        self._guard.check(address)
        return f"[{address}]" if ":" in address else address

    async def send(self, event: Event) -> None:
        """Return when the stream has it."""
        stream = self._stream
        if stream is None:
            raise Unavailable("the connection is closed")
        headers = {nats.js.api.Header.MSG_ID.value: event.id, "content-type": CONTENT_TYPE}
        try:
            await stream.publish(subject(self._target, event), event.body, timeout=self._timeout, headers=headers)
        except stream_errors.NoStreamResponseError as error:
            raise NoStream(
                f"no stream takes {subject(self._target, event)}; make one for {self._target.subject}.>"
            ) from error
        except (stream_errors.APIError, nats_errors.MaxPayloadError) as error:
            raise Rejected(f"{type(error).__name__}: {error}"[:500]) from error
        except (nats_errors.Error, OSError, TimeoutError) as error:
            await self.close()
            raise Unavailable(f"{type(error).__name__}: {error}"[:500]) from error

    async def close(self) -> None:
        """The connection is closed."""
        client, self._client, self._stream = self._client, None, None
        if client is not None:
            with suppress(nats_errors.Error, OSError, TimeoutError):
                await client.close()
