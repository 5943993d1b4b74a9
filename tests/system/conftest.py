"""Fixtures of the system tests: a tenant's namespace on real hosts, with an image to start from; a libvirtd of a module's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kumulus_lab.lab import Lab
from tests.contract import guest
from tests.contract.libvirtd import PrivateLibvirtd
from tests.system.world import World


@pytest.fixture
def world(lab: Lab, lab_namespace: str) -> World:
    """A namespace with the tiny image, the hosts ready."""
    lab.services.wait_for_hosts([host.name for host in lab.hosts])
    made = World(lab, lab_namespace)
    made.image("tiny", "tiny.qcow2")
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> guest.Disks:
    """Disks of tiny guests, each made once."""
    return guest.Disks(tmp_path_factory.mktemp("guests"))


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirtd]:
    """A libvirtd that nobody else speaks to."""
    libvirtd = PrivateLibvirtd(tmp_path_factory.mktemp("libvirtd") / "root")
    try:
        libvirtd.start()
        yield libvirtd
    finally:
        libvirtd.stop()
