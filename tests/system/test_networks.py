"""Real packets between real guests on two hosts: who reaches whom, and what goes on while nobody looks after it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kumulus.cli.people import main as kumulusctl
from kumulus_lab import deadline
from kumulus_lab.host import LibvirtHost
from kumulus_lab.services import AGENT_PORT
from tests.system.inside import Inside
from tests.system.world import Object, World

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster]

GROUP = "network.kumulus.io/v1alpha1"
RANGE = "10.77.0.0/24"
ALIVE = '#kumulus-run: ping -c 1 -W 1 10.77.0.11 >/dev/null 2>&1 && echo "alive $(cut -d. -f1 /proc/uptime)"'


@dataclass(frozen=True, slots=True)
class Networks:
    """What a tenant does with networks, and sees on hosts."""

    world: World
    consoles: dict[str, Path] = field(default_factory=dict)
    """Where consoles are logged, which nobody need be asked again."""

    def network(self, name: str, **spec: Any) -> None:
        """Apply a network."""
        self.world.apply(
            {"apiVersion": GROUP, "kind": "Network", "metadata": {"name": name}, "spec": {"cidrs": [RANGE], **spec}}
        )

    def router(self, name: str, *networks: str, **spec: Any) -> None:
        """Apply a router."""
        self.world.apply(
            {"apiVersion": GROUP, "kind": "Router", "metadata": {"name": name}, "spec": {"networks": networks, **spec}}
        )

    def group(self, name: str, *ports: int) -> None:
        """Apply a security group that lets everybody reach these ports of TCP."""
        spec = {"ingress": [{"protocol": "TCP", "ports": [str(port)]} for port in ports], "egress": [{}]}
        self.world.apply({"apiVersion": GROUP, "kind": "SecurityGroup", "metadata": {"name": name}, "spec": spec})

    def machine(self, name: str, host: LibvirtHost, network: str, *lines: str, **interface: Any) -> None:
        """Apply a machine with an interface."""
        placement = self.world.only_on(host)
        self.world.machine(
            name, *lines, placement=placement, interfaces=[{"name": "eth0", "network": network, **interface}]
        )

    def said(self, name: str) -> str:
        """All that the machine's console has; nothing before it is on a host."""
        if name not in self.consoles:
            vm = self.world.find("vm", name)
            if vm is None or "host" not in vm.get("status", {}):
                return ""
            self.consoles[name] = self.world.console_file(name)
        try:
            return self.consoles[name].read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def says(self, name: str, text: str, *, after: int = 0, seconds: float = 60) -> str:
        """What the console printed beyond `after`, once it has that text."""
        last = ""

        def probe() -> bool:
            nonlocal last
            last = self.said(name)[after:]
            return text in last

        try:
            deadline.until(probe, f"{text!r} on the console of {name}", seconds=seconds, every=0.1)
        except Exception as error:
            status = json.dumps((self.world.find("vm", name) or {}).get("status"), indent=1)
            raise AssertionError(f"{error}; it says:\n{last[-2000:]}\nits status: {status}") from error
        return last

    def traced(self, verdict: str, source: str, target: str, *options: str) -> None:
        """`net trace` says so, as an operator who sees what hosts were told; AssertionError when it does not within seconds,
        for what guests do the agents report a moment later."""
        words = ["--kubeconfig", str(self.world.lab.kubeconfig), "-n", self.world.namespace]
        said = io.StringIO()

        def probe() -> bool:
            said.seek(0)
            said.truncate()
            with contextlib.redirect_stdout(said):
                kumulusctl([*words, "net", "trace", source, target, *options, "-o", "json"])
            return json.loads(said.getvalue() or "{}").get("verdict") == verdict

        try:
            deadline.until(probe, f"{verdict} from {source} to {target}", seconds=30, every=0.2)
        except Exception as error:
            raise AssertionError(f"{error}; it says:\n{said.getvalue()}") from error

    def counted(self, host: LibvirtHost, metric: str, machine: str) -> float:
        """What the host's agent says of the machine's one interface."""
        url = f"http://127.0.0.1:{AGENT_PORT}/metrics"
        read = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().decode())"
        whose = (f'namespace="{self.world.namespace}"', f'machine="{machine}"', 'name="eth0"')
        (line,) = (
            line
            for line in host.exec([sys.executable, "-c", read]).stdout.splitlines()
            if line.startswith(metric) and all(one in line for one in whose)
        )
        return float(line.split()[-1])

    def left_on(self, host: LibvirtHost) -> list[str]:
        """Links, namespaces and rules of Kumulus' networks on a host."""
        links = json.loads(host.exec(["ip", "-json", "link", "show"]).stdout or "[]")
        found = [link["ifname"] for link in links if re.fullmatch(r"k[a-z][0-9a-f]{10}", link["ifname"])]
        found += [
            line.split()[0] for line in host.exec(["ip", "netns", "list"]).stdout.splitlines() if "kumulus-" in line
        ]
        rules = host.exec(["nft", "list", "ruleset"]).stdout
        served = host.exec(["ps", "-eo", "args"]).stdout
        daemons = [word for word in ("dnsmasq", "keepalived", "kumulus_agents.metadata") if word in served]
        if host.ovn:
            found += host.exec(["ovn-nbctl", "--bare", "--columns=name", "list", "Logical_Switch"]).stdout.split()
            found += host.exec(["ovs-vsctl", "list-ports", "br-int"]).stdout.split()
            found += [
                name for name in host.exec(["ovs-vsctl", "list-br"]).stdout.split() if name.startswith(("kf", "kv"))
            ]
        return found + daemons + re.findall(r"\bk[a-z][0-9a-f]{10}\b", rules)


