"""Witnesses of hosts that are silent: who can say that they are alive is asked before they are fenced (ADR 39).

Other hosts are asked by work orders of type Witness, which are there while the host is silent, and no longer. What they answer is
kept in a `WitnessBook` that the reconcilers of hosts and of fencing read; nothing is decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog

from kumulus.api.base import ObjectRef
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.host import HostReport, WorkOrder, WorkOrderSpec, WorkState, WorkType
from kumulus.api.order_names import pool_order_name, witness_order_name
from kumulus.api.witness import Says, Statement, WitnessKind, WitnessOrder
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists, Conflict, NotFound
from kumulus.kube.lease import Lease
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.fabric import witness_plan
from kumulus_controllers.fabric.automatic import ON_HOST, wants
from kumulus_controllers.fabric.fencing import Fencer, FencingError, Power, target
from kumulus_controllers.fabric.liveness import LeaseBook, Liveness
from kumulus_controllers.fabric.remediation_plan import budget, too_many
from kumulus_controllers.fabric.witness_book import WitnessBook
from kumulus_controllers.fabric.witness_plan import AT_ONCE, Hearing, Peer
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import FOR_NAME, NAMESPACE, host_of, work_orders

log = structlog.get_logger(__name__)

WITNESSES = "kumulus.health.witnesses"
"""Extension point, and entry point group, of what else can say whether a host is alive; by name."""
ASK_SECONDS = 5.0
"""So long may such a one take to answer."""
ASK_EVERY = 10.0
LOOK_EVERY = 5.0
"""Seconds between two looks at who is asked, should nothing change."""


class Witness(Protocol):
    """Somebody that the controllers ask by themselves."""

    kind: WitnessKind

    async def look(self, client: KubeClient, host: Host) -> tuple[Says, str] | None:
        """What it says of the host, and why; None: it knows nothing of such hosts. Alive and Dead are for who has proof."""


class BmcWitness:
    """The host's BMC. Off is Dead. That it is on says nothing of what runs there."""

    kind = WitnessKind.BMC

    def __init__(self, fencers: Mapping[str, Fencer]) -> None:
        self._fencers = fencers

    async def look(self, client: KubeClient, host: Host) -> tuple[Says, str] | None:
        """See `Witness.look`."""
        if host.spec.bmc is None or (fencer := self._fencers.get(host.spec.bmc.type)) is None:
            return None
        try:
            power = await fencer.power(await target(client, host))
        except FencingError as error:
            return Says.UNKNOWN, str(error)[:512]
        match power:
            case Power.OFF:
                return Says.DEAD, "the power is off"
            case Power.ON:
                return Says.UNKNOWN, "the power is on, which says nothing of what runs there"
        return Says.UNKNOWN, "the power is neither on nor off"


def addresses(report: HostReport | None) -> tuple[str, ...]:
    """Where a host's agent may be reached: where it serves images, and its underlay, which may be another network. Pure."""
    if report is None or report.status.transfer is None:
        return ()
    network = report.status.network
    found = (report.status.transfer.address, network.underlay if network is not None else None)
    return tuple(dict.fromkeys(item for item in found if item is not None))


