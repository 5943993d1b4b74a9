"""The work order of a machine. Pure."""

from __future__ import annotations

from typing import Any

from kumulus.api.base import FINALIZER, ObjectRef
from kumulus.api.compute import PowerState, ResolvedSize, VirtualMachine
from kumulus.api.disks import VolumeTemplate
from kumulus.api.host import WorkOrderSpec, WorkType
from kumulus.api.instance_order import PRIORITY, Drive, InstanceDisk, InstanceOrder, SeedRef
from kumulus.api.machine_import import domain_of, origin_of
from kumulus.api.pool_order import PoolRef
from kumulus.api.segments import Nic
from kumulus.api.volumes import ReclaimPolicy
from kumulus_controllers.compute import hardware
from kumulus_controllers.compute.resolve import Resolution, boot_order
from kumulus_controllers.compute.size import most_cpus, most_memory
from kumulus_controllers.storage.image_orders import image_ref
from kumulus_controllers.storage.volume_plan import MADE_FOR


def seed_secret_name(vm_uid: str) -> str:
    """Name of the Secret in the host's namespace that carries a seed with secrets in it."""
    return f"seed-{vm_uid}"


def template_volume(vm: VirtualMachine, template: VolumeTemplate, name: str, policy: ReclaimPolicy) -> dict[str, Any]:
    """The volume that a machine brings along. It goes with the machine, unless it is to be retained."""
    spec: dict[str, Any] = template.to_json()
    metadata: dict[str, Any] = {"name": name, "annotations": {MADE_FOR: vm.uid}, "finalizers": [FINALIZER]}
    if policy is not ReclaimPolicy.RETAIN:
        owner = {"apiVersion": vm.KIND.api_version, "kind": vm.KIND.kind, "name": vm.name, "uid": vm.uid}
        metadata["ownerReferences"] = [owner]
    return {"metadata": metadata, "spec": spec}


def instance_order(
    vm: VirtualMachine,
    resolution: Resolution,
    pool: PoolRef | None,
    volumes: tuple[InstanceDisk, ...],
    drives: tuple[Drive, ...],
    epoch: int,
    term: int,
    seed: SeedRef | None,
    nics: tuple[Nic, ...] = (),
    baseline: str | None = None,
) -> WorkOrderSpec:
    """The order for a machine that was just placed. `pool` is for its own disks, `baseline` the CPU model of its zone."""
    disks = list(volumes)
    order_of = boot_order(vm)
    for disk in resolution.disks:
        assert pool is not None
        disks.append(
            InstanceDisk(
                name=disk.name,
                pool=pool,
                image=image_ref(disk.image),
                size=disk.size or None,
                boot_order=order_of[disk.name],
            )
        )
    return WorkOrderSpec(
        type=WorkType.INSTANCE,
        for_=ObjectRef(kind="VirtualMachine", namespace=vm.namespace, name=vm.name, uid=vm.uid),
        term=term,
        instance=InstanceOrder(
            uid=domain_of(vm),
            epoch=epoch,
            power=vm.spec.power_state,
            restart_policy=vm.spec.restart_policy,
            restart_request=vm.spec.restart_request,
            priority=_priority(vm),
            stop=vm.spec.stop,
            cpus=resolution.size.cpus,
            memory=resolution.memory,
            max_cpus=most_cpus(resolution.size),
            max_memory=most_memory(resolution.size),
            shape=hardware.shape(vm, baseline),
            machine_type=hardware.machine_type(vm),
            disks=tuple(disks),
            drives=drives,
            nics=nics,
            seed=seed,
            # Later placements begin with a start: what the domain was is gone, or somebody's again.
            adopt=(origin := origin_of(vm)) is not None and epoch == origin.epoch + 1,
        ),
    )


def _priority(vm: VirtualMachine) -> int | None:
    """Left out where it is the usual one: orders of before need no write."""
    found = vm.spec.high_availability.priority
    return found if found != PRIORITY else None


def renewed(
    vm: VirtualMachine,
    order: WorkOrderSpec,
    volumes: tuple[InstanceDisk, ...],
    drives: tuple[Drive, ...],
    term: int,
    *,
    nics: tuple[Nic, ...] = (),
    held: bool = False,
    size: ResolvedSize | None = None,
    made: hardware.Made | None = None,
) -> WorkOrderSpec:
    """The order as the machine's spec has it now: what may change while it is placed, the rest as it was ordered.
    `held`: it must not run just now, whatever its spec says; `size`: how large it is to be, and `made`: what of, None for what was
    ordered."""
    assert order.instance is not None
    instance = order.instance.model_copy(
        update={
            "power": PowerState.STOPPED if held else vm.spec.power_state,
            "restart_policy": vm.spec.restart_policy,
            "restart_request": order.instance.restart_request if held else vm.spec.restart_request,
            "priority": _priority(vm),
            "stop": vm.spec.stop,
            "cpus": size.cpus if size is not None else order.instance.cpus,
            "memory": size.memory_bytes if size is not None else order.instance.memory,
            **({"max_cpus": most_cpus(size), "max_memory": most_memory(size)} if size is not None else {}),
            "shape": made.shape if made is not None else order.instance.shape,
            "machine_type": made.machine_type if made is not None else order.instance.machine_type,
            "disks": _with_volumes(order.instance, volumes, {disk.name for disk in vm.spec.disks}),
            "drives": _with_discs(order.instance.drives, drives),
            "nics": nics,
        }
    )
    if instance == order.instance:
        return order
    # That it has a board now is no reason to write; where there is one, the order says it as well.
    instance = instance.model_copy(update={"machine_type": instance.machine_type or vm.status.machine_type})
    return order.model_copy(update={"instance": instance, "term": max(term, order.term)})


def _with_discs(ordered: tuple[Drive, ...], drives: tuple[Drive, ...]) -> tuple[Drive, ...]:
    """The drives that were ordered, where they were in the boot order, with the discs that are to be in them now."""
    now = {drive.name: drive for drive in drives}
    return tuple(
        now.get(drive.name, drive).model_copy(update={"boot_order": drive.boot_order, "bus": drive.bus})
        for drive in ordered
    )


def _with_volumes(
    order: InstanceOrder, volumes: tuple[InstanceDisk, ...], wanted: set[str]
) -> tuple[InstanceDisk, ...]:
    """What was ordered and is still wanted, as it was but for its manner and the pool that a volume was moved to; then
    volumes that have come."""
    now = {(disk.name, disk.volume): disk for disk in volumes}
    kept = [
        _as_it_is(disk, now.get((disk.name, disk.volume)))
        for disk in order.disks
        if disk.volume is None or disk.name in wanted
    ]
    names = {disk.name for disk in kept}
    places = (*(disk.boot_order for disk in order.disks), *(drive.boot_order for drive in order.drives))
    last = max(places, default=0)
    come = [disk for disk in volumes if disk.name not in names]
    return (*kept, *(disk.model_copy(update={"boot_order": last + n}) for n, disk in enumerate(come, start=1)))


def _as_it_is(ordered: InstanceDisk, now: InstanceDisk | None) -> InstanceDisk:
    if now is None:
        return ordered
    return ordered.model_copy(update={"pool": now.pool, "qos": now.qos, "cache": now.cache})
