"""What becomes of a domain that is not Kumulus' own, and the volumes and the machine that are made of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.base import FINALIZER
from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.instance_type import InstanceType
from kumulus.api.machine_import import (
    IMPORTED,
    IMPORTED_BY,
    ImportedDisk,
    ImportedInterface,
    PlanItem,
    PlanWhen,
    VirtualMachineImport,
)
from kumulus.api.network import Network
from kumulus.api.quantity import from_bytes, to_bytes
from kumulus.api.segments import NetworkDriverName
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.unmanaged import UnmanagedDisk, UnmanagedInstance, UnmanagedNic
from kumulus_controllers.fleet_feed import closed

DISKS_MOST = 16
POWER: Mapping[str, PowerState] = {
    "running": PowerState.RUNNING,
    "paused": PowerState.PAUSED,
    "shut off": PowerState.STOPPED,
}
"""What a machine is wanted to be that is a domain in this state: the same."""

REPLUGGED = frozenset({"bridge", "network"})
"""Kinds of interfaces that are plugged into another bridge while the guest runs."""

DROPPED = frozenset({"graphics", "sound", "watchdog", "redirdev", "smartcard", "parallel", "vsock", "crypto"})
"""Devices that a guest can be without: they are gone from the next start on. All others are in the way."""

BLOCKCOPY = (
    "virsh blockcopy {domain} {target} {directory}/{target}.qcow2 --format qcow2 --transient-job --wait --pivot brings it there"
    " while the domain runs"
)


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    item: VirtualMachineImport
    domain: UnmanagedInstance | None
    """What the agent says of the domain; None: it is gone, or Kumulus' own by now."""
    host: Host | None
    vm: VirtualMachine | None = None
    """The machine of the template's name."""
    order: WorkOrder | None = None
    """The work order of the machine that the import made."""
    instance_type: InstanceType | None = None
    pools: Mapping[str, StoragePool] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)
    """Those of the template that there are, by name."""
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    """Those that there are of the names that volumes get, by name."""
    owner: VirtualMachine | None = None
    """Another machine whose domain it is, or is to be."""

    @property
    def mine(self) -> VirtualMachine | None:
        """The machine, if this import has made it."""
        vm = self.vm
        return vm if vm is not None and is_of(self.item, vm) else None


def is_of(item: VirtualMachineImport, made: VirtualMachine | Volume) -> bool:
    """Whether the import has made it."""
    return made.metadata.annotations.get(IMPORTED_BY) == item.uid


def made_by(item: VirtualMachineImport, volume: Volume) -> bool:
    """Whether the import has made the volume, of a file of its domain and in the namespace of its template; an annotation alone
    is not believed."""
    existing = volume.spec.source.existing if volume.spec.source is not None else None
    of_domain = existing is not None and existing.foreign and existing.domain == item.spec.unmanaged_instance.name
    return is_of(item, volume) and volume.namespace == item.spec.template.namespace and of_domain


def plan(scope: Scope) -> tuple[PlanItem, ...]:
    """What becomes of each thing of the domain, what is in the way first."""
    found = [*_around(scope)]
    if scope.domain is not None:
        found += [*_size(scope), *_board(scope), *_disks(scope, scope.domain), *_nics(scope, scope.domain)]
        found += [*_devices(scope.domain)]
    return tuple(sorted(found, key=lambda item: item.when is not PlanWhen.NEVER))


def blockers(items: tuple[PlanItem, ...]) -> int:
    """How many are in the way."""
    return sum(item.when is PlanWhen.NEVER for item in items)


def _never(item: str, reason: str, message: str) -> PlanItem:
    return PlanItem(item=item, when=PlanWhen.NEVER, reason=reason, message=message)


def _later(item: str, reason: str, message: str, becomes: str | None = None) -> PlanItem:
    return PlanItem(item=item, when=PlanWhen.NEXT_START, reason=reason, message=message, becomes=becomes)


def _now(item: str, becomes: str, message: str | None = None) -> PlanItem:
    return PlanItem(item=item, when=PlanWhen.NOW, becomes=becomes, message=message)


