"""What an agent has its drivers and its metadata do, whatever of it fails."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from kumulus.api.gateways import GatewayFunction
from kumulus.api.segments import NetworkDriverName, SegmentOrder
from kumulus.kube.client import KubeClient
from kumulus_agents.agent import networks as agent_networks
from kumulus_agents.agent.networks import Networks
from kumulus_agents.agent.orders import Orders
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_agents.metadata.keeper import Metadata
from kumulus_agents.metadata.settings import MetadataSettings
from kumulus_agents.network.protocol import Found, NetworkDriver, NetworkError, Uplinks
from kumulus_agents.network.simulated import SimulatedFabric, SimulatedNetworks
from tests.unit.agent.host import eventually

NAMESPACE = "kumulus-host-a"
FRONT, BACK = (str(uuid.uuid4()) for _ in range(2))


async def nothing() -> None:
    """All orders are known."""


class Told(Metadata):
    """Notes where it was told to answer, and whether that was all. Its server may not answer, ever."""

    def __init__(self, *, answers: bool = True) -> None:
        super().__init__(Path("/nonexistent"), MetadataSettings())
        self.synced: list[tuple[frozenset[str], bool]] = []
        self._answers = answers

    async def sync(self, networks: Collection[str], *, complete: bool) -> None:
        self.synced.append((frozenset(networks), complete))
        if not self._answers:
            await asyncio.Event().wait()

    async def put_network(self, segment: SegmentOrder) -> None:
        """Its files are nowhere."""


def segment(uid: str) -> SegmentOrder:
    return SegmentOrder.model_validate({"uid": uid, "driver": "linux", "vni": 5000, "mtu": 1450})


def orders(*networks: str) -> Orders:
    """The orders of these networks, as they come with the first page."""
    made = Orders(cast("KubeClient", None), NAMESPACE)
    for number, uid in enumerate(networks, 1):
        made.store.apply(
            {
                "metadata": {
                    "name": f"segment-{uid}",
                    "namespace": NAMESPACE,
                    "uid": str(uuid.uuid4()),
                    "resourceVersion": str(number),
                },
                "spec": {
                    "type": "Segment",
                    "for": {"kind": "Network", "namespace": "t", "name": "front", "uid": uid},
                    "segment": segment(uid).model_dump(mode="json", by_alias=True, exclude_none=True),
                },
            }
        )
    return made


def networks(
    known: Orders, metadata: Metadata | None = None, driver: NetworkDriver | None = None, **options: Any
) -> Networks:
    drivers = {NetworkDriverName.LINUX: driver or SimulatedNetworks()}
    return Networks(drivers, known, SimulatedHypervisor(SimulatedHost()), metadata=metadata, **options)


class Unmendable(SimulatedNetworks):
    """A driver that fails when it is to mend."""

    async def mend(self) -> Sequence[str]:
        raise NetworkError("The host is out of memory.", reason="CommandFailed")


@asynccontextmanager
async def going_on(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """As long as the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def test_metadata_is_served_also_when_networks_cannot_be_mended() -> None:
    known, told = orders(FRONT, BACK), Told()
    known.store.synced = True
    made = networks(known, told, Unmendable())
    async with going_on(made.tend(nothing), made.serve_metadata()):
        await eventually(lambda: told.synced == [({FRONT, BACK}, True)], "metadata")


async def test_metadata_is_told_whether_all_networks_are_known() -> None:
    known, told = orders(FRONT), Told()
    made = networks(known, told)
    await made.prepare()
    async with going_on(made.serve_metadata()):
        await made.ensure_segment(segment(FRONT))
        await eventually(lambda: told.synced == [({FRONT}, False)], "metadata")
        known.store.synced = True
        await made.ensure_segment(segment(FRONT))
        await eventually(lambda: told.synced == [({FRONT}, False), ({FRONT}, True)], "metadata")


