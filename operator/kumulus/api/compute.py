"""compute.kumulus.io: what tenants run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kumulus.api.addresses import GUESTS, IS_ADDRESS, UNICAST, Address, MacAddress
from kumulus.api.affinity import TERMS_MOST, Affinity, TopologySpread
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
    immutable,
    list_map,
    reason_of,
)
from kumulus.api.cloud_init import CloudInit, SshKey
from kumulus.api.disks import DISKS_FIXED, DRIVES_MOST, Disk
from kumulus.api.hardware import FIRMWARE_FIXED, Cpu, Firmware, MachineTypeName, Watchdog
from kumulus.api.maintenance import Eviction, EvictionPolicy
from kumulus.api.placement import Profile, Selector, Toleration
from kumulus.api.quantity import Memory, to_bytes
from kumulus.api.schedule import NextAction, Schedule
from kumulus.api.segments import InterfaceName
from kumulus.api.volumes import ObjectName

GROUP = f"compute.{DOMAIN}"

Cpus = Annotated[int, Field(ge=1, le=1024)]


MAX_CPUS = Rule("!has(self.maxCpus) || self.maxCpus >= self.cpus", "maxCpus cannot be less than cpus", field=".maxCpus")
MAX_MEMORY = Rule(
    "!has(self.maxMemory) || quantity(string(self.maxMemory)).compareTo(quantity(string(self.memory))) >= 0",
    "maxMemory cannot be less than memory",
    field=".maxMemory",
)


class Resources(Model):
    """Size of a machine."""

    rules = (MAX_CPUS, MAX_MEMORY)

    cpus: Cpus = Field(description="Virtual CPUs.")
    memory: Memory = Field(description="Memory, such as `512Mi` or `4Gi`.")
    max_cpus: Cpus | None = Field(
        default=None,
        description="As many CPUs as it can get while it is on; cpus when empty. No room is kept for what it has not got.",
    )
    max_memory: Memory | None = Field(
        default=None,
        description="As much memory as it can get while it is on; memory when empty. No room is kept for what it has not got.",
    )


class PowerState(StrEnum):
    """What a machine is wanted to be."""

    RUNNING = "Running"
    STOPPED = "Stopped"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"


class RestartPolicy(StrEnum):
    """What happens when the guest or QEMU ends by itself."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


class StopMode(StrEnum):
    """How to stop a machine."""

    GRACEFUL = "Graceful"
    FORCE = "Force"


class Stop(Model):
    """How the machine is stopped."""

    mode: StopMode = Field(
        default=StopMode.GRACEFUL,
        description="Graceful presses the power button and forces after the grace period; Force does not ask.",
    )
    grace_period_seconds: int = Field(
        default=60, description="How long a graceful stop may take before it is forced.", ge=0, le=3600
    )


class Placement(Model):
    """Where the machine may run and how a host is chosen."""

    host_selector: Selector = Field(default_factory=dict, description="Labels the host must have.")
    tolerations: tuple[Toleration, ...] = Field(
        default=(), description="Taints of hosts to put up with.", max_length=16
    )
    profile: Profile = Field(
        default=Profile.SPREAD,
        description="Spread chooses the host with the most room, Pack the fullest that fits, LeastConsumed the one with the smallest share in use.",
    )
    affinity: Affinity | None = Field(default=None, description="What it wants of hosts and of other machines.")
    topology_spread_constraints: tuple[TopologySpread, ...] = Field(
        default=(), description="How evenly it and others are spread over places.", max_length=TERMS_MOST
    )


