"""What users do, as plans: what is there, then steps, each of which ends when its objects are so. Data; `runner` runs it.

To add one: a `Plan` in `PLANS`. Its `given` is made without faults; faults fall into its `steps` only. It should end in a state
that says something: what is there in the end is compared with a run without faults, object by object and host by host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kumulus.api.base import Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.image import Image
from kumulus.api.machine_pool import VirtualMachinePool
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.remediation import HostRemediation
from kumulus.api.routing import Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from tests.fault.switch import BMC

Raw = dict[str, Any]
Until = Callable[[Raw | None], bool]
HERE, THERE = "one", "two"
"""The host that machines of plans are bound to, so that runs can be compared, and the other one."""


class Verb(StrEnum):
    """What a user does, or what happens to a machine."""

    MAKE = "make"
    CHANGE = "change"
    REMOVE = "remove"
    CRASH = "crash"
    """The machine's QEMU dies."""
    CUT = "cut the power of"
    """A host loses power."""
    HANG = "hang"
    """Nothing is heard of a host any more, and its guests run on."""
    BOOT = "boot"
    """A host has power again, or is itself again."""
    CONFIRM = "confirm"
    """Somebody has seen that a host is off, and says so."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done, and what is so when it has come to its end."""

    verb: Verb
    model: type[Resource]
    name: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    until: tuple[tuple[type[Resource], str, Until], ...] = ()
    failed: Until | None = None
    """When what was made is so, it is made once more: it may fail, and then it has changed nothing."""

    def __str__(self) -> str:
        return f"{self.verb} {self.model.KIND.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A name, what is there, and what is done."""

    name: str
    steps: tuple[Step, ...]
    given: tuple[Step, ...] = ()
    starts: int = 0
    """How often machines are started in `steps`, all in all."""
    moving_seconds: float = 0
    """How long it takes to copy a guest to another host."""
    retries: bool = False
    """Controllers try again by themselves what fails by a fault: what it costs is not compared, but for starts."""

    def __str__(self) -> str:
        return self.name


# What is so in the end of a step


def phase(*wanted: str) -> Until:
    """It is in one of these phases, by what it says of its latest spec."""

    def holds(item: Raw | None) -> bool:
        status = (item or {}).get("status", {})
        if item is None or status.get("phase") not in wanted:
            return False
        return status.get("observedGeneration", item["metadata"]["generation"]) == item["metadata"]["generation"]

    return holds


def gone(item: Raw | None) -> bool:
    """There is none."""
    return item is None


def says(type_: str, status: str = "True") -> Until:
    """Its condition has that status."""
    return lambda item: any(
        one["type"] == type_ and one["status"] == status for one in (item or {}).get("status", {}).get("conditions", ())
    )


def so(path: str, wanted: Any) -> Until:
    """A field of its status, by a path with dots, is so."""

    def holds(item: Raw | None) -> bool:
        found: Any = (item or {}).get("status", {})
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return bool(found == wanted)

    return holds


def both(*all_: Until) -> Until:
    """All of these."""
    return lambda item: all(one(item) for one in all_)


# Steps


def make(model: type[Resource], name: str, until: Until | None = None, **spec: Any) -> Step:
    """Make an object."""
    return Step(Verb.MAKE, model, name, spec, ((model, name, until),) if until else ())


def change(model: type[Resource], name: str, *until: tuple[type[Resource], str, Until], **spec: Any) -> Step:
    """Change its spec."""
    return Step(Verb.CHANGE, model, name, spec, until)


def remove(model: type[Resource], name: str) -> Step:
    """Delete it, and have it gone."""
    return Step(Verb.REMOVE, model, name, {}, ((model, name, gone),))


def crash(name: str, until: Until) -> Step:
    """The machine's QEMU dies."""
    return Step(Verb.CRASH, VirtualMachine, name, {}, ((VirtualMachine, name, until),))


def host(verb: Verb, *until: tuple[type[Resource], str, Until]) -> Step:
    """Something happens to the host of the plans."""
    return Step(verb, Host, HERE, {}, until)


