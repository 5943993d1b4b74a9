"""host.kumulus.io: work orders for a host and what its agent found. Internal, in a namespace per host.

A work order is fully resolved: the agent needs to read nothing else but the Secrets it names, which
live in the same namespace. Names on a host (domain, file, device) derive from the uids here, never
from a user's text.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, NewType

from pydantic import Field

from kumulus.api.addresses import Address
from kumulus.api.base import AGE, DOMAIN, VERSION, Column, Kind, Model, ObjectRef, Resource, Rule, immutable, list_map
from kumulus.api.fabric import Capacity, CpuInfo, MethodName, Versions
from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus.api.hardware import HostFeature
from kumulus.api.image_order import HostAddress, UploadOrder
from kumulus.api.instance_order import InstanceFacts, InstanceOrder
from kumulus.api.pool_order import PoolFacts, PoolOrder
from kumulus.api.segments import DeviceName, NetworkDriverName, SegmentFacts, SegmentOrder, Uid
from kumulus.api.snapshot_order import SnapshotFacts, SnapshotOrder
from kumulus.api.volume_order import DiskFacts, DiskOrder
from kumulus.api.witness import WitnessFacts, WitnessOrder

GROUP = f"host.{DOMAIN}"

AGENT_SERVICE_ACCOUNT = "kumulus-agent"
"""ServiceAccount of a host's agent, in the host's namespace."""

JOIN_SERVICE_ACCOUNT = "kumulus-join"
"""ServiceAccount of a join token, in the host's namespace. It may only ask for the agent's first token."""

LEASE = "kumulus-agent"
"""Name of the agent's Lease, in the host's namespace."""

Epoch = NewType("Epoch", int)


class WorkType(StrEnum):
    """What a work order asks for."""

    INSTANCE = "Instance"
    DISK = "Disk"
    SNAPSHOT = "Snapshot"
    POOL = "Pool"
    CONSOLE = "Console"
    CERTIFICATE = "Certificate"
    UPLOAD = "Upload"
    SEGMENT = "Segment"
    GATEWAY = "Gateway"
    FENCE = "Fence"
    WITNESS = "Witness"
    WATCHDOG = "Watchdog"


class ConsoleOrder(Model):
    """Read the end of an instance's console log, once."""

    uid: Uid = Field(description="Uid of the machine.")
    max_bytes: int = Field(description="At most so many bytes from the end.", ge=1, le=262144)


class CertificateOrder(Model):
    """What the agent shows other hosts, and how it knows them. Public; the key has never left the host."""

    certificate: str = Field(description="Certificate of the host for the key it asked for, PEM.", max_length=8192)
    authorities: str = Field(description="Certificates that other hosts' must be signed with, PEM.", max_length=32768)


class FenceOrder(Model):
    """The host is being fenced, or was: while this is there it starts no machine (ADR 33)."""

    rules = (
        Rule(
            "!oldSelf.fenced || self.fenced", "a host that was fenced stays so until it has cleaned up", field=".fenced"
        ),
    )

    fenced: bool = Field(
        default=False,
        description="The host was off. Machines of it may run elsewhere: what it has of those whose orders are gone, or on their"
        " way out, it ends at once, and says when nothing is left.",
    )
    method: MethodName | None = Field(default=None, description="By which method that is known.")
    evidence: str | None = Field(default=None, description="And by what.", max_length=1024)


NOT_DISARMED = "NotDisarmed"
"""Reason of a Watchdog order that is to end while the watchdog is not at rest."""
WATCHDOG_LEAST, WATCHDOG_MOST = 2, 600
"""Seconds that a Lease of a host with a watchdog may last: as long as an agent can be told to have it."""


class WatchdogOrder(Model):
    """While the host cannot renew its Lease for so long its own watchdog ends its machines. Ready: it is armed (ADR 44)."""

    seconds: int = Field(
        description="From the beginning of the last renewal that succeeded to their end; at most what the Lease lasts.",
        ge=WATCHDOG_LEAST,
        le=WATCHDOG_MOST,
    )