def _around(scope: Scope) -> Iterator[PlanItem]:
    item, template = scope.item, scope.item.spec.template
    ref = item.spec.unmanaged_instance
    if item.namespace != host_namespace(ref.host):
        yield _never(
            "domain",
            "WrongNamespace",
            f"An import of a domain of host {ref.host} is made in the namespace {host_namespace(ref.host)}.",
        )
    if scope.host is None:
        yield _never("host", "HostNotFound", f"There is no Host {ref.host}.")
    elif (why := closed(scope.host)) is not None:
        todo = f"kubectl uncordon {ref.host}" if why == "cordoned" else f"see kumulusctl host show {ref.host}"
        yield _never("host", "HostUnschedulable", f"Host {ref.host} takes no machines, for it is {why}: {todo}.")
    if scope.domain is None:
        yield _never("domain", "DomainNotFound", f"There is no UnmanagedInstance {ref.name} on host {ref.host}.")
    elif (scope.domain.status.state or "") not in POWER:
        yield _never(
            "domain",
            "StateUnsupported",
            f"The domain is {scope.domain.status.state}: it can be imported while it is running, paused or shut off.",
        )
    if scope.owner is not None:
        yield _never(
            "domain",
            "AlreadyImported",
            f"It is VirtualMachine {scope.owner.namespace}/{scope.owner.name}, or becomes that.",
        )
    if scope.vm is not None and scope.mine is None:
        yield _never(
            "domain",
            "VirtualMachineExists",
            f"There is a VirtualMachine {template.namespace}/{template.name} already: take another name.",
        )


def _size(scope: Scope) -> Iterator[PlanItem]:
    assert scope.domain is not None
    template, status = scope.item.spec.template, scope.domain.status
    cpus, memory = status.cpus, status.memory
    if template.instance_type is not None:
        if scope.instance_type is None:
            yield _never("cpus", "InstanceTypeNotFound", f"There is no InstanceType {template.instance_type}.")
            return
        wanted = (scope.instance_type.spec.cpus, to_bytes(scope.instance_type.spec.memory))
    elif template.resources is not None:
        wanted = (template.resources.cpus, to_bytes(template.resources.memory))
    else:
        if cpus is None or memory is None:
            yield _never("cpus", "SizeUnknown", "The host does not say how large it is: set resources in the template.")
            return
        wanted = (cpus, to_bytes(memory))
    for name, has, wants in (("cpus", cpus, wanted[0]), ("memory", memory, wanted[1])):
        shown = str(wants) if name == "cpus" else from_bytes(wants)
        if has is not None and (has if name == "cpus" else to_bytes(has)) == wants:
            yield _now(name, shown)
        else:
            yield _later(name, "SizeChanges", f"It has {has} until it is started anew.", shown)


def _board(scope: Scope) -> Iterator[PlanItem]:
    assert scope.domain is not None
    status = scope.domain.status
    board = status.machine_type or "unknown"
    if "q35" in board:
        yield _now("board", board)
    else:
        yield _later(
            "board",
            "BoardChanges",
            f"It has the board {board}, and gets a q35 one: its devices are in other places then, and names of interfaces within"
            " the guest may change.",
            "q35",
        )
    if status.firmware == "efi":
        yield _later(
            "firmware",
            "FirmwareVariablesLost",
            "It starts by UEFI with variables of its own: what boots has to be found by the default path (EFI/BOOT).",
            "UEFI",
        )
    if status.persistent is False:
        yield _later("domain", "Transient", "It has no definition: it gets one when it is started anew.")


def disks_of(scope: Scope) -> list[tuple[UnmanagedDisk, str, str, ImportedDisk]]:
    """The domain's disks, with name, volume and template of each."""
    assert scope.domain is not None
    template = scope.item.spec.template
    by = {disk.target: disk for disk in template.disks}
    found = []
    for disk in scope.domain.status.disks:
        if disk.device in (None, "disk", "lun"):
            said = by.get(disk.target) or ImportedDisk(target=disk.target)
            name = said.name or disk.target
            found.append((disk, name, said.volume or f"{template.name}-{name}", said))
    return found


