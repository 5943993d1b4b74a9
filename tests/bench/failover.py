"""G15: a host loses its power, and its machine runs on the other one; and an outage that is too short for that changes nothing.

Each host has a BMC, sushy-tools' Redfish emulator, and asks to be fenced by itself. After each round it is switched on again.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.pools import OPERATORS_NAMESPACE
from kumulus.api.remediation import HostRemediation, RemediationPhase
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import Raw
from kumulus.kube.errors import AlreadyExists
from tests.bench import machine, percentiles
from tests.bench.bench import Context
from tests.bench.cloud import BenchError
from tests.bench.machines import RUNNING, USER_NAMESPACE
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder
from tests.bench.roaming import Roaming, roaming
from tests.contract.bmc import PASSWORD, USER, Emulator, emulator

NAME = "survivor"
OUTAGE = 19.0
"""Seconds for which a host is cut off and must not be fenced: the goal is 20, less than what cutting takes."""
LIMIT = 180.0


async def run(context: Context) -> list[Record]:
    """Rounds of: a host is killed, a host is cut off for a while."""
    dead: list[float] = []
    answered: list[float] = []
    false: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        async with roaming(context.there) as there, AsyncExitStack() as stack:
            power = {
                host.name: stack.enter_context(emulator(_directory(directory, host.name)))
                for host in context.there.lab.hosts
            }
            stack.push_async_callback(_unwire, there, power)
            await _wire(there, power)
            context.say("a machine in a pool that both hosts have; both are fenced by their BMC when they are silent")
            await there.machine(NAME)
            for number in range(context.scale.failovers):
                ran, answers = await _kill(there, power)
                dead.append(ran)
                answered.append(answers)
                false += await _cut_off(there)
                context.say(
                    f"host killed {number + 1}/{context.scale.failovers}: Running elsewhere after {ran:.1f} s, answers after"
                    f" {answers:.1f} s; {len(false)} failovers for outages of {OUTAGE:.0f} s"
                )
    load = machine.load()
    return [each.model_copy(update={"load": load}) for each in _records(dead, answered, false)]


def _directory(within: str, host: str) -> Path:
    made = Path(within) / host
    made.mkdir()
    return made


async def _wire(there: Roaming, power: dict[str, Emulator]) -> None:
    """Each host has its BMC."""
    secret = {"metadata": {"name": "bench-bmc"}, "stringData": {"username": USER, "password": PASSWORD}}
    with suppress(AlreadyExists):
        await there.client.create(SECRET, secret, OPERATORS_NAMESPACE)
    for name, bmc in power.items():
        spec = {"bmc": bmc.bmc(credentialsSecret="bench-bmc").to_json(), "fencing": {"automatic": True}}
        await there.client.patch(Host.KIND, name, {"spec": spec})


async def _unwire(there: Roaming, power: dict[str, Emulator]) -> None:
    for name in power:
        await there.client.patch(Host.KIND, name, {"spec": {"bmc": None, "fencing": None}})
    await there.client.delete(SECRET, "bench-bmc", OPERATORS_NAMESPACE)
    async for page, _ in there.client.list_pages(HostRemediation.KIND):
        for item in page:
            await there.client.delete(HostRemediation.KIND, item["metadata"]["name"])


def _where(raw: Raw) -> str:
    status = raw.get("status", {})
    return f"{status.get('phase')} on {status.get('host')} as {status.get('epoch')}"


async def _kill(there: Roaming, power: dict[str, Emulator]) -> tuple[float, float]:
    """Seconds from the death of its host until the machine runs on the other one, and until it answers."""
    before = await there.status(NAME)
    host, lab = str(before["host"]), there.cloud.lab
    wanted = f"{RUNNING} on {there.other(host).name} as {before['epoch'] + 1}"
    address = await there.address(NAME)
    async with (
        Recorder(there.client, VirtualMachine.KIND, USER_NAMESPACE, state=_where) as recorder,
        there.asking(address) as answers,
    ):
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(lab.kill_host, host)
        silent = time.monotonic()
        try:
            if await recorder.reached([NAME], wanted, seconds=LIMIT):
                raise BenchError(f"the machine is not {wanted} after {LIMIT:.0f} s: {await there.status(NAME)}")
            ran = recorder.at(wanted)[NAME] - began
            answered = await answers.first(LIMIT, after=silent + 1.0) - began
        finally:
            power[host].press()
            await asyncio.to_thread(lab.start_host, host)
        await there.ready(host)
        await _over(there)
    return ran, answered


async def _over(there: Roaming) -> None:
    """No host is being fenced any more."""
    end = asyncio.get_running_loop().time() + LIMIT
    while asyncio.get_running_loop().time() < end:
        if all(phase in (RemediationPhase.SUCCEEDED, RemediationPhase.REFUSED) for phase in await _phases(there)):
            return
        await asyncio.sleep(0.2)
    raise BenchError(f"a host is still being fenced: {await _phases(there)}")


async def _phases(there: Roaming) -> list[str]:
    return [
        item.get("status", {}).get("phase", "")
        async for page, _ in there.client.list_pages(HostRemediation.KIND)
        for item in page
    ]


async def _cut_off(there: Roaming) -> list[str]:
    """What happened to the machine, or its host, though the host was only cut off for a while."""
    before, known = await there.status(NAME), len(await _phases(there))
    host = there.host(str(before["host"]))
    await asyncio.to_thread(host.partition)
    await asyncio.sleep(OUTAGE)
    await asyncio.to_thread(host.heal)
    await there.ready(host.name)
    # Whoever was about to fence it would by now.
    await asyncio.sleep(10)
    after, wrong = await there.status(NAME), []
    changed: dict[str, Any] = {
        key: after.get(key) for key in ("host", "epoch", "startedAt") if before.get(key) != after.get(key)
    }
    if changed:
        wrong.append(f"the machine changed: {changed}")
    if len(await _phases(there)) != known:
        wrong.append(f"{host.name} was to be fenced")
    return wrong


def _records(dead: list[float], answered: list[float], false: list[str]) -> list[Record]:
    published = "Proxmox ~120 s, Red Hat 545 s (published)"
    return [
        record(
            "host death to Running elsewhere P50",
            Goal(id="G15", limit=45),
            "s",
            percentiles.exact(dead, 50),
            rounds=dead,
            note=published,
        ),
        record("host death to Running elsewhere, most", Goal(id="G15", limit=60), "s", max(dead, default=None)),
        record(
            "host death to an answer from elsewhere P50",
            Goal(id="G15"),
            "s",
            percentiles.exact(answered, 50),
            rounds=answered,
            note="the guest boots, emulated",
        ),
        record(
            f"failovers for outages of {OUTAGE:.0f} s",
            Goal(id="G15", limit=0),
            "",
            float(len(false)),
            detail={"outages": len(dead), "what": false[:20]},
        ),
    ]
