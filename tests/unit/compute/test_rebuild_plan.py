"""What of a lost machine's domain becomes what of the machine that was applied again, and what keeps it waiting."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import IGNORE_ORPHANS, REBUILD, Host
from kumulus.api.host import HostReport
from kumulus.api.machine_import import FOUND, IMPORTED
from kumulus.api.network import NetworkInterface
from kumulus.api.storage import Volume
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.api.volumes import ExistingData
from kumulus.kube.errors import Conflict
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.rebuild_machine import RebuildMachine
from kumulus_controllers.compute.rebuild_plan import Match, match, pool_of
from kumulus_controllers.compute.wakeups import Wakeups
from kumulus_controllers.rebuild import Lost, Rebuild
from kumulus_controllers.storage.volume_plan import MADE_FOR, existing_of, found_as

DOMAIN = "11111111-2222-3333-4444-555555555555"
DATA = "99999999-2222-3333-4444-555555555555"
MAC = "02:00:00:00:00:01"
Raw = dict[str, Any]


def vm(**spec: Any) -> VirtualMachine:
    body: Raw = {
        "resources": {"cpus": 1, "memory": "1Gi"},
        "disks": [{"name": "root", "volumeTemplate": {"source": {"image": "system"}}}],
        "interfaces": [{"name": "eth0", "network": "front"}],
    }
    return VirtualMachine.parse({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": body | spec})


def lost(**status: Any) -> Lost:
    disk = {"target": "sda", "device": "disk", "name": "root", "pool": "local", "data": DATA, "size": "16Mi"}
    cdrom = {"target": "sdb", "device": "cdrom"}
    nic = {
        "macAddress": MAC,
        "kind": "bridge",
        "name": "eth0",
        "network": "shop/front",
        "addresses": ["10.0.0.3"],
        "vni": 5000,
    }
    said = {"state": "running", "disks": [disk, cdrom], "nics": [nic]} | status
    said["machine"] = {"namespace": "shop", "name": "web", "epoch": 3}
    metadata = {"name": DOMAIN, "namespace": "kumulus-host-h1", "uid": "i", "resourceVersion": "1"}
    return Lost("h1", UnmanagedInstance.parse({"metadata": metadata, "spec": {}, "status": said}), 3, rebuilt=True)


def volume(status: Raw | None = None, **annotations: str) -> Volume:
    metadata = {"name": "web-root", "namespace": "shop", "uid": "v", "annotations": annotations}
    return Volume.parse({"metadata": metadata, "spec": {"size": "1Gi"}, "status": status or {}})


def interface(status: Raw | None = None, made_for: str | None = "u", **spec: Any) -> NetworkInterface:
    metadata: Raw = {"name": "web-eth0", "namespace": "shop", "uid": "n"}
    metadata["annotations"] = {MADE_FOR: made_for} if made_for else {}
    body = {"metadata": metadata, "spec": {"network": "front"} | spec, "status": status or {}}
    return NetworkInterface.parse(body)


def test_disks_and_interfaces_are_known_by_their_names() -> None:
    found = match(vm(), lost(), {}, {})
    assert isinstance(found, Match)
    data = found.volumes["root"]
    assert (data.host, data.pool, data.id, data.domain, data.foreign) == ("h1", "local", DATA, DOMAIN, True)
    assert found.nics["eth0"].mac_address == MAC and found.nics["eth0"].addresses == ("10.0.0.3",)
    assert existing_of(volume(**{FOUND: found_as(data)})) == data
    for nonsense in ("../../etc/x/y", f"h1/local/{DATA}", f"h1/local/{DATA}/{DOMAIN}/x"):
        assert existing_of(volume(**{FOUND: nonsense})) is None


@pytest.mark.parametrize(
    ("spec", "status", "reason"),
    [
        ({}, {"state": "crashed"}, "StateUnsupported"),
        ({}, {"state": "departed"}, "StateUnsupported"),
        ({}, {"state": "arriving"}, "StateUnsupported"),
        ({}, {"nics": [{"macAddress": MAC, "name": "eth0", "addresses": ["10.0.0.03"]}]}, "NoteUnreadable"),
        ({"disks": []}, {}, "DiskNotInSpec"),
        ({}, {"disks": []}, "DiskNotFound"),
        ({}, {"disks": [{"target": "sda", "name": "root"}]}, "DiskNotLocated"),
        ({"disks": [{"name": "root", "ephemeral": {"image": "system"}}]}, {}, "DiskNotLocated"),
        ({}, {"nics": []}, "InterfaceNotFound"),
        ({}, {"nics": [{"macAddress": MAC}]}, "InterfaceNotFound"),
        ({"interfaces": [{"name": "eth0", "network": "back"}]}, {}, "InterfaceElsewhere"),
        ({}, {"nics": [{"macAddress": MAC, "name": "eth0", "kind": "openvswitch"}]}, "InterfaceMovesLater"),
    ],
)
def test_what_does_not_fit_waits_and_says_what_to_do(spec: Raw, status: Raw, reason: str) -> None:
    found = match(vm(**spec), lost(**status), {}, {})
    assert isinstance(found, Problem) and found.reason == reason
    assert "not started a second time" in found.message


def test_ephemeral_disks_stay_in_their_pool() -> None:
    machine = vm(disks=[{"name": name, "ephemeral": {"image": "system"}} for name in ("root", "more")])
    disks = [{"target": "sda", "name": "root", "pool": "local"}, {"target": "sdb", "name": "more", "pool": "local"}]
    told = lost(disks=disks)
    found = match(machine, told, {}, {})
    assert isinstance(found, Match) and not found.volumes and pool_of(machine, told) == "local"
    apart = match(machine, lost(disks=[disks[0], disks[1] | {"pool": "other"}]), {}, {})
    assert isinstance(apart, Problem) and apart.reason == "DiskNotLocated"


def test_what_cannot_change_its_network_while_it_runs_is_taken_over_off() -> None:
    plugged = {"macAddress": MAC, "name": "eth0", "kind": "openvswitch"}
    assert isinstance(match(vm(), lost(nics=[plugged], state="shut off"), {}, {}), Match)


def test_a_host_that_noted_nothing_is_helped_by_the_mac_address() -> None:
    told = lost(nics=[{"macAddress": MAC, "kind": "bridge"}])
    found = match(vm(interfaces=[{"name": "eth0", "network": "front", "macAddress": MAC.upper()}]), told, {}, {})
    assert isinstance(found, Match) and found.nics["eth0"].mac_address == MAC


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (volume(), "VolumeExists"),
        (volume({"pool": "local", "host": "h2"}, **{MADE_FOR: "u"}), "VolumeMadeAnew"),
        (volume(**{MADE_FOR: "u"}), None),
        (volume({"pool": "local", "host": "h1"}, **{MADE_FOR: "u", FOUND: "x"}), None),
    ],
)
def test_a_volume_that_has_data_of_its_own_is_not_made_another_one(made: Volume, reason: str | None) -> None:
    found = match(vm(), lost(), {"root": made}, {})
    assert (found.reason if isinstance(found, Problem) else None) == reason


def test_an_interface_that_the_machine_brought_along_too_early_is_made_anew_and_no_other() -> None:
    other = {"macAddress": "02:00:00:00:00:09", "addresses": ["10.0.0.9"], "network": "n"}
    same = {"macAddress": MAC, "addresses": ["10.0.0.3"], "network": "n"}
    for status, renew in ((other, ("web-eth0",)), (same | {"addresses": ["10.0.0.9"]}, ("web-eth0",)), (same, ())):
        found = match(vm(), lost(), {}, {"eth0": interface(status)})
        assert isinstance(found, Match) and found.renew == renew
    named = vm(interfaces=[{"name": "eth0", "interface": "web-eth0"}])
    found = match(named, lost(), {}, {"eth0": interface(other, None)})
    assert isinstance(found, Problem) and found.reason == "InterfaceDiffers" and MAC in found.message
    assert isinstance(match(named, lost(), {}, {"eth0": interface(same, None)}), Match)


def test_numbers_and_addresses_in_use_and_who_has_told() -> None:
    caches = Caches()
    rebuild, front = Rebuild(caches), Key("shop", "front")

    def host(version: str, **annotations: str) -> Raw:
        metadata = {"name": "h1", "uid": "h", "resourceVersion": version, "annotations": annotations}
        return {"metadata": metadata, "spec": {"zone": "z"}}

    def report(version: str, status: Raw) -> Raw:
        metadata = {"name": "h1", "namespace": "kumulus-host-h1", "uid": "r", "resourceVersion": version}
        return {"metadata": metadata, "spec": {}, "status": status}

    caches.store(UnmanagedInstance).apply(
        {"metadata": lost().item.metadata.to_json(), "spec": {}, "status": lost().item.status.to_json()}
    )
    caches.store(Host).apply(host("1"))
    assert rebuild.numbered(vni=5000) and not rebuild.numbered(vni=5001) and not rebuild.numbered(vlan=5000)
    assert not rebuild.addresses(front) and not rebuild.unheard(), "of addresses a host alone is not believed"
    assert [one.rebuilt for one in rebuild.lost(Key("shop", "web"))] == [False]
    caches.store(Host).apply(host("2", **{REBUILD: "true"}))
    assert rebuild.addresses(front) == {"10.0.0.3"} and rebuild.unheard() == ["h1"]
    for version, status, unheard in (
        ("1", {}, ["h1"]),
        ("2", {"orphanCount": 2}, ["h1"]),
        ("3", {"orphanCount": 1}, []),
    ):
        caches.store(HostReport).apply(report(version, status))
        assert rebuild.unheard() == unheard
    assert [one.rebuilt for one in rebuild.lost(Key("shop", "web"))] == [True]
    caches.store(Host).apply(host("3", **{IGNORE_ORPHANS: "true"}))
    assert not rebuild.numbered(vni=5000), "who is not heeded uses up no numbers"


async def test_the_one_domain_that_is_found_may_be_an_older_one_until_all_have_told() -> None:
    class Client:
        """Somebody is always faster."""

        async def patch(self, *_: Any) -> Raw:
            raise Conflict(409, "Conflict", "")

    caches, machine = Caches(), vm()
    services = SimpleNamespace(caches=caches, client=Client())
    by = RebuildMachine(services, SimpleNamespace(store=caches.store(VirtualMachine)))  # type: ignore[arg-type]
    scope = SimpleNamespace(vm=machine, links={}, volumes={})
    told, one = caches.store(UnmanagedInstance), lost().item

    def tell(host: str, name: str, version: int) -> None:
        metadata = one.metadata.to_json() | {"name": name, "namespace": f"kumulus-host-{host}", "uid": name}
        metadata["resourceVersion"] = str(version)
        told.apply({"metadata": metadata, "spec": {}, "status": one.status.to_json()})

    def heard(host: str) -> None:
        metadata = {"name": host, "namespace": f"kumulus-host-{host}", "uid": host, "resourceVersion": "9"}
        caches.store(HostReport).apply({"metadata": metadata, "spec": {}, "status": {"orphanCount": 1}})

    for name in ("h1", "h2"):
        metadata = {"name": name, "uid": name, "resourceVersion": "1", "annotations": {REBUILD: "true"}}
        caches.store(Host).apply({"metadata": metadata, "spec": {"zone": "z"}})

    async def reason() -> str:
        found = await by.bring_about(scope)  # type: ignore[arg-type]
        assert isinstance(found, Problem)
        return found.reason

    tell("h1", DOMAIN, 1)
    heard("h1")
    assert await reason() == "HostsNotHeard"
    tell("h2", DATA, 2)
    assert await reason() == "FoundOnHosts"
    told.remove(Key("kumulus-host-h2", DATA))
    caches.store(Host).remove(Key(None, "h2"))
    assert await reason() == "TakingOver", "it goes on to put it on record"
    for epoch, why in ((2, "TakingOver"), (4, "DomainGone"), (0, "DomainGone")):
        at = {IMPORTED: f"h1/{DOMAIN}" + (f"/{epoch}" if epoch else "")}
        again = machine.model_copy(update={"metadata": machine.metadata.model_copy(update={"annotations": at})})
        scope = SimpleNamespace(vm=again, links={}, volumes={})
        assert await reason() == why, "what a backup had of the domain may be older, and is put on record anew"


def test_machines_are_woken_when_the_last_host_has_told_and_not_with_every_count() -> None:
    caches, woken = Caches(), list[str]()
    Wakeups(caches).attach(lambda key, *, urgent=False: woken.append(key.name))
    versions = count(1)

    def put(model: Any, name: str, namespace: str | None, status: Raw, **annotations: str) -> None:
        metadata: Raw = {"name": name, "uid": name, "resourceVersion": str(next(versions)), "annotations": annotations}
        if namespace is not None:
            metadata["namespace"] = namespace
        spec = {"zone": "z"} if model is Host else {}
        caches.store(model).apply({"metadata": metadata, "spec": spec, "status": status})

    waiting = vm()
    caches.store(VirtualMachine).apply({"metadata": waiting.metadata.to_json(), "spec": waiting.spec.to_json()})
    there = {"machine": {"namespace": "shop", "name": "other", "epoch": 1}}
    for host in ("h1", "h2"):
        put(Host, host, None, {}, **{REBUILD: "true"})
    put(HostReport, "h1", "kumulus-host-h1", {"orphanCount": 0})
    put(HostReport, "h2", "kumulus-host-h2", {"orphanCount": 2})
    put(UnmanagedInstance, DOMAIN, "kumulus-host-h2", there)
    woken.clear()
    put(UnmanagedInstance, DATA, "kumulus-host-h2", there)
    assert woken.count("web") == 1, "the last object may come after the count"
    put(HostReport, "h2", "kumulus-host-h2", {"orphanCount": 1})
    caches.store(UnmanagedInstance).remove(Key("kumulus-host-h2", DATA))
    assert woken.count("web") == 1
    put(Host, "h2", None, {})
    assert woken.count("web") > 1, "what it tells is taken otherwise from now on"


def test_the_data_is_what_the_agent_is_told() -> None:
    data = ExistingData(pool="local", host="h1", id=DATA, foreign=True, domain=DOMAIN)
    assert found_as(data) == f"h1/local/{DATA}/{DOMAIN}"
