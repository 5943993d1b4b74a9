"""The lab itself: hosts that lose power as machines do, networks that are cut, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kumulus_lab import commands, deadline, images, links, network, outside, places
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.cuts import Direction
from kumulus_lab.errors import LabError
from kumulus_lab.host import LibvirtHost
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.processes import owned
from kumulus_lab.state import Hypervisor
from tests.conftest import new_lab

_DOMAIN = """\
<domain type="qemu">
  <name>guest</name>
  <memory unit="MiB">128</memory>
  <os><type machine="q35">hvm</type></os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2"/>
      <source file="/var/lib/kumulus/guest.qcow2"/>
      <target dev="vda" bus="virtio"/>
    </disk>
    <serial type="pty"><log file="/var/lib/kumulus/guest.log" append="on"/></serial>
  </devices>
</domain>
"""


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    """Two libvirt hosts and a control plane; nothing of Kumulus runs."""
    lab = new_lab()
    try:
        lab.up(Wanted(hosts=2, controllers=False, agents=False))
        yield lab
    finally:
        lab.down()


@pytest.fixture
def guest(bare: Lab) -> Iterator[LibvirtHost]:
    """A host on which the tiny guest is defined."""
    host = bare.host("h1")
    host.power_on()
    shutil.copy(images.ensure("tiny").path, host.state_directory / "guest.qcow2")
    (host.state_directory / "guest.xml").write_text(_DOMAIN)
    _virsh(host, "define", "/var/lib/kumulus/guest.xml")
    yield host
    host.power_on()
    _virsh(host, "destroy", "guest", check=False)
    _virsh(host, "undefine", "guest")
    for path in host.state_directory.glob("guest*"):
        path.unlink()


def _virsh(host: LibvirtHost, *words: str, check: bool = True) -> str:
    return host.exec(["virsh", "--quiet", "--connect=qemu:///system", *words], check=check).stdout.strip()


def _console(host: LibvirtHost) -> str:
    log = host.state_directory / "guest.log"
    return log.read_text(errors="replace") if log.exists() else ""


def _says(host: LibvirtHost, words: str) -> None:
    deadline.until(lambda: words in _console(host), f"'{words}' on the console", seconds=90, every=0.2)


def _reaches(host: LibvirtHost, address: str) -> bool:
    """Whether a packet goes there and back: a closed port that says so is an answer."""
    script = (
        "import socket,sys\n"
        "s=socket.socket(); s.settimeout(1)\n"
        "try: s.connect((sys.argv[1], 9))\n"
        "except ConnectionRefusedError: sys.exit(0)\n"
        "except OSError: sys.exit(1)\n"
    )
    return host.exec(["python3", "-c", script, address], check=False).returncode == 0


def _soon_reaches(host: LibvirtHost, address: str) -> None:
    deadline.until(lambda: _reaches(host, address), f"the way from {host.name} to {address}", seconds=20)


@pytest.mark.libvirt
def test_a_guest_boots_obeys_its_button_and_keeps_its_disk(guest: LibvirtHost) -> None:
    _virsh(guest, "start", "guest")
    _says(guest, "kumulus-guest: hello from tiny")
    _says(guest, "boot 1 of this disk")
    _says(guest, "tick 1")
    _virsh(guest, "shutdown", "guest")
    _says(guest, "power button, powering off")
    deadline.until(lambda: _virsh(guest, "domstate", "guest") == "shut off", "the guest's end", seconds=10)
    _virsh(guest, "start", "guest")
    _says(guest, "boot 2 of this disk")


@pytest.mark.libvirt
def test_a_power_cut_ends_everything_and_keeps_what_is_on_disk(bare: Lab, guest: LibvirtHost) -> None:
    _virsh(guest, "start", "guest")
    _says(guest, "kumulus-guest: hello")
    emulators = [process for process in _qemu(guest) if process]
    assert emulators
    before = _uuid(guest)

    bare.kill_host("h1")
    assert _qemu(guest) == []
    assert not guest.running()
    with pytest.raises(LabError, match="host h1 is off; `kumulus-lab host start h1` boots it"):
        guest.exec(["true"])

    bare.start_host("h1", agent=False)
    assert _virsh(guest, "domstate", "guest") == "shut off"
    assert _uuid(guest) == before
    _virsh(guest, "start", "guest")
    _says(guest, "boot 2 of this disk")


def _qemu(host: LibvirtHost) -> list[str]:
    """The emulators whose files are this host's, wherever on the machine they run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            root = (entry / "root/var/lib/kumulus/guest.qcow2").exists() if b"guest=guest" in command else False
        except OSError:
            continue
        if root and command.startswith(b"/usr/bin/qemu-system"):
            found.append(entry.name)
    return found


def _uuid(host: LibvirtHost) -> str:
    capabilities = ElementTree.fromstring(_virsh(host, "capabilities"))
    return capabilities.findtext("host/uuid", "")


