"""What operators, power cuts and other tools of libvirt do to machines: real hosts, guests and networks."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kumulus.api.fabric import host_namespace
from kumulus_lab import commands, deadline, examples, places
from kumulus_lab.host import LibvirtHost
from tests.system.test_networks import Networks
from tests.system.test_volumes import DATA, MIB, ROOT, attached, volume
from tests.system.world import WORDS, Object, World

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster, pytest.mark.wide]

EXTENSION = places.CHECKOUT / "tests/unit/planning/licences"
MAC, ADDRESS = "52:54:00:12:34:56", "10.0.0.10"
"""Of the domain in examples/operations/import.yaml."""
DOMAIN = """
<domain type='qemu'><name>old-web</name><uuid>{uuid}</uuid><memory unit='MiB'>128</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><mac address='{mac}'/><source bridge='{bridge}'/><model type='virtio'/></interface>
<controller type='scsi' index='0' model='virtio-scsi'/>
<serial type='pty'><log file='{log}' append='on'/></serial></devices></domain>
"""


def _qemu(host: LibvirtHost, domain: str) -> int:
    """The process that runs a domain."""
    return int(host.exec(["cat", f"/run/libvirt/qemu/{domain}.pid"]).stdout)


def test_a_suspended_guest_survives_the_boot_of_its_host(world: World) -> None:
    """Its memory is on the host's disk: after a power cut it stays off, and then goes on where it was, with its network."""
    networks, (first, second) = Networks(world), world.lab.hosts
    networks.network("front")
    networks.machine("near", second, "front", "#kumulus-ping: 10.77.0.11")
    networks.machine("vm", first, "front", addresses=["10.77.0.11"])
    networks.says("near", "reaches 10.77.0.11", seconds=120)
    world.console("vm", "kumulus-guest: tick 2")
    world.patch("vm", "vm", {"spec": {"powerState": "Suspended"}})
    before = world.phase("vm", "Suspended")
    said = world.console_file("vm").read_text()
    ticks, mark = said.count("kumulus-guest: tick"), len(networks.said("near"))
    world.lab.kill_host(first.name)
    try:
        world.wait("host", first.name, lambda host: host["status"].get("phase") == "Unknown", "is silent")
    finally:
        world.lab.start_host(first.name)
    world.lab.services.wait_for_hosts([first.name])
    assert world.phase("vm", "Suspended")["status"]["epoch"] == before["status"]["epoch"]
    assert before["metadata"]["uid"] not in first.exec(["virsh", "-q", "list", "--uuid"]).stdout, "it stays off"
    assert world.console_file("vm").read_text() == said
    world.patch("vm", "vm", {"spec": {"powerState": "Running"}})
    world.phase("vm", "Running")
    went_on = world.console("vm", f"kumulus-guest: tick {ticks + 3}")
    assert went_on.count("kumulus-guest: hello") == 1 and world.host_of("vm").name == first.name
    networks.says("near", "does not reach 10.77.0.11", after=mark)
    networks.says("near", "kumulus-guest: reaches 10.77.0.11", after=mark)


def test_guests_come_back_in_the_order_of_their_priority(world: World) -> None:
    """One after the other when the host says so, and none waits for one whose owner wants it off."""
    host = world.lab.hosts[0]
    wanted = {"late": 10, "middle": 500, "early": 900, "off": 1000}
    for name, priority in wanted.items():
        power = "Stopped" if name == "off" else "Running"
        ha = {"priority": priority}
        world.machine(name, placement=world.only_on(host), highAvailability=ha, powerState=power)
    for name in ("late", "middle", "early"):
        world.console(name, "kumulus-guest: ready", seconds=120)
    settings = host.state_directory / "agent.yaml"
    world.lab.kill_host(host.name)
    try:
        settings.write_text("starts_at_boot: 1\n")
        world.lab.start_host(host.name)
        world.lab.services.wait_for_hosts([host.name])
        for name in ("late", "middle", "early"):
            world.console(name, "boot 2 of this disk", seconds=120)
            world.phase(name, "Running")
        assert world.phase("off", "Stopped")["status"]["host"] == host.name

        def began(name: str) -> int:
            """When its process began, in ticks of the kernel."""
            domain = f"kumulus-{world.phase(name, 'Running')['metadata']['uid']}"
            stat = host.exec(["cat", f"/proc/{_qemu(host, domain)}/stat"]).stdout
            return int(stat.rpartition(")")[2].split()[19])

        assert sorted(("late", "middle", "early"), key=began) == ["early", "middle", "late"]
    finally:
        settings.unlink(missing_ok=True)
        world.lab.start_host(host.name)
        host.daemon("agent").stop()
        world.lab.services.start_agent(host)


