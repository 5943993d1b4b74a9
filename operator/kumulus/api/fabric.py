"""fabric.kumulus.io: the machines underneath. All cluster-scoped."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from kumulus.api.affinity import HOSTNAME, TOPOLOGY_ZONE
from kumulus.api.base import (
    AGE,
    DOMAIN,
    PHASE,
    VERSION,
    Column,
    ConditionStatus,
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
from kumulus.api.hardware import CpuModelName, HostFeature, Known
from kumulus.api.maintenance import Maintenance, MaintenanceMode, MaintenanceStatus
from kumulus.api.placement import Taint
from kumulus.api.quantity import Amount
from kumulus.api.witness import Statement

GROUP = f"fabric.{DOMAIN}"

HOST_NAMESPACE_PREFIX = "kumulus-host-"
HOST_NAME_MAX = 63 - len(HOST_NAMESPACE_PREFIX)


def host_namespace(host: str) -> str:
    """The namespace of a host's work orders, facts and credentials."""
    return HOST_NAMESPACE_PREFIX + host


IGNORE_ORPHANS = f"{DOMAIN}/ignore-orphans"
"""Annotation of a Host: `"true"` when its word is not heeded that it has domains of machines whose objects were lost."""


REBUILD = f"{DOMAIN}/rebuild"
"""Annotation of a Host: `"true"` while machines that it has, and whose objects were lost, become those of their names again."""


class ZoneSpec(Model):
    """A part of the cloud that fails on its own."""

    display_name: str | None = Field(default=None, description="Name for people.", max_length=128)
    cpu_baseline: CpuModelName | None = Field(
        default=None,
        description="CPU model, as libvirt names it, of machines that ask for none: one that all hosts of the zone can give, so"
        " that machines can move between them. Changing it does not change machines that have got theirs.",
    )


class Zone(Resource):
    """A part of the cloud that fails on its own: a room, a data centre."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="Zone",
        plural="zones",
        scope=Scope.CLUSTER,
        categories=("kumulus-admin",),
        columns=(
            Column("Display-Name", ".spec.displayName"),
            Column("CPU-Baseline", ".spec.cpuBaseline"),
            AGE,
        ),
        status=False,
    )

    spec: ZoneSpec = Field(default_factory=ZoneSpec, description="The zone.")


class HypervisorType(StrEnum):
    """What runs machines on a host."""

    LIBVIRT = "libvirt"
    SIMULATED = "simulated"


class Overcommit(Model):
    """How much more may be promised than there is."""

    cpu: float = Field(default=4.0, description="Virtual CPUs per hardware thread.", ge=0.1, le=100)
    memory: float = Field(default=1.0, description="Promised memory per byte there is.", ge=0.1, le=10)


class Reserved(Model):
    """What is kept for the host itself."""

    cpu: int = Field(default=0, description="Hardware threads.", ge=0, le=1024)
    memory: Amount = Field(default="512Mi", description="Memory.")


WATCHDOG = "watchdog"
"""The method of fencing by which the host's own watchdog has ended its machines."""
MethodName = Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""Name of a way to fence a host."""


class Bmc(Model):
    """The controller that can switch the host's power, also while the host itself does not answer."""

    rules = (
        Rule(
            "self.type != 'redfish' || self.address.startsWith('https://')",
            "the address of a Redfish service begins with https://",
            field=".address",
        ),
        Rule(
            "self.type != 'ipmi' || !self.address.startsWith('https://')",
            "the address of a BMC that speaks IPMI is a host, or a host and a port: 10.0.9.1, 10.0.9.1:623",
            field=".address",
        ),
        Rule(
            "self.type != 'ipmi' || !has(self.caBundle) && !has(self.system) && !(has(self.insecureSkipVerify) && self.insecureSkipVerify)",
            "system, caBundle and insecureSkipVerify are for Redfish: IPMI has none of it",
        ),
        Rule(
            "!(has(self.caBundle) && has(self.insecureSkipVerify) && self.insecureSkipVerify)",
            "caBundle and insecureSkipVerify exclude each other",
        ),
    )

    type: MethodName = Field(
        description="The method of HostRemediations that it is for: redfish, ipmi (2.0, over the network), or that of a plug-in."
    )
    address: str = Field(
        description="Where it is: of a Redfish service such as `https://10.0.9.1`, of IPMI such as `10.0.9.1` or `10.0.9.1:623`.",
        min_length=1,
        max_length=253,
        pattern=r"^(https://)?[A-Za-z0-9.:\[\]-]+$",
    )
    system: str | None = Field(
        default=None,
        description="Which of its systems the host is, by Id; needed when it has several.",
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9._-]+$",
    )
    credentials_secret: str = Field(
        description="Name of a Secret in the namespace kumulus-system with the keys username and password.",
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    )
    ca_bundle: str | None = Field(
        default=None, description="Certificates that its own must be signed with, PEM.", max_length=32768
    )
    insecure_skip_verify: bool = Field(
        default=False,
        description="Do not look at its certificate. Whoever is on the way then gets its password, and can say that the host is"
        " off.",
    )


