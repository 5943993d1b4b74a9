"""Two agents in one directory, as two hosts that share a file system: what one makes the other neither takes nor breaks."""

# ruff: noqa: ASYNC240 - small files, in tests

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir import uses
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.dir.pool import PoolDirectory
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from tests.unit.storage.material import MIB, disk, http, ignore, image_ref, needs_root, qemu_img, uid
from tests.unit.storage.server import Answer, Server

pytestmark = needs_root

RAW = disk()
Host = Callable[[str], DirStorage]


@pytest.fixture
def shared(tmp_path: Path) -> PoolRef:
    parameters = PoolParameters(path=str(tmp_path / "pool"), shared=True)
    return PoolRef(uid=uid(), name="shared", driver=PoolDriver.DIR, parameters=parameters)


@pytest.fixture
def host(shared: PoolRef, settings: StorageSettings) -> Host:
    return lambda name: DirStorage(shared, settings.model_copy(update={"host": name}))


async def test_two_hosts_that_import_at_once_leave_one_whole_image(host: Host, server: Server, tmp_path: Path) -> None:
    image, source = image_ref(RAW, "raw"), http(server.on("/i", Answer(RAW)))
    one, other = await asyncio.gather(
        *(host(name).import_image(image, source, ignore) for name in ("a", "b")),
    )
    assert one == other == await host("c").image(image.uid)
    (tmp_path / "raw").write_bytes(RAW)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", one.path, tmp_path / "raw")
    assert list((tmp_path / "pool/images/.partial").iterdir()) == []


async def test_the_slower_import_does_not_replace_a_file_that_disks_may_stand_on(
    host: Host, server: Server, tmp_path: Path
) -> None:
    """On NFS, an emulator of another host would lose the file under its feet."""
    image, source = image_ref(RAW, "raw"), http(server.on("/i", Answer(RAW)))
    importing = asyncio.create_task(host("slow").import_image(image, source, ignore))
    fast = asyncio.create_task(host("fast").import_image(image, source, ignore))
    await asyncio.wait([importing, fast], return_when=asyncio.FIRST_COMPLETED)
    first = await (importing if importing.done() else fast)
    before = Path(first.path).stat().st_ino
    assert await importing == await fast == first
    assert Path(first.path).stat().st_ino == before


async def test_unfinished_files_of_another_host_stay(host: Host, server: Server, tmp_path: Path) -> None:
    image, url = image_ref(RAW, "raw"), server.on("/i", Answer(RAW))
    theirs = tmp_path / "pool/images/.partial" / f"{image.uid}.0123456789ab.source"
    await host("a").prepare()
    theirs.write_bytes(b"half")
    await host("a").import_image(image, http(url), ignore)
    await host("a").remove_image(image.uid)
    assert theirs.read_bytes() == b"half"


async def test_an_image_that_another_host_s_disks_and_volumes_stand_on_stays(host: Host, server: Server) -> None:
    image, source = image_ref(RAW, "raw"), http(server.on("/i", Answer(RAW)))
    a, b = host("a"), host("b")
    await a.import_image(image, source, ignore)
    await b.ensure_disk(machine := uid(), "root", image.uid, None)
    await b.ensure_volume(volume := uid(), None, VolumeOrigin(image=image), False)
    for remove in (lambda: b.remove_disks(machine), lambda: b.remove_volume(volume)):
        with pytest.raises(StorageError) as refused:
            await a.remove_image(image.uid)
        assert refused.value.reason == "ImageInUse" and await b.image(image.uid) is not None
        await remove()
    await a.remove_image(image.uid)
    assert await b.image(image.uid) is None


async def test_an_image_is_not_removed_while_another_host_makes_something_of_it(
    host: Host, shared: PoolRef, settings: StorageSettings, server: Server
) -> None:
    image, source = image_ref(RAW, "raw"), http(server.on("/i", Answer(RAW)))
    a, there = host("a"), PoolDirectory(shared, settings.model_copy(update={"host": "b"}))
    await a.import_image(image, source, ignore)
    uses.begin(there, image.uid)
    with pytest.raises(StorageError) as refused:
        await a.remove_image(image.uid)
    assert refused.value.reason == "ImageInUse"
    await a.ensure_disk(uid(), "root", image.uid, None)
    uses.end(there, image.uid)
    assert uses.remove(there, image.uid) == 0
    with pytest.raises(StorageError) as early:
        await a.ensure_disk(uid(), "root", image.uid, None)
    assert early.value.reason == "ImageNotReady"


async def test_what_a_host_left_when_it_died_does_not_keep_an_image_for_ever(
    host: Host, shared: PoolRef, settings: StorageSettings, server: Server
) -> None:
    image, source = image_ref(RAW, "raw"), http(server.on("/i", Answer(RAW)))
    await host("a").import_image(image, source, ignore)
    uses.begin(PoolDirectory(shared, settings.model_copy(update={"host": "b"})), image.uid)
    await host("b").prepare()
    await host("a").remove_image(image.uid)
    uses.remove(PoolDirectory(shared, settings.model_copy(update={"host": "b"})), image.uid)  # and died there
    await host("a").import_image(image, source, ignore)
    await host("a").ensure_disk(uid(), "root", image.uid, None)


async def test_the_mark_of_a_volume_goes_with_it(host: Host, tmp_path: Path) -> None:
    await host("a").ensure_volume(volume := uid(), MIB, None, False)
    await host("a").claim_volume(volume, "a", 4)
    assert json.loads((tmp_path / f"pool/keepers/{volume}.json").read_text()) == {"epoch": 4, "host": "a"}
    await host("a").remove_volume(volume)
    assert not list((tmp_path / "pool/keepers").iterdir())


async def test_who_looks_for_a_heartbeat_makes_nothing(host: Host, tmp_path: Path) -> None:
    assert await host("a").last_beat("b") is None
    assert not (tmp_path / "pool").exists()
    await host("b").prepare()
    assert await host("a").last_beat("b") is None
    assert not (tmp_path / "pool/hosts").exists()
    await host("b").beat("b", "1")
    assert await host("a").last_beat("b") == "1"
