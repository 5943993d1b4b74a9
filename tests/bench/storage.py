"""Storage on real hosts, each operation beside the bare tool in the same rounds: import, clone, attach, detach,
snapshot, copy, move with the machine on and at rest.

The issue's bar: no operation takes more than half a second longer than its floor.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.image import Image
from kumulus.api.order_names import instance_order_name
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.client import KubeClient, Raw
from kumulus_lab.host import LibvirtHost
from tests.bench import disks, floor, machine, percentiles
from tests.bench.bench import Context
from tests.bench.cloud import BenchError
from tests.bench.guests import IMAGE, Guests, prepare
from tests.bench.machines import USER_NAMESPACE
from tests.bench.record import Goal, Record, record
from tests.bench.recorder import Recorder

OVER = Goal(id="S", limit=0.5)
"""What an operation may take over its floor."""

MIB = 1 << 20
BULK = "bulk"
BULK_MIB = 96
"""Of data that no compression makes smaller."""
VM = "storage"
POOL, SPARE = "local", "spare"
"""The lab's pool, and another one beside it that volumes are moved to."""
ROOT = {"name": "root", "ephemeral": {"image": IMAGE}}


@dataclass(slots=True)
class _Operation:
    """Rounds of one operation, ours and by hand."""

    ours: list[float] = field(default_factory=list)
    hand: list[float] = field(default_factory=list)


_WHAT = {
    "import": f"image of {BULK_MIB} MiB, asked for to Ready",
    "clone": "volume cloned from a cached image and attached",
    "attach": "volume attached",
    "detach": "volume detached",
    "snapshot": "snapshot of a volume whose machine is on",
    "move live": f"volume of {BULK_MIB} MiB moved to another pool while its machine is on",
    "move": f"volume of {BULK_MIB} MiB moved to another pool at rest",
    "copy": f"full copy of a volume of {BULK_MIB} MiB",
}
_TOOLS = {
    "import": "download, sha256sum, qemu-img convert",
    "clone": "qemu-img create -b, virsh attach-device",
    "attach": "virsh attach-device",
    "detach": "virsh detach-device",
    "snapshot": "virsh snapshot-create-as",
    "move live": "virsh blockcopy --wait --pivot",
    "move": "qemu-img convert",
    "copy": "qemu-img convert",
}


class _User:
    """Somebody with one machine and disks that come and go."""

    def __init__(self, client: KubeClient, volumes: Recorder, order: Recorder, order_name: str) -> None:
        self._client = client
        self._volumes = volumes
        self._order = order
        self._order_name = order_name

    async def image(self, name: str, images: Recorder, spec: dict[str, Any]) -> float:
        """Ask for an image; seconds until it is Ready."""
        began = asyncio.get_running_loop().time()
        await self._client.create(Image.KIND, {"metadata": {"name": name}, "spec": spec}, USER_NAMESPACE)
        if await images.reached([name], "Ready", seconds=180):
            raise BenchError(f"image {name} is not ready: {await self._status(Image, name)}")
        return images.at("Ready")[name] - began

    async def volume(self, name: str, **spec: Any) -> float:
        """Ask for a volume; when."""
        began = asyncio.get_running_loop().time()
        await self._client.create(Volume.KIND, {"metadata": {"name": name}, "spec": spec}, USER_NAMESPACE)
        return began

    async def made(self, name: str) -> float:
        """When the volume was Available."""
        return await self._reached(self._volumes, name, "Available")

    async def attach(self, *names: str) -> float:
        """Give the machine these volumes and no others; when it was asked."""
        wanted = [ROOT, *({"name": name, "volume": name} for name in names)]
        began = asyncio.get_running_loop().time()
        self._order.forget([self._order_name])
        await self._client.patch(VirtualMachine.KIND, VM, {"spec": {"disks": wanted}}, USER_NAMESPACE)
        return began

    async def has(self, number: int) -> float:
        """When the hypervisor said that the machine has so many volumes."""
        return await self._reached(self._order, self._order_name, str(number))

    async def snapshot(self, name: str, volume: str, snapshots: Recorder) -> float:
        """Ask for a snapshot; seconds until it is Ready."""
        began = asyncio.get_running_loop().time()
        body = {"metadata": {"name": name}, "spec": {"volume": volume}}
        await self._client.create(VolumeSnapshot.KIND, body, USER_NAMESPACE)
        return await self._reached(snapshots, name, "Ready") - began

    async def move(self, name: str, pool: str, places: Recorder) -> float:
        """Ask for the volume to be moved; seconds until it is in that pool and nothing goes on."""
        began = asyncio.get_running_loop().time()
        places.forget([name])
        await self._client.patch(Volume.KIND, name, {"spec": {"pool": pool}}, USER_NAMESPACE)
        return await self._reached(places, name, pool) - began

    async def remove(
        self, kind: type[Image] | type[Volume] | type[VolumeSnapshot], name: str, recorder: Recorder
    ) -> None:
        """Delete it and wait until it is gone; its name can be used again."""
        await self._client.delete(kind.KIND, name, USER_NAMESPACE)
        if await recorder.vanished([name], seconds=60):
            raise BenchError(f"{name} does not go: {await self._status(kind, name)}")
        recorder.forget([name])

    async def _reached(self, recorder: Recorder, name: str, state: str) -> float:
        if await recorder.reached([name], state, seconds=60):
            raise BenchError(f"{name} is not {state}: {recorder.states.get(name)}")
        return recorder.at(state)[name]

    async def _status(self, kind: type[Image] | type[Volume] | type[VolumeSnapshot], name: str) -> object:
        found = await self._client.find(kind.KIND, name, USER_NAMESPACE)
        return (found or {}).get("status")