class Fencing(Model):
    """What happens when the host does not answer."""

    automatic: bool = Field(
        default=False,
        description="When it has been silent for its Lease and some seconds, and machines on it ask for high availability, have its"
        " BMC switch it off without asking anybody, so that they start elsewhere. With a watchdog, take its word.",
    )
    watchdog: bool = Field(
        default=False,
        description="Have the host end its machines by itself when it cannot renew its Lease for as long as that lasts (20 s), so that"
        " they can start elsewhere without a BMC. All of its machines, also when it is the API server that is away. The host needs"
        " the service kumulus-agent watchdog.",
    )


class HostSpec(Model):
    """What the operator wants of a host."""

    rules = (
        Rule(
            "!has(self.fencing) || !self.fencing.automatic || has(self.bmc) || self.fencing.watchdog",
            "automatic fencing needs a BMC (spec.bmc) that can switch the host off, or a watchdog (fencing.watchdog)",
            field=".fencing",
        ),
    )

    zone: DnsLabel = Field(description="The zone it is in.", json_schema_extra=immutable("zone"))
    hypervisor: HypervisorType = Field(
        default=HypervisorType.LIBVIRT,
        description="What runs machines on it.",
        json_schema_extra=immutable("hypervisor"),
    )
    unschedulable: bool = Field(default=False, description="No new machines while true (cordoned).")
    maintenance: Maintenance | None = Field(
        default=None,
        description="Somebody works on it: no machine comes to it, and those on it leave as their evictionPolicy says. Take it away"
        " when that is over, or to cancel it.",
    )
    taints: tuple[Taint, ...] = Field(
        default=(), description="Keep machines away that do not tolerate them.", max_length=32
    )
    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Namespaces whose machines may come to it; empty means all. Those that are there already stay.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    overcommit: Overcommit = Field(
        default_factory=Overcommit, description="How much more may be promised than there is."
    )
    reserved: Reserved = Field(default_factory=Reserved, description="What is kept for the host itself.")
    bmc: Bmc | None = Field(default=None, description="What switches its power, for HostRemediations.")
    fencing: Fencing = Field(default_factory=Fencing, description="What happens when the host does not answer.")


class HostPhase(StrEnum):
    """A host's state in one word."""

    JOINING = "Joining"
    READY = "Ready"
    MAINTENANCE = "Maintenance"
    """Its agent answers, and somebody works on it, or is about to."""
    NOT_READY = "NotReady"
    UNKNOWN = "Unknown"
    FENCING = "Fencing"
    FENCED = "Fenced"
    REMOVING = "Removing"


NOT_ORDERED = "NotOrdered"
"""Reason of WatchdogArmed: the agent was not asked yet, so that it starts machines."""


class HostCondition(StrEnum):
    """Condition types of a Host."""

    READY = "Ready"
    SCHEDULABLE = "Schedulable"
    NETWORK_READY = "NetworkReady"
    MAINTENANCE = "Maintenance"
    FENCED = "Fenced"
    ISOLATED = "Isolated"
    WATCHDOG_ARMED = "WatchdogArmed"
    CREDENTIALS_EXPIRING = "CredentialsExpiring"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Capacity(Model):
    """An amount of what machines use."""

    cpus: int = Field(default=0, description="CPUs: hardware threads of the host, or virtual CPUs of machines.")
    memory: int = Field(default=0, description="Memory in bytes.")


class CpuInfo(Model):
    """The processor of a host."""

    model: str | None = Field(default=None, description="Model, as libvirt names it.")
    vendor: str | None = Field(default=None, description="Who made it.")
    architecture: str | None = Field(default=None, description="Architecture, such as x86_64.")
    acceleration: str | None = Field(
        default=None, description="kvm when the hardware runs guests, tcg when QEMU emulates them."
    )
    models: tuple[Known, ...] = Field(default=(), description="CPU models that it can give machines.", max_length=256)
    features: tuple[Known, ...] = Field(
        default=(), description="What its processor, or its emulator, can do beyond its model.", max_length=256
    )


