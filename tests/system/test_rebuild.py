"""etcd is lost: an empty one, the same hosts with their guests running, the same manifests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from kumulus.api.fabric import REBUILD, Host
from kumulus.kube.builtin import NAMESPACE
from kumulus_lab import deadline
from kumulus_lab.lab import Lab, Wanted
from tests.conftest import new_lab
from tests.system.world import World

pytestmark = [pytest.mark.libvirt, pytest.mark.wide]

TENANT = "shop"
PING = "#kumulus-run: ping -c 1 -W 1 {} >/dev/null 2>&1 && echo alive $(cut -d. -f1 /proc/uptime)"


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """A lab that this test may break."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=2))
        made.serve_image("tiny")
        yield made
    finally:
        made.down()


def manifests(world: World) -> None:
    """What a tenant keeps in version control."""
    world.image("tiny", "tiny.qcow2")
    network = {"apiVersion": "network.kumulus.io/v1alpha1", "kind": "Network", "metadata": {"name": "front"}}
    world.apply({**network, "spec": {"cidrs": ["10.77.0.0/24"]}})
    volume = {"apiVersion": "storage.kumulus.io/v1alpha1", "kind": "Volume", "metadata": {"name": "data"}}
    world.apply({**volume, "spec": {"size": "16Mi"}})
    root: dict[str, Any] = {"name": "root", "volumeTemplate": {"source": {"image": "tiny"}}}
    first, second = world.lab.hosts
    nic = [{"name": "eth0", "network": "front"}]
    disks = [root, {"name": "data", "volume": "data"}]
    world.machine("web", image=None, disks=disks, interfaces=nic, placement=world.only_on(first))
    web = world.wait("vm", "web", lambda vm: vm["status"].get("addresses"), "an address")["status"]["addresses"][0]
    world.machine("near", PING.format(web), image=None, disks=[root], interfaces=nic, placement=world.only_on(second))
    world.machine("off", image=None, disks=[root], placement=world.only_on(first), powerState="Running")


def lose_everything(lab: Lab) -> None:
    """The control plane ends, and what it kept is gone. Hosts are left alone, but for their agents, which join anew."""
    for host in lab.hosts:
        host.daemon("agent").stop(grace=10)
    lab.services.controllers.stop(grace=10)
    lab.cluster.stop()
    shutil.rmtree(lab.cluster.data)
    lab.cluster.start()
    lab.services.install()
    lab.services.offer_networks()
    lab.services.start_controllers()


def known(world: World, name: str) -> dict[str, Any]:
    """What must not change of a machine."""
    vm = world.phase(name, "Running", seconds=90)
    host = world.host_of(name)
    nics = host.exec(["virsh", "-q", "domiflist", _domain(vm)]).stdout.split()
    return {
        "host": host.name,
        "domain": _domain(vm),
        "qemu": _qemu(world, name),
        "started": vm["status"]["startedAt"],
        "addresses": vm["status"].get("addresses"),
        "macs": [word for word in nics if word.count(":") == 5],
        "epoch": vm["status"]["epoch"],
    }


def _domain(vm: dict[str, Any]) -> str:
    imported = vm["metadata"].get("annotations", {}).get("kumulus.io/imported", "")
    return imported.split("/")[1] if imported else str(vm["metadata"]["uid"])


def _qemu(world: World, name: str) -> list[str]:
    """The processes of the machine's guest, with when each began."""
    vm = world.find("vm", name)
    assert vm is not None
    listed = world.host_of(name).exec(["ps", "-eo", "pid,lstart,args"]).stdout.splitlines()
    return [line.split(" /")[0] for line in listed if _domain(vm) in line and "qemu" in line]


def files(world: World, what: str) -> set[int]:
    """The inodes of all that is in that directory of the pool, of both hosts."""
    pools = (host.state_directory / "pools" / "local" for host in world.lab.hosts)
    return {file.stat().st_ino for pool in pools for file in pool.glob(f"{what}/**/*.qcow2")}


def test_running_guests_are_found_and_taken_over_without_a_restart(own_lab: Lab) -> None:
    world = World(own_lab, TENANT)
    world.api.create(NAMESPACE, {"metadata": {"name": TENANT}})
    manifests(world)
    world.console("near", "alive", seconds=90)
    world.phase("off", "Running")
    world.patch("vm", "off", {"spec": {"powerState": "Stopped"}})
    world.phase("off", "Stopped")
    names = ("web", "near")
    before = {name: known(world, name) for name in names}
    volumes, own, images = (files(world, what) for what in ("volumes", "disks", "images"))
    consoles = {name: world.console_file(name) for name in names}

    lose_everything(own_lab)
    for host in own_lab.hosts:
        (host.state_directory / "credentials" / "identity.json").unlink()
        own_lab.services.join(host)
        world.api.patch(Host.KIND, host.name, {"metadata": {"annotations": {REBUILD: "true"}}})
    world.api.create(NAMESPACE, {"metadata": {"name": TENANT}})
    for host in own_lab.hosts:
        own_lab.services.start_agent(host)
    own_lab.services.wait_for_hosts([host.name for host in own_lab.hosts])
    manifests(world)
    for name in names:
        was, now = before[name], known(world, name)
        assert now == was | {"epoch": was["epoch"] + 1}
    world.phase("off", "Running")
    said = consoles["near"].stat().st_size
    deadline.until(
        lambda: "alive" in consoles["near"].read_text(errors="replace")[said:], "packets between guests", seconds=60
    )
    assert (files(world, "volumes"), files(world, "disks")) == (volumes, own), "no disk was made anew"
    assert files(world, "images") >= images, "they stand on the images that they stood on"
    assert len(files(world, "images") - images) <= 1, "an image that is applied is fetched once, to be verified"
    # They are machines like any other.
    world.patch("vm", "web", {"spec": {"powerState": "Stopped"}})
    world.phase("web", "Stopped")
    world.patch("vm", "web", {"spec": {"powerState": "Running"}})
    again = known(world, "web")
    assert (again["addresses"], again["macs"]) == (before["web"]["addresses"], before["web"]["macs"])
    deadline.until(
        lambda: "boot 2 of this disk" in consoles["web"].read_text(errors="replace"), "the disk that it had", seconds=60
    )