@pytest.mark.libvirt
def test_hosts_are_machines_of_their_own(bare: Lab) -> None:
    first, second = bare.hosts
    assert _uuid(first) != _uuid(second)
    assert first.exec(["hostname"]).stdout.strip() == "h1"
    first.exec(["touch", "/var/lib/kumulus/only-here", "/run/only-here"])
    for place in ("/var/lib/kumulus/only-here", "/run/only-here"):
        assert second.exec(["test", "-e", place], check=False).returncode != 0
        assert not Path(place).exists()
    assert first.exec(["ip", "-brief", "link"]).stdout.split()[0] == "lo"
    assert "kb-" not in first.exec(["ip", "-brief", "link"]).stdout


@pytest.mark.libvirt
def test_a_daemon_of_a_host_is_killed_and_started_alone(bare: Lab) -> None:
    host = bare.host("h2")
    host.daemon("libvirtd").kill()
    assert host.running()
    assert _virsh(host, "list", check=False) == ""
    host.start_libvirt()
    deadline.until(lambda: _virsh(host, "version", check=False), "libvirt's answer", seconds=10)


@pytest.mark.libvirt
@pytest.mark.parametrize("direction", list(Direction))
def test_a_partition_cuts_and_heals(bare: Lab, direction: Direction) -> None:
    first, second = bare.hosts
    first.power_on()
    _soon_reaches(first, second.address)
    first.partition(direction)
    assert not _reaches(first, second.address)
    first.partition(direction)
    assert links.cuts(bare) == {"h1": ["all" if direction is Direction.BOTH else f"all ({direction})"], "h2": []}
    first.heal()
    first.heal()
    _soon_reaches(first, second.address)
    assert links.cuts(bare) == {"h1": [], "h2": []}


@pytest.mark.libvirt
def test_one_link_is_cut_and_the_others_go_on(bare: Lab) -> None:
    first, second = bare.hosts
    first.power_on()
    server, client = first.network.address, outside.GATEWAYS[0]
    first.exec(["ip", "address", "add", "198.51.100.11/24", "dev", outside.LEG])
    try:
        ends = {"h2": second.address, "api": server, "outside": client}
        for address in ends.values():
            _soon_reaches(first, address)
        for other, address in ends.items():
            link = links.between(bare, "h1", other)
            link.cut()
            assert [name for name, where in ends.items() if not _reaches(first, where)] == [other]
            assert links.cuts(bare)["h1"] == [other]
            link.heal()
            _soon_reaches(first, address)
            assert links.cuts(bare)["h1"] == []
    finally:
        first.exec(["ip", "address", "flush", "dev", outside.LEG])
        for other in ("h2", "api", "outside"):
            links.between(bare, "h1", other).heal()


@pytest.mark.libvirt
def test_a_slow_cable_takes_its_time(bare: Lab) -> None:
    first, second = bare.hosts
    first.power_on()
    server = "import socket; s=socket.create_server(('', 9)); print(flush=True); c=s.accept()[0]\nwhile c.recv(65536): pass\n"
    client = "import socket,sys; s=socket.create_connection((sys.argv[1], 9)); s.sendall(bytes(250_000)); s.shutdown(1); s.recv(1)"

    def seconds() -> float:
        with subprocess.Popen(
            ["ip", "netns", "exec", first.network.namespace("h2"), "python3", "-c", server], stdout=-1
        ) as got:
            assert got.stdout and got.stdout.readline()
            began = time.monotonic()
            first.exec(["python3", "-c", client, second.address])
            return time.monotonic() - began

    link = links.of(bare, "h1")
    link.slow("2mbit")
    try:
        assert links.rates(bare) == {"h1": ["all 2 Mbit/s"], "h2": []}
        assert seconds() > 0.8, "2 Mbit take a second"
    finally:
        link.heal()
    assert links.rates(bare) == {"h1": [], "h2": []}
    with pytest.raises(LabError, match="name the host alone"):
        links.between(bare, "h1", "h2").slow("2mbit")


@pytest.mark.libvirt
def test_hosts_reach_the_outside_only_as_somebody_there(bare: Lab) -> None:
    """The leg has no address, so what a router gives it is all there is; behind the gateway is a world."""
    first = bare.host("h1")
    first.power_on()
    assert "inet" not in first.exec(["ip", "address", "show", "dev", outside.LEG]).stdout
    assert not _reaches(first, outside.GATEWAYS[0])
    for family, address, gateway, world in (
        ("-4", "198.51.100.11/24", outside.GATEWAYS[0], outside.WORLD[0]),
        ("-6", "2001:db8:100::11/64", outside.GATEWAYS[1], outside.WORLD[1]),
    ):
        try:
            first.exec(["ip", family, "address", "add", address, "dev", outside.LEG, "nodad"])
            first.exec(["ip", family, "route", "add", world, "via", gateway])
            _ping(first.exec, world)
            _ping(first.network.outside.exec, address.split("/")[0])
        finally:
            first.exec(["ip", family, "address", "flush", "dev", outside.LEG])


