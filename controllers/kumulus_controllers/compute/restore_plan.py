"""What a restore waits for, what it does to which volume, and what its status says. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.base import DOMAIN, FORCE_DETACH
from kumulus.api.compute import Interface, PowerState, VirtualMachine
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.machine_snapshot import (
    FINISHED,
    KeptDisk,
    RestoredDisk,
    RestorePhase,
    RestoreState,
    VirtualMachineRestore,
    VirtualMachineRestoreStatus,
    VirtualMachineSnapshot,
)
from kumulus.api.snapshots import SnapshotPhase
from kumulus.api.storage import Volume, VolumePhase
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.compute.vm_snapshot_plan import Kept, part_name
from kumulus_controllers.orders import at_rest
from kumulus_controllers.storage.snapshot_plan import progress
from kumulus_controllers.storage.volume_plan import Lack

RESTORED_BY = f"{DOMAIN}/restored-by"
"""Annotation of a machine or volume that a restore made: the restore's uid."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    restore: VirtualMachineRestore
    snapshot: VirtualMachineSnapshot | None = None
    vm: VirtualMachine | None = None
    """The machine of the target's name."""
    instance: WorkOrder | None = None
    """The order of that machine."""
    volumes: Mapping[str, Kept] = field(default_factory=dict)
    """By name: those that get the content."""
    parts: Mapping[str, VolumeSnapshot] = field(default_factory=dict)
    """By name: those that have it."""
    others: tuple[VirtualMachineRestore, ...] = ()
    """Other restores of the machine."""

    @property
    def in_place(self) -> bool:
        """Whether a machine gets its own disks' content back; else a new one is made."""
        return self.restore.spec.target.vm is not None

    @property
    def machine(self) -> str:
        """Name of the target."""
        target = self.restore.spec.target
        return target.vm or target.new_vm or ""


def disks_of(scope: Scope) -> tuple[RestoredDisk, ...]:
    """What gets the content of what: as recorded when it began, else as the snapshot says."""
    if scope.restore.status.volumes:
        return scope.restore.status.volumes
    found = scope.snapshot.status.volumes if scope.snapshot is not None else ()
    return tuple(
        RestoredDisk(disk=disk.disk, volume=_volume_for(scope, disk), snapshot=disk.snapshot) for disk in found
    )


def _volume_for(scope: Scope, disk: KeptDisk) -> str:
    return disk.volume if scope.in_place else part_name(scope.machine, disk.disk)


def blocked(scope: Scope) -> Lack | None:
    """Why the restore cannot begin."""
    snapshot, name = scope.snapshot, scope.restore.spec.snapshot
    if snapshot is None or snapshot.deleting:
        going = "is being deleted" if snapshot else "does not exist"
        return Lack("SnapshotNotFound", f"VirtualMachineSnapshot {name} {going}.")
    if not snapshot.status.ready_to_use or snapshot.status.machine is None:
        ready = snapshot.status.condition("Ready")
        failed = snapshot.status.phase is SnapshotPhase.FAILED
        why = ready.message if ready else "it is not taken yet."
        return Lack("SnapshotFailed" if failed else "SnapshotNotReady", f"VirtualMachineSnapshot {name}: {why}", failed)
    for disk in disks_of(scope):
        part = scope.parts.get(disk.snapshot)
        if part is None or not part.status.ready_to_use:
            return Lack("SnapshotNotReady", f"VolumeSnapshot {disk.snapshot} of disk {disk.disk} cannot be used.")
    return _blocked_in_place(scope, snapshot) if scope.in_place else _blocked_anew(scope)


def _blocked_anew(scope: Scope) -> Lack | None:
    if scope.vm is not None and not is_from(scope.restore, scope.vm):
        return Lack(
            "VirtualMachineExists", f"There is a VirtualMachine {scope.machine} already: take another name for newVM."
        )
    return None


def is_from(restore: VirtualMachineRestore, item: VirtualMachine | Volume) -> bool:
    """Whether this restore made it."""
    return item.metadata.annotations.get(RESTORED_BY) == restore.uid