@pytest.fixture
def networks(world: World) -> Networks:
    return Networks(world)


def interface(networks: Networks, name: str) -> Object:
    """The status of the NetworkInterface."""
    return networks.world.wait(
        "networkinterfaces.network.kumulus.io",
        name,
        lambda nic: nic.get("status", {}).get("addresses"),
        "its addresses",
    )["status"]


def test_guests_reach_each_other_across_hosts_and_nobody_else(networks: Networks) -> None:
    world, (first, second) = networks.world, networks.world.lab.hosts
    networks.network("front")
    networks.network("other")
    networks.network("back", cidrs=["10.78.0.0/24"])
    networks.router("main", "front", "back")
    serve = ("#kumulus-serve: 80", "#kumulus-serve: 81")
    networks.machine("web", first, "front", *serve, addresses=["10.77.0.11"])
    look = ("#kumulus-ping: 10.77.0.11", "#kumulus-ping: web", "#kumulus-fetch: web/", ALIVE)
    meta = "#kumulus-fetch: 169.254.169.254/latest/meta-data/instance-id"
    networks.machine("near", second, "front", *look, meta)
    networks.machine("far", second, "other", "#kumulus-ping: 10.77.0.11", meta, addresses=["10.77.0.12"])
    networks.machine("behind", first, "back", "#kumulus-ping: 10.77.0.11", addresses=["10.78.0.11"])
    networks.says("web", "address 10.77.0.11/24", seconds=120)
    # The router is told to guests by DHCP; members of a group know each other behind it.
    networks.says("behind", "reaches 10.77.0.11", seconds=120)
    router = world.wait("routers.network.kumulus.io", "main", lambda r: r["status"].get("activeHost"), "a host")[
        "status"
    ]
    assert {router["activeHost"], *router["standbyHosts"]} == {first.name, second.name}
    networks.says("near", "reaches 10.77.0.11", seconds=120)
    networks.says("near", "reaches web")
    networks.says("near", "fetched web/: web")
    networks.says("far", "address 10.77.0.12/24", seconds=120)
    networks.says("far", "does not reach 10.77.0.11")
    assert "kumulus-guest: reaches" not in networks.said("far")
    # What guests see is what is said of it, from what the hosts were told.
    networks.traced("Passes", "near", "web")
    networks.traced("Passes", "near", "web", "--port", "80")
    networks.traced("Passes", "behind", "web")
    networks.traced("Dropped", "far", "10.77.0.11")
    networks.traced("Dropped", "behind", "outside")
    for host, name in ((first, "web"), (second, "near")):
        for way in ("receive", "transmit"):
            assert networks.counted(host, f"kumulus_network_interface_{way}_packets_total", name) > 3
    for name in ("near", "far"):
        uid = world.find("vm", name)["metadata"]["uid"]  # type: ignore[index]
        networks.says(name, f"fetched 169.254.169.254/latest/meta-data/instance-id: {uid}")

    # What guests live by goes on without agents, and nothing is different when these are back.
    before = interface(networks, "web-eth0")
    mark = len(networks.said("near"))
    for host in (first, second):
        host.daemon("agent").kill()
    networks.says("near", "alive", after=mark)
    mark = len(networks.said("near"))
    networks.says("near", "alive", after=mark + 40)
    for host in (first, second):
        world.lab.services.start_agent(host)
    world.lab.services.wait_for_hosts([first.name, second.name])
    mark = len(networks.said("near"))
    networks.says("near", "alive", after=mark + 40)

    # An address and a MAC address are for life.
    mark = len(networks.said("web"))
    world.patch("vm", "web", {"spec": {"powerState": "Stopped"}})
    world.phase("web", "Stopped")
    networks.says("near", "does not reach 10.77.0.11", after=0)
    world.patch("vm", "web", {"spec": {"powerState": "Running"}})
    said = networks.says("web", "address 10.77.0.11/24", after=mark, seconds=120)
    assert f"interface eth0 {before['macAddress']}" in said
    after = interface(networks, "web-eth0")
    assert (after["macAddress"], after["addresses"]) == (before["macAddress"], before["addresses"])

    # Nothing stays.
    for name in ("web", "near", "far", "behind"):
        world.delete("vm", name)
    world.delete("routers.network.kumulus.io", "main")
    for network in ("front", "other", "back"):
        world.delete("networks.network.kumulus.io", network)
    for host in (first, second):
        deadline.until(lambda host=host: not networks.left_on(host), f"a clean {host.name}", seconds=60)  # type: ignore[misc]
        assert networks.left_on(host) == []