VM = "vm"
RUNS = (VirtualMachine, VM, both(phase("Running"), says("Ready")))
SIZE = {"cpus": 1, "memory": "256Mi"}
BOUND: Raw = {"resources": SIZE, "placement": {"hostSelector": {"role": HERE}}}
ROOT = {"name": "root", "ephemeral": {"image": "system"}}
DATA = {"name": "data", "volumeTemplate": {"size": "1Gi"}}
EXTRA = {"name": "extra", "volume": "extra"}
ETH0 = {"name": "eth0", "network": "front"}
ETH1 = {"name": "eth1", "network": "front"}

IMAGE = make(
    Image,
    "system",
    phase("Ready"),
    source={"http": {"url": "http://images.example/system.qcow2"}},
    checksum={"sha256": "a" * 64},
    format="qcow2",
)
NETWORK = make(Network, "front", says("Ready"), cidrs=["10.0.0.0/24"])
SMALL = make(VirtualMachine, VM, RUNS[2], **BOUND, disks=[ROOT])
"""A machine with a disk of its image."""
WHOLE = make(VirtualMachine, VM, RUNS[2], **BOUND, disks=[ROOT, DATA], interfaces=[ETH0])
"""One with a volume and an interface."""
VOLUME = make(Volume, "extra", size="1Gi", pool="local")
SECOND = make(StoragePool, "second", driver="dir", zone="z1", parameters={"path": "/var/lib/kumulus/pools/second"})
OFF = change(VirtualMachine, VM, (VirtualMachine, VM, phase("Stopped")), powerState="Stopped")
ON = change(VirtualMachine, VM, RUNS, powerState="Running")
KEPT = make(VirtualMachineSnapshot, "kept", phase("Ready"), vm=VM)
WITH_EXTRA = make(VirtualMachine, VM, RUNS[2], **BOUND, disks=[ROOT, EXTRA])
IN_USE = (Volume, "extra", both(phase("InUse"), so("attachedTo.vm", VM)))

# Machines that change hosts

TOGETHER = make(
    StoragePool,
    "together",
    lambda item: (item or {}).get("status", {}).get("readyHosts") == 2,
    driver="dir",
    zone="z1",
    parameters={"path": "/var/lib/kumulus/pools/together", "shared": True},
)
EVERYWHERE = (Volume, "vm-data", both(phase("InUse"), so("attachedTo.vm", VM)))
FREE = change(VirtualMachine, VM, RUNS, placement={"hostSelector": None})
"""It is where it is to be at first, and may go elsewhere."""
ROVING = make(
    VirtualMachine,
    VM,
    RUNS[2],
    **BOUND,
    disks=[{"name": "data", "volumeTemplate": {"size": "1Gi", "pool": "together"}}],
    interfaces=[ETH0],
    highAvailability={"enabled": True},
)
ON_BOTH = (NETWORK, TOGETHER, ROVING, FREE)


def on(where: str, what: Until = RUNS[2]) -> tuple[type[Resource], str, Until]:
    """The machine is so there."""
    return (VirtualMachine, VM, both(what, so("host", where)))


def move(*until: tuple[type[Resource], str, Until], **spec: Any) -> Step:
    """The machine goes to the other host. What fails leaves it where it is, and running; then it is asked for again."""
    ends = ((VirtualMachineMigration, "go", phase("Succeeded")), on(THERE), EVERYWHERE)
    wanted = {"vm": VM, "targetHost": THERE, **spec}
    return Step(Verb.MAKE, VirtualMachineMigration, "go", wanted, until or ends, phase("Failed"))


HOST_READY = (Host, HERE, phase("Ready"))
SWITCHED = Step(Verb.CHANGE, Host, HERE, {"bmc": BMC, "fencing": {"automatic": True}})
"""It is switched off when it is silent for longer than it should be."""
ENDED = (VirtualMachine, VM, both(RUNS[2], so("host", THERE), so("epoch", 2)))


def scaled(to: int) -> Until:
    """So many machines of the pool are there, and no more."""
    return both(so("replicas", to), so("readyReplicas", to), says("Ready"))


ROOM = SIZE | {"maxCpus": 4, "maxMemory": "1Gi"}
SITE = make(
    VirtualMachinePool,
    "site",
    scaled(1),
    replicas=1,
    selector={"app": "site"},
    template={"metadata": {"labels": {"app": "site"}}, "spec": {**BOUND, "disks": [ROOT]}},
)

