"""What owners and operators want of a cloud, and what is not so: the oracle of schedules by chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.base import Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.machine_pool import POOL, VirtualMachinePool
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.quantity import to_bytes
from kumulus.api.remediation import HostRemediation
from kumulus.api.storage import Volume
from kumulus_agents.hypervisor.domain import Domain, DomainState
from kumulus_agents.storage.simulated import SimulatedPool
from tests.fault.books import Run
from tests.fault.memory_api import MemoryApi
from tests.fault.world import World

Raw = dict[str, Any]
ON = ("Running", "Paused")
ENDS: Mapping[type[Resource], tuple[str, ...]] = {
    VirtualMachineMigration: ("Succeeded", "Failed"),
    HostRemediation: ("Succeeded", "Failed", "Refused"),
    VirtualMachineSnapshot: ("Ready", "Failed"),
}
"""Phases that nothing follows."""


@dataclass
class Wanted:
    """What the owner of a machine wants, and how many starts that can explain."""

    power: str = "Running"
    disks: set[str] = field(default_factory=set)
    starts: int = 1
    roams: bool = False
    """All its disks are in a pool that hosts share."""
    eviction: str = "LiveMigrate"
    cpus: int = 1
    memory: str = "256Mi"


@dataclass
class Wish:
    """All that is wanted."""

    machines: dict[str, Wanted] = field(default_factory=dict)
    volumes: set[str] = field(default_factory=set)
    replicas: int | None = None
    """Of the pool of machines; None: there is none."""
    pool_memory: str = "256Mi"


class Verdict:
    """Wish and cloud, at one moment. Everybody is to be idle."""

    def __init__(self, world: World, api: MemoryApi, wish: Wish) -> None:
        self._world, self._api, self._wish = world, api, wish
        self._uids = {item["metadata"]["uid"] for items in api.objects.values() for item in items.values()}
        self._vms = {item["metadata"]["name"]: item for item in self._items(VirtualMachine)}
        self._volumes = {item["metadata"]["name"]: item for item in self._items(Volume)}
        self._domains: dict[str, list[tuple[str, Domain]]] = {}
        for name, site in world.sites.items():
            for uid, domain in site.machine.domains.items():
                self._domains.setdefault(uid, []).append((name, domain))

    def _items(self, model: type[Resource]) -> list[Raw]:
        return list(self._api.objects.get((model.KIND.group, model.KIND.plural), {}).values())

    def wrong(self) -> list[str]:
        """What is not as it has to be."""
        return [*self._machines(), *self._pool(), *self._hosts(), *self._unfinished(), *self._orders(), *self._strays()]

    # Machines

    def _machines(self) -> Iterator[str]:
        wish = self._wish
        alone = {name for name, vm in self._vms.items() if POOL not in vm["metadata"].get("labels", {})}
        if alone != set(wish.machines) or set(self._volumes) != wish.volumes:
            yield f"there are {sorted(self._vms)} and {sorted(self._volumes)}, not {wish}"
        for name, wanted in wish.machines.items():
            if (vm := self._vms.get(name)) is None or self._cannot_have(vm, wanted):
                continue
            for line in self._unlike(vm, wanted):
                yield f"{name}: {line}"

    def _cannot_have(self, vm: Raw, wanted: Wanted) -> bool:
        """Whether it wants what is on another host than it can be on: that is said, and it waits."""
        if wanted.roams:
            return False
        volumes = [self._volumes[disk] for disk in wanted.disks if disk in self._volumes]
        bound = vm["spec"].get("placement", {}).get("hostSelector", {}).get("role")
        there = {item.get("status", {}).get("host") for item in volumes} - {None}
        mine = vm.get("status", {}).get("host") or bound
        return len(there) > 1 or bool(there and mine and there != {mine})

    def _unlike(self, vm: Raw, wanted: Wanted) -> Iterator[str]:
        status, uid = vm.get("status", {}), vm["metadata"]["uid"]
        # What is off when it is to be suspended has no memory to keep.
        if status.get("phase") not in (wanted.power, "Stopped" if wanted.power == "Suspended" else wanted.power):
            yield f"it is {status.get('phase')}, not {wanted.power}; {status.get('conditions')}"
            return
        if status.get("eviction") is not None:
            yield f"it is evicted: {status['eviction']}"
        on = [(host, one) for host, one in self._domains.get(uid, []) if one.state is not DomainState.STOPPED]
        if len(on) != (wanted.power in ON):
            yield f"wanted {wanted.power}, there is {on}"
            return
        volumes = {self._volumes[disk]["metadata"]["uid"] for disk in wanted.disks if disk in self._volumes}
        for host, domain in on:
            yield from self._placed(vm, host, domain)
            if domain.volumes != volumes:
                yield f"it has {domain.volumes}, and not {volumes}"
            size = (wanted.cpus, to_bytes(wanted.memory))
            if (domain.cpus, domain.memory) != size:
                yield f"it has the size {domain.cpus, domain.memory}, and not {size}; {status}"
            for disk in domain.disks:
                if disk.volume is not None and disk.path not in self._files(host, disk.volume):
                    yield f"it writes to {disk.path}, which is not the volume"

    @staticmethod
    def _placed(vm: Raw, host: str, domain: Domain) -> Iterator[str]:
        status = vm.get("status", {})
        if (host, domain.marks.epoch) != (status.get("host"), status.get("epoch")):
            yield f"it is on {host} with epoch {domain.marks.epoch}; {status}"
        if domain.arriving is not None or domain.marks.departed is not None:
            yield f"it is on its way: {domain}"

    def _files(self, host: str, volume: str) -> list[str]:
        """The file of a volume that is the volume: a guest that wrote to another would lose what it wrote."""
        pools = [*self._world.sites[host].pools.values(), *self._world.shared.values()]
        return [
            path
            for pool in pools
            if volume in pool.volumes
            for first, active in [(pool.volumes[volume][1].path, pool.layers[volume].active)]
            for path in [first if active == volume else f"{first.removesuffix('.qcow2')}.{active}.qcow2"]
        ]

    # All else

    def _pool(self) -> Iterator[str]:
        wanted, pools = self._wish.replicas, self._items(VirtualMachinePool)
        mine = [vm for vm in self._vms.values() if POOL in vm["metadata"].get("labels", {})]
        if len(pools) != (wanted is not None) or len(mine) != (wanted or 0):
            yield f"pools {[item['metadata'] for item in pools]} with {len(mine)} machines, and not {wanted}"
        for pool in pools:
            status = pool.get("status", {})
            counts = [status.get(key, 0) for key in ("replicas", "readyReplicas", "updatedReplicas")]
            if counts != [wanted] * 3:
                yield f"the pool counts {counts}, and not {wanted}"
        for vm in mine:
            uid, name = vm["metadata"]["uid"], vm["metadata"]["name"]
            on = [(host, one) for host, one in self._domains.get(uid, []) if one.state is DomainState.RUNNING]
            if vm.get("status", {}).get("phase") != "Running" or len(on) != 1:
                yield f"{name} of the pool is {vm.get('status', {}).get('phase')}, there is {on}"
            for host, domain in on:
                yield from self._placed(vm, host, domain)
                if domain.memory != to_bytes(self._wish.pool_memory):
                    yield f"{name} has {domain.memory}, and not {self._wish.pool_memory}"

    def _hosts(self) -> Iterator[str]:
        for host in self._items(Host):
            status = host.get("status", {})
            facts = {one["type"]: one["status"] for one in status.get("conditions", ())}
            if status.get("phase") != "Ready" or facts.get("Schedulable") != "True" or facts.get("Fenced") == "True":
                yield f"host {host['metadata']['name']} is {status.get('phase')}, {facts}"
            if status.get("maintenance") is not None:
                yield f"host {host['metadata']['name']} is maintained: {status['maintenance']}"

    def _unfinished(self) -> Iterator[str]:
        for items in self._api.objects.values():
            for item in items.values():
                if "deletionTimestamp" in item["metadata"]:
                    meta = item["metadata"]
                    yield f"{item.get('kind')} {meta['name']} is still being deleted: {meta['finalizers']}"
        for model, phases in ENDS.items():
            for item in self._items(model):
                status = item.get("status", {})
                if status.get("phase") not in phases and not self._waits(model, status):
                    yield f"{model.KIND.kind} {item['metadata']['name']} has not ended: {status}"

    @staticmethod
    def _waits(model: type[Resource], status: Raw) -> bool:
        """Whether it says why it cannot be now: a migration that has not begun, a snapshot of a machine that is gone."""
        facts = {one["type"]: one for one in status.get("conditions", ())}
        said = facts.get("Ready", {})
        if model is VirtualMachineMigration:
            stuck = status.get("targetHost") is None
        else:
            stuck = model is VirtualMachineSnapshot and facts.get("Stalled", {}).get("status") == "True"
        return stuck and bool(said.get("reason") and said.get("message"))

    def _orders(self) -> Iterator[str]:
        where = {vm["metadata"]["uid"]: vm.get("status", {}).get("host") for vm in self._vms.values()}
        for order in self._items(WorkOrder):
            spec, meta = order["spec"], order["metadata"]
            owner = spec["for"]["uid"]
            if owner not in self._uids:
                yield f"an order of nobody: {meta['namespace']}/{meta['name']} for {spec['for']}"
            if spec["type"] == "Instance" and meta["namespace"] != host_namespace(where.get(owner) or ""):
                yield f"an order for a machine that is on {where.get(owner)}: {meta['namespace']}/{meta['name']}"

    def _strays(self) -> Iterator[str]:
        """What is on hosts and in pools that is nobody's."""
        for name, site in self._world.sites.items():
            kept = {"domain": site.machine.domains, "port": site.fabric.ports, "segment": site.fabric.segments}
            yield from self._nobodys(name, kept)
            for pool in site.pools.values():
                yield from self._nobodys(name, _contents(pool))
        for pool in self._world.shared.values():
            yield from self._nobodys("a shared pool", _contents(pool))

    def _nobodys(self, where: str, kept: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        for what, items in kept.items():
            for uid in items.keys() - self._uids:
                yield f"a {what} of nobody on {where}: {uid} {items[uid]}"


def _contents(pool: SimulatedPool) -> Mapping[str, Mapping[str, Any]]:
    return {"volume": pool.volumes, "disk": pool.disks, "arriving volume": pool.arriving}


def too_often(world: World, wish: Wish) -> list[str]:
    """Machines that were started more often than there was a reason for. Whoever cut a host's power is one for all."""
    found = []
    names = {name: uid for uid, name in world.names.items() if name.startswith("<VirtualMachine ")}
    for name, wanted in wish.machines.items():
        uid, reasons = names[f"<VirtualMachine {name}>"], wanted.starts + world.cuts
        runs: list[Run] = [run for run in world.books.runs if run.uid == uid and not run.came]
        if len(runs) > reasons:
            found.append(f"{name} was started {len(runs)} times, for {reasons} reasons: {[*map(str, runs)]}")
    return found
