"""What wakes a machine: which changes elsewhere mean a pass over it. Reads caches, writes nothing."""

from __future__ import annotations

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import HOST_NAMESPACE_PREFIX, IGNORE_ORPHANS, REBUILD, Host, Zone, host_namespace
from kumulus.api.host import HostReport, WorkOrder, WorkType
from kumulus.api.image import ClusterImage, Image
from kumulus.api.instance_type import InstanceType
from kumulus.api.machine_snapshot import VirtualMachineRestore
from kumulus.api.network import NetworkInterface
from kumulus.api.routing import PhysicalNetwork
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches, Enqueue
from kumulus_controllers.compute.restores import restores
from kumulus_controllers.compute.scope import AnyImage
from kumulus_controllers.compute.takeover_plan import waits_for_room
from kumulus_controllers.fleet_feed import closed
from kumulus_controllers.network.networks import IN_GROUP, USES_NIC, Networks
from kumulus_controllers.orders import DISKS_IN, NAMESPACE, NOT_BEGUN, work_orders
from kumulus_controllers.rebuild import Rebuild
from kumulus_controllers.storage.image_orders import arrived
from kumulus_controllers.storage.volumes import OF_CLASS, USES_VOLUME, Volumes

WOKEN = 32
"""So many machines that wait for room are woken when some comes, in turn: each looks at every host."""

USES = "uses"
UNPLACED = "unplaced"
HOST = "host"


def _uses(vm: VirtualMachine) -> list[str]:
    """What the machine waits for by name: while it is not placed, and of discs for drives always."""
    if vm.status.host is not None:
        return [_image_key(disk.image, disk.image_namespace) for disk in vm.spec.disks if disk.cdrom and disk.image]
    names = [_image_key(disk.image, disk.image_namespace) for disk in vm.spec.disks if disk.image]
    if vm.spec.instance_type:
        names.append(f"instancetype/{vm.spec.instance_type}")
    return names


def _image_key(name: str, namespace: str | None) -> str:
    """Of an image that is named with its namespace, or without."""
    return f"image/{namespace}/{name}" if namespace is not None else f"image/{name}"