def _disks(scope: Scope, domain: UnmanagedInstance) -> Iterator[PlanItem]:
    disks = disks_of(scope)
    targets = {disk.target for disk, *_ in disks}
    for said in scope.item.spec.template.disks:
        if said.target not in targets:
            yield _never(
                f"disk {said.target}", "DiskNotFound", "The domain has no such disk: see its UnmanagedInstance."
            )
    if len(disks) > DISKS_MOST:
        yield _never("disks", "TooManyDisks", f"A machine has {DISKS_MOST} disks at most, the domain {len(disks)}.")
    names = [name for _, name, _, _ in disks]
    for disk, name, volume, _ in disks:
        item = f"disk {disk.target}"
        if (why := _in_the_way(scope, domain, disk)) is not None:
            yield _never(item, *why)
            continue
        there = scope.volumes.get(volume)
        if there is not None and not is_of(scope.item, there):
            yield _never(item, "VolumeExists", f"There is a Volume {volume} already: name another one in the template.")
            continue
        if names.count(name) > 1:
            yield _never(item, "DiskNameTaken", f"Two disks are called {name}: name them in the template.")
            continue
        yield _now(
            item,
            f"Volume {volume} in StoragePool {disk.pool}",
            f"{disk.source} stays where it is until the next start.",
        )
        if disk.bus != "scsi":
            yield _later(
                item,
                "BusChanges",
                f"It is on {disk.bus}, and comes to virtio-scsi: the guest then sees it as /dev/sd?. Have the guest mount by UUID,"
                " and its boot files know virtio-scsi.",
                "virtio-scsi",
            )
    for disk in domain.status.disks:
        if disk.device not in (None, "disk", "lun"):
            yield _later(
                f"disk {disk.target}",
                "DriveDropped",
                f"The {disk.device} is gone then; drives of the machine's own are added in its spec.",
            )


def _in_the_way(scope: Scope, domain: UnmanagedInstance, disk: UnmanagedDisk) -> tuple[str, str] | None:
    """Why a disk cannot become a volume where it is."""
    pool = next((pool for pool in scope.pools.values() if pool.spec.driver.value == "dir"), None)
    directory = (pool.spec.parameters.path if pool is not None else None) or "<directory of a pool>"
    copy = BLOCKCOPY.format(domain=domain.status.name or domain.name, target=disk.target, directory=directory)
    if disk.device == "lun" or disk.kind in ("block", "nvme", "vhostuser", "vdpa"):
        return "PassthroughDisk", f"It is a device of the host ({disk.source}), which no pool has. {copy}."
    if disk.kind != "file":
        return "DiskKindUnsupported", f"Its source is of the kind {disk.kind} ({disk.source}). {copy}."
    if disk.read_only:
        return "ReadOnlyDisk", "The guest can only read it, and volumes are written."
    if disk.layered:
        return "BackingChain", (
            f"It stands on other files: virsh blockpull {domain.status.name or domain.name} {disk.target} --wait makes it stand"
            " alone while the domain runs."
        )
    if disk.format != "qcow2":
        return "FormatUnsupported", f"Its format is {disk.format}, and pools keep qcow2. {copy}."
    if disk.pool is None or disk.data is None or disk.size is None:
        return "NotInAPool", (
            f"{disk.source} is not in the directory of a StoragePool that this host has for itself: make a pool of that directory,"
            f" or {copy}."
        )
    return None


def _nics(scope: Scope, domain: UnmanagedInstance) -> Iterator[PlanItem]:
    has = {nic.mac_address: nic for nic in domain.status.nics}
    said = {wanted.mac_address.lower(): wanted for wanted in scope.item.spec.template.interfaces}
    for mac, wanted in said.items():
        item = f"interface {mac}"
        if mac not in has:
            yield _never(item, "InterfaceNotFound", "The domain has no such interface: see its UnmanagedInstance.")
        elif wanted.network not in scope.networks:
            yield _never(
                item,
                "NetworkNotFound",
                f"There is no Network {wanted.network} in namespace {scope.item.spec.template.namespace}.",
            )
        else:
            yield _nic(item, has[mac], wanted, scope.networks[wanted.network])
    for mac, nic in has.items():
        if mac not in said:
            yield _later(
                f"interface {mac}",
                "InterfaceDropped",
                f"It stays on {nic.source or nic.kind} until then, and is gone from then on: name it in the template to keep it.",
            )


