"""Host: its namespace, whether it is alive, what it has, and its removal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from kumulus.api.base import FORCE_DETACH, ConditionStatus
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import (
    HOST_NAMESPACE_PREFIX,
    NOT_ORDERED,
    Capacity,
    Host,
    HostCondition,
    HostPhase,
    HostStatus,
    host_namespace,
)
from kumulus.api.host import LEASE, FenceOrder, HostReport, NetworkFacts, WorkOrder, WorkType
from kumulus.api.quantity import to_bytes
from kumulus.kube.lease import Lease
from kumulus.kube.store import Key
from kumulus.runtime.clock import parse_time, rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.fabric.credentials import NamespaceEnding, NamespaceTaken, ensure_namespace, remove_namespace
from kumulus_controllers.fabric.host_maintenance import under_work
from kumulus_controllers.fabric.liveness import LeaseBook, Liveness, Verdict
from kumulus_controllers.fabric.watchdog import armed
from kumulus_controllers.fabric.witness_book import WitnessBook
from kumulus_controllers.fabric.witness_plan import Hearing, isolated
from kumulus_controllers.orders import NAMESPACE, host_of, work_orders
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status

_TOLD = (WorkType.FENCE, WorkType.WATCHDOG)
"""Orders of which a Host's conditions tell."""
EXPIRING = timedelta(minutes=10)
COUNT_SECONDS = 20.0
"""How stale the counts of machines in a Host's status may be: they are no reason for a write per machine."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    host: Host
    report: HostReport | None
    verdict: Verdict
    orders: tuple[WorkOrder, ...]
    machines: tuple[VirtualMachine, ...]
    taken: bool = False
    """Its namespace belongs to something else."""
    ending: bool = False
    """A namespace of that name is still being deleted."""
    hearing: Hearing | None = None
    """What witnesses say of it while it is silent."""
    lease: Lease | None = None

    @property
    def watchdog(self) -> WorkOrder | None:
        """Has its watchdog armed."""
        return next((order for order in self.orders if order.spec.type is WorkType.WATCHDOG), None)

    @property
    def fence(self) -> FenceOrder | None:
        """Says that the host is being fenced, or was."""
        return next((order.spec.fence for order in self.orders if order.spec.type is WorkType.FENCE), None)

    @property
    def volumes(self) -> tuple[WorkOrder, ...]:
        """Orders of volumes that have their data on the host."""
        return tuple(order for order in self.orders if _keeps(order) and not _shared(order))

    @property
    def arriving(self) -> tuple[WorkOrder, ...]:
        """Orders of machines whose guests are on their way to the host."""
        return tuple(order for order in self.orders if _arrives(order))

    @property
    def handed_over(self) -> tuple[WorkOrder, ...]:
        """Orders of volumes and snapshots that the host sees to, and another one could: their pools are shared."""
        return tuple(order for order in self.orders if (_keeps(order) and _shared(order)) or _snapped(order))


def _arrives(order: WorkOrder) -> bool:
    instance = order.spec.instance
    return instance is not None and instance.incoming is not None and not order.deleting


def _keeps(order: WorkOrder) -> bool:
    return order.spec.disk is not None and order.spec.disk.volume is not None


def _shared(order: WorkOrder) -> bool:
    return order.spec.disk is not None and order.spec.disk.pool.shared


def _snapped(order: WorkOrder) -> bool:
    """Whether it keeps snapshots in pools that hosts share."""
    return order.spec.snapshot is not None and any(item.pool.shared for item in order.spec.snapshot.items)


def allocatable(host: Host, capacity: Capacity) -> Capacity:
    """What may be promised: what there is, less what is reserved, times overcommit."""
    reserved, factor = host.spec.reserved, host.spec.overcommit
    return Capacity(
        cpus=int(max(capacity.cpus - reserved.cpu, 0) * factor.cpu),
        memory=int(max(capacity.memory - to_bytes(reserved.memory), 0) * factor.memory),
    )


def _liveness(scope: Scope) -> Liveness:
    """What the Lease says; a host that was lost when we last looked stays lost until its Lease is renewed before our
    eyes, else every restart of the controllers would open dead hosts for machines."""
    before = scope.host.status.condition(HostCondition.READY)
    was_lost = before is not None and before.status is ConditionStatus.UNKNOWN
    if scope.verdict.liveness is Liveness.ALIVE and not scope.verdict.witnessed and was_lost:
        return Liveness.EXPIRED
    return scope.verdict.liveness


def readiness(scope: Scope) -> Fact:
    """The condition Ready."""
    ready = HostCondition.READY
    match _liveness(scope):
        case Liveness.NEVER_SEEN:
            return Fact(
                ready,
                False,
                "AgentNeverSeen",
                "The agent has not reported yet: run kumulus-agent join and kumulus-agent run on the host.",
            )
        case Liveness.EXPIRED:
            return Fact(
                ready,
                ConditionStatus.UNKNOWN,
                "LeaseExpired",
                "The agent has stopped renewing its Lease. Whether machines still run there is not known; look at the host and its network.",
            )
    if scope.report is None:
        return Fact(ready, False, "NoReport", "The agent is alive but has not said yet what the host has.")
    if not scope.report.status.hypervisor_ready:
        why = scope.report.status.hypervisor_message or "no reason given"
        return Fact(ready, False, "HypervisorNotReady", f"The hypervisor does not answer: {why}")
    return Fact(ready, True, "AgentAlive", "The agent is alive and the hypervisor answers.")


def _network(network: NetworkFacts) -> Fact:
    """Whether machines with interfaces can run there."""
    drivers = ", ".join(network.drivers)
    if not drivers:
        why = network.message or "The agent does not say why."
        return Fact(HostCondition.NETWORK_READY, False, "NoDriver", f"It can have no networks: {why}")
    if network.underlay is None:
        why = network.message or "Tell the agent which address other hosts reach it at."
        return Fact(HostCondition.NETWORK_READY, False, "NoUnderlay", f"Other hosts cannot reach its tunnels: {why}")
    others = f" Others lack something: {network.message}" if network.message else ""
    return Fact(
        HostCondition.NETWORK_READY,
        True,
        "Ready",
        f"Networks of driver {drivers}, tunnels at {network.underlay}.{others}",
    )


def _fenced(fence: FenceOrder) -> Fact:
    """Whether it is known to be off."""
    if fence.fenced:
        said = "It is off for certain, as a HostRemediation says (kubectl get hostrem); it is opened when it has come back."
        return Fact(HostCondition.FENCED, True, "Fenced", said)
    return Fact(HostCondition.FENCED, False, "Fencing", "It is being fenced (kubectl get hostrem), and starts nothing.")


def phase_of(scope: Scope, ready: Fact) -> HostPhase:
    """The state in one word."""
    if scope.host.deleting:
        return HostPhase.REMOVING
    if scope.fence is not None:
        return HostPhase.FENCED if scope.fence.fenced else HostPhase.FENCING
    if ready.status is True:
        return HostPhase.MAINTENANCE if scope.host.spec.maintenance is not None else HostPhase.READY
    if ready.status is ConditionStatus.UNKNOWN:
        return HostPhase.UNKNOWN
    return HostPhase.JOINING if scope.verdict.liveness is Liveness.NEVER_SEEN else HostPhase.NOT_READY


def _kept(scope: Scope) -> Fact | None:
    """What the host waits for, with what to do about it."""
    host, namespace = scope.host, host_namespace(scope.host.name)
    silent = scope.verdict.liveness is Liveness.EXPIRED
    if scope.taken:
        return _stalled(
            "NamespaceTaken",
            f"The namespace {namespace} belongs to something else: delete it, or give the host another name.",
        )
    if scope.ending:
        going = f"An earlier namespace {namespace} is still being deleted; wait, it goes on by itself."
        return Fact(HostCondition.RECONCILING, True, "NamespaceEnding", going)
    if not host.deleting:
        return None
    if scope.machines:
        machines = _named((vm.namespace, vm.name) for vm in scope.machines)
        return _stalled(
            "HasMachines",
            f"{len(scope.machines)} machines are on the host ({machines}): have them leave (kumulusctl host maintenance"
            f" {host.name}), or delete them.",
        )
    if scope.arriving:
        return _stalled(
            "GuestsArrive",
            f"{len(scope.arriving)} machines are being moved to the host ({_wanted(scope.arriving)}): cancel their migrations"
            " first.",
        )
    if scope.volumes:
        return _stalled(
            "HasVolumes",
            f"{len(scope.volumes)} volumes have their data on the host ({_wanted(scope.volumes)}): it would be lost. Delete"
            " them first.",
        )
    if scope.handed_over and not silent:
        return _stalled(
            "HandsOverVolumes",
            f"{len(scope.handed_over)} volumes and snapshots in shared pools go to other hosts of their pools first"
            f" ({_wanted(scope.handed_over)}).",
        )
    if scope.orders and silent:
        return _stalled(
            "AgentGone",
            "The agent no longer answers, so what is on the host cannot be cleaned up. If the host is gone for good:"
            f" kubectl annotate host {host.name} {FORCE_DETACH}=true",
        )
    return None


def _stalled(reason: str, message: str) -> Fact:
    return Fact(HostCondition.STALLED, True, reason, message)


def _wanted(orders: Iterable[WorkOrder]) -> str:
    return _named((order.spec.for_.namespace, order.spec.for_.name) for order in orders)


def _named(items: Iterable[tuple[str | None, str]]) -> str:
    """The first few."""
    return ", ".join(sorted(f"{namespace}/{name}" for namespace, name in items)[:5])


def derive_status(scope: Scope, now_text: str, expiring: bool) -> HostStatus:
    """The whole status from what was read. Pure."""
    host, report = scope.host, scope.report.status if scope.report else None
    ready = readiness(scope)
    dog = armed(host, scope.watchdog, scope.lease)
    facts = [ready]
    if host.deleting:
        facts.append(Fact(HostCondition.SCHEDULABLE, False, "Removing", "The host is being removed."))
    elif host.spec.unschedulable:
        facts.append(
            Fact(HostCondition.SCHEDULABLE, False, "Cordoned", "New machines are kept away (spec.unschedulable).")
        )
    elif host.spec.maintenance is not None:
        said = "New machines are kept away while somebody works on it (spec.maintenance)."
        facts.append(Fact(HostCondition.SCHEDULABLE, False, "InMaintenance", said))
    elif scope.fence is not None:
        facts.append(Fact(HostCondition.SCHEDULABLE, False, "Fenced", "It takes no machines until it has come back."))
    elif ready.status is True and dog.status is False and dog.reason != NOT_ORDERED:
        facts.append(Fact(HostCondition.SCHEDULABLE, False, "WatchdogNotArmed", dog.message))
    else:
        facts.append(
            Fact(HostCondition.SCHEDULABLE, ready.status is True, "Ready" if ready.status is True else "NotReady")
        )
    if scope.fence is not None:
        facts.append(_fenced(scope.fence))
    facts += [isolated(host, scope.hearing), dog]
    if report is not None and report.network is not None:
        facts.append(_network(report.network))
    if report is not None and report.credentials_expire_at:
        facts.append(
            Fact(
                HostCondition.CREDENTIALS_EXPIRING,
                expiring,
                "NotRenewed" if expiring else "Renewed",
                "The agent could not renew its token; when it ends, join the host again." if expiring else "",
            )
        )
    if (kept := _kept(scope)) is not None:
        facts.append(kept)
    if host.status.maintenance is not None:  # last: who writes it puts its condition there
        facts.append(under_work(host.status.maintenance, guarded=dog.status is not None))
    capacity = report.capacity if report else None
    return HostStatus(
        observed_generation=host.metadata.generation,
        conditions=derive(host.status.conditions, facts, generation=host.metadata.generation, now=now_text),
        phase=phase_of(scope, ready),
        namespace=None if scope.taken or scope.ending else host_namespace(host.name),
        capacity=capacity,
        allocatable=allocatable(host, capacity) if capacity else None,
        allocated=Capacity(
            cpus=sum(vm.status.resources.cpus for vm in scope.machines if vm.status.resources),
            memory=sum(to_bytes(vm.status.resources.memory) for vm in scope.machines if vm.status.resources),
        ),
        cpu=report.cpu if report else None,
        versions=report.versions if report else None,
        addresses=report.addresses if report else (),
        machine_types=report.machine_types if report else (),
        features=report.features if report else (),
        instances=len(scope.machines),
        maintenance=host.status.maintenance,
        unmanaged=report.unmanaged_count if report else None,
        witnesses=scope.hearing.statements[:8] if scope.hearing else (),
    )


def _ends_before(text: str, moment: datetime) -> bool:
    """Whether a time that an agent wrote is before `moment`. What is no time counts as past: it must not keep the rest
    of a host's status from being written."""
    try:
        return parse_time(text) < moment
    except (ValueError, TypeError):
        return True


