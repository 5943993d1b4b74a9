"""The node of a lab's cluster, on which real pods run: containerd, kubelet, kube-proxy and CoreDNS in a machine of their own,
and the scheduler beside the other parts of the control plane.

The machine is one of the lab, as hosts are: when its init ends, every process in every pod has ended. Pods have addresses
that only the node knows; what they send elsewhere has the node's.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from kumulus_lab import binaries, containers, deadline, gotools, kubeconfig, places
from kumulus_lab.certificates import Pair
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.host import LibvirtHost
from kumulus_lab.network import Network
from kumulus_lab.processes import Daemon
from kumulus_lab.state import NODE, HostState

Say = Callable[[str], None]

_NUMBER = 190
"""Of its cable and address: above those of hosts."""
_SCRIPT = Path(__file__).with_name("node.sh")
_PODS = "10.244.0.0/24"
_DNS = "10.96.0.10"
_PAUSE = "kumulus/pause:1"
_SOCKET = "/run/containerd/containerd.sock"
_MASQUERADE = f"""\
table ip pods {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {_PODS} ip daddr != {_PODS} masquerade
  }}
}}
"""
_CONTAINERD = """\
version = 2
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/cni"
"""


class Node:
    """The node of one lab."""

    def __init__(self, directory: Path, network: Network, cluster: NativeCluster) -> None:
        self._directory = directory
        self._network = network
        self._cluster = cluster
        self._machine = LibvirtHost(directory, network, HostState(name=NODE, number=_NUMBER))

    @property
    def _files(self) -> Path:
        return self._machine.directory

    @property
    def _cgroup(self) -> str:
        return f"kumulus-lab-{self._network.lab}"

    def start(self, say: Say = lambda _: None) -> None:
        """The node is ready and names are resolved in it; may be repeated."""
        programs = binaries.node(say)
        self._start_scheduler(programs.scheduler)
        if not self._machine.running():
            self._machine.boot()
            self._machine.exec(["bash", _SCRIPT, self._files, self._cgroup])
            self._machine.exec(["ip", "route", "add", "default", "via", self._network.address])
            self._machine.exec(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
            self._write("masquerade.nft", _MASQUERADE)
            self._machine.exec(["nft", "-f", self._files / "masquerade.nft"])
        self._start_containerd()
        self.load(self._pause())
        self._start_kubelet(programs.kubelet)
        self._start_proxy(programs.proxy)
        deadline.until(self.ready, "the readiness of the node", seconds=90, alive=self._machine.daemon("kubelet").ended)
        self._start_dns(say)

    def load(self, archive: Path) -> None:
        """The image in that archive can be used by pods."""
        self._machine.exec(
            ["ctr", f"--address={_SOCKET}", "--namespace=k8s.io", "images", "import", archive], seconds=180
        )

    def ready(self) -> bool:
        """Whether the node says that pods can run on it."""
        path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return self._cluster.kubectl_run("get", "node", NODE, "-o", path, check=False).stdout == "True"

    def _write(self, name: str, text: str) -> Path:
        path = self._files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def _credentials(self, name: str, user: str, groups: tuple[str, ...] = (), *, here: bool = False) -> Path:
        pki = self._directory / "pki"
        pair = Pair(certificate=pki / f"{name}.crt", key=pki / f"{name}.key")
        self._cluster.authority.ensure_client(pair, user, groups)
        return kubeconfig.write(
            self._directory / f"{name}.kubeconfig",
            server=self._cluster.server if here else f"https://{self._network.address}:{self._cluster.port}",
            authority=self._cluster.certificate_authority,
            client=pair,
        )

    def _start_scheduler(self, program: Path) -> None:
        credentials = self._credentials("scheduler", "system:kube-scheduler", here=True)
        argv: list[str | Path] = [program, f"--kubeconfig={credentials}", "--leader-elect=false", "--secure-port=0"]
        Daemon.within(self._directory, "kube-scheduler").start(argv)

    def _start_containerd(self) -> None:
        settings = self._write(
            "containerd.toml", _CONTAINERD.format(socket=_SOCKET, pause=_PAUSE, directory=self._files)
        )
        plugins = [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "hairpinMode": True,
                "ipMasq": False,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": _PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "loopback"},
        ]
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins[:1]}
        self._write("cni/10-pods.conflist", json.dumps(network))
        self._machine.start_service("containerd", ["containerd", f"--config={settings}"])
        asks = ["ctr", f"--address={_SOCKET}", "version"]
        deadline.until(
            lambda: self._machine.exec(asks, check=False).returncode == 0,
            "an answer of containerd",
            seconds=30,
            alive=self._machine.daemon("containerd").ended,
        )

    def _pause(self) -> Path:
        return containers.program(
            _PAUSE, {"/bin/busybox": Path("/bin/busybox")}, ["/bin/busybox", "sleep", "2147483647"]
        )

    def _start_kubelet(self, program: Path) -> None:
        credentials = self._credentials("kubelet", f"system:node:{NODE}", ("system:nodes",))
        settings = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._cluster.certificate_authority)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "clusterDNS": [_DNS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "resolvConf": str(self._write("resolv.conf", "")),
        }
        path = self._write("kubelet.json", json.dumps(settings))
        options = [f"--kubeconfig={credentials}", f"--hostname-override={NODE}", f"--node-ip={self._machine.address}"]
        self._machine.start_service("kubelet", [program, f"--config={path}", *options])

    def _start_proxy(self, program: Path) -> None:
        settings = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": _PODS,
            "clientConnection": {"kubeconfig": str(self._credentials("kube-proxy", "system:kube-proxy"))},
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
        }
        path = self._write("kube-proxy.json", json.dumps(settings))
        self._machine.start_service("kube-proxy", [program, f"--config={path}", f"--hostname-override={NODE}"])

    def _start_dns(self, say: Say) -> None:
        program = gotools.COREDNS.ensure(say)
        self.load(containers.program("kumulus/coredns:1", {"/coredns": program}, ["/coredns"]))
        manifest = places.CHECKOUT / "hack" / "lab" / "manifests" / "dns.yaml"
        self._cluster.kubectl_run("apply", "--server-side", f"--filename={manifest}")
        words = ["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s"]
        self._cluster.kubectl_run(*words)


def remove_cgroups(lab: str) -> None:
    """Nothing is left of the control groups of a lab's node, whose processes have ended."""
    groups = Path("/sys/fs/cgroup")
    for top in (*groups.glob(f"*/kumulus-lab-{lab}"), groups / f"kumulus-lab-{lab}"):
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
