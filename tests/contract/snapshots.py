"""What a storage driver must do whose volumes can have snapshots; beside `StorageContract`, with the same `bench`.

`LayerContract` is for those that put a layer on a volume, `InstantContract` for those that do not.
"""

from __future__ import annotations

import uuid

import pytest

from kumulus.api.snapshots import Indication
from kumulus.api.volume_order import SnapshotRef, VolumeOrigin
from kumulus_agents.storage.instants import Instants
from kumulus_agents.storage.protocol import StorageDriver, StorageError, StoredSnapshot
from kumulus_agents.storage.source import LayerFile
from tests.contract.storage import MIB, Bench

AT = "2026-11-20T12:00:00Z"
HOW = (Indication.ONLINE, Indication.NO_GUEST_AGENT)


def _uid() -> str:
    return str(uuid.uuid4())


async def taken(driver: StorageDriver, volume: str, snapshot: str | None = None) -> str:
    """Take a snapshot; its uid."""
    snapshot = snapshot or _uid()
    await driver.begin_snapshot(volume, snapshot)
    await driver.confirm_snapshot(volume, snapshot, AT, HOW)
    return snapshot


async def tidy(driver: StorageDriver, volume: str) -> int:
    """Merge what can be merged; how often that was."""
    count = 0
    while (merge := await driver.next_merge(volume)) is not None:
        await driver.merge(volume, merge)
        count += 1
    return count


def of_snapshot(volume: str, snapshot: str) -> VolumeOrigin:
    return VolumeOrigin.model_validate({"snapshot": {"volume": volume, "snapshot": snapshot}})


def linked_to(volume: str, snapshot: str) -> VolumeOrigin:
    return VolumeOrigin.model_validate({"snapshot": {"volume": volume, "snapshot": snapshot}, "linked": True})


