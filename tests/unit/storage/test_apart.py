"""A driver in a thread of its own is taken for what it is."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from kumulus_agents.storage.adoption import Adopting
from kumulus_agents.storage.apart import apart
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.instants import Instants
from kumulus_agents.storage.moving import MovableVolumes
from kumulus_agents.storage.presence import Releasing
from kumulus_agents.storage.settings import StorageSettings
from tests.unit.storage.material import pool_ref


async def test_it_offers_what_its_class_does_and_nothing_else(tmp_path: Path) -> None:
    settings = StorageSettings(roots=(PurePosixPath(tmp_path),), readers=())
    let_go: list[str] = []
    driver = apart(
        DirStorage,
        lambda: DirStorage(pool_ref(tmp_path / "pool"), settings),
        str(tmp_path),
        "pool",
        lambda: let_go.append("it"),
    )
    assert isinstance(driver, Adopting)
    assert isinstance(driver, MovableVolumes)
    assert not isinstance(driver, Instants), "its snapshots are layers"
    await driver.prepare()
    assert isinstance(driver, Releasing)
    await driver.release()
    await driver.release()
    assert let_go == ["it", "it"]
