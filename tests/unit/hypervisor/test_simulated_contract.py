"""The simulated hypervisor keeps the contract, at once and with delays."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest

from kumulus_agents.hypervisor.domain import DomainDisk, DomainNic, DomainSpec, DomainState, ExitReason
from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignDomain, ForeignNic, ForeignShape
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, SimulatedSettings
from kumulus_agents.network.protocol import Plug
from kumulus_agents.storage.source import FileSource, LayerFile
from tests.contract.hypervisor import FOREIGN_MAC, HypervisorContract, World, new_marks


class SimulatedWorld(World):
    """A simulated host."""

    def __init__(self, settings: SimulatedSettings) -> None:
        self.host = SimulatedHost(settings)

    def driver(self) -> SimulatedHypervisor:
        return SimulatedHypervisor(self.host)

    def spec(self) -> DomainSpec:
        return DomainSpec(new_marks(), cpus=1, memory=1 << 26, disks=(), console_log="/nowhere/console.log")

    def guest(self) -> DomainSpec:
        return self.spec()

    def volume(self) -> DomainDisk:
        volume = str(uuid.uuid4())
        return DomainDisk("data", FileSource(f"/simulated/{volume}.qcow2"), "qcow2", volume=volume)

    def disc(self) -> FileSource:
        return FileSource(f"/simulated/{uuid.uuid4()}.raw")

    def nic(self) -> DomainNic:
        uid = str(uuid.uuid4())
        return DomainNic(uid, f"02:00:00:00:{uid[:2]}:{uid[2:4]}", Plug(f"kt{uid[:8]}", "kb", 1450))

    def taps(self) -> frozenset[str]:
        on = (domain for domain in self.host.domains.values() if domain.state is not DomainState.STOPPED)
        return frozenset(nic.device for domain in on for nic in domain.nics)

    def layer(self, below: str) -> LayerFile:
        return LayerFile(f"{below}.{uuid.uuid4()}", "qcow2")

    def broken_spec(self) -> DomainSpec:
        self.host.fail_next_start()
        return self.spec()

    async def booted(self, spec: DomainSpec) -> None:
        pass

    async def crash(self, spec: DomainSpec) -> None:
        self.host.end(spec.marks.uid, ExitReason.CRASHED)

    async def plant(self) -> str:
        shape = ForeignShape(disks=[ForeignDisk("vda", source="/x")], nics=[ForeignNic(FOREIGN_MAC)])
        domain = ForeignDomain(str(uuid.uuid4()), "by-hand", "running", 1, 1 << 26, True, shape)
        self.host.plant(domain)
        return domain.uuid

    async def uproot(self, uuid: str) -> None:
        self.host.uproot(uuid)

    async def foreign_is_on(self, uuid: str) -> bool:
        return self.host.foreign[uuid].state == "running"

    async def cut(self) -> None:
        self.host.disconnect()

    async def heal(self) -> None:
        self.host.reconnect()


BEHAVIOURS: Sequence[SimulatedSettings] = (
    SimulatedSettings(),
    SimulatedSettings(start_seconds=0.01, stop_seconds=0.005, shutdown_seconds=0.02, detach_seconds=0.01),
)


class TestSimulated(HypervisorContract):
    @pytest.fixture(params=BEHAVIOURS, ids=["at-once", "with-delays"])
    def world(self, request: pytest.FixtureRequest) -> World:
        return SimulatedWorld(request.param)
