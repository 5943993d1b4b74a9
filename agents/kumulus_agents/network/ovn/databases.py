"""This host's databases: that of Open vSwitch, and OVN's northbound one; and what Open vSwitch is told of OVN."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumulus_agents.network.ovn import host, names
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.protocol import NetworkError

if TYPE_CHECKING:
    from kumulus_agents.network.ovn.database import Northbound, Switch


class Databases:
    """Connections to them, once there are any."""

    def __init__(self, settings: OvnSettings) -> None:
        self._settings = settings
        self._underlay = str(settings.underlay) if settings.underlay else None
        self._north: Northbound | None = None
        self._switch: Switch | None = None
        self.kind = ""
        """Of the datapath that bridges have."""

    @property
    def switch(self) -> Switch:
        """Open vSwitch. Raises `NetworkError(reason="NotRunning")` before `connect`."""
        if self._switch is None:
            raise NetworkError("Open vSwitch was not looked for yet.", reason="NotRunning")
        return self._switch

    @property
    def north(self) -> Northbound:
        """The northbound database. Raises `NetworkError(reason="NotRunning")` before `connect`."""
        if self._north is None:
            raise NetworkError("The northbound database was not looked for yet.", reason="NotRunning")
        return self._north

    async def connect(self) -> None:
        """Have connections. Raises `NetworkError`: ProgramMissing, DatabaseFailed."""
        if self._switch is not None and self._north is not None:
            return
        try:
            from kumulus_agents.network.ovn import database  # only hosts with OVN have ovsdbapp
        except ImportError as error:
            raise NetworkError(
                f"The Python package {error.name} is missing; install kumulus[ovn].",
                reason="ProgramMissing",
                retryable=False,
            ) from error
        self._switch = await asyncio.to_thread(database.Switch, str(host.switch_socket(self._settings)))
        self._north = await asyncio.to_thread(database.Northbound, str(host.northbound_socket(self._settings)))

    async def plug(self, bridge: str, name: str, *, tag: int | None = None, **columns: object) -> bool:
        """See `Switch.ensure_port`."""
        return await asyncio.to_thread(lambda: self.switch.ensure_port(bridge, name, tag=tag, **columns))

    async def configure(self) -> bool:
        """Have Open vSwitch know this host's OVN, and the bridge of tunnels; whether it was not so. Raises `NetworkError`."""
        settings, switch = self._settings, self.switch
        said = await asyncio.to_thread(switch.said)
        remote, wanted = said.get("ovn-remote"), host.southbound(settings)
        if remote not in (None, wanted):
            raise NetworkError(
                f"Open vSwitch of this host belongs to another OVN ({remote}); Kumulus needs a host of its own, or take"
                " the driver linux.",
                reason="OvnInUse",
                retryable=False,
            )
        mappings = dict(one.partition(":")[::2] for one in said.get("ovn-bridge-mappings", "").split(",") if one)
        datapath = self.kind = await host.datapath(settings)
        ours = {
            "system-id": said.get("system-id") or "kumulus",
            "ovn-remote": wanted,
            "ovn-bridge": settings.integration,
            "ovn-encap-type": "geneve",
            "ovn-encap-ip": self._underlay or "127.0.0.1",
            "ovn-bridge-datapath-type": datapath,
            "ovn-bridge-mappings": ",".join(
                f"{network}:{bridge}" for network, bridge in ({**mappings, names.NETWORK: settings.transport}).items()
            ),
        }
        changed = ours.items() - said.items() != set()
        made = False
        for bridge in (settings.integration, settings.transport):
            made |= await asyncio.to_thread(switch.ensure_bridge, bridge, datapath)
        await asyncio.to_thread(switch.tell, ours)
        if self._underlay:
            options = {"remote_ip": "flow", "key": "flow", "local_ip": self._underlay}
            made |= await self.plug(settings.transport, names.TUNNEL, type="geneve", options=options)
        return made or changed
