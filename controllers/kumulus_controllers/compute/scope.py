"""Everything one pass over a machine has read. Built once; nothing reads around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.image import ClusterImage, Image
from kumulus.api.instance_type import InstanceType
from kumulus.api.machine_snapshot import VirtualMachineRestore
from kumulus.api.network import NetworkInterface
from kumulus.api.placement_group import PlacementGroup
from kumulus.api.pool_order import PoolRef
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.segments import NetworkDriverName
from kumulus.api.storage import Volume
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.schedule import Hours, Unreadable
from kumulus_controllers.planning.ways import Way
from kumulus_controllers.storage.volume_plan import Lack, Manner, Wanted

AnyImage = Image | ClusterImage


@dataclass(frozen=True, slots=True)
class Scope:
    """What there is."""

    vm: VirtualMachine
    order: WorkOrder | None
    """The work order of the machine, on whichever host it is."""
    host: Host | None
    """The host it is placed on, if that host exists."""
    instance_type: InstanceType | None
    images: Mapping[str, AnyImage]
    """By the name that a disk uses (`Reference.key`)."""
    zone_exists: bool = True
    volumes: Mapping[str, Use] = field(default_factory=dict)
    """By the name of the disk; only those that exist."""
    links: Mapping[str, Link] = field(default_factory=dict)
    """By the name of the interface; only those that exist."""
    hours: Hours | Unreadable | None = None
    """What its schedule says now. `vm` is to be what it says."""
    baseline: str | None = None
    """The CPU model of its zone, once it is placed."""
    restore: VirtualMachineRestore | None = None
    """A restore that gives its disks other content just now: it is not started meanwhile."""
    groups: tuple[PlacementGroup, ...] = ()
    """PlacementGroups that it is a member of."""
    evicted: Problem | None = None
    """Why it is off although it is to run: its host is emptied. `vm` is to be what that asks for."""
    report: HostReport | None = None
    """What that host reports of itself."""
    unsatisfied: tuple[str, ...] = ()
    """Which rules of its placement do not hold any more where it is."""


@dataclass(frozen=True, slots=True)
class Use:
    """A volume that a disk of the machine is."""

    volume: Volume
    wanted: Wanted | Lack
    pool: PoolRef | None
    """The pool it is in, once it is in one."""
    manner: Manner | None = None
    """How the machine is to have it; None: as it was ordered."""
    usable: bool = True
    """Whether the host that the machine is placed on can use that pool."""

    @property
    def shared(self) -> bool:
        """Whether several hosts could use it: the machine may be on any of them."""
        return self.pool is not None and self.pool.shared


@dataclass(frozen=True, slots=True)
class Link:
    """A NetworkInterface that an interface of the machine is."""

    interface: NetworkInterface
    groups: Mapping[str, SecurityGroup | None]
    """Its security groups by name; None for one that is not there."""
    driver: NetworkDriverName | None = None
    """What makes its network on hosts."""
    way: Way | None = None
    """What its network needs of hosts when it is a VLAN."""
    elsewhere: str | None = None
    """Name of another machine whose host has it, or is to have it."""
