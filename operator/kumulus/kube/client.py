"""A thin asynchronous client: objects in and out as the API's JSON, with typed errors.

Connection, TLS and kubeconfig handling are `kubernetes.aio`'s. Objects are plain dicts here; who
wants them typed asks the kind's model. Nothing is retried here: callers are level-triggered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client as kube_client
from kubernetes.aio import config as kube_config

from kumulus.api.base import Kind
from kumulus.kube import errors
from kumulus.kube.connector import Connector

Raw = dict[str, Any]
"""An object as the API server gives it."""

PAGE = 500
REQUEST_TIMEOUT = 30.0
WATCH_SECONDS = 300
"""How long a watch lasts. Also for so long somebody goes on to see what he may see no more."""
WATCH_SILENCE = 70.0
"""A watch that has said something and then nothing, not even a bookmark, for so long is taken for dead. Bookmarks come
every minute, but of a kind of which nothing has changed since the API server began none ever comes: one that has said
nothing yet may have nothing to say until its time is up (`Cacher.dispatchEvents` of the API server)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]*")
"""What a segment of a path may be. Names come from tenants too (of a Secret, say), and `../../other/secrets/x` is
a path into another namespace."""

TokenSource = Callable[[], str]
WriteListener = Callable[[str, Kind, float], None]
"""Called with verb, kind and seconds after each write."""
WriteGuard = Callable[[], bool]
"""Whether writing is still allowed; asked before each write."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Raw


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for `url`, as curl and kubectl understand it; None for none."""
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


class _Rest(kube_client.rest.RESTClientObject):  # type: ignore[misc]
    """The library's connections, through our connector."""

    def _create_connector(self) -> aiohttp.TCPConnector:
        return Connector(limit=self.maxsize, ssl=self.ssl_context)


def _selectors(fields: str | None, labels: str | None) -> dict[str, str]:
    """The part of a query that says which objects are meant."""
    query = {"fieldSelector": fields, "labelSelector": labels}
    return {name: value for name, value in query.items() if value}


async def _lines(content: aiohttp.StreamReader, first: float, silence: float) -> AsyncIterator[bytes]:
    """The lines of a stream, however long: aiohttp's own splitting gives up at 512 KiB, and an object may have 1.5 MiB.
    Raises TimeoutError when nothing comes within `first` seconds, or within `silence` after a line."""
    rest, patience = bytearray(), first
    while True:
        async with asyncio.timeout(patience):
            chunk = await content.readany()
        if not chunk:
            break
        rest += chunk
        if b"\n" in chunk:
            patience = silence
            *whole, last = rest.split(b"\n")
            rest = bytearray(last)
            for line in whole:
                if line.strip():
                    yield bytes(line)
    if rest.strip():
        yield bytes(rest)