def test_a_security_group_opens_and_closes_while_guests_run(networks: Networks) -> None:
    world, (first, second) = networks.world, networks.world.lab.hosts
    networks.network("front")
    networks.group("closed")
    networks.group("open", 80)
    serve = ("#kumulus-serve: 80", "#kumulus-serve: 81")
    networks.machine("web", first, "front", *serve, addresses=["10.77.0.11"], securityGroups=["open"])
    look = ("#kumulus-fetch: 10.77.0.11/", "#kumulus-fetch: 10.77.0.11:81/")
    networks.machine("near", second, "front", *look, securityGroups=["closed"])
    networks.says("near", "fetched 10.77.0.11/: web", seconds=120)
    assert "fetched 10.77.0.11:81/: web" not in networks.said("near")
    networks.traced("Passes", "near", "web", "--port", "80")
    networks.traced("Dropped", "near", "web", "--port", "81")
    mark = len(networks.said("near"))
    networks.group("open", 81)
    networks.says("near", "fetched 10.77.0.11:81/: web", after=mark)
    networks.says("near", "fetched 10.77.0.11/: nothing", after=mark)
    networks.traced("Dropped", "near", "web", "--port", "80")
    mark = len(networks.said("near"))
    networks.group("open", 80, 81)
    networks.says("near", "fetched 10.77.0.11/: web", after=mark)

    # Interfaces come and go alike.
    networks.network("back", cidrs=["10.78.0.0/24"])
    eth0 = {"name": "eth0", "network": "front", "securityGroups": ["closed"]}
    eth1 = {"name": "eth1", "network": "back", "addresses": ["10.78.0.7"]}
    world.patch("vm", "near", {"spec": {"interfaces": [eth0, eth1]}})
    networks.says("near", "address 10.78.0.7/24")
    world.patch("vm", "near", {"spec": {"interfaces": [eth0]}})
    networks.says("near", "interface eth1 went")
    world.delete("networks.network.kumulus.io", "back")
    world.delete("vm", "near")
    world.delete("vm", "web")


@pytest.mark.wide
def test_much_goes_between_hosts(networks: Networks) -> None:
    """In packets as large as guests send them, whose checksums guests leave to whom they can."""
    world, (first, second) = networks.world, networks.world.lab.hosts
    networks.network("front")
    serve = "#kumulus-run: mkdir -p /www && yes kumulus | head -c 4000000 >/www/big && httpd -f -p 8080 -h /www"
    networks.machine("web", first, "front", serve, addresses=["10.77.0.11"])
    digest = hashlib.md5(b"kumulus\n" * 500_000, usedforsecurity=False).hexdigest()
    fetch = f'[ "$(wget -q -O - http://10.77.0.11:8080/big | md5sum | cut -c-32)" = {digest} ] && echo "has it all"'
    networks.machine("near", second, "front", f"#kumulus-run: {fetch}")
    networks.says("near", "has it all", seconds=180)
    world.delete("vm", "near")
    world.delete("vm", "web")