def _blocked_in_place(scope: Scope, snapshot: VirtualMachineSnapshot) -> Lack | None:
    vm = scope.vm
    if vm is None or vm.deleting:
        going = "is being deleted" if vm else "does not exist"
        return Lack(
            "VirtualMachineNotFound",
            f"VirtualMachine {scope.machine} {going}. To make a new machine of the snapshot: a restore with target.newVM.",
        )
    if vm.paused:
        return Lack("LeftAlone", f"An annotation tells Kumulus to leave machine {vm.name} alone.")
    if (other := _before(scope)) is not None:
        return Lack("AnotherRestore", f"VirtualMachineRestore {other} restores the machine just now.", stalled=False)
    names = {disk.volume_of(vm.name) for disk in vm.spec.disks}
    for disk in snapshot.status.volumes:
        kept = scope.volumes.get(disk.volume)
        if kept is None or kept.volume.uid != disk.volume_uid or kept.volume.deleting:
            return Lack("VolumeGone", f"Volume {disk.volume}, which the snapshot is of, is gone or is being deleted.")
        if disk.volume not in names:
            return Lack(
                "DiskNotInMachine",
                f"Volume {disk.volume} is no disk of machine {vm.name} any more: put it back, or restore to a new machine.",
            )
        user = kept.volume.status.attached_to
        if user is not None and user.uid != vm.uid:
            return Lack("VolumeInUse", f"Volume {disk.volume} is attached to machine {user.vm}.")
        if kept.order is None or kept.order.deleting:
            return Lack("VolumeNotReady", f"Volume {disk.volume} cannot be reached just now.", stalled=False)
    return _not_at_rest(vm, scope.instance)


def _not_at_rest(vm: VirtualMachine, instance: WorkOrder | None) -> Lack | None:
    """Why the machine may be writing to its disks."""
    if vm.spec.power_state is not PowerState.STOPPED:
        return Lack(
            "MachineNotStopped",
            f"Machine {vm.name} is to be {vm.spec.power_state}: stop it, and start it again afterwards"
            f" (kumulusctl -n {vm.namespace} vm stop {vm.name}).",
        )
    if instance is not None and not at_rest(instance):
        return Lack("MachineStopping", f"Machine {vm.name} is not off yet.", stalled=False)
    return None


def _before(scope: Scope) -> str | None:
    """Another restore of the machine that has begun; of two that begin at once, the older goes on."""
    mine = scope.restore
    for other in scope.others:
        if other.status.phase is not RestorePhase.RESTORING:
            continue
        if mine.status.phase is not RestorePhase.RESTORING or _age(other) < _age(mine):
            return other.name
    return None


def _age(restore: VirtualMachineRestore) -> tuple[str, str]:
    return (restore.metadata.creation_timestamp or "", restore.name)


def holder(restores: Sequence[VirtualMachineRestore]) -> VirtualMachineRestore | None:
    """The restore that keeps a machine from being started, of those that are for it."""
    begun = [item for item in restores if item.status.phase is RestorePhase.RESTORING]
    return min(begun, key=_age, default=None)


def requested(restore: VirtualMachineRestore, kept: Kept | None) -> bool:
    """Whether the volume's host was asked to revert it for this restore."""
    revert = _revert(kept)
    return revert is not None and revert == restore.uid


def _revert(kept: Kept | None) -> str | None:
    disk = kept.order.spec.disk if kept is not None and kept.order is not None else None
    revert = disk.volume.revert if disk is not None and disk.volume is not None else None
    return revert.request if revert is not None else None


def begun(scope: Scope) -> bool:
    """Whether anything was changed already, so that there is no way back."""
    if not scope.in_place:
        return scope.restore.status.vm_uid is not None
    return any(
        disk.state is not RestoreState.PENDING or requested(scope.restore, scope.volumes.get(disk.volume))
        for disk in disks_of(scope)
    )


