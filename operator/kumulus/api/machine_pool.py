"""VirtualMachinePool: so many machines of one template. Part of compute.kumulus.io."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from kumulus.api.base import (
    AGE,
    DOMAIN,
    VERSION,
    Column,
    Kind,
    Model,
    Resource,
    Rule,
    Scaled,
    Status,
    cel,
    immutable,
    list_map,
    reason_of,
    template,
)
from kumulus.api.compute import GROUP, VirtualMachineSpec
from kumulus.api.placement import LABEL_KEY_RULE, Selector

POOL = f"{DOMAIN}/pool"
"""Label of a machine that a pool made: the pool's name."""

REVISION = f"{DOMAIN}/pool-revision"
"""Label of a machine that a pool made: of which template."""

DELETION_COST = f"{DOMAIN}/deletion-cost"
"""Annotation of a machine: a whole number. Those with a smaller one are removed first; without it, 0."""

REPLICAS_MOST = 1000
NAME_MAX = 56
"""Its machines are called after it, with a number."""

_SHARE = re.compile(r"([0-9]{1,4})|([0-9]{1,2}|100)%")


def _share(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or _SHARE.fullmatch(str(value)) is None:
        raise ValueError("a share is a whole number or a percentage such as 25%")
    return str(value)


Share = Annotated[
    str,
    BeforeValidator(_share),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 4,
            "x-kubernetes-validations": [
                {
                    "rule": "string(self).matches('^([0-9]{1,4}|[0-9]{1,2}%|100%)$')",
                    "message": "must be a whole number from 0 to 9999, or a percentage from 0% to 100%",
                }
            ],
        }
    ),
]
"""So many machines, or a percentage of those that are wanted."""


