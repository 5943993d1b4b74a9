"""What every storage driver must do. A driver's tests inherit `StorageContract` and give it a `bench`.

A third-party driver can run it too: make the fixture, inherit the class.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kumulus.api.image_order import HttpFetch, ImageRef
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.moving import ReceivingDisks
from kumulus_agents.storage.protocol import ImportProgress, StorageDriver, StorageError

MIB = 1 << 20
STAGES = ("Downloading", "Unpacking", "Inspecting", "Converting")


@dataclass(frozen=True)
class Bench:
    """A driver to try, and an image it can import."""

    driver: StorageDriver
    again: Callable[[], StorageDriver]
    """The driver of the same pool as a restarted agent would make it."""
    image: ImageRef
    source: HttpFetch
    virtual_size: int
    """Of the image, in bytes."""
    fetches: Callable[[], int]
    """How often the source was fetched."""
    format: str = "qcow2"
    """Of images and disks in the pool."""


def _uid() -> str:
    return str(uuid.uuid4())


def _ignore(_: ImportProgress) -> None:
    pass


class StorageContract:
    """Inherit, and define the fixture `bench`."""

    async def test_prepare_says_how_much_room_there_is_and_may_be_repeated(self, bench: Bench) -> None:
        first = await bench.driver.prepare()
        assert 0 <= first.used <= first.capacity
        again = await bench.driver.prepare()
        # A cluster counts what was removed a while later.
        assert abs(again.capacity - first.capacity) <= first.capacity // 20

    async def test_an_image_is_there_after_its_import_and_not_before(self, bench: Bench) -> None:
        assert await bench.driver.image(bench.image.uid) is None
        made = await bench.driver.import_image(bench.image, bench.source, _ignore)
        assert made.uid == bench.image.uid
        assert (made.format, made.source_format) == (bench.format, bench.image.format)
        assert made.sha256 == bench.image.sha256
        assert made.virtual_size == bench.virtual_size
        assert made.size > 0
        assert await bench.driver.image(bench.image.uid) == made

    async def test_a_second_import_fetches_nothing(self, bench: Bench) -> None:
        made = await bench.driver.import_image(bench.image, bench.source, _ignore)
        assert await bench.driver.import_image(bench.image, bench.source, _ignore) == made
        assert bench.fetches() <= 1

    async def test_imports_at_the_same_time_fetch_once(self, bench: Bench) -> None:
        made = await asyncio.gather(*(bench.driver.import_image(bench.image, bench.source, _ignore) for _ in range(10)))
        assert len(set(made)) == 1
        assert bench.fetches() <= 1

    async def test_an_import_tells_its_stages_in_order(self, bench: Bench) -> None:
        told: list[ImportProgress] = []
        await bench.driver.import_image(bench.image, bench.source, told.append)
        stages = [progress.stage for progress in told]
        assert stages
        assert stages == sorted(stages, key=STAGES.index)
        assert all(progress.total is None or progress.bytes <= progress.total for progress in told)

    async def test_an_image_outlives_the_agent(self, bench: Bench) -> None:
        made = await bench.driver.import_image(bench.image, bench.source, _ignore)
        assert await bench.again().image(bench.image.uid) == made

    async def test_another_checksum_for_the_same_image_is_refused(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        other = bench.image.model_copy(update={"sha256": "0" * 64})
        with pytest.raises(StorageError) as refused:
            await bench.driver.import_image(other, bench.source, _ignore)
        assert refused.value.reason == "ImageConflict"

    async def test_a_disk_has_the_size_of_its_image_or_the_one_asked_for(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        owner = _uid()
        small = await bench.driver.ensure_disk(owner, "root", bench.image.uid, None)
        large = await bench.driver.ensure_disk(owner, "data", bench.image.uid, bench.virtual_size * 2)
        assert small.format == large.format == bench.format
        assert small.virtual_size == bench.virtual_size
        assert large.virtual_size == bench.virtual_size * 2
        assert small.path != large.path

    async def test_a_disk_is_made_once_and_found_again(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        owner = _uid()
        disks = await asyncio.gather(
            *(bench.driver.ensure_disk(owner, "root", bench.image.uid, None) for _ in range(5))
        )
        assert len(set(disks)) == 1
        assert await bench.again().ensure_disk(owner, "root", bench.image.uid, None) == disks[0]

    async def test_disks_of_machines_are_apart(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        one, two = _uid(), _uid()
        first = await bench.driver.ensure_disk(one, "root", bench.image.uid, None)
        second = await bench.driver.ensure_disk(two, "root", bench.image.uid, None)
        assert first.path != second.path
        await bench.driver.remove_disks(one)
        assert await bench.driver.ensure_disk(two, "root", bench.image.uid, None) == second

    async def test_a_disk_that_comes_with_its_guest_is_empty_and_stands_on_nothing(self, bench: Bench) -> None:
        driver = bench.driver
        if not isinstance(driver, ReceivingDisks):
            pytest.skip("guests do not bring disks into such pools")
        owner, migration = _uid(), _uid()
        assert await driver.disk(owner, "root") is None
        made = await driver.receive_disk(owner, "root", 4 * MIB, migration)
        assert (made.virtual_size, made.below) == (4 * MIB, ())
        assert await driver.receive_disk(owner, "root", 4 * MIB, migration) == made
        assert await driver.disk(owner, "root") == made
        assert await bench.driver.ensure_disk(owner, "root", bench.image.uid, None) == made, "it is there"
        with pytest.raises(StorageError) as other:
            await driver.receive_disk(owner, "root", 4 * MIB, _uid())
        assert (other.value.reason, other.value.retryable) == ("DiskConflict", False)
        await bench.driver.remove_disks(owner)
        assert await driver.disk(owner, "root") is None
        assert await driver.receive_disk(owner, "root", 4 * MIB, _uid()) == made

    async def test_a_disk_without_its_image_has_to_wait(self, bench: Bench) -> None:
        with pytest.raises(StorageError) as refused:
            await bench.driver.ensure_disk(_uid(), "root", bench.image.uid, None)
        assert refused.value.reason == "ImageNotReady"
        assert refused.value.retryable

    async def test_a_disk_smaller_than_its_image_is_refused(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        with pytest.raises(StorageError) as refused:
            await bench.driver.ensure_disk(_uid(), "root", bench.image.uid, bench.virtual_size - 1)
        assert refused.value.reason == "DiskTooSmall"
        assert not refused.value.retryable

    async def test_an_image_in_use_stays(self, bench: Bench) -> None:
        made = await bench.driver.import_image(bench.image, bench.source, _ignore)
        owner = _uid()
        await bench.driver.ensure_disk(owner, "root", bench.image.uid, None)
        with pytest.raises(StorageError) as refused:
            await bench.driver.remove_image(bench.image.uid)
        assert refused.value.reason == "ImageInUse"
        assert await bench.driver.image(bench.image.uid) == made
        await bench.driver.remove_disks(owner)
        await bench.driver.remove_image(bench.image.uid)
        assert await bench.driver.image(bench.image.uid) is None

    async def test_removing_what_is_not_there_is_fine(self, bench: Bench) -> None:
        await bench.driver.remove_disks(_uid())
        await bench.driver.remove_image(_uid())

    async def test_a_removed_image_can_come_back(self, bench: Bench) -> None:
        made = await bench.driver.import_image(bench.image, bench.source, _ignore)
        await bench.driver.remove_image(bench.image.uid)
        await bench.driver.remove_image(bench.image.uid)
        assert (await bench.driver.import_image(bench.image, bench.source, _ignore)).virtual_size == made.virtual_size

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../../etc/passwd", "a/b", "-o x", "$(id)", "x\0y", "x\ny", "x" * 300, "A" * 36]
    )
    async def test_what_is_no_uid_never_becomes_a_name(self, bench: Bench, name: str) -> None:
        image = bench.image.model_construct(uid=name, sha256=bench.image.sha256, format=bench.image.format)
        calls = (
            lambda: bench.driver.image(name),
            lambda: bench.driver.import_image(image, bench.source, _ignore),
            lambda: bench.driver.remove_image(name),
            lambda: bench.driver.ensure_disk(name, "root", bench.image.uid, None),
            lambda: bench.driver.ensure_disk(_uid(), "root", name, None),
            lambda: bench.driver.remove_disks(name),
            lambda: bench.driver.volume(name),
            lambda: bench.driver.ensure_volume(name, MIB, None, False),
            lambda: bench.driver.ensure_volume(_uid(), MIB, VolumeOrigin.model_construct(volume=name), False),
            lambda: bench.driver.ensure_volume(_uid(), MIB, VolumeOrigin.model_construct(image=image), False),
            lambda: bench.driver.grow_volume(name, MIB),
            lambda: bench.driver.remove_volume(name),
        )
        for call in calls:
            with pytest.raises(StorageError) as refused:
                await call()
            assert refused.value.reason == "BadName"

    @pytest.mark.parametrize("name", ["../../../root", "-o x", "$(id)", "a\0b", "a\nb", "x" * 300])
    async def test_a_disk_name_may_be_any_text(self, bench: Bench, name: str) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        disk = await bench.driver.ensure_disk(_uid(), name, bench.image.uid, None)
        assert name not in disk.path

    async def test_a_blank_volume_has_the_size_asked_for(self, bench: Bench) -> None:
        one = _uid()
        assert await bench.driver.volume(one) is None
        made = await bench.driver.ensure_volume(one, 4 * MIB + 1, None, False)
        assert made.virtual_size == 4 * MIB + 512
        assert made.format in ("qcow2", "raw")
        assert 0 <= made.used < 4 * MIB
        assert await bench.driver.volume(one) == made
        other = await bench.driver.ensure_volume(_uid(), 4 * MIB, None, False)
        assert other.path != made.path

    async def test_a_thick_volume_takes_its_space_at_once(self, bench: Bench) -> None:
        made = await bench.driver.ensure_volume(_uid(), 4 * MIB, None, True)
        assert made.used >= 4 * MIB

    async def test_a_blank_volume_without_a_size_is_refused(self, bench: Bench) -> None:
        with pytest.raises(StorageError) as refused:
            await bench.driver.ensure_volume(_uid(), None, None, False)
        assert (refused.value.reason, refused.value.retryable) == ("SizeMissing", False)

    async def test_a_volume_is_made_once_and_found_again(self, bench: Bench) -> None:
        one = _uid()
        made = await asyncio.gather(*(bench.driver.ensure_volume(one, MIB, None, False) for _ in range(5)))
        assert len(set(made)) == 1
        again = bench.again()
        assert await again.volume(one) == made[0]
        assert await again.ensure_volume(one, 2 * MIB, None, True) == made[0]

    @pytest.mark.parametrize("thick", [False, True])
    async def test_a_volume_of_an_image(self, bench: Bench, thick: bool) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        origin = VolumeOrigin(image=bench.image)
        same = await bench.driver.ensure_volume(_uid(), None, origin, thick)
        large = await bench.driver.ensure_volume(_uid(), bench.virtual_size * 2, origin, thick)
        assert (same.virtual_size, large.virtual_size) == (bench.virtual_size, bench.virtual_size * 2)

    async def test_a_volume_without_its_origin_has_to_wait(self, bench: Bench) -> None:
        for origin, reason in (
            (VolumeOrigin(image=bench.image), "ImageNotReady"),
            (VolumeOrigin(volume=_uid()), "VolumeNotReady"),
        ):
            with pytest.raises(StorageError) as refused:
                await bench.driver.ensure_volume(_uid(), None, origin, False)
            assert (refused.value.reason, refused.value.retryable) == (reason, True)

    async def test_a_volume_smaller_than_its_origin_is_refused(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        source = _uid()
        await bench.driver.ensure_volume(source, 2 * MIB, None, False)
        for origin, size in (
            (VolumeOrigin(image=bench.image), bench.virtual_size - 1),
            (VolumeOrigin(volume=source), MIB),
        ):
            with pytest.raises(StorageError) as refused:
                await bench.driver.ensure_volume(_uid(), size, origin, False)
            assert (refused.value.reason, refused.value.retryable) == ("DiskTooSmall", False)

    async def test_an_image_that_a_volume_stands_on_stays(self, bench: Bench) -> None:
        made = await bench.driver.import_image(bench.image, bench.source, _ignore)
        volume = _uid()
        await bench.driver.ensure_volume(volume, None, VolumeOrigin(image=bench.image), False)
        with pytest.raises(StorageError) as refused:
            await bench.driver.remove_image(bench.image.uid)
        assert refused.value.reason == "ImageInUse"
        assert await bench.driver.image(bench.image.uid) == made
        await bench.driver.remove_volume(volume)
        await bench.driver.remove_image(bench.image.uid)
        assert await bench.driver.image(bench.image.uid) is None

    async def test_a_copy_stands_on_nothing_of_its_source(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        source, copy, told = _uid(), _uid(), list[ImportProgress]()
        await bench.driver.ensure_volume(source, None, VolumeOrigin(image=bench.image), False)
        made = await bench.driver.ensure_volume(copy, None, VolumeOrigin(volume=source), False, told.append)
        assert made.virtual_size == bench.virtual_size
        assert {progress.stage for progress in told} == {"Copying"}
        await bench.driver.remove_volume(source)
        await bench.driver.remove_image(bench.image.uid)
        assert await bench.driver.volume(copy) == made

    async def test_growing(self, bench: Bench) -> None:
        volume = _uid()
        await bench.driver.ensure_volume(volume, MIB, None, False)
        for _ in range(2):
            assert (await bench.driver.grow_volume(volume, 3 * MIB - 5)).virtual_size == 3 * MIB
        assert (await bench.again().volume(volume) or pytest.fail("it is gone")).virtual_size == 3 * MIB

    async def test_growing_what_stands_on_an_image(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        volume, wanted = _uid(), bench.virtual_size * 2
        await bench.driver.ensure_volume(volume, None, VolumeOrigin(image=bench.image), False)
        assert (await bench.driver.grow_volume(volume, wanted)).virtual_size == wanted

    async def test_growing_live_is_left_to_the_emulator(self, bench: Bench) -> None:
        volume, asked = _uid(), list[int]()
        await bench.driver.ensure_volume(volume, MIB, None, False)

        async def fail(size: int) -> None:
            asked.append(size)
            raise StorageError("no", reason="Told")

        with pytest.raises(StorageError) as refused:
            await bench.driver.grow_volume(volume, 2 * MIB, fail)
        assert (refused.value.reason, asked) == ("Told", [2 * MIB])
        await bench.driver.grow_volume(volume, MIB, fail)
        assert asked == [2 * MIB]

    async def test_a_volume_never_shrinks(self, bench: Bench) -> None:
        volume = _uid()
        made = await bench.driver.ensure_volume(volume, 2 * MIB, None, False)
        with pytest.raises(StorageError) as refused:
            await bench.driver.grow_volume(volume, MIB)
        assert (refused.value.reason, refused.value.retryable) == ("ShrinkRefused", False)
        assert await bench.driver.volume(volume) == made

    async def test_growing_what_is_not_there(self, bench: Bench) -> None:
        with pytest.raises(StorageError) as refused:
            await bench.driver.grow_volume(_uid(), MIB)
        assert refused.value.reason == "VolumeNotReady"

    async def test_a_removed_volume_is_gone_and_can_be_made_anew(self, bench: Bench) -> None:
        volume = _uid()
        await bench.driver.ensure_volume(volume, MIB, None, False)
        for _ in range(2):
            await bench.driver.remove_volume(volume)
            assert await bench.driver.volume(volume) is None
        assert (await bench.driver.ensure_volume(volume, 2 * MIB, None, False)).virtual_size == 2 * MIB

    async def test_machines_and_volumes_are_apart(self, bench: Bench) -> None:
        await bench.driver.import_image(bench.image, bench.source, _ignore)
        one = _uid()
        await bench.driver.ensure_disk(one, one, bench.image.uid, None)
        volume = await bench.driver.ensure_volume(one, MIB, None, False)
        await bench.driver.remove_disks(one)
        assert await bench.driver.volume(one) == volume

    async def test_a_mark_tells_hosts_with_older_orders_from_the_one_that_has_the_volume(self, bench: Bench) -> None:
        volume = _uid()
        await bench.driver.ensure_volume(volume, MIB, None, False)
        for epoch, host in ((0, "a"), (0, "a"), (1, "b"), (3, "a"), (3, "a")):
            await bench.driver.claim_volume(volume, host, epoch)
        for epoch, host in ((3, "b"), (2, "b"), (0, "a")):
            with pytest.raises(StorageError) as refused:
                await bench.again().claim_volume(volume, host, epoch)
            assert refused.value.reason == "VolumeElsewhere"
