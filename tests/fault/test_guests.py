"""A guest whose pool is full: it is paused, says why, goes on when there is room, and loses nothing (QUALITY F14, G20).

The witness is a counter that the guest writes and flushes; what it says on its console was acknowledged.
"""

# ruff: noqa: ASYNC221 - small files and short programs, in tests

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kumulus_agents.hypervisor.domain import DomainDisk, DomainSpec, DomainState, PauseReason
from kumulus_agents.storage.source import FileSource
from tests.contract import guest
from tests.contract.guest import Guest
from tests.contract.hypervisor import Heard, eventually
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.libvirtd import PrivateLibvirtd
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.libvirt, needs_root]

MIB = 1 << 20
BLOCK = 65536


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def world(tmp_path: Path, small: Path) -> Iterator[LibvirtWorld]:
    """libvirtd sees what was mounted before it began."""
    images = tmp_path / "guests"
    images.mkdir()
    machines = tmp_path / "machines"
    machines.mkdir()
    libvirtd = PrivateLibvirtd(tmp_path / "libvirtd")
    try:
        libvirtd.start()
        made = LibvirtWorld(libvirtd, guest.Disks(images), machines)
        try:
            yield made
        finally:
            made.clear()
    finally:
        libvirtd.stop()


def acknowledged(world: LibvirtWorld, spec: DomainSpec) -> int:
    """The last value that the guest said it had flushed."""
    return max((int(value) for value in re.findall(r"GUEST-WROTE:(\d+)\.", world.console(spec, 1 << 20))), default=0)


async def test_a_guest_whose_pool_is_full_goes_on_when_there_is_room(world: LibvirtWorld, small: Path) -> None:
    volume, disk = str(uuid.uuid4()), small / "volume.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "32M"], check=True)
    filler = small / "filler"
    room = os.statvfs(small)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - 3 * MIB))
    spec = world.spec(Guest.COUNT)
    data = DomainDisk("data", FileSource(str(disk)), "qcow2", volume=volume)
    spec = replace(spec, disks=(*spec.disks, data))
    driver, heard = world.driver(), Heard()
    await driver.connect(heard)

    async def paused() -> bool:
        domain = await driver.domain(spec.marks.uid)
        return domain is not None and domain.state is DomainState.PAUSED

    try:
        await heard.about("")
        await driver.start(spec)
        await eventually(paused, "the guest is not paused", 90)
        domain = await driver.domain(spec.marks.uid)
        assert domain is not None and domain.pause_reason is PauseReason.DISK_FULL
        before = acknowledged(world, spec)
        assert 0 < before < 100
        heard.clear()
        await driver.resume(spec.marks.uid)
        # It did go on: who stayed paused has nothing to tell.
        await heard.about(spec.marks.uid)
        await eventually(paused, "it is paused again while there is no room", 30)
        filler.unlink()
        await driver.resume(spec.marks.uid)
        await eventually(lambda: acknowledged(world, spec) >= before + 50, "the guest does not go on", 60)
        domain = await driver.domain(spec.marks.uid)
        assert domain is not None and (domain.state, domain.pause_reason) == (DomainState.RUNNING, None)
        last = acknowledged(world, spec)
        await driver.force_off(spec.marks.uid)
    finally:
        await driver.close()
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(disk)], check=True)
    plain = small.parent / "plain"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(plain)], check=True)
    content = plain.read_bytes()
    lost = [
        n for n in range(1, last + 1) if content[n * BLOCK : (n + 1) * BLOCK] != (f"{n}\n" * BLOCK).encode()[:BLOCK]
    ]
    assert lost == []
