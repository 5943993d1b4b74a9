"""From what a tenant wrote to what a machine gets: size, images, disks. Pure.

What was resolved once is kept (`status.resources`, `status.images`): a changed offering never
changes a machine behind its owner's back.
"""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.compute import PowerState, ResolvedImage, ResolvedSize, VirtualMachine
from kumulus.api.disks import Disk
from kumulus.api.hardware import features_of
from kumulus.api.image import OPTICAL, ImagePhase
from kumulus.api.instance_order import Drive, InstanceDisk
from kumulus.api.machine_import import origin_of
from kumulus.api.order_names import luks_secret_name
from kumulus.api.pool_order import PoolRef
from kumulus.api.quantity import to_bytes
from kumulus_controllers.compute import hardware
from kumulus_controllers.compute.links import linked
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import AnyImage, Scope, Use
from kumulus_controllers.compute.size import granted, wanted_size
from kumulus_controllers.planning.rules import rules_of
from kumulus_controllers.planning.views import Demand, Request
from kumulus_controllers.planning.ways import Way
from kumulus_controllers.storage.image_orders import image_ref
from kumulus_controllers.storage.sharing import NotUsable, Reference, usable
from kumulus_controllers.storage.volume_keeper import HANDING_OVER
from kumulus_controllers.storage.volume_plan import MADE_FOR, Lack, Manner, Wanted


@dataclass(frozen=True, slots=True)
class ResolvedDisk:
    """A disk with its image and size in bytes."""

    name: str
    image: AnyImage
    size: int