async def run(context: Context) -> list[Record]:
    """Rounds of each operation, ours then by hand, on one host."""
    cloud = context.there
    host = cloud.lab.hosts[0]
    client = await cloud.client(16)
    operations = {name: _Operation() for name in _WHAT}
    bulk = await asyncio.to_thread(_bulk, cloud.lab.image_directory)
    try:
        await prepare(cloud, client)
        async with Recorder(client, VirtualMachine.KIND, USER_NAMESPACE) as machines:
            guests = Guests(cloud, client, machines)
            await guests.up(VM, host.name, seconds=180)
            _, uid = await guests.where(VM)
            template = await asyncio.to_thread(floor.template, host, _domain(host, uid))
            await asyncio.to_thread(floor.bring_up, template)
            order_name, order_namespace = instance_order_name(uid), host_namespace(host.name)
            async with (
                Recorder(client, Image.KIND, USER_NAMESPACE) as images,
                Recorder(client, Volume.KIND, USER_NAMESPACE) as volumes,
                Recorder(client, VolumeSnapshot.KIND, USER_NAMESPACE) as snapshots,
                Recorder(client, WorkOrder.KIND, order_namespace, state=_volumes_of) as orders,
                Recorder(client, Volume.KIND, USER_NAMESPACE, state=_place_of) as places,
                _spare(client),
            ):
                user = _User(client, volumes, orders, order_name)
                spec = _source(cloud.lab.image_url, bulk)
                await user.image(BULK, images, spec)
                for number in range(context.scale.guest_rounds):
                    await _import(user, images, spec, template, operations["import"])
                    await _disks(user, volumes, snapshots, places, template, operations, number)
                    context.say(_said(number, context.scale.guest_rounds, operations))
                await user.remove(Image, BULK, images)
            await guests.down(VM)
    finally:
        floor.clear(host)
        (cloud.lab.image_directory / f"{BULK}.raw").unlink(missing_ok=True)
        await client.close()
    load = machine.load()
    return [each.model_copy(update={"load": load}) for each in _records(operations)]


async def _import(
    user: _User, images: Recorder, spec: dict[str, Any], template: floor.Template, operation: _Operation
) -> None:
    operation.ours.append(await user.image("again", images, spec))
    await user.remove(Image, "again", images)
    operation.hand.append(await asyncio.to_thread(disks.fetch, template, spec["source"]["http"]["url"], "raw"))


