"""What of a lost machine's domain is what of the machine that was applied again: its disks, its interfaces. Pure.

Nothing is guessed. What does not fit keeps the machine waiting, with what to do; the domain is as it was meanwhile.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kumulus.api.compute import Interface, VirtualMachine, VirtualMachineCondition
from kumulus.api.disks import Disk
from kumulus.api.machine_import import FOUND
from kumulus.api.network import NetworkInterface
from kumulus.api.storage import Volume
from kumulus.api.unmanaged import LEFTOVERS, UnmanagedDisk, UnmanagedInstance, UnmanagedNic
from kumulus.api.volumes import ExistingData
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.vm_import_plan import POWER, REPLUGGED
from kumulus_controllers.network.networks import mac
from kumulus_controllers.rebuild import Lost
from kumulus_controllers.storage.volume_plan import MADE_FOR

READY = VirtualMachineCondition.VOLUMES_READY
NETWORK = VirtualMachineCondition.NETWORK_READY
OFF = "shut off"
EPOCHS = 10**9
"""More placements than this no machine has."""


@dataclass(frozen=True, slots=True)
class Match:
    """What becomes what."""

    volumes: Mapping[str, ExistingData] = field(default_factory=dict)
    """The data of disks, by their names."""
    nics: Mapping[str, UnmanagedNic] = field(default_factory=dict)
    """Interfaces of the domain, by the names that the machine has for them."""
    renew: tuple[str, ...] = ()
    """Names of the NetworkInterfaces that the machine brought along before its domain was known: they are other ones."""


def match(
    vm: VirtualMachine,
    lost: Lost,
    volumes: Mapping[str, Volume],
    interfaces: Mapping[str, NetworkInterface],
) -> Match | Problem:
    """What of the domain is what, or why the machine cannot be that. `volumes` and `interfaces` are those that there are, by
    the names that the machine has for them."""
    status = lost.item.status
    if not 0 < lost.epoch < EPOCHS or not all(_is_address(one) for nic in status.nics for one in nic.addresses):
        return _waits("NoteUnreadable", "has a note which cannot be read: kumulusctl vm import takes it over by hand")
    if status.state in LEFTOVERS:
        return _waits(
            "StateUnsupported",
            f"is {status.state}: its guest was moving to another host, or has, when that was lost. The operator finds out where it"
            " runs (the guide says how), and removes what is left over here",
        )
    if (status.state or "") not in POWER:
        return _waits("StateUnsupported", f"is {status.state}: it is taken over while it is running, paused or off")
    found = _disks(vm, lost, volumes)
    if isinstance(found, Problem):
        return found
    if any(disk.ephemeral is not None for disk in vm.spec.disks) and pool_of(vm, lost) is None:
        return _waits("DiskNotLocated", "has its ephemeral disks in several pools, and an order names one", READY)
    return _interfaces(vm, lost.item, interfaces, Match(found))


def pool_of(vm: VirtualMachine, lost: Lost) -> str | None:
    """Name of the pool that the machine's ephemeral disks are in; None when that is none, or not one."""
    names = {disk.name for disk in vm.spec.disks if disk.ephemeral is not None}
    pools = {disk.pool for disk in lost.item.status.disks if disk.name in names}
    return next(iter(pools)) if len(pools) == 1 else None


def _is_address(text: str) -> bool:
    try:
        return str(ipaddress.ip_address(text)) == text
    except ValueError:
        return False


def _waits(reason: str, why: str, aspect: str = VirtualMachineCondition.SCHEDULED, *, stalled: bool = True) -> Problem:
    return Problem(
        reason,
        f"The machine's objects were lost, and its domain {why}. It goes on as it is meanwhile, and is not started a second time.",
        aspect,
        stalled=stalled,
    )


def _disks(vm: VirtualMachine, lost: Lost, volumes: Mapping[str, Volume]) -> Mapping[str, ExistingData] | Problem:
    has = {disk.name or disk.target: disk for disk in lost.item.status.disks if disk.device in (None, "disk", "lun")}
    wanted = [disk for disk in vm.spec.disks if disk.cdrom is None]
    if unknown := sorted(has.keys() - {disk.name for disk in wanted}):
        return _waits("DiskNotInSpec", f"has the disk {unknown[0]}, which spec.disks does not name: add it", READY)
    found: dict[str, ExistingData] = {}
    for disk in wanted:
        one = has.get(disk.name)
        if one is None:
            return _waits(
                "DiskNotFound", f"has no disk {disk.name}: leave it out of spec.disks until it is taken over", READY
            )
        if disk.ephemeral is not None:
            if one.pool is None or one.data is not None:
                return _not_located(disk)
            continue
        data = _data(vm, disk, one, lost, volumes.get(disk.name))
        if isinstance(data, Problem):
            return data
        found[disk.name] = data
    return found