@dataclass(frozen=True, slots=True)
class ResolvedVolume:
    """A disk that is a volume."""

    name: str
    """Of the disk."""
    use: Use


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the machine gets."""

    size: ResolvedSize
    memory: int
    """Bytes."""
    disks: tuple[ResolvedDisk, ...]
    selector: dict[str, str]
    volumes: tuple[ResolvedVolume, ...] = ()
    namespace: str | None = None
    """Of the machine."""
    drivers: frozenset[str] = frozenset()
    """What makes the networks of its interfaces."""
    ways: tuple[Way, ...] = ()
    """What those of them need of hosts that are VLANs."""

    @property
    def images(self) -> tuple[ResolvedImage, ...]:
        """As the status records them."""
        return tuple(
            ResolvedImage(
                disk=disk.name,
                kind=disk.image.KIND.kind,
                namespace=disk.image.namespace if disk.image.namespace != self.namespace else None,
                name=disk.image.name,
                uid=disk.image.uid,
                sha256=image_ref(disk.image).sha256 or "",
            )
            for disk in self.disks
        )

    @property
    def demand(self) -> Demand:
        """What it takes from a host."""
        return Demand(self.size.cpus, self.memory, sum(disk.size for disk in self.disks))


def resolve(scope: Scope) -> Resolution | Problem:
    """What the machine gets, or why that cannot be said yet."""
    size = _size(scope)
    if isinstance(size, Problem):
        return size
    if (why := hardware.topology_lack(scope.vm, size.most_cpus)) is not None:
        return Problem("CpuTopologyInvalid", f"{why[0].upper()}{why[1:]}: change spec.cpu, or the size.")
    if scope.vm.spec.zone is not None and not scope.zone_exists:
        return Problem("ZoneNotFound", f"There is no Zone {scope.vm.spec.zone}. Zones: kubectl get zones.")
    disks, volumes = [], []
    for disk in scope.vm.spec.disks:
        if disk.cdrom is not None:
            disc = disc_of(scope, disk)
            if isinstance(disc, Problem):
                return disc
            continue
        if disk.ephemeral is None:
            use = volume_of(scope, disk)
            if isinstance(use, Problem):
                return use
            volumes.append(ResolvedVolume(disk.name, use))
            continue
        found = _image(scope, disk)
        if isinstance(found, Problem):
            return found
        size_bytes = max(found.status.virtual_size or 0, to_bytes(disk.ephemeral.size) if disk.ephemeral.size else 0)
        if found.spec.min_disk is not None and size_bytes < to_bytes(found.spec.min_disk):
            return Problem(
                "DiskTooSmall",
                f"Image {found.name} needs a disk of {found.spec.min_disk}; disk {disk.name} is smaller: set its size and make the machine again.",
                "VolumesReady",
            )
        if found.spec.min_memory is not None and to_bytes(size.memory) < to_bytes(found.spec.min_memory):
            return Problem(
                "MemoryTooSmall",
                f"Image {found.name} needs {found.spec.min_memory} of memory; the machine has {size.memory}.",
            )
        disks.append(ResolvedDisk(disk.name, found, size_bytes))
    _, unlinked = linked(scope)
    if unlinked is not None:
        return unlinked
    return Resolution(
        size,
        to_bytes(size.memory),
        tuple(disks),
        host_selector(scope),
        tuple(volumes),
        scope.vm.namespace,
        frozenset(link.driver for link in scope.links.values() if link.driver is not None),
        tuple({(w.physical, w.driver): w for link in scope.links.values() if (w := link.way) is not None}.values()),
    )


def host_selector(scope: Scope) -> dict[str, str]:
    """Labels that its host must have: what its type asks for, and what it asks for itself."""
    selector = dict(scope.instance_type.spec.host_selector) if scope.instance_type else {}
    return {**selector, **scope.vm.spec.placement.host_selector}


def held(scope: Scope) -> Problem | None:
    """Why the machine may not be started although it shall run."""
    restore = scope.restore
    if scope.evicted is not None:
        return scope.evicted
    if restore is None or scope.vm.spec.power_state is PowerState.STOPPED:
        return None
    return Problem(
        "RestoreInProgress",
        f"VirtualMachineRestore {restore.name} gives the machine's disks what snapshot {restore.spec.snapshot} kept:"
        f" it is started when that is done. How far it is: kubectl get vmrestore {restore.name} -o yaml",
        "VolumesReady",
        stalled=False,
    )


def volume_of(scope: Scope, disk: Disk) -> Use | Problem:
    """The volume that a disk is, or why the machine cannot have it."""
    ready = "VolumesReady"
    vm = scope.vm
    use = scope.volumes.get(disk.name)
    if use is None:
        return Problem("VolumeNotFound", f"There is no Volume {disk.volume_of(vm.name)} in the namespace.", ready)
    if use.volume.deleting:
        waits = use.volume.status.condition("Ready")
        why = f" {waits.message}" if waits is not None and waits.message else ""
        return Problem("VolumeDeleting", f"Volume {use.volume.name} is being deleted.{why}", ready)
    volume = use.volume
    if disk.volume_template is not None and volume.metadata.annotations.get(MADE_FOR) != vm.uid:
        return Problem(
            "VolumeExists",
            f"Volume {volume.name} was there before the machine, and disk {disk.name} would make one of that name:"
            f" delete it, or give it to the disk by `volume: {volume.name}`.",
            ready,
        )
    user = volume.status.attached_to
    if user is not None and user.uid != vm.uid:
        return Problem(
            "VolumeInUse",
            f"Volume {volume.name} is attached to machine {user.vm}: take it out of that machine's spec.disks first.",
            ready,
        )
    if isinstance(use.wanted, Lack):
        lack = use.wanted
        return Problem(lack.reason, f"Volume {volume.name}: {lack.message}", ready, stalled=lack.stalled)
    return use


def attached_disks(scope: Scope, host: str) -> tuple[tuple[InstanceDisk, ...], Problem | None]:
    """The disks that are volumes which the machine may use now on that host, and why others cannot be yet."""
    disks: list[InstanceDisk] = []
    problem: Problem | None = None
    places = boot_order(scope.vm)
    for disk in scope.vm.spec.disks:
        if disk.ephemeral is not None or disk.cdrom is not None:
            continue
        use = volume_of(scope, disk)
        if isinstance(use, Problem):
            problem = problem or use
            continue
        volume, user = use.volume, use.volume.status.attached_to
        if use.shared and not use.usable and volume.status.host != host and use.pool is not None:
            problem = problem or Problem(
                "PoolNotReady",
                f"Volume {volume.name} is in pool {use.pool.name}, which host {host}, where the machine is, cannot use.",
                "VolumesReady",
            )
        elif use.shared and user is not None and volume.status.host != host:
            ready = volume.status.condition("Ready")
            moving = ready is not None and ready.reason == HANDING_OVER
            problem = problem or Problem(
                HANDING_OVER,
                f"Volume {volume.name} comes from host {volume.status.host}."
                + (f" {ready.message}" if ready is not None and moving else ""),
                "VolumesReady",
                stalled=False,
            )
        elif volume.status.host is not None and volume.status.host != host and not use.shared:
            problem = problem or Problem(
                "VolumeElsewhere",
                f"Volume {volume.name} is on host {volume.status.host}, the machine on {host}: a disk that is local to a"
                " host can only be used there.",
                "VolumesReady",
            )
        elif user is None and volume.status.moving_to is not None and volume.status.host != host:
            problem = problem or Problem(
                "VolumeMoves",
                f"Host {volume.status.host} moves volume {volume.name} to StoragePool {volume.status.moving_to}: the machine"
                f" gets it when that is done, if host {host} can use that pool.",
                "VolumesReady",
                stalled=False,
            )
        elif user is None or use.pool is None:
            problem = problem or Problem(
                "VolumeNotAttached", f"Volume {volume.name} is not attached yet.", "VolumesReady", stalled=False
            )
        else:
            manner = use.manner or _ordered_manner(scope, volume.uid)
            disks.append(
                InstanceDisk(
                    name=disk.name,
                    pool=use.pool,
                    volume=volume.uid,
                    boot_order=places[disk.name],
                    secret=luks_secret_name(volume.uid) if volume.status.encryption is not None else None,
                    qos=manner.qos,
                    cache=manner.cache,
                )
            )
    return tuple(disks), problem


def misplaced(resolution: Resolution, host: str) -> bool:
    """Whether a volume can never be used on that host, where the machine was placed: it went elsewhere meanwhile."""
    return any(
        item.use.volume.status.host not in (None, host) and not (item.use.shared and item.use.usable)
        for item in resolution.volumes
    )


def disc_of(scope: Scope, disk: Disk) -> AnyImage | Problem | None:
    """The disc that is to be in a drive, or why it cannot be yet; None for an empty drive."""
    if disk.image is None:
        return None
    image = _image(scope, disk)
    if not isinstance(image, Problem) and image.spec.format not in OPTICAL:
        return Problem(
            "ImageNotADisc",
            f"{image.KIND.kind} {image.name} is a disk ({image.spec.format}); into drive {disk.name} goes an image of the"
            " format iso.",
            "VolumesReady",
        )
    return image


def drives(scope: Scope, pool: PoolRef | None) -> tuple[tuple[Drive, ...], Problem | None]:
    """The drives with their discs, and why some have not the disc they are to have. Such a drive stays as it was ordered.

    `pool` is where discs are brought that are not in a pool yet.
    """
    instance = scope.order.spec.instance if scope.order is not None else None
    ordered = {drive.name: drive for drive in instance.drives} if instance is not None else {}
    found: list[Drive] = []
    problem: Problem | None = None
    places = boot_order(scope.vm)
    for disk in scope.vm.spec.disks:
        if disk.cdrom is None:
            continue
        before = ordered.get(disk.name)
        empty = Drive(name=disk.name, bus=disk.cdrom.bus, boot_order=places[disk.name])
        image = disc_of(scope, disk)
        if image is None:
            found.append(empty)
        elif isinstance(image, Problem):
            problem = problem or image
            found.append(before or empty)
        elif before is not None and before.image is not None and before.image.uid == image.uid:
            found.append(before)
        elif pool is None:
            problem = problem or Problem(
                "NoPool",
                f"There is no pool on the host for the disc of drive {disk.name}.",
                "VolumesReady",
                stalled=False,
            )
            found.append(before or empty)
        else:
            found.append(empty.model_copy(update={"image": image_ref(image), "pool": pool}))
    return tuple(found), problem


def _ordered_manner(scope: Scope, volume: str) -> Manner:
    """How the machine has it by its order: a class that is gone changes nothing."""
    instance = scope.order.spec.instance if scope.order is not None else None
    ordered = next((disk for disk in instance.disks if disk.volume == volume), None) if instance is not None else None
    return Manner(ordered.qos, ordered.cache) if ordered is not None else Manner()


def boot_order(vm: VirtualMachine) -> dict[str, int]:
    """Positions from 1 without gaps: by bootOrder first, then as listed."""
    ranked = sorted(enumerate(vm.spec.disks), key=lambda item: (item[1].boot_order or 1000, item[0]))
    return {disk.name: place for place, (_, disk) in enumerate(ranked, start=1)}


def _size(scope: Scope) -> ResolvedSize | Problem:
    """A machine that has a place gets what room was promised for; another size it gets once there is an order."""
    status = scope.vm.status
    if status.host is not None and (kept := granted(status)) is not None:
        return kept
    return wanted_size(scope)


def image_of(vm: VirtualMachine, disk: Disk) -> Reference | None:
    """The image as the disk names it; None when it names none."""
    return Reference(disk.image, vm.namespace or "", disk.image_namespace) if disk.image is not None else None


def _image(scope: Scope, disk: Disk) -> AnyImage | Problem:
    volumes = "VolumesReady"
    reference = image_of(scope.vm, disk)
    assert reference is not None
    name, image = reference.key, scope.images.get(reference.key)
    kept = {(item.disk, item.uid) for item in scope.vm.status.images}
    if image is None or (disk.name, image.uid) not in kept:
        found = usable(image, reference)
        if isinstance(found, NotUsable):
            return Problem(found.reason, found.message, volumes)
        image = found
    if image.status.phase is ImagePhase.READY:
        return image
    ready = image.status.condition("Ready")
    why = ready.message if ready else "its import has not begun"
    if image.status.phase is ImagePhase.FAILED:
        reason = ready.reason if ready else "Failed"
        return Problem("ImageFailed", f"{image.KIND.kind} {name} could not be imported ({reason}): {why}", volumes)
    return Problem("ImageNotReady", f"{image.KIND.kind} {name} is not ready: {why}", volumes, stalled=False)


def placement_request(scope: Scope, resolution: Resolution) -> Request:
    """What the machine asks of placement."""
    placement = scope.vm.spec.placement
    return Request(
        uid=scope.vm.uid,
        demand=resolution.demand,
        namespace=scope.vm.namespace,
        name=scope.vm.name,
        labels=scope.vm.metadata.labels,
        rules=rules_of(placement, scope.groups),
        zone=scope.vm.spec.zone,
        selector=resolution.selector,
        tolerations=placement.tolerations,
        profile=placement.profile,
        networks=resolution.drivers,
        ways=resolution.ways,
        cpu_model=hardware.cpu_model(scope.vm, None),
        machine_type=hardware.machine_type(scope.vm),
        features=features_of(scope.vm.spec.firmware, scope.vm.spec.watchdog),
        volumes=tuple(
            item.use.wanted.demand
            for item in resolution.volumes
            if item.use.volume.status.host is None and isinstance(item.use.wanted, Wanted)
        ),
        bound={
            item.use.volume.name: item.use.volume.status.host
            for item in resolution.volumes
            # One that is being moved stays where it is until that is done: it may come into a pool of that host alone.
            if item.use.volume.status.host is not None and (not item.use.shared or item.use.volume.status.moving_to)
        }
        | _domain_bound(scope),
        shared={
            item.use.volume.name: item.use.pool
            for item in resolution.volumes
            if item.use.pool is not None and item.use.pool.shared
        },
    )


def _domain_bound(scope: Scope) -> dict[str, str]:
    """What was a domain of a host is to be placed there, where it runs."""
    origin = origin_of(scope.vm)
    return {"its domain": origin.host} if origin is not None and not scope.vm.status.epoch else {}


def standing_request(scope: Scope) -> Request:
    """What a machine that has its place asks of it still, whatever else it needed when it was placed."""
    vm, placement = scope.vm, scope.vm.spec.placement
    return Request(
        uid=vm.uid,
        demand=Demand(0, 0),
        namespace=vm.namespace,
        name=vm.name,
        labels=vm.metadata.labels,
        rules=rules_of(placement, scope.groups),
        zone=vm.spec.zone,
        selector=host_selector(scope),
        tolerations=placement.tolerations,
    )
