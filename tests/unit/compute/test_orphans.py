"""Whether a machine is started of whose name a host has a domain."""

from __future__ import annotations

from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import IGNORE_ORPHANS, Host
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.compute.orphans import Orphans
from kumulus_controllers.compute.wakeups import offers

VM = VirtualMachine.parse(
    {
        "metadata": {"name": "web", "namespace": "shop", "uid": "u"},
        "spec": {"resources": {"cpus": 1, "memory": "1Gi"}},
    }
)


def host(name: str, version: str, **annotations: str) -> dict[str, Any]:
    metadata = {"name": name, "uid": name, "resourceVersion": version, "annotations": annotations}
    return {"metadata": metadata, "spec": {"zone": "z"}}


def told(by: str) -> dict[str, Any]:
    metadata = {"name": f"domain-of-{by[-1]}", "namespace": f"kumulus-host-{by}", "uid": by, "resourceVersion": "1"}
    return {"metadata": metadata, "spec": {}, "status": {"machine": {"namespace": "shop", "name": "web", "epoch": 1}}}


def test_a_host_whose_word_is_ignored_keeps_no_machine_from_its_start() -> None:
    caches = Caches()
    orphans = Orphans(caches)
    liar, ignored = host("rack7-n1", "1"), host("rack7-n1", "2", **{IGNORE_ORPHANS: "true"})
    caches.store(Host).apply(liar)
    assert orphans.of(VM) is None
    caches.store(UnmanagedInstance).apply(told("rack7-n1"))
    found = orphans.of(VM)
    assert found is not None and found.reason == "FoundOnHost" and "domain-of-1" in found.message
    assert IGNORE_ORPHANS in found.message and "rack7" not in found.message, "tenants learn no names of hosts"
    caches.store(Host).apply(ignored)
    assert orphans.of(VM) is None
    assert offers(Host.parse(liar)) != offers(Host.parse(ignored)), "who waits looks again"
    caches.store(UnmanagedInstance).apply(told("rack7-n2"))
    assert orphans.of(VM) is not None, "of another host's word nothing was said"
