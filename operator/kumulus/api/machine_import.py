"""VirtualMachineImport of compute.kumulus.io: a domain that is not Kumulus' own becomes a machine, and runs on meanwhile.

In the namespace of the host that has the domain, which is the operator's. Other namespaces' machines are made of what is said
here, so only who runs the cloud may write these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kumulus.api.addresses import GUESTS, IS_ADDRESS, UNICAST, Address, MacAddress
from kumulus.api.base import (
    AGE,
    DOMAIN,
    PHASE,
    VERSION,
    Column,
    DnsLabel,
    Kind,
    Model,
    Resource,
    Rule,
    Status,
    cel,
    list_map,
    reason_of,
)
from kumulus.api.compute import GROUP, Resources, RestartPolicy, VirtualMachine
from kumulus.api.disks import DiskName
from kumulus.api.segments import InterfaceName
from kumulus.api.unmanaged import DEVICES_MOST
from kumulus.api.volumes import DomainUuid, ObjectName, ReclaimPolicy

IMPORTED = f"{DOMAIN}/imported"
"""Annotation of a machine that was a domain of somebody else's: `<host>/<UUID of the domain>`. Its domain keeps that UUID. Of
a machine whose objects were lost there is besides what placement its domain is of: `/<epoch>`."""

IMPORTED_BY = f"{DOMAIN}/imported-by"
"""Annotation of a machine or volume: the uid of the import that made it."""

UNMANAGE = f"{DOMAIN}/unmanage"
"""Annotation of a machine: `true` when its end shall leave its domain running, and its disks where they are. Of a volume: `true`
when its end shall leave its data."""

FOUND = f"{DOMAIN}/found"
"""Annotation of a volume that was applied again after its objects were lost: the data that it is, in place of its source, as
`<host>/<pool>/<id>/<UUID of the domain that has it>`."""

_IMPORTED = re.compile(r"([a-z0-9][-a-z0-9]{0,62})/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:/([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class Origin:
    """The domain that a machine was."""

    host: str
    domain: str
    """Its UUID."""
    epoch: int = 0
    """The placement that it is of, when it was a machine's before; placements go on from there."""


def origin_of(vm: VirtualMachine) -> Origin | None:
    """The domain that the machine was before it was Kumulus' own, if it was one."""
    match = _IMPORTED.fullmatch(vm.metadata.annotations.get(IMPORTED, ""))
    return Origin(match[1], match[2], int(match[3] or 0)) if match is not None else None


def domain_of(vm: VirtualMachine) -> str:
    """UUID of the machine's domain: that of the domain that it was, else its own uid."""
    origin = origin_of(vm)
    return origin.domain if origin is not None else vm.uid


class UnmanagedRef(Model):
    """A domain on a host."""

    host: DnsLabel = Field(description="The host that has it; the import is in that host's namespace.")
    name: DomainUuid = Field(description="Name of its UnmanagedInstance, which is its UUID.")


class ImportedDisk(Model):
    """What becomes of a disk of the domain."""

    target: str = Field(description="Name that libvirt gives the disk, such as vda.", min_length=1, max_length=32)
    name: DiskName | None = Field(
        default=None, description="Name of the disk within the machine; the target when empty."
    )
    volume: ObjectName | None = Field(
        default=None, description="Name of the Volume that it becomes; `<machine>-<disk>` when empty."
    )
    volume_class: DnsLabel | None = Field(
        default=None, alias="class", description="Name of its VolumeClass; the default one when empty."
    )
    reclaim_policy: ReclaimPolicy = Field(
        default=ReclaimPolicy.RETAIN,
        description="What becomes of the data when the Volume is deleted. Retain, unless said otherwise: it was somebody's before.",
    )


