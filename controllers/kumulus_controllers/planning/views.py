"""What placement knows of hosts and asks for a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kumulus.api.affinity import HOSTNAME, TOPOLOGY_ZONE
from kumulus.api.hardware import HostFeature
from kumulus.api.host import DriverUplinks
from kumulus.api.placement import Profile, Taint, Toleration
from kumulus.api.pool_order import PoolRef
from kumulus_controllers.planning.labels import Labels, selects
from kumulus_controllers.planning.rules import NO_RULES, Rules
from kumulus_controllers.planning.ways import Way


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool on one host. Bytes."""

    ref: PoolRef
    promisable: int
    """What may be promised: (capacity - reserved) x overprovisioning."""
    open: bool = True
    """Takes new disks: ready, and not in maintenance."""
    labels: Mapping[str, str] = field(default_factory=dict)
    stops_at: int | None = None
    """Percent in use from which it takes nothing new, when it is that full; None while there is room."""
    namespaces: tuple[str, ...] = ()
    """Whose data may be in it; empty means anybody's."""
    usable: bool = True
    """What is in it can be used there: its agent says so. Also of a pool that takes nothing new."""

    def admits(self, namespace: str | None) -> bool:
        """Whether data of that namespace may be in it; None asks for no namespace."""
        return namespace is None or not self.namespaces or namespace in self.namespaces


@dataclass(frozen=True, slots=True)
class VolumeDemand:
    """A volume that has no place yet and gets one with its machine."""

    uid: str
    size: int
    """Bytes."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels the pool must have: its class's."""
    pool: str | None = None
    """Name of the one pool it may be in."""


@dataclass(frozen=True, slots=True)
class Moving:
    """A volume that is being brought from one pool of a host into another, and has room in both."""

    host: str
    source: str
    """Uid of the pool it is in."""
    target: str
    """Uid of the pool it is to be in."""
    size: int
    """Bytes promised in the target."""
    idle: bool = False
    """It does not get on: nothing is copied."""


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as placement sees it."""

    name: str
    uid: str
    zone: str
    cpus: int
    """Virtual CPUs that may be promised."""
    memory: int
    """Bytes that may be promised."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """With its name and its zone, under the keys that Kubernetes has for these."""
    taints: tuple[Taint, ...] = ()
    namespaces: tuple[str, ...] = ()
    """Whose machines may come to it; empty means anybody's."""
    closed: str | None = None
    """Why it takes no machines at all, such as `cordoned` or `not ready`; None when it does."""
    pools: tuple[PoolView, ...] = ()
    baseline: str | None = None
    """The CPU model of machines in its zone that ask for none."""
    cpu_models: frozenset[str] = frozenset()
    machine_types: frozenset[str] = frozenset()
    features: frozenset[HostFeature] = frozenset()
    """What it can give machines besides."""
    networks: frozenset[str] = frozenset()
    """What can make networks on it."""
    network_lack: str | None = None
    """What it needs for networks and has not."""
    uplinks: Mapping[str, DriverUplinks] | None = None
    """What its agent says of VLANs, by what makes networks; None when it is too old to say."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", {**self.labels, HOSTNAME: self.name, TOPOLOGY_ZONE: self.zone})

    def label(self, key: str) -> str | None:
        """The value of a label; None when it has none."""
        return self.labels.get(key)

    def has(self, wanted: Labels) -> bool:
        """Whether its labels are so."""
        return selects(wanted, self.labels)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a machine takes from its host."""

    cpus: int
    memory: int
    """Bytes."""
    disk: int = 0
    """Bytes promised in a pool, for the machine's own disks together."""


