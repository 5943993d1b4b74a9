"""Who this host is to other hosts: a key that lives and dies with the agent's process, and the certificate it is given.

The key is never written to a disk, logged or reported. Without a certificate there is no exchange; the agent does
everything else all the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from asyncio.subprocess import DEVNULL, PIPE

from kumulus.api.host import CertificateOrder, transfer_name

KEY_SECONDS = 60.0


class TransferIdentity:
    """One host's."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.request: str | None = None
        """What the certificate is asked for with, PEM; None before `prepare`."""
        self.client: ssl.SSLContext | None = None
        """To ask other hosts with; None before there is a certificate."""
        self.server: ssl.SSLContext | None = None
        """To answer other hosts with, and nobody else; None before there is a certificate."""
        self.public: ssl.SSLContext | None = None
        """To answer people with, who show no certificate; None before there is one of ours."""
        self._key = ""

    async def prepare(self) -> None:
        """Make a key. Raises `OSError` when that does not work."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "kumulus_agents.transfer.keys", self.host),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
        )
        try:
            async with asyncio.timeout(KEY_SECONDS):
                output, _ = await process.communicate()
        except BaseException:
            if process.returncode is None:
                process.kill()
                await process.wait()
            raise
        if process.returncode:
            raise OSError(f"no key could be made: its program ended with status {process.returncode}")
        made = json.loads(output)
        self._key, self.request = made["key"], made["request"]

    def adopt(self, given: CertificateOrder) -> bool:
        """Use that certificate from now on; False, and nothing changes, when it is for another key than ours."""
        try:
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            public = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.verify_mode = ssl.CERT_REQUIRED
            server.num_tickets = 0  # a session resumed would outlive its certificate
            for context in (client, server, public):
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.load_verify_locations(cadata=given.authorities)
                self._show(context, given.certificate)
        except (ssl.SSLError, ValueError):
            return False
        self.client, self.server, self.public = client, server, public
        return True

    def _show(self, context: ssl.SSLContext, certificate: str) -> None:
        """Have the context prove itself with certificate and key, which `ssl` takes from files only."""
        fd = os.memfd_create("kumulus", os.MFD_CLOEXEC)
        try:
            os.write(fd, f"{certificate}\n{self._key}".encode())
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


def peer_of(certificate: object) -> str | None:
    """The host that a verified certificate, as `ssl` gives it, is of."""
    names = certificate.get("subjectAltName", ()) if isinstance(certificate, dict) else ()
    suffix = transfer_name("")
    for kind, name in names:
        if kind == "DNS" and name.endswith(suffix) and name != suffix:
            return str(name.removesuffix(suffix))
    return None
