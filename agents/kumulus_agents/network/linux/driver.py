"""`NetworkDriver` for a Linux host: bridge, VXLAN, nftables, dnsmasq.

Every change goes the same way: it is put on record, then the rules are loaded, then devices and what serves guests are
made, and backwards when something is removed. A crash anywhere leaves what the next call with the same order completes.
An order whose rules cannot be loaded fails alone: record and rules stay as they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import structlog

from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus.api.segments import SegmentFacts, SegmentOrder
from kumulus_agents.network.linux import drops, gateway, gateway_links, host, links, names, traffic
from kumulus_agents.network.linux.gateway import Gateway
from kumulus_agents.network.linux.layout import Layout, Limits, Network
from kumulus_agents.network.linux.links import Commands, Link
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.linux.record import Record
from kumulus_agents.network.linux.rules import render
from kumulus_agents.network.linux.ruleset import Ruleset
from kumulus_agents.network.linux.service import Service
from kumulus_agents.network.linux.settings import LinuxSettings
from kumulus_agents.network.linux.tables import Tables
from kumulus_agents.network.protocol import Dropped, Found, Identity, NetworkError, Plug, Port, Traffic

log = structlog.get_logger(__name__)

GUARD_SECONDS = 1.0
"""How often it is asked whether nftables has changed."""


class LinuxNetwork:
    """See `NetworkDriver`. One change at a time: it is all one set of rules."""

    def __init__(self, settings: LinuxSettings) -> None:
        self._settings = settings
        self._record = Record(Path(settings.state))
        self._tables = Tables(settings)
        self._lock = asyncio.Lock()
        self._known: Layout | None = None
        self._pause = GUARD_SECONDS
        self._services: dict[str, Service] = {}
        self._limits = Limits(connections=settings.connections, vxlan_port=settings.vxlan_port)
        self._gateways: dict[str, Gateway] = {}
        self._underlay = str(settings.underlay) if settings.underlay else None

    async def prepare(self) -> None:
        """See `NetworkDriver.prepare`. Has the rules in force for what is on record."""
        await host.check(self._settings)
        async with self._lock:
            await self._layout()

    async def functions(self) -> Mapping[GatewayFunction, str | None]:
        """See `NetworkDriver.functions`."""
        return {one: await asyncio.to_thread(gateway.missing, self._settings, one) for one in GatewayFunction}

    async def ensure_segment(self, segment: SegmentOrder) -> SegmentFacts:
        """See `NetworkDriver.ensure_segment`. NoUnderlay and BadOption are its own reasons."""
        if segment.vni and segment.peers and self._underlay is None:
            raise NetworkError(
                "The network has other hosts, and this host's address for tunnels is not known. Set the agent's underlay.",
                reason="NoUnderlay",
                retryable=False,
            )
        async with self._lock:
            before = await self._layout()
            layout = before.with_network(segment)
            network = layout.networks[segment.uid]
            service = self._service(segment.uid)
            service.check(segment)
            await asyncio.to_thread(self._record.keep_network, network)
            try:
                await self._enforce(layout)
            except Exception:
                await asyncio.to_thread(self._put_back_network, before, segment.uid)
                raise
            await self._carry(network, layout, await self._links())
            await service.ensure(network, layout.ports_of(segment.uid))
            return SegmentFacts(vni=segment.vni, mtu=segment.mtu, ports=len(layout.ports_of(segment.uid)))

    async def remove_segment(self, uid: str) -> None:
        """See `NetworkDriver.remove_segment`."""
        async with self._lock:
            layout = await self._layout()
            if layout.ports_of(uid):
                raise NetworkError("The network has interfaces on this host; remove them first.", reason="SegmentInUse")
            if layout.legs_in(uid):
                raise NetworkError("A gateway has a leg in the network here; remove it first.", reason="SegmentInUse")
            there = await self._links()
            if _is_ours(uid, layout, there):
                await self._service(uid).remove()
                devices = (names.uplink(uid), names.service(uid), names.tunnel(uid), names.bridge(uid))
                await self._delete(there.keys() & set(devices))
            if (network := layout.networks.get(uid)) is not None:
                await self._enforce(layout.without_network(uid))
                await self._forget_connections(network)
            await asyncio.to_thread(self._record.forget_network, uid)  # also when it failed the last time
            self._services.pop(uid, None)

    async def ensure_port(self, port: Port) -> Plug:
        """See `NetworkDriver.ensure_port`."""
        async with self._lock:
            before = await self._layout()
            network = before.networks.get(port.nic.network)
            if network is None or port.nic.network in before.barred:
                raise NetworkError(
                    "The network is not on this host yet; its order comes first.", reason="SegmentNotReady"
                )
            had = before.places.get(port.nic.uid)
            layout = before.with_port(port)
            await asyncio.to_thread(self._record.keep_port, layout.places[port.nic.uid])
            try:
                await self._enforce(layout)
            except Exception:
                await asyncio.to_thread(self._put_back_port, before, port.nic.uid)
                raise
            if had is not None and had.port.nic.network != port.nic.network:
                await self._serve(layout, had.port.nic.network)
            await self._serve(layout, port.nic.network)
            return Plug(device=names.tap(port.nic.uid), bridge=names.bridge(port.nic.network), mtu=network.order.mtu)

    async def remove_port(self, uid: str) -> None:
        """See `NetworkDriver.remove_port`."""
        async with self._lock:
            layout = await self._layout()
            place = layout.places.get(uid)
            if place is not None:
                layout = layout.without_port(uid)
                await self._enforce(layout)
                if (network := layout.networks.get(place.port.nic.network)) is not None:
                    await self._forget_connections(network, place.port.nic.addresses)
            await asyncio.to_thread(self._record.forget_port, uid)  # also when it failed the last time
            if place is not None:
                await self._serve(layout, place.port.nic.network)  # last: what is not told now is mended

    async def missing_certificates(self, gateway: GatewayOrder) -> frozenset[str]:
        """See `GatewayDriver.missing_certificates`."""
        return await asyncio.to_thread(self._gateway(gateway.uid).lacks, gateway)

    async def ensure_gateway(
        self, gateway: GatewayOrder, certificates: Mapping[str, Identity] | None = None
    ) -> GatewayFacts:
        """See `GatewayDriver.ensure_gateway`."""
        async with self._lock:
            before = await self._layout()
            for leg in gateway.legs:
                if leg.uplink is None and (leg.network not in before.networks or leg.network in before.barred):
                    raise NetworkError("A network of the gateway is not on this host yet.", reason="SegmentNotReady")
            layout = before.with_gateway(gateway)
            await asyncio.to_thread(self._record.keep_gateway, gateway)
            await self._enforce(layout)
            await self._make_room(len(layout.gateways))
            ours = self._gateway(gateway.uid)
            await ours.ensure(gateway, layout.gateways, self._underlay, certificates)
            await self._tidy_gateways(layout)
            return await ours.facts(gateway)

    async def remove_gateway(self, uid: str) -> None:
        """See `GatewayDriver.remove_gateway`."""
        async with self._lock:
            layout = (await self._layout()).without_gateway(uid)
            await self._gateway(uid).remove(await self._links())
            await self._enforce(layout)
            await self._tidy_gateways(layout)
            await asyncio.to_thread(self._record.forget_gateway, uid)
            self._gateways.pop(uid, None)

    async def gateway_facts(self, uid: str) -> GatewayFacts:
        """See `GatewayDriver.gateway_facts`."""
        gateway = (self._known or Layout()).gateways.get(uid)
        return await self._gateway(uid).facts(gateway) if gateway is not None else GatewayFacts()

    async def found(self) -> Found:
        """See `NetworkDriver.found`."""
        async with self._lock:
            layout = await self._layout()
            there = await self._links()
            marks = {link.alias for link in there.values() if names.is_ours(link.name)}
            marks |= set(await asyncio.to_thread(host.namespaces))
            segments = {uid for mark in marks if (uid := names.network_of(mark))}
            return Found(
                segments=frozenset(uid for uid in {*segments, *layout.networks} if _is_ours(uid, layout, there)),
                gateways=frozenset(layout.gateways) | {uid for mark in marks if (uid := names.gateway_of(mark))},
                ports=frozenset(layout.places),
                foreign=links.foreign(there),
            )

    async def mend(self) -> Sequence[str]:
        """See `NetworkDriver.mend`. Others may use the driver between two networks; one that cannot be mended is in the
        log and holds up no other."""
        wrong = list(await self._mend_rules())
        async with self._lock:
            layout = await self._layout()
        for uid in sorted(layout.networks):
            try:
                async with self._lock:
                    wrong += await self._mend(uid)
            except NetworkError as error:
                log.warning("network not mended", network=uid, reason=error.reason, error=str(error))
        for uid in sorted(layout.gateways):
            try:
                async with self._lock:
                    wrong += await self._mend_gateway(uid)
            except NetworkError as error:
                log.warning("gateway not mended", gateway=uid, reason=error.reason, error=str(error))
        return wrong

    async def dropped(self) -> Sequence[Dropped]:
        """See `NetworkDriver.dropped`."""
        async with self._lock:
            layout = await self._layout()
            listings = await self._tables.listings()
        return await asyncio.to_thread(drops.parse, listings, layout)

    async def traffic(self) -> Sequence[Traffic]:
        """See `NetworkDriver.traffic`."""
        return await asyncio.to_thread(traffic.read, self._known or Layout())

    async def guard(self) -> Sequence[str]:
        """See `NetworkDriver.guard`. Asks the kernel each second for one number. Rules are compared when it has changed, and
        that takes no more than a tenth of the time, whatever else changes nftables on the host."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._pause)
            if not self._tables.disturbed():
                continue
            began, self._pause = loop.time(), GUARD_SECONDS
            wrong = await self._mend_rules()
            self._pause = max(GUARD_SECONDS, 10 * (loop.time() - began))
            if wrong:
                return wrong

    async def _mend_rules(self) -> Sequence[str]:
        async with self._lock:
            rules = self._render(await self._layout())
            if await self._tables.are(rules):
                return ()
            await self._tables.load(rules)
            return ("The rules of nftables were not what they should be.",)

    async def _mend_gateway(self, uid: str) -> Sequence[str]:
        layout = await self._layout()
        if (order := layout.gateways.get(uid)) is None:
            return ()
        return await self._gateway(uid).ensure(order, layout.gateways, self._underlay)

    async def _mend(self, uid: str) -> Sequence[str]:
        layout = await self._layout()
        if (network := layout.networks.get(uid)) is None:
            return ()
        carried = await self._carry(network, layout, await self._links())
        return [*carried, *await self._service(uid).ensure(network, layout.ports_of(uid))]

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
        """Have the rules of that in force; then it is what shall be here. Raises `NetworkError`: it is not."""
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

    def _put_back_network(self, before: Layout, uid: str) -> None:
        if (network := before.networks.get(uid)) is not None:
            self._record.keep_network(network)
        else:
            self._record.forget_network(uid)

    def _put_back_port(self, before: Layout, uid: str) -> None:
        if (place := before.places.get(uid)) is not None:
            self._record.keep_port(place)
        else:
            self._record.forget_port(uid)

    def _gateway(self, uid: str) -> Gateway:
        return self._gateways.setdefault(uid, Gateway(uid, self._settings))

    async def _make_room(self, gateways: int) -> None:
        """See `host.make_room`. Without it gateways work as well, until tenants mean harm."""
        try:
            await asyncio.to_thread(host.make_room, gateways)
        except (OSError, ValueError) as error:
            log.warning("no room for gateways' neighbours: set net.ipv4.neigh.default.gc_thresh3", error=str(error))

    async def _tidy_gateways(self, layout: Layout) -> None:
        """Let go of uplinks that no gateway uses."""
        await self._delete(gateway_links.unused_bridges(await self._links(), layout.gateways))

    def _service(self, uid: str) -> Service:
        return self._services.setdefault(uid, Service(uid, self._settings))

    async def _serve(self, layout: Layout, uid: str) -> None:
        if (network := layout.networks.get(uid)) is not None:
            await self._service(uid).tell(network, layout.ports_of(uid))

    async def _links(self) -> dict[str, Link]:
        ip = [str(self._settings.ip), "-json", "-details", "address"]
        return links.parse(await run(ip))

    async def _carry(self, network: Network, layout: Layout, there: Mapping[str, Link]) -> Sequence[str]:
        """Have the network's devices on the host; what was not so. The namespace comes first, for the cables go there."""
        order = network.order
        wrong = list(await self._service(order.uid).ensure_namespace(order))
        if wrong:  # cables that are there end in a namespace that has lost its name
            cables = {names.service(order.uid), names.uplink(order.uid)} & there.keys()
            await self._delete(cables)
            there = {name: link for name, link in there.items() if name not in cables}
        places = layout.ports_of(order.uid)
        port = self._settings.vxlan_port
        wrong += await self._perform(links.outside(network, places, there, self._underlay, port))
        if order.vni and self._underlay:
            fdb = await run([str(self._settings.bridge), "-json", "fdb", "show", "dev", names.tunnel(order.uid)])
            wrong += await self._perform(links.flooding(order, fdb, self._underlay))
        return wrong

    async def _delete(self, devices: Collection[str]) -> None:
        for device in sorted(devices):
            await attempt([str(self._settings.ip), "link", "delete", "dev", device])

    async def _perform(self, commands: Commands) -> Sequence[str]:
        for program, lines in ((self._settings.ip, commands.ip), (self._settings.bridge, commands.bridge)):
            if lines:
                await run([str(program), "-batch", "-"], "".join(f"{line}\n" for line in lines))
        return commands.wrong

    async def _forget_connections(self, network: Network, addresses: Sequence[str] = ()) -> None:
        """Have the kernel know no connection of the network, or of these addresses in it."""
        delete = [str(self._settings.conntrack), "-D", "-w", str(network.number)]
        if not addresses:
            for family in ("ipv4", "ipv6"):
                await attempt([*delete, "-f", family])
        for address in addresses:
            for side in ("--orig-src", "--orig-dst"):
                await attempt([*delete, "-f", "ipv6" if ":" in address else "ipv4", side, address])


def _is_ours(uid: str, layout: Layout, there: Collection[str]) -> bool:
    """Whether a network of that uid is, or was, this driver's. Other drivers serve theirs with a namespace and cables of the
    same names; the bridge is this one's alone, and is there as long as the namespace is when nothing is on record."""
    return uid in layout.networks or names.bridge(uid) in there


def create(settings: Mapping[str, object]) -> LinuxNetwork:
    """The driver; what the entry point names. Raises pydantic's `ValidationError`."""
    return LinuxNetwork(LinuxSettings.model_validate(settings))
