"""Whether another host's agent is there, asked over TLS in which both prove which host they are (ADR 39).

An answer proves that the agent lives. That none comes proves nothing: it may be the way that is cut, or the agent alone that is
gone.
"""

from __future__ import annotations

import ssl

import aiohttp

from kumulus.api.host import transfer_name
from kumulus.kube.connector import Connector
from kumulus_agents.transfer.tunnel import End

PATH = "/v1/alive"
SECONDS = 3.0
"""Within which it has to answer, TLS included."""


async def unproved(context: ssl.SSLContext | None, end: End, seconds: float = SECONDS) -> str | None:
    """Why nobody can say that the host's agent is there, in words for people; None: it has answered, and it was that host. What it
    answered does not matter: an older agent does not know the question. Takes about `seconds` at most."""
    if context is None:
        return "this host has no certificate yet to prove itself with"
    host = f"[{end.address}]" if ":" in end.address else end.address
    try:
        async with (
            aiohttp.ClientSession(
                connector=Connector(force_close=True, limit=1),
                timeout=aiohttp.ClientTimeout(total=seconds),
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity", "User-Agent": "kumulus-agent"},
            ) as session,
            session.get(
                f"https://{host}:{end.port}{PATH}",
                ssl=context,
                server_hostname=transfer_name(end.host),
                allow_redirects=False,
            ),
        ):
            return None
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError):
        return f"who answers at {end.address} port {end.port} did not prove to be host {end.host}"
    except TimeoutError:
        return f"nobody answers at {end.address} port {end.port} within {seconds:g} s"
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, ConnectionRefusedError):
            return f"{end.address} refuses connections at port {end.port}: the agent is not there, the host may be"
        return f"{end.address} port {end.port} cannot be reached"
    except (aiohttp.ClientError, OSError):
        return f"the connection to {end.address} port {end.port} failed"