def state_of(scope: Scope, disk: RestoredDisk) -> RestoreState:
    """How far one volume is. What was restored once stays so: nothing is done to it again."""
    if disk.state is RestoreState.RESTORED:
        return disk.state
    kept = scope.volumes.get(disk.volume)
    if not scope.in_place:
        return _made(kept)
    if kept is None or not requested(scope.restore, kept) or kept.order is None:
        return disk.state
    order = kept.order
    if (order.status.observed_generation or 0) < order.metadata.generation:
        return RestoreState.RESTORING
    if order.status.disk is not None and order.status.disk.reverted == scope.restore.uid:
        return RestoreState.RESTORED
    failed = order.status.state in (WorkState.FAILED, WorkState.REFUSED)
    return RestoreState.FAILED if failed else RestoreState.RESTORING


def _made(kept: Kept | None) -> RestoreState:
    if kept is None:
        return RestoreState.PENDING
    moves = kept.volume.status.phase is VolumePhase.MOVING and kept.volume.status.size is not None
    if moves or kept.volume.status.phase in (VolumePhase.AVAILABLE, VolumePhase.IN_USE):
        return RestoreState.RESTORED
    return RestoreState.FAILED if kept.volume.status.phase is VolumePhase.FAILED else RestoreState.RESTORING


def gone(scope: Scope) -> Lack | None:
    """What a restore that has begun can never finish without."""
    if not scope.in_place:
        made = scope.restore.status.vm_uid
        if made is not None and (scope.vm is None or scope.vm.uid != made):
            return Lack("VirtualMachineGone", f"VirtualMachine {scope.machine}, which was being made, was deleted.")
        return None
    for disk in disks_of(scope):
        if disk.state is not RestoreState.RESTORED and disk.volume not in scope.volumes:
            return Lack("VolumeGone", f"Volume {disk.volume} was deleted before it was restored.")
    return None


def new_volume(restore: VirtualMachineRestore, disk: KeptDisk, name: str) -> dict[str, Any]:
    """A volume of the new machine that is no volume of its own."""
    spec: dict[str, Any] = {"source": _source(restore, disk)}
    if disk.volume_class is not None:
        spec["class"] = disk.volume_class
    return {"metadata": {"name": name, "annotations": {RESTORED_BY: restore.uid}}, "spec": spec}


def _source(restore: VirtualMachineRestore, disk: KeptDisk) -> dict[str, str]:
    mode = restore.spec.target.clone_mode
    return {"snapshot": disk.snapshot, **({"cloneMode": mode.value} if mode else {})}


def new_machine(restore: VirtualMachineRestore, snapshot: VirtualMachineSnapshot) -> dict[str, Any]:
    """The machine as it was, with disks from the snapshot: volumes that it brought along it brings along again."""
    assert snapshot.status.machine is not None and restore.spec.target.new_vm is not None
    name, recorded = restore.spec.target.new_vm, snapshot.status.machine
    kept = {disk.disk: disk for disk in snapshot.status.volumes}
    disks = []
    for disk in recorded.disks:
        body, found = disk.to_json(), kept.get(disk.name)
        if found is not None and disk.volume_template is not None:
            template = {key: value for key, value in body["volumeTemplate"].items() if key not in ("size", "source")}
            kind = {"class": found.volume_class} if found.volume_class is not None else {}
            body["volumeTemplate"] = {**kind, **template, "source": _source(restore, found)}
        elif found is not None:
            body["volume"] = part_name(name, disk.name)
        disks.append(body)
    spec = {**recorded.to_json(), "disks": disks, "interfaces": _new_interfaces(recorded.interfaces)}
    spec.pop("restartRequest", None)
    return {"metadata": {"name": name, "annotations": {RESTORED_BY: restore.uid}}, "spec": spec}


def _new_interfaces(recorded: tuple[Interface, ...]) -> list[dict[str, Any]]:
    """Interfaces in the same networks. Addresses and MACs are those of the machine that has them; so are interfaces with a
    life of their own, which the new machine does without."""
    made = [interface.model_copy(update={"addresses": (), "mac_address": None}) for interface in recorded]
    return [interface.to_json() for interface in made if interface.network is not None]


def own_volumes(restore: VirtualMachineRestore, snapshot: VirtualMachineSnapshot) -> list[tuple[KeptDisk, str]]:
    """The volumes that the restore makes itself, with their names; the others the new machine brings along."""
    assert snapshot.status.machine is not None
    along = {disk.name for disk in snapshot.status.machine.disks if disk.volume_template is not None}
    name = restore.spec.target.new_vm or ""
    return [(disk, part_name(name, disk.disk)) for disk in snapshot.status.volumes if disk.disk not in along]