def _nic(item: str, nic: UnmanagedNic, wanted: ImportedInterface, network: Network) -> PlanItem:
    becomes, at = f"Network {wanted.network}", nic.source or nic.kind
    if nic.kind not in REPLUGGED or network.status.driver not in (None, NetworkDriverName.LINUX):
        return _later(
            item,
            "InterfaceMovesLater",
            f"It stays on {at}, where no SecurityGroup applies, until the machine is started anew.",
            becomes,
        )
    has = (
        "" if wanted.addresses else " It gets an address; to keep the one that the guest has, name it in the template."
    )
    message = f"It leaves {at}: what is sent within some milliseconds is lost, and its SecurityGroups apply.{has}"
    return _now(item, becomes, message)


def _devices(domain: UnmanagedInstance) -> Iterator[PlanItem]:
    for device in domain.status.devices:
        kind = device.split(" ")[0]
        if kind in DROPPED:
            yield _later(device, "DeviceDropped", "The machine has none from then on.")
        else:
            yield _never(
                device,
                "PassthroughDevice" if kind == "hostdev" else "DeviceUnsupported",
                "A machine cannot have it, and the guest may need it: take it out of the domain.",
            )


def new_volume(scope: Scope, disk: UnmanagedDisk, name: str, said: ImportedDisk) -> dict[str, Any]:
    """The volume that a disk of the domain becomes."""
    ref = scope.item.spec.unmanaged_instance
    spec: dict[str, Any] = {
        "size": from_bytes(to_bytes(disk.size)) if disk.size is not None else None,
        "reclaimPolicy": said.reclaim_policy.value,
        "source": {
            "existing": {"pool": disk.pool, "host": ref.host, "id": disk.data, "foreign": True, "domain": ref.name}
        },
    }
    if said.volume_class is not None:
        spec["class"] = said.volume_class
    return {
        "metadata": {"name": name, "annotations": {IMPORTED_BY: scope.item.uid}, "finalizers": [FINALIZER]},
        "spec": spec,
    }


def new_machine(scope: Scope) -> dict[str, Any]:
    """The machine that the domain becomes."""
    assert scope.domain is not None
    item, template, status = scope.item, scope.item.spec.template, scope.domain.status
    ref = item.spec.unmanaged_instance
    spec: dict[str, Any] = {
        "powerState": POWER[status.state or ""].value,
        "restartPolicy": template.restart_policy.value,
        "disks": [{"name": name, "volume": volume} for _, name, volume, _ in disks_of(scope)],
        "interfaces": [_interface(number, wanted) for number, wanted in enumerate(template.interfaces)],
    }
    if template.instance_type is not None:
        spec["instanceType"] = template.instance_type
    elif template.resources is not None:
        spec["resources"] = template.resources.to_json()
    else:
        spec["resources"] = {"cpus": status.cpus, "memory": from_bytes(to_bytes(status.memory or 0))}
    if status.firmware == "efi":
        spec["firmware"] = {"type": "UEFI"}
    was = status.machine
    at = f"{ref.host}/{ref.name}" if was is None else f"{ref.host}/{ref.name}/{was.epoch}"
    annotations = {IMPORTED: at, IMPORTED_BY: item.uid}
    labels = {"labels": dict(template.labels)} if template.labels else {}
    return {"metadata": {"name": template.name, "annotations": annotations, **labels}, "spec": spec}


def _interface(number: int, wanted: ImportedInterface) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": wanted.name or f"eth{number}",
        "network": wanted.network,
        "macAddress": wanted.mac_address,
    }
    if wanted.addresses:
        found["addresses"] = list(wanted.addresses)
    if wanted.security_groups:
        found["securityGroups"] = list(wanted.security_groups)
    return found


def adopted(scope: Scope) -> bool:
    """Whether the domain is Kumulus' own, as its host's agent says."""
    order = scope.order
    wanted, facts = (order.spec.instance, order.status.instance) if order is not None else (None, None)
    if order is None or wanted is None or facts is None or order.status.state is WorkState.REFUSED:
        return False
    return facts.epoch == wanted.epoch
