"""Files that nobody owns: what is listed of them, what may become a volume, and what hostile ones come to."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kumulus.api.pool_order import UnownedKind
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage import cage
from kumulus_agents.storage.adoption import LISTED, Unowned
from kumulus_agents.storage.dir import adopted
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.unit.storage.material import MIB, disk, http, ignore, image_ref, needs_root, pool_ref, qemu_img, uid
from tests.unit.storage.server import Answer

pytestmark = needs_root

RAW = disk()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pools" / "fast"


@pytest.fixture
async def driver(path: Path, settings: StorageSettings) -> DirStorage:
    made = DirStorage(pool_ref(path), settings)
    await made.prepare()
    return made


def foreign(path: Path, name: str = "old.qcow2", *options: str) -> Path:
    """A disk that somebody put into the pool's directory."""
    raw = path.parent / "foreign.raw"
    raw.write_bytes(RAW)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, path / name)
    raw.unlink()
    return path / name


def content(of: Path, to: Path) -> bytes:
    qemu_img("convert", "-f", "qcow2", "-O", "raw", of, to)
    return to.read_bytes()


async def listed(driver: DirStorage, *owned: str) -> dict[str, Unowned]:
    return {item.name: item for item in (await driver.unowned(set(owned))).files}


async def refusal(driver: DirStorage, id: str, *, foreign: bool = True, owner: str | None = None) -> StorageError:
    volume = owner or uid()
    with pytest.raises(StorageError) as refused:
        await driver.adopt_volume(volume, id, {volume}, "ns", foreign=foreign)
    assert await driver.volume(volume) is None
    return refused.value


async def test_a_pool_in_order_has_nothing_that_nobody_owns(driver: DirStorage, server, path: Path) -> None:
    image, volume, owner = image_ref(RAW, "raw"), uid(), uid()
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    await driver.ensure_volume(volume, None, VolumeOrigin(image=image), thick=False)
    await driver.ensure_disk(owner, "root", image.uid, None)
    (path / "lost+found").mkdir()
    assert (await driver.unowned({image.uid, volume, owner})).count == 0
    left = await listed(driver)
    assert {item.kind for item in left.values()} == {UnownedKind.IMAGE, UnownedKind.VOLUME, UnownedKind.DISK}
    assert left[f"volumes/{volume}.qcow2"].id == volume


async def test_links_and_directories_are_named_and_not_followed(driver: DirStorage, path: Path) -> None:
    outside = path.parent / "outside"
    outside.mkdir()
    (outside / "secret.qcow2").write_bytes(b"x" * MIB)
    (path / "dir").symlink_to(outside)
    (path / "volumes" / f"{uid()}.qcow2").symlink_to(outside / "secret.qcow2")
    (path / "images" / "loop").symlink_to(path / "images")
    (path / "mine").mkdir()
    os.mkfifo(path / "volumes" / "pipe")
    found = await driver.unowned(set())
    assert found.count == 5 and {item.kind for item in found.files} == {UnownedKind.OTHER}
    assert found.size < 64 << 10, "the links' own size"
    for item in found.files:
        assert (await refusal(driver, item.id)).reason in ("DataRefused", "DataNotFound")
    assert (outside / "secret.qcow2").exists() and len(list(path.rglob("*"))) >= 8


async def test_the_list_is_bounded_and_shows_plain_names(driver: DirStorage, path: Path) -> None:
    for number in range(LISTED + 9):
        (path / f"file-{number}").write_bytes(b"x")
    (path / "bad\x1b[31m\udcff\nname").write_bytes(b"x")
    found = await driver.unowned(set())
    assert found.count == LISTED + 10 and len(found.files) == LISTED
    assert not any("\x1b" in item.name or "\n" in item.name for item in found.files)
    assert [item.id for item in found.files] == [item.id for item in (await driver.unowned(set())).files]


