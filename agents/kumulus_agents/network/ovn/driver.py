"""`NetworkDriver` for a host with Open vSwitch and OVN, whose databases are the host's own.

What is in force stands in the northbound database, made to follow from the record in one transaction. A port passes nothing
before OVN knows it, so a guest cannot be early. Gateways are those of the driver `linux`, plugged into logical switches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import structlog

from kumulus.api.segments import Nic, SegmentFacts, SegmentOrder
from kumulus_agents.network.connections import Connection
from kumulus_agents.network.linux import links
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.gateway import Gateway
from kumulus_agents.network.linux.layout import Layout, Network, Place
from kumulus_agents.network.linux.links import Link
from kumulus_agents.network.linux.programs import run
from kumulus_agents.network.linux.recorded import RecordedNetwork
from kumulus_agents.network.linux.service import Service
from kumulus_agents.network.linux.watching import Watch
from kumulus_agents.network.ovn import host, names, routing
from kumulus_agents.network.ovn.apart import Apart
from kumulus_agents.network.ovn.counters import Counters
from kumulus_agents.network.ovn.databases import Databases
from kumulus_agents.network.ovn.gateway_cabling import Plugged
from kumulus_agents.network.ovn.guards import Guards
from kumulus_agents.network.ovn.logical import Logical
from kumulus_agents.network.ovn.routing import Detour
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.ovn.tunnels import Tunnels
from kumulus_agents.network.ovn.uplinks import Uplinked
from kumulus_agents.network.protocol import Dropped, NetworkDriver, NetworkError, Plug, Uplinks

log = structlog.get_logger(__name__)

HEARD = "This host heard what was for others."


class OvnNetwork(RecordedNetwork):
    """See `NetworkDriver` and `GatewayDriver`. One change at a time."""

    def __init__(self, settings: OvnSettings) -> None:
        super().__init__(settings)
        self._settings = settings
        self._databases = Databases(settings)
        self._logical = Logical(settings, self._databases)
        self._uplinked = Uplinked(settings, self._databases)
        self._tunnels = Tunnels(settings, self._databases, self._uplinked)
        self._guards = Guards(settings, self._databases)
        self._counters = Counters(settings, self._databases)
        self._apart = Apart(settings)
        self._watch = Watch(self._apart.disturbed, self._put_apart)
        self._cabling = Plugged(settings, self._databases, self._tunnels, self._uplinked)
        self._detours: dict[str, Detour | None] = {}
        """Of guests, by the interface's uid, as they are in force."""

    async def prepare(self) -> None:
        """See `NetworkDriver.prepare`. ProgramMissing, NotRunning, OvnInUse, NotAnswering are its reasons."""
        await host.check(self._settings)
        async with self._lock:
            self._known = None
            await self._layout()

    async def guard(self) -> Sequence[str]:
        """See `NetworkDriver.guard`. It is about what keeps guests from the host's own kernel, which is of nftables: flows and
        rows of OVN nobody else loads, as a firewall loads rules, and what is changed by hand waits for the next `mend`.
        Asks the kernel each second for one number."""
        return await self._watch.until_wrong()

    async def _put_apart(self) -> Sequence[str]:
        async with self._lock:
            return (HEARD,) if await self._apart.ensure(self._databases.kind) else ()

    async def uplinks(self) -> Uplinks:
        """See `NetworkDriver.uplinks`. Open vSwitch has VLANs whatever the kernel has."""
        return Uplinks(await self._uplinked.devices(await self._links()))

    async def dropped(self) -> Sequence[Dropped]:
        """See `NetworkDriver.dropped`. Of what is on record; of nothing before that was read."""
        return () if self._known is None else await self._counters.dropped(self._known)

    async def ensure_segment(self, segment: SegmentOrder) -> SegmentFacts:
        """See `NetworkDriver.ensure_segment`. Where OVN is too old for logical routers, or guests cannot be sent to one, it does
        without, and says so."""
        async with self._lock:
            await self._layout()
        if not self._databases.north.routes:
            segment = segment.model_copy(update={"router": None})
        facts = await super().ensure_segment(segment)
        router = segment.router.uid if segment.router is not None and self._sends(segment.uid) else None
        return facts.model_copy(update={"router": router})

    def _sends(self, network: str) -> bool:
        """Whether all guests of the network are sent to a logical router that shall be."""
        layout = self._known or Layout()
        nics = [place.port.nic for place in layout.places.values() if place.port.nic.network == network]
        return all(self._detours.get(nic.uid) == routing.detour(layout, nic) for nic in nics)

    # What is in force

    async def _connect(self) -> bool:
        """Have Open vSwitch and OVN know each other; whether they did not."""
        await self._databases.connect()
        changed = await self._databases.configure()
        if changed:
            self._tunnels.forget()
        return changed

    async def _layout(self) -> Layout:
        """What shall be here. From the record at first, and then it is in force."""
        if self._known is None:
            await self._connect()
            await self._apart.ensure(self._databases.kind)
            self._logical.doubt()
            layout = await asyncio.to_thread(self._record.load)
            await self._enforce(layout)
            await self._tunnels.adopt(layout)
            await self._uplinked.tidy(layout)  # Open vSwitch keeps its bridges when the host starts anew
        assert self._known is not None
        return self._known

    async def _enforce(self, layout: Layout) -> bool:
        """Nobody is sent to a logical router that is not there yet, or is another one soon: meanwhile all goes to gateways."""
        wanted = {uid: routing.detour(layout, place.port.nic) for uid, place in layout.places.items()}
        for uid in [uid for uid, detour in self._detours.items() if detour is not None and detour != wanted.get(uid)]:
            await self._send(layout, uid, None)
        changed = await self._logical.enforce(layout)
        self._known = layout
        for uid, detour in wanted.items():
            if detour != self._detours.get(uid):
                try:
                    await self._send(layout, uid, detour)
                except NetworkError as error:  # the gateway gets all of it, until this is mended
                    log.warning("not routed on this host", interface=uid, reason=error.reason, error=str(error))
        return changed

    async def _send(self, layout: Layout, uid: str, detour: Detour | None) -> None:
        """Have that guest's packets take that detour. Of one that goes, nothing is changed."""
        self._detours.pop(uid, None)
        if (place := layout.places.get(uid)) is not None:
            network = layout.networks.get(place.port.nic.network)
            if network is not None:
                await self._guards.ensure(network.order, place.port.nic, await self._links(), detour)
                self._detours[uid] = detour

    async def connections(self, nic: Nic) -> Sequence[Connection]:
        """See `KnowsConnections`."""
        await self._in_force()
        return await self._logical.connections(nic)

    async def know(self, nic: Nic, connections: Sequence[Connection]) -> None:
        """See `KnowsConnections`. For a while: by then Open vSwitch has taken them up, or nobody speaks on them."""
        async with self._lock:
            layout = await self._layout()
            if connections and nic.uid in layout.places:
                self._logical.bring(nic.uid, connections)
                await self._enforce(layout)

    async def _mend_whole(self) -> Sequence[str]:
        wrong: list[str] = []
        async with self._lock:
            layout = await self._layout()
            if self._logical.let_go():
                await self._enforce(layout)
            if await self._apart.ensure(self._databases.kind):
                wrong.append(HEARD)
            if await self._connect():
                wrong.append("Open vSwitch was not told what it should be.")
            if await self._enforce(layout):
                wrong.append("The northbound database was not what it should be.")
            if await self._logical.limit(layout, anew=True):
                wrong.append("Guests could track more connections than they may.")
            for place in layout.places.values():
                if (network := layout.networks.get(place.port.nic.network)) is not None:
                    wrong += await self._front(network, place.port.nic)
            if await self._tunnels.adopt(layout):
                wrong.append(f"{self._settings.transport} did not forward as it should.")
            await self._uplinked.tidy(layout)
        return wrong

    # Devices

    async def _carry(self, network: Network, layout: Layout, there: Mapping[str, Link]) -> Sequence[str]:
        order, switch = network.order, self._databases.switch
        wrong, there = await self._ensure_namespace(order, there)
        cable = devices.service(order.uid)
        if order.subnets and cable not in there:  # Open vSwitch would hold on to the device that is gone
            await asyncio.to_thread(switch.remove_port, cable)
        made = links.cables(order, there)
        if made.ip:
            await run([str(self._settings.ip), "-batch", "-"], "".join(f"{line}\n" for line in made.ip))
        wrong += made.wrong
        integration, ids = self._settings.integration, {"iface-id": cable}
        if order.subnets and await self._databases.plug(integration, cable, external_ids=ids):
            wrong.append(f"{cable} was not plugged into {integration}.")
        return [*wrong, *await self._tunnels.carry(order, there)]

    async def _drop(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> None:
        served = self._is_ours(uid, layout, there)
        if served:
            await self._service(uid).remove()
        await asyncio.to_thread(self._databases.switch.remove_port, devices.service(uid))
        await self._tunnels.unplug(uid)
        if served:
            await self._delete(there.keys() & {devices.uplink(uid), devices.service(uid)})

    async def _dropped(self, uid: str, network: Network | None) -> None:
        await self._tunnels.drop(uid, self._known or Layout())

    async def _front(self, network: Network, nic: Nic) -> Sequence[str]:
        detour = routing.detour(self._known or Layout(), nic)
        wrong = await self._guards.ensure(network.order, nic, await self._links(), detour)
        self._detours[nic.uid] = detour
        return wrong

    def _plug(self, network: Network, nic: Nic) -> Plug:
        return Plug(
            device=devices.tap(nic.uid),
            bridge=names.guard(nic.uid),
            mtu=network.order.mtu,
            openvswitch=nic.uid,
            whole=self._cabling.whole,
        )

    async def _unplug(self, uid: str, place: Place | None, layout: Layout) -> None:
        await self._guards.remove(uid)

    async def _tidy_gateways(self, layout: Layout) -> None:
        await super()._tidy_gateways(layout)
        await self._uplinked.tidy(layout)

    def _new_service(self, uid: str) -> Service:
        return Service(uid, self._settings, dhcp4=False)

    def _new_gateway(self, uid: str) -> Gateway:
        return Gateway(uid, self._settings, self._cabling)

    async def _things(self, layout: Layout, there: Mapping[str, Link]) -> tuple[Collection[str], Collection[str]]:
        interfaces = await asyncio.to_thread(self._databases.switch.interfaces)
        plugged = {one.id for name, one in interfaces.items() if names.is_patch(name) and one.id is not None}
        gateways = {devices.gateway_namespace(one.gateway) for one in interfaces.values() if one.gateway is not None}
        return {*await asyncio.to_thread(self._databases.north.switches), *gateways}, plugged

    def _is_ours(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> bool:
        return uid in layout.networks or devices.bridge(uid) not in there

    def _is_our_gateway(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> bool:
        cable = there.get(devices.link(uid))
        return uid in layout.gateways or cable is None or cable.master != devices.link_bridge()


def create(settings: Mapping[str, object]) -> NetworkDriver:
    """The driver; what the entry point names. Raises pydantic's `ValidationError`."""
    return OvnNetwork(OvnSettings.model_validate(settings))