class Wakeups:
    """Listens for the machines' sake."""

    def __init__(self, caches: Caches) -> None:
        self._machines = caches.store(VirtualMachine)
        self._types = caches.store(InstanceType)
        self._images = caches.store(Image)
        self._cluster_images = caches.store(ClusterImage)
        self._hosts = caches.store(Host)
        self._zones = caches.store(Zone)
        self._pools = caches.store(StoragePool)
        volumes = Volumes(caches)
        self._volumes, self._classes = volumes.store, volumes.classes
        self._networks = Networks(caches)
        self._restores = restores(caches)
        self._orphans = caches.store(UnmanagedInstance)
        self._orders = work_orders(caches)
        self._rebuild = Rebuild(caches)
        self._unheard: set[str] = set()
        """Names of the hosts that have not told yet which machines they have."""
        self._turn = 0
        self._machines.add_index(USES, _uses)
        self._machines.add_index(HOST, on_host)
        self._machines.add_index(UNPLACED, lambda vm: ("yes",) if vm.status.host is None or waits_for_room(vm) else ())

    def attach(self, enqueue: Enqueue) -> None:
        """Listen to the stores whose changes mean a pass. Called once."""

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            item = after or before
            if item is not None and not (before and after and _same_but_status(before, after)):
                enqueue(Key(item.namespace, item.name), urgent=item.deleting)
            if before is not None and after is None:
                self._retry_unplaced(enqueue)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.INSTANCE:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name), urgent=True)
            elif order is not None and arrived(before, after):
                self._enqueue_waiting(enqueue, order)
            elif after is not None and after.spec.type is WorkType.POOL and _room(before) != _room(after):
                self._retry_unplaced(enqueue)

        def image_changed(before: AnyImage | None, after: AnyImage | None) -> None:
            item = after or before
            if item is not None and not (
                before and after and before.status.conditions == after.status.conditions and before.spec == after.spec
            ):
                self._enqueue_users(enqueue, _image_key(item.name, None), item.namespace)
                if item.namespace is not None:
                    self._enqueue_users(enqueue, _image_key(item.name, item.namespace), None)

        def type_changed(before: InstanceType | None, after: InstanceType | None) -> None:
            item = after or before
            if item is not None:
                self._enqueue_users(enqueue, f"instancetype/{item.name}", None)

        def host_told(namespace: str) -> None:
            """Machines wait until all hosts have told of theirs, when the control plane is rebuilt from them."""
            name = namespace.removeprefix(HOST_NAMESPACE_PREFIX)
            if self._rebuild.awaits(self._hosts.get(name)):
                self._unheard.add(name)
            elif name in self._unheard:
                self._unheard.discard(name)
                if not self._unheard:
                    self._retry_all(enqueue)

        def host_changed(before: Host | None, after: Host | None) -> None:
            item = after or before
            if item is None:
                return
            if before is not None and after is not None and _word(before) != _word(after):
                self._retry_all(enqueue)
            host_told(host_namespace(item.name))
            if before is None or after is None or _state(before) != _state(after):
                for vm in self._machines.by(HOST, item.name):
                    enqueue(Key(vm.namespace, vm.name))
                for order in self._orders.by(NAMESPACE, host_namespace(item.name)):
                    if order.spec.type is WorkType.INSTANCE:  # of machines that are moving, or have been placed anew
                        enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))
            if after is not None and (before is None or offers(before) != offers(after)):
                self._retry_unplaced(enqueue)

        def pool_changed(before: StoragePool | None, after: StoragePool | None) -> None:
            if before is not None and after is not None and _takes(before) != _takes(after):
                self._retry_unplaced(enqueue)

        def zone_changed(before: Zone | None, after: Zone | None) -> None:
            if before is None:
                self._retry_unplaced(enqueue)

        def volume_changed(before: Volume | None, after: Volume | None) -> None:
            item = after or before
            if item is None or (before and after and _use(before) == _use(after)):
                return
            for vm in self._machines.by(USES_VOLUME, f"{item.namespace}/{item.name}"):
                enqueue(Key(vm.namespace, vm.name), urgent=vm.status.host is not None)

        def class_changed(before: VolumeClass | None, after: VolumeClass | None) -> None:
            if after is None or (before is not None and _manner(before) == _manner(after)):
                return
            for volume in self._volumes.by(OF_CLASS, after.name):
                for vm in self._machines.by(USES_VOLUME, f"{volume.namespace}/{volume.name}"):
                    enqueue(Key(vm.namespace, vm.name))

        def restore_changed(before: VirtualMachineRestore | None, after: VirtualMachineRestore | None) -> None:
            item = after or before
            if item is None or (before and after and before.status.phase is after.status.phase):
                return
            vm = self._machines.get(item.spec.target.vm, item.namespace) if item.spec.target.vm is not None else None
            if vm is not None:
                enqueue(Key(vm.namespace, vm.name))

        def interface_changed(before: NetworkInterface | None, after: NetworkInterface | None) -> None:
            item = after or before
            if item is not None and not (before and after and _link(before) == _link(after)):
                self._enqueue_linked(enqueue, item)

        def group_changed(before: SecurityGroup | None, after: SecurityGroup | None) -> None:
            item = after or before
            if item is None or (before and after and before.uid == after.uid and before.deleting == after.deleting):
                return
            for interface in self._networks.interfaces.by(IN_GROUP, f"{item.namespace}/{item.name}"):
                self._enqueue_linked(enqueue, interface)

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            if after is not None and (before is None or before.status.network != after.status.network):
                self._retry_unplaced(enqueue)
            item = after or before
            if item is not None:
                host_told(item.namespace or "")
            if item is not None and _sends(before) != _sends(after):
                for vm in self._machines.by(HOST, item.name):
                    enqueue(Key(vm.namespace, vm.name))

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            if before is None or after is None or before.spec.uplinks != after.spec.uplinks:
                self._retry_unplaced(enqueue)

        def orphan_changed(before: UnmanagedInstance | None, after: UnmanagedInstance | None) -> None:
            if (item := after or before) is not None:
                host_told(item.namespace or "")
            for machine in {item.status.machine for item in (before, after) if item is not None}:
                if machine is not None:
                    enqueue(Key(machine.namespace, machine.name))

        self._unheard = set(self._rebuild.unheard())
        self._orphans.listen(orphan_changed)
        self._networks.interfaces.listen(interface_changed)
        self._networks.physical.listen(physical_changed)
        self._networks.groups.listen(group_changed)
        self._networks.reports.listen(report_changed)
        self._restores.listen(restore_changed)
        self._volumes.listen(volume_changed)
        self._classes.listen(class_changed)
        self._machines.listen(machine_changed)
        self._orders.listen(order_changed)
        self._images.listen(image_changed)
        self._cluster_images.listen(image_changed)
        self._types.listen(type_changed)
        self._hosts.listen(host_changed)
        self._pools.listen(pool_changed)
        self._zones.listen(zone_changed)

    def _enqueue_waiting(self, enqueue: Enqueue, image: WorkOrder) -> None:
        """An image has come into a pool that hosts share, or will not: machines need not wait longer for it."""
        for order in self._orders.by(DISKS_IN, image.spec.disk.pool.uid if image.spec.disk else ""):
            if order.spec.type is WorkType.INSTANCE and order.status.state in NOT_BEGUN:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))

    def _enqueue_linked(self, enqueue: Enqueue, interface: NetworkInterface) -> None:
        """The machines that name an interface."""
        for vm in self._machines.by(USES_NIC, f"{interface.namespace}/{interface.name}"):
            enqueue(Key(vm.namespace, vm.name), urgent=vm.status.host is not None)

    def _enqueue_users(self, enqueue: Enqueue, what: str, namespace: str | None) -> None:
        for vm in self._machines.by(USES, what):
            if namespace is None or vm.namespace == namespace:
                enqueue(Key(vm.namespace, vm.name))

    def _retry_all(self, enqueue: Enqueue) -> None:
        """Whatever has no place may have one now."""
        for vm in self._machines.by(UNPLACED, "yes"):
            enqueue(Key(vm.namespace, vm.name))

    def _retry_unplaced(self, enqueue: Enqueue) -> None:
        """Room has come: let the next few that wait try. Each that fits makes no room, so the rest need not be asked."""
        waiting = self._machines.by(UNPLACED, "yes")
        for vm in (
            (waiting[self._turn % len(waiting) :] + waiting[: self._turn % len(waiting)])[:WOKEN] if waiting else ()
        ):
            enqueue(Key(vm.namespace, vm.name))
        self._turn += WOKEN


