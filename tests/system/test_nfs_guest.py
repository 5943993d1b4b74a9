"""Guests whose disks are on an NFS server: two hosts, a real server, and a counter that each guest flushes."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator

import pytest

from kumulus_lab import deadline
from kumulus_lab.lab import Lab
from tests.system.nfs_server import TOOLS, NfsServer, nfs_server
from tests.system.world import Object, World

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts"),
    pytest.mark.skipif(not TOOLS, reason="needs nfs-ganesha: hack/setup.py --tests"),
]

ROOT = {"name": "root", "ephemeral": {"image": "tiny"}}
LEDGER = {"name": "ledger", "volume": "ledger"}


@pytest.fixture(scope="module")
def nfs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    with nfs_server(tmp_path_factory.mktemp("ganesha"), lab.network) as server:
        yield server


@pytest.fixture(scope="module")
def pool(lab: Lab, nfs: NfsServer) -> Iterator[str]:
    """A pool on the server, ready on all hosts."""
    name = f"nfs-{secrets.token_hex(2)}"
    world = World(lab, "default")
    export = {"nfs": {"server": nfs.address, "path": str(nfs.export)}}
    world.apply(
        {
            "apiVersion": "storage.kumulus.io/v1alpha1",
            "kind": "StoragePool",
            "metadata": {"name": name},
            "spec": {"driver": "nfs", "zone": "z1", "parameters": export},
        }
    )
    try:
        world.wait("pool", name, lambda p: p.get("status", {}).get("readyHosts") == len(lab.hosts), "ready everywhere")
        yield name
    finally:
        world.delete("pool", name)
    for host in lab.hosts:
        assert "kumulus-nfs" not in host.exec(["cat", "/proc/mounts"]).stdout, "a pool that is gone is mounted nowhere"


@pytest.fixture
def counting(world: World, pool: str) -> Iterator[World]:
    """A machine on the first host that counts on a volume of the pool."""
    world.apply(
        {
            "apiVersion": "storage.kumulus.io/v1alpha1",
            "kind": "Volume",
            "metadata": {"name": "ledger"},
            "spec": {"size": "64Mi", "pool": pool},
        }
    )
    machine(world, "one", 0)
    world.console("one", "kumulus-guest: found 0 on disk ledger")
    world.console("one", "kumulus-guest: counted 3")
    yield world


def machine(world: World, name: str, host: int) -> None:
    placement = world.only_on(world.lab.hosts[host])
    world.machine(name, "#kumulus-count-on: ledger", disks=[ROOT, LEDGER], placement=placement, stop={"mode": "Force"})
    world.phase(name, "Running")


def counted(world: World, name: str) -> int:
    """The last value that the guest was told is safe."""
    said = world.console_file(name).read_text(errors="replace")
    return max((int(value) for value in re.findall(r"kumulus-guest: counted (\d+)\r?\n", said)), default=0)


def goes_on(world: World, name: str, *, seconds: float = 60) -> None:
    """Return once the guest has written more than now."""
    before = counted(world, name)
    deadline.until(lambda: counted(world, name) > before + 3, f"more of {name}", seconds=seconds, every=0.2)


def found(world: World, name: str) -> int:
    """What the guest found on the disk when it booted."""
    said = world.console(name, " on disk ledger")
    return int(re.findall(r"kumulus-guest: found (\d+) on disk ledger", said)[-1])


def elsewhere(world: World) -> None:
    """The first machine goes at once; a second one on the other host has all that the first was told is safe."""
    world.patch("vm", "one", {"spec": {"powerState": "Stopped"}})
    world.phase("one", "Stopped")
    safe = counted(world, "one")
    world.delete("vm", "one")
    machine(world, "two", 1)
    assert safe <= found(world, "two") <= safe + 1
    goes_on(world, "two")
    assert world.find("volume", "ledger")["status"]["host"] == world.lab.hosts[1].name  # type: ignore[index]


@pytest.mark.wide
def test_a_volume_outlives_its_machine_and_is_used_from_another_host(counting: World) -> None:
    elsewhere(counting)


def test_a_server_that_stands_still_is_told_of_and_no_write_is_lost(counting: World, nfs: NfsServer, pool: str) -> None:
    """The guest waits, and is neither told of an error nor paused; all goes on when the server does. Then its machine goes,
    and one on the other host has what it wrote."""
    world = counting
    nfs.stall()
    try:
        assert "does not answer" in world.condition("pool", pool, "PoolNotAnswering", seconds=90)
        waits = counted(world, "one")
        vm = world.find("vm", "one")
        assert vm is not None and vm["status"]["phase"] == "Running"
    finally:
        nfs.go_on()
    world.condition("pool", pool, "Ready", seconds=90)
    goes_on(world, "one")
    said = world.console("one", f"kumulus-guest: counted {waits + 1}")
    assert "failed after" not in said and said.count("kumulus-guest: hello") == 1
    elsewhere(world)


def test_a_snapshot_on_nfs_has_what_was_safe(counting: World) -> None:
    """Taken while the guest writes; a machine on the other host is given it back."""
    world = counting
    before = counted(world, "one")
    snapshot: Object = {
        "apiVersion": "storage.kumulus.io/v1alpha1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": "then"},
        "spec": {"volume": "ledger"},
    }
    world.apply(snapshot)
    world.wait("volsnap", "then", lambda s: s.get("status", {}).get("phase") == "Ready", "taken")
    after = counted(world, "one")
    goes_on(world, "one")
    world.apply(
        {
            "apiVersion": "storage.kumulus.io/v1alpha1",
            "kind": "Volume",
            "metadata": {"name": "copy"},
            "spec": {"source": {"snapshot": "then"}},
        }
    )
    world.machine("two", "#kumulus-count-on: ledger", disks=[ROOT, {"name": "ledger", "volume": "copy"}])
    world.phase("two", "Running")
    assert before <= found(world, "two") <= after + 1


@pytest.mark.wide
def test_a_machine_whose_host_dies_runs_elsewhere_with_its_disk_and_address_and_not_there_again(
    world: World, pool: str
) -> None:
    """`kumulus-lab host kill`, a person's word, and the host's return with the domain that it had (F11, F12)."""
    first, second = world.lab.hosts
    for name, spec in (("root", {"source": {"image": "tiny"}}), ("ledger", {"size": "64Mi"})):
        meta = {"name": name}
        version = "storage.kumulus.io/v1alpha1"
        world.apply({"apiVersion": version, "kind": "Volume", "metadata": meta, "spec": {**spec, "pool": pool}})
    network = {"apiVersion": "network.kumulus.io/v1alpha1", "kind": "Network", "metadata": {"name": "front"}}
    world.apply({**network, "spec": {"cidrs": ["10.123.0.0/24"]}})
    world.kumulusctl("host", "cordon", second.name)
    try:
        disks = [{"name": name, "volume": name} for name in ("root", "ledger")]
        world.machine(
            "ha",
            "#kumulus-count-on: ledger",
            disks=disks,
            interfaces=[{"name": "eth0", "network": "front"}],
            highAvailability={"enabled": True},
            stop={"mode": "Force"},
        )
        before = world.phase("ha", "Running")
        assert before["status"]["host"] == first.name
        goes_on(world, "ha")
    finally:
        world.kumulusctl("host", "uncordon", second.name)
    log, uid = world.console_file("ha"), before["metadata"]["uid"]
    world.lab.kill_host(first.name)
    began = time.monotonic()
    safe = max(
        int(value) for value in re.findall(r"kumulus-guest: counted (\d+)\r?\n", log.read_text(errors="replace"))
    )
    try:
        world.wait("host", first.name, lambda h: h["status"].get("phase") == "Unknown", "is silent")
        assert "confirm-dead" in world.kumulusctl("vm", "explain", "ha", check=False).stdout
        world.kumulusctl("host", "confirm-dead", first.name, "--powered-off")

        def elsewhere(vm: Object) -> bool:
            return vm["status"].get("phase") == "Running" and vm["status"]["host"] == second.name

        after = world.wait("vm", "ha", elsewhere, "runs elsewhere")
        print(f"from death to running elsewhere: {time.monotonic() - began:.1f} s")
        assert after["status"]["addresses"] == before["status"]["addresses"]
        assert safe <= found(world, "ha") <= safe + 1, "all that the guest was told is safe, and nothing later"
        goes_on(world, "ha")
    finally:
        world.lab.start_host(first.name)
    world.wait("host", first.name, lambda h: h["status"].get("phase") == "Ready", "takes machines again", seconds=90)
    assert uid not in first.exec(["virsh", "-q", "list", "--all", "--uuid"]).stdout
    assert uid in second.exec(["virsh", "-q", "list", "--uuid"]).stdout
    goes_on(world, "ha")
    assert world.console("ha", "hello").count("kumulus-guest: hello") == 1, "it was started there once"
