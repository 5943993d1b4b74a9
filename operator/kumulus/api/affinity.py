"""What machines want of hosts and of each other: selectors, affinity, topology spread. In the shape that Kubernetes gives pods.

Source: https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/ and
https://kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints/
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.base import Model, Rule, cel
from kumulus.api.placement import LABEL_KEY, LABEL_KEYS, LabelValue

TERMS_MOST = 8
"""So many terms a list may have."""

HOSTNAME = "kubernetes.io/hostname"
"""Topology key of a host: every host has this label, and its value is the host's name."""

TOPOLOGY_ZONE = "topology.kubernetes.io/zone"
"""Topology key of a zone: every host has this label, and its value is the host's zone."""

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=f"^{LABEL_KEY}$")]

_VALUES = (
    Rule(
        "!(self.operator in ['In', 'NotIn']) || (has(self.values) && self.values.size() > 0)",
        "In and NotIn need values",
        field=".values",
    ),
    Rule(
        "!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || self.values.size() == 0",
        "Exists and DoesNotExist have no values",
        field=".values",
    ),
)


class LabelOperator(StrEnum):
    """How a label of a machine is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelRequirement(Model):
    """One thing that a label has to be."""

    rules = _VALUES

    key: LabelKey = Field(description="Key of the label.")
    operator: LabelOperator = Field(description="In, NotIn, Exists or DoesNotExist.")
    values: tuple[LabelValue, ...] = Field(default=(), description="Values, for In and NotIn.", max_length=32)


class LabelSelector(Model):
    """Machines by their labels. All of it has to hold; an empty one selects all machines of the namespace."""

    match_labels: Mapping[str, LabelValue] = Field(
        default_factory=dict,
        description="Labels with these values.",
        max_length=16,
        json_schema_extra=cel(LABEL_KEYS),
    )
    match_expressions: tuple[LabelRequirement, ...] = Field(
        default=(), description="More that labels have to be.", max_length=TERMS_MOST
    )


class HostOperator(StrEnum):
    """How a label of a host is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class HostRequirement(Model):
    """One thing that a label of a host has to be."""

    rules = (
        *_VALUES,
        Rule(
            "!(self.operator in ['Gt', 'Lt']) || (has(self.values) && self.values.size() == 1"
            " && self.values[0].matches('^(0|[1-9][0-9]{0,17})$'))",
            "Gt and Lt need one value, which is a whole number",
            field=".values",
        ),
    )

    key: LabelKey = Field(
        description=f"Key of the label. Every host has {HOSTNAME}, its name, and {TOPOLOGY_ZONE}, its zone."
    )
    operator: HostOperator = Field(description="In, NotIn, Exists, DoesNotExist, Gt or Lt.")
    values: tuple[LabelValue, ...] = Field(
        default=(), description="Values, for In and NotIn; one number for Gt and Lt.", max_length=32
    )


class HostTerm(Model):
    """Hosts by their labels; all of it has to hold."""

    match_expressions: tuple[HostRequirement, ...] = Field(
        description="What labels of the host have to be.", min_length=1, max_length=TERMS_MOST
    )


Weight = Annotated[int, Field(ge=1, le=100)]


class PreferredHosts(Model):
    """Hosts that are rather taken."""

    weight: Weight = Field(description="How much that counts beside other preferences.")
    preference: HostTerm = Field(description="Which hosts.")


class HostAffinity(Model):
    """Which hosts a machine may run on, and which it would rather."""

    required: tuple[HostTerm, ...] = Field(
        default=(), description="At least one of them has to hold.", max_length=TERMS_MOST
    )
    preferred: tuple[PreferredHosts, ...] = Field(
        default=(), description="Hosts with the most weight are taken first.", max_length=TERMS_MOST
    )


class VmTerm(Model):
    """Other machines of the namespace, and how near is near."""

    label_selector: LabelSelector = Field(description="Which machines of the namespace.")
    topology_key: LabelKey = Field(
        description=f"Label of hosts; hosts with the same value are one place: {HOSTNAME} for a host, {TOPOLOGY_ZONE} for a"
        " zone, or a label of the operator's, such as a rack."
    )


class PreferredVms(Model):
    """Machines that are rather near, or rather far."""

    weight: Weight = Field(description="How much that counts beside other preferences.")
    term: VmTerm = Field(description="Which machines, and how near is near.")


class VmAffinity(Model):
    """Machines that a machine is to be near to, or away from. Looked at when it is placed."""

    required: tuple[VmTerm, ...] = Field(default=(), description="All of them have to hold.", max_length=TERMS_MOST)
    preferred: tuple[PreferredVms, ...] = Field(
        default=(), description="Hosts with the most weight are taken first.", max_length=TERMS_MOST
    )


class Affinity(Model):
    """What a machine wants of hosts and of other machines of its namespace."""

    host_affinity: HostAffinity | None = Field(default=None, description="Hosts to run on.")
    vm_affinity: VmAffinity | None = Field(default=None, description="Machines to be near to.")
    vm_anti_affinity: VmAffinity | None = Field(
        default=None,
        description="Machines to be away from. What is required here holds for those that come later, too.",
    )


class WhenUnsatisfiable(StrEnum):
    """What becomes of a machine that cannot be spread as wanted."""

    DO_NOT_SCHEDULE = "DoNotSchedule"
    SCHEDULE_ANYWAY = "ScheduleAnyway"


class TopologySpread(Model):
    """How evenly machines are spread over places."""

    max_skew: int = Field(
        default=1,
        description="How many more machines a place may have than the one with the fewest.",
        ge=1,
        le=1000,
    )
    topology_key: LabelKey = Field(description="Label of hosts; hosts with the same value are one place.")
    when_unsatisfiable: WhenUnsatisfiable = Field(
        default=WhenUnsatisfiable.DO_NOT_SCHEDULE,
        description="DoNotSchedule lets the machine wait, ScheduleAnyway only prefers what makes it even.",
    )
    label_selector: LabelSelector = Field(description="Which machines of the namespace are counted.")