def _same_but_status(before: VirtualMachine, after: VirtualMachine) -> bool:
    """Whether only the status changed, which is our own writing."""
    return (
        before.uid == after.uid
        and before.metadata.generation == after.metadata.generation
        and before.metadata.deletion_timestamp == after.metadata.deletion_timestamp
        and before.metadata.finalizers == after.metadata.finalizers
        and before.metadata.annotations == after.metadata.annotations
        and before.metadata.labels == after.metadata.labels
        and before.status.host == after.status.host
        and before.status.eviction == after.status.eviction
    )


def _use(volume: Volume) -> tuple[object, ...]:
    """What of a volume decides whether its machine can have it."""
    status = volume.status
    where = (status.pool, status.moving_to, status.host)
    return (volume.uid, volume.deleting, where, status.attached_to, status.condition("Ready"))


def _link(interface: NetworkInterface) -> tuple[object, ...]:
    """What of an interface decides whether and how its machine has it."""
    status = interface.status
    said = tuple((c.reason, c.message) for c in status.conditions if c.type == "Ready" and c.status != "True")
    have = (status.network, status.mac_address, status.addresses, status.vm)
    return (interface.uid, interface.deleting, interface.spec, have, said)


def _manner(offered: VolumeClass) -> tuple[object, ...]:
    """What of a class changes how machines have its volumes."""
    return (offered.spec.qos, offered.spec.cache)


def _takes(pool: StoragePool) -> tuple[object, ...]:
    """What of a pool decides which disks it takes."""
    return (pool.spec, dict(pool.metadata.labels))


def _room(order: WorkOrder | None) -> tuple[object, ...]:
    """What of a pool's work order decides whether disks fit into it."""
    if order is None:
        return ()
    return (order.status.state, order.deleting, order.status.pool)


def _sends(report: HostReport | None) -> bool:
    """Whether guests can leave that host, and come to it."""
    return report is not None and report.status.migration is not None


def _state(host: Host) -> tuple[object, ...]:
    """What of a host decides what becomes of the machines on it."""
    return (host.status.phase, host.fenced, host.emptied, host.deleting)


def _word(host: Host) -> tuple[object, ...]:
    """How what a host tells of lost machines is taken."""
    return (host.metadata.annotations.get(IGNORE_ORPHANS), host.metadata.annotations.get(REBUILD))


def on_host(vm: VirtualMachine) -> tuple[str, ...]:
    """The index HOST: the host that a machine has its place on."""
    return (vm.status.host,) if vm.status.host else ()


def offers(host: Host) -> tuple[object, ...]:
    """What of a host decides whether machines fit on it."""
    return (
        closed(host),
        host.status.allocatable,
        host.spec.taints,
        host.spec.allowed_namespaces,
        dict(host.metadata.labels),
        host.metadata.annotations.get(IGNORE_ORPHANS),
        host.metadata.annotations.get(REBUILD),
        host.status.machine_types,
        host.status.features,
        host.status.cpu and host.status.cpu.models,
    )