class HostReconciler:
    """Brings a Host's namespace about, follows its agent, and lets it go when nothing is on it."""

    name = "host"

    def __init__(self, services: Services, witnesses: WitnessBook | None = None) -> None:
        self._services = services
        self._witnesses = witnesses or WitnessBook()
        self._hosts = services.caches.store(Host)
        self._reports = services.caches.store(HostReport)
        self._machines = services.caches.store(VirtualMachine)
        self._orders = work_orders(services.caches)
        self._leases = services.caches.reflected(Lease, fields=f"metadata.name={LEASE}")
        self._book = LeaseBook(services.clock)
        self._counted: dict[str, float] = {}
        self._machines.add_index("host", lambda vm: (vm.status.host,) if vm.status.host else ())

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, reports, leases that come back, work orders when the host goes."""

        def lease_changed(before: Lease | None, after: Lease | None) -> None:
            if after is None:
                return
            host = self._book.note(after)
            known = self._hosts.get(host) if host else None
            if known is not None and known.status.phase not in (HostPhase.READY, HostPhase.MAINTENANCE):
                enqueue(Key(None, known.name))

        def host_changed(before: Host | None, after: Host | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(None, item.name))

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(None, (item.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX)))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and (after is None or order.spec.type in _TOLD):
                host = self._hosts.get(host_of(order))
                if host is not None and (host.deleting or order.spec.type in _TOLD):
                    enqueue(Key(None, host.name))

        self._hosts.listen(host_changed)
        self._leases.listen(lease_changed)
        self._reports.listen(report_changed)
        self._orders.listen(order_changed)
        self._witnesses.listen(lambda host: enqueue(Key(None, host)))

    def everything(self) -> list[Key]:
        """All hosts."""
        return self._hosts.keys()

    def _observe(self, host: Host, *, taken: bool, ending: bool) -> Scope:
        return Scope(
            host=host,
            report=self._reports.get(host.name, host_namespace(host.name)),
            verdict=self._book.verdict(host.name),
            orders=tuple(self._orders.by(NAMESPACE, host_namespace(host.name))),
            machines=tuple(self._machines.by("host", host.name)),
            taken=taken,
            ending=ending,
            hearing=self._witnesses.hearing(host.name),
            lease=self._leases.get(LEASE, host_namespace(host.name)),
        )

    async def reconcile(self, key: Key) -> Result:
        """One pass over a Host."""
        client = self._services.client
        host = self._hosts.get(key.name)
        if host is None:
            self._book.forget(key.name)
            self._counted.pop(key.name, None)
            return Gone()
        if host.paused:
            return Done()
        if not host.deleting and await ensure_finalizer(client, self._hosts, host):
            host = self._hosts.get(key.name) or host
        taken = ending = False
        if not host.deleting and host.status.namespace is None:
            try:
                await ensure_namespace(client, host)
            except NamespaceTaken:
                taken = True
            except NamespaceEnding:
                ending = True
        scope = self._observe(host, taken=taken, ending=ending)
        if host.deleting and await self._remove(scope):
            return Gone()
        wait = await self._report(scope)
        if host.deleting or taken:
            return Wait("Removing" if host.deleting else "NamespaceTaken", 10.0)
        if ending:
            return Wait("NamespaceEnding", 2.0)
        return Requeue(max(0.1, min(wait, scope.verdict.valid_for + 0.05)))

    async def _report(self, scope: Scope) -> float:
        """Write the status when it differs; returns in how many seconds to look again for counts that wait."""
        clock, host = self._services.clock, scope.host
        expires = scope.report.status.credentials_expire_at if scope.report else None
        expiring = bool(expires) and _ends_before(expires or "", clock.now() + EXPIRING)
        after = derive_status(scope, rfc3339(clock.now()), expiring)
        counts = {"instances": host.status.instances, "allocated": host.status.allocated}
        since = clock.monotonic() - self._counted.get(host.name, float("-inf"))
        if since < COUNT_SECONDS and after.model_copy(update=counts).to_json() == host.status.to_json():
            return COUNT_SECONDS - since
        if await write_status(self._services.client, self._hosts, host, host.status, after):
            self._counted[host.name] = clock.monotonic()
        return 300.0

    async def _remove(self, scope: Scope) -> bool:
        """Steps of removing a host; True when it is gone."""
        client, host = self._services.client, scope.host
        never_joined = scope.verdict.liveness is Liveness.NEVER_SEEN and scope.report is None
        forced = never_joined or host.metadata.annotations.get(FORCE_DETACH) == "true"
        if (scope.machines or scope.arriving or scope.volumes or scope.handed_over) and not forced:
            return False
        for order in scope.handed_over:  # let go of before it is deleted: its end must not remove what others can use
            await drop_finalizer(client, self._orders, order)
        for order in scope.orders:
            if order.spec.type not in (WorkType.INSTANCE, WorkType.FENCE) and not order.deleting:
                await client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if forced:
            for order in scope.orders:
                await drop_finalizer(client, self._orders, order)
        elif any(order.spec.type is not WorkType.FENCE for order in scope.orders):
            return False
        if not await remove_namespace(client, host):
            return False
        await drop_finalizer(client, self._hosts, host)
        return True
