"""A real Kubernetes control plane, run natively from its programs: etcd, API server, controller manager.

No kubelet and no scheduler: Kumulus' own processes run beside it. etcd does not flush to disk here; a lab is
made to be thrown away. Every start method may be repeated and finds what runs.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from kumulus_lab import certificates, commands, deadline, kubeconfig
from kumulus_lab.binaries import Binaries
from kumulus_lab.certificates import Authority, Pair
from kumulus_lab.controlplane import AUDIT_POLICY, ControlPlane
from kumulus_lab.processes import Daemon

_START_SECONDS = 60
_SERVICES = "10.96.0.0/16,fd00:10:96::/112"
_ISSUER = "https://kubernetes.default.svc"

# Only what Kumulus or its users lean on; the rest costs memory and watches for nothing.
_CONTROLLERS = (
    "namespace-controller",
    "serviceaccount-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "clusterrole-aggregation-controller",
    "resourcequota-controller",
    "validatingadmissionpolicy-status-controller",
)


class NativeCluster(ControlPlane):
    """A control plane whose ports were chosen before: etcd's two, the API server's, the controller manager's."""

    def __init__(
        self, directory: Path, binaries: Binaries, ports: tuple[int, int, int, int], address: str | None = None
    ) -> None:
        super().__init__(directory, ports[2], address)
        self.binaries = binaries
        self.ports = ports

    @property
    def kubectl(self) -> Path:
        """The kubectl of this version."""
        return self.binaries.kubectl

    @property
    def certificate_authority(self) -> Path:
        """The lab's own."""
        return self._pki / "ca.crt"

    @property
    def administrator(self) -> Pair:
        """The lab's administrator."""
        return self._pair("admin")

    @property
    def authority(self) -> Authority:
        """What signs the certificates of this cluster."""
        return Authority.ensure(self._pki)

    @property
    def _pki(self) -> Path:
        return self.directory / "pki"

    @property
    def data(self) -> Path:
        """What etcd keeps."""
        return self.directory / "etcd"

    def begin_with(self, data: Path) -> bool:
        """Give etcd a copy of what another one keeps, in one step. False, and nothing is done, when it has something."""
        if self.data.exists():
            return False
        draft = self.data.with_name("etcd.new")
        shutil.rmtree(draft, ignore_errors=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        copy_data(data, draft)
        draft.rename(self.data)
        return True

    def daemon(self, name: str) -> Daemon:
        """One of etcd, kube-apiserver, kube-controller-manager."""
        return Daemon.within(self.directory, name)

    def start(self) -> None:
        """Bring it up and wait until it answers."""
        self._credentials()
        self._start_etcd()
        self.start_apiserver()
        self._start_controller_manager()

    def stop(self) -> None:
        """End it, keeping its data."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self.daemon(name).stop(grace=3)

    def remove(self) -> None:
        """End everything of it; the files go with the lab's directory."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self.daemon(name).kill()

    def start_apiserver(self) -> None:
        """Start the API server, unless it runs, and wait until it is ready."""
        daemon = self.daemon("kube-apiserver")
        if not daemon.running():
            daemon.start(self._apiserver())
        deadline.until(self.ready, "the API server's readiness", seconds=_START_SECONDS, alive=daemon.ended)

    def stop_apiserver(self) -> None:
        """End the API server; clients see refused connections until it is started."""
        self.daemon("kube-apiserver").stop(grace=5)

    def restart_apiserver(self, *, by: signal.Signals = signal.SIGTERM) -> None:
        """End the API server by a signal and bring it back on the same port."""
        daemon = self.daemon("kube-apiserver")
        if by is signal.SIGKILL:
            daemon.kill()
        else:
            daemon.stop(grace=5)
        self.start_apiserver()

    def freeze_apiserver(self) -> None:
        """Let it hang: connections stay open and nothing answers."""
        self.daemon("kube-apiserver").signal(signal.SIGSTOP)

    def thaw_apiserver(self) -> None:
        """Let it go on."""
        self.daemon("kube-apiserver").signal(signal.SIGCONT)

    def _credentials(self) -> None:
        authority = Authority.ensure(self._pki)
        names = ["127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.96.0.1"]
        if self.address:
            names.append(self.address)
        if not (self._pki / "apiserver.crt").exists():
            authority.issue_server(self._pair("apiserver"), "kube-apiserver", names)
        certificates.ensure_signing_key(self._pki / "service-accounts.key")
        admin = authority.ensure_client(self._pair("admin"), "kumulus-lab-admin", ["system:masters"])
        manager = authority.ensure_client(self._pair("controller-manager"), "system:kube-controller-manager")
        ca = authority.pair.certificate
        kubeconfig.write(self.kubeconfig, server=self.server, authority=ca, client=admin)
        kubeconfig.write(self._manager_kubeconfig, server=self.server, authority=ca, client=manager)
        (self.directory / "audit-policy.yaml").write_text(AUDIT_POLICY)

    @property
    def _manager_kubeconfig(self) -> Path:
        return self.directory / "controller-manager.kubeconfig"

    def _pair(self, name: str) -> Pair:
        return Pair(certificate=self._pki / f"{name}.crt", key=self._pki / f"{name}.key")

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in self.ports[:2])
        self.daemon("etcd").start(
            [
                self.binaries.etcd,
                f"--data-dir={self.data}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
                "--quota-backend-bytes=4294967296",
                "--auto-compaction-retention=5m",
                "--log-level=warn",
            ]
        )

    def _apiserver(self) -> list[str | Path]:
        return [
            self.binaries.apiserver,
            f"--etcd-servers=http://127.0.0.1:{self.ports[0]}",
            f"--secure-port={self.ports[2]}",
            f"--bind-address={'0.0.0.0' if self.address else '127.0.0.1'}",  # noqa: S104
            f"--advertise-address={self.address or '127.0.0.1'}",
            "--endpoint-reconciler-type=none",
            f"--service-cluster-ip-range={_SERVICES}",
            f"--tls-cert-file={self._pki / 'apiserver.crt'}",
            f"--tls-private-key-file={self._pki / 'apiserver.key'}",
            f"--client-ca-file={self._pki / 'ca.crt'}",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={self._pki / 'service-accounts.key'}",
            f"--service-account-signing-key-file={self._pki / 'service-accounts.key'}",
            "--service-account-extend-token-expiration=false",
            "--authorization-mode=RBAC",
            "--anonymous-auth=false",
            f"--audit-policy-file={self.directory / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-format=json",
            "--audit-log-maxsize=4096",
            "--shutdown-delay-duration=0s",
        ]

    def _start_controller_manager(self) -> None:
        self.daemon("kube-controller-manager").start(
            [
                self.binaries.controller_manager,
                f"--kubeconfig={self._manager_kubeconfig}",
                # A hundred namespaces that go at once are common in a lab; by default that takes minutes.
                "--kube-api-qps=400",
                "--kube-api-burst=800",
                "--concurrent-namespace-syncs=20",
                f"--root-ca-file={self._pki / 'ca.crt'}",
                f"--service-account-private-key-file={self._pki / 'service-accounts.key'}",
                "--use-service-account-credentials=true",
                f"--controllers={','.join(_CONTROLLERS)}",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--secure-port={self.ports[3]}",
                "--concurrent-gc-syncs=10",
                "--horizontal-pod-autoscaler-sync-period=2s",
            ]
        )


def copy_data(source: Path, target: Path) -> None:
    """Copy what an etcd keeps that does not run. Its journal is mostly room for what comes: holes in the copy."""
    commands.run(["cp", "-r", "--sparse=always", source, target])
