"""Encrypted volumes of the driver `dir`: what is on the disk, and where the passphrase is not."""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kumulus.api.host import VolumeOrigin
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.passphrase import EncryptedVolumes, Passphrase
from kumulus_agents.storage.protocol import StorageError, VolumeContent
from kumulus_agents.storage.settings import StorageSettings
from tests.unit.storage.material import MIB, disk, http, ignore, image_ref, needs_root, pool_ref, uid
from tests.unit.storage.registry import unknown
from tests.unit.storage.server import Answer

pytestmark = needs_root

RAW = disk()
TEXT = "correct horse battery staple"
PASSPHRASE = Passphrase(TEXT)
WITNESS = b"Z" * 512


@pytest.fixture
def driver(tmp_path: Path, settings: StorageSettings) -> DirStorage:
    return DirStorage(pool_ref(tmp_path / "pools" / "fast"), settings)


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
        await driver.grow_encrypted_volume(volume, 32 * MIB, Passphrase("another passphrase"))
    assert (refused.value.reason, refused.value.retryable) == ("WrongPassphrase", False)
    with pytest.raises(StorageError) as refused:
        await driver.ensure_encrypted_volume(uid(), None, origin, True, PASSPHRASE)
    assert refused.value.reason == "EncryptedCopy"


async def test_nothing_remembers_what_is_written_to_it(driver: DirStorage, key: Path) -> None:
    volume = uid()
    made = await driver.ensure_encrypted_volume(volume, 4 * MIB, None, False, PASSPHRASE)
    guest(made.path, key, "write -P 0x5a 1M 64k")
    assert await driver.open_volume(volume) == await driver.volume(volume)
    told = info(made.path)
    assert "encrypted: yes" in told and "bitmaps" not in told
    assert "verification failed" not in guest(made.path, key, "read -P 0x5a 1M 64k")


async def test_what_is_not_done_yet_is_refused(driver: DirStorage) -> None:
    volume = uid()
    await driver.ensure_encrypted_volume(volume, MIB, None, False, PASSPHRASE)
    plain = uid()
    await driver.ensure_volume(plain, MIB, None, False)
    for attempt, reason in (
        (driver.ensure_volume(uid(), None, VolumeOrigin(volume=volume), False), "EncryptedCopy"),
        (driver.ensure_encrypted_volume(uid(), None, VolumeOrigin(volume=plain), False, PASSPHRASE), "EncryptedCopy"),
        (driver.import_image(unknown("qcow2"), VolumeContent(volume), ignore), "EncryptedCopy"),
        (driver.begin_snapshot(volume, uid()), "EncryptedSnapshot"),
        (driver.changes(volume), "ChangesUnsupported"),
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
    assert len(seen) == 2 and all("secret,id=key,file=/" in call for call in seen)
    assert not [call for call in seen if TEXT in call]
    assert TEXT not in repr(PASSPHRASE)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if TEXT.encode() in path.read_bytes()]
