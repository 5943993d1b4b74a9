"""What a machine asks of hosts by their labels, and of other machines; read from the API. Pure.

How these rules are judged: `neighbours`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kumulus.api.affinity import VmAffinity, VmTerm, WhenUnsatisfiable
from kumulus.api.compute import Placement
from kumulus.api.placement_group import GroupPolicy, PlacementGroup
from kumulus_controllers.planning.labels import Labels, host_labels_of, labels_of
from kumulus_controllers.planning.residents import Term


@dataclass(frozen=True, slots=True)
class Liking:
    """Machines that a machine would rather be near to, or away from."""

    term: Term
    weight: int
    near: bool


@dataclass(frozen=True, slots=True)
class HostLiking:
    """Hosts that a machine would rather be on."""

    labels: Labels
    weight: int


@dataclass(frozen=True, slots=True)
class GroupRule:
    """A PlacementGroup that a machine is a member of."""

    name: str
    term: Term
    policy: GroupPolicy
    most: int
    """Members that may be in one place, when they are to be apart."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How evenly machines are spread."""

    term: Term
    skew: int
    required: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """All of them. Empty for most machines."""

    hosts: tuple[Labels, ...] = ()
    """One of them has to hold of the host; none: any host will do."""
    host_likings: tuple[HostLiking, ...] = ()
    near: tuple[Term, ...] = ()
    apart: tuple[Term, ...] = ()
    likings: tuple[Liking, ...] = ()
    groups: tuple[GroupRule, ...] = ()
    spreads: tuple[Spread, ...] = ()

    @property
    def of_machines(self) -> bool:
        """Whether anything is asked of other machines, or any host is liked more than another."""
        return bool(self.near or self.apart or self.likings or self.groups or self.spreads or self.host_likings)


NO_RULES = Rules()


def term_of(term: VmTerm) -> Term:
    """A term of the API."""
    return Term(labels_of(term.label_selector), term.topology_key)


def repels(placement: Placement) -> tuple[Term, ...]:
    """The machines that a machine is required to be away from."""
    apart = placement.affinity.vm_anti_affinity if placement.affinity is not None else None
    return tuple(map(term_of, apart.required)) if apart is not None else ()


def group_rule(group: PlacementGroup) -> GroupRule:
    """A group of the API."""
    spec = group.spec
    return GroupRule(group.name, Term(labels_of(spec.selector), spec.topology_key), spec.policy, spec.most)


def rules_of(placement: Placement, groups: Iterable[PlacementGroup] = ()) -> Rules:
    """What a machine's spec says, and the groups that it is a member of."""
    affinity, spreads, grouped = placement.affinity, placement.topology_spread_constraints, tuple(groups)
    if affinity is None and not spreads and not grouped:
        return NO_RULES
    hosts = affinity.host_affinity if affinity is not None else None
    near = affinity.vm_affinity if affinity is not None else None
    apart = affinity.vm_anti_affinity if affinity is not None else None
    return Rules(
        hosts=tuple(map(host_labels_of, hosts.required)) if hosts is not None else (),
        host_likings=tuple(HostLiking(host_labels_of(p.preference), p.weight) for p in hosts.preferred)
        if hosts is not None
        else (),
        near=tuple(map(term_of, near.required)) if near is not None else (),
        apart=repels(placement),
        likings=(*_likings(near, near=True), *_likings(apart, near=False)),
        groups=tuple(map(group_rule, sorted(grouped, key=lambda group: group.name))),
        spreads=tuple(
            Spread(
                Term(labels_of(item.label_selector), item.topology_key),
                item.max_skew,
                item.when_unsatisfiable is WhenUnsatisfiable.DO_NOT_SCHEDULE,
            )
            for item in spreads
        ),
    )


def _likings(affinity: VmAffinity | None, *, near: bool) -> Iterable[Liking]:
    return (Liking(term_of(p.term), p.weight, near) for p in (affinity.preferred if affinity is not None else ()))
