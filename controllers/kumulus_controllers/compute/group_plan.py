"""What is so of a PlacementGroup. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from kumulus.api.affinity import HOSTNAME
from kumulus.api.compute import VirtualMachine
from kumulus.api.placement_group import (
    PLACES_MOST,
    GroupCondition,
    GroupPlace,
    PlacementGroup,
    PlacementGroupStatus,
)
from kumulus.runtime.conditions import Fact, derive

NAMED = 5
"""So many places, or machines, are named that are not as they shall be."""

Locate = Callable[[str], str | None]
"""Host to the place it is in, as the group's topology key says; None for a host without the label."""


def derive_status(
    group: PlacementGroup, members: Iterable[VirtualMachine], locate: Locate, now: str
) -> PlacementGroupStatus:
    """The whole status."""
    found = list(members)
    placed = [(vm, host) for vm in found if (host := vm.status.host) is not None]
    where = [(vm, locate(host)) for vm, host in placed]
    counts = Counter(value for _, value in where if value is not None)
    lost = sorted(vm.name for vm, value in where if value is None)
    fullest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    facts = [_satisfied(group, len(found), fullest, lost)]
    generation = group.metadata.generation
    return PlacementGroupStatus(
        observed_generation=generation,
        conditions=derive(group.status.conditions, facts, generation=generation, now=now),
        members=len(found),
        placed=len(placed),
        topologies=tuple(GroupPlace(value=value, machines=count) for value, count in fullest[:PLACES_MOST]),
    )


def _satisfied(group: PlacementGroup, members: int, places: list[tuple[str, int]], lost: list[str]) -> Fact:
    satisfied, spec = GroupCondition.SATISFIED, group.spec
    if members == 0:
        return Fact(
            satisfied, True, "NoMembers", "No machine of the namespace has the labels that its selector asks for."
        )
    if lost:
        why = f"Hosts without label {spec.topology_key} are in no place, and these machines are on such: {_some(lost)}."
        return Fact(satisfied, spec.policy.soft, "NoSuchPlace", why)
    full = [f"{count} in {value}" for value, count in places if count > spec.most]
    stay = "" if spec.policy.soft else " Machines stay where they are until they are moved or made anew."
    if spec.policy.apart and full:
        what = f"More than {spec.most} in one place: {_some(full)}."
        return Fact(satisfied, False, "Together", what + stay)
    if not spec.policy.apart and len(places) > 1:
        what = f"In {len(places)} places: {_some([f'{count} in {value}' for value, count in places])}."
        return Fact(satisfied, False, "Apart", what + stay)
    how = "apart" if spec.policy.apart else "together"
    return Fact(satisfied, True, "AsWanted", f"Its machines that are placed are {how}.")


def _some(items: list[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more


def place_of(labels: Mapping[str, str] | None, host: str, key: str) -> str | None:
    """The place that a host is in; a host that is not there any more is a place of its own, and in no other."""
    if labels is None:
        return host if key == HOSTNAME else None
    return labels.get(key)
