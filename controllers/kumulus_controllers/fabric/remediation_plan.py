"""What is to be done about a host that is to be fenced: from what is known to one step. Pure (ADR 33)."""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.base import ObjectRef
from kumulus.api.fabric import WATCHDOG, Host
from kumulus.api.host import FenceOrder, WorkOrder, WorkOrderSpec, WorkState, WorkType
from kumulus.api.remediation import MANUAL, HostRemediation, RemediationPhase, WitnessUse
from kumulus_controllers.fabric.liveness import Liveness, Verdict
from kumulus_controllers.fabric.watchdog import left
from kumulus_controllers.fabric.witness_plan import Hearing

SILENT_SHARE = 0.3
"""Hosts are switched off without a person's word only while no more than this share of them, or one, is silent."""
ANSWER_EVERY = 2.0
"""Seconds between two looks at a host that has come back and cleans up, should nobody tell."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything one pass has read."""

    remediation: HostRemediation
    host: Host | None
    verdict: Verdict
    renewed: str | None
    """The renewTime of its Lease."""
    fence: WorkOrder | None = None
    """The order of type Fence in the host's namespace, whoever made it."""
    leaving: int = 0
    """Orders of machines on the host that are on their way out."""
    able: frozenset[str] = frozenset()
    """Methods that can be used on this host without a person."""
    late: int = 1
    """How many hosts are silent, or about to be; not those that are fenced."""
    hosts: int = 1
    """How many there are."""
    hearing: Hearing | None = None
    """What witnesses say of the host; None: nobody was asked."""
    watchdog: int | None = None
    """After how many seconds of silence the host's own watchdog has ended its machines, as it promises."""
    silent: float = 0.0
    """For how many seconds its Lease has not changed before our eyes."""
    before: str | None = None
    """Name of an older remediation of the same host that is not over."""

    @property
    def ours(self) -> bool:
        """Whether the fence was made for this remediation."""
        return self.fence is not None and self.fence.spec.for_.uid == self.remediation.uid

    @property
    def fenced(self) -> bool:
        """Whether the host was declared to be off for this remediation."""
        return (
            self.ours and self.fence is not None and self.fence.spec.fence is not None and self.fence.spec.fence.fenced
        )

    @property
    def answered(self) -> bool:
        """Whether the host's agent has read the fence."""
        return self.fence is not None and self.fence.status.state is not None

    @property
    def clean(self) -> bool:
        """Whether it has said, of the fence as it is now, that nothing is left of what was taken from it."""
        if self.fence is None or self.fence.status.state is not WorkState.READY or self.leaving:
            return False
        return (self.fence.status.observed_generation or 0) >= self.fence.metadata.generation


@dataclass(frozen=True, slots=True)
class Say:
    """Nothing but to report how it stands."""

    phase: RemediationPhase
    reason: str
    message: str
    after: float | None = None
    """Seconds after which to look again, should nothing change."""


@dataclass(frozen=True, slots=True)
class Remember:
    """Put on record when the host was last heard of."""


@dataclass(frozen=True, slots=True)
class Close:
    """Have the host start nothing any more."""


@dataclass(frozen=True, slots=True)
class Prove:
    """Nothing can start there any more: look at the Lease live, and take the proof that the host is off."""

    method: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Let the host start machines again, as if nothing had been asked."""

    say: Say


@dataclass(frozen=True, slots=True)
class Lift:
    """The host has come back and has nothing any more that was taken from it: it is one like any other."""


Step = Say | Remember | Close | Prove | Withdraw | Lift


def plan(facts: Facts) -> Step:
    """The next step."""
    one = facts.remediation
    name = one.spec.host
    if facts.fenced:
        return _fenced(facts)
    if one.status.fenced_at is not None and facts.host is None:
        return Say(RemediationPhase.SUCCEEDED, "HostRemoved", f"Host {name} was removed.")
    if one.status.fenced_at is not None:
        return Say(RemediationPhase.SUCCEEDED, "HostReturned", f"Host {name} has come back, and takes machines again.")
    if one.deleting:
        return _undo(facts, Say(RemediationPhase.REFUSED, "Deleted", "It is not wanted any more."))
    if facts.host is None or facts.host.deleting:
        return _undo(
            facts, Say(RemediationPhase.FAILED, "HostNotFound", f"There is no Host {name}, or it is being removed.")
        )
    if facts.before is not None:
        why = f"HostRemediation {facts.before} is older, and about the same host."
        return Say(RemediationPhase.PENDING, "WaitsForAnother", why, 30.0)
    if one.status.last_renewal is None and (one.spec.last_renewal or facts.renewed) is not None:
        return Remember()
    if (alive := _alive(facts)) is not None:
        return _undo(facts, alive)
    if facts.verdict.liveness is Liveness.NEVER_SEEN:
        why = f"Host {name} has no Lease, so nobody can say when it was last heard of. Has it ever joined?"
        return Say(RemediationPhase.PENDING, "NeverHeardOf", why, 30.0)
    if facts.verdict.liveness is Liveness.ALIVE:
        why = (
            f"Host {name} has been silent for less than its Lease lasts: it may only be slow. A sign of life ends this."
        )
        return Say(RemediationPhase.PENDING, "MayAnswer", why, facts.verdict.valid_for + 0.05)
    method = _method(facts)
    if method is None:
        if MANUAL not in one.spec.methods:
            asked = ", ".join(one.spec.methods)
            why = f"Host {name} cannot be fenced by {asked}: see its spec.bmc, and the plug-ins of the controllers."
            return _undo(facts, Say(RemediationPhase.PENDING, "NoMethod", why, 60.0))
        why = (
            f"Host {name} does not answer. Whether it is off nobody can tell from here: look at it, switch it off, then"
            f" kumulusctl host confirm-dead {name}"
        )
        return _undo(facts, Say(RemediationPhase.PENDING, "ConfirmationNeeded", why, 300.0))
    if (lives := _witnessed(facts, method)) is not None:
        return _undo(facts, lives)
    if method == WATCHDOG and facts.watchdog is not None and (wait := left(facts.watchdog, facts.silent)) > 0:
        why = f"The watchdog of host {name} ends its machines {facts.watchdog} s after its last renewal; it is waited for longer."
        return Say(RemediationPhase.PENDING, "WatchdogRuns", why, wait + 0.05)
    if method not in (MANUAL, WATCHDOG) and (lack := _too_many(facts)) is not None:
        return _undo(facts, lack)
    return Prove(method) if facts.ours else Close()


def budget(hosts: int) -> int:
    """How many of them may be silent while some are switched off without a person's word."""
    return max(1, int(hosts * SILENT_SHARE))


