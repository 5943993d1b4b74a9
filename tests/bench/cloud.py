"""The cloud that is measured: a lab of its own, its processes, and the bench's client to it.

Everything started here belongs to the lab, which is taken down when the block ends, however it ends. A bench
that was killed leaves its lab behind; the next one clears it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kumulus.api.base import ConditionStatus
from kumulus.api.fabric import Host, HostCondition, HostPhase
from kumulus.kube.client import KubeClient
from kumulus_lab import places
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.processes import Daemon, Identity
from kumulus_lab.state import ZONE, Hypervisor
from tests.bench.audit import BENCH_AGENT, AuditLog

_PREFIX = "bench"
Say = Callable[[str], None]


class BenchError(Exception):
    """Something did not come about, so there is nothing to measure. The text says what."""


@dataclass(slots=True)
class Cloud:
    """A lab that runs, and what the bench knows of it."""

    lab: Lab
    say: Say
    fleets: list[Daemon] = field(default_factory=list)
    hosts: int = 0
    """Simulated hosts."""

    async def client(self, pool: int = 256) -> KubeClient:
        """A client with an administrator's credentials that the audit log knows as the user's. Close it."""
        return await KubeClient.from_kubeconfig(self.lab.kubeconfig, user_agent=BENCH_AGENT, pool_size=pool)

    def audit(self) -> AuditLog:
        """The audit log from now on."""
        return AuditLog(self.lab.audit_log)

    def pid(self, daemon: Daemon) -> int:
        """Its process id. Raises BenchError when it does not run."""
        identity = daemon.identity()
        if identity is None:
            raise BenchError(f"{daemon.name} does not run; its log ends:\n{daemon.tail()}")
        return identity.pid

    @property
    def controllers(self) -> int:
        """Process id of the controllers."""
        return self.pid(self.lab.services.controllers)

    @property
    def apiserver(self) -> int:
        """Process id of the API server."""
        return self.pid(self.lab.cluster.daemon("kube-apiserver"))

    @property
    def etcd(self) -> int:
        """Process id of etcd."""
        return self.pid(self.lab.cluster.daemon("etcd"))

    def processes(self) -> dict[str, list[int]]:
        """What uses the CPU, by name."""
        return {
            "controllers": [self.controllers],
            "apiserver": [self.apiserver],
            "etcd": [self.etcd],
            "agents": [self.pid(fleet) for fleet in self.fleets],
            "bench": [os.getpid()],
        }

    def keep_logs(self) -> Path:
        """Copy the lab's logs to where they outlive it."""
        return _keep_logs(self.lab.directory)

    async def grow(self, hosts: int, *, name: str = "") -> list[str]:
        """At least so many simulated hosts are Ready; returns the names of those that are new.

        Hosts with a name of their own are not counted among them later.
        """
        missing = hosts - self.hosts
        if missing <= 0:
            return []
        label = name or "abcdefghijklmnopqrstuvwxyz"[len(self.fleets)]
        fleet = Daemon.within(self.lab.directory, f"fleet-{label}")
        prefix = f"sim-{label}-"
        self.say(f"{missing} more simulated hosts")
        words = [f"--count={missing}", f"--prefix={prefix}", f"--zone={ZONE}", f"--kubeconfig={self.lab.kubeconfig}"]
        fleet.start(
            [places.script("kumulus-agent"), "fleet", *words],
            {**os.environ, "KUMULUS_LOG_FORMAT": "json"},
        )
        self.fleets.append(fleet)
        new = [f"{prefix}{number}" for number in range(1, missing + 1)]
        await self.ready(new, seconds=60 + missing * 0.3)
        self.hosts = hosts if not name else self.hosts
        return new

    async def ready(self, names: list[str], *, seconds: float) -> None:
        """Return when these hosts take machines. Raises BenchError."""
        client = await self.client(4)
        waiting = set(names)
        try:
            async with asyncio.timeout(seconds):
                while waiting:
                    async for page, _ in client.list_pages(Host.KIND):
                        waiting -= {host.name for host in map(Host.parse, page) if takes_machines(host)}
                    if waiting:
                        await asyncio.sleep(0.5)
        except TimeoutError:
            tails = "\n".join(fleet.tail() for fleet in self.fleets)
            some = ", ".join(sorted(waiting)[:3])
            raise BenchError(f"{len(waiting)} hosts are not Ready ({some}); logs end:\n{tails}") from None
        finally:
            await client.close()


def takes_machines(host: Host) -> bool:
    """Whether machines can be placed there."""
    schedulable = host.status.condition(HostCondition.SCHEDULABLE)
    return (
        host.status.phase is HostPhase.READY
        and schedulable is not None
        and schedulable.status is ConditionStatus.TRUE
        and host.status.allocatable is not None
    )


def _clear() -> None:
    for directory in places.labs().glob(f"{_PREFIX}*"):
        try:
            owner = json.loads((directory / "owner.json").read_text())
            alive = Identity(pid=owner["pid"], started=owner["started"]).alive()
        except (OSError, ValueError, KeyError):
            alive = False
        if not alive:
            Lab(directory.name).down()


@contextmanager
def simulated(say: Say) -> Iterator[Cloud]:
    """A control plane with controllers; hosts come with `grow`."""
    wanted = Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False)
    with _cloud(wanted, say) as cloud:
        yield cloud


@contextmanager
def libvirt(say: Say, hosts: int) -> Iterator[Cloud]:
    """A control plane with controllers and libvirt hosts with their agents."""
    with _cloud(Wanted(hosts=hosts), say) as cloud:
        yield cloud


@contextmanager
def _cloud(wanted: Wanted, say: Say) -> Iterator[Cloud]:
    _clear()
    lab = Lab(_PREFIX + secrets.token_hex(1), say)
    identity = Identity.of(os.getpid())
    assert identity is not None
    lab.directory.mkdir(parents=True)
    (lab.directory / "owner.json").write_text(json.dumps({"pid": identity.pid, "started": identity.started}))
    try:
        lab.up(wanted)
        yield Cloud(lab, say)
    except BaseException:
        kept = _keep_logs(lab.directory)
        say(f"logs of the lab: {kept}")
        raise
    finally:
        say("taking the lab down")
        lab.down()


def _keep_logs(directory: Path) -> Path:
    """The logs of a run that failed, where the next one that fails puts its own."""
    kept = places.cache() / "bench-logs"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(directory / "logs", kept, ignore=shutil.ignore_patterns("audit*"), dirs_exist_ok=True)
    return kept