class WorkOrderSpec(Model):
    """What the agent shall see to."""

    rules = (
        Rule(
            "(self.type == 'Instance') == has(self.instance) && (self.type == 'Disk') == has(self.disk)"
            " && (self.type == 'Snapshot') == has(self.snapshot)"
            " && (self.type == 'Pool') == has(self.pool) && (self.type == 'Console') == has(self.console)"
            " && (self.type == 'Certificate') == has(self.certificate) && (self.type == 'Upload') == has(self.upload)"
            " && (self.type == 'Segment') == has(self.segment) && (self.type == 'Gateway') == has(self.gateway)"
            " && (self.type == 'Fence') == has(self.fence) && (self.type == 'Witness') == has(self.witness)"
            " && (self.type == 'Watchdog') == has(self.watchdog)",
            "exactly the field named like spec.type must be set: instance, disk, snapshot, pool, console, certificate, upload,"
            " segment, gateway, fence, witness or watchdog",
        ),
        Rule("self.term >= oldSelf.term", "a controller that is no longer the leader wrote this", field=".term"),
        Rule(
            "has(self.instance) && has(oldSelf.instance) ? self.instance.epoch >= oldSelf.instance.epoch : true",
            "epoch cannot go back",
            field=".instance.epoch",
        ),
    )

    type: WorkType = Field(description="What is asked for.", json_schema_extra=immutable("type"))
    for_: ObjectRef = Field(
        alias="for",
        description="The object of a tenant or operator that this is for.",
        json_schema_extra=immutable("for"),
    )
    term: int = Field(
        default=0, description="Term of the leader that wrote this; an older leader's order is refused.", ge=0
    )
    instance: InstanceOrder | None = Field(default=None, description="A machine on this host.")
    disk: DiskOrder | None = Field(default=None, description="Work on a volume or an image.")
    snapshot: SnapshotOrder | None = Field(default=None, description="Volumes as they are at one instant.")
    pool: PoolOrder | None = Field(default=None, description="A pool's presence on this host.")
    console: ConsoleOrder | None = Field(default=None, description="Read the end of an instance's console log, once.")
    certificate: CertificateOrder | None = Field(default=None, description="What the agent shows other hosts.")
    upload: UploadOrder | None = Field(default=None, description="Somebody may upload an image for a while.")
    segment: SegmentOrder | None = Field(default=None, description="A network's presence on this host.")
    gateway: GatewayOrder | None = Field(default=None, description="A router or load balancer on this host.")
    fence: FenceOrder | None = Field(default=None, description="The host is being fenced, or was.")
    witness: WitnessOrder | None = Field(default=None, description="Keep looking whether another host is alive.")
    watchdog: WatchdogOrder | None = Field(default=None, description="Have the host's watchdog armed.")


class WorkState(StrEnum):
    """How far a work order is. The first seven are an instance's, the others anybody's."""

    STARTING = "Starting"
    RUNNING = "Running"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    BACK_OFF = "BackOff"
    PENDING = "Pending"
    WAITING = "Waiting"
    WORKING = "Working"
    READY = "Ready"
    FAILED = "Failed"
    REFUSED = "Refused"


class ConsoleFacts(Model):
    """What was read of a console."""

    log: str | None = Field(default=None, description="The text; a guest decides what is in it.", max_length=1048576)


class WorkOrderStatus(Model):
    """What the agent reports. Written by the agent alone."""

    observed_generation: int | None = Field(default=None, description="The generation of the spec this answers.")
    state: WorkState | None = Field(default=None, description="How far it is.")
    reason: str | None = Field(default=None, description="Why, in one word.", max_length=128)
    message: str | None = Field(default=None, description="Why, in a sentence that says what to do.", max_length=4096)
    instance: InstanceFacts | None = Field(default=None, description="What is so of an instance.")
    disk: DiskFacts | None = Field(default=None, description="What is so of a volume or an image.")
    snapshot: SnapshotFacts | None = Field(default=None, description="What is so of a snapshot.")
    pool: PoolFacts | None = Field(default=None, description="What is so of a pool.")
    console: ConsoleFacts | None = Field(default=None, description="What was read of a console.")
    segment: SegmentFacts | None = Field(default=None, description="What is so of a network on this host.")
    gateway: GatewayFacts | None = Field(default=None, description="What is so of a gateway on this host.")
    witness: WitnessFacts | None = Field(default=None, description="What was seen of another host.")


