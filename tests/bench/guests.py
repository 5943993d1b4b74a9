"""G7, G8 and the libvirt part of G12: real guests under libvirt, beside qemu-img and virsh by hand in the same rounds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.image import ClusterImage
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists
from kumulus_lab.host import LibvirtHost
from tests.bench import floor, machine, percentiles, procfs
from tests.bench.bench import Context
from tests.bench.cloud import BenchError, Cloud
from tests.bench.machines import RUNNING, USER_NAMESPACE, User, ensure_namespace
from tests.bench.procfs import Memory
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder
from tests.bench.residence import LABEL, MIB, agent_records
from tests.bench.shapes import names

IMAGE = "tiny"
MEMORY_MIB = 160
"""More than any other mapping of QEMU has (TCG's code buffer is 128 MiB), so that the guest's memory is known by it."""
SETTLE = 8.0
VIRSH = "virsh by hand"


def body(name: str, host: str | None = None) -> dict[str, Any]:
    """A machine with a disk from the tiny image."""
    spec: dict[str, Any] = {
        "resources": {"cpus": 1, "memory": f"{MEMORY_MIB}Mi"},
        "disks": [{"name": "root", "ephemeral": {"image": IMAGE}}],
        "stop": {"mode": "Force"},
    }
    if host is not None:
        spec["placement"] = {"hostSelector": {LABEL: host}}
    return {"metadata": {"name": name}, "spec": spec}


@dataclass(slots=True)
class _Rounds:
    up: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)
    floor_up: list[float] = field(default_factory=list)
    floor_down: list[float] = field(default_factory=list)


class Guests:
    """Machines with guests, made and removed one by one."""

    def __init__(self, cloud: Cloud, client: KubeClient, recorder: Recorder) -> None:
        self._cloud = cloud
        self._client = client
        self._recorder = recorder
        self.user = User(client)

    async def up(self, name: str, host: str | None = None, *, seconds: float = 60) -> float:
        """Ask for it and wait; seconds from asking to Running."""
        began = asyncio.get_running_loop().time()
        await self._client.create(VirtualMachine.KIND, body(name, host), USER_NAMESPACE)
        if await self._recorder.reached([name], RUNNING, seconds=seconds):
            raise BenchError(f"{name} does not run: {await self.user.why(name)}")
        return self._recorder.at(RUNNING)[name] - began

    async def down(self, name: str) -> float:
        """Ask for its removal and wait; seconds."""
        sent = await self.user.remove([name], self._recorder)
        seconds = self._recorder.gone[name] - sent[name]
        self._recorder.forget([name])
        return seconds

    async def where(self, name: str) -> tuple[LibvirtHost, str]:
        """The host it is on, and the domain it is there."""
        raw = await self._client.get(VirtualMachine.KIND, name, USER_NAMESPACE)
        host = self._cloud.lab.host(raw["status"]["host"])
        return host, raw["metadata"]["uid"]


async def prepare(cloud: Cloud, client: KubeClient) -> None:
    """The namespace and the image are there, and hosts can be told apart."""
    await ensure_namespace(client)
    image = await asyncio.to_thread(cloud.lab.serve_image, IMAGE)
    spec = {
        "source": {"http": {"url": f"{cloud.lab.image_url}/{IMAGE}.qcow2"}},
        "checksum": {"sha256": image.sha256},
        "format": image.format,
    }
    try:
        await client.create(ClusterImage.KIND, {"metadata": {"name": IMAGE}, "spec": spec})
    except AlreadyExists:
        return
    for host in cloud.lab.hosts:
        await client.patch(Host.KIND, host.name, {"metadata": {"labels": {LABEL: host.name}}})


async def run(context: Context) -> list[Record]:
    """Rounds of: ours up, ours down, floor up, floor down; hosts in turn, the image cached on both."""
    cloud = context.there
    client = await cloud.client(16)
    rounds = _Rounds()
    hosts = cloud.lab.hosts
    try:
        await prepare(cloud, client)
        async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as recorder:
            guests = Guests(cloud, client, recorder)
            templates = {}
            for host in hosts:
                context.say(f"a first guest on {host.name}, which fetches the image")
                seconds = await guests.up("first", host.name, seconds=180)
                context.say(f"ran after {seconds:.1f} s")
                there, uid = await guests.where("first")
                domains = there.exec(["virsh", "list", "--uuid", "--name"]).stdout.splitlines()
                domain = next(line.split()[1] for line in domains if uid in line)
                templates[host.name] = await asyncio.to_thread(floor.template, there, domain)
                await guests.down("first")
            before = {host.name: _inventory(host) for host in hosts}
            for number in range(context.scale.guest_rounds):
                host = hosts[number % len(hosts)]
                await _round(guests, host, templates[host.name], rounds, number)
                context.say(
                    f"guest {number + 1}/{context.scale.guest_rounds} on {host.name}: up {rounds.up[-1]:.2f} s, virsh"
                    f" {rounds.floor_up[-1]:.2f} s; down {rounds.down[-1]:.2f} s, virsh {rounds.floor_down[-1]:.2f} s"
                )
            await asyncio.sleep(1)
            left = {f"{host.name}: {name}" for host in hosts for name in _inventory(host) - before[host.name]}
    finally:
        for host in hosts:
            floor.clear(host)
        await client.close()
    load = machine.load()
    return [each.model_copy(update={"load": load}) for each in _records(rounds, left)]


async def _round(guests: Guests, host: LibvirtHost, template: floor.Template, rounds: _Rounds, number: int) -> None:
    name = f"g{number}"
    rounds.up.append(await guests.up(name, host.name))
    await asyncio.sleep(0.5)
    rounds.down.append(await guests.down(name))
    await asyncio.sleep(0.5)
    rounds.floor_up.append(await asyncio.to_thread(floor.bring_up, template))
    await asyncio.sleep(0.5)
    rounds.floor_down.append(await asyncio.to_thread(floor.remove, template))
    await asyncio.sleep(0.5)


def _inventory(host: LibvirtHost) -> set[str]:
    """Domains and files that machines have on a host."""
    domains = {f"domain {name}" for name in host.exec(["virsh", "list", "--all", "--name"]).stdout.split()}
    files = {
        str(path.relative_to(host.state_directory))
        for folder in ("pools", "instances")
        for path in (host.state_directory / folder).rglob("*")
    }
    return domains | files


def _records(rounds: _Rounds, left: set[str]) -> list[Record]:
    over = percentiles.median([ours - hand for ours, hand in zip(rounds.up, rounds.floor_up, strict=True)])
    published = "KubeVirt P50 17 s, Nova 12.9 s (published)"
    up, down = (VIRSH, rounds.floor_up), (VIRSH, rounds.floor_down)
    p95 = "P95 of few rounds: the worst of them"
    return [
        record(
            "real guest, create to Running P50",
            Goal(id="G7", limit=0.6),
            "s",
            percentiles.exact(rounds.up, 50),
            rounds=rounds.up,
            against=up,
            note=published,
        ),
        record(
            "real guest, create to Running P95",
            Goal(id="G7", limit=1.2),
            "s",
            percentiles.exact(rounds.up, 95),
            rounds=rounds.up,
            note=p95,
        ),
        record("real guest, create to Running over virsh", Goal(id="G7", limit=0.3), "s", over),
        record(
            "real guest, delete to gone P50",
            Goal(id="G8", limit=0.6),
            "s",
            percentiles.exact(rounds.down, 50),
            rounds=rounds.down,
            against=down,
        ),
        record(
            "real guest, delete to gone P95",
            Goal(id="G8", limit=1.2),
            "s",
            percentiles.exact(rounds.down, 95),
            rounds=rounds.down,
            note=p95,
        ),
        record(
            "left on the hosts after all were deleted",
            Goal(id="G8", limit=0),
            "",
            float(len(left)),
            detail={"left": sorted(left)[:20]},
        ),
    ]


async def residence(context: Context) -> list[Record]:
    """What one host keeps in memory without and with guests."""
    cloud, machines = context.there, context.scale.guests
    host = cloud.lab.hosts[0]
    agent, init = cloud.pid(host.daemon("agent")), cloud.pid(host.daemon("init"))
    client = await cloud.client(16)
    try:
        await prepare(cloud, client)
        async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as recorder:
            guests, wanted = Guests(cloud, client, recorder), names("res", machines)
            idle, helpers = Memory.of(agent), _helpers(init)
            for name in wanted:
                await guests.up(name, host.name, seconds=180)
            await asyncio.sleep(SETTLE)
            full = Memory.of(agent)
            more = (len(_helpers(init)) - len(helpers)) / machines
            emulators = [pid for pid in procfs.descendants(init) if procfs.name(pid).startswith("qemu")]
            shares = [procfs.pss_without_guest(pid, MEMORY_MIB * MIB) / MIB for pid in emulators]
            wholes = [Memory.of(pid).pss / MIB for pid in emulators]
            await guests.user.remove(wanted, recorder)
    finally:
        await client.close()
    note = "; fewer machines than the goal's 50, for want of cores and memory" if machines < 50 else ""
    return [
        *agent_records("libvirt", idle, full, machines, note),
        record("helper processes for each real guest", Goal(id="G12", limit=0), "", more),
        record(
            "QEMU's own memory for each real guest (PSS without the guest's)",
            Goal(id="G12", limit=60),
            "MiB",
            percentiles.median(shares) + (full.pss - idle.pss) / MIB / machines,
            rounds=shares,
            detail={"whole_pss_mib": [round(each, 1) for each in wholes]},
            note="with the agent's share; TCG's code buffer is in it",
        ),
    ]


def _helpers(init: int) -> list[int]:
    """Processes of a host that are not emulators."""
    return [pid for pid in procfs.descendants(init) if not procfs.name(pid).startswith("qemu")]
