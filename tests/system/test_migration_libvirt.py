"""Guests that go from one libvirt to another: the driver's contract, and what real parts add to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import guest
from tests.contract.libvirt_world import LibvirtWorld
from tests.contract.libvirtd import PrivateLibvirtd
from tests.contract.migrations import MigrationContract

pytestmark = pytest.mark.libvirt


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> guest.Disks:
    return guest.Disks(tmp_path_factory.mktemp("guests"))


@pytest.fixture(scope="module")
def libvirtds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateLibvirtd, PrivateLibvirtd]]:
    root = tmp_path_factory.mktemp("l")
    found = PrivateLibvirtd(root / "a"), PrivateLibvirtd(root / "b")
    try:
        for libvirtd in found:
            libvirtd.start()
        yield found
    finally:
        for libvirtd in found:
            libvirtd.stop()


class MovingWorld(LibvirtWorld):
    """A host with a place of its own for the sockets of migrations."""

    def driver(self, **settings: object):  # type: ignore[no-untyped-def]
        return super().driver(migration_dir=self.libvirtd.root / "m", **settings)


@pytest.fixture
def here(
    libvirtds: tuple[PrivateLibvirtd, PrivateLibvirtd], images: guest.Disks, tmp_path: Path
) -> Iterator[LibvirtWorld]:
    world = MovingWorld(libvirtds[0], images, tmp_path)
    try:
        yield world
    finally:
        world.clear()


@pytest.fixture
def there(
    libvirtds: tuple[PrivateLibvirtd, PrivateLibvirtd], images: guest.Disks, tmp_path: Path
) -> Iterator[LibvirtWorld]:
    world = MovingWorld(libvirtds[1], images, tmp_path)
    try:
        yield world
    finally:
        world.clear()


class TestLibvirt(MigrationContract):
    """The contract."""
