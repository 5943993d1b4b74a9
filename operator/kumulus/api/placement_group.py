"""PlacementGroup: machines that are to be together, or apart."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from kumulus.api.affinity import HOSTNAME, LabelKey, LabelSelector
from kumulus.api.base import AGE, VERSION, Column, Kind, Model, Resource, Rule, Status, list_map, reason_of
from kumulus.api.compute import GROUP

PLACES_MOST = 64
"""So many places the status of a group lists."""


class GroupPolicy(StrEnum):
    """What becomes of a group's members."""

    AFFINITY = "Affinity"
    ANTI_AFFINITY = "AntiAffinity"
    SOFT_AFFINITY = "SoftAffinity"
    SOFT_ANTI_AFFINITY = "SoftAntiAffinity"

    @property
    def apart(self) -> bool:
        """Whether members are to be apart."""
        return self in (GroupPolicy.ANTI_AFFINITY, GroupPolicy.SOFT_ANTI_AFFINITY)

    @property
    def soft(self) -> bool:
        """Whether a machine runs all the same where it cannot be had."""
        return self in (GroupPolicy.SOFT_AFFINITY, GroupPolicy.SOFT_ANTI_AFFINITY)


class PlacementGroupSpec(Model):
    """Which machines, and what becomes of them."""

    rules = (
        Rule(
            "!has(self.maxPerTopology) || self.policy in ['AntiAffinity', 'SoftAntiAffinity']",
            "maxPerTopology goes with the policies AntiAffinity and SoftAntiAffinity",
            field=".maxPerTopology",
        ),
    )

    policy: GroupPolicy = Field(
        description="Affinity: all in one place. AntiAffinity: apart. SoftAffinity and SoftAntiAffinity: so if it can be had, else"
        " the machine runs all the same. It holds for machines that are placed from then on; none is moved."
    )
    selector: LabelSelector = Field(
        description="Its members: machines of the namespace with these labels. An empty one selects them all."
    )
    topology_key: LabelKey = Field(
        default=HOSTNAME,
        description=f"Label of hosts; hosts with the same value are one place: {HOSTNAME} for a host,"
        " topology.kubernetes.io/zone for a zone, or a label of the operator's, such as a rack.",
    )
    max_per_topology: int | None = Field(
        default=None, description="So many members may be in one place; one when empty.", ge=1, le=10000
    )

    @property
    def most(self) -> int:
        """So many members may be in one place when they are to be apart."""
        return self.max_per_topology or 1


class GroupPlace(Model):
    """A place with members of a group."""

    value: str = Field(description="Value of the label that topologyKey names: of hosts their names.", max_length=63)
    machines: int = Field(description="How many members are there.")


class PlacementGroupStatus(Status):
    """What a group is."""

    members: int | None = Field(default=None, description="How many machines are in it.")
    placed: int | None = Field(default=None, description="How many of them have a place.")
    topologies: tuple[GroupPlace, ...] = Field(
        default=(),
        description=f"Where they are, the fullest first, at most {PLACES_MOST} places.",
        max_length=PLACES_MOST,
        json_schema_extra=list_map("value"),
    )


class PlacementGroup(Resource):
    """Machines of a namespace that are to be together, or apart. Who is in it is said by labels of the machines."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="PlacementGroup",
        plural="placementgroups",
        short_names=("pg",),
        categories=("kumulus",),
        columns=(
            Column("Policy", ".spec.policy"),
            Column("Topology", ".spec.topologyKey"),
            Column("Members", ".status.members", "integer"),
            Column("Placed", ".status.placed", "integer"),
            Column("Satisfied", ".status.conditions[?(@.type=='Satisfied')].status"),
            reason_of("Satisfied"),
            AGE,
        ),
    )

    spec: PlacementGroupSpec = Field(description="Which machines, and what becomes of them.")
    status: PlacementGroupStatus = Field(default_factory=PlacementGroupStatus, description="What the group is.")


class GroupCondition(StrEnum):
    """Condition types of a PlacementGroup."""

    SATISFIED = "Satisfied"
