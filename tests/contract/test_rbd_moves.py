"""Volumes that are moved from a Ceph cluster to a directory and back, at rest and beside a guest."""

from __future__ import annotations

import subprocess
import uuid
from functools import partial
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.hypervisor.domain import DomainDisk
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageDriver
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.driver import RbdStorage
from kumulus_agents.storage.settings import StorageSettings
from tests.contract.ceph import POOL, CephCluster
from tests.contract.hypervisor import Heard, the
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.moves import MoveContract, movable, moved
from tests.contract.storage import Bench
from tests.contract.test_rbd import (
    RAW,
    Far,
    ceph,
    content,
    far,
    pool_of,
    secrets_of,
    server,
    settings,
    world,
    write,
)
from tests.contract.test_rbd import TestContract as RbdContract
from tests.unit.storage.material import MIB, disk, http, image_ref, pool_ref
from tests.unit.storage.server import Answer, Server

__all__ = ["ceph", "far", "server", "settings", "world"]


def directory(settings: StorageSettings, path: Path) -> DirStorage:
    """A pool of files."""
    return DirStorage(
        pool_ref(path), settings.model_copy(update={"roots": (PurePosixPath(path.parent),), "readers": ()})
    )


class TestOut(MoveContract):
    """Out of the cluster into a directory, and back."""

    bench = RbdContract.bench

    @pytest.fixture
    def beyond(self, settings: StorageSettings, tmp_path: Path) -> StorageDriver:
        return directory(settings, tmp_path / "pools/near")


class TestIn(MoveContract):
    """Into the cluster, and back."""

    @pytest.fixture
    def bench(self, settings: StorageSettings, tmp_path: Path, server: Server) -> Bench:
        data = disk()
        return Bench(
            driver=directory(settings, tmp_path / "pools/near"),
            again=lambda: directory(settings, tmp_path / "pools/near"),
            image=image_ref(data, "raw"),
            source=http(server.on("/disk.raw", Answer(data))),
            virtual_size=len(data),
            fetches=lambda: len(server.requests),
        )

    @pytest.fixture
    def beyond(self, ceph: CephCluster, settings: StorageSettings) -> StorageDriver:
        pool = pool_of(ceph)
        return RbdStorage(pool, settings, secrets_of(pool, ceph.key()))


async def test_its_content_comes_along_both_ways(ceph: CephCluster, far: Far, tmp_path: Path) -> None:
    near, volume = directory(far.settings, tmp_path / "pools/near"), str(uuid.uuid4())
    await far.driver.ensure_volume(volume, 64 * MIB, VolumeOrigin(image=far.image), False)
    write(ceph, names.volume(volume), 33 * MIB, 65536, 7)
    await moved(far.driver, near, volume)
    assert names.volume(volume) not in ceph.rbd("ls", POOL).split()
    stored = await near.volume(volume)
    assert stored is not None and stored.used < 8 * MIB
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", stored.path, raw], check=True)  # noqa: ASYNC221
    wanted = RAW.ljust(33 * MIB, b"\0") + b"\7" * 65536
    assert raw.read_bytes() == wanted.ljust(64 * MIB, b"\0")
    await moved(near, far.driver, volume, "two 0")
    assert content(ceph, names.volume(volume), tmp_path) == wanted.ljust(64 * MIB, b"\0")
    assert await near.volume(volume) is None
    again = await far.again().volume(volume)
    assert again is not None and again.used < 16 * MIB
    await far.driver.remove_volume(volume)
    await far.driver.remove_image(far.image.uid)


async def test_a_guest_goes_on_while_it_goes_out_and_in(
    ceph: CephCluster, far: Far, world: LibvirtWorld, tmp_path: Path
) -> None:
    near, volume, spec = directory(far.settings, tmp_path / "pools/near"), str(uuid.uuid4()), world.spec()
    stored = await far.driver.ensure_volume(volume, 16 * MIB, None, False)
    driver, heard = world.driver(), Heard()
    await driver.connect(heard)
    uid = spec.marks.uid
    try:
        await heard.about("")
        await driver.start(spec)
        await driver.attach_disk(uid, DomainDisk("data", stored.source, stored.format, volume=volume))
        world.guest_io(spec, volume, "write -P 1 0 16M", "flush")
        number = 1
        for source, target in ((far.driver, near), (near, far.driver)):
            number += 1
            traits = await movable(source).traits(volume)
            arrival = await movable(target).begin_arrival(volume, traits, live=True)
            await driver.copy_disk(uid, DomainDisk("", arrival.source, arrival.format, volume=volume), lambda *_: None)
            world.guest_io(spec, volume, f"write -P {number} {number}M 1M", "flush")
            settle = movable(target).settle_arrival
            await driver.switch_disk(uid, volume, arrival.source.path, partial(settle, volume, traits, f"{number} 0"))
            world.guest_io(spec, volume, f"write -P {number} {number + 8}M 1M", "flush")
            await source.remove_volume(volume)
            found = await target.volume(volume)
            assert found is not None
            assert [one.path for one in (await the(driver, spec)).disks if one.volume == volume] == [found.path]
        assert world.virsh("secret-list") == ""
        await world.crash(spec)
    finally:
        await driver.close()
    has = content(ceph, names.volume(volume), tmp_path)
    values = [1] * 16
    for number in (2, 3):
        values[number] = values[number + 8] = number
    assert has == b"".join(bytes([value]) * MIB for value in values)