def _data(
    vm: VirtualMachine, disk: Disk, has: UnmanagedDisk, lost: Lost, volume: Volume | None
) -> ExistingData | Problem:
    if has.pool is None or has.data is None or has.size is None:
        return _not_located(disk)
    data = ExistingData(pool=has.pool, host=lost.host, id=has.data, foreign=True, domain=lost.item.name)
    if volume is None:
        return data
    if disk.volume_template is not None and volume.metadata.annotations.get(MADE_FOR) != vm.uid:
        return _waits(
            "VolumeExists", f"has the disk {disk.name}, and there is a Volume {volume.name}: delete it", READY
        )
    made = volume.status.pool is not None or volume.status.size is not None
    if volume.deleting or (made and volume.metadata.annotations.get(FOUND) is None):
        return _waits(
            "VolumeMadeAnew",
            f"has the data of disk {disk.name}, and Volume {volume.name} was made anew without it: keep what is in it, if"
            " anything is, delete it and apply it again",
            READY,
        )
    return data


def _not_located(disk: Disk) -> Problem:
    kind = "ephemeral disk" if disk.ephemeral is not None else "volume"
    return _waits(
        "DiskNotLocated",
        f"has its disk {disk.name} as no {kind} of a StoragePool that its host has for itself: apply the StoragePool. Disks in"
        " pools that hosts share, and in others than those of the driver dir, are not taken over",
        READY,
        stalled=False,
    )


def _interfaces(
    vm: VirtualMachine, item: UnmanagedInstance, interfaces: Mapping[str, NetworkInterface], found: Match
) -> Match | Problem:
    has, renew, nics = item.status.nics, list[str](), dict[str, UnmanagedNic]()
    for one in vm.spec.interfaces:
        there = interfaces.get(one.name)
        nic = next((nic for nic in has if nic.name == one.name), None) or _by_mac(has, one, there)
        if nic is None:
            return _waits(
                "InterfaceNotFound",
                f"has no interface that is known as {one.name}: set its macAddress, or leave it out of spec.interfaces until it"
                f" is taken over (MAC addresses of the domain: {', '.join(nic.mac_address for nic in has) or 'none'})",
                NETWORK,
            )
        if (why := _elsewhere(vm, one, there, nic)) is not None:
            return why
        if item.status.state != OFF and nic.kind not in REPLUGGED:
            return _waits(
                "InterfaceMovesLater",
                f"has interface {one.name} on {nic.kind or 'something unknown'}, which cannot change its network while the guest"
                " runs, and the network is another one now: shut the guest down from within, and it is taken over as it is off",
                NETWORK,
            )
        nics[one.name] = nic
        if there is None or _is(there, nic):
            continue
        if one.network is None or there.metadata.annotations.get(MADE_FOR) != vm.uid:
            return _waits(
                "InterfaceDiffers",
                f"has the MAC address {nic.mac_address} and the addresses {' '.join(nic.addresses) or '(not known)'} by interface"
                f" {one.name}, and NetworkInterface {there.name} has others: delete it, and apply it with these",
                NETWORK,
            )
        renew.append(there.name)
    return replace(found, nics=nics, renew=tuple(renew))


def _by_mac(has: tuple[UnmanagedNic, ...], one: Interface, there: NetworkInterface | None) -> UnmanagedNic | None:
    wanted = one.mac_address or (mac(there) if there is not None else None)
    return next((nic for nic in has if wanted is not None and nic.mac_address == wanted.lower()), None)


def _elsewhere(vm: VirtualMachine, one: Interface, there: NetworkInterface | None, nic: UnmanagedNic) -> Problem | None:
    if one.network is not None:
        network = f"{one.network_namespace or vm.namespace}/{one.network}"
    elif there is not None:
        network = f"{there.spec.network_namespace or there.namespace}/{there.spec.network}"
    else:
        return None  # one that is named and is not there yet is waited for
    if nic.network in (None, network):
        return None
    return _waits(
        "InterfaceElsewhere",
        f"has interface {one.name} in Network {nic.network}, and the spec says {network}: name that one until it is taken over",
        NETWORK,
    )


def _is(there: NetworkInterface, nic: UnmanagedNic) -> bool:
    """Whether it has what the domain has, or will have it."""
    if mac(there) != nic.mac_address:
        return False
    has = there.status.addresses if there.status.mac_address is not None else there.spec.addresses
    return not nic.addresses or sorted(has) == sorted(nic.addresses)
