"""The bridge of tunnels on this host: how networks, and gateways of several hosts, reach other hosts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kumulus.api.gateways import GatewayOrder
from kumulus.api.segments import SegmentOrder
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.links import Link
from kumulus_agents.network.ovn import names, transport
from kumulus_agents.network.ovn.databases import Databases
from kumulus_agents.network.ovn.logical import FORCE_SECONDS, LOOK_SECONDS
from kumulus_agents.network.ovn.openflow import OpenFlow
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.ovn.uplinks import Uplinked, way
from kumulus_agents.network.protocol import NetworkError

if TYPE_CHECKING:
    from kumulus_agents.network.ovn.database import Interface


class Tunnels:
    """Its verbs are called one at a time."""

    def __init__(self, settings: OvnSettings, databases: Databases, uplinks: Uplinked) -> None:
        self._settings = settings
        self._databases = databases
        self._openflow = OpenFlow(settings)
        self._uplinks = uplinks
        self._underlay = str(settings.underlay) if settings.underlay else None
        self._loaded: dict[str, Sequence[str]] = {}
        """By network or gateway, as they were last loaded."""

    def forget(self) -> None:
        """The bridge may be another one: what was loaded is in question."""
        self._loaded.clear()

    async def carry(self, order: SegmentOrder, devices_there: Mapping[str, Link]) -> list[str]:
        """Have the network, which is in force, connected and forwarded; what was not so. Raises `NetworkError`."""
        wrong: list[str] = []
        if order.uplink is None and not (order.vni and self._underlay):
            return wrong
        wrong += await self._uplinks.ensure(order, devices_there)
        here, there = names.anchor(order.uid)
        integration, bridge = self._settings.integration, self._settings.transport
        ids = {"iface-id": here}
        if await self._databases.plug(integration, here, type="patch", options={"peer": there}, external_ids=ids):
            wrong.append(f"{here} was not plugged into {integration}.")
        if await self._databases.plug(bridge, there, type="patch", options={"peer": here}):
            wrong.append(f"{there} was not plugged into {bridge}.")
        ends = await self._ends(order)
        if await self._load(order.uid, transport.flows(order, ends, self._underlay)):
            wrong.append(f"{bridge} did not forward for {names.switch(order.uid)}.")
        return wrong

    async def unplug(self, uid: str) -> None:
        """Have the network not connected any more, once it is out of force."""
        for port in names.anchor(uid):
            await asyncio.to_thread(self._databases.switch.remove_port, port)

    async def drop(self, uid: str, layout: Layout) -> None:
        """Have nothing of the network, which is out of force; `layout` is what there is without it. Raises `NetworkError`."""
        await self._load(uid, ())
        self._loaded.pop(uid, None)
        deadline = time.monotonic() + FORCE_SECONDS
        patch = names.patch(uid, self._settings.integration)
        while patch in await asyncio.to_thread(self._databases.switch.interfaces):
            if time.monotonic() > deadline:
                raise NetworkError(
                    f"ovn-controller of this host does not take {patch} away; look at the service ovn-host.",
                    reason="NotAnswering",
                )
            await asyncio.sleep(LOOK_SECONDS)
        await self._uplinks.tidy(layout)

    async def link(self, order: GatewayOrder) -> bool:
        """Have the gateway's cable, which is plugged in, linked to its other hosts; whether it was not so."""
        there = await asyncio.to_thread(self._databases.switch.interfaces)
        tunnel, end = there.get(names.TUNNEL), there.get(devices.link(order.uid))
        said: Sequence[str] = ()
        if tunnel and end and tunnel.number and end.number:
            said = transport.link(order, tunnel.number, end.number, self._underlay)
        return await self._load(order.uid, said)

    async def unlink(self, uid: str) -> None:
        """Have no link of the gateway."""
        await self._load(uid, ())
        self._loaded.pop(uid, None)

    async def adopt(self, layout: Layout) -> bool:
        """Have the bridge forward for all networks and gateways that are connected to it and for no others, in one step;
        whether it did not."""
        there = await asyncio.to_thread(self._databases.switch.interfaces)
        wanted: dict[str, Sequence[str]] = dict.fromkeys(layout.gateways, ())
        bridges = await asyncio.to_thread(self._databases.switch.bridges)
        tunnel = there.get(names.TUNNEL)
        number = tunnel.number if tunnel is not None and tunnel.number else 0
        for uid, network in layout.networks.items():
            end = there.get(names.patch(uid, self._settings.integration))
            if end and end.number and (number or network.order.uplink is not None):
                ends = transport.Ends(number, {uid: end.number}, _uplinks(network.order, bridges, there))
                wanted[uid] = transport.flows(network.order, ends, self._underlay)
        for uid, order in layout.gateways.items():
            if number and (end := there.get(devices.link(uid))) and end.number:
                wanted[uid] = transport.link(order, number, end.number, self._underlay)
        flows = [*transport.base(), *(flow for said in wanted.values() for flow in said)]
        same = await self._openflow.are(self._settings.transport, flows)
        if not same:
            await self._openflow.change(self._settings.transport, ["delete", *(f"add {flow}" for flow in flows)])
        self._loaded = wanted
        return not same

    async def _load(self, uid: str, said: Sequence[str]) -> bool:
        """Have these flows for the network or gateway, in one step; whether it had others."""
        if self._loaded.get(uid) == said:
            return False
        base = [] if self._loaded else [f"add {flow}" for flow in transport.base()]
        commands = [*base, *transport.replacing(uid, self._loaded.get(uid), said)]
        await self._openflow.change(self._settings.transport, commands)
        had = self._loaded.get(uid, ())
        self._loaded[uid] = said
        return bool(said or had)

    async def _ends(self, order: SegmentOrder) -> transport.Ends:
        """Ports of the bridge, with the network's among them. ovn-controller makes it when it knows the network."""
        deadline, switch = time.monotonic() + FORCE_SECONDS, self._databases.switch
        while True:
            there, bridges = await asyncio.to_thread(lambda: (switch.interfaces(), switch.bridges()))
            tunnel = there.get(names.TUNNEL)
            end = there.get(names.patch(order.uid, self._settings.integration))
            uplinks = _uplinks(order, bridges, there)
            reached = bool(uplinks) if order.uplink is not None else bool(tunnel and tunnel.number)
            if reached and end and end.number:
                number = tunnel.number if tunnel is not None and tunnel.number else 0
                return transport.Ends(number, {order.uid: end.number}, uplinks)
            if time.monotonic() > deadline:
                raise NetworkError(
                    "ovn-controller of this host does not connect the network to the bridge of tunnels; look at the"
                    " service ovn-host.",
                    reason="NotAnswering",
                )
            await asyncio.sleep(LOOK_SECONDS)


def _uplinks(order: SegmentOrder, bridges: frozenset[str], there: Mapping[str, Interface]) -> Mapping[str, int]:
    """The port of the bridge by which the network's uplink is reached, by the network's uid, once it is there."""
    if order.uplink is None:
        return {}
    end = there.get(names.crossing(way(order.uplink, bridges))[0])
    return {order.uid: end.number} if end is not None and end.number else {}
