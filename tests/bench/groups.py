"""A change of a security group on its way to hosts: asked for, until the agents of three hosts have performed it, with a
driver that does nothing. What the real driver takes is in `network`.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.network import Network
from kumulus.api.order_names import segment_order_name
from kumulus.api.security_groups import SecurityGroup
from kumulus.kube.client import KubeClient, Raw
from tests.bench import machine, percentiles
from tests.bench.bench import Context
from tests.bench.cloud import BenchError
from tests.bench.machines import RUNNING, USER_NAMESPACE, body, ensure_namespace
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder

HOSTS, MACHINES, CHANGED = 10, 9, 3
NETWORK, GROUP = "groups", "groups"
APART = 1.5
"""Seconds between two changes: those that come faster are put together."""
_FIRST_PORT = 1000


async def run(context: Context) -> list[Record]:
    """Machines with one group on several hosts; its rules change time and again."""
    cloud = context.there
    client = await cloud.client(16)
    names = [f"grouped{number}" for number in range(MACHINES)]
    took: list[float] = []
    try:
        await cloud.grow(HOSTS)
        await ensure_namespace(client)
        await client.create(Network.KIND, _named(NETWORK, {"cidrs": ["10.44.0.0/24"]}), USER_NAMESPACE)
        await client.create(SecurityGroup.KIND, _named(GROUP, _rules(_FIRST_PORT)), USER_NAMESPACE)
        async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as machines, AsyncExitStack() as stack:
            for name in names:
                await client.create(VirtualMachine.KIND, _machine(name), USER_NAMESPACE)
            if late := await machines.reached(names, RUNNING, seconds=60):
                raise BenchError(f"{late[0]} does not run")
            hosts = sorted({await _host_of(client, name) for name in names})[:CHANGED]
            if len(hosts) < CHANGED:
                raise BenchError(f"the machines are on {len(hosts)} hosts only")
            found = await client.get(Network.KIND, NETWORK, USER_NAMESPACE)
            order = segment_order_name(found["metadata"]["uid"])
            watched = [Recorder(client, WorkOrder.KIND, host_namespace(host), state=_port_of) for host in hosts]
            for each in watched:
                await stack.enter_async_context(each)
            for number in range(context.scale.group_changes // 2):
                port = _FIRST_PORT + 1 + number
                await asyncio.sleep(APART)
                began = asyncio.get_running_loop().time()
                await client.patch(SecurityGroup.KIND, GROUP, {"spec": _rules(port)}, USER_NAMESPACE)
                for each in watched:
                    if await each.reached([order], str(port), seconds=30):
                        raise BenchError(f"{order} is not as it shall be: {each.states}")
                took.append(max(each.at(str(port))[order] for each in watched) - began)
            for name in names:
                await client.delete(VirtualMachine.KIND, name, USER_NAMESPACE)
            if late := await machines.vanished(names, seconds=60):
                raise BenchError(f"{late[0]} does not go")
        await client.delete(Network.KIND, NETWORK, USER_NAMESPACE)
        await client.delete(SecurityGroup.KIND, GROUP, USER_NAMESPACE)
    finally:
        await client.close()
    made = record(
        f"change of a group, asked for until {CHANGED} hosts have performed it, P95",
        Goal(id="G13", limit=0.5),
        "s",
        percentiles.exact(took, 95),
        rounds=took,
        note="without the driver",
    )
    return [made.model_copy(update={"load": machine.load()})]


def _named(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


def _rules(port: int) -> dict[str, Any]:
    return {"ingress": [{"protocol": "TCP", "ports": [str(port)]}], "egress": [{}]}


def _machine(name: str) -> dict[str, Any]:
    made = body(name)
    made["spec"]["interfaces"] = [{"name": "eth0", "network": NETWORK, "securityGroups": [GROUP]}]
    return made


async def _host_of(client: KubeClient, name: str) -> str:
    found = await client.get(VirtualMachine.KIND, name, USER_NAMESPACE)
    return str(found["status"]["host"])


def _port_of(raw: Raw) -> str | None:
    """The port that the group's rule lets in, when the agent has performed the order."""
    segment, status = raw["spec"].get("segment"), raw.get("status", {})
    if segment is None or status.get("observedGeneration") != raw["metadata"]["generation"]:
        return None
    ports = [
        part["first"]
        for group in segment["groups"]
        for rule in group.get("ingress", ())
        for part in rule.get("ports", ())
    ]
    return str(ports[0]) if ports else None