def _ping(run: Callable[[list[str]], object], address: str) -> None:
    family = "-6" if ":" in address else "-4"
    run(["busybox", "ping", family, "-c", "1", "-W", "5", address])


@pytest.mark.libvirt
def test_a_host_that_loses_power_cuts_no_other_off(bare: Lab) -> None:
    first, second = bare.hosts
    server = f"https://{first.network.address}:{bare.state.cluster_ports[2]}"
    script = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.9)"
    host, port = server.removeprefix("https://").split(":")
    first.power_on()
    second.exec(["python3", "-c", script, host, port])
    first.power_off()
    second.exec(["python3", "-c", script, host, port])
    first.power_on()
    second.exec(["python3", "-c", script, host, port])


@pytest.mark.libvirt
def test_down_leaves_nothing_even_when_nothing_is_written_down() -> None:
    lab = new_lab()
    try:
        lab.up(Wanted(hosts=1, controllers=False, agents=False))
        bridge = lab.hosts[0].network.bridge
        namespaces = network.namespaces(lab.name)
        assert len(namespaces) == 2
        lab.hosts[0].partition()
        processes = owned(lab.directory)
        assert len(processes) >= 6
        # As after a crash: no record of any process, and of the lab itself only half a file.
        shutil.rmtree(lab.directory / "run")
        (lab.directory / "lab.json").write_text('{"name"')
    finally:
        lab.down()
    assert not any(process.alive() for process in processes)
    assert not Path("/sys/class/net", bridge).exists()
    assert not any(Path("/run/netns", namespace).exists() for namespace in namespaces)
    assert lab.name not in commands.run(["nft", "list", "tables"]).stdout
    assert not lab.directory.exists()
    assert lab.name not in Path("/proc/self/mountinfo").read_text()
    lab.down()


@pytest.mark.libvirt
def test_up_goes_on_where_it_was_cut() -> None:
    lab = new_lab()
    try:
        lab.up(Wanted(hosts=1, controllers=False, agents=False))
        running = owned(lab.directory)
        lab.cluster.daemon("kube-apiserver").kill()
        lab.host("h1").daemon("init").kill()
        lab.up(Wanted(hosts=2, controllers=False, agents=False))
        assert [host.name for host in lab.hosts if host.running()] == ["h1", "h2"]
        assert lab.cluster.ready()
        assert set(owned(lab.directory)) & set(running)
    finally:
        lab.down()


@pytest.mark.libvirt
def test_a_lab_that_begins_with_an_installation_has_what_installing_gives(lab: Lab) -> None:
    env = {**os.environ, "KUBECONFIG": str(lab.kubeconfig)}
    said = commands.run([places.script("kumulusctl"), "install"], env=env).stdout.splitlines()
    assert {line.rpartition(" ")[2] for line in said} == {"unchanged"}, said
    assert len(said) > 20


@pytest.mark.cluster
def test_the_api_server_comes_back_with_its_data(cluster: NativeCluster, namespace: str) -> None:
    cluster.kubectl_run("-n", namespace, "create", "configmap", "kept", "--from-literal=a=b")
    cluster.restart_apiserver(by=signal.SIGKILL)
    assert cluster.kubectl_run("-n", namespace, "get", "configmap", "kept", "-o", "name").stdout.strip()


@pytest.mark.cluster
def test_the_audit_log_says_who_wrote_what(cluster: NativeCluster, namespace: str) -> None:
    cluster.kubectl_run("-n", namespace, "create", "configmap", "audited")
    events = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]
    [event] = [
        event
        for event in events
        if event["verb"] == "create"
        and event.get("objectRef", {}).get("name") == "audited"
        and event["objectRef"]["namespace"] == namespace
    ]
    assert event["user"]["username"] == "kumulus-lab-admin"
    assert event["responseStatus"]["code"] == 201


@pytest.mark.cluster
def test_nobody_is_let_in_without_credentials(cluster: NativeCluster) -> None:
    context = ssl.create_default_context(cafile=str(cluster.authority.pair.certificate))
    for path in ("/api/v1/namespaces", "/readyz", "/version"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(cluster.server + path, context=context, timeout=10)
        assert refused.value.code == 401
        refused.value.close()


@pytest.mark.cluster
def test_a_namespace_goes_with_what_is_in_it(cluster: NativeCluster) -> None:
    cluster.kubectl_run("create", "namespace", "short-lived")
    cluster.kubectl_run("-n", "short-lived", "create", "configmap", "a")
    cluster.kubectl_run("delete", "namespace", "short-lived", "--wait=true", "--timeout=30s")
    assert cluster.kubectl_run("get", "namespace", "short-lived", check=False).returncode != 0


@pytest.mark.cluster
def test_simulated_labs_need_no_network() -> None:
    lab = new_lab()
    try:
        lab.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, controllers=False, agents=False))
        assert lab.network is None
        assert lab.cluster.address is None
        assert lab.cluster.ready()
    finally:
        lab.down()
