"""Where the metadata server is told to answer."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.metadata import keeper
from kumulus_agents.metadata.control import Control
from kumulus_agents.metadata.keeper import Metadata
from kumulus_agents.metadata.line import CONTROL
from kumulus_agents.metadata.records import Reader
from kumulus_agents.metadata.server import Server
from kumulus_agents.metadata.settings import MetadataSettings

FRONT, BACK = (str(uuid.uuid4()) for _ in range(2))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of metadata on a host with two networks, whose namespaces are files."""
    namespaces = tmp_path / "netns"
    namespaces.mkdir()
    for network in (FRONT, BACK):
        (namespaces / keeper.namespace(network)).touch()
    monkeypatch.setattr(keeper, "NAMESPACES", namespaces)
    monkeypatch.setattr(keeper, "listener_in", lambda _: socket.create_server(("127.0.0.1", 0)))
    made = tmp_path / "metadata"
    made.mkdir()
    return made


@pytest.fixture
async def server(root: Path) -> AsyncIterator[Server]:
    """The server that runs already."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    made, listening = Server(Reader(directory)), Control.listen(root / CONTROL)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(Control(listening, made).run())
        yield made
        running.cancel()
    for network in list(made.networks):
        await made.drop(network)
    listening.close()
    os.close(directory)


def metadata(root: Path) -> Metadata:
    return Metadata(root, MetadataSettings.model_construct(uid=os.getgid()))


async def test_a_network_is_left_when_all_are_known_and_it_is_not_among_them(root: Path, server: Server) -> None:
    kept = metadata(root)
    await kept.sync({FRONT, BACK}, complete=True)
    assert set(server.networks) == {FRONT, BACK}
    await kept.sync({FRONT}, complete=False)
    await kept.sync((), complete=False)
    assert set(server.networks) == {FRONT, BACK}
    await kept.sync({FRONT}, complete=True)
    assert set(server.networks) == {FRONT}


async def test_what_is_written_waits_for_no_server(root: Path) -> None:
    kept = metadata(root)
    listening = Control.listen(root / CONTROL)  # and nobody answers
    syncing = asyncio.create_task(kept.sync({FRONT}, complete=True))
    try:
        connection, _ = await asyncio.get_running_loop().sock_accept(listening)
        nic = Nic(name="eth0", uid=BACK, network=FRONT, mac="02:00:00:00:00:01", addresses=("10.0.0.5",))
        await kept.put_machine(BACK, "tenant", "web", {})
        await kept.put_nic(BACK, nic, SegmentOrder(uid=FRONT, driver="linux", mtu=1450))
        assert (root / "networks" / FRONT / "10.0.0.5").exists()
        await kept.drop_nic(BACK)
        await kept.drop_network(FRONT)
        await kept.keep_machines(())
        assert not (root / "networks" / FRONT).exists()
        assert not syncing.done()
        connection.close()
    finally:
        listening.close()
        await syncing