class WitnessReconciler:
    """Has hosts that fall silent looked at. The only writer of orders of type Witness."""

    name = "witness"

    def __init__(self, services: Services, book: WitnessBook, witnesses: Mapping[str, Witness]) -> None:
        self._services = services
        self._book = book
        self._witnesses = witnesses
        self._hosts = services.caches.store(Host)
        self._machines = services.caches.store(VirtualMachine)
        self._reports = services.caches.store(HostReport)
        self._orders = work_orders(services.caches)
        self._ordering = Ordering(services, self._orders)
        self._leases = services.caches.reflected(Lease, fields=f"metadata.name={LEASE_NAME}")
        self._lives = LeaseBook(services.clock)
        self._asked: dict[str, tuple[float, tuple[Statement, ...]]] = {}
        """When the witnesses of our own were asked about a host, in monotonic seconds, and what they said."""
        self._machines.add_index(ON_HOST, wants)

    def attach(self, enqueue: Enqueue) -> None:
        """Hosts that change; the answers; Leases of hosts that are asked about, and for the time alone."""

        def host_changed(before: Host | None, after: Host | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(None, item.name))

        def lease_changed(before: Lease | None, after: Lease | None) -> None:
            host = self._lives.note(after) if after is not None else None
            if host is not None and self._book.hearing(host) is not None:
                enqueue(Key(None, host))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.WITNESS:
                enqueue(Key(None, order.spec.for_.name))

        self._hosts.listen(host_changed)
        self._leases.listen(lease_changed)
        self._orders.listen(order_changed)

    def everything(self) -> list[Key]:
        """All hosts."""
        return self._hosts.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a host."""
        host = self._hosts.get(key.name)
        orders = self._orders_about(key.name)
        if host is None:
            self._lives.forget(key.name)
            await self._end(key.name, orders)
            return Gone()
        if host.paused:
            return Done()
        verdict, machines = self._lives.verdict(host.name), len(self._machines.by(ON_HOST, host.name))
        late = self._lives.on_time(host.name) <= 0 and not self._many()
        wanted = witness_plan.wanted(host, verdict, late=late, machines=machines)
        if wanted is False:
            await self._end(host.name, orders)
            if host.spec.fencing.automatic and machines and verdict.liveness is Liveness.ALIVE:
                return Requeue(max(0.1, self._lives.on_time(host.name)) + 0.05)
            return Done()
        most = max(AT_ONCE, budget(len(self._hosts)))
        asking = bool(orders) or (bool(wanted) and self._book.asked(besides=host.name) < most)
        if wanted and asking:
            orders = await self._ask(host, orders)
        if (before := self._book.hearing(host.name)) != (heard := await self._hear(host, orders, settled=asking)):
            if heard.says is not (before.says if before is not None else Says.UNKNOWN):
                log.warning("witnesses of a silent host", host=host.name, says=heard.says)
            self._book.put(host.name, heard)
        return Requeue(LOOK_EVERY)

    def _many(self) -> bool:
        """Whether so many hosts are late that nobody is going to be switched off, and it is not they who are silent."""
        return too_many(sum(self._lives.late(host.name) for host in self._hosts), len(self._hosts))

    def _orders_about(self, host: str) -> list[WorkOrder]:
        found = self._orders.by(FOR_NAME, f"{Host.KIND.kind}//{host}")
        return [order for order in found if order.spec.type is WorkType.WITNESS and not order.deleting]

    async def _end(self, host: str, orders: list[WorkOrder]) -> None:
        self._asked.pop(host, None)
        self._book.drop(host)
        for order in orders:
            await self._ordering.end(order)

    async def _ask(self, host: Host, orders: list[WorkOrder]) -> list[WorkOrder]:
        """Have the right hosts look; returns their orders."""
        there = {host_of(order): order for order in orders if order.spec.for_.uid == host.uid}
        peers = {peer.name: peer for peer in witness_plan.chosen(host.uid, self._able(host), there)}
        for order in orders:
            if host_of(order) not in peers or order.spec.for_.uid != host.uid:
                await self._ordering.end(order)
        for peer in peers.values():
            spec = self._spec(host, peer)
            before = there.get(peer.name)
            try:
                if before is None:
                    body = {"metadata": {"name": witness_order_name(host.uid)}, "spec": spec.to_json()}
                    client = self._services.client
                    self._orders.apply(await client.create(WorkOrder.KIND, body, host_namespace(peer.name)))
                elif before.spec.witness != spec.witness:
                    await self._ordering.change(before, spec)
            except (AlreadyExists, Conflict, NotFound):  # the cache is behind, or that host is going
                continue
        return self._orders_about(host.name)

    def _spec(self, host: Host, peer: Peer) -> WorkOrderSpec:
        report = self._reports.get(host.name, host_namespace(host.name))
        at = report.status.transfer if report is not None else None
        return WorkOrderSpec(
            type=WorkType.WITNESS,
            for_=ObjectRef(kind=Host.KIND.kind, name=host.name, uid=host.uid),
            term=self._services.term(),
            witness=WitnessOrder(
                host=host.name,
                addresses=addresses(report),
                port=at.port if at is not None else None,
                pools=peer.pools,
            ),
        )

    def _able(self, host: Host) -> list[Peer]:
        """Hosts that can be asked: those that are heard of, with the pools that they share with it."""
        own = self._orders.by(NAMESPACE, host_namespace(host.name))
        shared = sorted(
            order.spec.pool.pool.uid for order in own if order.spec.pool is not None and order.spec.pool.pool.shared
        )[:8]
        found = []
        for peer in self._hosts:
            if peer.name == host.name or not self._hears(peer):
                continue
            namespace = host_namespace(peer.name)
            presences = ((uid, self._orders.get(pool_order_name(uid), namespace)) for uid in shared)
            pools = (uid for uid, order in presences if order is not None and order.status.state is WorkState.READY)
            found.append(Peer(peer.name, tuple(pools)))
        return found

    def _hears(self, peer: Host) -> bool:
        """Whether what it says is of now: it is heard of itself."""
        if peer.deleting or peer.fencing or self._lives.on_time(peer.name) <= 0:
            return False
        return self._lives.verdict(peer.name).liveness is Liveness.ALIVE

    async def _hear(self, host: Host, orders: list[WorkOrder], *, settled: bool) -> Hearing:
        """What is said now. `settled`: whoever can be asked was asked; that nobody can is an answer too."""
        said: list[Statement] = []
        for order in sorted(orders, key=host_of):
            peer = self._hosts.get(host_of(order))
            if peer is None or not self._hears(peer):
                continue
            found, complete = witness_plan.statements(peer.name, order.status.witness)
            said += found
            settled = settled and complete
        return Hearing((*said, *await self._look(host)), settled)

    async def _look(self, host: Host) -> tuple[Statement, ...]:
        """What witnesses of our own say; they are asked now and then."""
        now = self._services.clock.monotonic()
        at, before = self._asked.get(host.name, (float("-inf"), ()))
        if now - at < ASK_EVERY:
            return before
        found = [await self._one(host, name, witness) for name, witness in sorted(self._witnesses.items())]
        said = tuple(item for item in found if item is not None)
        self._asked[host.name] = (now, said)
        return said

    async def _one(self, host: Host, name: str, witness: Witness) -> Statement | None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                found = await witness.look(self._services.client, host)
        except TimeoutError:
            found = Says.UNKNOWN, "it does not answer in time"
        except Exception:
            log.exception("a witness failed", host=host.name, witness=name)
            found = Says.UNKNOWN, "it failed; the log of the controllers says how"
        if found is None:
            return None
        return Statement(witness=name, kind=witness.kind, says=found[0], message=found[1][:512])


def built_in(fencers: Mapping[str, Fencer]) -> dict[str, Witness]:
    """The witnesses that there always are."""
    return {"bmc": BmcWitness(fencers)}
