"""`NetworkDriver` for a host with Open vSwitch and OVN, whose databases are the host's own.

Every change goes the same way: it is put on record, then what stands in the northbound database is made to follow from the
record in one transaction, then devices, flows between hosts and what serves guests are made. A crash anywhere leaves what
the next call with the same order completes. A port passes nothing before OVN knows it, so a guest cannot be early.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from kumulus.api.gateways import GatewayFunction
from kumulus.api.segments import Nic, SegmentFacts, SegmentOrder
from kumulus_agents.network.linux import host as linux_host
from kumulus_agents.network.linux import links, traffic
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.layout import Layout, Network
from kumulus_agents.network.linux.links import Commands, Link
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.linux.record import Record
from kumulus_agents.network.linux.service import Service
from kumulus_agents.network.ovn import connections, host, names, northbound, transport
from kumulus_agents.network.ovn import guard as guarding
from kumulus_agents.network.ovn.rows import Rows
from kumulus_agents.network.ovn.settings import OvnSettings
from kumulus_agents.network.protocol import Dropped, Found, NetworkDriver, NetworkError, Plug, Port, Traffic

if TYPE_CHECKING:
    from kumulus_agents.network.ovn.database import Northbound, Switch

log = structlog.get_logger(__name__)

_FORCE_SECONDS = 20.0
"""Within which ovn-northd and ovn-controller have to have a change in force."""


class OvnNetwork:
    """See `NetworkDriver`. One change at a time."""

    def __init__(self, settings: OvnSettings) -> None:
        self._settings = settings
        self._record = Record(Path(settings.state))
        self._lock = asyncio.Lock()
        self._known: Layout | None = None
        self._services: dict[str, Service] = {}
        self._underlay = str(settings.underlay) if settings.underlay else None
        self._north: Northbound | None = None
        self._switch: Switch | None = None
        self._rows: Rows | None = None
        """What is in force, with no connection that it does not allow."""
        self._in_force = False
        """Whether all that was written to the northbound database is known to be in force."""
        self._limited: Mapping[int, int] | None = None
        """How many connections which conntrack zone may have, as was last said; None when that may be otherwise."""
        self._kind = self._datapath = ""
        self._flows: dict[str, Sequence[str]] = {}
        """Of the bridge of tunnels, by network, as they were last loaded."""

    async def prepare(self) -> None:
        """See `NetworkDriver.prepare`. ProgramMissing, NotRunning, OvnInUse, NotAnswering are its reasons."""
        await host.check(self._settings)
        async with self._lock:
            await self._connect()
            await self._configure()
            self._known = await asyncio.to_thread(self._record.load)
            self._in_force = False
            await self._enforce(self._known)
            await self._adopt(self._known)

    async def functions(self) -> Mapping[GatewayFunction, str | None]:
        """See `NetworkDriver.functions`. None yet."""
        return {}

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
            self._known = layout
            await self._carry(network, await self._links())
            await service.ensure(network, layout.ports_of(segment.uid))
            return SegmentFacts(vni=segment.vni, mtu=segment.mtu, ports=len(layout.ports_of(segment.uid)))

    async def remove_segment(self, uid: str) -> None:
        """See `NetworkDriver.remove_segment`."""
        async with self._lock:
            layout = await self._layout()
            if layout.ports_of(uid):
                raise NetworkError("The network has interfaces on this host; remove them first.", reason="SegmentInUse")
            there = await self._links()
            served = not _is_theirs(uid, layout, there)
            if served:
                await self._service(uid).remove()
            for port in (devices.service(uid), *names.anchor(uid)):
                await asyncio.to_thread(self._plugs.remove_port, port)
            if served:
                await self._delete(there.keys() & {devices.uplink(uid), devices.service(uid)})
            layout = layout.without_network(uid)
            await self._enforce(layout)
            await self._load(uid, ())
            await self._disconnected(uid)
            await asyncio.to_thread(self._record.forget_network, uid)
            self._known = layout
            self._services.pop(uid, None)

    async def ensure_port(self, port: Port) -> Plug:
        """See `NetworkDriver.ensure_port`."""
        async with self._lock:
            before = await self._layout()
            network = before.networks.get(port.nic.network)
            if network is None:
                raise NetworkError(
                    "The network is not on this host yet; its order comes first.", reason="SegmentNotReady"
                )
            had = before.places.get(port.nic.uid)
            layout = before.with_port(port)
            await asyncio.to_thread(self._record.keep_port, layout.places[port.nic.uid])
            try:
                await self._guard(network.order, port.nic)
                await self._enforce(layout)
            except Exception:
                await asyncio.to_thread(self._put_back_port, before, port.nic.uid)
                raise
            self._known = layout
            if had is not None and had.port.nic.network != port.nic.network:
                await self._serve(layout, had.port.nic.network)
            await self._serve(layout, port.nic.network)
            return Plug(
                device=devices.tap(port.nic.uid),
                bridge=names.guard(port.nic.uid),
                mtu=network.order.mtu,
                openvswitch=port.nic.uid,
            )

    async def remove_port(self, uid: str) -> None:
        """See `NetworkDriver.remove_port`."""
        async with self._lock:
            layout = await self._layout()
            place = layout.places.get(uid)
            if place is not None:
                layout = layout.without_port(uid)
                await self._enforce(layout)
            await asyncio.to_thread(self._plugs.remove_port, names.patches(uid)[1])
            await asyncio.to_thread(self._plugs.remove_port, devices.tap(uid))
            await asyncio.to_thread(self._plugs.remove_bridge, names.guard(uid))
            if place is None:
                return
            await self._serve(layout, place.port.nic.network)
            await asyncio.to_thread(self._record.forget_port, uid)
            self._known = layout

    async def found(self) -> Found:
        """See `NetworkDriver.found`."""
        async with self._lock:
            layout = await self._layout()
            assert self._north is not None
            marks = {*await asyncio.to_thread(linux_host.namespaces), *await asyncio.to_thread(self._north.switches)}
            interfaces = await asyncio.to_thread(self._plugs.interfaces)
            plugged = [one for name, one in interfaces.items() if names.is_patch(name)]
            there = await self._links()
            segments = {uid for mark in marks if (uid := names.network_of(mark))}
            return Found(
                segments=frozenset(uid for uid in {*segments, *layout.networks} if not _is_theirs(uid, layout, there)),
                ports=frozenset(layout.places) | {one.id for one in plugged if one.id is not None},
                foreign=links.foreign(there),
            )

    async def mend(self) -> Sequence[str]:
        """See `NetworkDriver.mend`. Others may use the driver between two networks; one that cannot be mended is in the
        log and holds up no other."""
        wrong: list[str] = []
        async with self._lock:
            layout = await self._layout()
            if await self._configure():
                wrong.append("Open vSwitch was not told what it should be.")
            if await self._enforce(layout):
                wrong.append("The northbound database was not what it should be.")
            self._limited = None
            if await self._limit(layout):
                wrong.append("Guests could track more connections than they may.")
            for place in layout.places.values():
                if (network := layout.networks.get(place.port.nic.network)) is not None:
                    wrong += await self._guard(network.order, place.port.nic)
            if await self._adopt(layout):
                wrong.append(f"{self._settings.transport} did not forward as it should.")
        for uid in sorted(layout.networks):
            try:
                async with self._lock:
                    wrong += await self._mend(uid)
            except NetworkError as error:
                log.warning("network not mended", network=uid, reason=error.reason, error=str(error))
        return wrong

    async def guard(self) -> Sequence[str]:
        """See `NetworkDriver.guard`. Nothing else on a host loads flows or rows of OVN, as a firewall loads rules: what somebody
        changes by hand waits for the next `mend`."""
        await asyncio.Event().wait()
        return ()

    async def dropped(self) -> Sequence[Dropped]:
        """See `NetworkDriver.dropped`. OVN counts flows and not ACLs, so there is nothing to say."""
        return ()

    async def traffic(self) -> Sequence[Traffic]:
        """See `NetworkDriver.traffic`."""
        return await asyncio.to_thread(traffic.read, self._known or Layout())

    async def _mend(self, uid: str) -> Sequence[str]:
        layout = await self._layout()
        if (network := layout.networks.get(uid)) is None:
            return ()
        carried = await self._carry(network, await self._links())
        return [*carried, *await self._service(uid).ensure(network, layout.ports_of(uid))]

    # Databases

    @property
    def _plugs(self) -> Switch:
        if self._switch is None:
            raise NetworkError("Open vSwitch was not looked for yet.", reason="NotRunning")
        return self._switch

    async def _connect(self) -> None:
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

    async def _configure(self) -> bool:
        """Have Open vSwitch know this host's OVN, and the bridge of tunnels; whether it was not so. Raises `NetworkError`."""
        settings, switch = self._settings, self._plugs
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
        datapath = await host.datapath(settings)
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
        self._kind, self._datapath = datapath, f"{datapath}@ovs-{datapath}"
        changed = ours.items() - said.items() != set()
        made = False
        for bridge in (settings.integration, settings.transport):
            made |= await asyncio.to_thread(switch.ensure_bridge, bridge, datapath)
        await asyncio.to_thread(switch.tell, ours)
        if self._underlay:
            options = {"remote_ip": "flow", "key": "flow", "local_ip": self._underlay}
            made |= await asyncio.to_thread(
                lambda: switch.ensure_port(settings.transport, names.TUNNEL, type="geneve", options=options)
            )
        if made or changed:
            self._flows.clear()
        return made or changed

    async def _enforce(self, layout: Layout) -> bool:
        """Have that in the northbound database, and in force on this host; whether it was not so. After a call that did not
        come to its end nobody knows what is in force, so the next one waits whatever stands there. Raises `NetworkError`:
        DatabaseFailed, NotAnswering."""
        assert self._north is not None
        north, rows = self._north, northbound.render(layout, self._settings.lease_seconds)
        anew, self._in_force = not self._in_force, False
        number = await asyncio.to_thread(lambda: north.apply(rows, anew=anew))
        if number is not None:
            await self._await(number)
        self._in_force = True
        ports = layout.places.keys() if self._rows is None else connections.narrower(self._rows, rows)
        if ports:
            await self._cut(layout, ports)
        self._rows = rows
        await self._limit(layout)
        return number is not None

    async def _await(self, number: int) -> None:
        """Return when the change of that number is in force on this host. Raises `NetworkError`."""
        deadline = time.monotonic() + _FORCE_SECONDS
        while await asyncio.to_thread(self._plugs.reached, self._settings.integration) < number:
            if time.monotonic() > deadline:
                raise NetworkError(
                    "ovn-northd or ovn-controller of this host does not answer; look at the services ovn-central and"
                    " ovn-host.",
                    reason="NotAnswering",
                )
            await asyncio.sleep(0.005)

    async def _cut(self, layout: Layout, ports: Collection[str]) -> None:
        """Have connections of these ports forgotten that no rule allows."""
        zones = await asyncio.to_thread(self._plugs.zones, self._settings.integration)
        if not zones.keys() & set(ports):
            return
        control = await self._control()
        listing = await run([*control, "dpctl/dump-conntrack", self._datapath])
        for said in connections.forgetting(connections.forbidden(layout, ports, zones, listing)):
            # Beside a connection to forget the command takes no name of a datapath.
            status, _, err = await attempt([*control, "dpctl/flush-conntrack", *said])
            if status != 0 and "No such file" not in err:  # it has ended meanwhile
                raise NetworkError(
                    f"Connections that are not allowed any more cannot be cut: {' '.join(err.split())[:300]}.",
                    reason="CommandFailed",
                )

    async def _limit(self, layout: Layout) -> bool:
        """Have no guest track more connections than it may; whether one could. A datapath that knows no limits is in the log:
        its guests work all the same."""
        zones = await asyncio.to_thread(self._plugs.zones, self._settings.integration)
        most = self._settings.connections
        wanted = {zones[uid]: most for uid in layout.places if uid in zones}
        if self._limited == wanted:
            return False
        control = await self._control()
        status, out, err = await attempt([*control, "dpctl/ct-get-limits", self._datapath])
        there = connections.limits(out)
        missing = sorted(wanted.items() - there.items())
        gone = sorted(zone for zone, limit in there.items() if limit == most and zone not in wanted)
        if status == 0 and missing:
            said = [f"zone={zone},limit={limit}" for zone, limit in missing]
            status, _, err = await attempt([*control, "dpctl/ct-set-limits", self._datapath, *said])
        if status == 0 and gone:
            said = [f"zone={','.join(map(str, gone))}"]
            status, _, err = await attempt([*control, "dpctl/ct-del-limits", self._datapath, *said])
        if status != 0:
            log.warning("connections of guests are not limited", error=" ".join(err.split())[:300])
        self._limited = wanted
        return bool(missing)

    async def _control(self) -> Sequence[str]:
        return [str(self._settings.appctl), "-t", str(await asyncio.to_thread(host.control, self._settings))]

    async def _layout(self) -> Layout:
        """What shall be here."""
        if self._known is None:
            await self._connect()
            await self._configure()
            self._known = await asyncio.to_thread(self._record.load)
        return self._known

    # What guests and other hosts are reached by

    async def _carry(self, network: Network, there: Mapping[str, Link]) -> Sequence[str]:
        """Have the network's cables on the host, plugged in, and its way to other hosts; what was not so. The namespace
        comes first, for the cables go there."""
        order, switch = network.order, self._plugs
        wrong = list(await self._service(order.uid).ensure_namespace(order))
        if wrong:  # cables that are there end in a namespace that has lost its name
            cables = {devices.service(order.uid), devices.uplink(order.uid)} & there.keys()
            await self._delete(cables)
            there = {name: link for name, link in there.items() if name not in cables}
        cable = devices.service(order.uid)
        if order.subnets and cable not in there:  # Open vSwitch would hold on to the device that is gone
            await asyncio.to_thread(switch.remove_port, cable)
        wrong += await self._perform(links.cables(order, there))
        integration, ids = self._settings.integration, {"iface-id": cable}
        new = bool(order.subnets) and await asyncio.to_thread(
            lambda: switch.ensure_port(integration, cable, external_ids=ids)
        )
        if new:
            wrong.append(f"{cable} was not plugged into {integration}.")
        if order.vni and self._underlay:
            here, there_ = names.anchor(order.uid)
            for bridge, end, peer, more in (
                (self._settings.integration, here, there_, {"external_ids": {"iface-id": here}}),
                (self._settings.transport, there_, here, {}),
            ):
                columns: dict[str, object] = {"type": "patch", "options": {"peer": peer}, **more}
                if await asyncio.to_thread(switch.ensure_port, bridge, end, **columns):
                    wrong.append(f"{end} was not plugged into {bridge}.")
            ends = await self._ends(order.uid)
            said = transport.flows(order, ends, self._underlay)
            if await self._load(order.uid, said):
                wrong.append(f"{self._settings.transport} did not forward for {names.switch(order.uid)}.")
        return wrong

    async def _ends(self, uid: str) -> transport.Ends:
        """Ports of the bridge of tunnels, with the network's among them. ovn-controller makes it when it knows the network."""
        deadline = time.monotonic() + _FORCE_SECONDS
        while True:
            there = await asyncio.to_thread(self._plugs.interfaces)
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
            await asyncio.sleep(0.005)

    async def _disconnected(self, uid: str) -> None:
        """Return when ovn-controller has taken its port of the bridge of tunnels away. Raises `NetworkError`."""
        deadline = time.monotonic() + _FORCE_SECONDS
        patch = names.patch(uid, self._settings.integration)
        while patch in await asyncio.to_thread(self._plugs.interfaces):
            if time.monotonic() > deadline:
                raise NetworkError(
                    f"ovn-controller of this host does not take {patch} away; look at the service ovn-host.",
                    reason="NotAnswering",
                )
            await asyncio.sleep(0.005)

    async def _load(self, uid: str, said: Sequence[str]) -> bool:
        """Have these flows for the network, in one step; whether it had others."""
        if self._flows.get(uid) == said:
            return False
        base = [] if self._flows else [f"add {flow}" for flow in transport.base()]
        commands = [*base, *transport.replacing(uid, self._flows.get(uid), said)]
        await run(
            [*self._ofctl, "--bundle", "add-flows", self._management, "-"],
            "".join(f"{command}\n" for command in commands),
        )
        if said:
            self._flows[uid] = said
        else:
            self._flows.pop(uid, None)
        return True

    async def _adopt(self, layout: Layout) -> bool:
        """Have the bridge of tunnels forward for all networks that are connected to it and for no others, in one step; whether
        it did not."""
        there = await asyncio.to_thread(self._plugs.interfaces)
        tunnel = there.get(names.TUNNEL)
        wanted: dict[str, Sequence[str]] = {}
        for uid, network in layout.networks.items():
            end = there.get(names.patch(uid, self._settings.integration))
            if tunnel and end and tunnel.number and end.number:
                ends = transport.Ends(tunnel.number, {uid: end.number})
                wanted[uid] = transport.flows(network.order, ends, self._underlay)
        wanted = {uid: said for uid, said in wanted.items() if said}
        flows = [*transport.base(), *(flow for said in wanted.values() for flow in said)]
        same = await self._same(self._management, "".join(f"{flow}\n" for flow in flows))
        if not same:
            commands = ["delete", *(f"add {flow}" for flow in flows)]
            given = "".join(f"{command}\n" for command in commands)
            await run([*self._ofctl, "--bundle", "add-flows", self._management, "-"], given)
        self._flows = wanted
        return not same

    async def _same(self, management: str, flows: str) -> bool:
        """Whether a bridge has these flows, and no others but what it has learned."""
        status, out, _ = await attempt([*self._ofctl, "diff-flows", management, "/dev/stdin"], flows)
        return status == 0 or (bool(out) and transport.same(out))

    @property
    def _ofctl(self) -> Sequence[str]:
        """The command; in the version of OpenFlow in which it says flows as they were given."""
        return (str(self._settings.ofctl), "-O", "OpenFlow13")

    @property
    def _management(self) -> str:
        return f"unix:{self._settings.openvswitch / self._settings.transport}.mgmt"

    async def _guard(self, order: SegmentOrder, nic: Nic) -> Sequence[str]:
        """Have the bridge between a guest and OVN, with the tap on it if that is there, and then its way to OVN; what was not
        so."""
        switch, guard = self._plugs, names.guard(nic.uid)
        inner, outer = names.patches(nic.uid)
        tap = devices.tap(nic.uid)
        wrong = []
        if await asyncio.to_thread(switch.ensure_bridge, guard, self._kind):
            wrong.append(f"{guard} was missing.")
        if tap in await self._links() and await asyncio.to_thread(
            lambda: switch.ensure_port(guard, tap, external_ids={"iface-id": nic.uid})
        ):
            wrong.append(f"{tap} was not plugged into {guard}.")
        if await asyncio.to_thread(lambda: switch.ensure_port(guard, inner, type="patch", options={"peer": outer})):
            wrong.append(f"{inner} was not plugged into {guard}.")
        end = (await asyncio.to_thread(switch.interfaces))[inner].number
        if end is None:
            raise NetworkError(f"Open vSwitch does not make {inner}; look at ovs-vsctl show.", reason="NotAnswering")
        flows = "".join(f"{flow}\n" for flow in guarding.flows(order, nic, end))
        management = f"unix:{self._settings.openvswitch / guard}.mgmt"
        if not await self._same(management, flows):
            await run([*self._ofctl, "--bundle", "replace-flows", management, "-"], flows)
            wrong.append(f"{guard} did not keep the guest from what it must not send.")
        integration, ids = self._settings.integration, {"iface-id": nic.uid}
        if await asyncio.to_thread(
            lambda: switch.ensure_port(integration, outer, type="patch", options={"peer": inner}, external_ids=ids)
        ):
            wrong.append(f"{outer} was not plugged into {integration}.")
        return wrong

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

    def _service(self, uid: str) -> Service:
        return self._services.setdefault(uid, Service(uid, self._settings, dhcp4=False))

    async def _serve(self, layout: Layout, uid: str) -> None:
        if (network := layout.networks.get(uid)) is not None:
            await self._service(uid).tell(network, layout.ports_of(uid))

    async def _links(self) -> dict[str, Link]:
        return links.parse(await run([str(self._settings.ip), "-json", "-details", "address"]))

    async def _delete(self, there: Collection[str]) -> None:
        for device in sorted(there):
            await attempt([str(self._settings.ip), "link", "delete", "dev", device])

    async def _perform(self, commands: Commands) -> Sequence[str]:
        if commands.ip:
            await run([str(self._settings.ip), "-batch", "-"], "".join(f"{line}\n" for line in commands.ip))
        return commands.wrong


def _is_theirs(uid: str, layout: Layout, there: Collection[str]) -> bool:
    """Whether a network of that uid is the driver `linux`'s, whose namespaces and cables have the same names."""
    return uid not in layout.networks and devices.bridge(uid) in there


def create(settings: Mapping[str, object]) -> NetworkDriver:
    """The driver; what the entry point names. Raises pydantic's `ValidationError`."""
    return OvnNetwork(OvnSettings.model_validate(settings))
