"""What is decided for a lab: names that fit, ports that are free, networks that nobody uses."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kumulus_lab import demo, network, ports, state
from kumulus_lab.errors import LabError
from kumulus_lab.state import HostState, Hypervisor, LabState


@pytest.fixture(autouse=True)
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUMULUS_LAB_DIR", str(tmp_path))
    return tmp_path


def _lab(**changes: object) -> LabState:
    values = {
        "name": "demo",
        "hypervisor": Hypervisor.LIBVIRT,
        "cluster_ports": (1, 2, 3, 4),
        "http_port": 5,
        "fleet_port": 6,
        "image_port": 7,
    }
    return LabState.model_validate(values | changes)


@pytest.mark.parametrize("name", ["", "Demo", "../demo", "a-b", "muchtoolong", "1a", "a b"])
def test_a_name_that_cannot_name_a_bridge_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot name a lab"):
        state.directory(name)


@pytest.mark.parametrize("name", ["", "H1", "-h", "h-", "h_1", "../h", "h" * 60, "api", "outside"])
def test_a_name_that_cannot_name_a_host_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot name a host"):
        state.check_host_name(name)


def test_what_was_saved_is_loaded() -> None:
    lab = _lab(hosts=(HostState(name="h1", number=1),))
    state.save(lab)
    assert state.load("demo") == lab
    assert state.load("other") is None


def test_a_damaged_record_says_how_to_get_rid_of_it(labs: Path) -> None:
    (labs / "demo").mkdir()
    (labs / "demo/lab.json").write_text("{")
    with pytest.raises(LabError, match="kumulus-lab down --name demo"):
        state.load("demo")


def test_an_unknown_host_is_answered_with_the_known_ones() -> None:
    lab = _lab(hosts=(HostState(name="h1", number=1), HostState(name="h2", number=2)))
    with pytest.raises(LabError, match="its hosts are: h1, h2"):
        lab.host("h3")


def test_ports_are_different_and_nobody_listens_on_them() -> None:
    found = ports.free(20)
    assert len(set(found)) == 20
    for port in found:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_ports_of_other_labs_are_not_chosen_also_while_their_daemons_are_down(labs: Path) -> None:
    state.save(
        _lab(cluster_ports=(20_001, 20_002, 20_003, 20_004), http_port=20_005, fleet_port=20_006, image_port=20_007)
    )
    (labs / "cut").mkdir()
    (labs / "cut/lab.json").write_text("{")
    (other,) = state.everybody()
    assert sorted(other.ports) == list(range(20_001, 20_008))
    taken = set(range(ports.FIRST, ports.LAST)) - {20_100, 20_200}
    assert set(ports.free(5, taken)) <= {20_100, 20_200}


def test_a_used_network_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [{"dst": "default"}, {"dst": "10.213.0.0/24"}, {"dst": "10.213.1.0/25"}, {"dst": "10.213.2.9"}]
    monkeypatch.setattr(network, "_ip_json", lambda *_: routes)
    assert network.choose_subnet() == "10.213.3.0/24"


def test_names_of_links_fit_the_kernel() -> None:
    lab = network.Network(lab="a" * 8, subnet="10.213.0.0/24")
    assert len(lab.bridge) <= 15
    assert len(lab.cable(99)) <= 15
    assert lab.image_address != lab.address


@pytest.mark.parametrize("hosts", ["", "0", "-1", "51", "many", "2.5"])
def test_hosts_that_are_no_number_are_refused(hosts: str) -> None:
    with pytest.raises(LabError, match="neither a number from 1 to 50 nor `simulated`"):
        demo.wanted(hosts)


def test_hosts_as_asked() -> None:
    assert demo.wanted("3").hosts == 3
    assert demo.wanted("simulated").hypervisor is Hypervisor.SIMULATED