def test_what_is_done_to_a_machine_by_hand_is_noticed_and_answered(world: World) -> None:
    """As the operator guide's table says (Changed by hand), within seconds."""
    world.machine("vm")
    uid = world.phase("vm", "Running")["metadata"]["uid"]
    world.console("vm", "kumulus-guest: ready")
    host, domain = world.host_of("vm"), f"kumulus-{uid}"

    def virsh(*words: str) -> str:
        return host.exec(["virsh", "-q", *words]).stdout

    pid = _qemu(host, domain)
    virsh("suspend", domain)
    deadline.until(lambda: "running" in virsh("domstate", domain), "it goes on", seconds=5)
    virsh("undefine", domain)
    assert uid not in virsh("list", "--all", "--persistent", "--uuid")
    deadline.until(lambda: uid in virsh("list", "--all", "--persistent", "--uuid"), "its definition", seconds=5)
    assert _qemu(host, domain) == pid
    virsh("destroy", domain)
    world.wait("vm", "vm", lambda vm: vm["status"].get("restarts") == 1, "one restart", seconds=10)
    world.console("vm", "boot 2 of this disk")
    # Who wants it to stay off when it ends is told that it did.
    world.patch("vm", "vm", {"spec": {"restartPolicy": "Never"}})
    world.console("vm", "kumulus-guest: tick 1")
    world.wait("vm", "vm", lambda vm: vm["status"]["phase"] == "Running", "runs")
    virsh("destroy", domain)
    world.phase("vm", "Stopped", seconds=10)
    assert "restartPolicy" in world.condition("vm", "vm", "ForcedOff", seconds=10)
    virsh("undefine", domain)
    world.patch("vm", "vm", {"spec": {"restartRequest": "again"}})
    world.phase("vm", "Running")
    world.console("vm", "boot 3 of this disk")


def test_one_guest_gets_all_that_can_come_while_it_runs(world: World) -> None:
    """CPUs, memory, a disk and an interface, and gives back what can be given back; it is never restarted."""
    networks = Networks(world)
    networks.network("front")
    volume(world, "data")
    size = {"cpus": 1, "memory": "256Mi", "maxCpus": 2, "maxMemory": "384Mi"}
    world.machine("vm", resources=size, disks=[ROOT], interfaces=[])
    world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: ready")
    grown = {**size, "cpus": 2, "memory": "384Mi"}
    eth0 = {"name": "eth0", "network": "front", "addresses": ["10.77.0.11"]}
    world.patch("vm", "vm", {"spec": {"resources": grown, "disks": [ROOT, DATA], "interfaces": [eth0]}})
    world.console("vm", "kumulus-guest: now cpus 2 memory 2")
    world.console("vm", f"kumulus-guest: disk data came with {64 * MIB}")
    networks.says("vm", "address 10.77.0.11/24")
    attached(world, "data", "vm")
    vm = world.wait("vm", "vm", lambda vm: vm["status"]["resources"] == grown, "the new size")
    assert "RestartRequired" not in {condition["type"] for condition in vm["status"]["conditions"]}
    less = {**grown, "memory": "256Mi"}
    world.patch("vm", "vm", {"spec": {"resources": less, "disks": [ROOT], "interfaces": []}})
    world.console("vm", "kumulus-guest: disk data went")
    networks.says("vm", "interface eth0 went")
    world.wait("vm", "vm", lambda vm: vm["status"]["resources"] == less, "memory given back")
    attached(world, "data", None)
    assert networks.said("vm").count("kumulus-guest: hello") == 1
    world.delete("vm", "vm")
    world.delete("volume", "data")


