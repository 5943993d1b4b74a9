"""Domains of others that become machines, machines that are let go of, and those whose objects were lost: real controllers and
agents, simulated hypervisors, in memory and in virtual time (`tests/fault/imports.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.machine_import import VirtualMachineImport
from kumulus.api.order_names import instance_order_name, volume_order_name
from kumulus.api.storage import Volume
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.builtin import NAMESPACE
from kumulus_agents.hypervisor.domain import DomainState
from tests.fault.backends import Memory, run
from tests.fault.imports import (
    HERE,
    HOME,
    PARTIES,
    STORIES,
    TENANT,
    AdoptingStorage,
    Story,
    begin_and_take_back,
    deaths,
    import_and_let_go,
    told,
)
from tests.fault.parties import How
from tests.fault.world import world


@pytest.fixture(autouse=True)
def adopting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fault.world.SimulatedStorage", AdoptingStorage)


def test_a_domain_becomes_a_machine_and_is_let_go_of() -> None:
    deeds = told(import_and_let_go)
    assert any("adopt" in deed for deed in deeds[HERE])


def test_an_import_is_taken_back_at_any_time() -> None:
    told(begin_and_take_back)


@pytest.mark.parametrize("name", STORIES)
def test_whoever_dies_meanwhile_nobody_touches_the_guest(name: str) -> None:
    assert not deaths(STORIES[name], 2, 15, (How.AFTER,))


async def _lost(story: Story, *things: tuple[Any, str, str]) -> None:
    """Everything that is known of a machine is gone, while nobody looks."""
    for model, name, namespace in things:
        await story.made.user.patch(model.KIND, name, {"metadata": {"finalizers": []}}, namespace)
        await story.made.user.delete(model.KIND, name, namespace)


def test_a_machine_whose_objects_were_lost_is_not_started_twice_and_is_taken_over() -> None:
    async def main() -> None:
        async with world(Memory(seed=1, latency=0.005)) as made:
            story = Story(made)
            await made.ensure(NAMESPACE, TENANT, {})
            spec = {
                "resources": {"cpus": 1, "memory": "256Mi"},
                "placement": {"hostSelector": {"role": HERE}},
                "disks": [{"name": "root", "volumeTemplate": {"size": "16Mi"}}],
            }
            vm = await made.make(VirtualMachine.KIND, "vm", spec, TENANT)
            uid, runs = vm["metadata"]["uid"], lambda item: item.get("status", {}).get("phase") == "Running"
            await story.wait(VirtualMachine, "vm", TENANT, runs)
            began, volume = story.machine.domains[uid].started_at, await made.user.get(Volume.KIND, "vm-root", TENANT)
            for name in PARTIES:
                await made.stop(name)
            orders = (instance_order_name(uid), volume_order_name(volume["metadata"]["uid"]))
            await _lost(story, (VirtualMachine, "vm", TENANT), (Volume, "vm-root", TENANT))
            await _lost(story, *((WorkOrder, name, HOME) for name in orders))
            for name in PARTIES:
                made.start(name)
            told = await story.wait(UnmanagedInstance, uid, HOME, story._located)
            assert told["status"]["machine"] == {"namespace": TENANT, "name": "vm", "epoch": 1}
            await made.make(VirtualMachine.KIND, "vm", spec | {"placement": {}}, TENANT)

            def found(item: Mapping[str, Any]) -> bool:
                says = item.get("status", {}).get("conditions", [])
                return any(one["reason"] == "FoundOnHost" and uid in one["message"] for one in says)

            await story.wait(VirtualMachine, "vm", TENANT, found)
            await made.user.delete(VirtualMachine.KIND, "vm", TENANT)
            await story.gone(VirtualMachine, "vm", TENANT)
            await story.gone(Volume, "vm-root", TENANT)
            template = {"namespace": TENANT, "name": "vm", "disks": [{"target": "vda", "name": "root"}]}
            again = {"unmanagedInstance": {"host": HERE, "name": uid}, "template": template}
            await made.make(VirtualMachineImport.KIND, "get", again, HOME)
            await story.wait(
                VirtualMachineImport, "get", HOME, lambda item: item.get("status", {}).get("phase") == "Succeeded"
            )
            here = await story.wait(VirtualMachine, "vm", TENANT, runs)
            assert here["status"]["epoch"] == 2 and here["metadata"]["uid"] != uid
            domain = story.machine.domains[uid]
            assert (domain.state, domain.started_at, domain.marks.epoch) == (DomainState.RUNNING, began, 2)
            assert story.machine.starts == {uid: 1} and not made.sites["two"].machine.domains
            assert not made.problems, made.problems

    run(main())