async def test_a_retained_volume_comes_back_for_its_namespace_alone(
    driver: DirStorage, server, path: Path, tmp_path: Path
) -> None:
    image, before, after = image_ref(RAW, "raw"), uid(), uid()
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    await driver.ensure_volume(before, 8 * MIB, VolumeOrigin(image=image), thick=False)
    await driver.retain_volume(before, "ns", "data")
    inode = (path / "volumes" / f"{before}.qcow2").stat().st_ino
    (entry,) = (await driver.unowned({image.uid})).files
    assert (entry.id, entry.namespace, entry.volume, entry.virtual_size) == (before, "ns", "data", 8 * MIB)
    assert (await driver.unowned({image.uid, before})).count == 0, "owned is owned"
    owned = {image.uid, after}
    with pytest.raises(StorageError) as refused:
        await driver.adopt_volume(after, before, owned, "other", foreign=False)
    assert refused.value.reason == "DataNotFound"
    made = await driver.adopt_volume(after, before, owned, "ns", foreign=False)
    assert made.virtual_size == 8 * MIB and (path / "volumes" / f"{after}.qcow2").stat().st_ino == inode
    assert content(Path(made.path), tmp_path / "raw")[: len(RAW)] == RAW
    assert sorted(each.name for each in (path / "volumes").iterdir()) == [f"{after}.json", f"{after}.qcow2"]
    assert await driver.adopt_volume(after, before, owned, "ns", foreign=False) == made, "done already"
    with pytest.raises(StorageError, match="in use"):
        await driver.remove_image(image.uid)


async def test_a_volume_that_was_moved_and_reverted_comes_back_too(driver: DirStorage, path: Path) -> None:
    """What its record says besides is of requests of the volume that it was."""
    before, after = uid(), uid()
    await driver.ensure_volume(before, MIB, None, thick=False)
    await driver.retain_volume(before, "ns", "data")
    note = path / "volumes" / f"{before}.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"moved": f"{uid()}/1", "reverted": uid()}))
    await driver.adopt_volume(after, before, {after}, "ns", foreign=False)
    assert not {"moved", "reverted"} & json.loads((path / "volumes" / f"{after}.json").read_text()).keys()


async def test_a_file_of_somebody_else_is_taken_for_who_may(driver: DirStorage, path: Path, tmp_path: Path) -> None:
    file = foreign(path)
    file.chmod(0o644)
    inode = file.stat().st_ino
    entry = (await listed(driver))["old.qcow2"]
    assert (entry.kind, entry.virtual_size) == (UnownedKind.FILE, len(RAW))
    assert (await refusal(driver, entry.id, foreign=False)).reason == "DataNotFound" and file.exists()
    volume = uid()
    made = await driver.adopt_volume(volume, entry.id, {volume}, "ns", foreign=True)
    taken = Path(made.path).stat()
    assert (taken.st_ino, stat.S_IMODE(taken.st_mode)) == (inode, 0o600) and not file.exists()
    assert content(Path(made.path), tmp_path / "raw") == RAW
    assert (await driver.unowned({volume})).count == 0
    again = await driver.grow_volume(volume, 8 * MIB)
    assert again.virtual_size == 8 * MIB


def backed(path: Path) -> None:
    (path.parent / "canary").write_bytes(RAW)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", path.parent / "canary", path / "x", "4M")


def with_data_file(path: Path) -> None:
    qemu_img(
        "create", "-q", "-f", "qcow2", "-o", f"data_file={path.parent / 'canary'},data_file_raw=on", path / "x", "4M"
    )


def raw(path: Path) -> None:
    (path / "x").write_bytes(RAW)


def cut(path: Path) -> None:
    data = foreign(path, "x").read_bytes()
    (path / "x").write_bytes(data[:70_000])


def descriptor(path: Path) -> None:
    (path / "x").write_text('# Disk DescriptorFile\nversion=1\nRW 8192 FLAT "/etc/shadow" 0\n')


def others(path: Path) -> None:
    os.chown(foreign(path, "x"), 1000, 1000)


def two_names(path: Path) -> None:
    os.link(foreign(path, "x"), path.parent / "other-name")


@pytest.mark.parametrize("put", [backed, with_data_file, raw, cut, descriptor, others, two_names])
async def test_hostile_files_are_refused_and_stay(driver: DirStorage, path: Path, put: Callable[[Path], None]) -> None:
    put(path)
    before = (path / "x").stat()
    error = await refusal(driver, (await listed(driver))["x"].id)
    assert (error.reason, error.retryable) == ("DataRefused", False)
    after = (path / "x").stat()
    assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)
    assert [each.name for each in (path / "volumes").iterdir()] == []


@pytest.mark.parametrize("blank", [False, True])
async def test_a_retained_file_that_names_another_one_is_refused(
    driver: DirStorage, server, path: Path, blank: bool
) -> None:
    image, before = image_ref(RAW, "raw"), uid()
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    origin = None if blank else VolumeOrigin(image=image)
    made = await driver.ensure_volume(before, MIB if blank else None, origin, thick=False)
    await driver.retain_volume(before, "ns", "data")
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", made.path)
    error = await refusal(driver, before, foreign=False)
    assert error.reason == "DataRefused" and "other files" in str(error)