class Interface(Model):
    """A network interface of the machine."""

    rules = (
        Rule("has(self.network) != has(self.interface)", "set exactly one of network and interface"),
        Rule(
            "!has(self.interface) || !(has(self.addresses) && self.addresses.size() > 0) && !has(self.macAddress)"
            " && !(has(self.securityGroups) && self.securityGroups.size() > 0)",
            "an interface that exists has its addresses, macAddress and securityGroups itself",
        ),
        Rule("!has(self.networkNamespace) || has(self.network)", "networkNamespace goes with network"),
        Rule(
            "self == oldSelf",
            "an interface cannot be changed here: take it out and add one of another name; security groups and bandwidth are"
            " changed at its NetworkInterface",
        ),
    )

    name: InterfaceName = Field(description="Name of the interface within the machine.")
    network: ObjectName | None = Field(
        default=None,
        description="Name of a Network: a NetworkInterface called <machine>-<name> is made in it, and goes with the machine.",
    )
    network_namespace: ObjectName | None = Field(
        default=None, description="Namespace of a network of the type Shared; that of the machine when empty."
    )
    interface: ObjectName | None = Field(
        default=None, description="Name of a NetworkInterface of the namespace; it outlives the machine."
    )
    addresses: tuple[Annotated[Address, Field(json_schema_extra=cel(IS_ADDRESS))], ...] = Field(
        default=(),
        description="Addresses that it shall have; chosen when empty.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    mac_address: MacAddress | None = Field(
        default=None,
        description="MAC address that begins with neither 06 nor 0a; one is made when empty.",
        json_schema_extra=cel(UNICAST, GUESTS),
    )
    security_groups: tuple[ObjectName, ...] = Field(
        default=(),
        description="Names of SecurityGroups of the namespace; `default` when empty.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )

    def interface_of(self, machine: str) -> str:
        """Name of the NetworkInterface that it is, in a machine of that name."""
        return self.interface if self.interface is not None else f"{machine}-{self.name}"


class HighAvailability(Model):
    """What becomes of the machine when its host is lost."""

    enabled: bool = Field(
        default=False,
        description="Start it elsewhere when its host is fenced, that is known to be off. Its disks must be in pools that hosts"
        " share.",
    )
    priority: int = Field(
        default=100,
        description="Machines with a higher one are started first, elsewhere or when their host comes back, and leave a host that is"
        " emptied first; also where enabled is false.",
        ge=0,
        le=1000000,
    )
    max_restarts: int = Field(
        default=5, description="At most so many times within windowSeconds; then it stays where it is.", ge=1, le=64
    )
    window_seconds: int = Field(default=3600, description="See maxRestarts.", ge=60, le=604800)


class VirtualMachineSpec(Model):
    """What a machine shall be."""

    rules = (
        Rule("has(self.instanceType) != has(self.resources)", "set exactly one of instanceType and resources"),
        Rule(
            "!has(self.resources) || !has(self.cpu) || (has(self.resources.maxCpus) ? self.resources.maxCpus :"
            " self.resources.cpus) % ((has(self.cpu.sockets) ? self.cpu.sockets : 1) * (has(self.cpu.cores) ? self.cpu.cores :"
            " 1) * (has(self.cpu.threads) ? self.cpu.threads : 1)) == 0 && (!has(self.cpu.sockets) || !has(self.cpu.cores)"
            " || (has(self.resources.maxCpus) ? self.resources.maxCpus : self.resources.cpus) == self.cpu.sockets"
            " * self.cpu.cores * (has(self.cpu.threads) ? self.cpu.threads : 1))",
            "sockets x cores x threads must be maxCpus, or cpus without it; leave one of them out and it is worked out",
            field=".cpu",
        ),
        *FIRMWARE_FIXED,
        # A rule of the list is not asked when the list as a whole comes or goes.
        Rule(
            "has(self.disks) || !has(oldSelf.disks) || oldSelf.disks.all(d, has(d.volume))",
            DISKS_FIXED,
            field=".disks",
        ),
        Rule(
            "has(oldSelf.disks) || !has(self.disks) || self.disks.all(d, has(d.volume))",
            DISKS_FIXED,
            field=".disks",
        ),
    )

    instance_type: DnsLabel | None = Field(
        default=None,
        description="Name of an InstanceType that gives the size. Exactly one of instanceType and resources. A machine that is"
        " on gets another size at once as far as its maxCpus and maxMemory go, else at its next start.",
    )
    resources: Resources | None = Field(
        default=None,
        description="The size, given directly. Exactly one of instanceType and resources. A machine that is on gets another"
        " size at once as far as its maxCpus and maxMemory go, else at its next start.",
    )
    power_state: PowerState = Field(
        default=PowerState.RUNNING,
        description="What the machine is wanted to be. Paused halts its CPUs; Suspended keeps its memory on its host's disk, also"
        " while that host is off, and it goes on from there.",
    )
    schedule: Schedule | None = Field(
        default=None, description="Hours in which it runs, while powerState is Running. Outside of them it is stopped."
    )
    restart_policy: RestartPolicy = Field(
        default=RestartPolicy.ALWAYS,
        description="What happens when the guest or QEMU ends by itself: start it again (with growing pauses), only after a failure, or never.",
    )
    restart_request: str | None = Field(
        default=None,
        description="Any text, such as today's date. Each change restarts the machine once; status.lastRestartRequest answers.",
        max_length=253,
    )
    stop: Stop = Field(default_factory=Stop, description="How the machine is stopped.")
    zone: DnsLabel | None = Field(
        default=None,
        description="The zone to run in; planned when empty.",
        json_schema_extra=immutable("zone"),
    )
    placement: Placement = Field(default_factory=Placement, description="Where in the zone it may run.")
    cpu: Cpu | None = Field(default=None, description="The processor that the guest sees.")
    machine_type: MachineTypeName | None = Field(
        default=None,
        description="The board of the machine, such as `pc-q35-7.2`, or `q35` for the newest at each start. When empty, the"
        " newest at its first start, which it keeps (status.machineType). Another one comes with the next start.",
    )
    firmware: Firmware | None = Field(
        default=None, description="What starts the guest, and what it can prove. BIOS when empty."
    )
    watchdog: Watchdog | None = Field(
        default=None, description="A watchdog for the guest. Another one comes with the next start."
    )
    disks: tuple[Disk, ...] = Field(
        default=(),
        description="Disks, in boot order unless bootOrder is set.",
        max_length=16,
        json_schema_extra=list_map("name")
        | cel(
            Rule(
                "self.filter(d, !has(d.volume) && !has(d.cdrom)) == oldSelf.filter(d, !has(d.volume) && !has(d.cdrom))"
                " && self.filter(d, has(d.cdrom)).map(d, d.name) == oldSelf.filter(d, has(d.cdrom)).map(d, d.name)"
                " && self.all(d, !oldSelf.exists(o, o.name == d.name && o != d && !(has(o.cdrom) && has(d.cdrom)"
                " && o.cdrom.bus == d.cdrom.bus && o.?bootOrder == d.?bootOrder)))",
                DISKS_FIXED,
            ),
            Rule(
                f"self.filter(d, has(d.cdrom)).size() <= {DRIVES_MOST}",
                f"a machine can have at most {DRIVES_MOST} CD-ROM drives",
            ),
        ),
    )
    interfaces: tuple[Interface, ...] = Field(
        default=(),
        description="Network interfaces, in order. Without any, the machine has no network.",
        max_length=16,
        json_schema_extra=list_map("name"),
    )
    cloud_init: CloudInit | None = Field(
        default=None,
        description="First-boot configuration.",
        json_schema_extra=immutable("cloudInit", ": it is read at the first boot only"),
    )
    ssh_keys: tuple[SshKey, ...] = Field(
        default=(), description="Public keys that may log in (through cloud-init).", max_length=16
    )
    eviction_policy: EvictionPolicy = Field(
        default=EvictionPolicy.LIVE_MIGRATE,
        description="What becomes of it when its host is to be emptied, while it runs. LiveMigrate: it is moved while it runs; while"
        " it cannot be, the maintenance waits. LiveMigrateIfPossible: the same, and what can never be moved so is restarted"
        " elsewhere. Restart: it is shut down, and started on another host. Stop: it is shut down, and started again when the"
        " maintenance is over. None: it is left alone, and goes down with its host.",
    )
    high_availability: HighAvailability = Field(
        default_factory=HighAvailability, description="What becomes of the machine when its host is lost."
    )
    deletion_protection: bool = Field(default=False, description="Refuse to delete the machine while true.")


class Phase(StrEnum):
    """A machine's life in one word; derived, never stored for decisions."""

    PENDING = "Pending"
    SCHEDULING = "Scheduling"
    PROVISIONING = "Provisioning"
    STARTING = "Starting"
    RUNNING = "Running"
    PAUSED = "Paused"
    SUSPENDED = "Suspended"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    MIGRATING = "Migrating"
    TERMINATING = "Terminating"
    CRASH_LOOP_BACK_OFF = "CrashLoopBackOff"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class VirtualMachineCondition(StrEnum):
    """Condition types of a VirtualMachine."""

    READY = "Ready"
    SCHEDULED = "Scheduled"
    VOLUMES_READY = "VolumesReady"
    NETWORK_READY = "NetworkReady"
    PAUSED = "Paused"
    RESTART_REQUIRED = "RestartRequired"
    PLACEMENT_SATISFIED = "PlacementSatisfied"
    MIGRATABLE = "Migratable"
    AGENT_CONNECTED = "AgentConnected"
    ON_SCHEDULE = "OnSchedule"
    HIGH_AVAILABILITY = "HighAvailability"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class ResolvedSize(Model):
    """The size a machine has got; a later change of its InstanceType does not change it."""

    cpus: int = Field(description="Virtual CPUs.")
    memory: str = Field(description="Memory.")
    max_cpus: int | None = Field(default=None, description="CPUs that it can get while it is on, where that is more.")
    max_memory: str | None = Field(
        default=None, description="Memory that it can get while it is on, where that is more."
    )
    instance_type: str | None = Field(default=None, description="Name of the InstanceType that it was taken from.")

    @property
    def memory_bytes(self) -> int:
        """Its memory in bytes."""
        return to_bytes(self.memory)

    @property
    def most_cpus(self) -> int:
        """CPUs that it can get while it is on."""
        return max(self.cpus, self.max_cpus or 0)

    @property
    def most_memory(self) -> int:
        """Bytes of memory that it can get while it is on."""
        return max(self.memory_bytes, to_bytes(self.max_memory) if self.max_memory is not None else 0)


class GuestInfo(Model):
    """What the agent in the guest says of it. It is the guest's word, and a few minutes old."""

    hostname: str | None = Field(default=None, description="Name of the guest.", max_length=253)
    os: str | None = Field(default=None, description="Operating system.", max_length=128)
    agent_version: str | None = Field(default=None, description="Version of qemu-guest-agent.", max_length=32)
    addresses: tuple[Address, ...] = Field(
        default=(), description="Addresses that the guest has, as far as others could reach it by them.", max_length=16
    )


class ResolvedImage(Model):
    """The image a disk was made from."""

    disk: str = Field(description="Name of the disk.")
    kind: str = Field(description="Image or ClusterImage.")
    namespace: str | None = Field(default=None, description="Its namespace, when that is another one.")
    name: str = Field(description="Name of the image.")
    uid: str = Field(description="Uid of the image.")
    sha256: str = Field(default="", description="Its digest, as verified.")


class VirtualMachineStatus(Status):
    """What a machine is."""

    phase: Phase | None = Field(default=None, description="The state in one word.")
    host: str | None = Field(default=None, description="The host it is placed on.")
    zone: str | None = Field(default=None, description="The zone it is in.")
    epoch: int | None = Field(
        default=None, description="Grows with each placement; a copy with an older epoch may not run."
    )
    started_at: str | None = Field(default=None, description="When the guest last started (RFC 3339).")
    restarts: int | None = Field(default=None, description="How often it was started again by restartPolicy.")
    failovers: tuple[str, ...] = Field(
        default=(),
        description="When it was started elsewhere because its host was lost, within the window of highAvailability (RFC 3339).",
        max_length=64,
    )
    last_restart_request: str | None = Field(default=None, description="The last restartRequest that was carried out.")
    eviction: Eviction | None = Field(
        default=None,
        description="What is done to it because of the maintenance of its host, or of the one that it left.",
    )
    resources: ResolvedSize | None = Field(default=None, description="The size it has got.")
    pending_resources: ResolvedSize | None = Field(
        default=None,
        description="The size that it gets at its next start, where that is another one; room is kept for it.",
    )
    cpu_model: str | None = Field(
        default=None, description="The processor that it has got; kept until the spec names one."
    )
    machine_type: str | None = Field(default=None, description="The board that it has got, and keeps.")
    addresses: tuple[Address, ...] = Field(
        default=(), description="The addresses of its interfaces, in their order.", max_length=64
    )
    scheduled: NextAction | None = Field(default=None, description="What its schedule does next.")
    guest: GuestInfo | None = Field(
        default=None, description="What the guest says of itself, if it has qemu-guest-agent."
    )
    images: tuple[ResolvedImage, ...] = Field(
        default=(), description="The images its disks were made from.", json_schema_extra=list_map("disk")
    )


class VirtualMachine(Resource):
    """A virtual machine: its size, its disks, how it boots the first time, and whether it shall run."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="VirtualMachine",
        plural="virtualmachines",
        short_names=("vm", "vms"),
        categories=("kumulus",),
        selectable=(".spec.zone", ".spec.powerState"),
        columns=(
            PHASE,
            Column("Host", ".status.host"),
            Column("CPUs", ".status.resources.cpus", "integer"),
            Column("Memory", ".status.resources.memory"),
            Column("Addresses", ".status.addresses", priority=1),
            Column("Ready", ".status.conditions[?(@.type=='Ready')].status", priority=1),
            reason_of(),
            Column("Zone", ".status.zone", priority=1),
            Column("Restarts", ".status.restarts", "integer", priority=1),
            Column("Migratable", ".status.conditions[?(@.type=='Migratable')].status", priority=1),
            AGE,
        ),
        rules=(
            Rule(
                "!has(self.spec.disks) || self.spec.disks.all(d, !has(d.volumeTemplate)"
                " || size(self.metadata.name) + size(d.name) < 63)",
                "volumeTemplate makes a Volume called <machine>-<disk>, which may have 63 characters: take shorter names",
                field=".spec.disks",
            ),
            Rule(
                "!has(self.spec.interfaces) || self.spec.interfaces.all(i, has(i.interface)"
                " || size(self.metadata.name) + size(i.name) < 63)",
                "network makes a NetworkInterface called <machine>-<interface>, which may have 63 characters: take shorter names",
                field=".spec.interfaces",
            ),
        ),
    )

    spec: VirtualMachineSpec = Field(description="What the machine shall be.")
    status: VirtualMachineStatus = Field(default_factory=VirtualMachineStatus, description="What the machine is.")
