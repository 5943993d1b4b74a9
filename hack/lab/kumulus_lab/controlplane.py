"""What a lab asks of its Kubernetes cluster, whatever runs it: our own processes (`cluster`) or kind (`kind`).

Every start method may be repeated and finds what runs.
"""

from __future__ import annotations

import http.client
import signal
import ssl
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import urlsplit

from kumulus_lab import commands, kubeconfig
from kumulus_lab.certificates import Pair

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["*"]
- level: Metadata
"""


class ControlPlane(ABC):
    """A Kubernetes cluster whose files are in a lab's directory."""

    def __init__(self, directory: Path, port: int, address: str | None) -> None:
        """A cluster with its files in that directory; `address` is where hosts reach its API server, if not only here."""
        self.directory = directory
        self.port = port
        self.address = address

    @property
    def kubeconfig(self) -> Path:
        """Credentials of an administrator, by client certificate."""
        return self.directory / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """Every request but health checks, at level Metadata, one JSON object a line."""
        return self.directory / "logs" / "audit.log"

    @property
    def server(self) -> str:
        """The API server's address on this machine."""
        return f"https://127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def kubectl(self) -> Path:
        """A kubectl that fits the cluster."""

    @property
    @abstractmethod
    def certificate_authority(self) -> Path:
        """The certificate that signed the API server's."""

    @property
    @abstractmethod
    def administrator(self) -> Pair:
        """The client certificate in `kubeconfig`."""

    @abstractmethod
    def start(self) -> None:
        """Bring it up and wait until it answers."""

    @abstractmethod
    def remove(self) -> None:
        """End everything of it; the files go with the lab's directory."""

    @abstractmethod
    def start_apiserver(self) -> None:
        """The API server runs and is ready."""

    @abstractmethod
    def restart_apiserver(self, *, by: signal.Signals = signal.SIGTERM) -> None:
        """End the API server by a signal and bring it back on the same port."""

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            context = ssl.create_default_context(cafile=str(self.certificate_authority))
            context.load_cert_chain(self.administrator.certificate, self.administrator.key)
        except FileNotFoundError:
            return False
        parts = urlsplit(self.server)
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=5, context=context)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def kubectl_run(self, *words: str | Path, check: bool = True, stdin: str | None = None) -> commands.Finished:
        """Run kubectl as an administrator."""
        return commands.run([self.kubectl, "--kubeconfig", self.kubeconfig, *words], check=check, stdin=stdin)

    def token(self, namespace: str, account: str, *, seconds: int = 7 * 24 * 3600) -> str:
        """A token of a service account."""
        words = ["-n", namespace, "create", "token", account, f"--duration={seconds}s"]
        return self.kubectl_run(*words).stdout.strip()

    def kubeconfig_for(self, path: Path, namespace: str, account: str) -> Path:
        """Write credentials of a service account, for a process on this machine."""
        token = self.token(namespace, account)
        return kubeconfig.write(path, server=self.server, authority=self.certificate_authority, token=token)