class Versions(Model):
    """What software a host runs."""

    agent: str | None = Field(default=None, description="Version of the Kumulus agent.")
    hypervisor: str | None = Field(default=None, description="Version of libvirt, or of the simulation.")
    emulator: str | None = Field(default=None, description="Version of QEMU.")
    kernel: str | None = Field(default=None, description="Version of the kernel.")
    os: str | None = Field(default=None, description="Name of the operating system.")


class HostStatus(Status):
    """What a host is."""

    phase: HostPhase | None = Field(default=None, description="The state in one word.")
    namespace: str | None = Field(default=None, description="Namespace of its work orders and facts.")
    capacity: Capacity | None = Field(default=None, description="What it has.")
    allocatable: Capacity | None = Field(
        default=None, description="What may be promised: capacity less what is reserved, times overcommit."
    )
    allocated: Capacity | None = Field(default=None, description="What has been promised to machines.")
    cpu: CpuInfo | None = Field(default=None, description="Its processor.")
    versions: Versions | None = Field(default=None, description="What software it runs.")
    addresses: tuple[str, ...] = Field(default=(), description="Its addresses.", max_length=32)
    machine_types: tuple[Known, ...] = Field(
        default=(), description="Machine types its emulator offers.", max_length=64
    )
    features: tuple[HostFeature, ...] = Field(
        default=(), description="What it can give machines besides: UEFI, SecureBoot, TPM, Watchdog.", max_length=16
    )
    instances: int | None = Field(default=None, description="Machines placed on it.")
    maintenance: MaintenanceStatus | None = Field(default=None, description="How far its maintenance is.")
    unmanaged: int | None = Field(default=None, description="Domains on it that are not Kumulus' own.")
    witnesses: tuple[Statement, ...] = Field(
        default=(),
        description="What witnesses say of the host while it is silent; empty while it answers, or nobody was asked.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["witness", "kind"]},
    )


class Host(Resource):
    """A machine that runs virtual machines."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="Host",
        plural="hosts",
        scope=Scope.CLUSTER,
        categories=("kumulus-admin",),
        selectable=(".spec.zone",),
        name_max=HOST_NAME_MAX,
        columns=(
            Column("Zone", ".spec.zone"),
            PHASE,
            Column("VMs", ".status.instances", "integer"),
            Column("CPUs", ".status.capacity.cpus", "integer"),
            Column("Memory", ".status.capacity.memory", "integer", priority=1),
            Column("Maintenance", ".status.maintenance.phase", priority=1),
            Column("Unschedulable", ".spec.unschedulable", "boolean", priority=1),
            Column("Hypervisor", ".status.versions.hypervisor", priority=1),
            Column("Acceleration", ".status.cpu.acceleration", priority=1),
            reason_of(),
            AGE,
        ),
    )

    spec: HostSpec = Field(description="What the operator wants of it.")
    status: HostStatus = Field(default_factory=HostStatus, description="What it is.")

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels as placement compares them: with its name and its zone under the keys that Kubernetes has for these."""
        return {**self.metadata.labels, HOSTNAME: self.name, TOPOLOGY_ZONE: self.spec.zone}

    @property
    def alive(self) -> bool:
        """Whether its agent and its hypervisor answered when its status was written last."""
        ready = self.status.condition(HostCondition.READY)
        return ready is not None and ready.status is ConditionStatus.TRUE

    @property
    def emptied(self) -> bool:
        """Whether machines are to leave it."""
        wanted = self.spec.maintenance
        return wanted is not None and wanted.mode is MaintenanceMode.EVACUATE

    @property
    def guarded(self) -> bool:
        """Whether its watchdog may be armed, or is about to be."""
        return self.status.condition(HostCondition.WATCHDOG_ARMED) is not None

    @property
    def unarmed(self) -> bool:
        """Whether its agent starts nothing, because its watchdog should be armed and is not."""
        found = self.status.condition(HostCondition.WATCHDOG_ARMED)
        return found is not None and found.status is ConditionStatus.FALSE and found.reason != NOT_ORDERED

    @property
    def fenced_by(self) -> list[str]:
        """By what it may be fenced without a person: its own word first, for which nothing is switched off."""
        own = [WATCHDOG] if self.spec.fencing.watchdog else []
        return own + ([self.spec.bmc.type] if self.spec.bmc is not None else [])

    @property
    def fencing(self) -> bool:
        """Whether it is being fenced, or is fenced: it starts nothing."""
        return self.status.condition(HostCondition.FENCED) is not None

    @property
    def fenced(self) -> bool:
        """Whether it is known to be off, as far as its status says. Before anything is started elsewhere the work order of
        type Fence is read live."""
        found = self.status.condition(HostCondition.FENCED)
        return found is not None and found.status is ConditionStatus.TRUE