@dataclass(frozen=True, slots=True)
class Request:
    """A machine that looks for a host."""

    uid: str
    demand: Demand
    namespace: str | None = None
    """Of the machine and its volumes."""
    name: str = ""
    """Of the machine."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the machine."""
    rules: Rules = NO_RULES
    """What it asks of hosts by their labels, and of other machines."""
    zone: str | None = None
    selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    profile: Profile = Profile.SPREAD
    networks: frozenset[str] = frozenset()
    """What makes the networks that it has interfaces in: the host must be able to."""
    ways: tuple[Way, ...] = ()
    """What its networks need that are VLANs of physical networks."""
    cpu_model: str | None = None
    """None: the one of the zone, if it has one."""
    machine_type: str | None = None
    features: frozenset[HostFeature] = frozenset()
    """What it needs of its host besides."""
    volumes: tuple[VolumeDemand, ...] = ()
    """Volumes to find room for on the same host."""
    bound: Mapping[str, str] = field(default_factory=dict)
    """The host that has a volume, by the volume's name: the machine has to go there."""
    barred: Mapping[str, str] = field(default_factory=dict)
    """Hosts that do not come into question, by name, and why."""
    shared: Mapping[str, PoolRef] = field(default_factory=dict)
    """The pool of a volume that several hosts can use, by the volume's name: the machine has to go to one of them."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is promised on a host."""

    cpus: int = 0
    memory: int = 0
    machines: int = 0
    disks: Mapping[str, int] = field(default_factory=dict)
    """Bytes by pool uid."""
    everywhere: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Bytes by pool uid that are promised on all hosts together, as it is at any time."""

    def promised(self, pool: PoolRef) -> int:
        """Bytes that are promised in a pool: on this host, or of one that hosts share on all of them."""
        return (self.everywhere if pool.shared else self.disks).get(pool.uid, 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a machine goes."""

    host: str
    pool: PoolRef | None
    """Of the machine's own disks."""
    volumes: Mapping[str, PoolRef] = field(default_factory=dict)
    """Pools by uid of volume."""


@dataclass(frozen=True, slots=True)
class Why:
    """Why a host does not take a machine."""

    reason: str
    """In a few words, which come after a number of hosts; the same for all hosts of which it is true."""
    detail: str = ""
    """What is so of this very host, such as which machine is in the way."""

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is thought of one host."""

    host: str
    whys: tuple[Why, ...] = ()
    """All that is against it; none: it fits."""
    liking: float = 0.0
    """How much of what the machine prefers it has; `Judgement.most` is all of it."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What scorers say, 0 to 1, by name."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is thought of every host."""

    verdicts: tuple[Verdict, ...]
    """Those that fit first, in the order in which they would be taken; then the others, by name."""
    most: float = 0.0
    """The most that a liking can be; 0 for a machine that prefers nothing."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no host will do: hosts by reason."""

    hosts: Mapping[str, tuple[str, ...]]
    total: int
    details: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What is so of hosts of their own, by reason and host."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What is so of all hosts of a reason together."""

    NAMED = 5
    """Hosts are named for reasons that hold for at most so many."""

    LISTED = 8
    """So many reasons are told."""

    def __str__(self) -> str:
        if self.total == 0:
            return "there are no hosts: join one with `kumulusctl host add`"
        ordered = sorted(self.hosts.items(), key=lambda item: (-len(item[1]), item[0]))
        parts = [f"{len(names)} {reason}{self._which(reason, names)}" for reason, names in ordered[: self.LISTED]]
        if left := ordered[self.LISTED :]:
            parts.append(f"{sum(len(names) for _, names in left)} for {len(left)} other reasons")
        return f"0 of {self.total} hosts fit: {'; '.join(parts)}"

    def _which(self, reason: str, names: tuple[str, ...]) -> str:
        details, note = self.details.get(reason, {}), self.notes.get(reason, "")
        named = [f"{name}: {details[name]}" if details.get(name) else name for name in names]
        # Details are told with the hosts, and hosts while they are few.
        shown = (", " if not details else "; ").join(named) if len(names) <= self.NAMED else ""
        told = "; ".join(part for part in (shown, note) if part)
        return f" ({told})" if told else ""