class KubeClient:
    """One API server, one identity."""

    def __init__(
        self,
        configuration: kube_client.Configuration,
        *,
        user_agent: str,
        token: TokenSource | None = None,
        on_write: WriteListener | None = None,
        may_write: WriteGuard | None = None,
        pool_size: int = 100,
    ) -> None:
        configuration.connection_pool_maxsize = pool_size
        # None, and neither False nor 0: those are counts to the library, which then retries a 5xx for ever.
        configuration.retries = None
        # Asked once for a proxy here, the environment is not asked again at each request, which takes two threads a time.
        configuration.proxy = configuration.proxy or _proxy_for(str(configuration.host))
        configuration.client_session_kwargs = {"trust_env": False}
        self._configuration = configuration
        self._rest = _Rest(configuration)
        self._user_agent = user_agent
        self._token = token
        self._on_write = on_write
        self._may_write = may_write

    @classmethod
    async def from_kubeconfig(
        cls,
        path: Path | None = None,
        *,
        user_agent: str,
        on_write: WriteListener | None = None,
        may_write: WriteGuard | None = None,
        pool_size: int = 100,
    ) -> KubeClient:
        """Connect as kubectl would: the given kubeconfig, else $KUBECONFIG, else the pod's own service account.

        While `may_write` says no, writes raise `errors.NotLeading` before they are sent. Raises `errors.NoCluster`.
        """
        configuration = kube_client.Configuration()
        try:
            await kube_config.load_kube_config(
                config_file=str(path) if path else None, client_configuration=configuration
            )
        except kube_config.ConfigException as error:
            if path is not None:
                raise errors.NoCluster(f"{path}: {error}") from error
            try:
                kube_config.load_incluster_config(client_configuration=configuration)
            except kube_config.ConfigException:
                raise errors.NoCluster(f"{error} Set $KUBECONFIG, or name one by --kubeconfig.") from error
        return cls(configuration, user_agent=user_agent, on_write=on_write, may_write=may_write, pool_size=pool_size)

    @classmethod
    def with_token(
        cls, server: str, ca_file: Path, token: TokenSource, *, user_agent: str, on_write: WriteListener | None = None
    ) -> KubeClient:
        """Connect to `server` (an https URL), trusting the CA of that file, with a token that is asked for at each request."""
        configuration = kube_client.Configuration()
        configuration.host = server
        configuration.ssl_ca_cert = str(ca_file)
        return cls(configuration, user_agent=user_agent, token=token, on_write=on_write, pool_size=20)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._configuration.host)

    async def close(self) -> None:
        """Close all connections."""
        await self._rest.close()

    async def _headers(self, content_type: str | None = None) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": self._user_agent}
        if content_type:
            headers["Content-Type"] = content_type
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token()}"
        else:
            for auth in (await self._configuration.auth_settings()).values():
                if auth["in"] == "header" and auth["value"]:
                    headers[auth["key"]] = auth["value"]
        return headers

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout: float | None = REQUEST_TIMEOUT,
    ) -> aiohttp.ClientResponse:
        url = f"{self._configuration.host}{path}"
        if query:
            url += "?" + urlencode(query)
        try:
            response = await self._rest.request(
                method,
                url,
                headers=await self._headers(content_type if body is not None else None),
                body=body,
                _request_timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout),
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.Unreachable(f"the API server does not answer: {type(error).__name__}: {error}") from error
        answer: aiohttp.ClientResponse = response.response
        return answer

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Raw:
        """One request, its JSON answer. Raises `errors.KubeError`."""
        response = await self._send(method, path, query=query, body=body, content_type=content_type)
        try:
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.Unreachable(f"the API server's answer broke off: {error}") from error
        finally:
            response.release()
        if response.status >= 400:
            raise errors.from_response(response.status, data)
        try:
            parsed: Raw = json.loads(data) if data else {}
        except ValueError as error:
            raise errors.Unreachable(f"what answers at {self.server} is no API server: {data[:80]!r}") from error
        return parsed

    @staticmethod
    def _path(kind: Kind, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        for part in (namespace, name, subresource):
            if part is not None and _NAME.fullmatch(part) is None:
                raise errors.NotFound(404, "NotFound", f"{kind.plural}: {part[:80]!r} cannot be a name")
        return kind.path(namespace, name, subresource)

    async def _write(
        self, verb: str, kind: Kind, method: str, path: str, *, body: object, content_type: str = "application/json"
    ) -> Raw:
        if self._may_write is not None and not self._may_write():
            raise errors.NotLeading(f"{verb} of a {kind.kind} not sent: this process does not lead any more")
        started = asyncio.get_running_loop().time()
        try:
            return await self.request(method, path, body=body, content_type=content_type)
        finally:
            if self._on_write is not None:
                self._on_write(verb, kind, asyncio.get_running_loop().time() - started)

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Raw:
        """The object, live. Raises `errors.NotFound`."""
        return await self.request("GET", self._path(kind, namespace, name))

    async def find(self, kind: Kind, name: str, namespace: str | None = None) -> Raw | None:
        """The object, live, or None."""
        try:
            return await self.get(kind, name, namespace)
        except errors.NotFound:
            return None

    async def list_pages(
        self, kind: Kind, namespace: str | None = None, *, fields: str | None = None, labels: str | None = None
    ) -> AsyncIterator[tuple[list[Raw], str]]:
        """All objects in pages of 500, each with the resource version of the whole list; `fields` is a field selector,
        `labels` a label selector."""
        query = {"limit": str(PAGE), **_selectors(fields, labels)}
        while True:
            answer = await self.request("GET", self._path(kind, namespace), query=query)
            metadata = answer["metadata"]
            yield answer["items"], metadata["resourceVersion"]
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        since: str,
        fields: str | None = None,
        labels: str | None = None,
    ) -> AsyncIterator[WatchEvent]:
        """Changes after the resource version `since`, bookmarks included, until the server ends the watch, five minutes later
        or a little earlier. An object that comes to fit the selectors, or fits them no more, is one that is ADDED or
        DELETED.

        Raises `errors.Gone` when `since` is too old and `errors.Unreachable` when the stream breaks or falls silent.
        """
        # Spread, so that a thousand agents do not begin anew together.
        seconds = random.randint(WATCH_SECONDS * 4 // 5, WATCH_SECONDS)  # noqa: S311
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": since,
            "timeoutSeconds": str(seconds),
            **_selectors(fields, labels),
        }
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                response = await self._send("GET", self._path(kind, namespace), query=query, timeout=None)
        except TimeoutError as error:
            raise errors.Unreachable(f"a watch on {kind.plural} is not begun: no answer") from error
        try:
            if response.status >= 400:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    raise errors.from_response(response.status, await response.read())
            async for line in _lines(response.content, seconds + WATCH_SILENCE, WATCH_SILENCE):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise errors.from_response(int(status.get("code") or 500), json.dumps(status).encode())
                yield WatchEvent(event["type"], event["object"])
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise errors.Unreachable(f"a watch on {kind.plural} broke off: {type(error).__name__}: {error}") from error
        finally:
            response.close()

    async def create(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Raw:
        """Create it. Raises `errors.AlreadyExists`."""
        full = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return await self._write("create", kind, "POST", self._path(kind, namespace), body=full)

    async def create_sub(
        self, kind: Kind, name: str, subresource: str, body: Mapping[str, Any], namespace: str | None = None
    ) -> Raw:
        """Create a subresource of an object, such as a token of a ServiceAccount."""
        return await self._write("create", kind, "POST", self._path(kind, namespace, name, subresource), body=body)

    async def replace(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Raw:
        """Replace the whole object; its `metadata.resourceVersion` must be current, else `errors.Conflict`."""
        full = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return await self._write(
            "update", kind, "PUT", self._path(kind, namespace, body["metadata"]["name"]), body=full
        )

    async def patch(
        self,
        kind: Kind,
        name: str,
        patch: Mapping[str, Any],
        namespace: str | None = None,
        *,
        subresource: str | None = None,
    ) -> Raw:
        """Merge-patch (RFC 7386) the object or a subresource. With `metadata.resourceVersion` in the patch it holds
        only if nobody changed the object since, else `errors.Conflict`."""
        return await self._write(
            "patch",
            kind,
            "PATCH",
            self._path(kind, namespace, name, subresource),
            body=patch,
            content_type="application/merge-patch+json",
        )

    async def delete(
        self, kind: Kind, name: str, namespace: str | None = None, *, uid: str | None = None, version: str | None = None
    ) -> Raw | None:
        """Ask for its deletion; None when it is gone already. With `uid`, only that very object, and with `version` only as it was
        at that version (else `errors.Conflict`)."""
        body: Raw = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if wanted := {key: value for key, value in (("uid", uid), ("resourceVersion", version)) if value is not None}:
            body["preconditions"] = wanted
        with contextlib.suppress(errors.NotFound):
            return await self._write("delete", kind, "DELETE", self._path(kind, namespace, name), body=body)
        return None
