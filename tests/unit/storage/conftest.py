"""A pool directory, settings that allow the test's own server, and that server."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import pytest

from kumulus_agents.storage.settings import FetchSettings, StorageSettings
from tests.unit.storage.server import Server, serving

SERVER = "127.0.0.1"
FORBIDDEN = "127.0.0.2"
"""Listens like any address on this machine, but is not among those the tests' settings allow."""


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(SERVER) as made:
        yield made


@pytest.fixture
async def canary(server: Server) -> AsyncIterator[Server]:
    """A listener on a forbidden address, at the server's port. Nobody may ever connect to it."""
    async with serving(FORBIDDEN, server.port) as made:
        yield made
        assert made.connections == 0


@pytest.fixture
def settings(tmp_path: Path) -> StorageSettings:
    return StorageSettings(
        roots=(PurePosixPath(tmp_path),),
        readers=(),
        fetch=FetchSettings(allowed_networks=(ipaddress.ip_network(f"{SERVER}/32"),), backoff=0),
    )
