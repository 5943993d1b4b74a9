"""Cables of gateways in networks of the driver `linux`: bridges, and a VXLAN between the hosts that have gateways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kumulus.api.gateways import GatewayOrder
from kumulus_agents.network.linux import gateway_links, names
from kumulus_agents.network.linux.links import Link
from kumulus_agents.network.linux.programs import run
from kumulus_agents.network.linux.settings import LinuxSettings
from kumulus_agents.network.protocol import NetworkError


class Bridged:
    """See `gateway.Cabling`."""

    def __init__(self, settings: LinuxSettings) -> None:
        self._settings = settings
        self._underlay = str(settings.underlay) if settings.underlay else None

    @property
    def whole(self) -> bool:
        """See `Cabling.whole`. The kernel fills them in wherever they leave it."""
        return False

    async def masters(self, order: GatewayOrder, there: Mapping[str, Link]) -> Mapping[str, str | None]:
        """See `Cabling.masters`."""
        wanted: dict[str, str | None] = {names.link(order.uid): names.link_bridge()}
        for leg in order.legs:
            if leg.uplink is None:
                wanted[gateway_links.end(order, leg)] = bridge = names.bridge(leg.network)
                if bridge not in there:
                    raise NetworkError("A network of the gateway is not on this host yet.", reason="SegmentNotReady")
        return wanted

    async def prepare(self, order: GatewayOrder, there: Mapping[str, Link]) -> Sequence[str]:
        """See `Cabling.prepare`."""
        link = gateway_links.link(there, self._underlay, self._settings.vxlan_port)
        if link.ip:
            await run([str(self._settings.ip), "-batch", "-"], "".join(f"{line}\n" for line in link.ip))
        return link.wrong

    async def connect(self, order: GatewayOrder, orders: Mapping[str, GatewayOrder]) -> Sequence[str]:
        """See `Cabling.connect`."""
        if self._underlay is None:
            return ()
        bridge = str(self._settings.bridge)
        listing = await run([bridge, "-json", "fdb", "show", "br", names.link_bridge()])
        peers = gateway_links.peers(orders, listing, self._underlay)
        if peers.bridge:
            await run([bridge, "-batch", "-"], "".join(f"{line}\n" for line in peers.bridge))
        return peers.wrong

    async def disconnect(self, uid: str) -> None:
        """See `Cabling.disconnect`. Bridges go when no cable is left (`gateway_links.unused_bridges`)."""