@pytest.mark.wide
def test_what_is_removed_by_hand_is_back_within_a_minute(networks: Networks) -> None:
    """The way between hosts; nobody orders anything meanwhile."""
    world, (first, second) = networks.world, networks.world.lab.hosts
    networks.network("front")
    networks.machine("web", first, "front", addresses=["10.77.0.11"])
    networks.machine("near", second, "front", "#kumulus-ping: 10.77.0.11")
    networks.says("near", "reaches 10.77.0.11", seconds=120)
    remove = ["ovs-vsctl", "del-br", "br-kumulus"]
    if not second.ovn:
        links = json.loads(second.exec(["ip", "-json", "link", "show", "type", "vxlan"]).stdout)
        (tunnel,) = (link["ifname"] for link in links if re.fullmatch(r"kx[0-9a-f]{10}", link["ifname"]))
        remove = ["ip", "link", "delete", "dev", tunnel]
    mark = len(networks.said("near"))
    second.exec(remove)
    said = networks.says("near", "does not reach 10.77.0.11", after=mark)
    networks.says("near", "reaches 10.77.0.11", after=mark + said.index("does not reach") + 20, seconds=60)
    for name in ("web", "near"):
        world.delete("vm", name)


@pytest.mark.wide
@pytest.mark.timeout(600)
def test_guests_speak_ipv6(networks: Networks) -> None:
    """Within a network across hosts, by a router that tells of itself, and as far as groups let them."""
    world, (first, second) = networks.world, networks.world.lab.hosts
    web, near, far = "2001:db8:77::11", "2001:db8:77::12", "2001:db8:78::13"
    networks.network("front", cidrs=["2001:db8:77::/64"])
    networks.network("back", cidrs=["2001:db8:78::/64"])
    networks.router("main", "front", "back")
    networks.group("site", 80)

    def has(address: str) -> str:
        return f"#kumulus-run: ip -6 address replace {address}/64 dev eth0"  # it knows no DHCPv6

    networks.machine("web", first, "front", has(web), "#kumulus-serve: 80", addresses=[web], securityGroups=["site"])
    fetch = f"#kumulus-fetch: [{web}]:80/"
    networks.machine("near", second, "front", has(near), fetch, addresses=[near])
    networks.machine("far", second, "back", has(far), fetch, addresses=[far])
    wrong = f"#kumulus-run: ip -6 address replace {near}0/64 dev eth0"  # an address that is not its own
    networks.machine("liar", second, "front", wrong, fetch, addresses=["2001:db8:77::14"])
    said = f"fetched [{web}]:80/:"
    networks.says("near", f"{said} web", seconds=120)
    networks.says("far", f"{said} web", seconds=120)
    networks.says("liar", f"{said} nothing", seconds=120)
    networks.traced("Passes", "near", "web", "--port", "80")
    networks.traced("Passes", "far", "web", "--port", "80")

    # A group that lets in one address alone cuts the other one off, and nobody else.
    marks = {name: len(networks.said(name)) for name in ("near", "far", "liar")}
    rule = {"protocol": "TCP", "ports": ["80"], "from": {"cidrs": [f"{far}/128"]}}
    world.patch("securitygroup", "site", {"spec": {"ingress": [rule]}})
    networks.says("near", f"{said} nothing", after=marks["near"])
    networks.traced("Dropped", "near", "web", "--port", "80")
    rule["from"] = {"cidrs": ["2001:db8:77::/64"]}
    world.patch("securitygroup", "site", {"spec": {"ingress": [rule]}})
    networks.says("near", f"{said} web", after=marks["near"])
    networks.says("far", f"{said} nothing", after=marks["far"])
    assert "web" not in networks.said("liar").partition(said)[2]
    for name in ("web", "near", "far", "liar"):
        world.delete("vm", name)


