"""What a router's status says: which host routes, which can take over, and why not all is as it shall be. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from kumulus.api.base import ConditionStatus
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.routing import RoutedNetwork, Router, RouterPhase, RouterStatus
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.network import distributed_plan
from kumulus_controllers.network.gateway_plan import Choice
from kumulus_controllers.network.lack import Lack, facts
from kumulus_controllers.network.ranges import ranges
from kumulus_controllers.network.router_plan import Held, Scope, driver


def active(orders: Mapping[str, WorkOrder], silent: frozenset[str]) -> str | None:
    """The host that says that it is active. One that is not heard of is not believed while another says so too."""
    saying = [
        host for host, item in sorted(orders.items()) if item.status.gateway is not None and item.status.gateway.active
    ]
    heard = [host for host in saying if host not in silent]
    return next(iter(heard), None)


def derive_status(scope: Scope, held: Held, choice: Choice | None, lack: Lack | None, now: str) -> RouterStatus:
    """The whole status. What hosts do is what their agents say."""
    router, before = scope.router, scope.router.status
    where = active(scope.orders, scope.silent)
    generation = router.metadata.generation
    trouble = _trouble(scope, where)
    found: list[Fact]
    if router.deleting:
        phase, found = (
            RouterPhase.TERMINATING,
            facts(lack or Lack("Terminating", "Its hosts let go of it.", stalled=False), ""),
        )
    else:
        lack = _together(lack, trouble) or _behind(scope, where)
        phase = RouterPhase.ACTIVE if where is not None else RouterPhase.PENDING
        if lack is not None and where is None and lack.stalled:
            phase = RouterPhase.FAILED
        found = facts(lack, "Active", f"Host {where} routes.")
        if router.spec.high_availability and choice is not None and choice.hosts:
            found.append(_redundant(scope, choice, where))
            found += _kept(scope, choice)
        distributed = distributed_plan.fact(router, driver(held), len(held.networks), scope.segments)
        found += [distributed] if distributed is not None else []
    standby = tuple(sorted(h for h, o in scope.orders.items() if h != where and o.status.state is WorkState.READY))
    return RouterStatus(
        observed_generation=generation,
        conditions=derive(before.conditions, found, generation=generation, now=now),
        phase=phase,
        networks=tuple(
            RoutedNetwork(
                name=network.name, uid=network.uid, addresses=tuple(str(item.gateway) for item in ranges(network))
            )
            for network in held.networks
        ),
        external_network=scope.external.uid if scope.external is not None and held.external is not None else None,
        external_address=held.external,
        active_host=where,
        standby_hosts=tuple(host for host in standby if host not in scope.silent),
    )


def _redundant(scope: Scope, choice: Choice, where: str | None) -> Fact:
    if choice.short:
        said = "; ".join(f"{name}: {why}" for name, why in sorted((choice.refused or {}).items())[:5])
        return Fact(
            "Redundant",
            False,
            "NoStandby",
            f"No other host can take over ({said or 'there is no other'}). It goes on by itself when one can.",
        )
    failed = _failed(scope)
    ready = [host for host in choice.hosts if host not in (*failed, *scope.silent, where)]
    others = [lack for host, lack in failed.items() if host != where]
    if others and where is not None and not ready:  # who is ready stands by, whatever another one lacks
        return Fact("Redundant", False, others[0].reason, f"{others[0].message} No other host can take over.")
    return Fact("Redundant", True, "Redundant", "Another host can take over.")


def _failed(scope: Scope) -> dict[str, Lack]:
    """What hosts say that they cannot do, by host. What is not heard of says nothing."""
    return {
        host: Lack(item.status.reason or "Failed", f"Host {host}: {item.status.message or 'it failed'}")
        for host, item in sorted(scope.orders.items())
        if item.status.state is WorkState.FAILED and host not in scope.silent
    }


def _kept(scope: Scope, choice: Choice) -> list[Fact]:
    """Whether translated connections go on when another host takes over, as hosts say that are heard of. Nothing is said
    where no other one can."""
    said = [
        (host, item.status.gateway)
        for host, item in sorted(scope.orders.items())
        if item.status.gateway and host not in scope.silent
    ]
    if choice.short or not said:
        return []
    if why := "; ".join(f"host {host}: {facts.unkept}" for host, facts in said if facts.unkept):
        lost = "Connections that are translated break when another host takes over"
        return [Fact("ConnectionsKept", False, "NotCopied", f"{lost} ({why[:600]}).")]
    if older := [host for host, facts in said if facts.kept is None]:
        lost = f"The agents of {', '.join(older[:5])} do not say whether they copy connections: upgrade them"
        return [Fact("ConnectionsKept", ConditionStatus.UNKNOWN, "NotSaid", f"{lost}.")]
    if len(said) < 2:  # one host alone copies to nobody
        return []
    return [Fact("ConnectionsKept", True, "Copied", "Open connections go on when another host takes over.")]


def _trouble(scope: Scope, where: str | None) -> Lack | None:
    """What agents say that keeps it from routing as it shall. What keeps another host from standing by is not of these, if
    there shall be one: it is said of that (`_redundant`)."""
    failed = _failed(scope)
    stands_by = where is not None and scope.router.spec.high_availability
    if (lack := failed.get(where or "") if stands_by else next(iter(failed.values()), None)) is not None:
        return lack
    if where is None:
        some = ", ".join(sorted(scope.orders)) or "a host"
        return Lack("NotActive", f"No host says yet that it routes; {some} is told to.", stalled=False)
    return None


NOT_TOLD = "HostsNotTold"


def was_ready(router: Router) -> bool:
    """By its own record."""
    ready = router.status.condition("Ready")
    return ready is not None and ready.status is ConditionStatus.TRUE


def _behind(scope: Scope, where: str | None) -> Lack | None:
    """That hosts which the router is new to do not take its packets yet. Of one that was Ready nobody says so: changes that
    others cause are on their way to hosts all the time."""
    waiting = sorted(scope.untold - scope.silent)
    if where is None or not waiting or was_ready(scope.router):
        return None
    some = ", ".join(waiting[:5]) + (", ..." if len(waiting) > 5 else "")
    return Lack(NOT_TOLD, f"Host {where} routes; {some}, with interfaces of its networks, hear of it.", stalled=False)


def _together(lack: Lack | None, trouble: Lack | None) -> Lack | None:
    """What the router lacks, and with it what its hosts could not do: neither hides the other."""
    if lack is None or trouble is None or not trouble.stalled:
        return lack or trouble
    return Lack(lack.reason, f"{lack.message} Besides, {trouble.reason}: {trouble.message}", stalled=True)
