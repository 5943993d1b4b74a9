"""A host is emptied and opened again, as a plan: a machine is restarted elsewhere, one is off meanwhile, one that was off starts
elsewhere."""

from __future__ import annotations

from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.storage import StoragePool, Volume
from tests.fault.plans import (
    BOUND,
    EVERYWHERE,
    HERE,
    ON_BOTH,
    SIZE,
    Plan,
    Raw,
    Step,
    Verb,
    both,
    change,
    gone,
    make,
    on,
    phase,
    says,
    so,
)

THERE = "two"
_FIRST: Raw = {"resources": SIZE}
"""On the first host, while the second one is cordoned."""


def _runs(name: str, host: str) -> tuple[Any, str, Any]:
    return (VirtualMachine, name, both(phase("Running"), says("Ready"), so("host", host)))


def _machine(name: str, shape: Raw, **spec: Any) -> Any:
    return make(VirtualMachine, name, _runs(name, HERE)[2], **shape, **spec)


SHARED = make(
    StoragePool, "common", driver="dir", zone="z1", parameters={"path": "/var/lib/kumulus/pools/common", "shared": True}
)
DATA = make(Volume, "data", size="1Gi", pool="common")
MAINTAIN = change(
    Host,
    HERE,
    (Host, HERE, both(so("maintenance.phase", "Emptied"), says("Maintenance"))),
    _runs("again", THERE),
    (VirtualMachine, "stops", phase("Stopped")),
    maintenance={},
)
STARTED = change(VirtualMachine, "off", _runs("off", THERE), powerState="Running")
OPEN = change(
    Host,
    HERE,
    (Host, HERE, both(phase("Ready"), so("maintenance", None))),
    _runs("stops", HERE),
    (VirtualMachine, "again", so("eviction", None)),
    (VirtualMachine, "stops", so("eviction", None)),
    maintenance=None,
)
CLOSED = change(Host, THERE, (Host, THERE, says("Schedulable", "False")), unschedulable=True)
OPENED = change(Host, THERE, (Host, THERE, says("Schedulable")), unschedulable=False)
STORED = [{"name": "data", "volume": "data"}]
OFF = change(VirtualMachine, "off", (VirtualMachine, "off", phase("Stopped")), powerState="Stopped")

PLAN = Plan(
    "maintain a host",
    (MAINTAIN, STARTED, OPEN),
    (
        CLOSED,
        SHARED,
        DATA,
        _machine("again", _FIRST, evictionPolicy="Restart", disks=STORED),
        _machine("stops", BOUND, evictionPolicy="Stop"),
        _machine("off", _FIRST),
        OFF,
        OPENED,
    ),
    starts=3,
)
REMOVAL = Plan(
    "remove a host",
    (
        Step(
            Verb.REMOVE,
            Host,
            HERE,
            {},
            ((Host, HERE, gone), (VirtualMachine, "off", both(phase("Stopped"), so("host", THERE)))),
        ),
    ),
    (CLOSED, SHARED, DATA, _machine("off", _FIRST, disks=STORED), OFF, OPENED),
)
"""What is off on it goes to another host, with its volume."""
EVACUATION = Plan(
    "evacuate a host by moving its machine",
    (
        change(
            Host,
            HERE,
            (Host, HERE, both(so("maintenance.phase", "Emptied"), says("Maintenance"))),
            on(THERE),
            EVERYWHERE,
            maintenance={},
        ),
        change(Host, HERE, (Host, HERE, both(phase("Ready"), so("maintenance", None))), maintenance=None),
    ),
    ON_BOTH,
    retries=True,
)
"""Its guest goes on without one start, however often the maintenance has to ask for the move."""
