"""Which addresses sinks may reach. Asked for the very address that is connected to: a name may mean another one by then."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp.client_proto import ResponseHandler

from kumulus.kube.connector import Connector
from kumulus_services.events.transport import AddressRefused

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Guard:
    """What one sink may reach."""

    everything: bool
    """It is the operator's."""
    allowed: Sequence[Network] = ()
    denied: Sequence[Network] = ()

    def check(self, address: str) -> None:
        """Return when it may be reached. Raises `AddressRefused`."""
        if self.everything:
            return
        inner = _inner(ipaddress.ip_address(address.partition("%")[0]))
        if any(inner in network for network in self.allowed):
            return
        if not inner.is_global or inner.is_multicast or any(inner in network for network in self.denied):
            raise AddressRefused(f"{inner} is not a public address, and is not allowed")


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class GuardedConnector(Connector):
    """Connects only to what the guard lets through."""

    def __init__(self, guard: Guard, **options: Any) -> None:
        super().__init__(**options)
        self._guard = guard

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: list[Any], **more: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        self._guard.check(addr_infos[0][4][0])
        return await super()._wrap_create_connection(*args, addr_infos=addr_infos, **more)
