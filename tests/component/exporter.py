"""An exporter in a process of its own, and a real NATS server."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kumulus.api.base import PLATFORM_NAMESPACE
from kumulus_lab import places
from kumulus_lab.controlplane import ControlPlane
from kumulus_lab.processes import Daemon


class Exporter:
    """`kumulus run -m services.events` with a journal of its own."""

    def __init__(self, cluster: ControlPlane, directory: Path, **settings: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._daemon = Daemon.within(directory, "events")
        config = directory / "config.yaml"
        events = {
            "directory": str(directory / "journal"),
            "lease": "kumulus-events",
            "allowed_ranges": ["127.0.0.1/32"],
            "status_seconds": 0,
            **settings,
        }
        config.write_text(yaml.safe_dump({"include": ["services.events"], "modules": {"services.events": events}}))
        credentials = cluster.kubeconfig_for(directory / "kubeconfig", PLATFORM_NAMESPACE, "kumulus-events")
        self._env = {
            **os.environ,
            "KUBECONFIG": str(credentials),
            "KUMULUS_CONFIG": str(config),
            "KUMULUS_HTTP_PORT": "0",
            "KUMULUS_LOG_FORMAT": "json",
        }

    def start(self) -> None:
        self._daemon.start([places.script("kumulus"), "run"], self._env)

    @property
    def pid(self) -> int:
        """Its process id; 0 when it does not run."""
        identity = self._daemon.identity()
        return identity.pid if identity is not None else 0

    def kill(self) -> None:
        """SIGKILL."""
        self._daemon.kill()

    def stop(self) -> None:
        self._daemon.stop()

    def log(self) -> str:
        return "\n".join(path.read_text() for path in self.directory.rglob("*.log"))

    def forget_positions(self) -> None:
        """As if it had been away for so long that the API server does not know any more what happened since."""
        with sqlite3.connect(self.directory / "journal" / "journal.sqlite") as journal:
            journal.execute("UPDATE positions SET version = '1'")
        journal.close()


@contextmanager
def exporting(cluster: ControlPlane, directory: Path, **settings: Any) -> Iterator[Exporter]:
    exporter = Exporter(cluster, directory, **settings)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.kill()


@contextmanager
def nats_server(directory: Path, port: int) -> Iterator[Daemon]:
    """A real server with JetStream."""
    daemon = Daemon.within(directory, "nats")
    program = shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise FileNotFoundError("there is no nats-server: `hack/setup.py --tests` installs it")
    words = [program, "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(directory / "store")]
    daemon.start(words)
    try:
        yield daemon
    finally:
        daemon.stop()