@pytest.mark.wide
def test_an_interface_through_a_restore_of_its_machine(networks: Networks) -> None:
    """In place it keeps MAC and addresses; a new machine gets others, and both are neighbours."""
    world, (first, second) = networks.world, networks.world.lab.hosts
    networks.network("front")
    networks.machine("near", second, "front", "#kumulus-ping: web")
    root = {"name": "root", "volumeTemplate": {"source": {"image": "tiny"}, "reclaimPolicy": "Delete"}}
    serve, wanted = "#kumulus-serve: 80", {"addresses": ["10.77.0.11"], "macAddress": "02:00:5e:00:53:11"}
    world.machine(
        "web",
        serve,
        image=None,
        disks=[root],
        placement=world.only_on(first),
        interfaces=[{"name": "eth0", "network": "front", **wanted}],
    )
    try:
        networks.says("web", "address 10.77.0.11/24", seconds=120)
        uid = world.find("networkinterfaces.network.kumulus.io", "web-eth0")["metadata"]["uid"]  # type: ignore[index]
        world.kumulusctl("snapshot", "create", "kept", "--vm", "web")
        world.wait("vmsnap", "kept", lambda item: item["status"].get("phase") == "Ready", "is taken")

        world.patch("vm", "web", {"spec": {"powerState": "Stopped"}})
        world.phase("web", "Stopped")
        world.kumulusctl("snapshot", "restore", "kept", "--in-place")
        mark = len(networks.said("web"))
        world.patch("vm", "web", {"spec": {"powerState": "Running"}})
        said = networks.says("web", "address 10.77.0.11/24", after=mark, seconds=120)
        assert f"interface eth0 {wanted['macAddress']}" in said
        kept = world.find("networkinterfaces.network.kumulus.io", "web-eth0")
        assert kept is not None and kept["metadata"]["uid"] == uid
        assert {name: kept["status"][name] for name in wanted} == wanted

        world.kumulusctl("snapshot", "restore", "kept", "--as", "again")
        made = interface(networks, "again-eth0")
        assert made["addresses"] != wanted["addresses"] and made["macAddress"] != wanted["macAddress"]
        said = networks.says("again", f"address {made['addresses'][0]}/24", seconds=120)
        assert f"interface eth0 {made['macAddress']}" in said
        networks.machine("both", second, "front", "#kumulus-ping: 10.77.0.11", f"#kumulus-ping: {made['addresses'][0]}")
        networks.says("both", "reaches 10.77.0.11", seconds=120)
        networks.says("both", f"reaches {made['addresses'][0]}")
    finally:
        for name in ("both", "again", "near"):
            world.delete("vm", name)
        world.delete_all("vmrestore")
        world.delete("vm", "web")
        world.delete_all("vmsnap")
        world.delete_all("volume")


@pytest.mark.wide
def test_leases_are_renewed_and_metadata_answers_while_the_agents_are_down(networks: Networks) -> None:
    world, (first, _) = networks.world, networks.world.lab.hosts
    networks.network("front")
    token = (
        "#kumulus-run: printf 'PUT /latest/api/token HTTP/1.0\\r\\nX-aws-ec2-metadata-token-ttl-seconds: 60\\r\\n\\r\\n'"
        " | nc 169.254.169.254 80 | tail -n 1 | sed 's/.*/token &/'"
    )
    networks.machine("web", first, "front", "#kumulus-renew-every: 3", token)
    networks.says("web", "renewed", seconds=120)
    networks.says("web", "token ")
    mark = len(networks.said("web"))
    (server,) = (
        line.split()[0]
        for line in first.exec(["ps", "-eo", "pid,args"]).stdout.splitlines()
        if "-m kumulus_agents.metadata" in line
    )
    first.exec(["kill", "-9", server])
    networks.says("web", "token ", after=mark)
    first.daemon("agent").kill()
    world.lab.cluster.stop_apiserver()
    try:
        mark = len(networks.said("web"))
        networks.says("web", "renewed", after=mark)
        networks.says("web", "token ", after=mark)
    finally:
        world.lab.cluster.start_apiserver()
        world.lab.services.start_agent(first)
    world.lab.services.wait_for_hosts([first.name])
    world.delete("vm", "web")


@pytest.mark.wide
@pytest.mark.timeout(900)
def test_a_real_guest_configures_itself_from_metadata_alone(networks: Networks) -> None:
    """cloud-init finds no disk with first-boot data: name and interfaces are what the host says of the machine."""
    world, (first, _) = networks.world, networks.world.lab.hosts
    world.lab.serve_image("debian")
    world.image("debian", "debian.qcow2")
    networks.network("front")
    networks.network("back", cidrs=["10.78.0.0/24"])
    world.machine(
        "deb",
        image="debian",
        resources={"cpus": 1, "memory": "512Mi"},
        placement=world.only_on(first),
        interfaces=[
            {"name": "eth0", "network": "front", "addresses": ["10.77.0.50"]},
            {"name": "eth1", "network": "back", "addresses": ["10.78.0.50"]},
        ],
    )
    vm = world.phase("deb", "Running", seconds=120)
    inside = Inside(first, vm["metadata"]["uid"])
    deadline.until(inside.answers, "the guest's agent", seconds=300, every=0.5)
    inside.sees("cloud-init status --wait >/dev/null; cat /run/cloud-init/cloud-id", "openstack", seconds=300)
    inside.sees("hostname", "deb")
    inside.sees("cat /var/lib/cloud/data/instance-id", vm["metadata"]["uid"])
    for address in ("10.77.0.50/24", "10.78.0.50/24"):
        inside.sees(f"ip -brief -4 address | grep -o {address}", address)
    world.delete("vm", "deb")