def derive_status(scope: Scope, phase: RestorePhase, lack: Lack | None, now: str) -> VirtualMachineRestoreStatus:
    """The whole status. `phase` is what the pass came to; it is Succeeded when everything is restored."""
    restore, before = scope.restore, scope.restore.status
    disks = disks_of(scope) if phase is not RestorePhase.PENDING else ()
    disks = tuple(disk.model_copy(update={"state": state_of(scope, disk)}) for disk in disks)
    if phase is RestorePhase.RESTORING and lack is None and disks:
        made = scope.in_place or scope.vm is not None
        if made and all(disk.state is RestoreState.RESTORED for disk in disks):
            phase = RestorePhase.SUCCEEDED
    ready, stalled = _ready(scope, phase, disks, lack)
    waiting, ended = phase is RestorePhase.PENDING, phase in FINISHED
    target = scope.vm if scope.in_place or (scope.vm is not None and is_from(restore, scope.vm)) else None
    generation = restore.metadata.generation
    return VirtualMachineRestoreStatus(
        observed_generation=generation,
        conditions=derive(
            before.conditions, [ready, *progress(ready, stalled=stalled)], generation=generation, now=now
        ),
        phase=phase,
        vm_uid=None if waiting else before.vm_uid or (target.uid if target is not None else None),
        volumes=disks,
        started_at=None if waiting else before.started_at or now,
        finished_at=before.finished_at or (now if ended else None),
    )


def _ready(scope: Scope, phase: RestorePhase, disks: Sequence[RestoredDisk], lack: Lack | None) -> tuple[Fact, bool]:
    if phase is RestorePhase.SUCCEEDED:
        said = f"Machine {scope.machine} has what the snapshot kept."
        return Fact("Ready", True, "Restored", said), False
    if lack is not None:
        return Fact("Ready", False, lack.reason, lack.message), lack.stalled or phase is RestorePhase.FAILED
    done = sum(disk.state is RestoreState.RESTORED for disk in disks)
    said = f"{done} of {len(disks)} volumes are restored."
    failed = next((disk for disk in disks if disk.state is RestoreState.FAILED), None)
    first = failed or next((disk for disk in disks if disk.state is not RestoreState.RESTORED), None)
    why = _said(scope, first) if first is not None else ""
    if failed is not None:
        hint = (
            f" To give it up: kubectl delete vmrestore {scope.restore.name};"
            " the machine's disks may then be of different times."
            if scope.in_place
            else ""
        )
        return Fact("Ready", False, "VolumeFailed", f"{said} Volume {failed.volume}: {why}{hint}"), True
    return Fact("Ready", False, "Restoring", f"{said} {why}".strip()), False


def _said(scope: Scope, disk: RestoredDisk) -> str:
    """What is known of a volume that is not restored."""
    kept = scope.volumes.get(disk.volume)
    if kept is None:
        return f"Volume {disk.volume} is not made yet."
    if scope.in_place:
        said = kept.order.status.message if kept.order is not None else None
        return said or f"Its host does not say yet that volume {disk.volume} was restored."
    ready = kept.volume.status.condition("Ready")
    return ready.message if ready is not None else ""


def leaving(scope: Scope) -> Lack | None:
    """Why a restore that is deleted cannot go yet: what has begun is brought to its end, unless that cannot be."""
    if not scope.in_place or scope.restore.status.phase is not RestorePhase.RESTORING or not begun(scope):
        return None
    if scope.restore.metadata.annotations.get(FORCE_DETACH) == "true" or gone(scope) is not None:
        return None
    states = {state_of(scope, disk) for disk in disks_of(scope)}
    if RestoreState.FAILED in states or states == {RestoreState.RESTORED}:
        return None
    return Lack(
        "Restoring",
        "Volumes are being given their content back: the restore goes when that is done, so that the machine's disks are"
        f" of one time. To give it up: kubectl annotate vmrestore {scope.restore.name} {FORCE_DETACH}=true",
        stalled=False,
    )
