"""What every storage driver whose volumes can be moved must do. Inherit `MoveContract` beside `StorageContract`, and
define the fixture `beyond`: the driver of another pool of the same kind."""

from __future__ import annotations

import pytest

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.moving import Arrival, Content, MovableVolumes
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import ImportProgress, StorageDriver, StorageError
from tests.contract.snapshots import taken
from tests.contract.storage import MIB, Bench, _uid


def movable(driver: StorageDriver) -> MovableVolumes:
    """The same driver, as pools that take part in moves are seen."""
    assert isinstance(driver, MovableVolumes)
    return driver


async def moved(
    source: StorageDriver,
    target: StorageDriver,
    volume: str,
    move: str = "one 0",
    passphrase: Passphrase | None = None,
) -> list[ImportProgress]:
    """Move the volume, which nobody uses; what was told of it."""
    told: list[ImportProgress] = []
    traits = await movable(source).traits(volume)
    await movable(target).begin_arrival(volume, traits, passphrase)

    async def use(content: Content) -> None:
        await movable(target).fill_arrival(volume, traits, content, told.append, passphrase)

    await movable(source).send_volume(volume, use)
    await movable(target).settle_arrival(volume, traits, move)
    await source.remove_volume(volume)
    return told


async def there(driver: StorageDriver, volume: str) -> Arrival | None:
    return await movable(driver).arrival(volume)


class MoveContract:
    """Inherit, and define the fixtures `bench` and `beyond`."""

    @pytest.mark.parametrize("thick", [False, True])
    async def test_a_volume_is_moved_with_what_is_known_of_it_and_stands_on_nothing(
        self, bench: Bench, beyond: StorageDriver, thick: bool
    ) -> None:
        driver, volume = bench.driver, _uid()
        await driver.import_image(bench.image, bench.source, lambda _: None)
        origin = VolumeOrigin(image=bench.image)
        before = await driver.ensure_volume(volume, bench.virtual_size + MIB, origin, thick)
        told = await moved(driver, beyond, volume)
        assert {one.stage for one in told} == {"Copying"}
        after = await beyond.volume(volume)
        assert after is not None
        assert (after.virtual_size, after.below) == (before.virtual_size, ())
        assert (await movable(beyond).traits(volume)).thick is thick
        assert not thick or after.used >= after.virtual_size
        assert await driver.volume(volume) is None and await there(driver, volume) is None
        await driver.remove_image(bench.image.uid)
        found = await there(beyond, volume)
        assert found is not None and (found.whole, found.move) == (True, "one 0")
        assert found.source == after.source
        await moved(beyond, driver, volume, "two 0")
        again = await bench.again().volume(volume)
        assert again is not None and again.virtual_size == before.virtual_size

    async def test_what_is_on_its_way_is_no_volume_until_all_is_there(
        self, bench: Bench, beyond: StorageDriver
    ) -> None:
        driver, volume = bench.driver, _uid()
        await driver.ensure_volume(volume, 2 * MIB, None, False)
        traits = await movable(driver).traits(volume)
        assert await there(beyond, volume) is None
        begun = [await movable(beyond).begin_arrival(volume, traits) for _ in range(2)]
        assert begun[0] == begun[1] == await there(beyond, volume)
        assert not begun[0].whole
        assert await beyond.volume(volume) is None
        for _ in range(2):
            await movable(beyond).abandon_arrival(volume)
            assert await there(beyond, volume) is None
        with pytest.raises(StorageError) as error:
            await movable(beyond).settle_arrival(volume, traits, "one 0")
        assert error.value.reason == "VolumeNotReady"
        await movable(beyond).begin_arrival(volume, traits)
        await beyond.remove_volume(volume)
        assert await there(beyond, volume) is None

    async def test_what_is_whole_is_neither_given_up_nor_brought_by_another_move(
        self, bench: Bench, beyond: StorageDriver
    ) -> None:
        driver, volume = bench.driver, _uid()
        await driver.ensure_volume(volume, 2 * MIB, None, False)
        traits = await movable(driver).traits(volume)
        await moved(driver, beyond, volume)
        await movable(beyond).settle_arrival(volume, traits, "two 0")
        await movable(beyond).abandon_arrival(volume)
        found = await there(beyond, volume)
        assert found is not None and (found.whole, found.move) == (True, "one 0")

    async def test_what_was_reverted_last_is_known_where_it_is_then(self, bench: Bench, beyond: StorageDriver) -> None:
        driver, volume, request = bench.driver, _uid(), _uid()
        await driver.ensure_volume(volume, 2 * MIB, None, False)
        snapshot = await taken(driver, volume)
        assert (await movable(driver).traits(volume)).pinned
        await driver.revert_volume(volume, snapshot, request)
        await driver.forget_snapshot(volume, snapshot)
        while (merge := await driver.next_merge(volume)) is not None:
            await driver.merge(volume, merge)
        traits = await movable(driver).traits(volume)
        assert (traits.pinned, traits.reverted) == (False, request)
        await moved(driver, beyond, volume)
        found = await beyond.volume(volume)
        assert found is not None and found.reverted == request

    async def test_a_volume_that_is_not_there_is_not_moved(self, bench: Bench) -> None:
        async def use(_: Content) -> None:
            raise AssertionError("there is nothing to use")

        for verb in (movable(bench.driver).traits, lambda uid: movable(bench.driver).send_volume(uid, use)):
            with pytest.raises(StorageError) as error:
                await verb(_uid())
            assert error.value.reason == "VolumeNotReady"

    @pytest.mark.parametrize("name", ["../../x", "", "volume"])
    async def test_nothing_arrives_under_a_name_that_is_no_uid(self, bench: Bench, name: str) -> None:
        driver, whole = movable(bench.driver), _uid()
        await bench.driver.ensure_volume(whole, 2 * MIB, None, False)
        traits = await driver.traits(whole)
        for verb in (
            lambda: driver.traits(name),
            lambda: driver.arrival(name),
            lambda: driver.begin_arrival(name, traits),
            lambda: driver.settle_arrival(name, traits, "one 0"),
            lambda: driver.abandon_arrival(name),
        ):
            with pytest.raises(StorageError) as error:
                await verb()
            assert error.value.reason == "BadName"
