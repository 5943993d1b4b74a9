"""What hosts with OVN need, and who may have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kumulus_lab import machine, openvswitch, state
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor, LabState, Networking

RECORD = LabState(
    name="demo",
    hypervisor=Hypervisor.LIBVIRT,
    cluster_ports=(1, 2, 3, 4),
    http_port=5,
    fleet_port=6,
    image_port=7,
    subnet="10.213.7.0/24",
)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    why = openvswitch.why_none(str(tmp_path))
    assert why is not None
    assert "ovn-northd" in why
    assert "ovs-vswitchd" in why


def test_simulated_hosts_have_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUMULUS_LAB_DIR", str(tmp_path))
    with pytest.raises(LabError, match="libvirt hosts"):
        Lab("demo").up(Wanted(hypervisor=Hypervisor.SIMULATED, networking=Networking.OVN))
    assert state.load("demo") is None


def test_a_lab_stays_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also one that was made before there was a choice."""
    monkeypatch.setenv("KUMULUS_LAB_DIR", str(tmp_path))
    monkeypatch.setattr(machine, "why_no_libvirt", lambda: None)
    monkeypatch.setattr(openvswitch, "why_none", lambda _: None)
    state.save(RECORD)
    written = state.directory("demo") / "lab.json"
    written.write_text(written.read_text().replace('  "networking": "linux",\n', ""))
    assert "networking" not in written.read_text()
    with pytest.raises(LabError, match="made by linux"):
        Lab("demo").up(Wanted(networking=Networking.OVN))
    assert state.load("demo") == RECORD
