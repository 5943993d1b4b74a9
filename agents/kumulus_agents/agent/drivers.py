"""Puts together what an agent uses its machine through. The only module here that knows drivers by name."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kumulus.api.pool_order import PoolRef
from kumulus.api.segments import NetworkDriverName
from kumulus_agents.agent import machine_facts
from kumulus_agents.agent.agent import Drivers
from kumulus_agents.agent.identity import StateDirectory
from kumulus_agents.agent.instance_files import InstanceFiles, NoFiles, StoredFiles
from kumulus_agents.agent.pools import PoolFactory
from kumulus_agents.agent.report import MachineFacts
from kumulus_agents.agent.settings import AgentSettings, Timings
from kumulus_agents.console import log
from kumulus_agents.hypervisor import registry as hypervisors
from kumulus_agents.hypervisor.protocol import Hypervisor
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, SimulatedSettings
from kumulus_agents.metadata.keeper import Metadata
from kumulus_agents.network import registry as networks
from kumulus_agents.network.protocol import NetworkDriver
from kumulus_agents.network.settings import NetworkSettings
from kumulus_agents.network.simulated import SimulatedNetworks
from kumulus_agents.storage import registry as pools
from kumulus_agents.storage.protocol import StorageDriver
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import Network, StorageSettings
from kumulus_agents.storage.simulated import SimulatedStorage
from kumulus_agents.transfer.transfer import Transfer, address_towards
from kumulus_agents.watchdog.client import Watchdog

SIMULATED = "simulated"


def api_server_networks(server: str) -> tuple[Network, ...]:
    """The addresses of the API server, from which no image may come. Resolves its name."""
    host = urlsplit(server).hostname or ""
    try:
        found = {answer[4][0] for answer in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)}
    except OSError:
        return ()
    return tuple(ipaddress.ip_network(str(address).partition("%")[0]) for address in sorted(map(str, found)))


def pool_factory(settings: StorageSettings, *, simulated: bool) -> PoolFactory:
    """Makes drivers of pools; on simulated hosts every pool is simulated."""

    def make(pool: PoolRef, secrets: Secrets) -> StorageDriver:
        return pools.load(SIMULATED if simulated else pool.driver.value, pool, settings, secrets)

    return make


def real(settings: AgentSettings, state: StateDirectory, server: str, host: str) -> Drivers:
    """The drivers of the machine this process runs on. Raises `HypervisorError` when there is no such driver."""
    simulated = settings.hypervisor == SIMULATED
    files: InstanceFiles = NoFiles() if simulated else stored_files(state)
    hypervisor = hypervisors.load(settings.hypervisor, settings.hypervisor_settings)
    underlay = underlay_of(settings.network, server)
    metadata = settings.network.metadata
    storage = settings.storage.forbidding(*api_server_networks(server)).model_copy(update={"host": host})
    return Drivers(
        hypervisor=hypervisor,
        pool=pool_factory(storage, simulated=simulated),
        files=files,
        console=SimulatedConsole(hypervisor) if simulated else LoggedConsole(files),
        facts=MachineFacts(
            addresses=machine_facts.addresses,
            agent=machine_facts.agent_version(),
            kernel=machine_facts.kernel(),
            os=machine_facts.operating_system(),
        ),
        transfer=Transfer(host, settings.transfer, server, also=underlay)
        if settings.transfer.enabled and not simulated
        else None,
        networks={NetworkDriverName.LINUX: SimulatedNetworks()}
        if simulated
        else network_drivers(settings.network, underlay),
        underlay=underlay,
        metadata=Metadata(state.path / "metadata", metadata) if metadata.enabled and not simulated else None,
        watchdog=Watchdog(settings.watchdog_socket) if not simulated else None,
    )


def underlay_of(settings: NetworkSettings, server: str) -> str | None:
    """The address at which other hosts reach this one's tunnels."""
    if settings.underlay is not None:
        return str(settings.underlay)
    try:
        return address_towards(server)
    except OSError:
        return None


def network_drivers(settings: NetworkSettings, underlay: str | None) -> dict[NetworkDriverName, NetworkDriver]:
    """The drivers of this host's networks, as far as they are installed. Raises `DriverError`."""
    known = networks.names() if settings.enabled else []
    return {
        name: networks.load(name, {"underlay": underlay, **settings.drivers.get(name, {})})
        for name in NetworkDriverName
        if name in known
    }


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulated host is like."""

    cpus: int
    memory: int
    """Bytes."""
    start_seconds: float


def simulated(name: str, settings: AgentSettings, simulation: Simulation) -> Drivers:
    """The drivers of one simulated host of many. What runs there lives as long as they do.

    Made directly: looking for plugins takes 30 ms, which is nothing for one host and too much for thousands.
    """
    hypervisor = SimulatedHypervisor(
        SimulatedHost(
            SimulatedSettings.model_validate(
                {
                    **settings.hypervisor_settings,
                    "cpus": simulation.cpus,
                    "memory": simulation.memory,
                    "start_seconds": simulation.start_seconds,
                    "seed": zlib.crc32(name.encode()),
                }
            )
        )
    )
    return Drivers(
        hypervisor=hypervisor,
        pool=lambda pool, _: SimulatedStorage(pool, settings.storage),
        networks={NetworkDriverName.LINUX: SimulatedNetworks()},
        files=NoFiles(),
        console=SimulatedConsole(hypervisor),
        facts=MachineFacts(addresses=tuple, agent=machine_facts.agent_version(), kernel=None, os="simulated"),
    )


def fleet_timings(settings: AgentSettings) -> Timings:
    """Timings of hosts that share a process: slower heartbeats and fewer workers, unless they were set."""
    given = settings.model_dump(include=set(Timings.model_fields) & settings.model_fields_set)
    return Timings.model_validate({"lease_seconds": 40, "renew_seconds": 10.0, "workers": 2, **given})


class LoggedConsole:
    """Consoles that are logged to files of this host."""

    def __init__(self, files: InstanceFiles) -> None:
        self._files = files

    async def tail(self, uid: str, max_bytes: int) -> str:
        """The end of the log. Raises `OSError` when it is not what it should be."""
        path = self._files.console_log(uid)
        return await asyncio.to_thread(log.tail, path.parent, path.name, max_bytes)


class SimulatedConsole:
    """Consoles of machines that only seem to run: they say so."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor

    async def tail(self, uid: str, max_bytes: int) -> str | None:
        """One line a machine; None when it is not there."""
        domain = await self._hypervisor.domain(uid)
        if domain is None:
            return None
        return f"{domain.marks.namespace}/{domain.marks.name}: simulated guest, {domain.state}\n"[-max_bytes:]


def stored_files(state: StateDirectory) -> InstanceFiles:
    """Files of machines below the state directory."""

    async def write_seed(path: Path, files: Mapping[str, bytes]) -> None:
        from kumulus_agents.storage import seed  # an ISO writer: 8 MiB that an idle host does without

        await seed.write(path, files)

    return StoredFiles(state.instances, write_seed)
