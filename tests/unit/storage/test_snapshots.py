"""Snapshots of the driver `dir`: what is in the files, whatever is done and wherever it is cut short."""

from __future__ import annotations

import asyncio
import random
import stat
import subprocess
from pathlib import Path

import pytest

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.contract.snapshots import linked_to, of_snapshot, taken, tidy
from tests.unit.storage.material import MIB, needs_root, pool_ref, qemu_img, uid

pytestmark = needs_root

BLOCK = 64 << 10
BLOCKS = 8
SIZE = BLOCK * BLOCKS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pools" / "fast"


@pytest.fixture
def driver(path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(path), settings)


class Died(BaseException):
    """The agent is dead."""


def content(path: str) -> list[int]:
    """What a guest reads: the number in each block. By the headers, which have to say the same as the records."""
    out = Path(path).with_suffix(".out")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, out)
    data = out.read_bytes()
    out.unlink()
    assert all(len(set(data[at : at + BLOCK])) == 1 for at in range(0, len(data), BLOCK))
    return list(data[::BLOCK])


def write(path: str, block: int, number: int) -> None:
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {number} {block * BLOCK} {BLOCK}", path]
    subprocess.run(command, check=True, capture_output=True)


def files(path: Path) -> set[str]:
    return {entry.name for entry in (path / "volumes").iterdir()}


async def path_of(driver: DirStorage, volume: str) -> str:
    found = await driver.volume(volume)
    assert found is not None
    return found.path


async def copied(driver: DirStorage, origin: VolumeOrigin) -> list[int]:
    """What a full copy of it has."""
    copy = uid()
    made = await driver.ensure_volume(copy, None, origin, False)
    found = content(made.path)
    await driver.remove_volume(copy)
    return found


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_is_done_everything_keeps_its_content(driver: DirStorage, path: Path, seed: int) -> None:
    """Write, snapshot, forget, merge, revert, clone by chance, held against what it has to be."""
    chance, volume = random.Random(seed), uid()
    await driver.ensure_volume(volume, SIZE, None, False)
    now, snapshots, clones = [0] * BLOCKS, dict[str, list[int]](), dict[str, list[int]]()
    for step in range(1, 41):
        match chance.choice(("write", "write", "snapshot", "forget", "revert", "clone")):
            case "write":
                now[block := chance.randrange(BLOCKS)] = step
                write(await path_of(driver, volume), block, step)
            case "snapshot" if len(snapshots) < 5:
                snapshots[await taken(driver, volume)] = list(now)
            case "forget" if snapshots:
                try:
                    await driver.forget_snapshot(volume, one := chance.choice(sorted(snapshots)))
                    del snapshots[one]
                    await tidy(driver, volume)
                except StorageError as error:
                    assert error.reason == "SnapshotInUse"
            case "revert" if snapshots:
                one = chance.choice(sorted(snapshots))
                await driver.revert_volume(volume, one, uid())
                now = list(snapshots[one])
            case "clone" if snapshots and len(clones) < 2:
                one = chance.choice(sorted(snapshots))
                await driver.ensure_volume(clone := uid(), None, linked_to(volume, one), False)
                write(await path_of(driver, clone), 0, 255)
                clones[clone] = [255, *snapshots[one][1:]]
    assert content(await path_of(driver, volume)) == now
    for one, wanted in snapshots.items():
        assert await copied(driver, of_snapshot(volume, one)) == wanted
    for clone, wanted in clones.items():
        assert content(await path_of(driver, clone)) == wanted
        await driver.remove_volume(clone)
    for one in snapshots:
        await driver.forget_snapshot(volume, one)
    await tidy(driver, volume)
    assert content(await path_of(driver, volume)) == now
    assert files(path) == {f"{volume}.qcow2", f"{volume}.json"}
    assert stat.S_IMODE((path / f"volumes/{volume}.qcow2").stat().st_mode) == 0o600


@pytest.mark.parametrize("deed", range(1, 5))
@pytest.mark.parametrize("act", ["begin", "revert", "merge"])
async def test_a_death_after_any_change_of_a_name_loses_nothing(
    driver: DirStorage, path: Path, settings: StorageSettings, monkeypatch: pytest.MonkeyPatch, act: str, deed: int
) -> None:
    """The agent dies after the n-th file that got or lost its name; the next one goes on."""
    volume, snapshot = uid(), uid()
    await driver.ensure_volume(volume, SIZE, None, False)
    write(await path_of(driver, volume), 1, 1)
    first, second = await taken(driver, volume), await taken(driver, volume)
    write(await path_of(driver, volume), 2, 2)
    left = deed

    def mortal(verb):
        def do(*arguments, **options):
            nonlocal left
            if not left:
                raise Died
            done = verb(*arguments, **options)
            left -= 1
            if not left:
                raise Died
            return done

        return do

    async def acts(driver: DirStorage) -> None:
        if act == "begin":
            await driver.begin_snapshot(volume, snapshot)
            await driver.confirm_snapshot(volume, snapshot, "2026-11-20T12:00:00Z", ())
        elif act == "revert":
            await driver.revert_volume(volume, first, snapshot)
        else:
            await driver.forget_snapshot(volume, first)
            await tidy(driver, volume)

    with monkeypatch.context() as patch:
        for name in ("settle", "remove"):
            patch.setattr(Directory, name, mortal(getattr(Directory, name)))
        died = asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run(acts(DirStorage(pool_ref(path), settings)))))
        (how,) = await asyncio.gather(died, return_exceptions=True)
    assert how is None or isinstance(how, Died)
    again = DirStorage(pool_ref(path), settings)
    assert await again.volume(volume) is not None
    await acts(again)
    await tidy(again, volume)
    wanted = [0, 1, 0] if act == "revert" else [0, 1, 2]
    assert content(await path_of(again, volume))[:3] == wanted
    assert (await copied(again, of_snapshot(volume, second)))[:3] == [0, 1, 0]
    layers = 1 + {"begin": 3, "revert": 2, "merge": 1}[act]
    assert len(files(path)) == layers + 1


async def test_a_volume_with_a_layer_that_is_gone_is_not_whole(driver: DirStorage, path: Path) -> None:
    volume = uid()
    await driver.ensure_volume(volume, MIB, None, False)
    await taken(driver, volume)
    (path / f"volumes/{volume}.qcow2").unlink()
    assert await driver.volume(volume) is None


async def test_a_record_that_says_nonsense_is_said_to_be_damaged(driver: DirStorage, path: Path) -> None:
    volume = uid()
    await driver.ensure_volume(volume, MIB, None, False)
    for record in (
        '{"active": "../../etc/passwd", "layers": {"../../etc/passwd": {"parent": null}}, "snapshots": {}}',
    ):
        (path / f"volumes/{volume}.json").write_text(record)
        with pytest.raises(StorageError) as refused:
            await driver.volume(volume)
        assert refused.value.reason == "VolumeDamaged"


async def test_there_are_not_more_layers_than_can_be_read(driver: DirStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kumulus_agents.storage.dir.volumes.MOST", 4)
    volume = uid()
    await driver.ensure_volume(volume, MIB, None, False)
    for _ in range(3):
        last = await taken(driver, volume)
    for attempt in (driver.begin_snapshot(volume, uid()),):
        with pytest.raises(StorageError) as refused:
            await attempt
        assert (refused.value.reason, refused.value.retryable) == ("TooManySnapshots", False)
    await driver.ensure_volume(uid(), None, linked_to(volume, last), False)
