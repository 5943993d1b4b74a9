"""What becomes of a domain that is not Kumulus' own: said before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.instance_type import InstanceType
from kumulus.api.machine_import import IMPORTED, IMPORTED_BY, PlanWhen, VirtualMachineImport, domain_of, origin_of
from kumulus.api.network import Network
from kumulus.api.storage import Volume
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus_controllers.compute.vm_import_plan import Scope, blockers, new_machine, new_volume, plan
from kumulus_controllers.compute.vm_import_plan import disks_of as disks_in

DOMAIN = "6f3a0c7e-9d1b-4c55-8a2e-000000000001"
UID = "6f3a0c7e-9d1b-4c55-8a2e-000000000002"
DATA = "6f3a0c7e-9d1b-4c55-8a2e-000000000003"
MAC = "52:54:00:00:00:01"
DISK: dict[str, Any] = {
    "target": "vda",
    "device": "disk",
    "bus": "scsi",
    "kind": "file",
    "source": "/pool/a.qcow2",
    "format": "qcow2",
    "pool": "fast",
    "data": DATA,
    "size": "10Gi",
}
NIC = {"macAddress": MAC, "kind": "bridge", "source": "br0"}


def an_import(namespace: str = "kumulus-host-h1", **template: Any) -> VirtualMachineImport:
    spec = {
        "unmanagedInstance": {"host": "h1", "name": DOMAIN},
        "template": {"namespace": "team", "name": "vm", **template},
    }
    return VirtualMachineImport.parse(
        {"metadata": {"name": "get", "namespace": namespace, "uid": UID, "generation": 1}, "spec": spec}
    )


def a_domain(*disks: dict[str, Any], nics: tuple[dict[str, Any], ...] = (), **status: Any) -> UnmanagedInstance:
    says = {
        "name": "by-hand",
        "state": "running",
        "cpus": 2,
        "memory": "1Gi",
        "machineType": "pc-q35-7.2",
        "firmware": "bios",
    }
    listed = {"disks": list(disks or (DISK,)), "nics": list(nics)}
    metadata = {"name": DOMAIN, "namespace": "kumulus-host-h1", "uid": DOMAIN}
    return UnmanagedInstance.parse({"metadata": metadata, "spec": {}, "status": {**says, **listed, **status}})


def a_host(ready: str = "True", **spec: Any) -> Host:
    condition = {
        "type": "Ready",
        "status": ready,
        "reason": "Ready",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = {"conditions": [condition], "allocatable": {"cpus": 8, "memory": 1 << 34}}
    return Host.parse({"metadata": {"name": "h1", "uid": DATA}, "spec": {"zone": "z", **spec}, "status": status})


HOST = a_host()
FRONT = Network.parse(
    {"metadata": {"name": "front", "namespace": "team", "uid": DATA}, "spec": {"cidrs": ["10.0.0.0/24"]}}
)


OWNER = VirtualMachine.parse(
    {
        "metadata": {"name": "other", "namespace": "team", "uid": DATA},
        "spec": {"resources": {"cpus": 1, "memory": "1Gi"}},
    }
)


def scope(item: VirtualMachineImport | None = None, domain: UnmanagedInstance | None = None, **more: Any) -> Scope:
    return Scope(item or an_import(), domain or a_domain(), **({"host": HOST, "networks": {"front": FRONT}} | more))


def said(of: Scope) -> set[tuple[str, str, str | None]]:
    return {(item.item, item.when.value, item.reason) for item in plan(of) if item.reason is not None}


def test_a_domain_that_fits_is_taken_as_it_is() -> None:
    item = an_import(
        disks=[{"target": "vda", "name": "root", "class": "fast"}],
        interfaces=[{"macAddress": MAC.upper(), "network": "front", "addresses": ["10.0.0.7"]}],
    )
    fits = scope(item, a_domain(nics=(NIC,)))
    assert said(fits) == set() and blockers(plan(fits)) == 0
    assert {one.item: one.becomes for one in plan(fits)} == {
        "cpus": "2",
        "memory": "1Gi",
        "board": "pc-q35-7.2",
        "disk vda": "Volume vm-root in StoragePool fast",
        f"interface {MAC}": "Network front",
    }
    made = VirtualMachine.parse(new_machine(fits) | {"status": {}})
    assert made.metadata.annotations == {IMPORTED: f"h1/{DOMAIN}", IMPORTED_BY: UID}
    assert (domain_of(made), made.spec.power_state) == (DOMAIN, PowerState.RUNNING)
    assert [(disk.name, disk.volume) for disk in made.spec.disks] == [("root", "vm-root")]
    ((disk, _, name, how),) = disks_in(fits)
    volume = Volume.parse(new_volume(fits, disk, name, how))
    assert volume.spec.source is not None and volume.spec.source.existing is not None
    existing = volume.spec.source.existing
    assert (existing.pool, existing.host, existing.id, existing.foreign, existing.domain) == (
        "fast",
        "h1",
        DATA,
        True,
        DOMAIN,
    )
    assert (volume.spec.size, volume.spec.reclaim_policy, volume.spec.volume_class) == ("10Gi", "Retain", "fast")


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        ({"format": "raw"}, "FormatUnsupported"),
        ({"layered": True}, "BackingChain"),
        ({"pool": None, "data": None}, "NotInAPool"),
        ({"kind": "network", "source": "rbd:p/i"}, "DiskKindUnsupported"),
        ({"kind": "block", "source": "/dev/sdb"}, "PassthroughDisk"),
        ({"device": "lun", "kind": "block"}, "PassthroughDisk"),
        ({"readOnly": True}, "ReadOnlyDisk"),
    ],
)
def test_a_disk_that_cannot_be_a_volume_is_in_the_way(disk: dict[str, Any], reason: str) -> None:
    of = scope(domain=a_domain(DISK | disk))
    assert said(of) == {("disk vda", "Never", reason)} and blockers(plan(of)) == 1
    assert plan(of)[0].when is PlanWhen.NEVER, "what is in the way comes first"


@pytest.mark.parametrize(
    ("of", "item", "when", "reason"),
    [
        (scope(domain=a_domain(machineType="pc-i440fx-7.2")), "board", "NextStart", "BoardChanges"),
        (scope(domain=a_domain(firmware="efi")), "firmware", "NextStart", "FirmwareVariablesLost"),
        (scope(domain=a_domain(persistent=False)), "domain", "NextStart", "Transient"),
        (scope(domain=a_domain(DISK | {"bus": "virtio"})), "disk vda", "NextStart", "BusChanges"),
        (scope(domain=a_domain(DISK, {"target": "sda", "device": "cdrom"})), "disk sda", "NextStart", "DriveDropped"),
        (scope(domain=a_domain(nics=(NIC,))), f"interface {MAC}", "NextStart", "InterfaceDropped"),
        (scope(domain=a_domain(devices=["graphics vnc"])), "graphics vnc", "NextStart", "DeviceDropped"),
        (scope(domain=a_domain(devices=["hostdev pci"])), "hostdev pci", "Never", "PassthroughDevice"),
        (scope(domain=a_domain(devices=["filesystem mount"])), "filesystem mount", "Never", "DeviceUnsupported"),
        (scope(domain=a_domain(state="pmsuspended")), "domain", "Never", "StateUnsupported"),
        (scope(an_import("elsewhere")), "domain", "Never", "WrongNamespace"),
        (scope(an_import(instanceType="huge")), "cpus", "Never", "InstanceTypeNotFound"),
        (scope(an_import(resources={"cpus": 4, "memory": "1Gi"})), "cpus", "NextStart", "SizeChanges"),
        (scope(an_import(disks=[{"target": "vdz"}])), "disk vdz", "Never", "DiskNotFound"),
        (
            scope(an_import(interfaces=[{"macAddress": MAC, "network": "front"}])),
            f"interface {MAC}",
            "Never",
            "InterfaceNotFound",
        ),
        (
            scope(an_import(interfaces=[{"macAddress": MAC, "network": "back"}]), a_domain(nics=(NIC,))),
            f"interface {MAC}",
            "Never",
            "NetworkNotFound",
        ),
        (
            scope(
                an_import(interfaces=[{"macAddress": MAC, "network": "front"}]),
                a_domain(nics=(NIC | {"kind": "direct"},)),
            ),
            f"interface {MAC}",
            "NextStart",
            "InterfaceMovesLater",
        ),
        (scope(owner=OWNER), "domain", "Never", "AlreadyImported"),
        (scope(host=None), "host", "Never", "HostNotFound"),
        (scope(host=a_host(unschedulable=True)), "host", "Never", "HostUnschedulable"),
        (scope(host=a_host("False")), "host", "Never", "HostUnschedulable"),
        (scope(host=a_host(maintenance={})), "host", "Never", "HostUnschedulable"),
        (
            scope(
                domain=a_domain(DISK, DISK | {"target": "vdb"}),
                item=an_import(disks=[{"target": "vda", "name": "root"}, {"target": "vdb", "name": "root"}]),
            ),
            "disk vda",
            "Never",
            "DiskNameTaken",
        ),
    ],
)
def test_what_changes_and_what_is_in_the_way_is_said(of: Scope, item: str, when: str, reason: str) -> None:
    assert (item, when, reason) in said(of)


def test_names_that_are_taken_are_in_the_way_unless_the_import_took_them() -> None:
    metadata = {"namespace": "team", "uid": DATA}
    for mine in (False, True):
        marked = {"annotations": {IMPORTED_BY: UID}} if mine else {}
        vm = VirtualMachine.parse(
            {"metadata": metadata | {"name": "vm"} | marked, "spec": {"resources": {"cpus": 1, "memory": "1Gi"}}}
        )
        volume = Volume.parse({"metadata": metadata | {"name": "vm-vda"} | marked, "spec": {"size": "1Gi"}})
        found = said(scope(vm=vm, volumes={"vm-vda": volume}))
        assert found == (
            set() if mine else {("domain", "Never", "VirtualMachineExists"), ("disk vda", "Never", "VolumeExists")}
        )


def test_another_size_and_what_is_no_origin() -> None:
    kind = InstanceType.parse({"metadata": {"name": "big", "uid": DATA}, "spec": {"cpus": 4, "memory": "1Gi"}})
    of = scope(an_import(instanceType="big"), instance_type=kind)
    assert said(of) == {("cpus", "NextStart", "SizeChanges")}
    assert new_machine(of)["spec"]["instanceType"] == "big"
    vm = VirtualMachine.parse(
        {
            "metadata": {"name": "vm", "namespace": "team", "uid": UID, "annotations": {IMPORTED: "h1/../etc"}},
            "spec": {"resources": {"cpus": 1, "memory": "1Gi"}},
        }
    )
    assert origin_of(vm) is None and domain_of(vm) == UID
