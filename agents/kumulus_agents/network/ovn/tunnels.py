"""The bridge of tunnels on this host: how networks, and gateways of several hosts, reach other hosts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from kumulus.api.gateways import GatewayOrder
from kumulus.api.segments import SegmentOrder
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.ovn import names, transport
from kumulus_agents.network.ovn.databases import Databases
from kumulus_agents.network.ovn.logical import FORCE_SECONDS, LOOK_SECONDS
from kumulus_agents.network.ovn.openflow import OpenFlow
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.protocol import NetworkError


class Tunnels:
    """Its verbs are called one at a time."""

    def __init__(self, settings: OvnSettings, databases: Databases) -> None:
        self._settings = settings
        self._databases = databases
        self._openflow = OpenFlow(settings)
        self._underlay = str(settings.underlay) if settings.underlay else None
        self._loaded: dict[str, Sequence[str]] = {}
        """By network or gateway, as they were last loaded."""

    def forget(self) -> None:
        """The bridge may be another one: what was loaded is in question."""
        self._loaded.clear()

    async def carry(self, order: SegmentOrder) -> list[str]:
        """Have the network, which is in force, connected and forwarded; what was not so. Raises `NetworkError`."""
        wrong: list[str] = []
        if not (order.vni and self._underlay):
            return wrong
        here, there = names.anchor(order.uid)
        integration, bridge = self._settings.integration, self._settings.transport
        ids = {"iface-id": here}
        if await self._databases.plug(integration, here, type="patch", options={"peer": there}, external_ids=ids):
            wrong.append(f"{here} was not plugged into {integration}.")
        if await self._databases.plug(bridge, there, type="patch", options={"peer": here}):
            wrong.append(f"{there} was not plugged into {bridge}.")
        ends = await self._ends(order.uid)
        if await self._load(order.uid, transport.flows(order, ends, self._underlay)):
            wrong.append(f"{bridge} did not forward for {names.switch(order.uid)}.")
        return wrong

    async def unplug(self, uid: str) -> None:
        """Have the network not connected any more, once it is out of force."""
        for port in names.anchor(uid):
            await asyncio.to_thread(self._databases.switch.remove_port, port)

    async def drop(self, uid: str) -> None:
        """Have nothing of the network, which is out of force. Raises `NetworkError`."""
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
        if (tunnel := there.get(names.TUNNEL)) is not None and tunnel.number:
            for uid, network in layout.networks.items():
                if (end := there.get(names.patch(uid, self._settings.integration))) and end.number:
                    ends = transport.Ends(tunnel.number, {uid: end.number})
                    wanted[uid] = transport.flows(network.order, ends, self._underlay)
            for uid, order in layout.gateways.items():
                if (end := there.get(devices.link(uid))) and end.number:
                    wanted[uid] = transport.link(order, tunnel.number, end.number, self._underlay)
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

    async def _ends(self, uid: str) -> transport.Ends:
        """Ports of the bridge, with the network's among them. ovn-controller makes it when it knows the network."""
        deadline = time.monotonic() + FORCE_SECONDS
        while True:
            there = await asyncio.to_thread(self._databases.switch.interfaces)
            tunnel = there.get(names.TUNNEL)
            end = there.get(names.patch(uid, self._settings.integration))
            if tunnel and end and tunnel.number and end.number:
                return transport.Ends(tunnel.number, {uid: end.number})
            if time.monotonic() > deadline:
                raise NetworkError(
                    "ovn-controller of this host does not connect the network to the bridge of tunnels; look at the"
                    " service ovn-host.",
                    reason="NotAnswering",
                )
            await asyncio.sleep(LOOK_SECONDS)
