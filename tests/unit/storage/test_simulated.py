"""The simulated driver keeps the contract, and fails when it is told to."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import SimulatedSettings, StorageSettings
from kumulus_agents.storage.simulated import SimulatedStorage
from tests.contract.moves import MoveContract
from tests.contract.snapshots import LayerContract
from tests.contract.storage import Bench, StorageContract
from tests.unit.storage.material import http, ignore, image_ref, pool_ref, uid

SETTINGS = StorageSettings(simulated=SimulatedSettings(virtual_size=1 << 20, import_seconds=4))


async def no_time(_: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
def driver(tmp_path) -> SimulatedStorage:
    return SimulatedStorage(pool_ref(tmp_path), SETTINGS, sleep=no_time)


class TestSimulated(StorageContract, LayerContract, MoveContract):
    @pytest.fixture
    def beyond(self, tmp_path) -> SimulatedStorage:
        return SimulatedStorage(pool_ref(tmp_path / "beyond"), SETTINGS, sleep=no_time)

    @pytest.fixture
    def bench(self, driver, tmp_path) -> Bench:
        return Bench(
            driver=driver,
            again=lambda: SimulatedStorage(pool_ref(tmp_path), SETTINGS, state=driver.state, sleep=no_time),
            image=image_ref(b"", "qcow2"),
            source=http("http://images.example/a"),
            virtual_size=1 << 20,
            fetches=lambda: 1,
        )


async def test_a_scripted_failure_happens_once_and_changes_nothing(driver) -> None:
    image = image_ref(b"", "raw")
    driver.fail("import_image", StorageError("The server does not answer.", reason="SourceTimeout"))
    with pytest.raises(StorageError) as failed:
        await driver.import_image(image, http("http://images.example/a"), ignore)
    assert failed.value.reason == "SourceTimeout"
    assert await driver.image(image.uid) is None
    assert (await driver.import_image(image, http("http://images.example/a"), ignore)).source_format == "raw"


async def test_times_come_from_the_settings(tmp_path) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    driver = SimulatedStorage(pool_ref(tmp_path), SETTINGS, sleep=sleep)
    image = image_ref(b"", "raw")
    await driver.import_image(image, http("http://images.example/a"), ignore)
    assert sum(slept) == pytest.approx(4)
    await driver.ensure_disk(uid(), "root", image.uid, None)
    assert slept[-1] == SETTINGS.simulated.disk_seconds


async def test_thousands_of_pools_are_cheap(tmp_path) -> None:
    drivers = [SimulatedStorage(pool_ref(tmp_path), SETTINGS, sleep=no_time) for _ in range(2000)]
    image = image_ref(hashlib.sha256().digest(), "raw")
    await asyncio.gather(*(d.import_image(image, http("http://images.example/a"), ignore) for d in drivers))
    assert all([await d.image(image.uid) for d in drivers])