PLANS: tuple[Plan, ...] = (
    Plan("create", (SMALL,), (IMAGE,), starts=1),
    Plan("create with volume and interface", (WHOLE,), (IMAGE, NETWORK), starts=1),
    Plan("import an image", (IMAGE,)),
    Plan("stop", (OFF,), (IMAGE, NETWORK, WHOLE)),
    Plan("start", (ON,), (IMAGE, NETWORK, WHOLE, OFF), starts=1),
    Plan(
        "restart",
        (
            change(
                VirtualMachine,
                VM,
                (VirtualMachine, VM, both(RUNS[2], so("lastRestartRequest", "once"))),
                restartRequest="once",
            ),
        ),
        (IMAGE, SMALL),
        starts=1,
    ),
    Plan(
        "resize",
        (
            change(VirtualMachine, VM, (VirtualMachine, VM, says("RestartRequired")), resources={"memory": "512Mi"}),
            change(
                VirtualMachine,
                VM,
                (
                    VirtualMachine,
                    VM,
                    both(RUNS[2], so("lastRestartRequest", "bigger"), so("resources.memory", "512Mi")),
                ),
                restartRequest="bigger",
            ),
        ),
        (IMAGE, SMALL),
        starts=1,
    ),
    Plan(
        "pause and go on",
        (
            change(VirtualMachine, VM, (VirtualMachine, VM, phase("Paused")), powerState="Paused"),
            ON,
        ),
        (IMAGE, SMALL),
    ),
    Plan(
        "suspend and resume",
        (
            change(VirtualMachine, VM, (VirtualMachine, VM, phase("Suspended")), powerState="Suspended"),
            ON,
        ),
        (IMAGE, NETWORK, WHOLE),
        starts=1,
    ),
    Plan(
        "attach a volume",
        (change(VirtualMachine, VM, RUNS, IN_USE, disks=[ROOT, EXTRA]),),
        (IMAGE, SMALL, VOLUME),
    ),
    Plan(
        "detach a volume",
        (change(VirtualMachine, VM, RUNS, (Volume, "extra", phase("Available")), disks=[ROOT]),),
        (IMAGE, VOLUME, WITH_EXTRA),
    ),
    Plan(
        "grow a volume in use",
        (change(Volume, "extra", (Volume, "extra", both(phase("InUse"), so("size", "2Gi"))), size="2Gi"),),
        (IMAGE, VOLUME, WITH_EXTRA),
    ),
    Plan(
        "move a volume in use",
        (change(Volume, "extra", (Volume, "extra", both(phase("InUse"), so("pool", "second"))), pool="second"),),
        (IMAGE, VOLUME, WITH_EXTRA, SECOND),
    ),
    Plan(
        "plug in an interface",
        (change(VirtualMachine, VM, RUNS, (NetworkInterface, "vm-eth1", says("Ready")), interfaces=[ETH0, ETH1]),),
        (IMAGE, NETWORK, WHOLE),
    ),
    Plan(
        "unplug an interface",
        (change(VirtualMachine, VM, RUNS, (NetworkInterface, "vm-eth0", gone), interfaces=[]),),
        (IMAGE, NETWORK, WHOLE),
    ),
    Plan(
        "change a security group",
        (
            make(SecurityGroup, "web", ingress=[{"protocol": "TCP", "ports": ["80"]}]),
            change(NetworkInterface, "vm-eth0", (NetworkInterface, "vm-eth0", says("Ready")), securityGroups=["web"]),
        ),
        (IMAGE, NETWORK, WHOLE),
    ),
    Plan("snapshot a machine", (KEPT,), (IMAGE, NETWORK, WHOLE)),
    Plan("delete a snapshot", (remove(VirtualMachineSnapshot, "kept"),), (IMAGE, NETWORK, WHOLE, KEPT)),
    Plan(
        "restore",
        (make(VirtualMachineRestore, "back", phase("Succeeded"), snapshot="kept", target={"vm": VM}),),
        (IMAGE, NETWORK, WHOLE, KEPT, OFF),
    ),
    Plan(
        "restore to a new machine",
        (
            Step(
                Verb.MAKE,
                VirtualMachineRestore,
                "back",
                {"snapshot": "kept", "target": {"newVM": "other"}},
                (
                    (VirtualMachineRestore, "back", phase("Succeeded")),
                    (VirtualMachine, "other", phase("Stopped", "Running")),
                ),
            ),
        ),
        (IMAGE, NETWORK, WHOLE, KEPT),
        starts=1,
    ),
    Plan(
        "clone a snapshot of a volume",
        (
            make(VolumeSnapshot, "then", phase("Ready"), volume="extra"),
            make(Volume, "copy", phase("Available"), source={"snapshot": "then"}),
        ),
        (IMAGE, VOLUME, WITH_EXTRA),
    ),
    Plan(
        "QEMU is killed",
        (crash(VM, both(RUNS[2], so("restarts", 1))),),
        (IMAGE, SMALL),
        starts=1,
    ),
    Plan(
        "grow while it runs",
        (
            change(
                VirtualMachine,
                VM,
                (VirtualMachine, VM, both(RUNS[2], so("resources.memory", "384Mi"), so("resources.cpus", 2))),
                resources={"cpus": 2, "memory": "384Mi"},
            ),
        ),
        (IMAGE, make(VirtualMachine, VM, RUNS[2], **BOUND | {"resources": ROOM}, disks=[ROOT])),
    ),
    Plan(
        "scale a pool",
        (
            Step(Verb.CHANGE, VirtualMachinePool, "site", {"replicas": 3}, ((VirtualMachinePool, "site", scaled(3)),)),
            Step(Verb.CHANGE, VirtualMachinePool, "site", {"replicas": 1}, ((VirtualMachinePool, "site", scaled(1)),)),
        ),
        (IMAGE, SITE),
        starts=2,
    ),
    Plan("migrate", (move(),), ON_BOTH),
    Plan(
        "cancel a migration",
        (
            move((VirtualMachineMigration, "go", phase("Migrating", "Failed"))),
            remove(VirtualMachineMigration, "go"),
        ),
        ON_BOTH,
        moving_seconds=600,
    ),
    Plan(
        "stop while it moves",
        (
            move((VirtualMachineMigration, "go", phase("Migrating", "Failed"))),
            OFF,
            remove(VirtualMachineMigration, "go"),
        ),
        ON_BOTH,
        moving_seconds=600,
    ),
    Plan(
        "fail over by a person's word",
        (
            host(Verb.CUT, (Host, HERE, phase("Unknown"))),
            Step(Verb.CONFIRM, HostRemediation, HERE, {}, ((HostRemediation, HERE, phase("Fenced")), ENDED)),
            host(Verb.BOOT, HOST_READY, (HostRemediation, HERE, phase("Succeeded"))),
        ),
        ON_BOTH,
        starts=1,
    ),
    Plan(
        "fail over by the power switch",
        (host(Verb.HANG, ENDED), host(Verb.BOOT, HOST_READY)),
        (*ON_BOTH, SWITCHED),
        starts=1,
    ),
    Plan(
        "fail over while it moves",
        (
            move((VirtualMachineMigration, "go", phase("Migrating", "Failed"))),
            host(Verb.HANG, ENDED),
            host(Verb.BOOT, HOST_READY, (VirtualMachineMigration, "go", phase("Failed"))),
            remove(VirtualMachineMigration, "go"),
        ),
        (*ON_BOTH, SWITCHED),
        starts=1,
        moving_seconds=600,
    ),
    Plan("delete", (remove(VirtualMachine, VM),), (IMAGE, NETWORK, WHOLE)),
    Plan(
        "delete a volume",
        (remove(Volume, "extra"),),
        (IMAGE, VOLUME, WITH_EXTRA, remove(VirtualMachine, VM)),
    ),
    Plan(
        "make and delete a router",
        (make(Router, "way", says("Ready"), networks=["front"]), remove(Router, "way")),
        (NETWORK,),
    ),
    Plan(
        "a whole life",
        (
            WHOLE,
            change(
                VirtualMachine,
                VM,
                (VirtualMachine, VM, both(RUNS[2], so("lastRestartRequest", "1"))),
                restartRequest="1",
            ),
            OFF,
            ON,
            KEPT,
            remove(VirtualMachineSnapshot, "kept"),
            remove(VirtualMachine, VM),
        ),
        (IMAGE, NETWORK),
        starts=3,
    ),
)
BY_NAME = {plan.name: plan for plan in PLANS}
