"""Who is looked at when something changes that the rules of machines speak of."""

from __future__ import annotations

from typing import Any

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.placement_group import PlacementGroup
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.compute.rule_wakeups import RuleWakeups

RACK = "example.com/rack"
SPEC = {"resources": {"cpus": 1, "memory": "64Mi"}}
NEAR = {"vmAffinity": {"required": [{"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": RACK}]}}


class World:
    """Machines on two hosts: one with a rule of its own, one in a group, one with neither."""

    def __init__(self) -> None:
        self.caches, self.woken, self._version = Caches(), set[str](), 0
        RuleWakeups(self.caches).attach(lambda key, *, urgent=False: self.woken.add(key.name))
        self.host("h1", rack="a")
        self.host("h2", rack="b")
        group = {"policy": "AntiAffinity", "selector": {"matchLabels": {"app": "web"}}, "topologyKey": RACK}
        self._put(PlacementGroup, "apart", "ns", {"spec": group})
        self.machine("ruled", SPEC | {"placement": {"affinity": NEAR}})
        self.machine("member", SPEC, app="web")
        self.machine("free", SPEC)
        self.woken.clear()

    def host(self, name: str, **labels: str) -> None:
        self._put(
            Host, name, None, {"spec": {"zone": "z1"}}, {f"example.com/{key}": has for key, has in labels.items()}
        )

    def machine(self, name: str, spec: dict[str, Any], **labels: str) -> None:
        self._put(VirtualMachine, name, "ns", {"spec": spec, "status": {"host": "h1", "epoch": 1}}, labels)

    def _put(
        self,
        model: type[Any],
        name: str,
        namespace: str | None,
        raw: dict[str, Any],
        labels: dict[str, str] | None = None,
    ) -> None:
        self._version += 1
        metadata = {"name": name, "uid": name, "resourceVersion": str(self._version), "labels": labels or {}}
        if namespace is not None:
            metadata["namespace"] = namespace
        self.caches.store(model).apply(raw | {"metadata": metadata})


def test_a_host_that_comes_to_be_elsewhere_concerns_machines_on_other_hosts() -> None:
    world = World()
    world.host("h2", rack="a")
    assert world.woken == {"ruled", "member"}


def test_a_label_that_no_group_speaks_of_concerns_only_machines_with_rules_of_their_own() -> None:
    world = World()
    world.host("h2", rack="b", floor="3")
    assert world.woken == {"ruled"}


def test_a_host_that_is_as_it_was_concerns_nobody() -> None:
    world = World()
    world.host("h2", rack="b")
    assert not world.woken