async def _disks(
    user: _User,
    volumes: Recorder,
    snapshots: Recorder,
    places: Recorder,
    template: floor.Template,
    operations: dict[str, _Operation],
    number: int,
) -> None:
    name, copy = f"disk{number}", f"copy{number}"
    await user.volume(name, source={"image": BULK}, pool=POOL)
    operations["clone"].ours.append(-await user.attach(name) + await user.has(1))
    operations["detach"].ours.append(-await user.attach() + await user.has(0))
    operations["attach"].ours.append(-await user.attach(name) + await user.has(1))
    operations["snapshot"].ours.append(await user.snapshot("kept", name, snapshots))
    await user.remove(VolumeSnapshot, "kept", snapshots)
    operations["move live"].ours.append(await user.move(name, SPARE, places))
    volumes.forget([name])
    await user.attach()
    await user.has(0)
    await user.made(name)
    operations["move"].ours.append(await user.move(name, POOL, places))
    began = await user.volume(copy, source={"volume": name}, pool=POOL)
    operations["copy"].ours.append(await user.made(copy) - began)
    files = await asyncio.to_thread(_files, template.host)
    for operation, by_hand in _by_hand(template, files):
        operations[operation].hand.append(await asyncio.to_thread(by_hand))
    await asyncio.to_thread(disks.detach, template)
    for each in (copy, name):
        await user.remove(Volume, each, volumes)


def _by_hand(template: floor.Template, files: dict[str, str]) -> Sequence[tuple[str, Callable[[], float]]]:
    """The same by hand, in the same order."""
    return (
        ("clone", lambda: disks.clone(template, files["image"])),
        ("detach", lambda: disks.detach(template)),
        ("attach", lambda: disks.attach(template)),
        ("snapshot", lambda: disks.snapshot(template)),
        ("move live", lambda: disks.block_copy(template)),
        ("move", lambda: disks.copy(template, files["image"])),
        ("copy", lambda: disks.copy(template, files["image"])),
    )


def _records(operations: dict[str, _Operation]) -> list[Record]:
    records = []
    for name, done in operations.items():
        over = [ours - hand for ours, hand in zip(done.ours, done.hand, strict=True)]
        records.append(
            record(
                f"{_WHAT[name]}, over the bare tool",
                OVER,
                "s",
                percentiles.median(over),
                rounds=over,
                detail={"ours": done.ours, "by_hand": done.hand},
            )
        )
        records.append(
            record(
                _WHAT[name],
                Goal(id="S"),
                "s",
                percentiles.median(done.ours),
                rounds=done.ours,
                against=(_TOOLS[name], done.hand),
            )
        )
    return records


def _said(number: int, of: int, operations: dict[str, _Operation]) -> str:
    parts = (f"{name} {done.ours[-1]:.2f} s (by hand {done.hand[-1]:.2f})" for name, done in operations.items())
    return f"storage {number + 1}/{of}: " + ", ".join(parts)


def _volumes_of(raw: Raw) -> str | None:
    """How many volumes the hypervisor says a machine has."""
    if "instance" not in raw.get("spec", {}):
        return None
    return str(len(raw.get("status", {}).get("instance", {}).get("volumes", ())))


def _place_of(raw: Raw) -> str | None:
    """The pool that a volume is in, when nothing is going on with it."""
    status = raw.get("status", {})
    return status.get("pool") if not status.get("movingTo") else None


@asynccontextmanager
async def _spare(client: KubeClient) -> AsyncIterator[None]:
    """Another pool on every host, as long as the block lasts."""
    found = await client.find(StoragePool.KIND, POOL)
    if found is None:
        raise BenchError(f"the lab has no pool {POOL}")
    spec = {**found["spec"], "parameters": {"path": f"/var/lib/kumulus/pools/{SPARE}"}}
    await client.create(StoragePool.KIND, {"metadata": {"name": SPARE}, "spec": spec})
    try:
        yield
    finally:
        await client.delete(StoragePool.KIND, SPARE)


def _domain(host: LibvirtHost, uid: str) -> str:
    lines = host.exec(["virsh", "list", "--uuid", "--name"]).stdout.splitlines()
    return next(line.split()[1] for line in lines if uid in line)


def _files(host: LibvirtHost) -> dict[str, str]:
    """The bulk image's file in the host's pool: the largest that is whole."""
    done = host.exec(
        ["find", "/var/lib/kumulus/pools", "-path", "*images*", "-name", "*.qcow2", "-size", f"+{BULK_MIB // 2}M"]
    )
    return {"image": done.stdout.split()[0]}


def _source(url: str, sha256: str) -> dict[str, Any]:
    return {
        "source": {"http": {"url": f"{url}/{BULK}.raw"}},
        "checksum": {"sha256": sha256},
        "format": "raw",
    }


def _bulk(directory: Path) -> str:
    """A raw disk of random data on the lab's image server; its digest."""
    directory.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with (directory / f"{BULK}.raw").open("wb") as file:
        for _ in range(BULK_MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
