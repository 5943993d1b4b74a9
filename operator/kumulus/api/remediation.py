"""fabric.kumulus.io: asking for a host to be fenced, and what came of it (ADR 33)."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from kumulus.api.base import (
    AGE,
    PHASE,
    VERSION,
    Column,
    DnsLabel,
    Kind,
    Model,
    Resource,
    Rule,
    Scope,
    Status,
    immutable,
    reason_of,
)
from kumulus.api.fabric import GROUP, MethodName

MANUAL = "manual"
"""The method by which a person says that the host is off."""


class WitnessUse(StrEnum):
    """What becomes of a remediation while a witness says that the host is alive."""

    HEED = "Heed"
    """It waits."""
    IGNORE = "Ignore"
    """It goes on."""


class HostRemediationSpec(Model):
    """Which host is to be fenced, why, and how."""

    rules = (
        Rule(
            "!oldSelf.confirmedOff || self.confirmedOff",
            "what was confirmed stays so: machines may run elsewhere by now",
            field=".confirmedOff",
        ),
        Rule(
            "!self.confirmedOff || has(self.lastRenewal)",
            "a confirmation goes with lastRenewal: the renewTime of the host's Lease, by which it is known what was confirmed"
            " (kumulusctl host confirm-dead fills it in)",
            field=".lastRenewal",
        ),
        Rule(
            "!has(oldSelf.lastRenewal) || has(self.lastRenewal) && self.lastRenewal == oldSelf.lastRenewal",
            "lastRenewal cannot be changed: make another HostRemediation",
            field=".lastRenewal",
        ),
    )

    host: DnsLabel = Field(description="Name of the Host.", json_schema_extra=immutable("host"))
    reason: str | None = Field(default=None, description="Why, for people.", max_length=1024)
    methods: tuple[MethodName, ...] = Field(
        default=(MANUAL,),
        description="What may be used; the first that can be is. redfish, ipmi: the host's BMC (Host.spec.bmc) switches it off, and is"
        " asked whether it is. watchdog: the host's own (Host.spec.fencing.watchdog) has ended its machines. manual: a person says that it is off.",
        min_length=1,
        max_length=5,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    confirmed_off: bool = Field(
        default=False,
        description="For the method manual: true says that you have seen the host to be powered off, not merely silent. Its"
        " machines are then started elsewhere. Said of a host that runs, machines run twice and lose their disks.",
    )
    last_renewal: str | None = Field(
        default=None,
        description="The renewTime of the host's Lease (kubectl -n kumulus-host-NAME get lease kumulus-agent -o yaml) as it was when"
        " the host was seen to be off. If the host gives a later sign of life, nothing is done.",
        min_length=1,
        max_length=64,
    )
    witnesses: WitnessUse = Field(
        default=WitnessUse.HEED,
        description="Heed: while a witness says that the host is alive (its status.witnesses) nothing is done. Ignore: it is fenced all"
        " the same, as somebody wants who knows better, or who wants a host off that is only cut off.",
    )


class RemediationPhase(StrEnum):
    """How far it is, in one word."""

    PENDING = "Pending"
    """It waits: for the host to have been silent for long enough, or for a confirmation."""
    FENCING = "Fencing"
    """The host starts nothing any more, and is being fenced."""
    FENCED = "Fenced"
    """The host is off for certain. Its machines start elsewhere."""
    RETURNING = "Returning"
    """The host answers again, and removes what it still has of machines that were taken from it."""
    SUCCEEDED = "Succeeded"
    """The host has come back, and takes machines again."""
    REFUSED = "Refused"
    """The host answers, so nothing was done."""
    FAILED = "Failed"
    """It cannot be done."""


ENDED = frozenset({RemediationPhase.SUCCEEDED, RemediationPhase.REFUSED, RemediationPhase.FAILED})
"""Phases that nothing follows."""


class HostRemediationStatus(Status):
    """What came of it."""

    phase: RemediationPhase | None = Field(default=None, description="How far it is, in one word.")
    method: MethodName | None = Field(default=None, description="The method that fenced the host.")
    attempts: int | None = Field(default=None, description="How often a BMC was told to switch it off.")
    fenced_at: str | None = Field(default=None, description="Since when the host is known to be off (RFC 3339).")
    evidence: str | None = Field(default=None, description="By what that is known.", max_length=1024)
    last_renewal: str | None = Field(
        default=None,
        description="The sign of life of the host after which there was none: spec.lastRenewal, else the renewTime of its Lease"
        " when this was first looked at. A later one ends it.",
        max_length=64,
    )
    returned_at: str | None = Field(default=None, description="When the host took machines again (RFC 3339).")


class HostRemediation(Resource):
    """Asks for a host that does not answer to be fenced: to be off for certain, so that its machines can start elsewhere."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="HostRemediation",
        plural="hostremediations",
        scope=Scope.CLUSTER,
        short_names=("hostrem",),
        categories=("kumulus-admin",),
        selectable=(".spec.host",),
        columns=(
            Column("Host", ".spec.host"),
            PHASE,
            Column("Method", ".status.method"),
            Column("Fenced", ".status.fencedAt", "date"),
            reason_of(),
            AGE,
        ),
    )

    spec: HostRemediationSpec = Field(description="Which host is to be fenced, why, and how.")
    status: HostRemediationStatus = Field(default_factory=HostRemediationStatus, description="What came of it.")

    @property
    def ended(self) -> bool:
        """Whether nothing follows any more."""
        return self.status.phase in ENDED
