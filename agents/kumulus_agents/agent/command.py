"""`kumulus-agent`: join a cluster, run a host's agent, or run a fleet of simulated hosts."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
import uvloop
from prometheus_client import Gauge
from prometheus_client.registry import Collector

from kumulus.api.quantity import to_bytes
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import KubeError
from kumulus.runtime import http, logging
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.exposition import ASKED
from kumulus.runtime.metrics import QUEUE_DEPTH, count_write
from kumulus_agents.agent import drivers, machine_facts
from kumulus_agents.agent import settings as agent_settings
from kumulus_agents.agent.agent import Agent, Place
from kumulus_agents.agent.credentials import TokenKeeper
from kumulus_agents.agent.drops import Drops
from kumulus_agents.agent.fleet import Fleet, FleetSettings
from kumulus_agents.agent.identity import IdentityProblem, StateDirectory, read_bundle
from kumulus_agents.agent.join import join as join_cluster
from kumulus_agents.agent.settings import AgentSettings, SettingsProblem, Timings
from kumulus_agents.agent.traffic import Counted, InterfaceTraffic
from kumulus_agents.network.protocol import Dropped
from kumulus_agents.plugins import DriverError
from kumulus_agents.watchdog import daemon, guests

log = structlog.get_logger(__name__)

LEASE_AGE = Gauge("kumulus_agent_lease_age_seconds", "Seconds since the last renewal of a Lease; the oldest of all.")

app = typer.Typer(
    help="The agent of a Kumulus host.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

StateOption = Annotated[Path, typer.Option("--state", help="Where the agent keeps identity and machines' files.")]
DEFAULT_STATE = Path("/var/lib/kumulus")


@app.command()
def join(
    bundle: Annotated[str, typer.Option(help="File from `kumulusctl host add`, or - for standard input.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Join a cluster with a one-time bundle."""
    logging.configure()
    try:
        text = sys.stdin.read() if bundle == "-" else Path(bundle).read_text()
        joined = asyncio.run(join_cluster(read_bundle(text), StateDirectory(state), SystemClock()))
    except (IdentityProblem, OSError) as problem:
        _fail(str(problem))
    typer.echo(f"{joined.host} has joined {joined.server}; start it with: kumulus-agent run --state {state}")


@app.command()
def run(
    state: StateOption = DEFAULT_STATE,
    hypervisor: Annotated[str | None, typer.Option(help="Driver: libvirt or simulated.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of health and metrics on localhost.")] = None,
) -> None:
    """Run this host's agent until it is told to stop. Machines go on running."""
    logging.configure()
    try:
        settings = agent_settings.load(state, {"hypervisor": hypervisor, "http_port": http_port})
        uvloop.run(_run(StateDirectory(state), settings))
    except (IdentityProblem, SettingsProblem, DriverError, OSError) as problem:
        _fail(str(problem))


@app.command()
def watchdog(
    socket: Annotated[Path, typer.Option(help="Where the agent reaches it.")] = daemon.SOCKET,
    pids: Annotated[Path, typer.Option(help="Where libvirt keeps the pids of emulators.")] = guests.PIDS,
) -> None:
    """Run this host's watchdog: it ends the host's machines when its Lease cannot be renewed, if the Host asks for that."""
    argv = [sys.executable, "-I", "-m", "kumulus_agents.watchdog", f"--socket={socket}", f"--pids={pids}"]
    os.execv(sys.executable, argv)  # noqa: S606 - itself: a process that holds nothing of the agent


@app.command()
def fleet(
    zone: Annotated[str, typer.Option(help="Zone of the hosts.")],
    count: Annotated[int, typer.Option(min=1, max=20000, help="How many hosts.")] = 10,
    prefix: Annotated[str, typer.Option(help="Their names are this and a number.")] = "sim-",
    kubeconfig: Annotated[Path | None, typer.Option(help="Kubeconfig; default as kubectl.")] = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each host.")] = 64,
    memory: Annotated[str, typer.Option(help="Memory of each host.")] = "256Gi",
    start_delay: Annotated[int, typer.Option(min=0, help="Milliseconds a machine takes to start.")] = 0,
    http_port: Annotated[int, typer.Option(help="Port of health and metrics on localhost; 0: a free one.")] = 0,
) -> None:
    """Run many simulated hosts in this process."""
    logging.configure()
    try:
        settings = agent_settings.load(None, {"hypervisor": drivers.SIMULATED, "http_port": http_port})
        wanted = FleetSettings(count, prefix, zone, drivers.fleet_timings(settings))
        simulation = drivers.Simulation(cpus=cpus, memory=to_bytes(memory), start_seconds=start_delay / 1000)
        uvloop.run(_fleet(kubeconfig, settings, wanted, simulation))
    except (SettingsProblem, DriverError, KubeError, ValueError, OSError) as problem:
        _fail(str(problem))