async def test_an_encrypted_volume_comes_back_for_who_has_its_passphrase(driver: DirStorage) -> None:
    before, after, key = uid(), uid(), Passphrase("correct horse battery staple")
    await driver.ensure_encrypted_volume(before, MIB, None, False, key)
    await driver.retain_volume(before, "ns", "data")
    (entry,) = (await driver.unowned(set())).files
    assert (entry.id, entry.encrypted, entry.virtual_size) == (before, True, MIB)
    for passphrase, reason in ((None, "DataRefused"), (Passphrase("another passphrase"), "WrongPassphrase")):
        with pytest.raises(StorageError) as refused:
            await driver.adopt_volume(after, before, {after}, "ns", foreign=False, passphrase=passphrase)
        assert (refused.value.reason, refused.value.retryable) == (reason, False)
    made = await driver.adopt_volume(after, before, {after}, "ns", foreign=False, passphrase=key)
    assert (made.encrypted, made.virtual_size) == (True, MIB)
    grown = await driver.grow_encrypted_volume(after, 2 * MIB, key)
    assert (grown.encrypted, grown.virtual_size) == (True, 2 * MIB)
    plain, other = uid(), uid()
    await driver.ensure_volume(plain, MIB, None, thick=False)
    await driver.retain_volume(plain, "ns", "plain")
    with pytest.raises(StorageError) as refused:
        await driver.adopt_volume(other, plain, {other, after}, "ns", foreign=False, passphrase=key)
    assert refused.value.reason == "DataRefused"


async def test_a_retained_blank_volume_comes_back_with_its_bitmap(driver: DirStorage) -> None:
    before, after = uid(), uid()
    await driver.ensure_volume(before, MIB, None, thick=False)
    await driver.retain_volume(before, "ns", "data")
    made = await driver.adopt_volume(after, before, {after}, "ns", foreign=False)
    assert made.virtual_size == MIB
    grown = await driver.grow_volume(after, 2 * MIB)
    assert grown.virtual_size == 2 * MIB


async def test_a_file_that_a_program_has_open_is_left(driver: DirStorage, path: Path) -> None:
    file = foreign(path)
    entry = (await listed(driver))["old.qcow2"]
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write(b"write 0 512\n")
        program.stdin.flush()
        assert b"wrote" in await asyncio.to_thread(program.stdout.readline)
        assert (await refusal(driver, entry.id)).reason == "VolumeInUse"
        program.stdin.close()
    assert file.exists()


