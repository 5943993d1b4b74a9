"""Hosts that ask for it (`spec.fencing.automatic`) are fenced when they fall silent: a HostRemediation is made (ADR 33).

It is made once for a silence: its name is made of the host's last sign of life. Whether and how the host is fenced then is
decided as for any other, within the budget, and a sign of life ends it. None is made while a witness says that the host is
alive, or may still say so (ADR 39).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import structlog

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, HostCondition
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.remediation import MANUAL, HostRemediation
from kumulus.api.witness import Says
from kumulus.kube.errors import AlreadyExists
from kumulus.kube.lease import Lease
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.fabric.liveness import LeaseBook, Liveness, Verdict
from kumulus_controllers.fabric.witness_book import WitnessBook
from kumulus_controllers.fabric.witness_plan import Hearing

log = structlog.get_logger(__name__)

MARGIN_SECONDS = 5.0
"""So long is a host silent after its Lease has run out before it is fenced by itself."""
HEARD_SECONDS = 1.0
"""How soon it is looked whether they have, should nobody tell."""
HEARING_SECONDS = 15.0
"""And so much longer at most while witnesses have not answered yet: then they know nothing."""
ON_HOST = "on-host-wanting"


@dataclass(frozen=True, slots=True)
class Silence:
    """What is known of a host that is silent."""

    host: Host
    verdict: Verdict
    since: float | None
    """Monotonic seconds at which its Lease was first seen to have run out; None: it has not."""
    machines: int
    """How many machines on it ask for high availability."""
    open: bool
    """A remediation of it is under way."""
    others: int
    """How many other hosts there are."""
    hearing: Hearing | None = None
    """What witnesses say; None: nobody was asked yet."""


def asked(silence: Silence, now: float) -> float | None:
    """In how many seconds the host is to be fenced; 0: now; None: not. Pure."""
    host = silence.host
    ready = host.status.condition(HostCondition.READY)
    if not host.spec.fencing.automatic or not host.fenced_by or host.deleting or host.paused or host.fencing:
        return None
    if host.spec.maintenance is not None:  # who works on it may switch it off and on
        return None
    if silence.open or not silence.machines or not silence.others or silence.since is None:
        return None
    if silence.verdict.liveness is not Liveness.EXPIRED or ready is None or ready.status is not ConditionStatus.UNKNOWN:
        return None
    wait, heard = silence.since + MARGIN_SECONDS - now, silence.hearing
    if heard is not None and heard.says is Says.ALIVE:
        return None
    if (heard is None or not heard.settled) and wait > -HEARING_SECONDS:
        return max(wait, HEARD_SECONDS)
    return max(0.0, wait)


def remediation_name(host: str, renewed: str | None) -> str:
    """The name of the remediation of one silence of a host. Pure."""
    return f"{host[:40].rstrip('-')}-{hashlib.sha256(f'{host} {renewed}'.encode()).hexdigest()[:10]}"


class AutomaticFencing:
    """Looks at hosts that fall silent. Writes nothing but new HostRemediations."""

    name = "automatic-fencing"

    def __init__(self, services: Services, witnesses: WitnessBook) -> None:
        self._services = services
        self._witnesses = witnesses
        self._hosts = services.caches.store(Host)
        self._machines = services.caches.store(VirtualMachine)
        self._remediations = services.caches.store(HostRemediation)
        self._leases = services.caches.reflected(Lease, fields=f"metadata.name={LEASE_NAME}")
        self._book = LeaseBook(services.clock)
        self._since: dict[str, float] = {}
        self._machines.add_index(ON_HOST, wants)

    def attach(self, enqueue: Enqueue) -> None:
        """Hosts whose conditions or spec change; the Leases for the time alone."""

        def host_changed(before: Host | None, after: Host | None) -> None:
            item = after or before
            if item is not None and (item.spec.fencing.automatic or after is None):
                enqueue(Key(None, item.name))

        def lease_changed(before: Lease | None, after: Lease | None) -> None:
            if after is not None:
                self._book.note(after)

        self._hosts.listen(host_changed)
        self._leases.listen(lease_changed)
        self._witnesses.listen(lambda host: enqueue(Key(None, host)))

    def everything(self) -> list[Key]:
        """Hosts that ask for it."""
        return [Key(None, host.name) for host in self._hosts if host.spec.fencing.automatic]

    async def reconcile(self, key: Key) -> Result:
        """One pass over a host."""
        host, now = self._hosts.get(key.name), self._services.clock.monotonic()
        if host is None:
            self._book.forget(key.name)
            self._since.pop(key.name, None)
            return Gone()
        verdict = self._book.verdict(host.name)
        if verdict.liveness is Liveness.EXPIRED:
            self._since.setdefault(host.name, now)
        else:
            self._since.pop(host.name, None)
        silence = Silence(
            host,
            verdict,
            self._since.get(host.name),
            len(self._machines.by(ON_HOST, host.name)),
            any(item.spec.host == host.name and not item.ended for item in self._remediations),
            len(self._hosts) - 1,
            self._witnesses.hearing(host.name),
        )
        wait = asked(silence, now)
        if wait is None:
            # The condition of a host that falls silent wakes this; a Lease that runs out while nobody looks does not.
            return Requeue(min(verdict.valid_for + 0.1, 30.0)) if host.spec.fencing.automatic else Done()
        if wait > 0:
            return Requeue(wait)
        await self._fence(host)
        return Requeue(30.0)

    async def _fence(self, host: Host) -> None:
        renewed = self._book.renewed(host.name)
        spec = {
            "host": host.name,
            "methods": [*host.fenced_by, MANUAL],
            "reason": "It asks for it when it is silent.",
        }
        body = {"metadata": {"name": remediation_name(host.name, renewed)}, "spec": spec | {"lastRenewal": renewed}}
        try:
            self._remediations.apply(await self._services.client.create(HostRemediation.KIND, body))
        except AlreadyExists:  # of this very silence: it is over, or its change has not come yet
            return
        log.warning("a host that is silent is to be fenced", host=host.name, since=renewed)


def wants(vm: VirtualMachine) -> tuple[str, ...]:
    """The host of a machine that would be started elsewhere."""
    return (vm.status.host,) if vm.status.host is not None and vm.spec.high_availability.enabled else ()
