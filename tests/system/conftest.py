"""Fixtures of the system tests: a tenant's namespace on real hosts, with an image to start from."""

from __future__ import annotations

import pytest

from kumulus_lab.lab import Lab
from tests.system.world import World


@pytest.fixture
def world(lab: Lab, lab_namespace: str) -> World:
    """A namespace with the tiny image, the hosts ready."""
    lab.services.wait_for_hosts([host.name for host in lab.hosts])
    made = World(lab, lab_namespace)
    made.image("tiny", "tiny.qcow2")
    return made