async def test_a_network_does_not_wait_for_metadata() -> None:
    told = Told(answers=False)
    made = networks(orders(FRONT), told)
    await made.prepare()
    async with going_on(made.serve_metadata()):
        await made.ensure_segment(segment(FRONT))
        await eventually(lambda: told.synced, "metadata")
        await made.ensure_segment(segment(FRONT))
    assert len(told.synced) == 1


async def test_who_waits_is_told_when_a_driver_can_work_that_could_not() -> None:
    fabric = SimulatedFabric(incapable="The kernel has no VXLAN.")
    ready: list[str] = []
    made = networks(orders(FRONT), driver=SimulatedNetworks(fabric), ready=lambda: ready.append("linux"))
    await made.prepare()
    with pytest.raises(NetworkError):
        await made.ensure_segment(segment(FRONT))
    await made.prepare()
    assert ready == []
    fabric.incapable = None
    await made.prepare()
    await made.prepare()
    assert ready == ["linux"]
    assert (await made.ensure_segment(segment(FRONT))).vni == 5000


class Untidy(SimulatedNetworks):
    """A driver that cannot say what is there."""

    async def found(self) -> Found:
        raise NetworkError("The host is out of memory.", reason="CommandFailed")


async def test_what_cannot_be_tidied_is_mended_all_the_same() -> None:
    fabric = SimulatedFabric(drifted=["A bridge was down."])
    made = networks(orders(FRONT), driver=Untidy(fabric))
    async with going_on(made.tend(nothing)):
        await eventually(lambda: fabric.drifted == [], "mending")


class Disturbed(SimulatedNetworks):
    """A driver whose filters are flushed time and again, and that fails to mend them once."""

    def __init__(self) -> None:
        super().__init__()
        self.guarded = 0

    async def guard(self) -> Sequence[str]:
        self.guarded += 1
        if self.guarded == 2:
            raise NetworkError("nft failed.", reason="CommandFailed")
        if self.guarded > 3:
            await asyncio.Event().wait()
        return ("The rules were not what they should be.",)


async def test_filters_are_guarded_also_after_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_networks, "GUARD_AGAIN", 0.01)
    driver = Disturbed()
    made = networks(orders(FRONT), driver=driver)
    await made.prepare()
    async with going_on(made.guard()):
        await eventually(lambda: driver.guarded == 4, "guarding")


async def test_what_a_host_can_serve_is_reported_again_when_programs_come_and_go() -> None:
    fabric, told = SimulatedFabric(), []
    made = networks(orders(), driver=SimulatedNetworks(fabric), changed=lambda: told.append(made.facts()))

    def said() -> dict[str, str | None]:
        facts = made.facts()
        assert facts is not None and facts.functions is not None
        (linux,) = facts.functions
        return {one.name.value: one.message for one in linux.functions}

    await made.prepare()
    able = {"KeptConnection": None, "LoadBalancer": None, "Router": None}
    assert said() == able
    fabric.functions[GatewayFunction.ROUTER] = "keepalived is missing."
    await made.prepare()
    assert said() == able | {"Router": "keepalived is missing."}
    await made.prepare()
    assert len(told) == 2, "nothing is reported twice"
    fabric.functions.clear()
    await made.prepare()
    assert said() == {}


async def test_devices_that_can_be_uplinks_are_reported() -> None:
    fabric = SimulatedFabric(uplinks=Uplinks(("eth1", "bond0", "a device of no name"), None))
    made = networks(orders(), driver=SimulatedNetworks(fabric))
    await made.prepare()
    facts = made.facts()
    assert facts is not None and facts.uplinks is not None
    assert [(one.driver, one.devices, one.message) for one in facts.uplinks] == [("linux", ("bond0", "eth1"), None)]
    fabric.uplinks = Uplinks(("eth1",), "This kernel has no VLANs: load 8021q.")
    changed = made.facts()
    await made.prepare()
    facts = made.facts()
    assert facts != changed and facts is not None and facts.uplinks is not None
    assert (facts.uplinks[0].devices, facts.uplinks[0].message) == ((), "This kernel has no VLANs: load 8021q.")