class SnapshotContract:
    """Inherit, and define the fixture `bench`."""

    @pytest.fixture
    async def volume(self, bench: Bench) -> str:
        """A volume of 2 MiB."""
        volume = _uid()
        await bench.driver.ensure_volume(volume, 2 * MIB, None, False)
        return volume

    async def test_a_snapshot_is_begun_and_then_taken(self, bench: Bench, volume: str) -> None:
        snapshot = _uid()
        assert await bench.driver.snapshot(volume, snapshot) is None
        begun = await bench.driver.begin_snapshot(volume, snapshot)
        assert begun.virtual_size == 2 * MIB
        found = await bench.driver.snapshot(volume, snapshot)
        assert found is not None
        assert found.taken_at is None
        for _ in range(2):
            made = await bench.driver.confirm_snapshot(volume, snapshot, AT, HOW)
            assert made == StoredSnapshot(2 * MIB, found.used, AT, HOW)
        for driver in (bench.driver, bench.again()):
            assert await driver.snapshot(volume, snapshot) == made
            assert (await driver.volume(volume) or pytest.fail("it is gone")).path == begun.path

    async def test_what_was_begun_can_be_begun_again_and_taken(self, bench: Bench, volume: str) -> None:
        snapshot = _uid()
        await bench.driver.begin_snapshot(volume, snapshot)
        await bench.again().begin_snapshot(volume, snapshot)
        await bench.driver.confirm_snapshot(volume, snapshot, AT, HOW)
        assert (await bench.driver.snapshot(volume, snapshot) or pytest.fail("it is gone")).taken_at == AT

    async def test_a_snapshot_keeps_its_size_and_the_volume_its_own(self, bench: Bench, volume: str) -> None:
        one, two = await taken(bench.driver, volume), await taken(bench.driver, volume)
        await bench.driver.grow_volume(volume, 4 * MIB)
        three = await taken(bench.driver, volume)
        for snapshot, size in ((one, 2), (two, 2), (three, 4)):
            found = await bench.driver.snapshot(volume, snapshot)
            assert found is not None
            assert found.virtual_size == size * MIB
        request = _uid()
        made = await bench.driver.revert_volume(volume, one, request)
        assert (made.virtual_size, made.reverted) == (4 * MIB, request)
        for driver in (bench.driver, bench.again()):
            for snapshot in (one, two):
                assert await driver.revert_volume(volume, snapshot, request) == await driver.volume(volume)
        assert (await bench.driver.revert_volume(volume, three, _uid())).virtual_size == 4 * MIB
        for snapshot in (two, one, three):
            await bench.driver.forget_snapshot(volume, snapshot)
            await tidy(bench.driver, volume)
            assert await bench.driver.snapshot(volume, snapshot) is None
        found_volume = await bench.driver.volume(volume)
        assert found_volume is not None
        assert (found_volume.virtual_size, found_volume.below) == (4 * MIB, ())

    async def test_what_was_confirmed_is_not_begun_again(self, bench: Bench, volume: str) -> None:
        snapshot = await taken(bench.driver, volume)
        before = await bench.driver.volume(volume)
        assert await bench.driver.begin_snapshot(volume, snapshot) == before
        await bench.driver.confirm_snapshot(volume, snapshot, "2027-01-01T00:00:00Z", ())
        assert (await bench.driver.snapshot(volume, snapshot) or pytest.fail("it is gone")).taken_at == AT

    async def test_a_volume_of_a_snapshot(self, bench: Bench, volume: str) -> None:
        snapshot = await taken(bench.driver, volume)
        await bench.driver.grow_volume(volume, 4 * MIB)
        copy = _uid()
        made = await bench.driver.ensure_volume(copy, None, of_snapshot(volume, snapshot), False)
        assert (made.virtual_size, made.below) == (2 * MIB, ())
        with pytest.raises(StorageError) as refused:
            await bench.driver.ensure_volume(_uid(), MIB, of_snapshot(volume, snapshot), False)
        assert refused.value.reason == "DiskTooSmall"
        await bench.driver.forget_snapshot(volume, snapshot)
        await bench.driver.remove_volume(volume)
        assert await bench.driver.volume(copy) == made

    async def test_a_volume_of_a_snapshot_that_is_not_there_has_to_wait(self, bench: Bench, volume: str) -> None:
        begun = _uid()
        await bench.driver.begin_snapshot(volume, begun)
        for origin in (of_snapshot(volume, _uid()), of_snapshot(volume, begun), of_snapshot(_uid(), _uid())):
            with pytest.raises(StorageError) as refused:
                await bench.driver.ensure_volume(_uid(), None, origin, False)
            assert (refused.value.reason, refused.value.retryable) == ("SnapshotNotReady", True)

    async def test_a_volume_with_snapshots_stays(self, bench: Bench, volume: str) -> None:
        snapshot = await taken(bench.driver, volume)
        with pytest.raises(StorageError) as refused:
            await bench.driver.remove_volume(volume)
        assert refused.value.reason == "VolumeInUse"
        await bench.driver.forget_snapshot(volume, snapshot)
        await bench.driver.remove_volume(volume)
        assert await bench.driver.volume(volume) is None
        assert await bench.driver.snapshot(volume, snapshot) is None
        assert (await bench.driver.ensure_volume(volume, MIB, None, False)).below == ()

    async def test_a_volume_does_not_go_back_to_what_is_no_snapshot_of_it(self, bench: Bench, volume: str) -> None:
        other = _uid()
        await bench.driver.ensure_volume(other, MIB, None, False)
        snapshot = await taken(bench.driver, other)
        before = await bench.driver.volume(volume)
        with pytest.raises(StorageError) as refused:
            await bench.driver.revert_volume(volume, snapshot, _uid())
        assert refused.value.reason == "SnapshotNotReady"
        assert await bench.driver.volume(volume) == before

    async def test_a_snapshot_stays_while_volumes_are_linked_to_it(self, bench: Bench, volume: str) -> None:
        low, snapshot, high = [await taken(bench.driver, volume) for _ in range(3)]
        clone, of_clone = _uid(), _uid()
        made = await bench.driver.ensure_volume(clone, 4 * MIB, linked_to(volume, snapshot), False)
        assert made.virtual_size == 4 * MIB
        assert await bench.again().volume(clone) == made
        inner = await taken(bench.driver, clone)
        far = await bench.driver.ensure_volume(of_clone, None, linked_to(clone, inner), False)
        assert far.virtual_size == 4 * MIB
        with pytest.raises(StorageError) as refused:
            await bench.driver.ensure_volume(_uid(), MIB, linked_to(volume, snapshot), False)
        assert (refused.value.reason, refused.value.retryable) == ("DiskTooSmall", False)
        for one, two in ((volume, snapshot), (clone, inner)):
            with pytest.raises(StorageError) as refused:
                await bench.driver.forget_snapshot(one, two)
            assert (refused.value.reason, refused.value.retryable) == ("SnapshotInUse", True)
            assert await bench.driver.snapshot(one, two) is not None
            with pytest.raises(StorageError) as refused:
                await bench.driver.remove_volume(one)
            assert refused.value.reason == "VolumeInUse"
        for one in (low, high):
            await bench.driver.forget_snapshot(volume, one)
            await tidy(bench.driver, volume)
        await bench.driver.revert_volume(volume, snapshot, _uid())
        await bench.driver.remove_volume(of_clone)
        await bench.driver.forget_snapshot(clone, inner)
        await tidy(bench.driver, clone)
        await bench.driver.remove_volume(clone)
        await bench.driver.forget_snapshot(volume, snapshot)
        await tidy(bench.driver, volume)
        await bench.driver.remove_volume(volume)
        assert await bench.driver.volume(volume) is None

    async def test_what_was_done_to_a_volume_was_not_done_to_what_is_linked_to_it(
        self, bench: Bench, volume: str
    ) -> None:
        snapshot, clone = await taken(bench.driver, volume), _uid()
        await bench.driver.claim_volume(volume, "one", 5)
        await bench.driver.grow_volume(volume, 4 * MIB)
        await bench.driver.revert_volume(volume, snapshot, _uid())
        made = await bench.driver.ensure_volume(clone, None, linked_to(volume, snapshot), False)
        assert (made.virtual_size, made.reverted) == (2 * MIB, None)
        await bench.driver.claim_volume(clone, "other", 1)
        inner = await taken(bench.driver, clone)
        assert (await bench.driver.revert_volume(clone, inner, _uid())).virtual_size == 2 * MIB
        assert await bench.driver.snapshot(clone, snapshot) is None

    async def test_a_volume_that_is_to_be_linked_waits_for_its_snapshot(self, bench: Bench, volume: str) -> None:
        for origin in (linked_to(volume, _uid()), linked_to(_uid(), _uid())):
            with pytest.raises(StorageError) as refused:
                await bench.driver.ensure_volume(_uid(), None, origin, False)
            assert (refused.value.reason, refused.value.retryable) == ("SnapshotNotReady", True)

    async def test_no_thick_volume_is_linked(self, bench: Bench, volume: str) -> None:
        snapshot = await taken(bench.driver, volume)
        with pytest.raises(StorageError) as refused:
            await bench.driver.ensure_volume(_uid(), None, linked_to(volume, snapshot), True)
        assert (refused.value.reason, refused.value.retryable) == ("LinkedThick", False)

    async def test_what_is_not_there(self, bench: Bench) -> None:
        volume, snapshot = _uid(), _uid()
        assert await bench.driver.snapshot(volume, snapshot) is None
        assert await bench.driver.next_merge(volume) is None
        await bench.driver.forget_snapshot(volume, snapshot)
        for attempt, reason in (
            (bench.driver.begin_snapshot(volume, snapshot), "VolumeNotReady"),
            (bench.driver.adopt(volume, "/x"), "VolumeNotReady"),
        ):
            with pytest.raises(StorageError) as refused:
                await attempt
            assert refused.value.reason == reason
        await bench.driver.ensure_volume(volume, MIB, None, False)
        with pytest.raises(StorageError) as refused:
            await bench.driver.confirm_snapshot(volume, snapshot, AT, ())
        assert (refused.value.reason, refused.value.retryable) == ("SnapshotLost", False)

    @pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "a/b", "$(id)", "x\0y", "A" * 36])
    async def test_no_snapshot_has_a_name_that_is_no_uid(self, bench: Bench, volume: str, name: str) -> None:
        driver = bench.driver
        for one, two in ((name, _uid()), (volume, name)):
            for call in (
                lambda one=one, two=two: driver.revert_volume(one, two, _uid()),
                lambda one=one, two=two: driver.ensure_volume(
                    _uid(),
                    None,
                    VolumeOrigin.model_construct(snapshot=SnapshotRef.model_construct(volume=one, snapshot=two)),
                    False,
                ),
                lambda one=one, two=two: driver.snapshot(one, two),
                lambda one=one, two=two: driver.begin_snapshot(one, two),
                lambda one=one, two=two: driver.confirm_snapshot(one, two, AT, ()),
                lambda one=one, two=two: driver.forget_snapshot(one, two),
            ):
                with pytest.raises(StorageError) as refused:
                    await call()
                assert refused.value.reason == "BadName"
        for call in (lambda: driver.adopt(name, "/x"), lambda: driver.next_merge(name)):
            with pytest.raises(StorageError) as refused:
                await call()
            assert refused.value.reason == "BadName"


