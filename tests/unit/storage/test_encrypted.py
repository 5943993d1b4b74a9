"""Encrypted volumes of the driver `dir`: what is on the disk, and where the passphrase is not."""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.snapshots import Indication
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir import creation
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.passphrase import EncryptedVolumes, Passphrase
from kumulus_agents.storage.protocol import StorageError, StoredVolume, VolumeContent
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.tracking import Extent
from tests.contract.moves import moved
from tests.contract.snapshots import linked_to, of_snapshot, taken
from tests.unit.storage.material import MIB, disk, http, ignore, image_ref, needs_root, pool_ref, uid
from tests.unit.storage.registry import unknown
from tests.unit.storage.server import Answer

pytestmark = needs_root

RAW = disk()
TEXT = "correct horse battery staple"
PASSPHRASE = Passphrase(TEXT)
OTHER_TEXT = "another passphrase"
OTHER = Passphrase(OTHER_TEXT)
WITNESS = b"Z" * 512


@pytest.fixture
def driver(tmp_path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(tmp_path / "pools" / "fast"), settings)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases that are tried in a moment."""
    monkeypatch.setattr(creation, "_ITERATE", 10)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(TEXT)
    return path


def guest(path: str, key: Path | None, *commands: str) -> str:
    """What qemu-io says to commands, as a guest would see the disk."""
    given = [argument for command in commands for argument in ("-c", command)]
    secret = ["--object", f"secret,id=key,file={key}"] if key is not None else []
    options = f"driver=qcow2,file.filename={path}" + (",encrypt.key-secret=key" if key is not None else "")
    done = subprocess.run(["qemu-io", *secret, "--image-opts", options, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def through(stored: StoredVolume, text: str | None, *commands: str) -> str:
    """What qemu-io says to commands, with all that the volume stands on as the driver tells it, and no header."""
    node: dict[str, Any] | None = None
    layers = [(layer.path, layer.encrypted) for layer in reversed(stored.below)]
    for path, encrypted in (*layers, (stored.path, stored.encrypted)):
        node = {"driver": "qcow2", "backing": node, "file": {"driver": "file", "filename": path}}
        if encrypted:
            node["encrypt"] = {"format": "luks", "key-secret": "key"}
    given = [argument for command in commands for argument in ("-c", command)]
    secret = ["--object", f"secret,id=key,data={text}"] if text is not None else []
    command = ["qemu-io", *secret, *given, "json:" + json.dumps(node)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr


def reads(stored: StoredVolume, text: str | None, **blocks: int) -> bool:
    """Whether the volume has these bytes in 64 KiB at these MiB, such as `m1`."""
    said = through(stored, text, *(f"read -P {byte} {at[1:]}M 64k" for at, byte in blocks.items()))
    assert said.count("read 65536/65536") == len(blocks), said
    return "verification failed" not in said


async def encrypted_snapshot(driver: DirStorage, volume: str, passphrase: Passphrase = PASSPHRASE) -> str:
    """Take a snapshot; its uid."""
    snapshot = uid()
    await driver.begin_encrypted_snapshot(volume, snapshot, passphrase)
    await driver.confirm_snapshot(volume, snapshot, "2026-11-20T12:00:00Z", (Indication.ONLINE,))
    return snapshot


async def present(driver: DirStorage, volume: str) -> StoredVolume:
    found = await driver.volume(volume)
    assert found is not None
    return found


def info(path: str) -> str:
    """What QEMU tells of the file."""
    command = ["qemu-img", "info", "-f", "qcow2", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_what_a_guest_writes_is_not_on_the_disk(driver: DirStorage, key: Path) -> None:
    assert isinstance(driver, EncryptedVolumes)
    made = await driver.ensure_encrypted_volume(uid(), 4 * MIB, None, False, PASSPHRASE)
    plain = await driver.ensure_volume(uid(), 4 * MIB, None, False)
    assert (made.encrypted, plain.encrypted, made.virtual_size) == (True, False, 4 * MIB)
    for volume, secret in ((made, key), (plain, None)):
        guest(volume.path, secret, "write -P 0x5a 1M 64k")
        assert "verification failed" not in guest(volume.path, secret, "read -P 0x5a 1M 64k")
        assert (WITNESS in Path(volume.path).read_bytes()) is (secret is None)
    assert await driver.ensure_encrypted_volume(made.path.split("/")[-1][:36], None, None, False, PASSPHRASE)


async def test_it_stands_on_its_image_and_grows(driver: DirStorage, server: Any, key: Path) -> None:
    image = image_ref(RAW, "raw")
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    volume, origin = uid(), VolumeOrigin(image=image)
    made = await driver.ensure_encrypted_volume(volume, 8 * MIB, origin, False, PASSPHRASE)
    assert "verification failed" not in guest(made.path, key, "read -P 0 5M 1M", f"read -v {len(RAW) - 512} 512")
    grown = await driver.grow_encrypted_volume(volume, 16 * MIB, PASSPHRASE)
    assert (grown.virtual_size, grown.encrypted) == (16 * MIB, True)
    with pytest.raises(StorageError) as refused:
        await driver.grow_encrypted_volume(volume, 32 * MIB, OTHER)
    assert (refused.value.reason, refused.value.retryable) == ("WrongPassphrase", False)
    thick = await driver.ensure_encrypted_volume(uid(), 8 * MIB, origin, True, PASSPHRASE)
    assert (thick.below, thick.encrypted, thick.used >= 8 * MIB) == ((), True, True)
    assert "verification failed" not in through(thick, TEXT, "read -P 0 5M 3M", f"read -v {len(RAW) - 512} 512")
    assert RAW[:512] not in Path(thick.path).read_bytes() and RAW[:512].strip(b"\0")


async def test_it_has_no_bitmap_and_what_changed_is_known_all_the_same(driver: DirStorage, key: Path) -> None:
    volume = uid()
    made = await driver.ensure_encrypted_volume(volume, 4 * MIB, None, False, PASSPHRASE)
    guest(made.path, key, "write -P 0x5a 1M 64k")
    assert await driver.open_volume(volume) == await driver.volume(volume)
    told = info(made.path)
    assert "encrypted: yes" in told and "bitmaps" not in told
    snapshot = await encrypted_snapshot(driver, volume)
    through(await present(driver, volume), TEXT, "write -P 1 2M 64k")
    assert "bitmaps" not in info((await present(driver, volume)).path)
    assert await driver.changes(volume, until=snapshot) == [Extent(MIB, 64 << 10)]
    assert await driver.changes(volume, since=snapshot) == [Extent(2 * MIB, 64 << 10)]


@pytest.mark.parametrize(("locked", "thick"), [(True, True), (False, False)])
async def test_a_copy_is_encrypted_with_a_passphrase_of_its_own(
    driver: DirStorage, key: Path, locked: bool, thick: bool
) -> None:
    volume, copy = uid(), uid()
    if locked:
        made = await driver.ensure_encrypted_volume(volume, 4 * MIB, None, thick, PASSPHRASE)
    else:
        made = await driver.ensure_volume(volume, 4 * MIB, None, thick)
    assert reads(made, TEXT if locked else None, m0=0, m3=0)
    through(made, TEXT if locked else None, "write -P 0x5a 1M 100k", "write -P 7 2M 1M")
    source = PASSPHRASE if locked else None
    for _ in range(2):
        copied = await driver.ensure_encrypted_volume(
            copy, 8 * MIB, VolumeOrigin(volume=volume), thick, OTHER, origin_passphrase=source
        )
    assert (copied.encrypted, copied.below, copied.virtual_size) == (True, (), 8 * MIB)
    assert (copied.used >= 8 * MIB) is thick
    assert reads(copied, OTHER_TEXT, m0=0, m1=0x5A, m2=7, m3=0, m7=0)
    assert "Invalid password" in through(copied, TEXT, "read 0 512")
    assert WITNESS not in Path(copied.path).read_bytes()
    assert reads(await present(driver, volume), TEXT if locked else None, m1=0x5A)
    grown = await driver.grow_encrypted_volume(copy, 16 * MIB, OTHER)
    assert reads(grown, OTHER_TEXT, m1=0x5A, m7=0, m15=0)


async def test_a_snapshot_is_encrypted_and_everything_is_done_with_it(driver: DirStorage) -> None:
    volume = uid()
    await driver.ensure_encrypted_volume(volume, 4 * MIB, None, False, PASSPHRASE)
    through(await present(driver, volume), TEXT, "write -P 1 0 2M")
    first = await encrypted_snapshot(driver, volume)
    through(await present(driver, volume), TEXT, "write -P 2 1M 64k", "write -P 0x5a 2M 64k")
    second = await encrypted_snapshot(driver, volume)
    through(await present(driver, volume), TEXT, "write -P 3 3M 64k")
    third = await encrypted_snapshot(driver, volume)
    now = await present(driver, volume)
    assert [now.encrypted, *(layer.encrypted for layer in now.below)] == [True, True, True, True]
    await driver.forget_snapshot(volume, second)
    merge = await driver.next_merge(volume)
    assert merge is not None and not merge.active
    await driver.merge_encrypted(volume, merge, PASSPHRASE)
    now = await present(driver, volume)
    assert reads(now, TEXT, m1=2, m2=0x5A, m3=3)
    assert Path(now.below[0].path).name in info(now.path), "the header of what stands on a merged layer names it again"
    through(now, TEXT, "write -P 4 1M 64k")

    link, on_link = uid(), linked_to(volume, third)
    linked = await driver.ensure_encrypted_volume(
        link, 8 * MIB, on_link, False, PASSPHRASE, origin_passphrase=PASSPHRASE
    )
    assert [linked.encrypted, *(layer.encrypted for layer in linked.below)] == [True, True, True]
    assert reads(linked, TEXT, m0=1, m1=2, m2=0x5A, m3=3, m7=0)
    through(linked, TEXT, "write -P 9 1M 64k")
    of_link = await encrypted_snapshot(driver, link)
    copy = await driver.ensure_encrypted_volume(
        uid(), None, of_snapshot(link, of_link), False, OTHER, origin_passphrase=PASSPHRASE
    )
    assert reads(copy, OTHER_TEXT, m0=1, m1=9, m2=0x5A)
    await driver.forget_snapshot(link, of_link)
    merge = await driver.next_merge(link)
    assert merge is not None
    await driver.merge_encrypted(link, merge, PASSPHRASE)
    assert reads(await present(driver, link), TEXT, m1=9, m2=0x5A)
    await driver.remove_volume(link)

    reverted = await driver.revert_encrypted_volume(volume, first, uid(), PASSPHRASE)
    assert reads(reverted, TEXT, m1=1, m2=0)
    await driver.grow_encrypted_volume(volume, 8 * MIB, PASSPHRASE)
    through(await present(driver, volume), TEXT, "write -P 4 3M 64k")
    for snapshot in (third, first):
        await driver.forget_snapshot(volume, snapshot)
        while (merge := await driver.next_merge(volume)) is not None:
            with pytest.raises(StorageError) as refused:
                await driver.merge_encrypted(volume, merge, OTHER)
            assert refused.value.reason == "WrongPassphrase"
            await driver.merge_encrypted(volume, merge, PASSPHRASE)
    last = await present(driver, volume)
    assert (last.below, last.virtual_size) == ((), 8 * MIB)
    assert reads(last, TEXT, m1=1, m2=0, m3=4, m7=0)
    volumes = Path(last.path).parent
    assert not [path for path in volumes.glob("*.qcow2") if WITNESS in path.read_bytes()]


async def test_a_passphrase_that_is_not_the_volumes_does_nothing_to_it(driver: DirStorage) -> None:
    volume = uid()
    made = await driver.ensure_encrypted_volume(volume, MIB, None, False, PASSPHRASE)
    snapshot = await encrypted_snapshot(driver, volume)
    before, files = await driver.volume(volume), set(Path(made.path).parent.iterdir())
    of_volume, of_it = VolumeOrigin(volume=volume), of_snapshot(volume, snapshot)
    for attempt in (
        driver.begin_encrypted_snapshot(volume, uid(), OTHER),
        driver.revert_encrypted_volume(volume, snapshot, uid(), OTHER),
        driver.ensure_encrypted_volume(uid(), None, of_volume, False, PASSPHRASE, origin_passphrase=OTHER),
        driver.ensure_encrypted_volume(uid(), None, of_it, False, PASSPHRASE, origin_passphrase=OTHER),
        driver.ensure_encrypted_volume(uid(), None, linked_to(volume, snapshot), False, OTHER, origin_passphrase=OTHER),
    ):
        with pytest.raises(StorageError) as refused:
            await attempt
        assert (refused.value.reason, refused.value.retryable) == ("WrongPassphrase", False)
        assert "passphrase" in str(refused.value)
    assert await driver.volume(volume) == before
    assert set(Path(made.path).parent.iterdir()) == files


async def test_what_is_encrypted_never_gets_out_by_a_copy(driver: DirStorage) -> None:
    volume, plain = uid(), uid()
    await driver.ensure_encrypted_volume(volume, MIB, None, False, PASSPHRASE)
    snapshot = await encrypted_snapshot(driver, volume)
    await driver.ensure_volume(plain, MIB, None, False)
    of_plain = linked_to(plain, await taken(driver, plain))
    linked, of_volume = linked_to(volume, snapshot), VolumeOrigin(volume=volume)
    encrypted = driver.ensure_encrypted_volume
    for attempt, reason in (
        (driver.ensure_volume(uid(), None, of_volume, False), "EncryptedCopy"),
        (driver.ensure_volume(uid(), None, of_snapshot(volume, snapshot), False), "EncryptedCopy"),
        (driver.import_image(unknown("qcow2"), VolumeContent(volume), ignore), "EncryptedCopy"),
        (driver.import_image(unknown("qcow2"), VolumeContent(volume, snapshot), ignore), "EncryptedCopy"),
        (driver.ensure_volume(uid(), None, linked, False), "EncryptionMismatch"),
        (encrypted(uid(), None, linked, False, OTHER, origin_passphrase=PASSPHRASE), "LinkedPassphrase"),
        (encrypted(uid(), None, of_plain, False, PASSPHRASE), "LinkedPassphrase"),
        (encrypted(uid(), None, of_plain, False, PASSPHRASE, origin_passphrase=PASSPHRASE), "EncryptionMismatch"),
        (encrypted(uid(), None, of_volume, False, PASSPHRASE), "EncryptionMismatch"),
        (driver.begin_snapshot(volume, uid()), "EncryptionMismatch"),
        (driver.begin_encrypted_snapshot(plain, uid(), PASSPHRASE), "EncryptionMismatch"),
        (driver.revert_volume(volume, snapshot, uid()), "EncryptionMismatch"),
    ):
        with pytest.raises(StorageError) as refused:
            await attempt
        assert (refused.value.reason, refused.value.retryable) == (reason, False)


async def test_no_program_is_told_the_passphrase_where_others_see_it(
    driver: DirStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    run, spawn = subprocess.run, asyncio.create_subprocess_exec

    def noted_run(*arguments: Any, **options: Any) -> Any:
        seen.append(repr((arguments, options)))
        return run(*arguments, **options)

    async def noted_spawn(*arguments: Any, **options: Any) -> Any:
        seen.append(repr((arguments, options)))
        return await spawn(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", noted_run)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted_spawn)
    volume = uid()
    await driver.ensure_encrypted_volume(volume, MIB, None, False, PASSPHRASE)
    await driver.grow_encrypted_volume(volume, 2 * MIB, PASSPHRASE)
    snapshot, copied = await encrypted_snapshot(driver, volume), VolumeOrigin(volume=volume)
    await driver.ensure_encrypted_volume(uid(), None, copied, True, OTHER, origin_passphrase=PASSPHRASE)
    await driver.forget_snapshot(volume, snapshot)
    while (merge := await driver.next_merge(volume)) is not None:
        await driver.merge_encrypted(volume, merge, PASSPHRASE)
    assert len(seen) >= 8 and all("secret,id=key,file=/" in call for call in seen)
    assert not [call for call in seen for text in (TEXT, OTHER_TEXT) if text in call]
    assert TEXT not in repr(PASSPHRASE)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if TEXT.encode() in path.read_bytes()]


@pytest.mark.parametrize("thick", [False, True])
async def test_it_is_moved_and_stays_encrypted(
    driver: DirStorage, tmp_path: Path, settings: StorageSettings, server: Any, key: Path, thick: bool
) -> None:
    beyond = DirStorage(pool_ref(tmp_path / "pools" / "beyond"), settings)
    image, volume = image_ref(RAW, "raw"), uid()
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    origin = None if thick else VolumeOrigin(image=image)
    made = await driver.ensure_encrypted_volume(volume, 16 * MIB, origin, thick, PASSPHRASE)
    guest(made.path, key, "write -P 0x5a 9M 64k", "write -z 10M 1M")
    with pytest.raises(StorageError) as refused:
        await moved(driver, beyond, volume, passphrase=Passphrase("another passphrase"))
    assert (refused.value.reason, refused.value.retryable) == ("WrongPassphrase", False)
    await moved(driver, beyond, volume, passphrase=PASSPHRASE)
    after = await beyond.volume(volume)
    assert after is not None
    assert (after.encrypted, after.virtual_size, after.below) == (True, 16 * MIB, ())
    said = guest(after.path, key, "read -P 0x5a 9M 64k", "read -P 0 10M 1M")
    if not thick:
        raw = tmp_path / "raw"
        raw.write_bytes(guest_bytes(after.path, key, len(RAW)))
        assert raw.read_bytes() == RAW
        said += guest(after.path, key, "read -P 0 12M 4M")
    assert "verification failed" not in said
    assert WITNESS not in Path(after.path).read_bytes()
    assert (await beyond.grow_encrypted_volume(volume, 32 * MIB, PASSPHRASE)).encrypted


def guest_bytes(path: str, key: Path, size: int) -> bytes:
    """The first bytes of the disk, as a guest would see them."""
    target = key.with_name("whole")
    secret = ["--object", f"secret,id=key,file={key}"]
    options = f"driver=qcow2,file.filename={path},encrypt.key-secret=key"
    command = ["qemu-img", "convert", *secret, "-O", "raw", "--image-opts", options, str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target.read_bytes()[:size]
