"""Disks that only the host of a machine has, and that go along when it moves (docs/adr/0037). Pure.

Each stays in its StoragePool, which the target has as well: of a volume nothing changes but its host. What is copied stands on
nothing there, no image and no snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence

from kumulus.api.instance_order import CopiedDisk, InstanceDisk, InstanceOrder
from kumulus.api.migration import MovingDisk, VirtualMachineMigration
from kumulus.api.pools import PoolDriver
from kumulus.api.quantity import to_bytes
from kumulus_controllers import fleet_feed
from kumulus_controllers.compute.migration_scope import Scope
from kumulus_controllers.compute.scope import Use
from kumulus_controllers.planning.views import VolumeDemand
from kumulus_controllers.storage.volume_plan import Lack, Wanted

COPIED_INTO = (PoolDriver.DIR,)
"""What keeps disks in pools into which guests can bring theirs."""


def local(disk: InstanceDisk) -> bool:
    """Whether only the machine's host has the disk, or it belongs to the machine there."""
    return disk.volume is None or not disk.pool.shared


def lacks(scope: Scope, instance: InstanceOrder) -> list[Lack]:
    """What is against it that the machine's local disks go along; nothing when it has none."""
    disks = [disk for disk in instance.disks if local(disk)]
    if not scope.migration.spec.with_local_disks:
        return [_stays(disk) for disk in disks]
    found = [lack for disk in disks for lack in _against(disk, scope)]
    report = scope.source_report
    endpoint = report.status.migration if report is not None else None
    if disks and endpoint is not None and not endpoint.disks:
        host = scope.vm.status.host if scope.vm is not None else None
        found.append(Lack("AgentTooOld", f"The agent of host {host} does not copy disks to other hosts: upgrade it."))
    return found


def _stays(disk: InstanceDisk) -> Lack:
    ask = "Set spec.withLocalDisks to have it copied along"
    if disk.volume is None:
        return Lack("LocalDisks", f"Disk {disk.name} is ephemeral: it is on its host alone. {ask}.")
    return Lack(
        "LocalDisks",
        f"Disk {disk.name} is in a pool that its host alone has. {ask}, or move its volume to a shared one.",
    )


def _against(disk: InstanceDisk, scope: Scope) -> list[Lack]:
    name, use = disk.name, scope.volumes.get(disk.name)
    if disk.pool.shared:
        return [Lack("LocalDisks", f"Disk {name} is ephemeral and in a pool that hosts share: it stays with its host.")]
    if disk.pool.driver not in COPIED_INTO:
        return [
            Lack(
                "PoolNotCopied",
                f"Disk {name} is in pool {disk.pool.name}, and into pools of driver {disk.pool.driver} no disk is copied with"
                " a guest yet: move its volume to another pool first.",
            )
        ]
    if disk.volume is None:
        return [] if disk.size is not None else [Lack("PendingChanges", f"How large disk {name} is, is not known.")]
    if use is None or use.volume.uid != disk.volume or use.volume.status.size is None:
        return [Lack("PendingChanges", f"The volume of disk {name} is not there yet.", stalled=False)]
    return [*_volume_lacks(disk, use), *((scope.pinned[name],) if name in scope.pinned else ())]


def _volume_lacks(disk: InstanceDisk, use: Use) -> list[Lack]:
    name, volume, found = disk.name, use.volume, list[Lack]()
    if disk.secret is not None:
        found.append(Lack("EncryptedVolume", f"Disk {name} is encrypted, and in a pool that its host alone has."))
    if isinstance(use.wanted, Wanted) and use.wanted.thick:
        found.append(Lack("ThickVolume", f"Disk {name} has all of its space at once, which is not copied along yet."))
    wanted = to_bytes(volume.spec.size) if volume.spec.size else 0
    if wanted > (volume.status.size or 0):
        found.append(Lack("PendingChanges", f"The volume of disk {name} grows.", stalled=False))
    return found


def pinned(name: str, kept: Sequence[str], linked: Sequence[str], copied: str | None) -> Lack | None:
    """Why a volume cannot leave its host, for the sake of what was made of it there."""
    if kept or linked:
        listed = ", ".join([*kept[:8], *(f"volume {other}" for other in linked[:8])])
        return Lack(
            "HasSnapshots",
            f"The volume of disk {name} has snapshots, or volumes linked to those, which stay on its host: {listed}.",
        )
    if copied is not None:
        return Lack("VolumeBusy", f"{copied} is being made of the volume of disk {name}.", stalled=False)
    return None


def along(scope: Scope) -> tuple[MovingDisk, ...]:
    """The disks that go along, as they are put on record when the target is chosen."""
    instance = scope.source.spec.instance if scope.source is not None else None
    if instance is None or not scope.migration.spec.with_local_disks:
        return ()
    found = []
    for disk in instance.disks:
        use = scope.volumes.get(disk.name)
        size = use.volume.status.size if disk.volume is not None and use is not None else disk.size
        if local(disk) and size is not None:
            found.append(MovingDisk(name=disk.name, volume=disk.volume, pool=disk.pool.name, size=sectors(size)))
    return tuple(found)


def sectors(size: int) -> int:
    """Bytes as a disk of so many has them: in whole sectors."""
    return -(-size // 512) * 512


def demands(disks: Sequence[MovingDisk], machine: str) -> tuple[VolumeDemand, ...]:
    """Room for them, each in its own pool on another host."""
    return tuple(VolumeDemand(uid=promised(disk, machine), size=disk.size, pool=disk.pool) for disk in disks)


def promised(disk: MovingDisk, machine: str) -> str:
    """What the room that is kept for it there is called; the machine's uid."""
    return fleet_feed.along(disk.volume, machine, disk.name)


def coming(migration: VirtualMachineMigration) -> tuple[CopiedDisk, ...]:
    """What the target is told of them."""
    return tuple(CopiedDisk(name=disk.name, size=disk.size) for disk in migration.status.disks)
