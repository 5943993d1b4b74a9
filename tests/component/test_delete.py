"""Deleting a machine works in every state it can be in, also while the API server restarts, and leaves nothing.

Real are the API server, the controllers, the agents with their pools and first-boot files; only the hypervisors are
simulated, so that their books can be read. All states are there at once, and all are deleted at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kumulus.api.base import FORCE_DETACH, PAUSED
from kumulus.api.compute import VirtualMachine
from kumulus.api.console import ConsoleRequest
from kumulus.api.fabric import Host
from kumulus.api.image import Image
from kumulus.kube.builtin import NAMESPACE, SECRET
from kumulus_agents.hypervisor.domain import ExitReason
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import GIB, Cloud, GatedHypervisor, Raw, cloud, condition, phase, reason, until
from tests.conftest import new_lab
from tests.unit.storage.material import disk, needs_root
from tests.unit.storage.server import Answer

pytestmark = [pytest.mark.cluster, needs_root]

PLAIN, RESTART = "plainly", "while the API server restarts"
NAMESPACE_STATE = "in a namespace that is deleted"
DISK = disk()
SHA256 = hashlib.sha256(DISK).hexdigest()


@asynccontextmanager
async def hosts(lab: Lab, directory: Path) -> AsyncIterator[Cloud]:
    """Hosts on the lab, until the block ends."""
    async with cloud(lab, directory) as made:
        await made.add_host("steady", memory=256 * GIB)
        await made.add_host("away", lease_seconds=3)
        await made.add_host("gated", gated=True)
        await made.add_host("broken", failure_rate=1)
        await made.add_host("fetching")
        await asyncio.to_thread(lab.services.wait_for_hosts, list(made.hosts))
        yield made


# The states


async def _stop(world: World, vm: Raw) -> None:
    """Its owner stops it."""
    await world.patch(vm, {"spec": {"powerState": "Stopped"}})


async def _stop_in_vain(world: World, vm: Raw) -> None:
    """Its owner stops it, and its guest does not care."""
    await _deafen(world, vm)
    await _stop(world, vm)


async def _deafen(world: World, vm: Raw) -> None:
    """Its guest does not react to the power button."""
    world.machine_of(vm).deaf.add(vm["metadata"]["uid"])


async def _crash(world: World, vm: Raw) -> None:
    """Its guest dies."""
    world.machine_of(vm).end(vm["metadata"]["uid"], ExitReason.CRASHED)


async def _crash_again(world: World, vm: Raw) -> None:
    """It dies as soon as it was started again, which is at once the first time."""
    machine, uid = world.machine_of(vm), vm["metadata"]["uid"]
    await _crash(world, vm)

    async def started() -> bool:
        return machine.starts[uid] == 2

    await until(started, "it is started again")
    await _crash(world, vm)


async def _leave_alone(world: World, vm: Raw) -> None:
    """Its owner asks Kumulus not to touch it."""
    await world.patch(vm, {"metadata": {"annotations": {PAUSED: "true"}}})


async def _go_on(world: World, vm: Raw) -> None:
    """Its owner takes that back."""
    await world.patch(vm, {"metadata": {"annotations": {PAUSED: None}}})


async def _vanish(world: World, vm: Raw) -> None:
    """Its host vanishes."""
    await world.cloud.hosts["away"].kill()


async def _detach(world: World, vm: Raw) -> None:
    """An operator says that the host is gone for good."""
    await world.patch(vm, {"metadata": {"annotations": {FORCE_DETACH: "true"}}})


async def _come_back(world: World, vm: Raw) -> None:
    """Its host comes back."""
    world.cloud.hosts["away"].start()


Deed = Callable[["World", Raw], Awaitable[None]]


@dataclass(frozen=True)
class State:
    """A state of a machine: what is special in its spec, what is done to it once it runs, and how its owner sees it."""

    reached: Callable[[Raw], bool]
    deed: Deed | None = None
    role: str | None = "steady"
    """The host it is bound to."""
    image: str = "good"
    spec: Raw = field(default_factory=dict)
    says: tuple[str, str] | None = None
    """A deletion that cannot end says so: the reason of Ready, and a word of its message."""
    way_out: Deed | None = None
    """What lets that deletion end."""


NO_SECRET = {"cloudInit": {"userDataSecret": {"name": "nothing", "key": "user"}}}
HOST_SILENT = ("HostUnknown", FORCE_DETACH)
STATES: Mapping[str, State] = {
    "whose image does not exist": State(reason("ImageNotFound"), image="nothing"),
    "whose image has another checksum": State(reason("ImageFailed"), image="altered"),
    "whose image's server does not answer": State(reason("ImageFailed"), image="unreachable"),
    "whose image is being imported": State(reason("ImageNotReady"), image="endless"),
    "whose host fetches the image": State(phase("Provisioning"), role="fetching", image="slow"),
    "whose InstanceType is missing": State(
        reason("InstanceTypeNotFound"), spec={"resources": None, "instanceType": "nothing"}
    ),
    "whose Secret is missing": State(reason("SecretNotFound"), spec=NO_SECRET),
    "that fits on no host": State(reason("NoHostFits", "Scheduled"), role="nobody"),
    "that cannot be started": State(phase("Failed"), role="broken"),
    "that is starting": State(phase("Starting"), role="gated"),
    "that runs": State(phase("Running")),
    "that runs and ignores the power button": State(phase("Running"), _deafen),
    "whose guest is frozen": State(phase("Paused"), spec={"powerState": "Paused"}),
    "that is stopping": State(phase("Stopping"), _stop_in_vain),
    "that was stopped": State(phase("Stopped"), _stop),
    "that was never started": State(phase("Stopped"), spec={"powerState": "Stopped"}),
    "that died for good": State(reason("GuestCrashed"), _crash, spec={"restartPolicy": "Never"}),
    "that died and will be started again": State(phase("CrashLoopBackOff"), _crash_again),
    "that Kumulus shall leave alone": State(phase("Running"), _leave_alone, says=("LeftAlone", PAUSED), way_out=_go_on),
    "whose host vanished for good": State(phase("Unknown"), _vanish, role="away", says=HOST_SILENT, way_out=_detach),
    "whose host vanished for a while": State(
        phase("Unknown"), _vanish, role="away", says=HOST_SILENT, way_out=_come_back
    ),
    NAMESPACE_STATE: State(phase("Running")),
}


class World:
    """Two namespaces with a machine in each state, from the first to the last."""

    def __init__(self, cloud: Cloud, tag: str) -> None:
        self.cloud, self.client = cloud, cloud.client
        self.namespace, self.doomed = f"states-{tag}", f"doomed-{tag}"
        self.names = {state: f"vm-{number}" for number, state in enumerate(STATES)}
        self.uids: dict[str, str] = {}
        self.complaints: dict[str, list[str]] = {state: [] for state in STATES}

    @property
    def _gated(self) -> GatedHypervisor:
        hypervisor = self.cloud.hosts["gated"].hypervisor
        assert isinstance(hypervisor, GatedHypervisor)
        return hypervisor

    def machine_of(self, vm: Raw) -> SimulatedHost:
        return self.cloud.hosts[vm["status"]["host"]].machine

    async def patch(self, vm: Raw, body: Raw) -> None:
        await self.client.patch(VirtualMachine.KIND, vm["metadata"]["name"], body, vm["metadata"]["namespace"])

    async def machines(self) -> dict[str, Raw]:
        """The machines there are, by their states."""
        listed = await self.cloud.listed(VirtualMachine.KIND)
        by_uid = {vm["metadata"]["uid"]: vm for vm in listed}
        return {state: by_uid[uid] for state, uid in self.uids.items() if uid in by_uid}

    async def eventually(self, states: list[str], holds: Callable[[str, Raw | None], bool], what: str) -> None:
        """Wait until it holds of the machines in these states; note those of which it never does."""
        last: dict[str, Raw] = {}

        async def probe() -> bool:
            nonlocal last
            last = await self.machines()
            return all(holds(state, last.get(state)) for state in states)

        try:
            await until(probe, what)
        except AssertionError as error:
            for state in states:
                if not holds(state, last.get(state)):
                    self.complaints[state].append(f"{error}; its status: {last.get(state, {}).get('status')}")

    async def build(self) -> None:
        """A machine in each state."""
        for namespace in (self.namespace, self.doomed):
            await self.client.create(NAMESPACE, {"metadata": {"name": namespace}})
            secret = {"metadata": {"name": "boot"}, "stringData": {"user": "#cloud-config\n{}\n"}}
            await self.client.create(SECRET, secret, namespace)
            await self._image("good", Answer(DISK), namespace=namespace)
        self._gated.gate.clear()
        await self._image("altered", Answer(DISK[::-1]))
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            await self._image("unreachable", url=f"http://127.0.0.1:{closed.getsockname()[1]}/disk.raw")
            await self._images_are(good="Ready", altered="Failed", unreachable="Failed")
        await self._image("slow", Answer(DISK), Answer(DISK, stall=1 << 20))
        await self._images_are(slow="Ready")
        await self._image("endless", Answer(DISK, stall=1 << 20))
        for state in STATES:
            await self._machine(state)
        await self._reach()

    async def _image(self, name: str, *answers: Answer, url: str | None = None, namespace: str | None = None) -> None:
        namespace = namespace or self.namespace
        url = url or self.cloud.images.on(f"/{namespace}/{name}.raw", *answers)
        spec = {"source": {"http": {"url": url}}, "checksum": {"sha256": SHA256}, "format": "raw"}
        await self.client.create(Image.KIND, {"metadata": {"name": name}, "spec": spec}, namespace)

    async def _images_are(self, **wanted: str) -> None:
        async def probe() -> bool:
            listed = await self.cloud.listed(Image.KIND, self.namespace)
            phases = {item["metadata"]["name"]: item.get("status", {}).get("phase") for item in listed}
            return wanted.items() <= phases.items()

        await until(probe, f"images {wanted}")

    async def _machine(self, state: str) -> None:
        wanted = STATES[state]
        spec = {
            "resources": {"cpus": 1, "memory": "128Mi"},
            "disks": [{"name": "root", "ephemeral": {"image": wanted.image}}],
            "cloudInit": {"userDataSecret": {"name": "boot", "key": "user"}},
            "placement": {"hostSelector": {"role": wanted.role}},
            **wanted.spec,
        }
        body = {"metadata": {"name": self.names[state]}, "spec": {k: v for k, v in spec.items() if v is not None}}
        namespace = self.doomed if state == NAMESPACE_STATE else self.namespace
        made = await self.client.create(VirtualMachine.KIND, body, namespace)
        self.uids[state] = made["metadata"]["uid"]

    async def _reach(self) -> None:
        done_to = [state for state, wanted in STATES.items() if wanted.deed]
        await self.eventually(done_to, lambda _, vm: vm is not None and phase("Running")(vm), "it runs")
        running = await self.machines()
        done_to = [state for state in done_to if not self.complaints[state]]
        # A host that is lost is noticed after a while, and a guest that died is started again after a while.
        for state in sorted(done_to, key=lambda state: STATES[state].deed is not _vanish):
            if STATES[state].deed not in (_crash, _crash_again):
                await self._do(STATES[state].deed, running[state])
        crashing = [state for state in done_to if STATES[state].deed in (_crash, _crash_again)]
        others = [state for state in STATES if state not in crashing]
        await self.eventually(others, self._reached, "the state is reached")
        for state in crashing:
            await self._do(STATES[state].deed, running[state])
        await self.eventually(list(STATES), self._reached, "the state is reached")

    async def _do(self, deed: Deed | None, vm: Raw) -> None:
        assert deed is not None
        await deed(self, vm)

    def _reached(self, state: str, vm: Raw | None) -> bool:
        if vm is None or not STATES[state].reached(vm):
            return False
        return STATES[state].role != "gated" or self.uids[state] in self._gated.begun

    async def delete(self, *, restart: bool) -> None:
        """Delete them all, and have them gone."""
        machines = await self.machines()
        request = {"metadata": {"name": "log"}, "spec": {"vm": self.names[NAMESPACE_STATE]}}
        await self.client.create(ConsoleRequest.KIND, request, self.doomed)
        controllers = self.cloud.lab.services.controllers
        if restart:
            # Most of them go in a moment. So that the outage hits as many as can be, nobody sees to them before it.
            controllers.signal(signal.SIGSTOP)
        try:
            for vm in machines.values():
                await self._ask(vm)
        finally:
            controllers.signal(signal.SIGCONT)
        self._gated.gate.set()
        if restart:
            await asyncio.to_thread(self.cloud.lab.cluster.restart_apiserver)
        held = [state for state in STATES if STATES[state].way_out]
        others = [state for state in STATES if state not in held]
        await self.eventually(others, lambda _, vm: vm is None, "the machine is gone")
        await self.eventually(held, self._says, "the deletion says what it waits for")
        # The host comes back last: it would end the wait of all that is on it.
        for state in sorted(held, key=lambda state: STATES[state].way_out is _come_back):
            vm = (await self.machines()).get(state)
            if vm is not None:
                await self._do(STATES[state].way_out, vm)
                await self.eventually([state], lambda _, vm: vm is None, "the machine is gone")

        async def namespace_gone() -> bool:
            return await self.client.find(NAMESPACE, self.doomed) is None

        with suppress(AssertionError):
            await until(namespace_gone, "the namespace is gone")

    async def _ask(self, vm: Raw) -> None:
        """Ask for the end of a machine, or of the namespace it is in."""
        meta = vm["metadata"]
        if meta["namespace"] == self.doomed:
            await self.client.delete(NAMESPACE, self.doomed)
        else:
            await self.client.delete(VirtualMachine.KIND, meta["name"], meta["namespace"])

    def _says(self, state: str, vm: Raw | None) -> bool:
        says = STATES[state].says
        assert says is not None
        if vm is None:
            return False
        ready = condition(vm)
        return phase("Terminating")(vm) and ready["reason"] == says[0] and says[1] in ready["message"]

    async def left_over(self, state: str) -> list[str]:
        """What there still is of the machine that was in that state."""
        found = [f"VirtualMachine {self.names[state]}"] if state in await self.machines() else []
        if state == NAMESPACE_STATE and await self.client.find(NAMESPACE, self.doomed) is not None:
            found.append(f"Namespace {self.doomed}")
        wanted = STATES[state]
        return found + await self.cloud.left_over(
            self.uids[state], given_up=wanted.role if wanted.way_out is _detach else None
        )

    async def conclude(self) -> None:
        """Note what is left, and which hosts have no room for a machine that wants all they have."""

        async def nothing_left() -> bool:
            return not any([await self.left_over(state) for state in STATES])

        # What goes with a machine is gone when the machine is; nothing is left to the garbage collector.
        with suppress(AssertionError):
            await until(nothing_left, "nothing is left", 10)
        for state, complaints in self.complaints.items():
            complaints += [f"left: {what}" for what in await self.left_over(state)]
        for role in self.cloud.hosts:
            if (refusal := await self._refusal(role)) is not None:
                for state in (state for state in STATES if STATES[state].role == role):
                    self.complaints[state].append(f"the room it took on {role} is not there again: {refusal}")
        async with asyncio.TaskGroup() as tasks:
            for image in ("good", "altered", "unreachable", "slow", "endless"):
                tasks.create_task(self.client.delete(Image.KIND, image, self.namespace))

    async def _refusal(self, role: str) -> str | None:
        """Why a machine as large as the host does not fit on it; None when it does."""
        host = await self.client.get(Host.KIND, role)
        all_of_it = host["status"]["allocatable"]
        spec = {
            "resources": {"cpus": all_of_it["cpus"], "memory": str(all_of_it["memory"])},
            "placement": {"hostSelector": {"role": role}},
        }
        await self.client.create(VirtualMachine.KIND, {"metadata": {"name": role}, "spec": spec}, self.namespace)

        async def scheduled() -> Raw:
            return condition(await self.client.get(VirtualMachine.KIND, role, self.namespace), "Scheduled")

        found: Raw = await until(scheduled, f"a decision about a machine on {role}")
        await self.client.delete(VirtualMachine.KIND, role, self.namespace)
        return None if found["status"] == "True" else str(found.get("message"))


async def _round(lab: Lab, directory: Path, way: str) -> Mapping[str, list[str]]:
    """One way of deleting; what there is to complain of, by state."""
    async with hosts(lab, directory) as made:
        world = World(made, secrets.token_hex(3))
        await world.build()
        await world.delete(restart=way == RESTART)
        await world.conclude()
        return world.complaints


@pytest.fixture(scope="module", params=[PLAIN, RESTART])
def complaints(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, list[str]]]:
    """All states are reached and deleted once, for all tests."""
    lab = new_lab()
    try:
        lab.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield asyncio.run(_round(lab, tmp_path_factory.mktemp("hosts"), request.param))
    finally:
        lab.down()


@pytest.mark.parametrize("state", STATES)
def test_deleting_a_machine_leaves_nothing(complaints: Mapping[str, list[str]], state: str) -> None:
    found = complaints[state]
    assert not found, f"a machine {state}: " + "; ".join(found)
