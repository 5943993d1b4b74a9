"""Trying placement on a cloud as somebody has read it: where a machine would go, and which moves would make hosts even.

The same resolving, filters, scorers and rules as in the controllers, on caches that are filled once. Nothing is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from kumulus.api.base import Resource
from kumulus.api.compute import Interface, VirtualMachine, VirtualMachineStatus
from kumulus.api.fabric import Host, Zone
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.image import ClusterImage, Image
from kumulus.api.instance_type import InstanceType
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.network import Network, NetworkClass, NetworkInterface
from kumulus.api.placement_group import PlacementGroup
from kumulus.api.preview import Goal, HostVerdict, Plan, Preview, Raw, Unclear
from kumulus.api.routing import PhysicalNetwork
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.api.volumes import ReclaimPolicy
from kumulus.kube.client import KubeClient
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.modules import Registry
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.machines import Machines, reports_of
from kumulus_controllers.compute.migration_asking import asked
from kumulus_controllers.compute.migration_preflight import barred, blocked
from kumulus_controllers.compute.order import template_volume
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import Resolution, placement_request, resolve
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.fleet_feed import FleetFeed, closed, resident
from kumulus_controllers.module import new_fleet
from kumulus_controllers.network.networks import Networks, network_key
from kumulus_controllers.planning.rebalance import Movable, rebalance
from kumulus_controllers.planning.views import Placement, Request
from kumulus_controllers.storage.volume_plan import Wanted


class PlacementDesk:
    """A cloud as it was read."""

    kinds: Sequence[type[Resource]] = (
        Zone,
        Host,
        HostReport,
        StoragePool,
        VolumeClass,
        InstanceType,
        Image,
        ClusterImage,
        Network,
        NetworkClass,
        NetworkInterface,
        PhysicalNetwork,
        PlacementGroup,
        Volume,
        VolumeSnapshot,
        VirtualMachine,
        VirtualMachineMigration,
        WorkOrder,
    )

    def __init__(self) -> None:
        self._faults: dict[str, None] = {}
        self._caches = Caches()
        self._fleet = new_fleet(Registry(), lambda name, fault: self._faults.setdefault(f"{name} ({fault})"))
        FleetFeed(self._caches, self._fleet)
        # What observes reads caches alone; there is nobody to ask, and nothing to write.
        services = Services(cast(KubeClient, None), self._caches, SystemClock(), lambda: 0)
        self._known = Machines(services, self._fleet)
        self._networks = Networks(self._caches)
        self._reports = self._caches.store(HostReport)
        self._migrations = self._caches.store(VirtualMachineMigration)

    def take(self, model: type[Resource], raw: Raw) -> None:
        """There is this object, or there is to be. One that is known already in a later version stays as it is."""
        self._caches.store(model).apply(raw)

    def preview(self, raw: Raw) -> Preview:
        """Where a machine would go, and what is thought of each host. It is there for whatever is asked next."""
        vm = self._taken(raw)
        scope, resolution = self._resolved(vm)
        request = placement_request(scope, resolution)
        self._fleet.put_machine(resident(vm))
        self._fleet.release(vm.uid)
        judged, found = self._fleet.judge(request), self._fleet.place(request)
        verdicts = []
        for verdict in judged.verdicts:
            host, load = self._fleet.host(verdict.host), self._fleet.load(verdict.host)
            assert host is not None
            left = max(host.cpus - load.cpus, 0), max(host.memory - load.memory, 0)
            whys = tuple(map(str, verdict.whys))
            verdicts.append(HostVerdict(verdict.host, whys, verdict.liking, verdict.scores, *left))
        if isinstance(found, Placement):
            self._fleet.assign(vm.uid, found.host, request.demand, found.pool.uid if found.pool is not None else None)
            for volume in resolution.volumes:
                if (pool := found.volumes.get(volume.use.volume.uid)) is not None:
                    assert isinstance(volume.use.wanted, Wanted)
                    self._fleet.keep(volume.use.volume.uid, found.host, pool.uid, volume.use.wanted.size)
        return Preview(
            name=vm.name,
            namespace=vm.namespace or "",
            host=found.host if isinstance(found, Placement) else None,
            refusal=None if isinstance(found, Placement) else str(found),
            verdicts=tuple(verdicts),
            most=judged.most,
            faults=tuple(self._faults),
        )

    def _taken(self, raw: Raw) -> VirtualMachine:
        """The machine, as one that has no place; with the volumes that it would bring along."""
        name, namespace = raw["metadata"]["name"], raw["metadata"].get("namespace")
        existing = self._known.store.get(name, namespace)
        uid = existing.uid if existing is not None else f"new/{namespace}/{name}"
        vm = VirtualMachine.parse({**raw, "metadata": {**raw["metadata"], "uid": uid}})
        kept = existing.status.images if existing is not None else ()
        vm = vm.model_copy(update={"status": VirtualMachineStatus(images=kept)})
        for disk in vm.spec.disks:
            wanted = disk.volume_of(name)
            if disk.volume_template is not None and wanted is not None and existing is None:
                body = template_volume(vm, disk.volume_template, wanted, ReclaimPolicy.DELETE)
                metadata = {**body["metadata"], "namespace": namespace, "uid": f"{uid}/{disk.name}"}
                self._caches.store(Volume).apply({**body, "metadata": metadata})
        return vm

    def _resolved(self, vm: VirtualMachine) -> tuple[Scope, Resolution]:
        """What it gets. Its interfaces need not be there: what counts is which networks they are in."""
        scope = self._known.observe(vm)
        bare = vm.model_copy(update={"spec": vm.spec.model_copy(update={"interfaces": ()})})
        resolution = resolve(replace(scope, vm=bare, links={}))
        if isinstance(resolution, Problem):
            raise Unclear(resolution.message)
        networks = [self._network(vm, item) for item in vm.spec.interfaces]
        drivers = frozenset(network.status.driver for network in networks if network.status.driver is not None)
        ways = {(w.physical, w.driver): w for n in networks if (w := self._networks.way_of(n)) is not None}
        return scope, replace(resolution, drivers=drivers, ways=tuple(ways.values()))

    def _network(self, vm: VirtualMachine, item: Interface) -> Network:
        namespace, name = item.network_namespace or vm.namespace, item.network
        if item.interface is not None:
            interface = self._networks.interfaces.get(item.interface, vm.namespace)
            if interface is None:
                raise Unclear(f"There is no NetworkInterface {item.interface} in the namespace.")
            namespace, name = network_key(interface)
        network = self._networks.store.get(name or "", namespace)
        if network is None:
            raise Unclear(f"There is no Network {name} in namespace {namespace}.")
        return network

    def rebalance(self, goal: Goal) -> Plan:
        """Which moves would make hosts even. The desk is used up: it has them moved."""
        hosts = {
            host.name for host in self._known.hosts if closed(host) is None and goal.zone in (None, host.spec.zone)
        }
        everywhere = list(self._known.hosts)
        reports = reports_of(everywhere, self._reports)
        moves: dict[tuple[str | None, str], list[VirtualMachineMigration]] = defaultdict(list)
        for item in self._migrations:
            moves[item.namespace, item.spec.vm].append(item)
        machines = [
            movable
            for vm in self._known.store
            if vm.status.host in hosts
            and not vm.deleting
            and (movable := self._movable(vm, everywhere, reports, moves.get((vm.namespace, vm.name), ()))) is not None
        ]
        return rebalance(self._fleet, machines, hosts, goal)

    def _movable(
        self,
        vm: VirtualMachine,
        hosts: Sequence[Host],
        reports: Mapping[str, HostReport],
        others: Iterable[VirtualMachineMigration],
    ) -> Movable | None:
        """The machine as one to be moved; None: nothing is promised to it. `others` are the migrations of it."""
        demand = self._fleet.promised(vm.uid)
        if demand is None:
            return None
        fixed = ""
        host = vm.status.host or ""
        preflight = asked(self._known.observe(vm), reports.get(host), others)
        if (lack := blocked(preflight)) is not None:
            fixed = lack.message.rstrip(".")
        try:
            scope, resolution = self._resolved(vm)
            request = placement_request(scope, resolution)
        except Unclear as unclear:
            request = Request(vm.uid, demand, vm.namespace, vm.name, vm.metadata.labels)
            fixed = fixed or str(unclear)
        ways = barred(preflight, hosts, reports, here=self._known.hosts.get(host))
        # That it is there already is no rule that it breaks.
        beside = {name: why for name, why in ways.items() if name != host}
        return Movable(replace(request, demand=demand, barred=beside), fixed)
