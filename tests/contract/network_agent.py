"""A driver of networks in a process of its own: `network_agent.py DRIVER SETTINGS [STEPS]`.

Reads verbs, one JSON line each, and answers with one. With STEPS it dies by SIGKILL right after its so many'th step that
changes the host: a file renamed or removed, a program run, a signal sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog

from kumulus.api.gateways import GatewayOrder
from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.metadata.keeper import Metadata
from kumulus_agents.metadata.settings import MetadataSettings
from kumulus_agents.network import registry
from kumulus_agents.network.connections import from_json, to_json
from kumulus_agents.network.linux import (
    balancer,
    daemons,
    driver,
    gateway,
    gateway_cabling,
    recorded,
    replication,
    service,
    tables,
)
from kumulus_agents.network.linux import programs as programs
from kumulus_agents.network.ovn import driver as ovn_driver
from kumulus_agents.network.ovn import logical, openflow
from kumulus_agents.network.protocol import GatewayDriver, Identity, KnowsConnections, NetworkDriver, NetworkError, Port

METADATA = Path("/run/kumulus/metadata")
"""On the host, which has a /run of its own."""


def doomed(steps: int) -> None:
    """Die after the step of that number, counted from 1."""
    left = steps

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def after(call: Any) -> Any:
        def wrapper(*arguments: Any, **more: Any) -> Any:
            result = call(*arguments, **more)
            count()
            return result

        return wrapper

    def after_program(call: Any) -> Any:
        async def wrapper(argv: Any, given: str = "") -> Any:
            result = await call(argv, given)
            if not {"-json", "show"} & set(argv):
                count()
            return result

        return wrapper

    Path.replace = after(Path.replace)  # type: ignore[method-assign]
    Path.unlink = after(Path.unlink)  # type: ignore[method-assign]
    real_kill = os.kill

    def kill(pid: int, number: int) -> None:
        real_kill(pid, number)
        if pid != os.getpid():
            count()

    os.kill = kill
    modules = [balancer, daemons, driver, gateway, gateway_cabling, recorded, replication, service, tables]
    modules += [ovn_driver, logical, openflow]
    if find_spec("ovsdbapp") is not None:
        from kumulus_agents.network.ovn import database

        database._commit = after(database._commit)
    for module in modules:
        for name in ("run", "attempt"):
            if hasattr(module, name):
                setattr(module, name, after_program(getattr(module, name)))


async def describe(metadata: Metadata, segment: SegmentOrder, nics: Sequence[Nic], seed: Mapping[str, bytes]) -> None:
    """Have guests of these interfaces of a network told of themselves, each as a machine named after its interface, with that
    seed; nobody else."""
    await metadata.keep_machines({nic.uid for nic in nics})
    for nic in nics:
        await metadata.put_machine(nic.uid, "tenant", nic.name, seed)
        await metadata.put_nic(nic.uid, nic, segment)
    await metadata.sync({nic.network for nic in nics}, complete=True)


async def perform(driver: NetworkDriver, verb: str, given: Any) -> Any:
    if verb == "ensure_segment":
        return (await driver.ensure_segment(SegmentOrder.model_validate(given))).model_dump(mode="json")
    if isinstance(driver, GatewayDriver):
        if verb == "ensure_gateway":
            certificates = {digest: Identity(pem.encode()) for digest, pem in given["certificates"].items()}
            made = await driver.ensure_gateway(GatewayOrder.model_validate(given["order"]), certificates)
            return made.model_dump(mode="json")
        if verb == "gateway_facts":
            return (await driver.gateway_facts(given)).model_dump(mode="json")
    if verb == "ensure_port":
        return asdict(await driver.ensure_port(Port(Nic.model_validate(given["nic"]), given["machine"])))
    if isinstance(driver, KnowsConnections) and verb in ("connections", "know"):
        nic = Nic.model_validate(given["nic"])
        if verb == "connections":
            return to_json(await driver.connections(nic))
        return await driver.know(nic, from_json(given["connections"], nic.addresses))
    if verb == "found":
        found = await driver.found()
        return {
            "segments": sorted(found.segments),
            "ports": sorted(found.ports),
            "gateways": sorted(found.gateways),
            "foreign": [asdict(one) for one in found.foreign],
        }
    if verb == "dropped":
        return [asdict(one) for one in await driver.dropped()]
    if verb == "uplinks":
        return asdict(await driver.uplinks())
    if verb == "traffic":
        return [asdict(one) for one in await driver.traffic()]
    if verb == "functions":
        return dict(await driver.functions())
    if verb in ("remove_segment", "remove_port", "remove_gateway"):
        return await getattr(driver, verb)(given)
    return await getattr(driver, verb)()


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # answers alone go to stdout
    made = registry.load(sys.argv[1], json.loads(sys.argv[2]))
    if len(sys.argv) > 3:
        doomed(int(sys.argv[3]))
    metadata = Metadata(METADATA, MetadataSettings())
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, given = json.loads(line)
        if verb == "describe":
            segment = SegmentOrder.model_validate(given["segment"])
            seed = {name: text.encode() for name, text in given["seed"].items()}
            await describe(metadata, segment, [Nic.model_validate(nic) for nic in given["nics"]], seed)
            sys.stdout.write('{"answer": null}\n')
            sys.stdout.flush()
            continue
        try:
            answer = {"answer": await perform(made, verb, given)}
        except NetworkError as error:
            answer = {"error": [str(error), error.reason, error.retryable]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