class WorkOrder(Resource):
    """Something a host's agent shall see to, and how far it is. Written by controllers, performed by the agent."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="WorkOrder",
        plural="workorders",
        short_names=("wo",),
        categories=("kumulus-admin",),
        selectable=(".spec.type",),
        columns=(
            Column("Type", ".spec.type"),
            Column("For", ".spec.for.name"),
            Column("State", ".status.state"),
            Column("Reason", ".status.reason"),
            Column("Namespace-For", ".spec.for.namespace", priority=1),
            Column("Message", ".status.message", priority=1),
            AGE,
        ),
    )

    spec: WorkOrderSpec = Field(description="What the agent shall see to.")
    status: WorkOrderStatus = Field(default_factory=WorkOrderStatus, description="What the agent reports.")


class TransferFacts(Model):
    """Where the agent serves images to other hosts, and the certificate it asks for."""

    address: HostAddress = Field(description="Address other hosts reach it at.")
    port: int = Field(description="Port there.", ge=1, le=65535)
    upload_port: int | None = Field(
        default=None, description="Port at which it takes uploads; empty when it takes none.", ge=1, le=65535
    )
    tunnel: bool = Field(
        default=False,
        description="Whether it has a port for guests that move: they come and go once its certificate is there (migration)."
        " Agents that do not know of this do not say it.",
    )
    request: str = Field(
        description="Certificate signing request for a key that this host has made and keeps, PEM.", max_length=4096
    )


class MigrationEndpoint(Model):
    """Where the agent takes guests that move here from other hosts."""

    address: HostAddress = Field(description="Address other hosts reach it at.")
    port: int = Field(description="Port there.", ge=1, le=65535)
    disks: bool = Field(
        default=False,
        description="Whether it takes and sends disks along. Agents that do not know of this do not say it.",
    )


class FunctionFacts(Model):
    """A function of gateways that a driver has."""

    name: GatewayFunction = Field(description="Which one.")
    message: str | None = Field(
        default=None, description="Why this host cannot serve it, and what to do; empty: it can.", max_length=512
    )


class DriverFunctions(Model):
    """What a driver can make on a host besides networks."""

    driver: NetworkDriverName = Field(description="The driver.")
    functions: tuple[FunctionFacts, ...] = Field(
        default=(),
        description="The functions of gateways that it has. One that is not here it makes on no host.",
        max_length=8,
        json_schema_extra=list_map("name"),
    )


class DriverUplinks(Model):
    """By which devices of the host a driver can put networks into VLANs."""

    driver: NetworkDriverName = Field(description="The driver.")
    devices: tuple[DeviceName, ...] = Field(
        default=(),
        description="The devices that can be uplinks, by their names.",
        max_length=128,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    message: str | None = Field(default=None, description="Why it can by none of them, and what to do.", max_length=512)


class NetworkFacts(Model):
    """What of networks a host can do."""

    drivers: tuple[NetworkDriverName, ...] = Field(
        default=(),
        description="What can make networks here.",
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    functions: tuple[DriverFunctions, ...] | None = Field(
        default=None,
        description="What its drivers can make besides; empty when the agent is too old to say.",
        max_length=8,
        json_schema_extra=list_map("driver"),
    )
    uplinks: tuple[DriverUplinks, ...] | None = Field(
        default=None,
        description="By which devices its drivers can make networks of VLANs; empty when the agent is too old to say.",
        max_length=8,
        json_schema_extra=list_map("driver"),
    )
    underlay: Address | None = Field(default=None, description="Address at which other hosts reach its tunnels.")
    message: str | None = Field(default=None, description="What it lacks, and what to do.", max_length=1024)


class HostReportSpec(Model):
    """Empty: a report is all status."""


class HostReportStatus(Model):
    """What the agent found."""

    capacity: Capacity = Field(default_factory=Capacity, description="What the host has.")
    cpu: CpuInfo = Field(default_factory=CpuInfo, description="Its processor.")
    versions: Versions = Field(default_factory=Versions, description="What software it runs.")
    addresses: tuple[str, ...] = Field(default=(), description="Its addresses.", max_length=32)
    machine_types: tuple[str, ...] = Field(default=(), description="Machine types its emulator offers.", max_length=64)
    features: tuple[HostFeature, ...] = Field(
        default=(), description="What it can give machines besides: UEFI, SecureBoot, TPM, Watchdog.", max_length=16
    )
    unmanaged_count: int = Field(
        default=0, description="How many domains there are that are not Kumulus' own; each is an UnmanagedInstance."
    )
    orphan_count: int | None = Field(
        default=None,
        description="How many machines it has that nobody orders, each an UnmanagedInstance as well; empty before it has looked.",
    )
    hypervisor_ready: bool = Field(default=False, description="Whether the hypervisor answers.")
    hypervisor_message: str | None = Field(default=None, description="Why it does not.", max_length=1024)
    credentials_expire_at: str | None = Field(
        default=None, description="When the agent's token ends (RFC 3339), rounded down to 30 minutes."
    )
    transfer: TransferFacts | None = Field(
        default=None, description="How other hosts get images from it; empty when they cannot."
    )
    migration: MigrationEndpoint | None = Field(
        default=None, description="Where guests come from other hosts; empty when none can, and none can leave."
    )
    network: NetworkFacts | None = Field(default=None, description="What of networks it can do; empty: nothing.")


class HostReport(Resource):
    """What an agent found on its host. Written by the agent alone; the Host's status is made from it."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="HostReport",
        plural="hostreports",
        categories=("kumulus-admin",),
        columns=(
            Column("CPUs", ".status.capacity.cpus", "integer"),
            Column("Hypervisor", ".status.versions.hypervisor"),
            Column("Ready", ".status.hypervisorReady", "boolean"),
            Column("Unmanaged", ".status.unmanagedCount", "integer"),
            AGE,
        ),
    )

    spec: HostReportSpec = Field(default_factory=HostReportSpec, description="Empty.")
    status: HostReportStatus = Field(default_factory=HostReportStatus, description="What the agent found.")


def transfer_name(host: str) -> str:
    """The name that the certificate of a host's agent is for. No name server knows it."""
    return f"{host}.hosts.kumulus.internal"
