"""What is said of a group: how many are where, and whether that is as its policy has it."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.affinity import HOSTNAME
from kumulus.api.compute import VirtualMachine
from kumulus.api.placement_group import PLACES_MOST, PlacementGroup
from kumulus_controllers.compute.group_plan import derive_status, place_of

NOW = "2026-01-01T00:00:00Z"
RACK = "example.com/rack"


def said(policy: str, *hosts: str | None, key: str = HOSTNAME, **spec: Any) -> tuple[str, str, str]:
    """Status, reason and message of its condition, with a machine on each of these hosts."""
    group = PlacementGroup.parse(
        {
            "metadata": {"name": "web", "generation": 3},
            "spec": {"policy": policy, "selector": {}, "topologyKey": key, **spec},
        }
    )
    machines = [
        VirtualMachine.parse(
            {"metadata": {"name": f"web-{n}"}, "spec": {"instanceType": "x"}, "status": {"host": host} if host else {}}
        )
        for n, host in enumerate(hosts)
    ]
    status = derive_status(group, machines, lambda host: place_of({HOSTNAME: host}, host, key), NOW)
    assert (status.members, status.placed) == (len(hosts), sum(host is not None for host in hosts))
    assert len(status.topologies) <= PLACES_MOST
    condition = status.condition("Satisfied")
    assert condition is not None and condition.observed_generation == 3
    return condition.status, condition.reason, condition.message


@pytest.mark.parametrize(
    ("policy", "hosts", "status", "reason", "words"),
    [
        ("AntiAffinity", (), "True", "NoMembers", "labels"),
        ("AntiAffinity", (None, "a", "b"), "True", "AsWanted", "are apart"),
        ("AntiAffinity", ("a", "b", "a"), "False", "Together", "More than 1 in one place: 2 in a. Machines stay"),
        ("SoftAntiAffinity", ("a", "b", "a"), "False", "Together", "More than 1 in one place: 2 in a."),
        ("Affinity", ("a", "a"), "True", "AsWanted", "are together"),
        ("Affinity", ("a", "b", "b"), "False", "Apart", "In 2 places: 2 in b, 1 in a. Machines stay"),
        ("SoftAffinity", ("a", "b"), "False", "Apart", "In 2 places"),
    ],
)
def test_policies(policy: str, hosts: tuple[str | None, ...], status: str, reason: str, words: str) -> None:
    found = said(policy, *hosts)
    assert found[:2] == (status, reason) and words in found[2]
    assert ("stay" in found[2]) is (status == "False" and not policy.startswith("Soft"))


def test_several_may_be_in_one_place_and_hosts_without_the_label_are_in_none() -> None:
    assert said("AntiAffinity", "a", "a", "b", maxPerTopology=2)[:2] == ("True", "AsWanted")
    status, reason, message = said("AntiAffinity", "a", key=RACK)
    assert (status, reason) == ("False", "NoSuchPlace") and f"without label {RACK}" in message and "web-0" in message
    assert said("SoftAffinity", "a", key=RACK)[0] == "True"


def test_of_very_many_places_the_fullest_are_listed_and_few_are_named() -> None:
    message = said("Affinity", *(f"h{n:03}" for n in range(100)))[2]
    assert "In 100 places: 1 in h000, 1 in h001" in message and "and 95 more" in message and len(message) < 300


def test_a_host_that_is_gone_is_a_place_of_its_own() -> None:
    assert place_of(None, "a", HOSTNAME) == "a" and place_of(None, "a", RACK) is None
