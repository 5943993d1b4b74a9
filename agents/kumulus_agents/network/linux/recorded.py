"""The verbs of `NetworkDriver` and `GatewayDriver` that do not depend on what carries packets.

Every change goes the same way: it is put on record, then it is brought into force, then devices and what serves guests are
made, and backwards when something is removed. A crash anywhere leaves what the next call with the same order completes. An
order that cannot be brought into force fails alone: the record stays as it was.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import structlog

from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus.api.segments import Nic, SegmentFacts, SegmentOrder
from kumulus_agents.network.linux import gateway, gateway_links, host, links, names, traffic
from kumulus_agents.network.linux.gateway import Gateway
from kumulus_agents.network.linux.layout import Layout, Network, Place
from kumulus_agents.network.linux.links import Link
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.linux.record import Record
from kumulus_agents.network.linux.service import Service
from kumulus_agents.network.linux.settings import GatewaySettings
from kumulus_agents.network.protocol import Found, Identity, NetworkError, Plug, Port, Traffic

log = structlog.get_logger(__name__)


class RecordedNetwork(ABC):
    """A driver that keeps a record of what shall be on this host. One change at a time."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._host = settings
        self._record = Record(Path(settings.state))
        self._lock = asyncio.Lock()
        self._known: Layout | None = None
        """What shall be here, and is in force."""
        self._services: dict[str, Service] = {}
        self._gateways: dict[str, Gateway] = {}
        self._underlay = str(settings.underlay) if settings.underlay else None

    # What a driver does in its own way

    @abstractmethod
    async def _layout(self) -> Layout:
        """What shall be here; from the record at first."""

    @abstractmethod
    async def _enforce(self, layout: Layout) -> object:
        """Have that in force; then it is what shall be here. Raises `NetworkError`: it is not."""

    @abstractmethod
    async def _carry(self, network: Network, layout: Layout, there: Mapping[str, Link]) -> Sequence[str]:
        """Have what carries the network on the host, with the namespace that serves it; what was not so."""

    @abstractmethod
    async def _drop(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> None:
        """Have nothing of the network on the host but what is in force. It may be of another driver: nothing then."""

    @abstractmethod
    async def _dropped(self, uid: str, network: Network | None) -> None:
        """The network is no longer in force."""

    async def _front(self, network: Network, nic: Nic) -> Sequence[str]:
        """Have what is between the guest and the network; before the port is in force. What was not so."""
        return ()

    @abstractmethod
    def _plug(self, network: Network, nic: Nic) -> Plug:
        """How the hypervisor connects it."""

    @abstractmethod
    async def _unplug(self, uid: str, place: Place | None, layout: Layout) -> None:
        """Have nothing of the port on the host. It is no longer in force, in this layout."""

    @abstractmethod
    def _new_service(self, uid: str) -> Service:
        """What serves a network."""

    @abstractmethod
    def _new_gateway(self, uid: str) -> Gateway:
        """A gateway, plugged in as this driver does."""

    @abstractmethod
    async def _things(self, layout: Layout, there: Mapping[str, Link]) -> tuple[Collection[str], Collection[str]]:
        """What is on the host, whoever ordered it: names that a network or a gateway has, and uids of interfaces."""

    @abstractmethod
    def _is_ours(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> bool:
        """Whether a network of that uid is, or was, this driver's. All serve theirs by a namespace and cables of the same
        names."""

    @abstractmethod
    def _is_our_gateway(self, uid: str, layout: Layout, there: Mapping[str, Link]) -> bool:
        """Whether a gateway of that uid is, or was, this driver's."""

    @abstractmethod
    async def _mend_whole(self) -> Sequence[str]:
        """Make so again what networks share; what was not so."""

    async def _in_force(self) -> Layout:
        """What is in force now, without waiting for a change that is being made: a guest may be halted until it is known."""
        if (known := self._known) is not None:
            return known
        async with self._lock:
            return await self._layout()

    # Networks

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
            vlan = segment.uplink.vlan if segment.uplink is not None else None
            ports = len(layout.ports_of(segment.uid))
            return SegmentFacts(vni=segment.vni, vlan=vlan, mtu=segment.mtu, ports=ports)

    async def remove_segment(self, uid: str) -> None:
        """See `NetworkDriver.remove_segment`."""
        async with self._lock:
            layout = await self._layout()
            if layout.ports_of(uid):
                raise NetworkError("The network has interfaces on this host; remove them first.", reason="SegmentInUse")
            if layout.legs_in(uid):
                raise NetworkError("A gateway has a leg in the network here; remove it first.", reason="SegmentInUse")
            await self._drop(uid, layout, await self._links())
            await self._enforce(layout.without_network(uid))
            await self._dropped(uid, layout.networks.get(uid))
            await asyncio.to_thread(self._record.forget_network, uid)  # also when it failed the last time
            self._services.pop(uid, None)

    # Ports

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
                await self._front(network, port.nic)
                await self._enforce(layout)
            except Exception:
                await asyncio.to_thread(self._put_back_port, before, port.nic.uid)
                raise
            if had is not None and had.port.nic.network != port.nic.network:
                await self._serve(layout, had.port.nic.network)
            await self._serve(layout, port.nic.network)
            return self._plug(network, port.nic)

    async def remove_port(self, uid: str) -> None:
        """See `NetworkDriver.remove_port`."""
        async with self._lock:
            layout = await self._layout()
            place = layout.places.get(uid)
            if place is not None:
                layout = layout.without_port(uid)
                await self._enforce(layout)
            await self._unplug(uid, place, layout)
            await asyncio.to_thread(self._record.forget_port, uid)  # also when it failed the last time
            if place is not None:
                await self._serve(layout, place.port.nic.network)  # last: what is not told now is mended

    # Gateways

    async def functions(self) -> Mapping[GatewayFunction, str | None]:
        """See `NetworkDriver.functions`."""
        return {one: await asyncio.to_thread(gateway.missing, self._host, one) for one in GatewayFunction}

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
            try:
                await self._enforce(layout)
            except Exception:
                await asyncio.to_thread(self._put_back_gateway, before, gateway.uid)
                raise
            await self._make_room(len(layout.gateways))
            ours = self._gateway(gateway.uid)
            await ours.ensure(gateway, layout.gateways, certificates)
            await self._tidy_gateways(layout)
            return await ours.facts(gateway)

    async def remove_gateway(self, uid: str) -> None:
        """See `GatewayDriver.remove_gateway`."""
        async with self._lock:
            layout, there = await self._layout(), await self._links()
            if not self._is_our_gateway(uid, layout, there):
                return
            layout = layout.without_gateway(uid)
            await self._gateway(uid).remove(there)
            await self._enforce(layout)
            await self._tidy_gateways(layout)
            await asyncio.to_thread(self._record.forget_gateway, uid)
            self._gateways.pop(uid, None)

    async def gateway_facts(self, uid: str) -> GatewayFacts:
        """See `GatewayDriver.gateway_facts`."""
        gateway = (self._known or Layout()).gateways.get(uid)
        return await self._gateway(uid).facts(gateway) if gateway is not None else GatewayFacts()

    async def _make_room(self, gateways: int) -> None:
        """See `host.make_room`. Without it gateways work as well, until tenants mean harm."""
        try:
            await asyncio.to_thread(host.make_room, gateways)
        except (OSError, ValueError) as error:
            log.warning("no room for gateways' neighbours: set net.ipv4.neigh.default.gc_thresh3", error=str(error))

    async def _tidy_gateways(self, layout: Layout) -> None:
        """Let go of uplinks that no gateway uses."""
        await self._delete(gateway_links.unused_bridges(await self._links(), layout.gateways))

    # The whole

    async def traffic(self) -> Sequence[Traffic]:
        """See `NetworkDriver.traffic`."""
        return await asyncio.to_thread(traffic.read, self._known or Layout())

    async def found(self) -> Found:
        """See `NetworkDriver.found`."""
        async with self._lock:
            layout = await self._layout()
            there = await self._links()
            marked, ports = await self._things(layout, there)
            marks = {*marked, *await asyncio.to_thread(host.namespaces)}
            segments = {uid for mark in marks if (uid := names.network_of(mark))}
            gateways = {uid for mark in marks if (uid := names.gateway_of(mark))}
            return Found(
                segments=frozenset(uid for uid in {*segments, *layout.networks} if self._is_ours(uid, layout, there)),
                gateways=frozenset(
                    uid for uid in {*gateways, *layout.gateways} if self._is_our_gateway(uid, layout, there)
                ),
                ports=frozenset({*layout.places, *ports}),
                foreign=links.foreign(there),
            )

    async def mend(self) -> Sequence[str]:
        """See `NetworkDriver.mend`. Others may use the driver between two networks; one that cannot be mended is in the
        log and holds up no other."""
        wrong = list(await self._mend_whole())
        async with self._lock:
            layout = await self._layout()
        for uid in sorted(layout.networks):
            try:
                async with self._lock:
                    wrong += await self._mend(uid)
            except (NetworkError, OSError) as error:
                log.warning("network not mended", network=uid, reason=_reason(error), error=str(error))
        for uid in sorted(layout.gateways):
            try:
                async with self._lock:
                    wrong += await self._mend_gateway(uid)
            except (NetworkError, OSError) as error:
                log.warning("gateway not mended", gateway=uid, reason=_reason(error), error=str(error))
        return wrong

    async def _mend(self, uid: str) -> Sequence[str]:
        layout = await self._layout()
        if (network := layout.networks.get(uid)) is None:
            return ()
        carried = await self._carry(network, layout, await self._links())
        return [*carried, *await self._service(uid).ensure(network, layout.ports_of(uid))]

    async def _mend_gateway(self, uid: str) -> Sequence[str]:
        layout = await self._layout()
        if (order := layout.gateways.get(uid)) is None:
            return ()
        return await self._gateway(uid).ensure(order, layout.gateways)

    # Parts

    async def _ensure_namespace(
        self, order: SegmentOrder, there: Mapping[str, Link]
    ) -> tuple[list[str], Mapping[str, Link]]:
        """Have the namespace that serves the network, before the cables that go there; what was not so, and the devices that
        are there then."""
        wrong = list(await self._service(order.uid).ensure_namespace(order))
        if wrong:  # cables that are there end in a namespace that has lost its name
            cables = {names.service(order.uid), names.uplink(order.uid)} & there.keys()
            await self._delete(cables)
            there = {name: link for name, link in there.items() if name not in cables}
        return wrong, there

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

    def _put_back_gateway(self, before: Layout, uid: str) -> None:
        if (order := before.gateways.get(uid)) is not None:
            self._record.keep_gateway(order)
        else:
            self._record.forget_gateway(uid)

    def _gateway(self, uid: str) -> Gateway:
        if (gateway := self._gateways.get(uid)) is None:
            gateway = self._gateways[uid] = self._new_gateway(uid)
        return gateway

    def _service(self, uid: str) -> Service:
        if (service := self._services.get(uid)) is None:
            service = self._services[uid] = self._new_service(uid)
        return service

    async def _serve(self, layout: Layout, uid: str) -> None:
        if (network := layout.networks.get(uid)) is not None:
            await self._service(uid).tell(network, layout.ports_of(uid))

    async def _links(self) -> dict[str, Link]:
        return links.parse(await run([str(self._host.ip), "-json", "-details", "address"]))

    async def _delete(self, devices: Collection[str]) -> None:
        for device in sorted(devices):
            await attempt([str(self._host.ip), "link", "delete", "dev", device])


def _reason(error: NetworkError | OSError) -> str:
    return error.reason if isinstance(error, NetworkError) else type(error).__name__
