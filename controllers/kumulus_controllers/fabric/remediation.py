"""HostRemediation: a host is closed, proved to be off, declared so; and opened again when it has come back and cleaned up.

What is to be done is decided in `remediation_plan`; what it does for machines, in `compute.takeover` (ADR 33).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog
from prometheus_client import Counter, Gauge

from kumulus.api.base import FINALIZER
from kumulus.api.fabric import WATCHDOG, Host, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.order_names import FENCE_ORDER, WATCHDOG_ORDER
from kumulus.api.remediation import ENDED, MANUAL, HostRemediation, HostRemediationStatus, RemediationPhase
from kumulus.kube.builtin import LEASE
from kumulus.kube.errors import AlreadyExists, NotFound
from kumulus.kube.lease import Lease
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers import events
from kumulus_controllers.fabric.fencing import Fencer, FencingError, Power, target
from kumulus_controllers.fabric.ipmi import Ipmi
from kumulus_controllers.fabric.liveness import LONGEST_DURATION, LeaseBook
from kumulus_controllers.fabric.redfish import Redfish
from kumulus_controllers.fabric.remediation_plan import (
    Close,
    Facts,
    Lift,
    Prove,
    Remember,
    Say,
    Withdraw,
    budget,
    declared,
    fence_of,
    plan,
)
from kumulus_controllers.fabric.watchdog import left, promised
from kumulus_controllers.fabric.witness_book import WitnessBook
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import NAMESPACE, host_of, work_orders
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status

log = structlog.get_logger(__name__)

SILENT = Gauge("kumulus_fencing_silent_hosts", "Hosts that do not answer, or hardly, and are not fenced.")
BUDGET = Gauge(
    "kumulus_fencing_budget_hosts", "While more hosts than that are silent nothing is switched off by itself."
)
HELD = Counter(
    "kumulus_fencing_held",
    "Times that a remediation began to wait, by its reason: TooManySilent, WitnessAlive.",
    ["reason"],
)

OF_HOST = "of-host"
HELD_REASONS = frozenset({"TooManySilent", "WitnessAlive"})
GOING_ON = frozenset({RemediationPhase.PENDING, RemediationPhase.FENCING})


LOOK_SECONDS = 1.0
"""How soon a BMC is asked again whether the host is off."""
AGAIN_SECONDS = 10.0
"""A host that is not off after so long is switched off again."""
PAUSE_MOST = 60.0
BUILT_IN: Mapping[str, Fencer] = {"redfish": Redfish(), "ipmi": Ipmi()}


@dataclass(frozen=True, slots=True)
class Tried:
    """What this process has tried to fence a host. Losing it costs a request."""

    times: int = 0
    """How often it was switched off."""
    again: float = 0.0
    """When it may be again, in monotonic seconds."""
    failures: int = 0


class RemediationReconciler:
    """Fences hosts that somebody asks to have fenced. The only writer of orders of type Fence."""

    name = "hostremediation"

    def __init__(
        self, services: Services, fencers: Mapping[str, Fencer] = BUILT_IN, witnesses: WitnessBook | None = None
    ) -> None:
        self._services = services
        self._fencers = fencers
        self._witnesses = witnesses or WitnessBook()
        self._tried: dict[str, Tried] = {}
        """By uid of the remediation."""
        self._store = services.caches.store(HostRemediation)
        self._hosts = services.caches.store(Host)
        self._orders = work_orders(services.caches)
        self._ordering = Ordering(services, self._orders)
        self._leases = services.caches.reflected(Lease, fields=f"metadata.name={LEASE_NAME}")
        self._book = LeaseBook(services.clock)
        self._store.add_index(OF_HOST, lambda item: (item.spec.host,))
        SILENT.set_function(self._late)
        BUDGET.set_function(lambda: budget(len(self._hosts)))

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; the host's Lease while it matters; its fence, and the end of what is on its way out."""

        def of_host(name: str) -> list[HostRemediation]:
            return [item for item in self._store.by(OF_HOST, name) if not item.ended]

        def own_changed(before: HostRemediation | None, after: HostRemediation | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(None, item.name))
                for other in of_host(item.spec.host):
                    if after is None or after.ended:
                        enqueue(Key(None, other.name))

        def lease_changed(before: Lease | None, after: Lease | None) -> None:
            host = self._book.note(after) if after is not None else None
            for item in of_host(host) if host is not None else ():
                if item.status.phase in GOING_ON:
                    enqueue(Key(None, item.name))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and (order.spec.type in (WorkType.FENCE, WorkType.WATCHDOG) or after is None):
                for item in of_host(host_of(order)):
                    enqueue(Key(None, item.name), urgent=True)

        def host_changed(before: Host | None, after: Host | None) -> None:
            item = after or before
            if before is not None and after is None:
                self._book.forget(before.name)
            if item is not None and (before is None or after is None or before.deleting != after.deleting):
                for one in of_host(item.name):
                    enqueue(Key(None, one.name))

        def heard(host: str) -> None:
            for one in of_host(host):
                enqueue(Key(None, one.name))

        self._store.listen(own_changed)
        self._leases.listen(lease_changed)
        self._orders.listen(order_changed)
        self._hosts.listen(host_changed)
        self._witnesses.listen(heard)

    def everything(self) -> list[Key]:
        """All remediations."""
        return self._store.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a remediation: one step, and another pass after it."""
        client, item = self._services.client, self._store.get(key.name)
        if item is None:
            return Gone()
        if item.deleting and item.ended:
            await drop_finalizer(client, self._store, item)
            return Gone()
        if item.paused or item.ended or (item.deleting and FINALIZER not in item.metadata.finalizers):
            return Done()
        if not item.deleting and await ensure_finalizer(client, self._store, item):
            item = self._store.get(key.name) or item
        facts = self._observe(item)
        match plan(facts):
            case Say() as say:
                return await self._say(facts, say)
            case Remember():
                await self._write(
                    item, item.status.model_copy(update={"last_renewal": item.spec.last_renewal or facts.renewed})
                )
            case Close():
                await self._close(item)
            case Prove(method):
                return await self._prove(facts, method)
            case Withdraw(say):
                await self._take_back(facts)
                return await self._say(facts, say)
            case Lift():
                await self._take_back(facts)
                log.info("a host that was fenced is back", host=item.spec.host)
                await self._tell(facts, "Returned", f"It has cleaned up, and HostRemediation {item.name} is over.")
        return Requeue(0.0)

    def _observe(self, item: HostRemediation) -> Facts:
        namespace = host_namespace(item.spec.host)
        older = [
            other.name
            for other in self._store.by(OF_HOST, item.spec.host)
            if other.uid != item.uid and not other.ended and _age(other) < _age(item)
        ]
        return Facts(
            remediation=item,
            host=self._hosts.get(item.spec.host),
            late=self._late(),
            hosts=len(self._hosts),
            able=self._able(self._hosts.get(item.spec.host)),
            verdict=self._book.verdict(item.spec.host),
            renewed=self._book.renewed(item.spec.host),
            fence=self._orders.get(FENCE_ORDER, namespace),
            leaving=sum(
                order.spec.type is WorkType.INSTANCE and order.deleting
                for order in self._orders.by(NAMESPACE, namespace)
            ),
            hearing=self._witnesses.hearing(item.spec.host),
            watchdog=self._promised(item.spec.host, self._orders.get(WATCHDOG_ORDER, namespace)),
            silent=self._book.silence(item.spec.host)[0],
            before=min(older, default=None),
        )

    def _late(self) -> int:
        """How many hosts are silent, or about to be; not those that are fenced."""
        return sum(not host.fenced and self._book.late(host.name) for host in tuple(self._hosts))

    async def _close(self, item: HostRemediation) -> None:
        """Make the fence. It has no finalizer: when it is taken away it is gone, and the host may start machines."""
        namespace = host_namespace(item.spec.host)
        body = {"metadata": {"name": FENCE_ORDER}, "spec": fence_of(item, self._services.term()).to_json()}
        try:
            raw = await self._services.client.create(WorkOrder.KIND, body, namespace)
        except AlreadyExists:
            raw = await self._services.client.get(WorkOrder.KIND, FENCE_ORDER, namespace)
        self._orders.apply(raw)
        log.warning("a host is being fenced", host=item.spec.host, remediation=item.name)

    async def _prove(self, facts: Facts, method: str) -> Result:
        """Nothing can start there since the fence is there. Has it been heard of since? If not, and it was off before, as a person
        says, or is off now, as its BMC says, it stays so in effect: whatever boots there from now on finds the fence."""
        item, fence = facts.remediation, facts.fence
        assert fence is not None
        raw = await self._services.client.find(LEASE, LEASE_NAME, fence.namespace)
        renewed = Lease.parse(raw).spec.renew_time if raw is not None else None
        if renewed is not None and renewed != item.status.last_renewal:
            self._book.note(Lease.parse(raw or {}))
            return Requeue(0.0)
        evidence = f"A person confirmed it by spec.confirmedOff; no sign of life since {item.status.last_renewal}."
        if method == WATCHDOG:
            if (found := await self._watched(item.spec.host)) is None:
                return Requeue(0.1)
            evidence = found
        elif method != MANUAL:
            try:
                found = await self._power_off(facts, method)
            except FencingError as error:
                return await self._say(
                    facts, Say(RemediationPhase.FENCING, error.reason, str(error), self._pause(item))
                )
            if found is None:
                why = f"Host {item.spec.host} is being switched off by {method}."
                return await self._say(facts, Say(RemediationPhase.FENCING, "PoweringOff", why, LOOK_SECONDS))
            evidence = found
        live = await self._ordering.live(FENCE_ORDER, item.spec.host)
        if live is None or live.uid != fence.uid or live.status.state is not None:
            return Requeue(0.1)
        await self._ordering.change(live, declared(live, self._services.term(), method, evidence))
        log.warning("a host is fenced", host=item.spec.host, remediation=item.name, method=method)
        await self._tell(facts, "Fenced", f"HostRemediation {item.name}, method {method}: {evidence}", warning=True)
        return Requeue(0.0)

    def _promised(self, host: str, order: WorkOrder | None) -> int | None:
        """After how many seconds of silence the host has ended its machines. Later than its Lease lasts is no promise; of one that lasts for
        very long the book knows no more than that."""
        seconds, lasts = promised(order), self._book.silence(host)[1]
        return seconds if seconds is not None and (seconds <= lasts or lasts >= LONGEST_DURATION) else None

    async def _watched(self, host: str) -> str | None:
        """By what it is known that the host's watchdog has ended its machines: it was armed, which is looked at live, and it has not
        been disarmed since, which would have been written before. None: it is not."""
        order = await self._ordering.live(WATCHDOG_ORDER, host)
        seconds, silent = self._promised(host, order), self._book.silence(host)[0]
        if seconds is None or left(seconds, silent) > 0:
            return None
        return f"Its watchdog is armed and has ended its machines {seconds} s after its last renewal, which was seen {silent:.0f} s ago."

    async def _tell(self, facts: Facts, reason: str, note: str, *, warning: bool = False) -> None:
        if facts.host is not None:
            client, clock = self._services.client, self._services.clock
            await events.tell(client, clock, facts.host, reason, note, action="Fence", warning=warning)

    async def _power_off(self, facts: Facts, method: str) -> str | None:
        """Have it switched off; by what it is known to be off, or None: it is not yet. Raises `FencingError`."""
        item, host, now = facts.remediation, facts.host, self._services.clock.monotonic()
        assert host is not None
        aim = await target(self._services.client, host)
        fencer, tried = self._fencers[method], self._tried.get(item.uid, Tried())
        if await fencer.power(aim) is Power.OFF:
            return f"Its BMC at {aim.bmc.address} says that it is off, asked at {rfc3339(self._services.clock.now())}."
        if now >= tried.again:
            log.warning("a host is switched off", host=host.name, remediation=item.name, method=method)
            self._tried[item.uid] = replace(tried, times=tried.times + 1, again=now + AGAIN_SECONDS)
            await fencer.off(aim)
        return None

    def _pause(self, item: HostRemediation) -> float:
        """Seconds until the next try after one that failed; they grow."""
        tried = self._tried.get(item.uid, Tried())
        self._tried[item.uid] = replace(tried, failures=tried.failures + 1)
        return float(min(LOOK_SECONDS * 2**tried.failures, PAUSE_MOST))

    def _able(self, host: Host | None) -> frozenset[str]:
        bmc = host.spec.bmc if host is not None else None
        return frozenset({bmc.type} & self._fencers.keys()) if bmc is not None else frozenset()

    async def _take_back(self, facts: Facts) -> None:
        if facts.fence is None:
            return
        namespace = facts.fence.namespace
        await self._services.client.delete(WorkOrder.KIND, FENCE_ORDER, namespace, uid=facts.fence.uid)
        self._orders.remove(Key(namespace, FENCE_ORDER), facts.fence.uid)

    async def _say(self, facts: Facts, say: Say) -> Result:
        item, now = facts.remediation, rfc3339(self._services.clock.now())
        attempts = self._tried.get(item.uid, Tried()).times
        after = report(facts, say, now, attempts=max(attempts, item.status.attempts or 0))
        ready = item.status.condition("Ready")
        if say.reason in HELD_REASONS and (ready is None or ready.reason != say.reason):
            HELD.labels(say.reason).inc()
        if after.phase in ENDED:
            self._tried.pop(item.uid, None)
        await self._write(item, after)
        if item.deleting and say.phase in ENDED:
            return Requeue(0.0)
        return Done() if say.after is None else Wait(say.reason, say.after)

    async def _write(self, item: HostRemediation, after: HostRemediationStatus) -> None:
        try:
            await write_status(self._services.client, self._store, item, item.status, after)
        except NotFound:
            self._store.remove(Key(None, item.name), item.uid)


def report(facts: Facts, say: Say, now: str, *, attempts: int = 0) -> HostRemediationStatus:
    """The whole status. Pure."""
    item, fenced = facts.remediation, facts.fenced
    before, phase = item.status, say.phase
    over = phase is RemediationPhase.SUCCEEDED
    stalled = say.reason in HELD_REASONS | {"ConfirmationNeeded", "NeverHeardOf", "HostNotFound", "NoMethod"}
    moving = not over and not stalled and phase is not RemediationPhase.REFUSED
    said = [
        Fact("Ready", over, say.reason, say.message),
        Fact("Fenced", fenced, say.reason, say.message),
        Fact("Stalled", True if stalled else None, say.reason, say.message),
        Fact("Reconciling", True if moving else None, say.reason, say.message),
    ]
    changes: dict[str, object] = {
        "phase": phase,
        "observed_generation": item.metadata.generation,
        "conditions": derive(before.conditions, said, generation=item.metadata.generation, now=now),
    }
    if attempts:
        changes["attempts"] = attempts
    fence = facts.fence.spec.fence if facts.fence is not None else None
    if fenced and fence is not None and before.fenced_at is None:
        changes |= {"fenced_at": now, "method": fence.method, "evidence": fence.evidence}
    if over and before.returned_at is None:
        changes["returned_at"] = now
    return before.model_copy(update=changes)


def _age(item: HostRemediation) -> tuple[str, str]:
    return (item.metadata.creation_timestamp or "", item.name)