class ImportedInterface(Model):
    """What becomes of an interface of the domain."""

    mac_address: MacAddress = Field(
        description="Its MAC address, which it keeps. It begins with neither 06 nor 0a.",
        json_schema_extra=cel(UNICAST, GUESTS),
    )
    name: InterfaceName | None = Field(
        default=None, description="Name of the interface within the machine; eth0, eth1, ... when empty."
    )
    network: ObjectName = Field(description="Name of the Network, in the namespace of the machine, that it comes into.")
    addresses: tuple[Annotated[Address, Field(json_schema_extra=cel(IS_ADDRESS))], ...] = Field(
        default=(),
        description="Addresses that it has, and keeps; chosen when empty.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    security_groups: tuple[ObjectName, ...] = Field(
        default=(),
        description="Names of SecurityGroups of that namespace; `default` when empty.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class ImportTemplate(Model):
    """The machine that the domain becomes."""

    rules = (
        Rule("!has(self.instanceType) || !has(self.resources)", "set instanceType or resources, or neither of them"),
    )

    namespace: DnsLabel = Field(description="Namespace of the machine, its volumes and interfaces.")
    name: ObjectName = Field(description="Name of the machine.")
    labels: Mapping[str, str] = Field(default_factory=dict, description="Labels of the machine.", max_length=64)
    instance_type: DnsLabel | None = Field(
        default=None, description="Name of an InstanceType. Another size than the domain has comes with its next start."
    )
    resources: Resources | None = Field(default=None, description="The size; that of the domain when both are empty.")
    restart_policy: RestartPolicy = Field(
        default=RestartPolicy.ALWAYS, description="What happens when the guest or QEMU ends by itself."
    )
    disks: tuple[ImportedDisk, ...] = Field(
        default=(),
        description="How disks of the domain are called; those that are not named come along all the same.",
        max_length=16,
        json_schema_extra=list_map("target"),
    )
    interfaces: tuple[ImportedInterface, ...] = Field(
        default=(),
        description="Where interfaces of the domain belong. Those that are not named stay as they are until its next start, and"
        " are gone from then on.",
        max_length=16,
        json_schema_extra=list_map("macAddress"),
    )


class VirtualMachineImportSpec(Model):
    """Which domain, and what it becomes."""

    rules = (
        Rule(
            "self.unmanagedInstance == oldSelf.unmanagedInstance && (oldSelf.dryRun || self.template == oldSelf.template)"
            " && (oldSelf.dryRun || !self.dryRun)",
            "an import that is no dryRun is carried out once and cannot be changed: delete it, which takes back what is not"
            " done yet, and make a new one",
        ),
    )

    unmanaged_instance: UnmanagedRef = Field(description="The domain.")
    template: ImportTemplate = Field(description="The machine that it becomes.")
    dry_run: bool = Field(
        default=False,
        description="Only say what would become of it, in status.plan. Set to false, it is carried out.",
    )


class ImportPhase(StrEnum):
    """How far an import is, in one word."""

    PENDING = "Pending"
    """What the domain is is not known yet."""
    BLOCKED = "Blocked"
    """Something of the domain cannot be mapped, or the template does not fit. Nothing was done."""
    PLANNED = "Planned"
    """It could be carried out; it is a dryRun."""
    IMPORTING = "Importing"
    """Volumes and machine are made; the domain is nobody's yet, or Kumulus' own already."""
    SUCCEEDED = "Succeeded"
    """The domain is the machine."""
    FAILED = "Failed"
    """The domain is gone, or what was made of it."""


FINISHED = frozenset({ImportPhase.SUCCEEDED, ImportPhase.FAILED})
"""Phases in which nothing happens any more."""


class PlanWhen(StrEnum):
    """When what is said of an item comes about."""

    NOW = "Now"
    """With the import."""
    NEXT_START = "NextStart"
    """When the machine is started anew."""
    NEVER = "Never"
    """It is in the way: the import is not carried out."""


class PlanItem(Model):
    """What becomes of one thing of the domain."""

    item: str = Field(
        description="The thing: cpus, memory, board, firmware, `disk vda`, `interface 52:54:...`.", max_length=64
    )
    when: PlanWhen = Field(description="Now, NextStart, or Never: then it is in the way.")
    becomes: str | None = Field(default=None, description="What it becomes.", max_length=253)
    reason: str | None = Field(
        default=None, description="Why, in one word, of what is in the way or changes.", max_length=64
    )
    message: str | None = Field(default=None, description="What there is to know of it.", max_length=1024)


class VirtualMachineImportStatus(Status):
    """How far the import is."""

    phase: ImportPhase | None = Field(default=None, description="How far it is, in one word.")
    plan: tuple[PlanItem, ...] = Field(
        default=(),
        description="What becomes of each thing of the domain.",
        max_length=3 * DEVICES_MOST,
    )
    blockers: int | None = Field(default=None, description="How many of them are in the way.")
    vm_uid: str | None = Field(default=None, description="Uid of the machine.")
    finished_at: str | None = Field(default=None, description="When it ended (RFC 3339).")


class VirtualMachineImport(Resource):
    """Makes a machine of a domain on a host that is not Kumulus' own. The domain is not restarted."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="VirtualMachineImport",
        plural="virtualmachineimports",
        short_names=("vmimport", "vmimports"),
        categories=("kumulus-admin",),
        columns=(
            Column("Domain", ".spec.unmanagedInstance.name"),
            Column("VM-Namespace", ".spec.template.namespace"),
            Column("VM", ".spec.template.name"),
            PHASE,
            Column("Blockers", ".status.blockers", "integer"),
            reason_of(priority=0),
            Column("Finished", ".status.finishedAt", "date", priority=1),
            AGE,
        ),
    )

    spec: VirtualMachineImportSpec = Field(description="Which domain, and what it becomes.")
    status: VirtualMachineImportStatus = Field(
        default_factory=VirtualMachineImportStatus, description="How far the import is."
    )