def too_many(late: int, hosts: int) -> bool:
    """Whether so many hosts are silent at once that it is most likely we who are cut off."""
    return late > budget(hosts)


def _too_many(facts: Facts) -> Say | None:
    most = budget(facts.hosts)
    if not too_many(facts.late, facts.hosts):
        return None
    why = (
        f"{facts.late} of {facts.hosts} hosts do not answer, so it may be the control plane that is cut off, and nothing is switched"
        f" off while it is more than {most}. A person can still confirm that a host is off:"
        f" kumulusctl host confirm-dead {facts.remediation.spec.host}"
    )
    return Say(RemediationPhase.PENDING, "TooManySilent", why, 5.0)


def _alive(facts: Facts) -> Say | None:
    """Said of a host that has been heard of since the remediation was first looked at."""
    known = {facts.remediation.spec.last_renewal, facts.remediation.status.last_renewal} - {None}
    heard = facts.renewed is not None and known != {facts.renewed}
    if not heard and not (facts.ours and facts.answered):
        return None
    why = (
        f"Host {facts.remediation.spec.host} answers, so nothing was done to it. Should it fall silent again, make another"
        " HostRemediation."
    )
    return Say(RemediationPhase.REFUSED, "HostAnswers", why)


def _witnessed(facts: Facts, method: str) -> Say | None:
    """Said while a witness has proof that the host is alive (ADR 39)."""
    one, proof = facts.remediation, facts.hearing.alive if facts.hearing is not None else None
    if proof is None or one.spec.witnesses is WitnessUse.IGNORE:
        return None
    todo = (
        "If it is off all the same, its witnesses fall silent within a minute and this goes on by itself; else switch it off first."
        if method == MANUAL
        else f"To have it switched off all the same: kumulusctl host fence {one.spec.host} --despite-witnesses"
    )
    why = f"Host {one.spec.host} is alive and only cut off, says {proof.witness}: {proof.message}. {todo}"
    return Say(RemediationPhase.PENDING, "WitnessAlive", why, 5.0)


def _method(facts: Facts) -> str | None:
    """What can fence it now: a person who has said so, else the first method that can."""
    spec = facts.remediation.spec
    if MANUAL in spec.methods and spec.confirmed_off and spec.last_renewal is not None:
        return MANUAL
    able = facts.able | ({WATCHDOG} if facts.watchdog is not None else frozenset())
    return next((name for name in spec.methods if name in able), None)


def _undo(facts: Facts, say: Say) -> Step:
    return Withdraw(say) if facts.ours else say


def _fenced(facts: Facts) -> Step:
    name = facts.remediation.spec.host
    if facts.host is None or facts.host.deleting:
        return Say(RemediationPhase.FENCED, "HostRemoved", f"Host {name} is off, and is being removed.", 10.0)
    if facts.clean:
        return Lift()
    if facts.answered:
        said = facts.fence.status.message if facts.fence is not None else None
        why = f"Host {name} is back. It takes machines when nothing is left of those that were taken from it: {said or '...'}"
        return Say(RemediationPhase.RETURNING, "CleaningUp", why, ANSWER_EVERY)
    why = f"Host {name} is off. Machines with spec.highAvailability.enabled are started elsewhere; others wait for it."
    return Say(RemediationPhase.FENCED, "HostFenced", why)


def fence_of(remediation: HostRemediation, term: int) -> WorkOrderSpec:
    """The order that has a host start nothing."""

    return WorkOrderSpec(
        type=WorkType.FENCE,
        for_=ObjectRef(kind=remediation.KIND.kind, name=remediation.name, uid=remediation.uid),
        term=term,
        fence=FenceOrder(),
    )


def declared(order: WorkOrder, term: int, method: str, evidence: str) -> WorkOrderSpec:
    """The order, saying that the host was off, and by what that is known."""
    assert order.spec.fence is not None
    fence = order.spec.fence.model_copy(update={"fenced": True, "method": method, "evidence": evidence[:1024]})
    return order.spec.model_copy(update={"fence": fence, "term": max(term, order.spec.term)})
