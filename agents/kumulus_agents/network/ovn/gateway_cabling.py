"""Cables of gateways in networks of the driver `ovn`: ports of logical switches, and a link over the bridge of tunnels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence

from kumulus.api.gateways import GatewayOrder
from kumulus_agents.network.linux import gateway_links
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.links import Link
from kumulus_agents.network.ovn.databases import Databases
from kumulus_agents.network.ovn.logical import FORCE_SECONDS, LOOK_SECONDS
from kumulus_agents.network.ovn.names import GATEWAY
from kumulus_agents.network.ovn.settings import Datapath, OvnSettings
from kumulus_agents.network.ovn.tunnels import Tunnels
from kumulus_agents.network.ovn.uplinks import Uplinked
from kumulus_agents.network.protocol import NetworkError


class Plugged:
    """See `linux.gateway.Cabling`."""

    def __init__(self, settings: OvnSettings, databases: Databases, tunnels: Tunnels, uplinked: Uplinked) -> None:
        self._settings = settings
        self._databases = databases
        self._tunnels = tunnels
        self._uplinked = uplinked

    @property
    def whole(self) -> bool:
        """See `Cabling.whole`. Open vSwitch without the kernel's part fills in none."""
        return self._databases.kind == Datapath.NETDEV.value

    async def masters(self, order: GatewayOrder, there: Mapping[str, Link]) -> Mapping[str, str | None]:
        """See `Cabling.masters`. An uplink can be a bridge of Open vSwitch too, or be on one of ours for VLANs of networks: the
        leg is a port of it."""
        wanted: dict[str, str | None] = {devices.link(order.uid): None}
        for leg in order.legs:
            if leg.uplink is None or await self._uplinked.switch(leg.uplink) is not None:
                wanted[gateway_links.end(order, leg)] = None
        return wanted

    async def prepare(self, order: GatewayOrder, there: Mapping[str, Link]) -> Sequence[str]:
        """See `Cabling.prepare`. Open vSwitch would hold on to devices that are gone."""
        for device in (devices.link(order.uid), *(gateway_links.end(order, leg) for leg in order.legs)):
            if device not in there:
                await asyncio.to_thread(self._databases.switch.remove_port, device)
        return ()

    async def connect(self, order: GatewayOrder, orders: Mapping[str, GatewayOrder]) -> Sequence[str]:
        """See `Cabling.connect`."""
        integration = self._settings.integration
        wanted: dict[str, tuple[str, int | None, dict[str, str]]] = {
            devices.link(order.uid): (self._settings.transport, None, {})
        }
        legs: set[str] = set()
        for leg in order.legs:
            device = gateway_links.end(order, leg)
            if leg.uplink is None:
                wanted[device] = integration, None, {"iface-id": device}
                legs.add(device)
            elif (bridge := await self._uplinked.switch(leg.uplink)) is not None:
                wanted[device] = bridge, leg.uplink.vlan, {}
        wrong = []
        for device, (bridge, tag, ids) in wanted.items():
            if await self._databases.plug(bridge, device, tag=tag, external_ids={**ids, GATEWAY: order.uid}):
                wrong.append(f"{device} was not plugged into {bridge}.")
        await self._remove(order.uid, but=wanted.keys())
        if await self._tunnels.link(order):
            wrong.append(f"{self._settings.transport} did not link the gateway's hosts.")
        await self._installed(legs)
        return wrong

    async def disconnect(self, uid: str) -> None:
        """See `Cabling.disconnect`."""
        await self._tunnels.unlink(uid)
        await self._remove(uid)

    async def _remove(self, uid: str, *, but: Collection[str] = ()) -> None:
        """Have no port that is a cable of the gateway, but for these."""
        switch = self._databases.switch
        for name, port in (await asyncio.to_thread(switch.interfaces)).items():
            if port.gateway == uid and name not in but:
                await asyncio.to_thread(switch.remove_port, name)

    async def _installed(self, ports: Collection[str]) -> None:
        """Return when OVN passes what these ports send: what says where addresses are, on becoming active, must not be lost.
        Raises `NetworkError`."""
        deadline = time.monotonic() + FORCE_SECONDS
        while True:
            there = await asyncio.to_thread(self._databases.switch.interfaces)
            if all(name in there and there[name].installed for name in ports):
                return
            if time.monotonic() > deadline:
                raise NetworkError(
                    "ovn-controller of this host does not connect the gateway; look at the service ovn-host.",
                    reason="NotAnswering",
                )
            await asyncio.sleep(LOOK_SECONDS)
