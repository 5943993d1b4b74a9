"""Nodes of the cluster beside a lab's hosts: each a network namespace in which the real kube-proxy runs, and a pod behind it.

As with most nodes, its default route and the API server are in one network, and machines are reached by a leg in another: by
which address it sends is what kube-proxy and the network of pods make of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from kumulus.api.base import Kind, Scope
from kumulus.cli.cluster import Cluster
from kumulus.kube.errors import NotFound
from kumulus_lab import commands, deadline, kubeconfig
from kumulus_lab.certificates import Pair
from kumulus_lab.lab import Lab
from kumulus_lab.outside import BRIDGE, GATEWAYS
from kumulus_lab.processes import Daemon

NODE = Kind(group="", version="v1", kind="Node", plural="nodes", scope=Scope.CLUSTER)
_FIRST, _FIRST6 = "198.51.100.4", "2001:db8:100::4"
"""In the network outside, just below the nodes. Routers and FloatingIPs get others (hack/lab/manifests/outside.yaml)."""
PODS, PODS6 = "10.244.0.0/16", "fd00:10:244::/56"
"""The ranges of all pods of the cluster."""
MASQUERADE = f"""\
table inet pods {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {PODS} ip daddr != {PODS} masquerade
    ip6 saddr {PODS6} ip6 daddr != {PODS6} masquerade
  }}
}}
"""
"""What networks of pods do by default for what leaves the cluster (flannel, kindnet, the plugin bridge with ipMasq, Calico's
natOutgoing)."""
_HEALTH = "127.0.0.1:10256"


_ASK = """
import socket, sys
host, port, source = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
asks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asks.settimeout(2)
asks.bind(("", source))
asks.sendto(b"?", (host, port))
print(asks.recv(512).decode())
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A node whose kube-proxy runs."""

    lab: Lab
    number: int = 1

    @property
    def name(self) -> str:
        """In the cluster."""
        return f"node{self.number}"

    @property
    def address(self) -> str:
        """Its own in the network outside."""
        return str(ip_address(_FIRST) + self.number)

    @property
    def address6(self) -> str:
        """Its own in the network outside."""
        return str(ip_address(_FIRST6) + self.number)

    @property
    def pods(self) -> tuple[str, str]:
        """The ranges of its own pods: its own address there is the first, and that of the one that it has the second."""
        return f"10.244.{self.number}.0/24", f"fd00:10:244:{self.number}::/64"

    @property
    def internal(self) -> str:
        """Its own in the network of the hosts."""
        assert self.lab.network is not None
        return str(ip_address(self.lab.network.spare_address) - (self.number - 1))

    @property
    def proxy(self) -> Daemon:
        """Its kube-proxy."""
        return Daemon.within(self.lab.directory, f"kube-proxy-{self.number}")

    def namespace(self, *, pod: bool = False) -> str:
        """Named as the lab's hosts are: what a killed session leaves goes with its lab."""
        return f"kl-{self.lab.name}-{'pod' if pod else 'node'}{self.number}"

    def enter(self, *, pod: bool = False) -> tuple[str, ...]:
        """The command that goes there."""
        return ("ip", "netns", "exec", self.namespace(pod=pod))

    def ask(self, address: str, port: int, *, pod: bool = False, source: int = 0) -> str:
        """What the node, or its pod, is answered by UDP; empty when nobody answers within two seconds."""
        words = [sys.executable, "-I", "-S", "-c", _ASK, address, str(port), str(source)]
        return commands.run([*self.enter(pod=pod), *words], check=False).stdout.strip()

    def fetch(self, address: str, *, pod: bool = False) -> str:
        """What the node, or its pod, gets from http://ADDRESS/; empty when it gets nothing within five seconds."""
        # Debian's static busybox does not survive its own option -T.
        ask = ["timeout", "5", "busybox", "wget", "-q", "-O", "-", f"http://{address}/"]
        return commands.run([*self.enter(pod=pod), *ask], check=False).stdout.strip()

    def exec(self, *words: str, stdin: str | None = None) -> str:
        """What a program in the node's network prints. Raises LabError when it fails."""
        return commands.run([*self.enter(), *words], stdin=stdin).stdout

    def masquerade_pods(self, *, on: bool) -> None:
        """Whether the world sees its pods by the node's address, as it does from the start, or by their own."""
        if on:
            self.exec("nft", "-f", "-", stdin=MASQUERADE)
        else:
            self.exec("nft", "delete", "table", "inet", "pods")

    def well(self) -> bool:
        """Whether kube-proxy says that it is well."""
        return commands.works([*self.enter(), "busybox", "wget", "-q", "-O", "-", f"http://{_HEALTH}/healthz"])


