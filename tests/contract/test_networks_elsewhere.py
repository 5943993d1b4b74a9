"""Networks on a kernel that has 8021q and openvswitch, where this one has not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import network_ovn, network_world, other_kernel

WHY_NOT = network_world.why_none()
ESSENTIAL = (
    "test_guests_of_a_network_reach_each_other_on_all_hosts",
    "test_a_change_keeps_what_is_still_allowed_and_cuts_what_is_not",
    "test_guests_get_their_addresses_by_dhcp",
    "test_no_pretence_arrives",
)
"""The way between hosts, rules, what guests are told, and pretending: emulation is slow."""
ROUTING = (
    "test_routing_ovn.py::TestRouting::test_the_way",
    "test_routing_ovn.py::TestRouting::test_groups_judge_at_both_ends",
    "test_routing_ovn.py::TestRouting::test_without_a_gateway",
    "test_routing_ovn.py::TestRouting::test_nobody_pretends_to_be_the_router",
    "test_routing_vlans_ovn.py::TestVlans::test_the_way",
)
"""One machine each: all of them in one take longer than anybody waits."""
GATEWAYS = ("test_a_router_between_two_networks", "test_the_world_outside")
SECONDS = 1800
"""Five minutes where nothing else runs."""

pytestmark = [
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
    pytest.mark.wide,
    pytest.mark.timeout(SECONDS + 60),
]


@pytest.mark.skipif(
    WHY_NOT is None and network_world.why_no_vlans() is None,
    reason="This kernel has VLANs: test_gateways_linux.py has it.",
)
def test_vlans_of_a_trunk(tmp_path: Path) -> None:
    """Real frames with tags, by the driver linux."""
    elsewhere(
        tmp_path,
        "tests/contract/test_gateways_linux.py::TestVlans",
        "tests/contract/test_vlans_linux.py::TestVlans",
    )


@pytest.mark.skipif(
    WHY_NOT is None and network_world.why_no_vlans() is None,
    reason="This kernel has VLANs: test_vlans_linux.py has it.",
)
def test_networks_that_are_vlans(tmp_path: Path) -> None:
    """Filters, what guests are told, and pretending, as for tunnels."""
    elsewhere(tmp_path, *(f"tests/contract/test_vlans_linux.py::TestContract::{name}" for name in ESSENTIAL))


@pytest.mark.skipif(
    WHY_NOT is None and network_ovn.has_module(), reason="This kernel has openvswitch: test_network_ovn.py uses it."
)
def test_ovn_by_the_datapath_of_the_kernel(tmp_path: Path) -> None:
    if (why := network_ovn.why_none()) is not None:
        pytest.skip(why)
    elsewhere(
        tmp_path,
        *(f"tests/contract/test_network_ovn.py::TestChosen::{name}" for name in ESSENTIAL),
        *(f"tests/contract/test_gateways_ovn.py::TestGateways::{name}" for name in GATEWAYS),
    )


@pytest.mark.skipif(
    WHY_NOT is None and network_ovn.has_module(), reason="This kernel has openvswitch: test_routing_ovn.py uses it."
)
@pytest.mark.parametrize("name", ROUTING)
def test_routing_by_ovn_and_the_datapath_of_the_kernel(tmp_path: Path, name: str) -> None:
    if (why := network_ovn.why_none()) is not None:
        pytest.skip(why)
    elsewhere(tmp_path, f"tests/contract/{name}")


@pytest.mark.skipif(
    WHY_NOT is None and network_ovn.has_module(), reason="This kernel has openvswitch: test_vlans_ovn.py uses it."
)
def test_vlans_by_ovn_and_the_datapath_of_the_kernel(tmp_path: Path) -> None:
    if (why := network_ovn.why_none()) is not None:
        pytest.skip(why)
    elsewhere(tmp_path, "tests/contract/test_vlans_ovn.py::TestVlans")


def elsewhere(scratch: Path, *selection: str) -> None:
    """Run tests on the other kernel."""
    if (why := other_kernel.why_none()) is not None:
        pytest.skip(why)
    other_kernel.run_tests(scratch, *selection, seconds=SECONDS)