class LayerContract(SnapshotContract):
    """The same of a driver that puts layers on volumes. Inherit, and define the fixture `bench`."""

    async def test_a_snapshot_is_a_layer_below_what_is_written(self, bench: Bench, volume: str) -> None:
        before = await bench.driver.volume(volume)
        snapshot = _uid()
        assert await bench.driver.snapshot(volume, snapshot) is None
        begun = await bench.driver.begin_snapshot(volume, snapshot)
        assert before is not None
        assert [below.path for below in begun.below] == [before.path, *(below.path for below in before.below)]
        assert (begun.virtual_size, begun.format) == (2 * MIB, "qcow2")
        found = await bench.driver.snapshot(volume, snapshot)
        assert found is not None
        assert found.taken_at is None
        for _ in range(2):
            made = await bench.driver.confirm_snapshot(volume, snapshot, AT, HOW)
            assert made == StoredSnapshot(2 * MIB, found.used, AT, HOW)
        for driver in (bench.driver, bench.again()):
            assert await driver.snapshot(volume, snapshot) == made
            assert (await driver.volume(volume) or pytest.fail("it is gone")).path == begun.path

    async def test_what_was_begun_is_begun_anew(self, bench: Bench, volume: str) -> None:
        snapshot = _uid()
        first = await bench.driver.begin_snapshot(volume, snapshot)
        second = await bench.again().begin_snapshot(volume, snapshot)
        assert second.path != first.path
        assert second.below[0].path == first.path
        await bench.driver.confirm_snapshot(volume, snapshot, AT, HOW)
        assert await tidy(bench.driver, volume) == 1
        assert len((await bench.driver.volume(volume) or pytest.fail("it is gone")).below) == 1

    async def test_what_an_emulator_writes_to_is_the_volume(self, bench: Bench, volume: str) -> None:
        before, snapshot = await bench.driver.volume(volume), _uid()
        assert before is not None
        begun = await bench.driver.begin_snapshot(volume, snapshot)
        await bench.driver.adopt(volume, begun.path)
        assert (await bench.driver.volume(volume) or pytest.fail("it is gone")).path == begun.path
        for _ in range(2):
            await bench.driver.adopt(volume, before.path)
            assert await bench.driver.volume(volume) == before
            assert await bench.driver.snapshot(volume, snapshot) is None
        await bench.driver.begin_snapshot(volume, snapshot)
        await bench.driver.confirm_snapshot(volume, snapshot, AT, HOW)
        for path in (before.path, "/somewhere/else"):
            with pytest.raises(StorageError) as refused:
                await bench.driver.adopt(volume, path)
            assert (refused.value.reason, refused.value.retryable) == ("ChainMismatch", False)

    async def test_while_one_is_begun_the_volume_neither_grows_nor_goes_back(self, bench: Bench, volume: str) -> None:
        snapshot = _uid()
        await bench.driver.begin_snapshot(volume, snapshot)
        for call in (
            lambda: bench.driver.grow_volume(volume, 4 * MIB),
            lambda: bench.driver.revert_volume(volume, snapshot, _uid()),
        ):
            with pytest.raises(StorageError) as refused:
                await call()
            assert (refused.value.reason, refused.value.retryable) == ("VolumeBusy", True)
        await bench.driver.confirm_snapshot(volume, snapshot, AT, HOW)
        assert (await bench.driver.grow_volume(volume, 4 * MIB)).virtual_size == 4 * MIB
        assert (await bench.driver.snapshot(volume, snapshot) or pytest.fail("it is gone")).virtual_size == 2 * MIB

    async def test_snapshots_that_go_in_any_order_leave_one_layer(self, bench: Bench, volume: str) -> None:
        first = await bench.driver.volume(volume)
        snapshots = [await taken(bench.driver, volume) for _ in range(4)]
        assert await bench.driver.next_merge(volume) is None
        for place, left in ((1, 3), (0, 2), (1, 1), (0, 0)):
            await bench.driver.forget_snapshot(volume, snapshots.pop(place))
            assert await tidy(bench.driver, volume) == 1
            now = await bench.driver.volume(volume)
            assert now is not None
            assert len(now.below) == left
            for snapshot in snapshots:
                assert await bench.driver.snapshot(volume, snapshot) is not None
        assert first is not None
        assert now.path == first.path

    async def test_an_emulator_can_merge_in_place_of_the_driver(self, bench: Bench, volume: str) -> None:
        one, two = await taken(bench.driver, volume), await taken(bench.driver, volume)
        await bench.driver.forget_snapshot(volume, one)
        merge = await bench.driver.next_merge(volume)
        assert merge is not None
        assert not merge.active
        for _ in range(2):
            await bench.driver.merged(volume, merge)
        found = await bench.driver.volume(volume)
        assert found is not None
        assert [below.path for below in found.below] == [merge.lower]
        await bench.driver.forget_snapshot(volume, two)
        merge = await bench.driver.next_merge(volume)
        assert merge is not None
        assert merge.active
        await bench.driver.adopt(volume, merge.lower)
        assert (await bench.driver.volume(volume) or pytest.fail("it is gone")).path == merge.lower
        await bench.driver.merged(volume, merge)
        assert await bench.driver.next_merge(volume) is None

    async def test_a_volume_goes_back_to_a_snapshot_once(self, bench: Bench, volume: str) -> None:
        one, two, request = await taken(bench.driver, volume), await taken(bench.driver, volume), _uid()
        before = await bench.driver.grow_volume(volume, 4 * MIB)
        assert before.reverted is None
        made = await bench.driver.revert_volume(volume, one, request)
        assert (made.virtual_size, made.reverted) == (4 * MIB, request)
        assert made.path not in {before.path, *(below.path for below in before.below)}
        assert [below.path for below in made.below] == [before.below[-1].path]
        assert await tidy(bench.driver, volume) == 0
        for driver in (bench.driver, bench.again()):
            for snapshot in (one, two):
                assert await driver.revert_volume(volume, snapshot, request) == await driver.volume(volume)
        assert await bench.driver.snapshot(volume, two) is not None
        again = await bench.driver.revert_volume(volume, two, _uid())
        assert len(again.below) == 2
        for snapshot in (one, two):
            await bench.driver.forget_snapshot(volume, snapshot)
        await tidy(bench.driver, volume)
        assert (await bench.driver.volume(volume) or pytest.fail("it is gone")).below == ()

    async def test_a_volume_that_is_linked_to_a_snapshot_keeps_it(self, bench: Bench, volume: str) -> None:
        low, snapshot, high = [await taken(bench.driver, volume) for _ in range(3)]
        source = await bench.driver.volume(volume)
        assert source is not None
        clone, of_clone = _uid(), _uid()
        made = await bench.driver.ensure_volume(clone, 4 * MIB, linked_to(volume, snapshot), False)
        assert made.virtual_size == 4 * MIB
        assert made.below == source.below[1:]
        assert made.path not in {source.path, *(below.path for below in source.below)}
        assert await bench.again().volume(clone) == made
        inner = await taken(bench.driver, clone)
        far = await bench.driver.ensure_volume(of_clone, None, linked_to(clone, inner), False)
        assert far.below == (LayerFile(made.path, made.format), *made.below)
        for one, two in ((volume, snapshot), (clone, inner)):
            with pytest.raises(StorageError) as refused:
                await bench.driver.forget_snapshot(one, two)
            assert (refused.value.reason, refused.value.retryable) == ("SnapshotInUse", True)
            with pytest.raises(StorageError) as refused:
                await bench.driver.remove_volume(one)
            assert refused.value.reason == "VolumeInUse"
        # What the clone stands on stays as it is; what is above it does not.
        for one in (low, high):
            await bench.driver.forget_snapshot(volume, one)
        assert await tidy(bench.driver, volume) == 1
        now = await bench.driver.volume(clone)
        assert now is not None
        assert now.below[1:] == made.below
        await bench.driver.remove_volume(of_clone)
        await bench.driver.forget_snapshot(clone, inner)
        await bench.driver.remove_volume(clone)
        await bench.driver.forget_snapshot(volume, snapshot)
        await tidy(bench.driver, volume)
        assert (await bench.driver.volume(volume) or pytest.fail("it is gone")).below == ()