@contextmanager
def node(lab: Lab, api: Cluster, program: Path, number: int = 1) -> Iterator[Node]:
    """A node, until the block ends: then neither process nor namespace, and with that no rule, is left of it. `program` is
    kube-proxy, `number` one that no other node has."""
    made = Node(lab, number)
    with ExitStack() as undo:
        undo.callback(_unplug, made)
        _plug(made)
        made.masquerade_pods(on=True)
        where = {"addresses": [{"type": "InternalIP", "address": made.internal}]}
        undo.callback(_forget, api, made)
        api.create(NODE, {"metadata": {"name": made.name}, "status": where})
        undo.callback(made.proxy.stop)
        made.proxy.start([*made.enter(), program, f"--config={_settings(made)}", f"--hostname-override={made.name}"])
        deadline.until(made.well, "the health of kube-proxy", seconds=30, alive=made.proxy.ended)
        yield made


def _forget(api: Cluster, made: Node) -> None:
    with suppress(NotFound):
        api.delete(NODE, made.name)


def _unplug(made: Node) -> None:
    """Take both namespaces away, and the cables before them: a namespace lets go of its own some time later."""
    for pod in (True, False):
        space = made.namespace(pod=pod)
        if Path("/run/netns", space).exists():
            for device in ("eth0", "eth1"):
                commands.works(["ip", "-netns", space, "link", "delete", device])
            commands.run(["ip", "netns", "delete", space])


def _plug(made: Node) -> None:
    network = made.lab.network
    assert network is not None
    space, pod, outside = made.namespace(), made.namespace(pod=True), network.outside.namespace
    cable, leg, length = f"kv-{made.lab.name}-n{made.number}", made.name, network.subnet.split("/")[1]
    ranges = [ip_network(one) for one in made.pods]

    def ip(*words: str) -> None:
        commands.run(["ip", *words])

    for one in (space, pod):
        ip("netns", "add", one)
        ip("-netns", one, "link", "set", "lo", "up")
    ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
    ip("link", "set", cable, "master", network.bridge, "up")
    ip("-netns", outside, "link", "add", leg, "type", "veth", "peer", "name", "eth1", "netns", space)
    ip("-netns", outside, "link", "set", leg, "master", BRIDGE, "up")
    ip("-netns", space, "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod)
    for where, device, addresses in (
        (space, "eth0", [f"{made.internal}/{length}"]),
        (space, "eth1", [f"{made.address}/24", f"{made.address6}/64"]),
        (space, "pod0", [f"{one[1]}/{one.prefixlen}" for one in ranges]),
        (pod, "eth0", [f"{one[2]}/{one.prefixlen}" for one in ranges]),
    ):
        for address in addresses:
            ip("-netns", where, "address", "add", address, "dev", device, "nodad")
        ip("-netns", where, "link", "set", device, "up")
    ip("-netns", space, "route", "add", "default", "via", network.address)
    # Nothing is sent there, but who has no route at all to a Service's address does not even begin.
    ip("-netns", space, "route", "add", "default", "via", GATEWAYS[1])
    for one in ranges:
        ip("-netns", pod, "route", "add", "default", "via", str(one[1]))
    forward = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    commands.run([*made.enter(), "sysctl", "-q", "-w", *forward])


def _settings(made: Node) -> Path:
    """What kube-proxy is told, as kubeadm tells it, with the credentials that it has there."""
    lab = made.lab
    cluster, network = lab.cluster, lab.network
    assert network is not None
    pair = Pair(certificate=lab.directory / "pki" / "kube-proxy.crt", key=lab.directory / "pki" / "kube-proxy.key")
    cluster.authority.ensure_client(pair, "system:kube-proxy")
    credentials = kubeconfig.write(
        lab.directory / "kube-proxy.kubeconfig",
        server=f"https://{network.address}:{cluster.port}",
        authority=cluster.certificate_authority,
        client=pair,
    )
    path = lab.directory / f"kube-proxy-{made.number}.json"
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": f"{PODS},{PODS6}",
        "nodePortAddresses": [f"{made.address}/32", f"{made.address6}/128"],
        "clientConnection": {"kubeconfig": str(credentials)},
        "healthzBindAddress": _HEALTH,
        "metricsBindAddress": "127.0.0.1:10249",
        # The kernel's own: the machine's is not a test's to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
    path.write_text(json.dumps(settings))
    return path
