"""Machines that move while they run, and hosts that are emptied: real controllers, agents, pools and TLS between the hosts, simulated hypervisors.

After whatever happens on a host it is looked at whether a machine runs twice.
"""

from __future__ import annotations

import asyncio
import io
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.image import Image
from kumulus.api.maintenance import FOR_MAINTENANCE
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.order_names import instance_order_name
from kumulus.api.storage import StoragePool, Volume
from kumulus.cli.people import main
from kumulus.kube.builtin import NAMESPACE
from kumulus_agents.hypervisor.domain import DomainState, ExitReason
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import Cloud, Raw, SimHost, cloud, condition, phase, until
from tests.component.test_volume import HOSTS, Tenant
from tests.conftest import new_lab
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module"), needs_root]

KIND = VirtualMachineMigration.KIND
DATA = {"name": "root", "volume": "data"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A control plane with controllers; hosts are the tests' own."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


class Watch:
    """Sees every change on every host, and that no machine ever runs twice."""

    def __init__(self, hosts: list[SimulatedHost]) -> None:
        self._hosts = hosts
        self.twice: list[str] = []
        for host in hosts:
            host.attach(self)

    def told(self, uid: str) -> None:
        """A domain has changed."""
        on = Counter(
            uid for host in self._hosts for uid, domain in host.domains.items() if domain.state is DomainState.RUNNING
        )
        self.twice += [uid for uid, number in on.items() if number > 1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with cloud(lab, tmp_path_factory.mktemp("hosts")) as made:
        for name in HOSTS:
            await made.add_host(name, transfer=True)
        await asyncio.to_thread(lab.services.wait_for_hosts, list(HOSTS))

        async def open_() -> bool:
            reports = [await made.client.find(HostReport.KIND, name, host_namespace(name)) for name in HOSTS]
            return all(report is not None and "migration" in report["status"] for report in reports)

        await until(open_, "the hosts take guests")
        yield made


class Owner(Tenant):
    """A namespace, and a machine whose volume both hosts can use."""

    watch: Watch

    async def build(self) -> None:
        parameters = {"path": f"/var/lib/kumulus/pools/{self.tag}", "shared": True}
        body = {"metadata": {"name": self.tag}, "spec": {"driver": "dir", "parameters": parameters}}
        await self.client.create(StoragePool.KIND, body)
        await self.ready_pool(self.tag)
        await self.volume("data", size="64Mi", pool=self.tag)

    async def begin(self, **spec: Any) -> tuple[Raw, str, str]:
        """A machine that runs; where it is, and where it is not."""
        await self.machine("vm", DATA, **spec)
        vm = await self.runs("vm")
        here = str(vm["status"]["host"])
        await self.wait(Volume.KIND, "data", phase("InUse"), "is in use")
        return vm, here, next(name for name in HOSTS if name != here)

    async def move(self, name: str = "go", **spec: Any) -> None:
        await self._make(KIND, name, {"vm": "vm", **spec})

    async def ends(self, wanted: str, name: str = "go") -> Raw:
        return await self.wait(KIND, name, phase(wanted), f"is {wanted}")

    async def reaches(self, *wanted: str, name: str = "go") -> Raw:
        return await self.wait(KIND, name, lambda item: item.get("status", {}).get("phase") in wanted, f"is {wanted}")

    async def could_move(self, status: str, reason: str) -> str:
        """The machine says so; its message."""

        def says(item: Raw) -> bool:
            found = condition(item, "Migratable")
            return (found.get("status"), found.get("reason")) == (status, reason)

        vm = await self.wait(VirtualMachine.KIND, "vm", says, f"could move: {status} ({reason})")
        return str(condition(vm, "Migratable").get("message", ""))

    def domain(self, host: str, vm: Raw) -> Any:
        return self.cloud.hosts[host].machine.domains.get(vm["metadata"]["uid"])

    def slow(self, seconds: float) -> None:
        """From now on a copy takes so long."""
        for name in HOSTS:
            machine = self.cloud.hosts[name].machine
            machine.settings = machine.settings.model_copy(update={"migrate_seconds": seconds, "jitter": 0})

    async def order(self, host: str, vm: Raw) -> Raw | None:
        return await self.client.find(WorkOrder.KIND, instance_order_name(vm["metadata"]["uid"]), host_namespace(host))

    async def is_on(self, vm: Raw, host: str, epoch: int) -> None:
        """It runs there, and nothing is left of it elsewhere."""

        def placed(item: Raw) -> bool:
            status = item.get("status", {})
            return (status.get("phase"), status.get("host"), status.get("epoch")) == ("Running", host, epoch)

        await self.wait(VirtualMachine.KIND, "vm", placed, f"runs on {host}")
        other = next(name for name in HOSTS if name != host)

        async def alone() -> bool:
            return await self.order(other, vm) is None and self.domain(other, vm) is None

        await until(alone, f"nothing is left on {other}")
        assert self.domain(host, vm).state is DomainState.RUNNING
        assert self.domain(host, vm).arriving is None
        assert not self.watch.twice


class LocalOwner(Owner):
    """A namespace, and a machine with a volume and a disk of its own that are on its host alone."""

    async def build(self) -> None:
        body = {"metadata": {"name": self.tag}, "spec": {"driver": "dir", "parameters": {"path": f"/k/{self.tag}"}}}
        await self.client.create(StoragePool.KIND, body)
        await self.ready_pool(self.tag)
        await self.volume("data", size="64Mi", pool=self.tag)
        await self.image()

    async def begin(self, **spec: Any) -> tuple[Raw, str, str]:
        own = {"name": "tmp", "ephemeral": {"image": "system", "size": "64Mi"}}
        await self.machine("vm", DATA, own, **spec)
        vm = await self.runs("vm")
        here = str(vm["status"]["host"])
        await self.wait(Volume.KIND, "data", phase("InUse"), "is in use")
        return vm, here, next(name for name in HOSTS if name != here)

    async def disks_on(self, host: str, vm: Raw, volume: Raw | None = None) -> list[str]:
        """Files that a host has of the machine's disks."""
        volume = volume or await self.find(Volume.KIND, "data")
        uids = vm["metadata"]["uid"], volume["metadata"]["uid"]
        pools = self.cloud.hosts[host].directory / "pools"
        return [str(path) for path in pools.rglob("*.qcow2") if any(uid in str(path) for uid in uids)]

    async def has_disks(self, vm: Raw, host: str) -> None:
        """Both of its disks are on that host alone, and the volume can be used there."""

        def there(item: Raw) -> bool:
            status = item["status"]
            return (status["host"], status["pool"], condition(item).get("status")) == (host, self.tag, "True")

        volume = await self.wait(Volume.KIND, "data", there, f"is on {host}")
        uid = vm["metadata"]["uid"]
        other = self.cloud.hosts[next(name for name in HOSTS if name != host)].directory / "pools"

        async def alone() -> bool:
            return not [*other.rglob(f"*{volume['metadata']['uid']}*"), *other.rglob(f"*{uid}*")]

        await until(alone, f"no disks are left beside those on {host}")
        record = json.loads(self.file(volume).with_name(f"{volume['metadata']['uid']}.json").read_text())
        assert record, "it is a volume"
        domain = self.domain(host, vm)
        assert {disk.name: disk.path for disk in domain.disks}["root"] == str(self.file(volume))
        own = self.cloud.hosts[host].directory / "pools"
        assert len(list(own.rglob(f"disks/{uid}/*.qcow2"))) == 1


OWNER = TypeVar("OWNER", bound=Owner)


async def owned(made: Cloud, kind: type[OWNER]) -> AsyncIterator[OWNER]:
    """An owner, whose things go in the end."""
    owner = kind(made, secrets.token_hex(3))
    owner.watch = Watch([made.hosts[name].machine for name in HOSTS])
    await made.client.create(NAMESPACE, {"metadata": {"name": owner.namespace}})
    await owner.build()
    try:
        yield owner
    finally:
        owner.slow(0)
        for kind in (KIND, VirtualMachine.KIND, Volume.KIND, Image.KIND):
            for item in await made.listed(kind, owner.namespace):
                await made.client.delete(kind, item["metadata"]["name"], owner.namespace)

            async def none(kind: Any = kind) -> bool:
                return not await made.listed(kind, owner.namespace)

            await until(none, f"no {kind.plural} are left")
        await made.client.delete(StoragePool.KIND, owner.tag)
        await made.client.delete(NAMESPACE, owner.namespace)
        assert not owner.watch.twice


@pytest_asyncio.fixture(loop_scope="module")
async def owner(made: Cloud) -> AsyncIterator[Owner]:
    async for owner in owned(made, Owner):
        yield owner


@pytest_asyncio.fixture(loop_scope="module")
async def local(made: Cloud) -> AsyncIterator[LocalOwner]:
    async for owner in owned(made, LocalOwner):
        yield owner


async def test_a_machine_moves_and_back_and_its_volume_follows(owner: Owner) -> None:
    vm, here, there = await owner.begin()
    await owner.could_move("True", "NothingInTheWay")
    await owner.move()
    moved = await owner.ends("Succeeded")
    assert (moved["status"]["sourceHost"], moved["status"]["targetHost"]) == (here, there)
    assert "startedAt" in moved["status"] and "finishedAt" in moved["status"]
    await owner.is_on(vm, there, 2)
    follows = await owner.wait(Volume.KIND, "data", lambda v: v["status"]["host"] == there, "follows")
    assert follows["status"]["attachedTo"]["vm"] == "vm"
    after = await owner.find(VirtualMachine.KIND, "vm")
    assert after["status"]["startedAt"] == vm["status"]["startedAt"], "it was not started again"
    assert owner.cloud.hosts[there].machine.starts.get(vm["metadata"]["uid"]) is None
    await owner.wait(Volume.KIND, "data", lambda v: condition(v).get("status") == "True", "can be used")
    await owner.move("back", targetHost=here, ttlSecondsAfterFinished=0)
    await owner.gone(KIND, "back")
    await owner.is_on(vm, here, 3)


async def test_what_is_in_the_way_is_said_and_it_goes_on_by_itself_when_that_has_passed(owner: Owner) -> None:
    await owner.move(targetHost="nowhere")
    assert "There is no VirtualMachine vm" in await owner.says(KIND, "go", "MachineNotFound")
    vm, here, there = await owner.begin()
    assert "There is no Host nowhere" in await owner.says(KIND, "go", "HostNotFound")
    await owner.delete(KIND, "go")
    await owner.gone(KIND, "go")
    await owner.client.patch(Host.KIND, there, {"spec": {"unschedulable": True}})
    await owner.move()
    said = await owner.says(KIND, "go", "NoHostFits")
    assert f"1 cordoned ({there})" in said and f"1 where it is already ({here})" in said
    await owner.client.patch(Host.KIND, there, {"spec": {"unschedulable": None}})
    await owner.ends("Succeeded")
    await owner.is_on(vm, there, 2)


async def test_a_machine_that_may_not_move_says_all_that_keeps_it(owner: Owner) -> None:
    await owner.image()
    await owner.machine("vm", DATA, {"name": "tmp", "ephemeral": {"image": "system", "size": "64Mi"}})
    await owner.runs("vm")
    known = await owner.could_move("False", "LocalDisks")
    await owner.move()
    assert await owner.says(KIND, "go", "LocalDisks") == known and "Disk tmp is ephemeral" in known
    await owner.patch(VirtualMachine.KIND, "vm", powerState="Stopped")
    assert "only one that runs can move" in await owner.says(KIND, "go", "NotRunning")
    off = await owner.wait(VirtualMachine.KIND, "vm", phase("Stopped"), "is off")
    assert not condition(off, "Migratable")


async def test_deleting_it_cancels_it(owner: Owner) -> None:
    owner.slow(60)
    vm, here, _ = await owner.begin()
    await owner.move()
    await owner.reaches("Migrating")
    await owner.wait(VirtualMachine.KIND, "vm", phase("Migrating"), "moves")
    await until(lambda: _sending(owner, here, vm), "the guest is being sent")
    await owner.delete(KIND, "go")
    await owner.gone(KIND, "go")
    await owner.is_on(vm, here, 1)


async def _sending(owner: Owner, host: str, vm: Raw) -> bool:
    return vm["metadata"]["uid"] in owner.cloud.hosts[host].machine.sending


async def test_a_copy_that_gets_no_closer_to_its_end_is_given_up_where_that_was_asked_for(owner: Owner) -> None:
    owner.slow(60)
    vm, here, _ = await owner.begin()
    await owner.move(onStall="Cancel", limits={"stallSeconds": 5})
    failed = await owner.ends("Failed")
    assert condition(failed)["reason"] == "CopyStalled" and "no closer to its end" in condition(failed)["message"]
    await owner.is_on(vm, here, 1)


async def test_a_machine_that_is_to_stop_does_not_move(owner: Owner) -> None:
    owner.slow(60)
    await owner.begin()
    await owner.move()
    await owner.reaches("Migrating")
    await owner.patch(VirtualMachine.KIND, "vm", powerState="Stopped")
    assert condition(await owner.ends("Failed"))["reason"] == "PowerStateChanged"
    await owner.wait(VirtualMachine.KIND, "vm", phase("Stopped"), "stops")


async def test_a_machine_that_is_deleted_while_it_moves_is_gone_from_both(owner: Owner) -> None:
    owner.slow(60)
    vm, *_ = await owner.begin()
    await owner.move()
    await owner.reaches("Migrating")
    await owner.delete(VirtualMachine.KIND, "vm")
    await owner.gone(VirtualMachine.KIND, "vm")
    assert condition(await owner.ends("Failed"))["reason"] == "MachineGone"
    assert await owner.cloud.left_over(vm["metadata"]["uid"]) == []


async def test_a_guest_that_ends_on_its_way_is_started_again_where_it_was(owner: Owner) -> None:
    owner.slow(60)
    vm, here, there = await owner.begin()
    await owner.move()
    await until(lambda: _sending(owner, here, vm), "the guest is being sent")
    owner.cloud.hosts[here].machine.end(vm["metadata"]["uid"], ExitReason.CRASHED)
    failed = await owner.ends("Failed")
    assert condition(failed)["reason"] == "GuestEnded"
    back = await owner.wait(
        VirtualMachine.KIND, "vm", lambda raw: raw["status"].get("restarts") == 1, "is started again"
    )
    assert (back["status"]["host"], back["status"]["epoch"]) == (here, 1)
    assert await owner.order(there, vm) is None


@pytest.mark.parametrize("side", ["source", "target"])
async def test_an_agent_that_dies_while_the_guest_is_sent_leaves_it_where_it_was(owner: Owner, side: str) -> None:
    owner.slow(60)
    vm, here, there = await owner.begin()
    await owner.move(limits={"timeoutSeconds": 600})
    await until(lambda: _sending(owner, here, vm), "the guest is being sent")
    victim = owner.cloud.hosts[here if side == "source" else there]
    await victim.kill()
    assert owner.domain(here, vm).state is DomainState.RUNNING
    owner.slow(0)
    victim.start()
    ended = await owner.reaches("Failed", "Succeeded")
    where, epoch = (there, 2) if ended["status"]["phase"] == "Succeeded" else (here, 1)
    await owner.is_on(vm, where, epoch)


def _dies_when_departed(source: SimHost) -> asyncio.Event:
    """From now on the host's agent goes no further when it has put on record that a guest has left."""
    died = asyncio.Event()

    async def mark(uid: str, marks: Any) -> None:
        await type(source.hypervisor).mark(source.hypervisor, uid, marks)
        if marks.departed is not None:
            died.set()
            await asyncio.Event().wait()

    source.hypervisor.mark = mark  # type: ignore[method-assign]
    return died


async def test_a_target_that_is_not_told_is_told_by_the_controllers(owner: Owner) -> None:
    """The source's agent dies when the guest has left and it has put that on record."""
    vm, here, there = await owner.begin()
    uid, source = vm["metadata"]["uid"], owner.cloud.hosts[here]
    died = _dies_when_departed(source)
    await owner.move()
    await asyncio.wait_for(died.wait(), 30)
    await source.kill()
    del source.hypervisor.mark  # type: ignore[attr-defined]
    assert owner.domain(there, vm).state is DomainState.PAUSED and owner.domain(there, vm).arriving is not None
    assert owner.domain(here, vm).state is DomainState.STOPPED
    source.start()
    await owner.ends("Succeeded")
    await owner.is_on(vm, there, 2)
    assert uid not in source.machine.domains


async def test_a_lost_answer_leaves_the_guest_at_its_source(owner: Owner) -> None:
    """The guest is whole at the target, and its source was not told: it goes on there, as libvirt's does."""
    vm, here, there = await owner.begin()
    source, target = owner.cloud.hosts[here], owner.cloud.hosts[there]
    put = target.machine.put

    def deaf(domain: Any) -> None:
        put(domain)
        if domain.state is DomainState.PAUSED and domain.arriving is not None:
            raise OSError("the answer is lost")

    target.machine.put = deaf  # type: ignore[method-assign]
    try:
        await owner.move()
        failed = await owner.ends("Failed")
    finally:
        del target.machine.put  # type: ignore[attr-defined]
    assert condition(failed)["reason"] == "MigrationFailed"
    await owner.is_on(vm, here, 1)
    assert source.machine.starts[vm["metadata"]["uid"]] == 1


# Disks that only one host has


async def test_disks_of_one_host_go_along_and_back(local: LocalOwner) -> None:
    vm, here, there = await local.begin()
    await local.move("stays")
    said = await local.says(KIND, "stays", "LocalDisks")
    assert "Disk tmp is ephemeral" in said and "Disk root is in a pool that its host alone has" in said
    await local.delete(KIND, "stays")
    await local.move(withLocalDisks=True)
    moved = await local.ends("Succeeded")
    disks = {disk["name"]: (disk.get("volume") is not None, disk["size"]) for disk in moved["status"]["disks"]}
    assert disks == {"root": (True, 64 << 20), "tmp": (False, 64 << 20)}
    await local.is_on(vm, there, 2)
    await local.has_disks(vm, there)
    await local.patch(VirtualMachine.KIND, "vm", powerState="Stopped")
    await local.wait(VirtualMachine.KIND, "vm", phase("Stopped"), "stops")
    await local.patch(VirtualMachine.KIND, "vm", powerState="Running")
    await local.runs("vm")
    await local.move("back", targetHost=here, withLocalDisks=True)
    await local.ends("Succeeded", "back")
    await local.is_on(vm, here, 3)
    await local.has_disks(vm, here)


async def test_disks_that_were_to_go_along_are_gone_there_when_it_ends_where_it_was(local: LocalOwner) -> None:
    """It is cancelled; and the machine is deleted, which leaves its volume."""
    local.slow(60)
    vm, here, there = await local.begin()
    for name in ("cancelled", "last"):
        await local.move(name, withLocalDisks=True)
        await until(lambda: _sending(local, here, vm), "the guest is being sent")
        assert len(await local.disks_on(there, vm)) == 2, "there is room for both"
        if name == "cancelled":
            await local.delete(KIND, name)
            await local.gone(KIND, name)
            await local.is_on(vm, here, 1)
            await local.has_disks(vm, here)
    await local.delete(VirtualMachine.KIND, "vm")
    await local.gone(VirtualMachine.KIND, "vm")
    assert condition(await local.ends("Failed", "last"))["reason"] == "MachineGone"
    volume = await local.is_("data", "Available")
    assert volume["status"]["host"] == here
    local.file(volume)
    assert not await local.disks_on(there, vm, volume)


async def test_hosts_that_both_die_when_the_guest_has_come_leave_its_disks_at_the_target(local: LocalOwner) -> None:
    """The source has put on record that it has left, and nobody was told: what came is no volume yet."""
    vm, here, there = await local.begin()
    source, target = local.cloud.hosts[here], local.cloud.hosts[there]
    uid, died = vm["metadata"]["uid"], _dies_when_departed(source)
    await local.move(withLocalDisks=True)
    await asyncio.wait_for(died.wait(), 60)
    for host in (source, target):
        await host.kill()
    del source.hypervisor.mark  # type: ignore[attr-defined]
    target.machine.end(uid, ExitReason.CRASHED)
    target.start()
    source.start()
    await local.ends("Succeeded")
    await local.is_on(vm, there, 2)
    await local.has_disks(vm, there)


# Hosts in maintenance


class Operator(Owner):
    """Who has a namespace, and works on hosts."""

    async def maintain(self, host: str, **how: Any) -> None:
        await self.client.patch(Host.KIND, host, {"spec": {"maintenance": how}})

    async def command(self, *words: str) -> tuple[int, str]:
        """`kumulusctl host maintenance` with these words: how it ends, and what it says."""
        said, kubeconfig = io.StringIO(), str(self.cloud.lab.kubeconfig)
        with redirect_stdout(said), redirect_stderr(said):
            code = await asyncio.to_thread(main, ["--kubeconfig", kubeconfig, "host", "maintenance", *words])
        return code, " ".join(said.getvalue().split())

    async def end(self, host: str) -> None:
        await self.client.patch(Host.KIND, host, {"spec": {"maintenance": None}})

    async def host(self, name: str, holds: Callable[[Raw], bool], what: str) -> Raw:
        found: Raw = {}

        async def probe() -> bool:
            nonlocal found
            found = await self.client.get(Host.KIND, name)
            return holds(found)

        try:
            await until(probe, f"host {name} {what}", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found.get('status', {}).get('maintenance')}") from error
        return found

    async def says_of(self, host: str, reason: str) -> str:
        raw = await self.host(host, lambda h: condition(h, "Maintenance").get("reason") == reason, f"says {reason}")
        return str(condition(raw, "Maintenance")["message"])

    async def over(self, host: str) -> None:
        await self.host(host, lambda h: "maintenance" not in h["status"] and h["status"]["phase"] == "Ready", "is open")

    async def runs_on(self, name: str, host: str) -> Raw:
        def there(vm: Raw) -> bool:
            return (vm["status"].get("phase"), vm["status"].get("host")) == ("Running", host)

        return await self.wait(VirtualMachine.KIND, name, there, f"runs on {host}")


@pytest_asyncio.fixture(loop_scope="module")
async def operator(made: Cloud) -> AsyncIterator[Operator]:
    async for owner in owned(made, Operator):
        try:
            yield owner
        finally:
            for name in HOSTS:
                await owner.end(name)
            for name in HOSTS:
                await owner.over(name)


async def test_a_host_is_emptied_by_each_machine_s_policy_and_what_left_comes_back(operator: Operator) -> None:
    vm, here, there = await operator.begin(highAvailability={"priority": 500})
    at = {"placement": {"hostSelector": {"role": here}}}
    await operator.machine("stop", evictionPolicy="Stop", **at)
    await operator.machine("none", evictionPolicy="None", **at)
    await operator.machine("off", powerState="Stopped", **at)
    await operator.machine("pinned", **at)
    await operator.machine("again", evictionPolicy="Restart")
    for name in ("stop", "none", "pinned", "again"):
        await operator.runs(name)
    await operator.wait(VirtualMachine.KIND, "off", phase("Stopped"), "is off")
    again = await operator.find(VirtualMachine.KIND, "again")

    await operator.maintain(here, returnGuests=True)
    said = await operator.says_of(here, "Blocked")
    assert said.startswith("1 machine still to leave, and none can go now.")
    assert f"{operator.namespace}/pinned: NoHostFits" in said
    raw = await operator.client.get(Host.KIND, here)
    assert raw["status"]["phase"] == "Maintenance" and condition(raw, "Schedulable")["reason"] == "InMaintenance"
    assert raw["status"]["maintenance"]["staying"] == 3
    moved = await operator.runs_on("vm", there)
    assert moved["status"]["startedAt"] == vm["status"]["startedAt"], "it was not started again"
    assert (await operator.runs_on("again", there))["status"]["epoch"] == (1 if again["status"]["host"] == there else 2)
    stopped = await operator.wait(VirtualMachine.KIND, "stop", phase("Stopped"), "is shut down")
    assert condition(stopped)["reason"] == "HostInMaintenance" and stopped["status"]["host"] == here
    assert stopped["spec"].get("powerState", "Running") == "Running"
    await operator.runs("none")
    for wanted in ("Running", "Stopped"):
        await operator.patch(VirtualMachine.KIND, "off", powerState=wanted)
    made = [
        item
        for item in await operator.cloud.listed(VirtualMachineMigration.KIND, operator.namespace)
        if item["metadata"]["labels"][FOR_MAINTENANCE] == here
    ]
    assert [item["spec"]["vm"] for item in made] == ["vm"], "nothing else was tried"

    await operator.patch(VirtualMachine.KIND, "pinned", evictionPolicy="None")
    assert "4 machines stay" in await operator.says_of(here, "Emptied")
    await operator.end(here)
    await operator.over(here)
    await operator.runs_on("vm", here)
    await operator.runs_on("stop", here)
    for name in ("vm", "stop", "again"):
        await operator.wait(VirtualMachine.KIND, name, lambda vm: "eviction" not in vm["status"], "is left alone")


async def test_maintenance_that_is_taken_away_takes_back_what_it_began(operator: Operator) -> None:
    operator.slow(60)
    vm, here, _ = await operator.begin()
    await operator.maintain(here)
    await operator.says_of(here, "Evacuating")
    code, said = await operator.command(here, "--timeout", "1")
    assert code == 1 and "it is not done yet (Evacuating: 1 machine still to leave, 1 on their way.)" in said, said
    assert f"kumulusctl host maintenance {here} --end" in said
    await operator.wait(VirtualMachine.KIND, "vm", phase("Migrating"), "moves")
    code, said = await operator.command(here, "--end")
    assert code == 0 and "is open again" in said, said
    await operator.over(here)
    await operator.runs_on("vm", here)
    assert operator.domain(here, vm).state is DomainState.RUNNING

    async def none() -> bool:
        return not await operator.cloud.listed(VirtualMachineMigration.KIND, operator.namespace)

    await until(none, "its migration is gone")


async def test_a_machine_that_is_off_there_starts_elsewhere(operator: Operator) -> None:
    await operator.machine("vm", DATA)
    vm = await operator.runs("vm")
    here = vm["status"]["host"]
    there = next(name for name in HOSTS if name != here)
    await operator.patch(VirtualMachine.KIND, "vm", powerState="Stopped")
    await operator.wait(VirtualMachine.KIND, "vm", phase("Stopped"), "stops")
    await operator.maintain(here)
    await operator.says_of(here, "Emptied")
    await operator.patch(VirtualMachine.KIND, "vm", powerState="Running")
    await operator.runs_on("vm", there)
    await operator.is_on(vm, there, 2)


async def test_in_place_nothing_moves(operator: Operator) -> None:
    _, here, _ = await operator.begin()
    await operator.maintain(here, mode="InPlace")
    await operator.says_of(here, "InPlace")
    await operator.machine("other", placement={"hostSelector": {"role": here}})
    said = await operator.says(VirtualMachine.KIND, "other", "NoHostFits", "Scheduled")
    assert f"1 in maintenance ({here})" in said
    await operator.runs_on("vm", here)
    await operator.end(here)
    await operator.runs_on("other", here)
