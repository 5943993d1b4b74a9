"""`NetworkDriver` for a Linux host: bridge, VXLAN, nftables, dnsmasq.

What is in force is one set of rules of nftables, loaded in one transaction. Rules that cannot be loaded stay out of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import structlog

from kumulus.api.segments import Nic
from kumulus_agents.network.connections import Connection
from kumulus_agents.network.linux import drops, host, links, names, tracked, uplinks
from kumulus_agents.network.linux.gateway import Gateway
from kumulus_agents.network.linux.gateway_cabling import Bridged
from kumulus_agents.network.linux.layout import Layout, Limits, Network, Place
from kumulus_agents.network.linux.links import Commands, Link
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.linux.recorded import RecordedNetwork
from kumulus_agents.network.linux.rules import render
from kumulus_agents.network.linux.ruleset import Ruleset
from kumulus_agents.network.linux.service import Service
from kumulus_agents.network.linux.settings import LinuxSettings
from kumulus_agents.network.linux.tables import Tables
from kumulus_agents.network.linux.watching import Watch
from kumulus_agents.network.protocol import Dropped, NetworkError, Plug, Uplinks

log = structlog.get_logger(__name__)


class LinuxNetwork(RecordedNetwork):
    """See `NetworkDriver`. One change at a time: it is all one set of rules."""

    def __init__(self, settings: LinuxSettings) -> None:
        super().__init__(settings)
        self._settings = settings
        self._tables = Tables(settings)
        self._vlans = False
        self._watch = Watch(self._tables.disturbed, self._mend_whole)
        self._limits = Limits(connections=settings.connections, vxlan_port=settings.vxlan_port)

    async def prepare(self) -> None:
        """See `NetworkDriver.prepare`. Has the rules in force for what is on record."""
        await host.check(self._settings)
        async with self._lock:
            await self._layout()

    async def uplinks(self) -> Uplinks:
        """See `NetworkDriver.uplinks`."""
        return Uplinks(uplinks.devices(await self._links()), await self._no_vlans())

    async def _no_vlans(self) -> str | None:
        """Why this host can make no VLANs; once it could, it is not asked again."""
        self._vlans = self._vlans or await uplinks.has_vlans(self._settings)
        return None if self._vlans else f"{uplinks.NO_VLANS}, or have machines with such networks on other hosts."

    async def dropped(self) -> Sequence[Dropped]:
        """See `NetworkDriver.dropped`."""
        async with self._lock:
            layout = await self._layout()
            listings = await self._tables.listings()
        return await asyncio.to_thread(drops.parse, listings, layout)

    async def guard(self) -> Sequence[str]:
        """See `NetworkDriver.guard`. Asks the kernel each second for one number; rules are compared when it has changed."""
        return await self._watch.until_wrong()

    # Rules

    async def _mend_whole(self) -> Sequence[str]:
        async with self._lock:
            rules = self._render(await self._layout())
            if await self._tables.are(rules):
                return ()
            await self._tables.load(rules)
            return ("The rules of nftables were not what they should be.",)

    async def _layout(self) -> Layout:
        """What shall be here. From the record at first, and then its rules are in force, as far as they can be."""
        if self._known is None:
            layout = await asyncio.to_thread(self._record.load)
            try:
                await self._enforce(layout, unless_so=True)
            except NetworkError as error:
                barred: Collection[str] = {*layout.networks, *layout.places}
                if not await self._tables.takes(self._render(layout.barring(barred))):
                    raise  # not because of any of them
                log.warning("the rules of what is on record cannot be loaded", error=str(error))
                barred = await self._unloadable(layout)
                log.warning("without rules, and so nothing passes there until the order comes", uids=sorted(barred))
                await self._enforce(layout.barring(barred), unless_so=True)
        assert self._known is not None
        return self._known

    def _render(self, layout: Layout) -> Ruleset:
        return render(layout, self._limits)

    async def _enforce(self, layout: Layout, *, unless_so: bool = False) -> None:
        rules = self._render(layout)
        if not (unless_so and await self._tables.are(rules)):
            await self._tables.load(rules)
        self._known = layout

    async def _unloadable(self, layout: Layout) -> Collection[str]:
        """The networks and ports on record whose rules cannot be loaded; a network alone, its ports with it."""
        barred = {*layout.networks, *layout.places}

        async def passes(*uids: str) -> None:
            if await self._tables.takes(self._render(layout.barring(barred.difference(uids)))):
                barred.difference_update(uids)

        for uid in sorted(layout.networks):
            ports = [place.port.nic.uid for place in layout.ports_of(uid)]
            await passes(uid, *ports)
            if uid in barred and ports:
                await passes(uid)
                for port in ports if uid not in barred else ():
                    await passes(port)
        return barred

    # Devices

    async def _carry(self, network: Network, layout: Layout, there: Mapping[str, Link]) -> Sequence[str]:
        order = network.order
        wrong, there = await self._ensure_namespace(order, there)
        if order.uplink is not None:
            carrier = names.tunnel(order.uid)
            uplinks.check(order.uplink, order.mtu, carrier, there)
            if carrier not in there and (why := await self._no_vlans()) is not None:
                raise NetworkError(why, reason="VlanUnsupported")
        places = layout.ports_of(order.uid)
        port = self._settings.vxlan_port
        wrong += await self._perform(links.outside(network, places, there, self._underlay, port))
        if order.vni and self._underlay:
            fdb = await run([str(self._settings.bridge), "-json", "fdb", "show", "dev", names.tunnel(order.uid)])
            wrong += await self._perform(links.flooding(order, fdb, self._underlay))
        return wrong

    async def _drop(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> None:
        if self._is_ours(uid, layout, there):
            await self._service(uid).remove()
            devices = (names.uplink(uid), names.service(uid), names.tunnel(uid), names.bridge(uid))
            await self._delete(there.keys() & set(devices))

    async def _dropped(self, uid: str, network: Network | None) -> None:
        if network is not None:
            await self._forget_connections(network)

    def _plug(self, network: Network, nic: Nic) -> Plug:
        return Plug(device=names.tap(nic.uid), bridge=names.bridge(nic.network), mtu=network.order.mtu)

    async def _unplug(self, uid: str, place: Place | None, layout: Layout) -> None:
        if place is not None and (network := layout.networks.get(place.port.nic.network)) is not None:
            await self._forget_connections(network, place.port.nic.addresses)

    def _new_service(self, uid: str) -> Service:
        return Service(uid, self._settings)

    def _new_gateway(self, uid: str) -> Gateway:
        return Gateway(uid, self._settings, Bridged(self._settings))

    async def _things(self, layout: Layout, there: Mapping[str, Link]) -> tuple[Collection[str], Collection[str]]:
        return [link.alias for link in there.values() if names.is_ours(link.name)], ()

    def _is_ours(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> bool:
        """The bridge is this driver's alone, and is there as long as the namespace is when nothing is on record."""
        return uid in layout.networks or names.bridge(uid) in there

    def _is_our_gateway(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> bool:
        cable = there.get(names.link(uid))
        return uid in layout.gateways or cable is None or cable.master == names.link_bridge()

    async def _perform(self, commands: Commands) -> Sequence[str]:
        for program, lines in ((self._settings.ip, commands.ip), (self._settings.bridge, commands.bridge)):
            if lines:
                await run([str(program), "-batch", "-"], "".join(f"{line}\n" for line in lines))
        return commands.wrong

    async def connections(self, nic: Nic) -> Sequence[Connection]:
        """See `KnowsConnections`."""
        network = (await self._in_force()).networks.get(nic.network)
        if network is None or not nic.addresses:
            return ()
        listing = [str(self._settings.conntrack), "-L", "-w", str(network.number), "-o", "save", "-p", "tcp"]
        found: list[Connection] = []
        for family in sorted({"ipv6" if ":" in address else "ipv4" for address in nic.addresses}):
            found += tracked.listed(await run([*listing, "-f", family]), nic.addresses)
        return found

    async def know(self, nic: Nic, connections: Sequence[Connection]) -> None:
        """See `KnowsConnections`."""
        network = (await self._in_force()).networks.get(nic.network)
        if network is not None and connections:
            lines = tracked.entries(connections, network.number)
            await run([str(self._settings.conntrack), "-R", "/dev/stdin"], lines)

    async def _forget_connections(self, network: Network, addresses: Sequence[str] = ()) -> None:
        """Have the kernel know no connection of the network, or of these addresses in it."""
        delete = [str(self._settings.conntrack), "-D", "-w", str(network.number)]
        if not addresses:
            for family in ("ipv4", "ipv6"):
                await attempt([*delete, "-f", family])
        for address in addresses:
            for side in ("--orig-src", "--orig-dst"):
                await attempt([*delete, "-f", "ipv6" if ":" in address else "ipv4", side, address])


def create(settings: Mapping[str, object]) -> LinuxNetwork:
    """The driver; what the entry point names. Raises pydantic's `ValidationError`."""
    return LinuxNetwork(LinuxSettings.model_validate(settings))
