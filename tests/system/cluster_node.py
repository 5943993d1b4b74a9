"""A node of the cluster beside a lab's hosts: a network namespace in which the real kube-proxy runs, and a pod behind it.

As with most nodes, its default route and the API server are in one network, and machines are reached by a leg in another: by
which address it sends is what kube-proxy and the network of pods make of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
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
NAME = "node"
ADDRESS, ADDRESS6 = "198.51.100.5", "2001:db8:100::5"
"""In the network outside, of which routers and FloatingIPs get others (hack/lab/manifests/outside.yaml)."""
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
_GATEWAYS, _POD = ("10.244.1.1", "fd00:10:244:1::1"), ("10.244.1.2", "fd00:10:244:1::2")
"""The node's addresses for its own pods, and those of the one that it has."""
_HEALTH = "127.0.0.1:10256"


@dataclass(frozen=True, slots=True)
class Node:
    """A node whose kube-proxy runs."""

    lab: Lab
    proxy: Daemon

    def fetch(self, address: str, *, pod: bool = False) -> str:
        """What the node, or its pod, gets from http://ADDRESS/; empty when it gets nothing within five seconds."""
        # Debian's static busybox does not survive its own option -T.
        ask = ["timeout", "5", "busybox", "wget", "-q", "-O", "-", f"http://{address}/"]
        return commands.run([*_enter(self.lab, pod=pod), *ask], check=False).stdout.strip()

    def exec(self, *words: str, stdin: str | None = None) -> str:
        """What a program in the node's network prints. Raises LabError when it fails."""
        return commands.run([*_enter(self.lab), *words], stdin=stdin).stdout

    def masquerade_pods(self, *, on: bool) -> None:
        """Whether the world sees its pods by the node's address, as it does from the start, or by their own."""
        if on:
            self.exec("nft", "-f", "-", stdin=MASQUERADE)
        else:
            self.exec("nft", "delete", "table", "inet", "pods")

    def well(self) -> bool:
        """Whether kube-proxy says that it is well."""
        return commands.works([*_enter(self.lab), "busybox", "wget", "-q", "-O", "-", f"http://{_HEALTH}/healthz"])


@contextmanager
def node(lab: Lab, api: Cluster, program: Path) -> Iterator[Node]:
    """The node, until the block ends: then neither process nor namespace, and with that no rule, is left of it. `program` is
    kube-proxy."""
    made = Node(lab, Daemon.within(lab.directory, "kube-proxy"))
    with ExitStack() as undo:
        undo.callback(_unplug, lab)
        _plug(lab)
        made.masquerade_pods(on=True)
        assert lab.network is not None
        where = {"addresses": [{"type": "InternalIP", "address": lab.network.spare_address}]}
        undo.callback(_forget, api)
        api.create(NODE, {"metadata": {"name": NAME}, "status": where})
        undo.callback(made.proxy.stop)
        made.proxy.start([*_enter(lab), program, f"--config={_settings(lab)}", f"--hostname-override={NAME}"])
        deadline.until(made.well, "the health of kube-proxy", seconds=30, alive=made.proxy.ended)
        yield made


def _forget(api: Cluster) -> None:
    with suppress(NotFound):
        api.delete(NODE, NAME)


def _namespace(lab: Lab, *, pod: bool = False) -> str:
    """Named as the lab's hosts are: what a killed session leaves goes with its lab."""
    return f"kl-{lab.name}-{'pod' if pod else 'node'}"


def _enter(lab: Lab, *, pod: bool = False) -> tuple[str, ...]:
    return ("ip", "netns", "exec", _namespace(lab, pod=pod))


def _unplug(lab: Lab) -> None:
    """Take both namespaces away, and the cables before them: a namespace lets go of its own some time later."""
    for pod in (True, False):
        space = _namespace(lab, pod=pod)
        if Path("/run/netns", space).exists():
            for device in ("eth0", "eth1"):
                commands.works(["ip", "-netns", space, "link", "delete", device])
            commands.run(["ip", "netns", "delete", space])


def _plug(lab: Lab) -> None:
    network = lab.network
    assert network is not None
    space, pod, outside = _namespace(lab), _namespace(lab, pod=True), network.outside.namespace
    cable, leg, length = f"kv-{lab.name}-n", "node", network.subnet.split("/")[1]

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
        (space, "eth0", (f"{network.spare_address}/{length}",)),
        (space, "eth1", (f"{ADDRESS}/24", f"{ADDRESS6}/64")),
        (space, "pod0", (f"{_GATEWAYS[0]}/24", f"{_GATEWAYS[1]}/64")),
        (pod, "eth0", (f"{_POD[0]}/24", f"{_POD[1]}/64")),
    ):
        for address in addresses:
            ip("-netns", where, "address", "add", address, "dev", device, "nodad")
        ip("-netns", where, "link", "set", device, "up")
    ip("-netns", space, "route", "add", "default", "via", network.address)
    # Nothing is sent there, but who has no route at all to a Service's address does not even begin.
    ip("-netns", space, "route", "add", "default", "via", GATEWAYS[1])
    for gateway in _GATEWAYS:
        ip("-netns", pod, "route", "add", "default", "via", gateway)
    forward = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    commands.run([*_enter(lab), "sysctl", "-q", "-w", *forward])


def _settings(lab: Lab) -> Path:
    """What kube-proxy is told, as kubeadm tells it, with the credentials that it has there."""
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
    path = lab.directory / "kube-proxy.json"
    settings = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": f"{PODS},{PODS6}",
        "nodePortAddresses": [f"{ADDRESS}/32", f"{ADDRESS6}/128"],
        "clientConnection": {"kubeconfig": str(credentials)},
        "healthzBindAddress": _HEALTH,
        "metricsBindAddress": "127.0.0.1:10249",
        # The kernel's own: the machine's is not a test's to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
    path.write_text(json.dumps(settings))
    return path
