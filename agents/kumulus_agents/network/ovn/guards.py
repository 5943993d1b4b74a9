"""The small bridges between guests and OVN on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.ovn import guard as guarding
from kumulus_agents.network.ovn import names
from kumulus_agents.network.ovn.databases import Databases
from kumulus_agents.network.ovn.openflow import OpenFlow
from kumulus_agents.network.ovn.routing import Detour
from kumulus_agents.network.ovn.settings import Datapath, OvnSettings
from kumulus_agents.network.protocol import NetworkError


class Guards:
    """Its verbs are called one at a time."""

    def __init__(self, settings: OvnSettings, databases: Databases) -> None:
        self._settings = settings
        self._databases = databases
        self._openflow = OpenFlow(settings)

    async def ensure(
        self, order: SegmentOrder, nic: Nic, there: Collection[str], detour: Detour | None = None
    ) -> Sequence[str]:
        """Have the bridge between a guest and OVN, with the tap on it if that is among the devices that are there, and then
        its way to OVN, and to a logical router by that detour; what was not so."""
        switch, guard = self._databases.switch, names.guard(nic.uid)
        inner, outer = names.patches(nic.uid)
        tap, ids = devices.tap(nic.uid), {"iface-id": nic.uid}
        wrong = []
        if await asyncio.to_thread(switch.ensure_bridge, guard, self._databases.kind):
            wrong.append(f"{guard} was missing.")
        if tap in there and await self._databases.plug(guard, tap, external_ids=ids):
            wrong.append(f"{tap} was not plugged into {guard}.")
        if await self._databases.plug(guard, inner, type="patch", options={"peer": outer}):
            wrong.append(f"{inner} was not plugged into {guard}.")
        end = (await asyncio.to_thread(switch.interfaces))[inner].number
        if end is None:
            raise NetworkError(f"Open vSwitch does not make {inner}; look at ovs-vsctl show.", reason="NotAnswering")
        flows = guarding.flows(order, nic, end, detour, advertises=self._databases.kind == Datapath.NETDEV)
        if not await self._openflow.are(guard, flows):
            await self._openflow.replace(guard, flows)
            wrong.append(f"{guard} did not keep the guest from what it must not send.")
        integration = self._settings.integration
        if await self._databases.plug(integration, outer, type="patch", options={"peer": inner}, external_ids=ids):
            wrong.append(f"{outer} was not plugged into {integration}.")
        return wrong

    async def remove(self, uid: str) -> None:
        """Have nothing of that interface's."""
        switch = self._databases.switch
        await asyncio.to_thread(switch.remove_port, names.patches(uid)[1])
        await asyncio.to_thread(switch.remove_port, devices.tap(uid))
        await asyncio.to_thread(switch.remove_bridge, names.guard(uid))
