"""What a restore waits for, what it asks of whom, and what its status says: state in, state out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.base import FORCE_DETACH, PAUSED
from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.machine_snapshot import (
    RestorePhase,
    RestoreState,
    VirtualMachineRestore,
    VirtualMachineSnapshot,
)
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus_controllers.compute.order import renewed
from kumulus_controllers.compute.resolve import held
from kumulus_controllers.compute.restore_plan import (
    RESTORED_BY,
    Scope,
    begun,
    blocked,
    derive_status,
    gone,
    holder,
    leaving,
    new_machine,
    new_volume,
    own_volumes,
)
from kumulus_controllers.compute.scope import Scope as MachineScope
from kumulus_controllers.compute.vm_snapshot_plan import Kept
from kumulus_controllers.compute.vm_snapshot_plan import derive_status as snapshot_status
from kumulus_controllers.storage.volume_plan import Lack
from tests.unit.compute.test_vm_snapshot import DATA, NOW, ROOT, VM, chosen, kept, machine, parts, snapshot, there, uid

RESTORE, OTHER = uid(20), uid(21)


def restore(
    name: str = "back",
    *,
    of: str = RESTORE,
    made: str = NOW,
    status: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    **target: str,
) -> VirtualMachineRestore:
    metadata = {"name": name, "namespace": "ns", "uid": of, "creationTimestamp": made, "annotations": annotations or {}}
    spec = {"snapshot": "all", "target": target or {"vm": "web"}}
    return VirtualMachineRestore.parse({"metadata": metadata, "spec": spec, "status": status or {}})


def taken(**status: Any) -> VirtualMachineSnapshot:
    scope = there(parts=parts())
    recorded = snapshot_status(scope, chosen(scope), None, NOW).to_json()
    return snapshot(status={**recorded, "phase": "Ready", "readyToUse": True, "takenAt": NOW, **status})


def stopped(*, power: str = "Stopped", annotations: dict[str, str] | None = None, **spec: Any) -> VirtualMachine:
    vm = machine()
    changed = vm.spec.model_copy(update={"power_state": PowerState(power), **spec})
    return vm.model_copy(
        update={"spec": changed, "metadata": vm.metadata.model_copy(update={"annotations": annotations or {}})}
    )


def instance(state: str = "Stopped", power: str = "Stopped") -> WorkOrder:
    spec = {
        "type": "Instance",
        "for": {"kind": "VirtualMachine", "namespace": "ns", "name": "web", "uid": VM},
        "instance": {"uid": VM, "epoch": 1, "power": power, "restartPolicy": "Always", "cpus": 1, "memory": 1},
    }
    return WorkOrder.parse(
        {"metadata": {"name": "x", "namespace": "kumulus-host-h1"}, "spec": spec, "status": {"state": state}}
    )


def ready_parts() -> dict[str, VolumeSnapshot]:
    return {
        name: part.model_copy(update={"status": part.status.model_copy(update={"ready_to_use": True})})
        for name, part in parts().items()
    }


def asked(item: Kept, state: str | None = "Ready", *, seen: int = 2, by: str = RESTORE, **said: Any) -> Kept:
    """The volume with its order asking for the content of a snapshot."""
    assert item.order is not None
    raw = item.order.spec.to_json()
    raw["disk"]["volume"]["revert"] = {"snapshot": uid(10), "request": by}
    done = {"disk": {"reverted": by}} if state == "Ready" else {}
    status = {"state": state, "observedGeneration": seen, **done, **said}
    order = WorkOrder.parse(
        {
            "metadata": {"name": "x", "namespace": item.order.namespace, "generation": 2},
            "spec": raw,
            "status": status,
        }
    )
    return replace(item, order=order)


def place(**more: Any) -> Scope:
    volumes = {"web-root": kept("web-root", ROOT), "data": kept("data", DATA)}
    return replace(Scope(restore(), taken(), stopped(), instance(), volumes, ready_parts()), **more)


def anew(**more: Any) -> Scope:
    return replace(Scope(restore(newVM="web-2", cloneMode="Linked"), taken(), parts=ready_parts()), **more)


def running_restore(**more: Any) -> VirtualMachineRestore:
    return restore(status=derive_status(place(), RestorePhase.RESTORING, None, NOW).to_json(), **more)


@pytest.mark.parametrize(
    ("scope", "reason", "stalled"),
    [
        (place(snapshot=None), "SnapshotNotFound", True),
        (place(snapshot=taken(readyToUse=False, phase="Taking")), "SnapshotNotReady", False),
        (place(snapshot=taken(readyToUse=False, phase="Failed")), "SnapshotFailed", True),
        (place(parts={}), "SnapshotNotReady", True),
        (place(vm=None), "VirtualMachineNotFound", True),
        (place(vm=stopped(annotations={PAUSED: "true"})), "LeftAlone", True),
        (place(vm=stopped(power="Running")), "MachineNotStopped", True),
        (place(instance=instance("Stopping")), "MachineStopping", False),
        (place(instance=instance("Running", power="Running")), "MachineStopping", False),
        (place(vm=stopped(disks=machine().spec.disks[:1])), "DiskNotInMachine", True),
        (place(volumes={"data": kept("data", DATA)}), "VolumeGone", True),
        (place(volumes={**place().volumes, "data": kept("data", OTHER)}), "VolumeGone", True),
        (
            place(volumes={**place().volumes, "data": kept("data", DATA, attachedTo={"vm": "db", "uid": OTHER})}),
            "VolumeInUse",
            True,
        ),
        (place(others=(running_restore(name="other", of=OTHER),)), "AnotherRestore", False),
        (anew(snapshot=None), "SnapshotNotFound", True),
        (anew(vm=stopped()), "VirtualMachineExists", True),
    ],
)
def test_what_a_restore_waits_for(scope: Scope, reason: str, stalled: bool) -> None:
    lack = blocked(scope)
    assert lack is not None and (lack.reason, lack.stalled) == (reason, stalled)
    status = derive_status(scope, RestorePhase.PENDING, lack, NOW)
    assert (status.phase, status.volumes, status.started_at) == (RestorePhase.PENDING, (), None)
    ready = status.condition("Ready")
    assert ready is not None and ready.reason == reason and ready.message


def test_a_machine_at_rest_is_restored() -> None:
    assert blocked(place()) is None and blocked(place(instance=None)) is None and blocked(anew()) is None


def test_of_two_that_begin_at_once_the_older_goes_on() -> None:
    older, younger = running_restore(), running_restore(name="b", of=OTHER, made="2026-01-01T00:00:01Z")
    assert blocked(place(restore=older, others=(younger,))) is None
    assert blocked(place(restore=younger, others=(older,))) is not None


def test_that_it_has_begun_is_on_record_before_anything_is_asked() -> None:
    status = derive_status(place(), RestorePhase.RESTORING, None, NOW)
    assert [(disk.disk, disk.volume, disk.snapshot, disk.state) for disk in status.volumes] == [
        ("root", "web-root", "all-root", RestoreState.PENDING),
        ("data", "data", "all-data", RestoreState.PENDING),
    ]
    assert (status.vm_uid, status.started_at, status.finished_at) == (VM, NOW, None)
    assert not begun(place(restore=restore(status=status.to_json()))), "so that it may wait again"


@pytest.mark.parametrize(
    ("state", "seen", "wanted"),
    [
        ("Ready", 1, RestoreState.RESTORING),
        ("Working", 2, RestoreState.RESTORING),
        ("Waiting", 2, RestoreState.RESTORING),
        ("Failed", 2, RestoreState.FAILED),
        ("Ready", 2, RestoreState.RESTORED),
    ],
)
def test_a_volume_is_restored_when_its_host_says_so_of_this_very_request(
    state: str, seen: int, wanted: RestoreState
) -> None:
    data = asked(kept("data", DATA), state, seen=seen, message="Because.")
    scope = place(restore=running_restore(), volumes={"web-root": asked(kept("web-root", ROOT)), "data": data})
    status = derive_status(scope, RestorePhase.RESTORING, None, NOW)
    assert [disk.state for disk in status.volumes] == [RestoreState.RESTORED, wanted]
    done = wanted is RestoreState.RESTORED
    assert status.phase is (RestorePhase.SUCCEEDED if done else RestorePhase.RESTORING)
    assert (status.finished_at is not None) == done
    ready = status.condition("Ready")
    assert ready is not None and (done or ("1 of 2" in ready.message and "Because." in ready.message))
    assert (status.condition("Stalled") is not None) == (wanted is RestoreState.FAILED)


def test_what_was_restored_stays_so_whatever_becomes_of_the_order() -> None:
    both = {"web-root": asked(kept("web-root", ROOT)), "data": asked(kept("data", DATA), "Working")}
    before = derive_status(place(restore=running_restore(), volumes=both), RestorePhase.RESTORING, None, NOW)
    again = place(restore=restore(status=before.to_json()))
    after = derive_status(again, RestorePhase.RESTORING, None, NOW)
    assert [disk.state for disk in after.volumes] == [RestoreState.RESTORED, RestoreState.RESTORING]
    assert begun(again)


def test_a_host_that_is_ready_and_did_not_revert_has_restored_nothing() -> None:
    both = {name: asked(item, disk={"reverted": OTHER}) for name, item in place().volumes.items()}
    status = derive_status(place(restore=running_restore(), volumes=both), RestorePhase.RESTORING, None, NOW)
    assert status.phase is RestorePhase.RESTORING
    assert {disk.state for disk in status.volumes} == {RestoreState.RESTORING}


def test_a_request_of_an_earlier_restore_counts_for_nothing() -> None:
    scope = place(
        restore=running_restore(), volumes={name: asked(item, by=OTHER) for name, item in place().volumes.items()}
    )
    assert not begun(scope)
    status = derive_status(scope, RestorePhase.RESTORING, None, NOW)
    assert {disk.state for disk in status.volumes} == {RestoreState.PENDING}


def test_a_restore_that_can_never_end_fails() -> None:
    volumes = {"web-root": asked(kept("web-root", ROOT), "Working")}
    scope = place(restore=running_restore(), volumes=volumes)
    lack = gone(scope)
    assert lack is not None and lack.reason == "VolumeGone"
    status = derive_status(scope, RestorePhase.FAILED, lack, NOW)
    assert status.phase is RestorePhase.FAILED and status.finished_at == NOW


@pytest.mark.parametrize(
    ("states", "annotations", "waits"),
    [
        (("Working", "Ready"), {}, True),
        (("Failed", "Ready"), {}, False),
        (("Ready", "Ready"), {}, False),
        (("Working", "Working"), {FORCE_DETACH: "true"}, False),
    ],
)
def test_a_deleted_restore_ends_what_it_began(
    states: tuple[str, str], annotations: dict[str, str], waits: bool
) -> None:
    both = {"web-root": asked(kept("web-root", ROOT), states[0]), "data": asked(kept("data", DATA), states[1])}
    lack = leaving(place(restore=running_restore(annotations=annotations), volumes=both))
    assert (lack is not None) == waits
    assert lack is None or FORCE_DETACH in lack.message
    assert leaving(place(restore=running_restore())) is None, "nothing was asked for"


# The machine meanwhile


def test_a_machine_is_not_started_while_a_restore_is_at_it() -> None:
    begun_, pending = running_restore(), restore(name="p", of=OTHER)
    assert holder([pending, begun_]) is begun_ and holder([pending]) is None
    vm = stopped(power="Running")
    problem = held(MachineScope(vm, instance(), None, None, {}, restore=begun_))
    assert problem is not None and problem.reason == "RestoreInProgress" and problem.hinders and not problem.stalled
    assert "back" in problem.message
    assert held(MachineScope(stopped(), instance(), None, None, {}, restore=begun_)) is None
    order = instance().spec
    assert renewed(vm, order, (), (), 1, held=True) == order
    after = renewed(vm, order, (), (), 1).instance
    assert after is not None and after.power is PowerState.RUNNING


# A new machine


def test_a_new_machine_is_as_the_old_one_was_with_disks_from_the_snapshot() -> None:
    item = restore(newVM="web-2", cloneMode="Linked")
    made = new_machine(item, taken())
    assert made["metadata"] == {"name": "web-2", "annotations": {RESTORED_BY: RESTORE}}
    assert made["spec"]["resources"] == {"cpus": 1, "memory": "1Gi"}
    assert made["spec"]["disks"][:3] == [
        {
            "name": "root",
            "volumeTemplate": {"class": "fast", "source": {"snapshot": "all-root", "cloneMode": "Linked"}},
        },
        {"name": "data", "volume": "web-2-data"},
        {"name": "tmp", "ephemeral": {"image": "empty"}},
    ]
    assert VirtualMachine.parse(made).spec.disks[3] == machine().spec.disks[3], "drives are as they were"
    ((disk, name),) = own_volumes(item, taken())
    assert name == "web-2-data"
    assert new_volume(item, disk, name)["spec"] == {
        "class": "fast",
        "source": {"snapshot": "all-data", "cloneMode": "Linked"},
    }


def test_a_new_machine_is_in_the_same_networks_and_nobody_else_there() -> None:
    before = taken()
    assert before.status.machine is not None
    eth0 = {"name": "eth0", "network": "front", "securityGroups": ["web"]}
    own = {"addresses": ["10.0.0.9"], "macAddress": "02:00:00:00:00:09"}
    recorded = VirtualMachine.parse(
        {
            "spec": {
                **before.status.machine.to_json(),
                "interfaces": [{**eth0, **own}, {"name": "eth1", "interface": "mine"}],
            }
        }
    ).spec
    status = before.status.model_copy(update={"machine": recorded})
    made = VirtualMachine.parse(new_machine(restore(newVM="web-2"), before.model_copy(update={"status": status})))
    assert (
        made.spec.interfaces
        == VirtualMachine.parse({"spec": {**made.spec.to_json(), "interfaces": [eth0]}}).spec.interfaces
    )


def test_a_new_machine_is_restored_when_its_volumes_are_made() -> None:
    vm = VirtualMachine.parse({**new_machine(anew().restore, taken())})
    vm = vm.model_copy(update={"metadata": vm.metadata.model_copy(update={"uid": OTHER})})
    made = {"web-2-root": kept("web-2-root", ROOT), "web-2-data": kept("web-2-data", DATA, phase="Creating")}
    first = derive_status(anew(vm=vm, volumes=made), RestorePhase.RESTORING, None, NOW)
    assert first.phase is RestorePhase.RESTORING and first.vm_uid == OTHER
    made["web-2-data"] = kept("web-2-data", DATA, phase="Available")
    going_on = restore(newVM="web-2", status=first.to_json())
    assert derive_status(anew(restore=going_on, vm=vm, volumes=made), RestorePhase.RESTORING, None, NOW).phase is (
        RestorePhase.SUCCEEDED
    )
    lack = gone(anew(restore=going_on, vm=None))
    assert isinstance(lack, Lack) and lack.reason == "VirtualMachineGone"
