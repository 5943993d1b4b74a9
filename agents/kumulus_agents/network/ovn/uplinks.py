"""Ways from the bridge of tunnels to the devices of this host that VLANs of networks are on.

An uplink is a bridge of Open vSwitch that somebody has made, or an interface, which is put onto a bridge of ours that
forwards as a switch does. Either is patched to the bridge of tunnels, where tags are put on and taken off.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kumulus.api.segments import SegmentOrder, Uplink
from kumulus_agents.network.linux import names as host_names
from kumulus_agents.network.linux import uplinks as devices
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.links import Link
from kumulus_agents.network.linux.programs import run
from kumulus_agents.network.ovn import names
from kumulus_agents.network.ovn.databases import Databases
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.protocol import NetworkError

if TYPE_CHECKING:
    from kumulus_agents.network.ovn.database import Interface


class Uplinked:
    """Its verbs are called one at a time."""

    def __init__(self, settings: OvnSettings, databases: Databases) -> None:
        self._settings = settings
        self._databases = databases

    async def devices(self, there: Mapping[str, Link]) -> tuple[str, ...]:
        """Names of the devices that can be uplinks: interfaces, and bridges of Open vSwitch that are not ours."""
        switch = self._databases.switch
        ports, bridges = await asyncio.to_thread(lambda: (switch.interfaces(), switch.bridges()))
        ours = {self._settings.integration, self._settings.transport}
        found = {
            name
            for name in devices.devices(there)
            if there[name].kind not in ("bridge", "openvswitch") and (name not in ports or _is_on_ours(ports[name]))
        }
        return tuple(sorted(found | {name for name in bridges - ours if not host_names.is_ours(name)}))

    async def ensure(self, order: SegmentOrder, there: Mapping[str, Link]) -> list[str]:
        """Have the way to the network's uplink; what was not so. Raises `NetworkError`: `UplinkMissing`, `UplinkInUse`,
        `UplinkMtuTooSmall`."""
        if order.uplink is None:
            return []
        switch, uplink = self._databases.switch, order.uplink
        wrong: list[str] = []
        bridge = await self.switch(uplink)
        if bridge != uplink.device:
            bridge = names.uplink_bridge(uplink.device)
            device = devices.exists(uplink, order.mtu, there)
            _refuse_device(device)
            if await asyncio.to_thread(switch.ensure_switch, bridge, self._databases.kind):
                wrong.append(f"{bridge} was missing.")
            if await self._databases.plug(bridge, uplink.device):
                wrong.append(f"{uplink.device} was not plugged into {bridge}.")
            if not device.up:
                await run([str(self._settings.ip), "link", "set", "dev", device.name, "up"])
                wrong.append(f"{device.name} was down.")
        here, beyond = names.crossing(bridge)
        transport = self._settings.transport
        if await self._databases.plug(bridge, beyond, type="patch", options={"peer": here}):
            wrong.append(f"{beyond} was not plugged into {bridge}.")
        if await self._databases.plug(transport, here, type="patch", options={"peer": beyond}):
            wrong.append(f"{here} was not plugged into {transport}.")
        return wrong

    async def switch(self, uplink: Uplink) -> str | None:
        """The bridge of Open vSwitch that a device is, or that we have put it onto; None when it is neither. Raises
        `NetworkError(reason="UplinkInUse")` when it has another use there."""
        switch = self._databases.switch
        ports, bridges = await asyncio.to_thread(lambda: (switch.interfaces(), switch.bridges()))
        port = ports.get(uplink.device)
        ours = (self._settings.integration, self._settings.transport)
        usual = (uplink.device, names.uplink_bridge(uplink.device))
        if uplink.device in ours or (port is not None and port.bridge not in usual):
            used = port.bridge if port is not None and port.bridge not in ours else "networks of tenants"
            raise NetworkError(
                f"Device {uplink.device} is used for {used}: name another one in the uplinks of PhysicalNetwork, or the"
                " bridge that it is plugged into.",
                reason="UplinkInUse",
            )
        if uplink.device in bridges:
            return uplink.device
        return port.bridge if port is not None else None

    async def tidy(self, layout: Layout) -> None:
        """Have no way to an uplink that no network uses, and no bridge of ours with nothing but its interface."""
        switch = self._databases.switch
        ports, bridges = await asyncio.to_thread(lambda: (switch.interfaces(), switch.bridges()))
        used = {way(network.order.uplink, bridges) for network in layout.networks.values() if network.order.uplink}
        wanted = {end for bridge in used for end in names.crossing(bridge)}
        for name in ports:
            if names.is_crossing(name) and name not in wanted:
                await asyncio.to_thread(switch.remove_port, name)
        for bridge in bridges - used:
            legs = [port for port in ports.values() if port.bridge == bridge and port.gateway is not None]
            if names.is_uplink_bridge(bridge) and not legs:
                await asyncio.to_thread(switch.remove_bridge, bridge)


def way(uplink: Uplink, bridges: frozenset[str]) -> str:
    """The bridge of Open vSwitch by which an uplink is reached. Pure."""
    return uplink.device if uplink.device in bridges else names.uplink_bridge(uplink.device)


def _is_on_ours(port: Interface) -> bool:
    return port.bridge == names.uplink_bridge(port.name)


def _refuse_device(device: Link) -> None:
    """Raises `NetworkError` for an interface that has another use."""
    if device.kind == "bridge":
        raise NetworkError(
            f"Device {device.name} is a bridge of the kernel, which Open vSwitch cannot have: name the interface that is"
            " in it, or make it a bridge of Open vSwitch.",
            reason="UplinkInUse",
        )
    if device.master is not None and device.master != "ovs-system":
        raise NetworkError(
            f"Device {device.name} is plugged into {device.master}: take it out, or make a bridge of Open vSwitch with it and"
            " name that in the uplinks of PhysicalNetwork.",
            reason="UplinkInUse",
        )
    if any(not ipaddress.ip_interface(one).is_link_local for one in device.addresses):
        raise NetworkError(
            f"Device {device.name} has addresses, which it would lose as an uplink: put it onto a bridge of Open vSwitch that"
            " has these addresses, and name that in the uplinks of PhysicalNetwork.",
            reason="UplinkInUse",
        )