async def _run(state: StateDirectory, settings: AgentSettings) -> None:
    clock = SystemClock()
    state.prepare()
    credentials = state.load()
    keeper = TokenKeeper(state, credentials, clock, renewed=lambda: agent.reporter.refresh())
    client = KubeClient.with_token(
        credentials.server,
        state.authority,
        keeper.token,
        user_agent=f"kumulus-agent/{machine_facts.agent_version()} ({credentials.host})",
        on_write=count_write,
    )
    agent = Agent(
        Place(credentials.host, credentials.namespace),
        client,
        drivers.real(settings, state, credentials.server, credentials.host),
        timings=settings,
        clock=clock,
        expires_at=lambda: keeper.expires_at,
    )
    try:
        async with _serving(settings, lambda: [agent], _readiness(agent, settings, keeper)):
            log.info("agent runs", host=credentials.host, server=credentials.server, hypervisor=settings.hypervisor)
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(keeper.run(client))
                _on_signal(agent.stop)
                await agent.run()
                renewing.cancel()
    finally:
        await client.close()


async def _fleet(
    kubeconfig: Path | None, settings: AgentSettings, wanted: FleetSettings, simulation: drivers.Simulation
) -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    client = await KubeClient.from_kubeconfig(
        kubeconfig, user_agent="kumulus-agent-fleet", on_write=count_write, pool_size=wanted.count + 200
    )
    hosts = Fleet(client, wanted, lambda name: drivers.simulated(name, settings, simulation))
    try:
        async with _serving(
            settings,
            lambda: hosts.agents,
            {"hosts": lambda: f"{hosts.waiting()} hosts have not started" if hosts.waiting() else None},
        ):
            log.info("fleet runs", hosts=wanted.count, server=client.server)
            _on_signal(hosts.stop)
            await hosts.run()
    finally:
        await client.close()


def _readiness(agent: Agent, settings: Timings, keeper: TokenKeeper) -> Mapping[str, http.Check]:
    def lease() -> str | None:
        age = agent.heartbeat.age
        return None if age is not None and age < settings.lease_seconds else "the lease is not renewed"

    return {
        "orders": lambda: None if agent.reflector.synced.is_set() else "work orders were not read yet",
        "lease": lease,
        "credentials": lambda: keeper.problem,
        "hypervisor": lambda: agent.reporter.hypervisor_problem,
    }


@asynccontextmanager
async def _serving(
    settings: AgentSettings, agents: Callable[[], list[Agent]], ready: Mapping[str, http.Check]
) -> AsyncIterator[None]:
    """Health and metrics of these agents are served inside the block."""
    QUEUE_DEPTH.labels("agent").set_function(lambda: sum(len(agent.queue) for agent in agents()))
    LEASE_AGE.set_function(lambda: max((agent.heartbeat.age or 0.0 for agent in agents()), default=0.0))

    async def dropped() -> Sequence[Dropped]:
        return [item for agent in agents() for item in await agent.dropped()]

    async def traffic() -> Sequence[Counted]:
        return [item for agent in agents() for item in await agent.traffic()]

    loop = asyncio.get_running_loop()
    ours: dict[str, Collector] = {"drops": Drops(loop, dropped), "traffic": InterfaceTraffic(loop, traffic)}
    ASKED.update(ours)
    try:
        async with http.serve(settings.http_port, healthy={}, ready=ready, address=settings.http_address) as port:
            log.info("health and metrics", port=port)
            yield
    finally:
        for name in ours:
            ASKED.pop(name, None)


def _on_signal(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    logging.heed_signals(loop)


def _fail(message: str) -> NoReturn:
    typer.echo(f"kumulus-agent: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of `kumulus-agent`."""
    app()
