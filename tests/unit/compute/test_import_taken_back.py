"""What an import takes back of what it made, whoever ended it: the reconciler is the real one, the API server is not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from kumulus.api.base import FINALIZER
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.machine_import import IMPORTED_BY, UNMANAGE, VirtualMachineImport
from kumulus.api.storage import Volume
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.client import KubeClient
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.vm_import import ImportReconciler
from kumulus_controllers.compute.vm_import_plan import disks_of, new_volume
from tests.unit.compute.test_vm_import import HOST, UID, a_domain, an_import, scope
from tests.unit.fencing.api import Api, Client
from tests.unit.fencing.world import Clock

HOME = "kumulus-host-h1"
VM_UID = "6f3a0c7e-9d1b-4c55-8a2e-0000000000aa"
KINDS = (VirtualMachineImport, UnmanagedInstance, VirtualMachine, Volume, Host)


class Cloud:
    """An import that has begun, with its volume."""

    def __init__(self, *, domain: bool = True, phase: str = "Importing", vm_uid: str | None = VM_UID) -> None:
        async def nothing(_: str) -> None:
            pass

        self.api = Api()
        self._caches = Caches()
        services = Services(cast(KubeClient, Client(self.api, nothing)), self._caches, Clock(), lambda: 1)
        self._reconciler = ImportReconciler(services)
        item = an_import().to_json() | {"status": {"phase": phase} | ({"vmUid": vm_uid} if vm_uid else {})}
        item["metadata"]["finalizers"] = [FINALIZER]
        self.put(VirtualMachineImport, item)
        self.put(Host, HOST.to_json())
        if domain:
            self.put(UnmanagedInstance, a_domain().to_json())
        found = scope()
        ((disk, _, _, said),) = disks_of(found)
        for name, namespace, source in (("vm-vda", "team", True), ("vm-vda", "other", True), ("own", "team", False)):
            made = new_volume(found, disk, name, said)
            if not source:
                made["spec"].pop("source")
            made["metadata"] |= {"namespace": namespace, "uid": f"u-{namespace}-{name}", "generation": 1}
            self.put(Volume, made)

    def put(self, model: Any, raw: dict[str, Any]) -> None:
        meta = raw["metadata"]
        self.api.put((model.KIND.plural, meta.get("namespace"), meta["name"]), raw)

    def volume(self, name: str, namespace: str = "team") -> dict[str, Any]:
        return self.api.objects[(Volume.KIND.plural, namespace, name)]

    def item(self) -> dict[str, Any] | None:
        return self.api.objects.get((VirtualMachineImport.KIND.plural, HOME, "get"))

    def step(self) -> None:
        for model in KINDS:
            store = self._caches.store(model)
            for raw in self.api.listed(model.KIND):
                store.apply(raw)
        asyncio.run(self._reconciler.reconcile(Key(HOME, "get")))

    def only_its_volume_is_taken_back(self) -> None:
        """With its data kept; what others say is of the import stays."""
        mine = self.volume("vm-vda")["metadata"]
        assert mine["deletionTimestamp"] and mine["annotations"][UNMANAGE] == "true"
        for name, namespace in (("vm-vda", "other"), ("own", "team")):
            other = self.volume(name, namespace)["metadata"]
            assert "deletionTimestamp" not in other and other["annotations"] == {IMPORTED_BY: UID}


@pytest.mark.parametrize("domain", [True, False], ids=["runs", "gone"])
def test_a_machine_that_its_tenant_deletes_leaves_no_volume_of_the_domain(domain: bool) -> None:
    cloud = Cloud(domain=domain)
    cloud.step()
    cloud.only_its_volume_is_taken_back()
    item = cloud.item()
    assert item is not None and item["status"]["phase"] == "Failed"
    assert item["status"]["conditions"][0]["reason"] == "MachineGone"


def test_a_domain_that_is_gone_before_its_machine_is_made_leaves_no_volume() -> None:
    cloud = Cloud(domain=False, vm_uid=None)
    cloud.step()
    cloud.only_its_volume_is_taken_back()
    item = cloud.item()
    assert item is not None and item["status"]["phase"] == "Failed"


@pytest.mark.parametrize("phase", ["Importing", "Failed"])
def test_an_import_that_is_deleted_takes_back_its_own_and_goes(phase: str) -> None:
    cloud = Cloud(phase=phase)
    item = cloud.item()
    assert item is not None
    item["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    cloud.step()
    cloud.only_its_volume_is_taken_back()
    assert cloud.item() is None
