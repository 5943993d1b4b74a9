"""Volumes of directories on their way to another pool: what comes, what is left, what an emulator holds."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from kumulus.api.compute import PowerState, RestartPolicy
from kumulus.api.instance_order import CopiedDisk, Incoming, InstanceDisk, InstanceOrder
from kumulus.api.pool_order import PoolRef
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.agent.copied_disks import CopiedDisks
from kumulus_agents.agent.pools import Pools
from kumulus_agents.storage import chain
from kumulus_agents.storage.apart import apart
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.moving import Content, Imagined, Outside, Traits
from kumulus_agents.storage.protocol import StorageDriver, StorageError
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings
from tests.contract.moves import movable, moved
from tests.contract.snapshots import linked_to, taken
from tests.patience import PATIENCE
from tests.unit.storage.material import MIB, disk, http, ignore, image_ref, needs_root, pool_ref, qemu_img, uid
from tests.unit.storage.server import Answer

pytestmark = needs_root

RAW = disk()


@pytest.fixture
def one(tmp_path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(tmp_path / "one"), settings)


@pytest.fixture
def two(tmp_path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(tmp_path / "two"), settings)


def write(path: str, *commands: str) -> None:
    arguments = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *arguments, path], check=True, capture_output=True)


def reads(path: str, *what: str) -> bool:
    arguments = [part for one in what for part in ("-c", f"read {one}")]
    done = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", *arguments, path], capture_output=True, text=True, check=True
    )
    return "verification failed" not in done.stdout


def lying(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "volumes").iterdir())


async def test_all_layers_and_the_image_come_along_flattened_and_holes_stay_holes(one, two, server, tmp_path) -> None:
    image, volume = image_ref(RAW, "raw"), uid()
    await one.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    made = await one.ensure_volume(volume, 1 << 30, VolumeOrigin(image=image), False)
    write(made.path, "write -P 7 512M 1M")
    await taken(one, volume, snapshot := uid())
    above = await one.volume(volume)
    write(above.path, "write -P 8 600M 64k", "write -z 512M 64k")
    await one.forget_snapshot(volume, snapshot)
    await moved(one, two, volume)
    after = await two.volume(volume)
    assert lying(tmp_path / "one") == []
    assert lying(tmp_path / "two") == [f"{volume}.json", f"{volume}.qcow2"]
    (tmp_path / "raw").write_bytes(RAW)
    os.truncate(tmp_path / "raw", 1 << 30)
    with (tmp_path / "raw").open("r+b") as raw:
        raw.seek((512 << 20) + 65536)
        raw.write(b"\x07" * (MIB - 65536))
        raw.seek(600 << 20)
        raw.write(b"\x08" * 65536)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", after.path, tmp_path / "raw")
    assert after.used < 4 * MIB
    assert "backing" not in qemu_img("info", "-f", "qcow2", after.path)
    qemu_img("check", "-q", "-f", "qcow2", after.path)


async def test_its_bytes_are_those_of_all_layers_with_holes(one, settings, tmp_path) -> None:
    volume = uid()
    made = await one.ensure_volume(volume, 64 * MIB, None, False)
    write(made.path, "write -P 7 1M 64k")
    await taken(one, volume)
    above = await one.volume(volume)
    write(above.path, "write -P 8 3M 64k")
    target = tmp_path / "bytes"

    async def use(content: Content) -> None:
        with target.open("w+b") as file:
            await chain.expand(content, 64 * MIB, file.fileno(), settings, lambda *_: None)

    await one.send_volume(volume, use)
    wanted = bytearray(64 * MIB)
    wanted[MIB : MIB + 65536], wanted[3 * MIB : 3 * MIB + 65536] = b"\7" * 65536, b"\b" * 65536
    assert target.read_bytes() == wanted
    assert target.stat().st_blocks * 512 < 2 * MIB


async def test_what_was_written_since_is_remembered_where_it_is_then(one, two) -> None:
    volume = uid()
    made = await one.ensure_volume(volume, 64 * MIB, None, False)
    write(made.path, "write -P 7 1M 64k")
    await moved(one, two, volume)
    snapshot = await taken(two, volume)
    after = await two.volume(volume)
    write(after.path, "write -P 8 3M 64k")
    assert [(extent.offset, extent.length) for extent in await two.changes(volume, snapshot)] == [(3 * MIB, 65536)]
    assert [(extent.offset, extent.length) for extent in await two.changes(volume)] == [(3 * MIB, 65536)]


async def test_a_volume_that_stands_on_anothers_snapshot_stands_on_nothing_afterwards(one, two) -> None:
    base, clone = uid(), uid()
    made = await one.ensure_volume(base, 8 * MIB, None, False)
    write(made.path, "write -P 7 1M 64k")
    snapshot = await taken(one, base)
    await one.ensure_volume(clone, 8 * MIB, linked_to(base, snapshot), False)
    assert (await movable(one).traits(base)).pinned
    await moved(one, two, clone)
    after = await two.volume(clone)
    assert after.below == () and reads(after.path, "-P 7 1M 64k")
    await one.forget_snapshot(base, snapshot)


@contextmanager
def emulator(path: str):
    """Somebody has the file open to write to it."""
    process = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("read 0 512\n")
    process.stdout.readline()
    try:
        yield
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


async def test_what_an_emulator_writes_to_is_not_taken_away(one, two) -> None:
    volume = uid()
    await one.ensure_volume(volume, 8 * MIB, None, False)
    traits = await one.traits(volume)
    arrival = await two.begin_arrival(volume, traits)
    with emulator(arrival.source.path):
        for attempt in (two.abandon_arrival(volume), two.begin_arrival(volume, traits)):
            with pytest.raises(StorageError) as error:
                await attempt
            assert error.value.reason == "VolumeInUse"
        assert await two.arrival(volume) == arrival
    await two.abandon_arrival(volume)
    assert await two.arrival(volume) is None


async def test_what_a_machine_writes_to_is_not_copied(one, two) -> None:
    volume = uid()
    made = await one.ensure_volume(volume, 8 * MIB, None, False)
    with emulator(made.path), pytest.raises(StorageError) as error:
        await moved(one, two, volume)
    assert error.value.reason == "VolumeInUse"
    await moved(one, two, volume)


async def test_it_is_neither_grown_nor_removed_while_it_is_sent(one) -> None:
    volume = uid()
    await one.ensure_volume(volume, 8 * MIB, None, False)
    refused: list[str] = []

    async def use(_: Content) -> None:
        for attempt in (one.grow_volume(volume, 16 * MIB), one.remove_volume(volume)):
            with pytest.raises(StorageError) as error:
                await attempt
            refused.append(error.value.reason)

    await one.send_volume(volume, use)
    assert refused == ["VolumeInUse"] * 2


async def test_a_mark_goes_with_the_volume_and_with_what_was_given_up(
    tmp_path: Path, settings: StorageSettings
) -> None:
    def shared(name: str) -> PoolRef:
        ref = pool_ref(tmp_path / name)
        return ref.model_copy(update={"parameters": ref.parameters.model_copy(update={"shared": True}), "shared": True})

    source, target = (DirStorage(shared(name), settings) for name in ("one", "two"))
    volume = uid()
    await source.ensure_volume(volume, 8 * MIB, None, False)
    for pool in (source, target):
        await pool.claim_volume(volume, "a", 3)
    await target.begin_arrival(volume, await source.traits(volume))
    await target.abandon_arrival(volume)
    await target.claim_volume(volume, "b", 1)
    await target.abandon_arrival(volume)
    await target.claim_volume(volume, "a", 3)
    await moved(source, target, volume)
    await source.claim_volume(volume, "b", 1)
    with pytest.raises(StorageError) as error:
        await target.claim_volume(volume, "b", 1)
    assert error.value.reason == "VolumeElsewhere"


@pytest.mark.parametrize("which", ["source", "target", "both"])
async def test_pools_that_are_apart_take_part_and_end_when_they_are_told(
    tmp_path: Path, settings: StorageSettings, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def driver(name: str, other: bool) -> StorageDriver:
        path = tmp_path / name
        path.mkdir()
        make: Callable[[], StorageDriver] = lambda: DirStorage(pool_ref(path / "pool"), settings)  # noqa: E731
        return apart(DirStorage, make, str(path), name) if other else make()

    source = driver("source", which in ("source", "both"))
    target = driver("target", which in ("target", "both"))
    volume = uid()
    made = await source.ensure_volume(volume, 8 * MIB, None, False)
    write(made.path, "write -P 7 1M 64k")
    begun, ended = asyncio.Event(), asyncio.Event()

    async def for_ever(_: Content) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    sending = asyncio.create_task(movable(source).send_volume(volume, for_ever))
    await asyncio.wait_for(begun.wait(), 10 * PATIENCE)
    sending.cancel()
    await asyncio.wait([sending])
    await asyncio.wait_for(ended.wait(), 10 * PATIENCE)
    await moved(source, target, volume)
    after = await target.volume(volume)
    assert after is not None and reads(after.path, "-P 7 1M 64k", "-P 0 0 1M")


@pytest.mark.parametrize("other", [True, False])
async def test_what_only_its_own_driver_can_read_is_read_where_that_lives(
    tmp_path: Path, settings: StorageSettings, other: bool
) -> None:
    def make() -> StorageDriver:
        return DirStorage(pool_ref(tmp_path / "pool"), settings)

    here, volume, told = asyncio.get_running_loop(), uid(), []

    async def fill(target: int, progress: Callable[[int, int], None]) -> None:
        assert asyncio.get_running_loop() is here
        command = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", f"/proc/self/fd/{target}"]
        await asyncio.to_thread(subprocess.run, command, pass_fds=[target], check=True, capture_output=True)
        progress(8 * MIB, 8 * MIB)

    target, traits = apart(DirStorage, make, str(tmp_path), "pool") if other else make(), Traits(8 * MIB)
    await movable(target).begin_arrival(volume, traits)
    await movable(target).fill_arrival(volume, traits, Outside(fill), told.append)
    await movable(target).settle_arrival(volume, traits, "one 0")
    made = await target.volume(volume)
    assert made is not None and reads(made.path, "-P 7 1M 64k", "-P 0 2M 1M")
    assert {one.stage for one in told} == {"Copying"}
    with pytest.raises(StorageError) as error:
        await movable(target).begin_arrival(other_uid := uid(), traits)
        await movable(target).fill_arrival(other_uid, traits, Imagined(), told.append)
    assert (error.value.reason, error.value.retryable) == ("MoveUnsupported", False)


def coming(pool: PoolRef, volume: str, size: int) -> tuple[InstanceOrder, Incoming]:
    """The order of a machine that brings that volume along."""
    incoming = Incoming(migration=uid(), host="a", disks=(CopiedDisk(name="root", size=size),))
    order = InstanceOrder(
        uid=uid(),
        epoch=1,
        power=PowerState.STOPPED,
        restart_policy=RestartPolicy.ALWAYS,
        cpus=1,
        memory=64 * MIB,
        disks=(InstanceDisk(name="root", pool=pool, volume=volume, boot_order=1),),
        incoming=incoming,
    )
    return order, incoming


@pytest.mark.parametrize("left", [MIB, 0])
async def test_a_guest_brings_its_disk_into_no_file_of_another_size(two, tmp_path, left: int) -> None:
    """What an attempt that nobody cleared away has left, from before the volume was grown or the disk was in it."""
    disks, volume = CopiedDisks(Pools(lambda pool, secrets: two, cast(Secrets, None))), uid()
    before = await two.begin_arrival(volume, Traits(MIB))
    if not left:
        os.truncate(before.source.path, 0)
    order, incoming = coming(pool_ref(tmp_path / "two"), volume, 4 * MIB)
    await disks.make(order, incoming)
    arrival = await two.arrival(volume)
    assert arrival is not None and arrival.size == 4 * MIB
    write(arrival.source.path, "write -P 7 3M 64k")
    await disks.make(order, incoming)
    assert reads(arrival.source.path, "-P 7 3M 64k"), "what has come of it was thrown away"


async def test_a_guest_brings_its_disk_into_no_file_of_another_migration(two, tmp_path) -> None:
    """What another one left that nobody cleared away is as large, and is neither filled nor taken for what came; it is again
    when this one has had it made anew."""
    disks, volume = CopiedDisks(Pools(lambda pool, secrets: two, cast(Secrets, None))), uid()
    other = await two.begin_arrival(volume, Traits(4 * MIB), live=True, move=uid())
    write(other.source.path, "write -P 9 3M 64k")
    order, incoming = coming(pool_ref(tmp_path / "two"), volume, 4 * MIB)
    with pytest.raises(StorageError) as refused:
        await disks.settle(order, incoming.migration)
    assert refused.value.reason == "VolumeConflict" and await two.volume(volume) is None
    await disks.make(order, incoming)
    arrival = await two.arrival(volume)
    assert arrival is not None and (arrival.whole, arrival.move) == (False, incoming.migration)
    assert reads(arrival.source.path, "-P 0 3M 64k"), "it is empty"
    await disks.settle(order, incoming.migration)
    arrival = await two.arrival(volume)
    assert arrival is not None and (arrival.whole, arrival.move) == (True, incoming.migration)
    assert {path.name for path in (tmp_path / "two/volumes").iterdir()} == {f"{volume}.qcow2", f"{volume}.json"}
