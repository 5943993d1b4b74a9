"""Drivers are found by name, and what is wrong is said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kumulus_agents.hypervisor import registry
from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.plugins import DriverError


def test_the_built_in_drivers() -> None:
    assert isinstance(registry.load("simulated", {"cpus": 8}), SimulatedHypervisor)
    assert isinstance(registry.load("libvirt", {"acceleration": "tcg"}), LibvirtHypervisor)
    assert {"libvirt", "simulated"} <= set(registry.names())


def test_an_unknown_driver_is_told_what_there_is() -> None:
    with pytest.raises(DriverError, match=r"no hypervisor driver 'xen'.*libvirt, simulated"):
        registry.load("xen", {})


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(DriverError, match="cpus"):
        registry.load("simulated", {"cpus": 0})
    with pytest.raises(DriverError, match="colour"):
        registry.load("libvirt", {"colour": "red"})


def test_libvirt_is_imported_only_when_it_is_asked_for() -> None:
    program = (
        "import sys; from kumulus_agents.hypervisor import registry; registry.load('simulated', {});"
        "sys.exit('libvirt' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
