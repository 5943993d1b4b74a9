"""From what a tenant wrote to what a machine gets: size, images, disks. Pure.

What was resolved once is kept (`status.resources`, `status.images`): a changed offering never
changes a machine behind its owner's back.
"""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.compute import ResolvedImage, ResolvedSize
from kumulus.api.quantity import to_bytes
from kumulus.api.storage import ClusterImage, ImagePhase
from kumulus_controllers.compute.scope import AnyImage, Scope
from kumulus_controllers.planning.views import Demand, Request


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the machine cannot be placed yet. `aspect` is the condition it belongs to."""

    reason: str
    message: str
    aspect: str = "Scheduled"
    stalled: bool = True
    """Somebody has to do something; False when it will pass by itself."""


@dataclass(frozen=True, slots=True)
class ResolvedDisk:
    """A disk with its image and size in bytes."""

    name: str
    image: AnyImage
    size: int


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the machine gets."""

    size: ResolvedSize
    memory: int
    """Bytes."""
    disks: tuple[ResolvedDisk, ...]
    selector: dict[str, str]

    @property
    def images(self) -> tuple[ResolvedImage, ...]:
        """As the status records them."""
        return tuple(
            ResolvedImage(
                disk=disk.name,
                kind=disk.image.KIND.kind,
                name=disk.image.name,
                uid=disk.image.uid,
                sha256=disk.image.spec.checksum.sha256,
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
    if scope.vm.spec.zone is not None and not scope.zone_exists:
        return Problem("ZoneNotFound", f"There is no Zone {scope.vm.spec.zone}. Zones: kubectl get zones.")
    disks = []
    for disk in scope.vm.spec.disks:
        if disk.ephemeral is None:
            return Problem("DiskNotSupported", f"Disk {disk.name} has no source this version knows.", "VolumesReady")
        found = _image(scope, disk.name, disk.ephemeral.image)
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
    selector = dict(scope.instance_type.spec.host_selector) if scope.instance_type else {}
    return Resolution(size, to_bytes(size.memory), tuple(disks), {**selector, **scope.vm.spec.placement.host_selector})


def _size(scope: Scope) -> ResolvedSize | Problem:
    spec = scope.vm.spec
    if scope.vm.status.resources is not None:
        return scope.vm.status.resources
    if spec.resources is not None:
        return ResolvedSize(cpus=spec.resources.cpus, memory=spec.resources.memory)
    offering = scope.instance_type
    if offering is None or offering.deleting:
        return Problem(
            "InstanceTypeNotFound",
            f"There is no InstanceType {spec.instance_type}. What there is: kubectl get instancetypes.",
        )
    allowed = offering.spec.allowed_namespaces
    if allowed and scope.vm.namespace not in allowed:
        return Problem(
            "InstanceTypeNotAllowed", f"InstanceType {offering.name} may not be used in namespace {scope.vm.namespace}."
        )
    return ResolvedSize(cpus=offering.spec.cpus, memory=offering.spec.memory)


def _image(scope: Scope, disk: str, name: str) -> AnyImage | Problem:
    volumes = "VolumesReady"
    image = scope.images.get(name)
    recorded = next((item for item in scope.vm.status.images if item.disk == disk), None)
    if image is None or (image.deleting and recorded is None):
        return Problem(
            "ImageNotFound", f"There is no Image {name} in the namespace and no ClusterImage of that name.", volumes
        )
    if (
        isinstance(image, ClusterImage)
        and image.spec.allowed_namespaces
        and scope.vm.namespace not in image.spec.allowed_namespaces
    ):
        return Problem(
            "ImageNotAllowed", f"ClusterImage {name} may not be used in namespace {scope.vm.namespace}.", volumes
        )
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
        zone=scope.vm.spec.zone,
        selector=resolution.selector,
        tolerations=placement.tolerations,
        profile=placement.profile,
    )
