"""Promises to volumes follow what is on record, also in a process that has just begun."""

from __future__ import annotations

from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.storage import StoragePool, Volume
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.fleet_feed import FleetFeed
from kumulus_controllers.planning.fleet import Fleet

GI = 2**30
UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"


def uid(pool: str) -> str:
    return f"00000000-0000-0000-0000-{sum(pool.encode()):012d}"


class Record:
    """What is on record of one volume."""

    def __init__(self) -> None:
        caches, self.fleet = Caches(), Fleet()
        FleetFeed(caches, self.fleet)
        self._volumes, self._version = caches.store(Volume), 0
        for name in ("old", "new"):
            meta = {"name": name, "uid": uid(name), "resourceVersion": "1"}
            spec = {"driver": "dir", "parameters": {"path": f"/{name}"}}
            caches.store(StoragePool).apply({"metadata": meta, "spec": spec})

    def says(self, *, size: str = "1Gi", moving: str | None = None, **status: Any) -> tuple[int, int, int]:
        """After that: bytes promised in the old and in the new pool, and how many volumes are on their way out."""
        self._version += 1
        meta = {"name": "v", "namespace": "ns", "uid": UID, "resourceVersion": str(self._version)}
        condition = {"type": "Moving", "status": moving, "reason": "x", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        full = {"host": "h1", "size": "1Gi", "conditions": [condition] if moving else [], **status}
        self._volumes.apply({"metadata": meta, "spec": {"size": size}, "status": full})
        return self.promised

    @property
    def promised(self) -> tuple[int, int, int]:
        disks = self.fleet.load("h1").disks
        return disks.get(uid("old"), 0), disks.get(uid("new"), 0), self.fleet.leaving("h1", uid("old"), but="x")

    def goes(self) -> tuple[int, int, int]:
        self._volumes.remove(Key("ns", "v"), UID)
        return self.promised


def test_a_volume_that_is_moved_has_room_in_both_pools_until_it_is_there() -> None:
    record = Record()
    assert record.says(pool="old") == (GI, 0, 0)
    assert record.says(pool="old", movingTo="new", moving="True") == (GI, GI, 1)
    assert record.says(pool="old", movingTo="new", moving="False") == (GI, GI, 0), "it does not get on"
    assert record.says(pool="old", movingTo="new", moving="True", size="3Gi") == (3 * GI, 3 * GI, 1), (
        "it will grow there"
    )
    assert record.says(pool="new", size="3Gi") == (0, 3 * GI, 0)
    assert record.goes() == (0, 0, 0)


def test_one_that_was_called_off_or_deleted_leaves_its_room() -> None:
    record = Record()
    record.says(pool="old", movingTo="new", moving="True")
    assert record.says(pool="old") == (GI, 0, 0)
    assert record.says(pool="old", movingTo="gone", moving="True") == (GI, 0, 0)
    record.says(pool="old", movingTo="new", moving="True")
    assert record.goes() == (0, 0, 0)


def test_a_machine_takes_the_larger_of_what_it_has_and_what_it_gets_at_its_next_start() -> None:
    caches, fleet = Caches(), Fleet()
    FleetFeed(caches, fleet)
    machines, orders = caches.store(VirtualMachine), caches.store(WorkOrder)
    about = {"kind": "VirtualMachine", "namespace": "ns", "name": "vm", "uid": UID}

    def promised(version: int, has: int, ordered: int) -> int:
        meta = {"name": "vm", "namespace": "ns", "uid": UID, "resourceVersion": str(version)}
        status = {"host": "h1", "resources": {"cpus": has, "memory": f"{has}Gi"}}
        machines.apply({"metadata": meta, "spec": {"instanceType": "x"}, "status": status})
        instance = {"uid": UID, "epoch": 1, "power": "Running", "restartPolicy": "Always"}
        spec = {
            "type": "Instance",
            "for": about,
            "term": 1,
            "instance": {**instance, "cpus": ordered, "memory": ordered * GI},
        }
        meta = {**meta, "name": f"instance-{UID}", "namespace": host_namespace("h1"), "uid": uid("order")}
        orders.apply({"metadata": meta, "spec": spec})
        assert fleet.load("h1").memory == fleet.load("h1").cpus * GI
        return fleet.load("h1").cpus

    assert promised(1, has=1, ordered=1) == 1
    assert promised(2, has=1, ordered=3) == 3, "it grows"
    assert promised(3, has=3, ordered=3) == 3
    assert promised(4, has=3, ordered=2) == 3, "it shrinks, and has not been restarted"
    assert promised(5, has=2, ordered=2) == 2


def test_a_zone_s_baseline_is_asked_of_its_hosts() -> None:
    caches, fleet = Caches(), Fleet()
    FleetFeed(caches, fleet)
    status = {"cpu": {"models": ["Nehalem"]}, "machineTypes": ["q35"], "features": ["TPM"]}
    for name, zone in (("h1", "z1"), ("h2", "z2")):
        meta = {"name": name, "uid": name, "resourceVersion": "1"}
        caches.store(Host).apply({"metadata": meta, "spec": {"zone": zone}, "status": status})
    zone = {"metadata": {"name": "z1", "uid": "z", "resourceVersion": "2"}, "spec": {"cpuBaseline": "Nehalem"}}
    caches.store(Zone).apply(zone)
    views = {name: fleet.host(name) for name in ("h1", "h2")}
    assert {name: view.baseline for name, view in views.items() if view} == {"h1": "Nehalem", "h2": None}
    view = views["h1"]
    assert view is not None
    assert (view.cpu_models, view.machine_types, view.features) == ({"Nehalem"}, {"q35"}, {"TPM"})


def test_a_machine_that_moves_has_room_on_both_hosts_until_it_is_on_one() -> None:
    caches, fleet = Caches(), Fleet()
    FleetFeed(caches, fleet)
    machines, orders = caches.store(VirtualMachine), caches.store(WorkOrder)
    about = {"kind": "VirtualMachine", "namespace": "ns", "name": "vm", "uid": UID}

    def placed(version: int, host: str) -> None:
        meta = {"name": "vm", "namespace": "ns", "uid": UID, "resourceVersion": str(version)}
        machines.apply({"metadata": meta, "spec": {"instanceType": "x"}, "status": {"host": host}})

    def ordered(version: int, host: str, epoch: int, **moves: Any) -> None:
        instance = {"uid": UID, "epoch": epoch, "power": "Running", "restartPolicy": "Always", "cpus": 2, "memory": GI}
        spec = {"type": "Instance", "for": about, "term": 1, "instance": {**instance, **moves}}
        meta = {"name": f"instance-{UID}", "namespace": host_namespace(host), "uid": uid(host)}
        orders.apply({"metadata": {**meta, "resourceVersion": str(version)}, "spec": spec})

    def room() -> tuple[int, int]:
        return fleet.load("h1").cpus, fleet.load("h2").cpus

    going = {"migration": UID, "host": "h2", "address": "192.0.2.2", "port": 9413}
    placed(1, "h1")
    ordered(1, "h1", 1)
    assert (room(), fleet.where(UID)) == ((2, 0), "h1")
    ordered(1, "h2", 2, incoming={"migration": UID, "host": "h1"})
    ordered(2, "h1", 1, outgoing=going)
    assert (room(), fleet.where(UID)) == ((2, 2), "h1")
    placed(2, "h2")
    ordered(2, "h2", 2)
    assert (room(), fleet.where(UID)) == ((2, 2), "h2")
    orders.remove(Key(host_namespace("h1"), f"instance-{UID}"), uid("h1"))
    assert (room(), fleet.where(UID)) == ((0, 2), "h2")
    orders.remove(Key(host_namespace("h2"), f"instance-{UID}"), uid("h2"))
    machines.remove(Key("ns", "vm"), UID)
    assert room() == (0, 0)


def test_disks_that_go_along_have_room_there_until_they_are_on_record_there() -> None:
    caches, fleet = Caches(), Fleet()
    FleetFeed(caches, fleet)
    volumes, orders, version = caches.store(Volume), caches.store(WorkOrder), 0
    spec = {"driver": "dir", "parameters": {"path": "/old"}}
    pool = {"uid": uid("old"), "name": "old", **spec}
    caches.store(StoragePool).apply(
        {"metadata": {"name": "old", "uid": uid("old"), "resourceVersion": "1"}, "spec": spec}
    )
    own = {"name": "tmp", "pool": pool, "image": {"uid": UID, "name": "i", "format": "raw"}, "size": GI, "bootOrder": 2}
    root = {"name": "root", "pool": pool, "volume": uid("v"), "bootOrder": 1}

    def meta(name: str, namespace: str = "ns") -> dict[str, str]:
        nonlocal version
        version += 1
        return {"name": name, "namespace": namespace, "uid": uid(name), "resourceVersion": str(version)}

    def volume(host: str) -> None:
        status = {"pool": "old", "host": host, "size": "1Gi", "attachedTo": {"vm": "vm", "uid": UID}}
        volumes.apply({"metadata": meta("v"), "spec": {"size": "1Gi"}, "status": status})

    def order(epoch: int, host: str, **more: object) -> None:
        instance = {"uid": UID, "epoch": epoch, "power": "Running", "restartPolicy": "Always", "cpus": 1, "memory": GI}
        about = {"kind": "VirtualMachine", "namespace": "ns", "name": "vm", "uid": UID}
        spec = {
            "type": "Instance",
            "for": about,
            "term": 1,
            "instance": {**instance, "disks": [root, own], **more},
        }
        orders.apply({"metadata": meta(f"instance-{host}", host_namespace(host)), "spec": spec})

    def promised(host: str) -> int:
        return fleet.load(host).disks.get(uid("old"), 0)

    volume("h1")
    order(1, "h1")
    assert (promised("h1"), promised("h2")) == (2 * GI, 0)
    disks = [{"name": "root", "size": GI}, {"name": "tmp", "size": GI}]
    order(2, "h2", incoming={"migration": uid("go"), "host": "h1", "disks": disks})
    assert (promised("h1"), promised("h2")) == (2 * GI, 2 * GI)
    machine = {"metadata": {**meta("vm"), "uid": UID}, "spec": {"instanceType": "x"}, "status": {"host": "h2"}}
    caches.store(VirtualMachine).apply(machine)
    order(2, "h2")
    assert promised("h2") == 2 * GI, "the volume is not on record there yet"
    orders.remove(Key(host_namespace("h1"), "instance-h1"), uid("instance-h1"))
    volume("h2")
    assert (promised("h1"), promised("h2")) == (0, 2 * GI)
