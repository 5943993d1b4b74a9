"""What happens to guests and to work under way when a part of Kumulus, or a host, goes away and comes back."""

from __future__ import annotations

import signal

import pytest

from kumulus_lab import deadline
from tests.system.world import World

pytestmark = pytest.mark.libvirt


def _running(world: World, name: str) -> dict[str, str]:
    world.machine(name)
    vm = world.phase(name, "Running")
    world.console(name, "kumulus-guest: ready")
    return {"uid": vm["metadata"]["uid"], "started": vm["status"]["startedAt"]}


def _untouched(world: World, name: str, before: dict[str, str]) -> None:
    ticks = world.console_file(name).read_text().count("kumulus-guest: tick")
    said = world.console(name, f"kumulus-guest: tick {ticks + 2}")
    assert said.count("kumulus-guest: hello") == 1, "the guest was started again"
    assert world.phase(name, "Running")["status"]["startedAt"] == before["started"]


def test_agent_killed_and_back(world: World) -> None:
    """The guest runs on; the agent finds it and goes on working with it."""
    before = _running(world, "vm")
    host = world.host_of("vm")
    host.daemon("agent").kill()
    world.lab.services.start_agent(host)
    _untouched(world, "vm", before)
    world.patch("vm", "vm", {"spec": {"powerState": "Stopped"}})
    world.phase("vm", "Stopped")


def test_guest_that_ends_while_the_agent_is_away(world: World) -> None:
    """What happened while nobody watched is noticed and handled by policy."""
    world.machine("job", "#kumulus-exit-after: 3", restartPolicy="OnFailure")
    world.phase("job", "Running")
    host = world.host_of("job")
    host.daemon("agent").kill()
    world.console("job", "exiting as asked")
    world.lab.services.start_agent(host)
    world.condition("vm", "job", "GuestShutDown")


def test_libvirtd_killed_and_back(world: World) -> None:
    """The guest runs on and the agent reconnects by itself."""
    before = _running(world, "vm")
    host = world.host_of("vm")
    host.daemon("libvirtd").kill()
    host.start_libvirt()
    _untouched(world, "vm", before)
    world.patch("vm", "vm", {"spec": {"powerState": "Stopped"}})
    world.phase("vm", "Stopped")


def test_api_server_killed_with_work_under_way(world: World) -> None:
    """Creates, a stop and a delete that were under way all come to their end; running guests are not touched."""
    before = _running(world, "steady")
    _running(world, "stopping")
    gone = _running(world, "going")
    for name in ("new-1", "new-2"):
        world.machine(name)
    world.patch("vm", "stopping", {"spec": {"powerState": "Stopped"}})
    world.lab.cluster.kubectl_run("delete", "vm", "going", "-n", world.namespace, "--wait=false")
    world.lab.cluster.restart_apiserver(by=signal.SIGKILL)
    for name in ("new-1", "new-2"):
        world.phase(name, "Running", seconds=90)
    world.phase("stopping", "Stopped", seconds=90)
    deadline.until(lambda: not world.left_over(gone["uid"]), "the end of what was deleted", seconds=60)
    _untouched(world, "steady", before)


@pytest.mark.wide
def test_controllers_killed_with_work_under_way(world: World) -> None:
    """The next process takes up what the last one left, and starts nothing twice."""
    before = _running(world, "steady")
    for name in ("new-1", "new-2"):
        world.machine(name)
    world.lab.services.controllers.kill()
    world.patch("vm", "steady", {"metadata": {"labels": {"seen": "later"}}})
    world.lab.services.start_controllers()
    for name in ("new-1", "new-2"):
        vm = world.phase(name, "Running", seconds=90)
        said = world.console(name, "kumulus-guest: ready")
        assert said.count("kumulus-guest: hello") == 1
        assert vm["status"]["epoch"] == 1
    _untouched(world, "steady", before)


def test_a_host_that_loses_power_is_unknown_and_its_machine_is_not_started_elsewhere(world: World) -> None:
    """Unknown is not dead. When the host is back the machine runs again, there, and deletes cleanly."""
    running = _running(world, "vm")
    host = world.host_of("vm")
    world.lab.kill_host(host.name)
    try:
        message = world.condition("vm", "vm", "HostUnknown", seconds=90)
        assert host.name in message and "never runs twice" in message
        assert world.phase("vm", "Unknown")["status"]["host"] == host.name
        explained = world.kumulusctl("vm", "explain", "vm").stdout
        assert host.name in explained
    finally:
        world.lab.start_host(host.name)
    world.lab.services.wait_for_hosts([host.name])
    world.phase("vm", "Running", seconds=90)
    world.console("vm", "boot 2 of this disk")
    assert world.host_of("vm").name == host.name
    world.delete("vm", "vm")
    assert not world.left_over(running["uid"])


def test_deleting_while_the_host_is_cut_off_waits_and_says_so(world: World) -> None:
    """A machine on a host that cannot be reached is not forgotten; it goes when the host is heard again."""
    running = _running(world, "vm")
    host = world.host_of("vm")
    host.partition()
    try:
        world.lab.cluster.kubectl_run("delete", "vm", "vm", "-n", world.namespace, "--wait=false")
        message = world.condition("vm", "vm", "HostUnknown", seconds=90)
        assert "force-detach" in message
        assert running["uid"] in host.exec(["virsh", "-q", "list", "--uuid"]).stdout
    finally:
        host.heal()
    deadline.until(lambda: not world.left_over(running["uid"]), "the end of the machine", seconds=90)
    assert world.find("vm", "vm") is None


@pytest.mark.wide
def test_foreign_domains_are_reported_and_left_alone(world: World) -> None:
    """A domain that is not Kumulus' own is counted, and runs on whatever happens."""
    host = world.lab.hosts[0]
    xml = "<domain type='qemu'><name>foreign</name><memory unit='MiB'>32</memory><os><type arch='x86_64'>hvm</type></os></domain>"
    file = host.state_directory / "foreign.xml"
    file.write_text(xml)
    try:
        host.exec(["virsh", "define", "/var/lib/kumulus/foreign.xml"])
        host.exec(["virsh", "start", "foreign"])
        world.wait(
            "host", host.name, lambda item: item["status"].get("unmanaged") == 1, "one foreign domain", seconds=90
        )
        world.machine("vm", placement={"hostSelector": {}})
        world.phase("vm", "Running")
        world.delete("vm", "vm")
        assert "running" in host.exec(["virsh", "domstate", "foreign"]).stdout
    finally:
        host.exec(["virsh", "destroy", "foreign"], check=False)
        host.exec(["virsh", "undefine", "foreign"], check=False)
        file.unlink()
