"""Kumulus' own processes in a lab: what is installed in the cluster, the controllers, the agents.

Speaks to them only by their commands, as an operator would. Decides nothing about hosts or the cluster.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kumulus_lab import commands, deadline, openvswitch, places
from kumulus_lab.controlplane import ControlPlane
from kumulus_lab.errors import LabError
from kumulus_lab.host import LibvirtHost
from kumulus_lab.processes import Daemon
from kumulus_lab.state import ZONE, LabState, Networking

_MANIFESTS = places.CHECKOUT / "hack" / "lab" / "manifests"
_SYSTEM = "kumulus-system"
_AGENT = places.script("kumulus-agent")
_CREDENTIALS = "credentials/identity.json"
_PREFIX = "sim-"
_ACCOUNT = "kumulus-controllers"
AGENT_PORT = 9410
"""Where an agent answers for its health and metrics, inside its host."""


@dataclass(frozen=True, slots=True)
class Services:
    """The processes of one lab."""

    directory: Path
    state: LabState
    cluster: ControlPlane

    @property
    def controllers(self) -> Daemon:
        """The controllers."""
        return Daemon.within(self.directory, "controllers")

    @property
    def fleet(self) -> Daemon:
        """The simulated hosts."""
        return Daemon.within(self.directory, "fleet")

    def install(self) -> None:
        """Kinds, roles and admission policies are in the cluster, and so is what the lab's examples refer to."""
        self._kumulusctl("install", seconds=120)
        self._apply("zone.yaml")

    def offer_networks(self) -> None:
        """Tenants are offered the way to the network outside, and what makes their networks."""
        self._apply("outside.yaml")
        if self.state.networking is Networking.OVN:
            self._apply("ovn.yaml")

    def _apply(self, manifest: str) -> None:
        self.cluster.kubectl_run("apply", "--server-side", f"--filename={_MANIFESTS / manifest}")

    def start_controllers(self, extra: Mapping[str, str] | None = None) -> None:
        """Start the controllers with credentials of their own, and wait until they are ready."""
        daemon = self.controllers
        if not daemon.running():
            credentials = self.cluster.kubeconfig_for(self.directory / "controllers.kubeconfig", _SYSTEM, _ACCOUNT)
            env = self._env(credentials)
            env |= {"KUMULUS_HTTP_PORT": str(self.state.http_port), "KUMULUS_LOG_FORMAT": "json"}
            env |= {"KUMULUS_LOCK_FILE": str(self.directory / "run" / "controllers.lock"), **(extra or {})}
            daemon.start([places.script("kumulus"), "run"], env)
        url = f"http://127.0.0.1:{self.state.http_port}/readyz"
        deadline.until(lambda: answers(url), "the controllers' readiness", seconds=60, alive=daemon.ended)

    def join(self, host: LibvirtHost) -> None:
        """The host has an identity; made with a one-time token when it has none, or was off for too long to renew it."""
        if _valid(host.state_directory / _CREDENTIALS):
            return
        bundle = host.directory / "join.bundle"
        server = f"https://{host.network.address}:{self.state.cluster_ports[2]}"
        words = ["host", "add", host.name, "--zone", host.state.zone, "--hypervisor", "libvirt", "--server", server]
        self._kumulusctl(*words, "--output", str(bundle))
        host.exec([_AGENT, "join", f"--bundle={bundle}", "--state=/var/lib/kumulus"], seconds=60)
        bundle.unlink(missing_ok=True)

    def start_agent(self, host: LibvirtHost) -> None:
        """The agent runs on that host."""
        options = ["--state=/var/lib/kumulus", "--hypervisor=libvirt", f"--http-port={AGENT_PORT}"]
        env = {**self._env(None), "KUMULUS_LOG_FORMAT": "json", "LIBVIRT_DEFAULT_URI": "qemu:///system"}
        env |= openvswitch.AGENT if host.ovn else {}
        host.start_service("agent", [_AGENT, "run", *options], env)

    def start_fleet(self) -> None:
        """The simulated hosts run, all in one process."""
        if self.state.simulated:
            options = [f"--count={self.state.simulated}", f"--prefix={_PREFIX}", f"--zone={ZONE}"]
            options += [f"--kubeconfig={self.cluster.kubeconfig}", f"--http-port={self.state.fleet_port}"]
            self.fleet.start([_AGENT, "fleet", *options], {**self._env(None), "KUMULUS_LOG_FORMAT": "json"})

    def simulated_hosts(self) -> list[str]:
        """The names of the simulated hosts."""
        return [f"{_PREFIX}{number}" for number in range(1, self.state.simulated + 1)]

    def wait_for_hosts(self, names: list[str], *, seconds: float = 90) -> None:
        """Return when each of these Hosts answers, also one in maintenance; with how far they are when they do not."""

        def waiting() -> dict[str, str]:
            output = self.cluster.kubectl_run("get", "hosts.fabric.kumulus.io", "-o", "json", check=False).stdout
            items = json.loads(output or "{}")
            phases = {
                item["metadata"]["name"]: str(item.get("status", {}).get("phase", "not reported"))
                for item in items.get("items", [])
            }
            return {
                name: phases.get(name, "missing") for name in names if phases.get(name) not in ("Ready", "Maintenance")
            }

        end = time.monotonic() + seconds
        last: dict[str, str] = dict.fromkeys(names, "unknown")

        def probe() -> bool:
            nonlocal last
            last = waiting()
            return not last

        try:
            deadline.until(probe, "ready hosts", seconds=max(0.0, end - time.monotonic()), every=0.3)
        except LabError as error:
            late = ", ".join(f"{name} is {phase}" for name, phase in sorted(last.items())[:5])
            raise LabError(f"hosts are not Ready after {seconds:.0f} s: {late}; see `kumulus-lab logs`") from error

    def _kumulusctl(self, *words: str, seconds: float = 60) -> commands.Finished:
        return commands.run(
            [places.script("kumulusctl"), *words], env=self._env(self.cluster.kubeconfig), seconds=seconds
        )

    def _env(self, credentials: Path | None) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key not in {"KUBECONFIG", "TERM"}}
        if credentials is not None:
            env["KUBECONFIG"] = str(credentials)
        return env


def _valid(credentials: Path) -> bool:
    """Whether an agent's credentials are there and will be for a while."""
    try:
        expires = datetime.fromisoformat(json.loads(credentials.read_text())["expiresAt"])
    except (FileNotFoundError, ValueError, KeyError):
        return False
    return expires > datetime.now(UTC) + timedelta(minutes=1)


def answers(url: str) -> bool:
    """Whether a health check says yes."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
