"""The control plane as kind runs it, where a container engine really works.

The same audit log and the same addresses as our own (`cluster`), so that callers need not know. Kumulus' own
processes stay outside, on this machine, as they do with our own.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import stat
from pathlib import Path

import yaml

from kumulus_lab import binaries, commands, deadline
from kumulus_lab.certificates import Pair
from kumulus_lab.controlplane import AUDIT_POLICY, ControlPlane
from kumulus_lab.errors import LabError

CHOICE = "KUMULUS_LAB_CLUSTER"
"""`kind` or `native` instead of what is found out."""
OLDEST = (1, 32)
_START_SECONDS = 300


def engine() -> str | None:
    """The container engine that really runs here; None when there is none."""
    for program in ("docker", "podman"):
        if shutil.which(program) and commands.works([program, "info"]):
            return program
    return None


def chosen() -> bool:
    """Whether kind shall run the control plane. Raises LabError when it was asked for and cannot."""
    wanted = os.environ.get(CHOICE, "")
    if wanted not in {"", "kind", "native"}:
        raise LabError(f"{CHOICE}={wanted} is neither kind nor native")
    if wanted == "native":
        return False
    able = shutil.which("kind") is not None and engine() is not None
    if wanted == "kind" and not able:
        raise LabError(f"{CHOICE}=kind needs the program kind and a container engine that runs")
    return able


class KindCluster(ControlPlane):
    """A kind cluster of one node, named after its lab."""

    def __init__(self, lab: str, directory: Path, port: int, address: str | None = None) -> None:
        super().__init__(directory, port, address)
        self.name = f"kumulus-{lab}"

    @property
    def kubectl(self) -> Path:
        """The kubectl that is installed, else one of ours."""
        installed = shutil.which("kubectl")
        return Path(installed) if installed else binaries.ensure().kubectl

    @property
    def certificate_authority(self) -> Path:
        """kind's own, taken from its kubeconfig."""
        return self.directory / "pki" / "ca.crt"

    @property
    def administrator(self) -> Pair:
        """kind's administrator, taken from its kubeconfig."""
        pki = self.directory / "pki"
        return Pair(certificate=pki / "admin.crt", key=pki / "admin.key")

    @property
    def _node(self) -> str:
        return f"{self.name}-control-plane"

    def exists(self) -> bool:
        """Whether kind knows it."""
        return self.name in self._kind("get", "clusters", check=False).stdout.split()

    def start(self) -> None:
        """Bring it up and wait until it answers."""
        if not self.exists():
            (self.directory / "logs").mkdir(parents=True, exist_ok=True)
            (self.directory / "audit-policy.yaml").write_text(AUDIT_POLICY)
            settings = self.directory / "kind.yaml"
            settings.write_text(yaml.safe_dump(self.settings(), sort_keys=False))
            words: list[str | Path] = [
                "--config",
                settings,
                "--kubeconfig",
                self.kubeconfig,
                f"--wait={_START_SECONDS}s",
            ]
            self._kind("create", "cluster", *words, seconds=2 * _START_SECONDS)
        self._credentials()
        self.start_apiserver()
        self._check_version()

    def remove(self) -> None:
        """End everything of it; the files go with the lab's directory."""
        if shutil.which("kind") and self.exists():
            self._kind("delete", "cluster", seconds=120)

    def start_apiserver(self) -> None:
        """Wait until the API server is ready; in kind it is kept running."""
        deadline.until(self.ready, "the API server's readiness", seconds=_START_SECONDS, every=0.3)

    def restart_apiserver(self, *, by: signal.Signals = signal.SIGTERM) -> None:
        """End the API server by a signal; the node brings it back."""
        program = engine()
        if program is None:
            raise LabError("the container engine does not answer any more")
        commands.run([program, "exec", self._node, "pkill", f"-{by.value}", "--exact", "kube-apiserver"])
        self.start_apiserver()

    def settings(self) -> dict[str, object]:
        """What kind is told (kind.x-k8s.io/v1alpha4)."""
        patch = {
            "kind": "ClusterConfiguration",
            "apiServer": {
                "certSANs": ["localhost", "127.0.0.1", *([self.address] if self.address else [])],
                "extraArgs": {
                    "audit-policy-file": "/etc/kubernetes/audit/policy.yaml",
                    "audit-log-path": "/var/log/kubernetes/audit.log",
                    "audit-log-maxsize": "4096",
                    "service-account-extend-token-expiration": "false",
                },
                "extraVolumes": [
                    {
                        "name": "audit-policy",
                        "hostPath": "/etc/kubernetes/audit",
                        "mountPath": "/etc/kubernetes/audit",
                        "readOnly": True,
                        "pathType": "DirectoryOrCreate",
                    },
                    {
                        "name": "audit-log",
                        "hostPath": "/var/log/kubernetes",
                        "mountPath": "/var/log/kubernetes",
                        "readOnly": False,
                        "pathType": "DirectoryOrCreate",
                    },
                ],
            },
        }
        return {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "name": self.name,
            "networking": {
                "apiServerAddress": "0.0.0.0" if self.address else "127.0.0.1",  # noqa: S104
                "apiServerPort": self.port,
            },
            "nodes": [
                {
                    "role": "control-plane",
                    "kubeadmConfigPatches": [yaml.safe_dump(patch, sort_keys=False)],
                    "extraMounts": [
                        {
                            "hostPath": str(self.directory / "audit-policy.yaml"),
                            "containerPath": "/etc/kubernetes/audit/policy.yaml",
                            "readOnly": True,
                        },
                        {"hostPath": str(self.directory / "logs"), "containerPath": "/var/log/kubernetes"},
                    ],
                }
            ],
        }

    def _credentials(self) -> None:
        """Take kind's kubeconfig apart, and have it name an address of this machine."""
        document = yaml.safe_load(self._kind("get", "kubeconfig").stdout)
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        cluster["server"] = self.server
        pki = self.directory / "pki"
        pki.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("ca.crt", cluster["certificate-authority-data"]),
            ("admin.crt", user["client-certificate-data"]),
            ("admin.key", user["client-key-data"]),
        ):
            _write_private(pki / name, base64.b64decode(text))
        _write_private(self.kubeconfig, yaml.safe_dump(document, sort_keys=False).encode())

    def _check_version(self) -> None:
        version = yaml.safe_load(self.kubectl_run("version", "-o", "yaml").stdout)["serverVersion"]
        found = (int(version["major"]), int("".join(filter(str.isdigit, version["minor"]))))
        if found < OLDEST:
            raise LabError(
                f"kind runs Kubernetes {version['gitVersion']}, and Kumulus needs {OLDEST[0]}.{OLDEST[1]} or later:"
                f" upgrade kind, or set {CHOICE}=native"
            )

    def _kind(self, *words: str | Path, check: bool = True, seconds: float = 60) -> commands.Finished:
        named = [] if words[:2] == ("get", "clusters") else ["--name", self.name]
        return commands.run(["kind", *words, *named], check=check, seconds=seconds)


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads."""
    path.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    path.write_bytes(content)