@dataclass(frozen=True, slots=True)
class ByHand:
    """A domain that somebody defined and started on a host, with a disk in the directory of a pool and a bridge of theirs."""

    host: LibvirtHost
    uuid: str
    disk: Path
    """Seen from outside the host."""

    @property
    def home(self) -> str:
        return host_namespace(self.host.name)

    def virsh(self, *words: str) -> str:
        return self.host.exec(["virsh", "-q", *words]).stdout

    def said(self) -> str:
        return (self.host.state_directory / "old-web.log").read_text(errors="replace")

    def says(self, text: str, seconds: float = 60) -> None:
        deadline.until(lambda: text in self.said(), f"{text!r} of the domain", seconds=seconds, every=0.1)

    def told(self, world: World, holds: Callable[[Object], object]) -> Object:
        """What its host's agent tells of it."""

        def probe() -> Object | None:
            found = world.find("unmanaged", self.uuid, self.home)
            return found if found is not None and holds(found) else None

        return deadline.until(probe, "what is told of the domain", seconds=60, every=0.1)


@pytest.fixture
def by_hand(world: World) -> Iterator[ByHand]:
    host = world.lab.hosts[0]
    inside = Path("/var/lib/kumulus")
    made = ByHand(host, str(uuid.uuid4()), host.state_directory / "pools/local/old-web.qcow2")
    made.disk.parent.mkdir(parents=True, exist_ok=True)
    image = world.lab.image_directory / "tiny.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, made.disk], check=True)
    bridge, file = "old-bridge", host.state_directory / "old-web.xml"
    disk, log = inside / "pools/local/old-web.qcow2", inside / "old-web.log"
    file.write_text(DOMAIN.format(uuid=made.uuid, disk=disk, mac=MAC, bridge=bridge, log=log))
    host.exec(["ip", "link", "add", bridge, "type", "bridge"])
    try:
        host.exec(["ip", "link", "set", bridge, "up"])
        made.virsh("define", str(inside / file.name))
        made.virsh("start", made.uuid)
        yield made
    finally:
        for item in world.api.objects(WORDS["vmimport"], made.home):
            world.api.delete(WORDS["vmimport"], item["metadata"]["name"], made.home)
        for word in ("destroy", "undefine"):
            host.exec(["virsh", word, made.uuid], check=False)
        host.exec(["ip", "link", "del", bridge], check=False)
        for path in (file, host.state_directory / log.name, made.disk):
            path.unlink(missing_ok=True)


def test_a_domain_becomes_a_machine_and_is_given_back_while_it_runs(
    world: World, by_hand: ByHand, tmp_path: Path
) -> None:
    """By examples/operations/import.yaml, adapted in names alone: same process, its disk a volume, its address its own."""
    networks, second = Networks(world), world.lab.hosts[1]
    networks.network("front", cidrs=["10.0.0.0/24"])
    networks.machine("near", second, "front", f"#kumulus-ping: {ADDRESS}")
    by_hand.says("kumulus-guest: tick 1")
    pid = _qemu(by_hand.host, "old-web")
    by_hand.told(world, lambda item: item["status"]["disks"][0].get("pool") == "local")

    text = (examples.OPERATIONS / "import.yaml").read_text()
    for wrong, right in (
        ("6f1c4c2e-0d5f-4d5e-9a3b-2f6f6a1f0c11", by_hand.uuid),
        ("host: h1", f"host: {by_hand.host.name}"),
        ("namespace: default", f"namespace: {world.namespace}"),
    ):
        assert wrong in text
        text = text.replace(wrong, right)
    file = tmp_path / "import.yaml"
    file.write_text(text)
    kubectl = world.lab.cluster.kubectl_run
    kubectl("-n", by_hand.home, "apply", "-f", str(file))

    def phase(wanted: str) -> Object:
        def probe() -> Object | None:
            found = world.find("vmimport", "old-web", by_hand.home)
            return found if found is not None and found["status"].get("phase") == wanted else None

        try:
            return deadline.until(probe, f"an import that is {wanted}", seconds=60, every=0.1)
        except Exception as error:
            raise AssertionError(f"{error}: {world.find('vmimport', 'old-web', by_hand.home)}") from error

    plan = {item["item"]: item["when"] for item in phase("Planned")["status"]["plan"] if item["when"] == "Now"}
    assert {"cpus", "memory", "disk vda", f"interface {MAC}"} <= plan.keys()
    assert world.find("vm", "old-web") is None, "it is only said"
    kubectl(*("-n", by_hand.home, "patch", "vmimport", "old-web", "--type", "merge", "-p", '{"spec":{"dryRun":false}}'))
    phase("Succeeded")
    world.phase("old-web", "Running")
    assert _qemu(by_hand.host, "old-web") == pid
    attached(world, "old-web-root", "old-web")
    nic = world.wait("nic", "old-web-eth0", lambda nic: nic["status"].get("addresses"), "its address")["status"]
    assert (nic["addresses"], nic["macAddress"]) == ([ADDRESS], MAC)
    by_hand.says(f"address {ADDRESS}/24")
    networks.says("near", f"kumulus-guest: reaches {ADDRESS}", seconds=90)
    assert "restart" in world.condition("vm", "old-web", "PendingChanges", type_="RestartRequired").lower()

    shown = world.kumulusctl("vm", "unmanage", "old-web", "--timeout", "50").stdout
    assert "is nobody's" in shown
    assert world.find("vm", "old-web") is None and world.find("volume", "old-web-root") is None
    assert "running" in by_hand.virsh("domstate", by_hand.uuid) and _qemu(by_hand.host, "old-web") == pid
    assert "kumulus.io" not in by_hand.virsh("dumpxml", by_hand.uuid)
    by_hand.told(world, lambda item: item["status"]["state"] == "running")
    said = by_hand.said()
    by_hand.says(f"kumulus-guest: tick {said.count('kumulus-guest: tick') + 2}")
    assert by_hand.said().count("kumulus-guest: hello") == 1 and by_hand.disk.exists()


