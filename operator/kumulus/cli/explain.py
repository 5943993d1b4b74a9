"""Why a machine is not what it shall be, in plain sentences, and what to do. Pure.

Walks from the machine outwards: is it left alone on purpose, is what it names there, was a host found,
does the host answer, what does its agent say. Several things can be wrong at once; all are told, and a
general sentence from the conditions only when nothing better was found.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from kumulus.api.base import FINALIZER, FORCE_DETACH, PAUSED
from kumulus.api.compute import Phase, PowerState, VirtualMachineCondition
from kumulus.api.fabric import Host, HostPhase
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.storage import Volume
from kumulus.cli.amounts import age, duration, moment
from kumulus.cli.facts import Absence, Facts, Finding, Level
from kumulus.cli.hints import hint
from kumulus.cli.keeping import keeping
from kumulus.cli.needs import images, references
from kumulus.cli.problem import as_sentence
from kumulus.cli.progress import line
from kumulus.kube.service import PUBLISHED

PATIENCE = timedelta(seconds=15)
"""How long nobody may look at a change before that is worth a word."""

_ENDED = {
    "GuestShutDown": "its guest shut down by itself",
    "GuestCrashed": "its guest crashed, or its QEMU died",
    "ForcedOff": "somebody forced it off on the host",
    "StartFailed": "it could not be started",
    "EndedUnseen": "it ended while nobody watched, most likely with its host",
}
"""Reasons of Ready=False for a machine that ended by itself."""

_MISSING = frozenset({"InstanceTypeNotFound", "SecretNotFound", "SecretKeyNotFound"})
"""Reasons of Scheduled=False that `references` tells better."""

_CONSEQUENCES = frozenset({"VolumesNotReady", "NetworkNotReady", "Pending"})
"""Reasons of Scheduled=False that only point to something else."""


def explain(facts: Facts) -> list[Finding]:
    """The findings, the root of it first. Never empty."""
    if facts.vm.deleting:
        return [*_paused(facts), *_deleting(facts)]
    chain: tuple[Callable[[Facts], list[Finding]], ...] = (
        _paused,
        _unseen,
        references,
        images,
        _moves,
        _network,
        _scheduled,
        _pools,
        _host,
        _order,
        _ended,
        _wanted,
        _restart,
        _pending,
    )
    found = [finding for link in chain for finding in link(facts)]
    if not any(finding.level in (Level.PROBLEM, Level.WAITING) for finding in found):
        found += _general(facts)
    if not found:
        found.append(_well(facts))
    return found + _satisfied(facts) + keeping(facts.vm) + _services(facts) + _protection(facts)


def _kubectl(facts: Facts) -> str:
    return f"kubectl -n {facts.vm.namespace}"


def _ctl(facts: Facts, what: str, option: str = "") -> str:
    return f"`kumulusctl -n {facts.vm.namespace} vm {what} {facts.vm.name}{option}`"


def _paused(facts: Facts) -> list[Finding]:
    if not facts.vm.paused:
        return []
    what = f"The annotation {PAUSED} tells Kumulus to leave this machine alone, so nothing happens to it."
    return [Finding(Level.PROBLEM, what, f"{_kubectl(facts)} annotate vm {facts.vm.name} {PAUSED}-")]


def _deleting(facts: Facts) -> list[Finding]:
    vm = facts.vm
    since = age(vm.metadata.deletion_timestamp, facts.now)
    found = [Finding(Level.WAITING, f"Somebody asked {since} ago to delete it; it goes when it is cleared away.")]
    foreign = [name for name in vm.metadata.finalizers if name != FINALIZER]
    if foreign:
        what = f"Something other than Kumulus holds it back: the finalizer {', '.join(foreign)}."
        found.append(Finding(Level.PROBLEM, what, "Find out what set that finalizer, and why it does not take it off."))
    found += _host(facts)
    if isinstance(facts.order, WorkOrder) and facts.order.status.message:
        found.append(Finding(Level.WAITING, f"Its host says: {as_sentence(facts.order.status.message)}"))
    if facts.controllers:
        found.append(Finding(Level.PROBLEM, as_sentence(facts.controllers), "Start the controllers (`kumulus run`)."))
    return found


def _unseen(facts: Facts) -> list[Finding]:
    vm = facts.vm
    seen = vm.status.observed_generation
    if vm.paused or (seen is not None and seen >= vm.metadata.generation):
        return []
    created = moment(vm.metadata.creation_timestamp)
    fresh = seen is None and created is not None and facts.now - created < PATIENCE
    what = "No controller has looked at it yet." if seen is None else "No controller has looked at its last change yet."
    if facts.controllers and not fresh:
        return [
            Finding(Level.PROBLEM, f"{what} {as_sentence(facts.controllers)}", "Start the controllers (`kumulus run`).")
        ]
    return [Finding(Level.WAITING, what, "" if fresh else "`kumulusctl status` shows whether the controllers run.")]


def _moves(facts: Facts) -> list[Finding]:
    """Volumes of the machine that are on their way into another pool. It can run meanwhile, unless it has to go elsewhere."""
    vm, found = facts.vm, []
    disks = vm.status.condition("VolumesReady")
    waits = vm.status.phase is not Phase.RUNNING and disks is not None and disks.status == "False"
    for volume in facts.volumes.values():
        if not isinstance(volume, Volume) or volume.status.moving_to is None:
            continue
        said = line(volume.status.progress)
        how = f": {said}" if said else ""
        moving = volume.status.condition("Moving")
        if moving is not None and moving.status != "True":
            how = f", and does not get on ({moving.reason}): {as_sentence(moving.message).rstrip('.')}"
        what = f"Its volume {volume.name} is being moved to pool {volume.status.moving_to}{how}."
        todo = f"`kumulusctl -n {vm.namespace} volume show {volume.name}`" if waits else ""
        found.append(Finding(Level.WAITING if waits else Level.NOTE, what, todo))
    return found


def _network(facts: Facts) -> list[Finding]:
    """Interfaces that the machine waits for, or has not got."""
    vm = facts.vm
    condition = vm.status.condition("NetworkReady")
    if condition is None or condition.status != "False":
        return []
    stalled = vm.status.condition("Stalled")
    stuck = stalled is not None and stalled.status == "True" and stalled.reason == condition.reason
    message = as_sentence(condition.message or condition.reason)
    what = f"It has not all of its network interfaces ({condition.reason}): {message}"
    todo = hint(condition.reason, namespace=vm.namespace or "", name=vm.name)
    return [Finding(Level.PROBLEM if stuck else Level.WAITING, what, todo)]


def _scheduled(facts: Facts) -> list[Finding]:
    vm = facts.vm
    condition = vm.status.condition("Scheduled")
    if condition is None or condition.status != "False" or condition.reason in _CONSEQUENCES:
        return []
    if condition.reason in _MISSING and references(facts):
        return []
    message = as_sentence(condition.message or condition.reason)
    todo = {
        "NoHostFits": "Make room (delete machines, add a host with `kumulusctl host add`), or ask for less: a smaller "
        f"size, a wider placement. {_ctl(facts, 'explain', ' --hosts')} says of each host why not. It is tried again by"
        " itself.",
        "ZoneNotFound": "`kubectl get zones` lists the zones; the zone of a machine cannot be changed, so make it anew.",
        "InstanceTypeNotAllowed": "`kubectl get instancetypes` lists the sizes; ask the operator to allow that one here.",
    }.get(condition.reason, "")
    return [Finding(Level.PROBLEM, f"No host was found for it ({condition.reason}): {message}", todo)]


def _pools(facts: Facts) -> list[Finding]:
    """Of a machine that no host has a pool for: what is wrong with the pools."""
    condition = facts.vm.status.condition("Scheduled")
    if condition is None or condition.status != "False" or "storage pool" not in (condition.message or ""):
        return []
    found = []
    for pool in facts.pools:
        ready = pool.status.condition("Ready")
        if ready is None or ready.status == "True" or not ready.message:
            continue
        what = f"The storage pool {pool.name} can be used on no host ({ready.reason}): {as_sentence(ready.message)}"
        found.append(Finding(Level.PROBLEM, what, f"`kubectl describe storagepool {pool.name}` shows each host."))
    return found


def _host(facts: Facts) -> list[Finding]:
    name, host = facts.vm.status.host, facts.host
    if name is None:
        return []
    if host is Absence.MISSING:
        return [Finding(Level.PROBLEM, f"Its host {name} is no longer known to the cloud.", "Ask the operator.")]
    if not isinstance(host, Host) or host.status.phase in (HostPhase.READY, HostPhase.MAINTENANCE):
        return []
    ready = host.status.condition("Ready")
    since = f" for {age(ready.last_transition_time, facts.now)}" if ready and ready.last_transition_time else ""
    message = f" {as_sentence(ready.message)}" if ready is not None and ready.message else ""
    if host.status.phase is HostPhase.UNKNOWN:
        what = f"Its host {name} has not been heard of{since}. Whether the machine still runs there is not known."
        first = "" if facts.vm.deleting else ", delete the machine and then"
        todo = (
            "Look at the host and its network; the machine is not started elsewhere before it is known to be stopped. "
            f"If {name} is powered off, an operator says so: kumulusctl host confirm-dead {name}. "
            f"If {name} is gone for good and the machine may go with it{first}: "
            f"{_kubectl(facts)} annotate vm {facts.vm.name} {FORCE_DETACH}=true"
        )
        return [Finding(Level.PROBLEM, what, todo)]
    if host.fenced and not facts.vm.deleting:
        what = f"Its host {name} is off for certain{since}, and the machine with it."
        said = facts.vm.status.condition("HighAvailability")
        if not facts.vm.spec.high_availability.enabled:
            todo = "It starts when the host is back. With spec.highAvailability.enabled it starts elsewhere."
        else:
            todo = as_sentence(said.message) if said is not None and said.message else "It is started elsewhere."
        return [Finding(Level.PROBLEM, what, todo)]
    state = host.status.phase or "not seen yet"
    return [Finding(Level.PROBLEM, f"Its host {name} is {state}{since}.{message}", f"`kumulusctl host show {name}`")]


def _order(facts: Facts) -> list[Finding]:
    vm, order = facts.vm, facts.order
    if vm.status.host is None or order is None or order is Absence.HIDDEN:
        return []
    if not isinstance(order, WorkOrder):
        if vm.spec.power_state is PowerState.STOPPED or vm.status.phase is Phase.STOPPED:
            return []
        return [Finding(Level.WAITING, f"The work order for its host {vm.status.host} is not written yet.")]
    status = order.status
    if (status.observed_generation or 0) < order.metadata.generation and not _host(facts):
        return [Finding(Level.WAITING, f"The agent of {vm.status.host} has not answered its work order yet.")]
    because = f" ({status.reason})" if status.reason else ""
    message = as_sentence(status.message) if status.message else ""
    match status.state:
        case WorkState.FAILED:
            return [
                Finding(Level.PROBLEM, f"Its host could not do it{because}: {message}", "It is tried again by itself.")
            ]
        case WorkState.REFUSED:
            todo = "The controllers give a newer order by themselves; if this lasts, tell the operator."
            return [Finding(Level.PROBLEM, f"Its host refuses the work order{because}: {message}", todo)]
        case WorkState.WAITING | WorkState.PENDING | WorkState.WORKING | WorkState.STARTING | WorkState.STOPPING:
            return [Finding(Level.WAITING, f"Its host is at it: {status.state}{because}. {message}".strip())]
    return []


_PAUSED = {
    "PausedByItself": "most likely because its storage fails or is full",
    "DiskFull": "because the pool of its disks is full",
    "DiskError": "because a disk of it fails",
}


def _ended(facts: Facts) -> list[Finding]:
    """Guests that ended by themselves, or were paused by nobody."""
    vm = facts.vm
    ready = vm.status.condition("Ready")
    reason = ready.reason if ready is not None and ready.status != "True" else ""
    if vm.status.phase is Phase.CRASH_LOOP_BACK_OFF:
        return [_back_off(facts)]
    if vm.spec.power_state is not PowerState.RUNNING:
        return []
    if vm.status.phase is Phase.PAUSED and reason in _PAUSED:
        what = f"It is paused although nobody asked for it, {_PAUSED[reason]}."
        return [Finding(Level.PROBLEM, what, "Ask the operator to look at the host's pool; it goes on by itself.")]
    if vm.status.phase is not Phase.STOPPED or reason not in _ENDED:
        return []
    what = f"It is off because {_ENDED[reason]}, and restartPolicy {vm.spec.restart_policy} leaves it off."
    return [
        Finding(
            Level.PROBLEM, what, f"{_ctl(facts, 'restart')} starts it; restartPolicy: Always would do so by itself."
        )
    ]


def _back_off(facts: Facts) -> Finding:
    vm = facts.vm
    instance = facts.order.status.instance if isinstance(facts.order, WorkOrder) else None
    last = f" (last: {instance.last_exit})" if instance is not None and instance.last_exit else ""
    times = f" {vm.status.restarts} times" if vm.status.restarts else ""
    what = f"Its guest ends soon after each start{last}; it was restarted{times}, with growing pauses in between."
    next_start = moment(instance.next_start_at) if instance is not None else None
    if next_start is not None and next_start > facts.now:
        what += f" The next start is in {duration((next_start - facts.now).total_seconds())}."
    return Finding(
        Level.PROBLEM, what, f"{_ctl(facts, 'logs')} shows why it ends; {_ctl(facts, 'stop')} ends the restarts."
    )


def _scheduled_off(facts: Facts) -> bool:
    found = facts.vm.status.condition(VirtualMachineCondition.ON_SCHEDULE)
    running = facts.vm.spec.power_state is PowerState.RUNNING
    return running and found is not None and found.reason == "OutsideHours" and facts.vm.status.phase is Phase.STOPPED


def _wanted(facts: Facts) -> list[Finding]:
    vm = facts.vm
    if _scheduled_off(facts):
        until = f" until {vm.status.scheduled.at}" if vm.status.scheduled is not None else ""
        todo = (
            f"""{_kubectl(facts)} patch vm {vm.name} --type=merge -p '{{"spec":{{"schedule":{{"suspend":true}}}}}}'"""
        )
        return [Finding(Level.NOTE, f"Its schedule keeps it off{until}.", f"To have it run all the same: {todo}")]
    if vm.spec.power_state is PowerState.STOPPED and vm.status.phase is Phase.STOPPED:
        what = "It is stopped because its spec says powerState: Stopped."
        return [Finding(Level.NOTE, what, f"{_ctl(facts, 'start')} starts it.")]
    if vm.spec.power_state is PowerState.SUSPENDED and vm.status.phase is Phase.SUSPENDED:
        what = "It is suspended because its spec says powerState: Suspended; its memory is kept on its host."
        return [Finding(Level.NOTE, what, f"{_ctl(facts, 'resume')} lets it go on.")]
    if vm.spec.power_state is PowerState.PAUSED and vm.status.phase is Phase.PAUSED:
        what = "It is paused because its spec says powerState: Paused."
        return [Finding(Level.NOTE, what, f"{_ctl(facts, 'resume')} lets it go on.")]
    return []


def _restart(facts: Facts) -> list[Finding]:
    vm = facts.vm
    asked = vm.spec.restart_request
    if vm.status.phase is not Phase.RUNNING or asked is None or asked == vm.status.last_restart_request:
        return []
    return [Finding(Level.WAITING, "A restart was asked for and is not carried out yet.")]


def _pending(facts: Facts) -> list[Finding]:
    """What waits for its next start, or cannot be had."""
    found = facts.vm.status.condition(VirtualMachineCondition.RESTART_REQUIRED)
    if found is None:
        return []
    if found.status == "True":
        return [Finding(Level.NOTE, as_sentence(found.message), f"{_ctl(facts, 'restart')} restarts it.")]
    if found.reason == "HardwareUnsuited":
        todo = f"`kubectl get host {facts.vm.status.host} -o yaml` says what its host can; ask for that."
        return [Finding(Level.PROBLEM, as_sentence(found.message), todo)]
    todo = f"Ask for another size ({_ctl(facts, 'resize')}), or have the operator see to it: `kumulusctl host list`."
    return [Finding(Level.PROBLEM, as_sentence(found.message), todo)]


def _satisfied(facts: Facts) -> list[Finding]:
    """Rules of its placement that do not hold any more where it is."""
    found = facts.vm.status.condition(VirtualMachineCondition.PLACEMENT_SATISFIED)
    if found is None or found.status != "False":
        return []
    todo = f"{_ctl(facts, 'explain', ' --hosts')} shows where it would go now; or change the rule."
    return [Finding(Level.NOTE, as_sentence(found.message), todo)]


def _general(facts: Facts) -> list[Finding]:
    """What the conditions say, when nothing better is known."""
    vm = facts.vm
    if vm.spec.power_state.value == vm.status.phase and vm.spec.power_state is not PowerState.RUNNING:
        return []
    if _scheduled_off(facts):
        return []
    stalled, ready = vm.status.condition("Stalled"), vm.status.condition("Ready")
    if stalled is not None and stalled.status == "True":
        return [Finding(Level.PROBLEM, as_sentence(stalled.message or stalled.reason))]
    if ready is not None and ready.status == "True" and vm.status.phase is Phase.RUNNING:
        return []
    if ready is None or not (ready.message or ready.reason):
        return [Finding(Level.WAITING, f"It is {vm.status.phase or 'new'}, and shall be {vm.spec.power_state}.")]
    level = Level.PROBLEM if vm.status.phase in (Phase.FAILED, Phase.UNKNOWN) else Level.WAITING
    message = f": {as_sentence(ready.message)}" if ready.message else "."
    return [Finding(level, f"{ready.reason}{message}")]


def _well(facts: Facts) -> Finding:
    vm = facts.vm
    since = f", started {age(vm.status.started_at, facts.now)} ago" if vm.status.started_at else ""
    where = f" on {vm.status.host}" if vm.status.host else ""
    reached = f" Its addresses: {', '.join(vm.status.addresses)}." if vm.status.addresses else ""
    return Finding(Level.OK, f"All is well: it is {vm.status.phase}{where}{since}.{reached}")


def _services(facts: Facts) -> list[Finding]:
    """Services of Kubernetes that select the machine and have not all of their machines as endpoints."""
    found = []
    for service in facts.services:
        condition = service.status.condition(PUBLISHED)
        if condition is None or condition.status == "True":
            continue
        what = f"The Service {service.name} selects it, and says ({condition.reason}): {as_sentence(condition.message)}"
        todo = hint(condition.reason, namespace=facts.vm.namespace or "", name=service.name)
        found.append(Finding(Level.NOTE, what, todo or f"{_kubectl(facts)} describe service {service.name}"))
    return found


def _protection(facts: Facts) -> list[Finding]:
    if not facts.vm.spec.deletion_protection:
        return []
    return [Finding(Level.NOTE, "It is protected from deletion (spec.deletionProtection).")]
