"""Why a machine cannot move (docs/adr/0029): of itself, and host by host. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kumulus.api.base import PAUSED
from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.fabric import CpuInfo, Host, Versions
from kumulus.api.hardware import HOST_MODEL, HOST_PASSTHROUGH
from kumulus.api.host import HostReport, WorkState
from kumulus.api.instance_order import InstanceDisk
from kumulus.api.migration import (
    FINISHED,
    VirtualMachineMigration,
)
from kumulus.api.segments import NetworkDriverName
from kumulus.api.volumes import CacheMode
from kumulus_controllers.compute import migration_disks, migration_hardware
from kumulus_controllers.compute.migration_hardware import KVM
from kumulus_controllers.compute.migration_scope import Scope
from kumulus_controllers.storage.volume_plan import Lack

FOLLOWING = (NetworkDriverName.LINUX,)
"""Drivers of networks that have been seen to let guests go on elsewhere."""
ALREADY_MOVING = "AlreadyMoving"
"""Reason: another migration moves the machine, and this one waits."""
HANDING_OVER = "HandingOver"
"""Reason: a volume follows the machine to the host where it is; over in a moment."""
TUNNEL_COMES = "TunnelComes"
"""Reason: the agent of its host has started again and waits for its certificate."""
PASSING = (HANDING_OVER, TUNNEL_COMES)
"""Reasons of what is over in a moment by itself."""
COHERENT = (None, CacheMode.NONE, CacheMode.DIRECTSYNC)
"""Ways to cache a disk in which a host knows nothing of it that another one does not."""


def blocked(scope: Scope) -> Lack | None:
    """Why the machine cannot move, wherever to; all that is in the way, the first reason as reason."""
    vm = scope.vm
    if vm is None:
        return Lack("MachineNotFound", f"There is no VirtualMachine {scope.migration.spec.vm} in the namespace.")
    found = keeps(scope, vm)
    if not found:
        return None
    return Lack(found[0].reason, " ".join(lack.message for lack in found), stalled=any(lack.stalled for lack in found))


def keeps(scope: Scope, vm: VirtualMachine) -> Sequence[Lack]:
    """All that keeps the machine where it is, whoever asks."""
    order = scope.source
    if vm.deleting:
        return [Lack("MachineGone", f"Machine {vm.name} is being deleted.")]
    if vm.paused:
        return [Lack("LeftAlone", f"Machine {vm.name} is to be left alone (annotation {PAUSED}).")]
    before = sorted(
        other.name
        for other in scope.others
        if other.status.phase not in FINISHED and _comes_first(other, scope.migration)
    )
    if before:
        return [Lack(ALREADY_MOVING, f"Migration {before[0]} moves the machine: this one waits.", stalled=False)]
    running = order is not None and order.spec.instance is not None and order.status.state is WorkState.RUNNING
    if vm.spec.power_state is not PowerState.RUNNING or order is None or not running or order.spec.instance is None:
        phase = vm.status.phase or "not placed yet"
        return [Lack("NotRunning", f"Machine {vm.name} is {phase}: only one that runs can move.", stalled=False)]
    instance, said, found = order.spec.instance, order.status.instance, list[Lack]()
    if (order.status.observed_generation or 0) < order.metadata.generation or order.status.reason is not None:
        why = order.status.message or "its host has not done yet what it was told last"
        found.append(Lack("PendingChanges", f"Something is pending: {why}.", stalled=False))
    if vm.spec.restart_request != vm.status.last_restart_request and vm.spec.restart_request is not None:
        found.append(Lack("PendingChanges", "It is to be restarted first.", stalled=False))
    found += migration_hardware.keeps(
        instance, said, scope.source_report.status.cpu if scope.source_report is not None else None
    )
    if said is None or set(said.volumes) != {disk.volume for disk in instance.disks if disk.volume is not None}:
        found.append(Lack("PendingChanges", "A volume comes or goes.", stalled=False))
    if said is None or any(not nic.attached for nic in said.nics) or len(said.nics) != len(instance.nics):
        found.append(Lack("PendingChanges", "An interface comes or goes.", stalled=False))
    found += _tunnel(scope.source_report, vm.status.host)
    if scope.restoring is not None:
        found.append(Lack("RestoreInProgress", f"VirtualMachineRestore {scope.restoring} is under way.", stalled=False))
    found += migration_disks.lacks(scope, instance)
    for disk in instance.disks:
        found += _disk_blockers(disk, scope)
    for drive in instance.drives:
        if drive.pool is not None and not drive.pool.shared:
            found.append(Lack("DiscInDrive", f"The disc in drive {drive.name} is local to its host: eject it."))
    for name, link in scope.links.items():
        if link.driver not in FOLLOWING:
            found.append(
                Lack(
                    "NetworkCannotFollow",
                    f"Interface {name} is in a network of driver {link.driver}, which cannot follow.",
                )
            )
    return found


def _tunnel(report: HostReport | None, host: str | None) -> list[Lack]:
    if report is not None and report.status.migration is not None:
        return []
    if report is not None and report.status.transfer is not None and report.status.transfer.tunnel:
        said = f"The agent of its host {host} has no certificate yet: it has just started, and gets one by itself."
        return [Lack(TUNNEL_COMES, said, stalled=False)]
    return [Lack("NoTunnel", f"Its host {host} sends no guests: see transfer.migration_port there.")]


def _comes_first(other: VirtualMachineMigration, migration: VirtualMachineMigration) -> bool:
    """One that has a target does; else the older one. Of two never both."""

    def rank(item: VirtualMachineMigration) -> tuple[bool, str, str]:
        return (item.status.target_host is None, item.metadata.creation_timestamp or "", item.uid)

    return rank(other) < rank(migration)


def _disk_blockers(disk: InstanceDisk, scope: Scope) -> list[Lack]:
    name, found = disk.name, list[Lack]()
    if disk.volume is None:
        return found
    if not migration_disks.local(disk) and disk.cache not in COHERENT:
        said = f"Disk {name} is cached by its host ({disk.cache}): use a class with cache none."
        found.append(Lack("CacheUnsafe", said))
    use = scope.volumes.get(name)
    if use is not None and use.volume.status.moving_to is not None:
        found.append(Lack("VolumeMoves", f"The volume of disk {name} is moved to another pool.", stalled=False))
    if use is not None and scope.vm is not None and use.volume.status.host != scope.vm.status.host:
        found.append(Lack(HANDING_OVER, f"The volume of disk {name} comes from another host.", stalled=False))
    return found


def barred(
    scope: Scope, hosts: Sequence[Host], reports: Mapping[str, HostReport], *, here: Host | None
) -> Mapping[str, str]:
    """Hosts to which the machine cannot move, whatever room they have, and why."""
    asked, found = scope.migration.spec.target_host, dict[str, str]()
    for host in hosts:
        report = reports.get(host.name)
        if host.name == (here.name if here is not None else None):
            found[host.name] = "where it is already"
        elif asked is not None and host.name != asked:
            found[host.name] = "not asked for"
        elif report is None or report.status.migration is None:
            found[host.name] = "takes no guests from other hosts (see transfer.migration_port of its agent)"
        elif scope.migration.spec.with_local_disks and not report.status.migration.disks:
            found[host.name] = "takes no disks along: upgrade its agent"
        elif (disk := scope.kept_on.get(host.name)) is not None:
            found[host.name] = f"has not given up yet what it had of the volume of disk {disk}"
        elif (why := _unlike(here, host, _processor(scope))) is not None:
            found[host.name] = why
    return found


def _processor(scope: Scope) -> str | None:
    """The CPU model that the guest was started with, if that is one by its name and not the host's."""
    said = scope.source.status.instance if scope.source is not None else None
    model = said.shape.cpu_model if said is not None and said.shape is not None else None
    return model if model not in (HOST_MODEL, HOST_PASSTHROUGH) else None


def _unlike(here: Host | None, there: Host, processor: str | None) -> str | None:
    """Why a guest that was started here, with that CPU model if with one by its name, cannot go on there."""
    if here is None:
        return "its host is gone"
    one, other = here.status.cpu or CpuInfo(), there.status.cpu or CpuInfo()
    if one.architecture != other.architecture or one.acceleration != other.acceleration:
        return f"runs guests in another way ({other.architecture} {other.acceleration})"
    if one.acceleration == KVM and one.vendor != other.vendor:
        return f"has another maker's processor ({other.vendor}, not {one.vendor})"
    if one.acceleration == KVM and one.model != other.model and (processor is None or processor not in other.models):
        return f"has another processor ({other.model}, not {one.model}): spec.cpu.model of one that both have lets it go there"
    emulators = [(host.status.versions or Versions()).emulator for host in (here, there)]
    before, after = map(_version, emulators)
    if before is not None and after is not None and after < before:
        return f"has an older QEMU ({emulators[1]}, not {emulators[0]})"
    return None


def _version(text: str | None) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in (text or "").split(".")[:2])
    except ValueError:
        return None