@pytest.fixture
def extended(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Controllers and `kumulusctl` of an installation that has somebody else's package as well."""
    installer = [places.script("uv"), "pip", "install", "--no-deps", "--python", sys.executable]
    commands.run([*installer, "--target", tmp_path, EXTENSION], seconds=120)
    services = world.lab.services
    services.controllers.stop()
    try:
        with monkeypatch.context() as patched:
            patched.setenv("PYTHONPATH", str(tmp_path))
            services.start_controllers()
            yield world
    finally:
        services.controllers.stop()
        services.start_controllers()


def test_filters_and_scorers_of_somebody_elses_package_have_their_say(extended: World) -> None:
    """Installed as an operator would, found by its entry points, asked by the controllers that run."""
    world, (first, second) = extended, extended.lab.hosts
    sql, price = "licences.example.com/sql", "licences.example.com/price"

    def labelled(host: LibvirtHost, **labels: str | None) -> None:
        world.patch("host", host.name, {"metadata": {"labels": {sql: labels["sql"], price: labels["price"]}}})

    def machine(name: str, licence: str) -> None:
        world.apply(
            {
                "apiVersion": "compute.kumulus.io/v1alpha1",
                "kind": "VirtualMachine",
                "metadata": {"name": name, "labels": {"licence": licence}},
                "spec": {"resources": {"cpus": 1, "memory": "128Mi"}, "disks": [ROOT]},
            }
        )

    try:
        labelled(first, sql="yes", price="9")
        machine("one", "sql")
        world.phase("one", "Running")
        assert world.host_of("one").name == first.name, "the other one has no licence"
        labelled(second, sql="yes", price="3")
        for name in ("two", "three"):  # spreading alone would have one on each
            machine(name, "sql")
            world.phase(name, "Running")
            assert world.host_of(name).name == second.name, "there it costs less"
        machine("none", "oracle")
        said = world.condition("vm", "none", "NoHostFits", type_="Scheduled")
        assert re.search(r"2 without a licence for oracle \(h1, h2\)", said)
        assert "without a licence for oracle" in world.kumulusctl("vm", "explain", "none", "--hosts").stdout
        world.patch("host", first.name, {"metadata": {"labels": {"licences.example.com/oracle": "yes"}}})
        world.phase("none", "Running")
        assert world.host_of("none").name == first.name
    finally:
        for host in (first, second):
            labelled(host, sql=None, price=None)
            world.patch("host", host.name, {"metadata": {"labels": {"licences.example.com/oracle": None}}})