class InstantContract(SnapshotContract):
    """The same of a driver that keeps instants by itself. Inherit, and define the fixture `bench`."""

    @pytest.fixture
    def instants(self, bench: Bench) -> Instants:
        """The driver, as who halts a guest knows it."""
        driver = bench.driver
        assert isinstance(driver, Instants)
        return driver

    async def test_the_volume_stays_what_it_is(self, bench: Bench, volume: str) -> None:
        before = await bench.driver.volume(volume)
        assert before is not None
        one = await taken(bench.driver, volume)
        await bench.driver.adopt(volume, before.path)
        with pytest.raises(StorageError) as refused:
            await bench.driver.adopt(volume, "/somewhere/else")
        assert (refused.value.reason, refused.value.retryable) == ("ChainMismatch", False)
        assert (await bench.driver.revert_volume(volume, one, _uid())).source == before.source
        assert await bench.driver.next_merge(volume) is None

    async def test_what_a_guest_has_is_kept_when_that_is_said(
        self, bench: Bench, instants: Instants, volume: str
    ) -> None:
        snapshot = _uid()
        assert instants.instant_seconds > 0
        for _ in range(2):
            await bench.driver.begin_snapshot(volume, snapshot, live=True)
            assert await bench.driver.snapshot(volume, snapshot) is None
            with pytest.raises(StorageError) as refused:
                await bench.driver.confirm_snapshot(volume, snapshot, AT, HOW)
            assert refused.value.reason == "SnapshotLost"
            for _ in range(2):
                await instants.keep_instant(volume, snapshot)
                found = await bench.driver.snapshot(volume, snapshot)
                assert found is not None
                assert found.taken_at is None
        made = await bench.driver.confirm_snapshot(volume, snapshot, AT, HOW)
        await bench.driver.begin_snapshot(volume, snapshot, live=True)
        await instants.keep_instant(volume, snapshot)
        assert await bench.again().snapshot(volume, snapshot) == made

    async def test_what_was_kept_and_not_taken_goes_with_the_volume(
        self, bench: Bench, instants: Instants, volume: str
    ) -> None:
        await instants.keep_instant(volume, _uid())
        assert (await bench.driver.grow_volume(volume, 4 * MIB)).virtual_size == 4 * MIB
        await bench.driver.remove_volume(volume)
        assert await bench.driver.volume(volume) is None
        with pytest.raises(StorageError) as refused:
            await instants.keep_instant(volume, _uid())
        assert (refused.value.reason, refused.value.retryable) == ("VolumeNotReady", True)

    @pytest.mark.parametrize("name", ["", "../../etc/passwd", "$(id)", "x\0y"])
    async def test_no_instant_has_a_name_that_is_no_uid(self, instants: Instants, volume: str, name: str) -> None:
        for one, two in ((name, _uid()), (volume, name)):
            with pytest.raises(StorageError) as refused:
                await instants.keep_instant(one, two)
            assert refused.value.reason == "BadName"