async def test_what_replaces_the_file_after_it_was_inspected_is_not_taken(
    driver: DirStorage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = path.parent / "secret.qcow2"
    foreign(path.parent, "secret.qcow2")
    file = foreign(path)
    entry = (await listed(driver))["old.qcow2"]
    inspect = cage.inspect

    async def swap(*arguments, **options):
        answer = await inspect(*arguments, **options)
        file.unlink()
        file.symlink_to(secret)
        return answer

    monkeypatch.setattr(cage, "inspect", swap)
    error = await refusal(driver, entry.id)
    assert "replaced" in str(error)
    assert file.is_symlink() and [each.name for each in (path / "volumes").iterdir()] == []
    assert secret.stat().st_nlink == 1


@pytest.mark.parametrize("step", ["rename", "record", "name"])
async def test_a_death_at_any_step_loses_nothing_and_is_gone_on_from(
    driver: DirStorage, path: Path, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(path)
    entry, volume = (await listed(driver))["old.qcow2"], uid()

    class Death(BaseException):
        """Nothing that code handles."""

    def die(*_: object, **__: object) -> None:
        raise Death

    with monkeypatch.context() as patch:
        if step == "rename":
            patch.setattr(adopted, "_settle", die)
        elif step == "record":
            patch.setattr(adopted, "write_record", die)
        else:
            patch.setattr(adopted.Directory, "settle", die)
        with pytest.raises(Death):
            await driver.adopt_volume(volume, entry.id, {volume}, "ns", foreign=True)
    assert await driver.volume(volume) is None
    given_up = await driver.unowned(set())
    assert given_up.count == 1 and given_up.files[0].kind is UnownedKind.FILE, "shown when its volume is given up"
    await driver.remove_volume(volume)
    assert (await driver.unowned(set())).count == 1, "not removed with a volume that it never became"
    made = await driver.adopt_volume(volume, entry.id, {volume}, "ns", foreign=True)
    assert content(Path(made.path), tmp_path / "raw") == RAW


async def test_a_file_becomes_one_volume_only(driver: DirStorage, path: Path) -> None:
    foreign(path)
    entry, one, two = (await listed(driver))["old.qcow2"], uid(), uid()
    tries = await asyncio.gather(
        *(driver.adopt_volume(each, entry.id, {one, two}, "ns", foreign=True) for each in (one, two)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in tries) == ["StorageError", "StoredVolume"]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """An emulator has the file open, as that of a domain that runs has."""
    arguments = [
        "qemu-storage-daemon",
        "--blockdev",
        f"driver=qcow2,node-name=disk,file.driver=file,file.filename={path}",
    ]
    daemon = subprocess.Popen([*arguments, "--chardev", "stdio,id=m", "--monitor", "m"], stdin=-1, stdout=-1)
    try:
        assert daemon.stdout is not None
        assert b"QMP" in daemon.stdout.readline(), "it runs, and has the file"
        yield
    finally:
        daemon.kill()
        daemon.communicate()


async def test_what_a_domain_writes_to_gets_the_name_of_a_volume_beside_its_own(
    driver: DirStorage, path: Path, tmp_path: Path
) -> None:
    file, volume = foreign(path), uid()
    found = await driver.identify(str(file))
    assert found is not None and (found.kind, found.virtual_size) == (UnownedKind.FILE, len(RAW))
    for other in (path / "none.qcow2", path / "volumes" / "none.qcow2", tmp_path / "old.qcow2", path / "volumes"):
        assert await driver.identify(str(other)) is None
    with held(file):
        for _ in range(2):
            made = await driver.adopt_volume(volume, found.id, {volume}, "ns", foreign=True, beside=True)
        assert Path(made.path).samefile(file) and file.stat().st_nlink == 2
        assert (await driver.unowned({volume})).count == 0, "it is the volume's, by whatever name"
        other = uid()
        with pytest.raises(StorageError, match="another name"):
            await driver.adopt_volume(other, found.id, {other}, "ns", foreign=True, beside=True)
        with pytest.raises(StorageError) as refused:
            await driver.open_volume(volume)
        assert refused.value.reason == "VolumeInUse" and file.exists(), "the domain that has it goes by that name"
    opened = await driver.open_volume(volume)
    assert opened == made and not file.exists() and Path(made.path).stat().st_nlink == 1
    assert content(Path(made.path), tmp_path / "raw") == RAW
    await driver.retain_volume(volume, "ns", "data")
    assert await driver.volume(volume) is not None, "it has no other name now"


@pytest.mark.parametrize("retained", [True, False])
async def test_the_data_of_a_volume_that_was_not_opened_since_stays_where_it_was(
    driver: DirStorage, path: Path, retained: bool
) -> None:
    file, volume = foreign(path), uid()
    found = await driver.identify(str(file))
    assert found is not None
    await driver.adopt_volume(volume, found.id, {volume}, "ns", foreign=True, beside=True)
    if retained:
        await driver.retain_volume(volume, "ns", "data")
    else:
        await driver.remove_volume(volume)
    assert file.exists() and file.stat().st_nlink == 1 and await driver.volume(volume) is None
    assert not list((path / "volumes").iterdir())


async def test_what_is_no_volume_by_itself_is_not_named_beside(driver: DirStorage, path: Path) -> None:
    base, volume = foreign(path, "base.qcow2"), uid()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(path / "old.qcow2")], check=True
    )
    found = await driver.identify(str(path / "old.qcow2"))
    assert found is not None
    with pytest.raises(StorageError) as refused:
        await driver.adopt_volume(volume, found.id, {volume}, "ns", foreign=True, beside=True)
    assert (refused.value.reason, refused.value.retryable) == ("DataRefused", False)
    assert not list((path / "volumes").iterdir()) and (path / "old.qcow2").exists()


async def test_a_volume_whose_object_was_lost_is_had_by_another_uid_while_it_is_written(
    driver: DirStorage, server, path: Path
) -> None:
    image, before, after = image_ref(RAW, "raw"), uid(), uid()
    await driver.import_image(image, http(server.on("/i", Answer(RAW))), ignore)
    made = await driver.ensure_volume(before, None, VolumeOrigin(image=image), thick=False)
    found = await driver.identify(made.path)
    assert found is not None and (found.kind, found.id) == (UnownedKind.VOLUME, before)
    again = await driver.adopt_volume(after, before, {after}, "ns", foreign=True, beside=True)
    assert Path(again.path).samefile(made.path) and again.below == made.below, "it stands on the same image"
    assert await driver.open_volume(after) == again
    assert not list((path / "volumes").glob(f"{before}*"))