def share_of(share: str, whole: int, *, up: bool) -> int:
    """How many machines a share of `whole` is; a percentage is rounded up or down."""
    if not share.endswith("%"):
        return int(share)
    hundredths = int(share[:-1]) * whole
    return -(-hundredths // 100) if up else hundredths // 100


class TemplateMetadata(Model):
    """Labels and annotations of the machines of a pool."""

    rules = (
        Rule(
            f"!('{POOL}' in self.labels) && !('{REVISION}' in self.labels)",
            f"the labels {POOL} and {REVISION} are set by the pool",
            field=".labels",
        ),
    )

    labels: Selector = Field(description="Labels of each machine; those of the selector are among them.", min_length=1)
    annotations: Mapping[str, Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default_factory=dict,
        description="Annotations of each machine.",
        max_length=16,
        json_schema_extra=cel(Rule(LABEL_KEY_RULE, "keys must be such as example.com/team")),
    )


class MachineTemplate(Model):
    """What the machines of a pool are made from."""

    rules = (
        Rule(
            "!has(self.spec.deletionProtection) || !self.spec.deletionProtection",
            "a pool removes machines: protect single ones of them, by their own deletionProtection",
            field=".spec.deletionProtection",
        ),
        Rule(
            "!has(self.spec.disks) || self.spec.disks.all(d, !has(d.volume))",
            "a volume is one machine's: use volumeTemplate, by which each machine gets its own",
            field=".spec.disks",
        ),
        Rule(
            "!has(self.spec.interfaces) || self.spec.interfaces.all(i, !has(i.interface) && !has(i.macAddress)"
            " && !(has(i.addresses) && i.addresses.size() > 0))",
            "addresses, macAddress and interface are one machine's: name the network, and each machine gets its own",
            field=".spec.interfaces",
        ),
    )

    metadata: TemplateMetadata = Field(description="Their labels and annotations.")
    spec: VirtualMachineSpec = Field(description="What each of them shall be.", json_schema_extra=template())


class UpdateType(StrEnum):
    """How machines come to be of another template."""

    ROLLING_UPDATE = "RollingUpdate"
    ON_DELETE = "OnDelete"


class RollingUpdate(Model):
    """How fast machines are replaced."""

    max_unavailable: Share = Field(
        default="1",
        description="So many of the wanted machines may be away at a time, as a number or a percentage (rounded down).",
    )
    max_surge: Share = Field(
        default="0",
        description="So many machines more than wanted there may be at a time, as a number or a percentage (rounded up)."
        " When both come to 0, one at a time is replaced.",
    )


class UpdateStrategy(Model):
    """What is done when the template is another one."""

    type: UpdateType = Field(
        default=UpdateType.ROLLING_UPDATE,
        description="RollingUpdate replaces machines of an older template. OnDelete leaves them; who deletes one gets it back of"
        " the new template.",
    )
    rolling_update: RollingUpdate = Field(default_factory=RollingUpdate, description="How fast, for RollingUpdate.")


class ScaleInPolicy(StrEnum):
    """Which machines go first when fewer are wanted."""

    NEWEST = "Newest"
    OLDEST = "Oldest"
    RANDOM = "Random"


class ScaleIn(Model):
    """Which machines go when fewer are wanted."""

    policy: ScaleInPolicy = Field(
        default=ScaleInPolicy.NEWEST,
        description="Newest, Oldest or Random. Before that counts, in this order: who is not ready goes first, then who is of an"
        f" older template, then whose annotation {DELETION_COST} is smaller. Who has deletionProtection stays.",
    )


class HealingCause(StrEnum):
    """Why a machine is replaced."""

    FAILED = "Failed"
    CRASH_LOOP_BACK_OFF = "CrashLoopBackOff"
    HOST_UNKNOWN = "HostUnknown"


class Healing(Model):
    """Which machines are replaced although nobody deleted them."""

    replace: tuple[HealingCause, ...] = Field(
        default=(),
        description="Failed and CrashLoopBackOff: the machine is deleted and made again. HostUnknown: the host does not answer;"
        " another machine is made beside it, if it has no volumes, and the one there is kept.",
        max_length=3,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    after_seconds: int = Field(
        default=300,
        description="How long it has to be so; that it was well for less than two minutes is no break.",
        ge=30,
        le=7 * 24 * 3600,
    )


class VirtualMachinePoolSpec(Model):
    """How many machines of what."""

    rules = (
        Rule(
            "self.selector.all(k, k in self.template.metadata.labels && self.template.metadata.labels[k] == self.selector[k])",
            "template.metadata.labels must have all labels of selector",
            field=".template.metadata.labels",
        ),
    )

    replicas: int = Field(default=1, description="How many machines there shall be.", ge=0, le=REPLICAS_MOST)
    selector: Selector = Field(
        description="Labels by which its machines are known; no other pool of the namespace should have them.",
        min_length=1,
        json_schema_extra=immutable("selector"),
    )
    template: MachineTemplate = Field(description="What the machines are made from.")
    update_strategy: UpdateStrategy = Field(
        default_factory=UpdateStrategy, description="What is done when the template is another one."
    )
    scale_in: ScaleIn = Field(default_factory=ScaleIn, description="Which machines go when fewer are wanted.")
    healing: Healing = Field(
        default_factory=Healing,
        description="Which machines are replaced although nobody deleted them. One that somebody deletes is always made again.",
    )
    min_ready_seconds: int = Field(
        default=0, description="A machine counts as available once it has been ready for so long.", ge=0, le=3600
    )
    progress_deadline_seconds: int = Field(
        default=600,
        description="When nothing comes nearer to what is wanted for so long, the pool says that it is stalled.",
        ge=30,
        le=24 * 3600,
    )


class RemovalReason(StrEnum):
    """Why a pool removes a machine."""

    SCALE_IN = "ScaleIn"
    UPDATE = "Update"
    HEALING = "Healing"


class Removal(Model):
    """A machine that the pool removes."""

    name: str = Field(description="Name of the machine.", max_length=63)
    uid: str = Field(description="Its uid.", max_length=36)
    reason: RemovalReason = Field(description="Why: ScaleIn, Update or Healing.")


class PoolCondition(StrEnum):
    """Condition types of a VirtualMachinePool."""

    READY = "Ready"
    AVAILABLE = "Available"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class VirtualMachinePoolStatus(Status):
    """What machines a pool has."""

    replicas: int | None = Field(
        default=None, description="Machines that it has, without those that are being removed."
    )
    ready_replicas: int | None = Field(default=None, description="How many of them are ready.")
    available_replicas: int | None = Field(
        default=None, description="How many of them have been ready for minReadySeconds."
    )
    updated_replicas: int | None = Field(default=None, description="How many of them are of the template as it is now.")
    selector: str | None = Field(
        default=None, description="The selector as text, for autoscalers.", max_length=32 * (317 + 63 + 2)
    )
    current_revision: str | None = Field(
        default=None, description="The template that all machines were last of.", max_length=63
    )
    update_revision: str | None = Field(default=None, description="The template as it is now.", max_length=63)
    removing: tuple[Removal, ...] = Field(
        default=(),
        description="Machines that it removes.",
        max_length=REPLICAS_MOST * 2,
        json_schema_extra=list_map("uid"),
    )
    last_progress_at: str | None = Field(
        default=None, description="When it last came nearer to what is wanted (RFC 3339)."
    )


class VirtualMachinePool(Resource):
    """So many machines of one template, called `<pool>-<number>`: made, made again, replaced and removed as wanted."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="VirtualMachinePool",
        plural="virtualmachinepools",
        short_names=("vmpool", "vmpools"),
        categories=("kumulus",),
        columns=(
            Column("Desired", ".spec.replicas", "integer"),
            Column("Current", ".status.replicas", "integer"),
            Column("Ready", ".status.readyReplicas", "integer"),
            Column("Updated", ".status.updatedReplicas", "integer"),
            Column("Available", ".status.availableReplicas", "integer"),
            reason_of(),
            AGE,
        ),
        scale=Scaled(),
        name_max=NAME_MAX,
        rules=(
            Rule(
                "!has(self.spec.template.spec.disks) || self.spec.template.spec.disks.all(d, !has(d.volumeTemplate)"
                " || size(self.metadata.name) + size(d.name) <= 56)",
                "volumeTemplate makes Volumes called <pool>-<number>-<disk>, which may have 63 characters: take shorter names",
                field=".spec.template.spec.disks",
            ),
            Rule(
                "!has(self.spec.template.spec.interfaces) || self.spec.template.spec.interfaces.all(i,"
                " size(self.metadata.name) + size(i.name) <= 56)",
                "network makes NetworkInterfaces called <pool>-<number>-<interface>, which may have 63 characters: take shorter"
                " names",
                field=".spec.template.spec.interfaces",
            ),
        ),
    )

    spec: VirtualMachinePoolSpec = Field(description="How many machines of what.")
    status: VirtualMachinePoolStatus = Field(
        default_factory=VirtualMachinePoolStatus, description="What machines it has."
    )
