"""A host dies and comes back, as its operator and the owners of its machines see it (ADR 33).

Real are the API server, the controllers, the agents with their pools; only the hypervisors are simulated, so that one can look
at every moment whether a machine runs twice.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.order_names import FENCE_ORDER, WATCHDOG_ORDER
from kumulus.api.remediation import HostRemediation
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.cli.people import main
from kumulus.kube.builtin import LEASE, NAMESPACE, SECRET
from kumulus.kube.client import KubeClient
from kumulus_agents.hypervisor.domain import DomainState
from kumulus_agents.watchdog.client import Watchdog
from kumulus_agents.watchdog.watch import State
from kumulus_controllers.fabric.automatic import MARGIN_SECONDS
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import GIB, Cloud, Raw, SimHost, cloud, condition, phase, until
from tests.component.dog import watchdog
from tests.component.relay import Relay, relayed
from tests.component.test_volume import Tenant
from tests.conftest import new_lab
from tests.contract.bmc import PASSWORD, USER, Emulator, emulator
from tests.patience import PATIENCE
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module"), needs_root]

DYING, SPARE, ROOMY = "dying", "spare", "roomy"
LEASE_SECONDS = 4


class Witness:
    """Hears of every change on the hosts, and notes when a machine runs on two of them."""

    def __init__(self) -> None:
        self.hosts: dict[str, SimHost] = {}
        self.twice: list[str] = []

    def watch(self, host: SimHost) -> None:
        self.hosts[host.name] = host
        host.machine.attach(self)

    def told(self, uid: str) -> None:
        on = [name for name, host in self.hosts.items() if self.runs(host, uid)]
        if len(on) > 1:
            self.twice.append(f"{uid} on {on}")

    @staticmethod
    def runs(host: SimHost, uid: str) -> bool:
        domain = host.machine.domains.get(uid)
        return domain is not None and domain.state is not DomainState.STOPPED


class Owner(Tenant):
    """Of machines with a disk that hosts share, and of one with a disk of its host's own."""

    def __init__(self, cloud: Cloud, tag: str) -> None:
        super().__init__(cloud, tag)
        self.witness = Witness()

    async def pools(self) -> None:
        for name, shared in (("together", True), ("alone", False)):
            parameters = {"path": f"/var/lib/kumulus/pools/{name}", **({"shared": True} if shared else {})}
            spec = {"driver": "dir", "parameters": parameters}
            await self.client.create(
                StoragePool.KIND, {"metadata": {"name": name, "labels": {"is": name}}, "spec": spec}
            )
            offered = {"metadata": {"name": name}, "spec": {"poolSelector": {"is": name}}}
            await self.client.create(VolumeClass.KIND, offered)

    async def host(self, name: str, **options: Any) -> None:
        await self.cloud.add_host(name, lease_seconds=LEASE_SECONDS, transfer=True, **options)
        self.witness.watch(self.cloud.hosts[name])

    async def others(self) -> None:
        """The other two hosts are there, whichever test comes first."""
        for name, memory in ((SPARE, 2), (ROOMY, 16)):
            if name not in self.cloud.hosts:
                await self.host(name, memory=memory * GIB)
        await self.ready_pool("together", hosts=3)

    async def vm(self, name: str, *, ha: Raw | None = None, disk: str = "together", **spec: Any) -> None:
        root = {"name": "root", "volumeTemplate": {"size": "64Mi", "class": disk}}
        wanted = {"resources": {"cpus": 1, "memory": "1Gi"}, "stop": {"mode": "Force"}, "disks": [root], **spec}
        await self._make(VirtualMachine.KIND, name, {**wanted, **({"highAvailability": ha} if ha else {})})

    async def runs_on(self, name: str, host: str) -> Raw:
        def holds(vm: Raw) -> bool:
            return phase("Running")(vm) and vm["status"].get("host") == host

        return await self.wait(VirtualMachine.KIND, name, holds, f"runs on {host}")

    async def cluster(self, kind: Any, name: str, holds: Callable[[Raw], bool], what: str) -> Raw:
        last: Raw = {}

        async def probe() -> Raw | None:
            nonlocal last
            last = await self.client.find(kind, name) or {}
            return last if last and holds(last) else None

        try:
            found: Raw = await until(probe, f"{kind.kind} {name} {what}", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}; its status: {last.get('status')}") from error
        return found

    async def cut(self, name: str) -> None:
        """The power of a host fails."""
        await self.cloud.hosts[name].kill()
        self.cloud.hosts[name].machine.reboot()
        await self.cluster(Host.KIND, name, phase("Unknown"), "is silent")

    async def remediation(self, name: str, host: str, **spec: Any) -> None:
        if spec.get("confirmedOff"):
            lease = await self.client.get(LEASE, LEASE_NAME, host_namespace(host))
            spec["lastRenewal"] = lease["spec"]["renewTime"]
        body = {"metadata": {"name": name}, "spec": {"host": host, **spec}}
        await self.client.create(HostRemediation.KIND, body)

    async def going_on(self, host: str, *phases: str) -> str | None:
        """Name of the remediation of a host that is in one of these phases; without any, of one that has not fenced it yet."""
        for item in await self.cloud.listed(HostRemediation.KIND):
            phase = item.get("status", {}).get("phase")
            if item["spec"]["host"] == host and phase in (phases or ("Pending", "Fencing")):
                return str(item["metadata"]["name"])
        return None

    def said(self, reason: str) -> Callable[[Raw], bool]:
        return lambda item: condition(item).get("reason") == reason

    def runs_here(self, vm: Raw, host: str) -> bool:
        return Witness.runs(self.cloud.hosts[host], vm["metadata"]["uid"])

    async def reached_at(self, host: str) -> int | None:
        """The port at which other hosts reach its agent, from when it has a certificate."""
        report = await self.client.get(HostReport.KIND, host, host_namespace(host))
        port: int | None = (report["status"].get("migration") or {}).get("port")
        return port

    async def ctl(self, *arguments: str) -> int:
        config = ("--kubeconfig", str(self.cloud.lab.kubeconfig))
        return await asyncio.to_thread(main, [*arguments, *config])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A control plane with controllers; hosts are the tests' own."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    async with cloud(lab, tmp_path_factory.mktemp("hosts")) as made:
        owner = Owner(made, secrets.token_hex(3))
        await owner.client.create(NAMESPACE, {"metadata": {"name": owner.namespace}})
        await owner.pools()
        await owner.host(DYING, memory=32 * GIB)
        await owner.ready_pool("together", hosts=1)
        await owner.ready_pool("alone", hosts=1)
        yield owner


async def test_a_dead_host_s_machines_start_elsewhere_once_and_not_there_again(
    owner: Owner, capsys: pytest.CaptureFixture[str]
) -> None:
    await owner.vm("first", ha={"enabled": True, "priority": 200})
    await owner.vm("second", ha={"enabled": True, "priority": 1})
    await owner.vm("pinned", ha={"enabled": True}, disk="alone")
    await owner.vm("plain")
    await owner.vm("parked", ha={"enabled": True}, powerState="Stopped")
    before = {name: await owner.runs_on(name, DYING) for name in ("first", "second", "pinned", "plain")}
    assert "root" in await owner.says(VirtualMachine.KIND, "pinned", "LocalDisks", "HighAvailability")
    await owner.says(VirtualMachine.KIND, "first", "Protected", "HighAvailability")

    # While a host answers nobody can call it dead, and a confirmation does not lie in wait.
    assert await owner.ctl("host", "confirm-dead", DYING, "--powered-off") == 1
    assert "answers" in capsys.readouterr().err
    await owner.remediation("hasty", DYING, confirmedOff=True)
    await owner.cluster(HostRemediation.KIND, "hasty", phase("Refused"), "is refused")

    await owner.host(SPARE, memory=2 * GIB)  # room for one beside what is reserved
    await owner.ready_pool("together", hosts=2)
    await owner.cut(DYING)
    assert (await owner.find(VirtualMachine.KIND, "first"))["status"]["host"] == DYING, "silence is no proof"

    await owner.remediation("asked", DYING)
    told = await owner.cluster(HostRemediation.KIND, "asked", owner.said("ConfirmationNeeded"), "asks for a person")
    assert f"confirm-dead {DYING}" in condition(told)["message"]
    assert await owner.client.find(WorkOrder.KIND, FENCE_ORDER, host_namespace(DYING)) is None
    assert await owner.ctl("host", "confirm-dead", DYING) == 2, "a name alone is no confirmation"
    assert "run twice" in capsys.readouterr().err
    assert await owner.ctl("host", "confirm-dead", DYING, "--powered-off", "--reason", "smoke") == 0
    (item,) = [i for i in await owner.cloud.listed(HostRemediation.KIND) if i["spec"].get("reason") == "smoke"]
    assert item["status"]["phase"] == "Fenced" and "confirmed" in item["status"]["evidence"]
    await owner.cluster(Host.KIND, DYING, phase("Fenced"), "is fenced")

    # By priority; the others say why they wait, or why they do not.
    vm = await owner.runs_on("first", SPARE)
    assert vm["status"]["epoch"] == before["first"]["status"]["epoch"] + 1 and len(vm["status"]["failovers"]) == 1
    assert owner.disks_of(vm)["root"].endswith(".qcow2")
    await owner.says(VirtualMachine.KIND, "second", "NoHostFits", "HighAvailability")
    await owner.says(VirtualMachine.KIND, "pinned", "LocalDisks")
    assert "not enabled" in await owner.says(VirtualMachine.KIND, "plain", "HostFenced")
    await owner.says(VirtualMachine.KIND, "parked", "HostFenced")
    await owner.host(ROOMY, memory=16 * GIB)
    await owner.runs_on("second", ROOMY)

    orders = await owner.cloud.listed(WorkOrder.KIND, host_namespace(DYING))
    left = {o["spec"]["for"]["name"]: o for o in orders if o["spec"]["type"] == "Instance"}
    for name in ("first", "second"):
        assert left[name]["spec"]["instance"]["superseded"] and "deletionTimestamp" in left[name]["metadata"]

    owner.cloud.hosts[DYING].start()
    await owner.runs_on("plain", DYING)
    await owner.runs_on("pinned", DYING)
    await owner.cluster(Host.KIND, DYING, phase("Ready"), "takes machines again")
    done = await owner.cluster(HostRemediation.KIND, item["metadata"]["name"], phase("Succeeded"), "is over")
    assert done["status"]["returnedAt"] >= done["status"]["fencedAt"]
    for name, host in (("first", SPARE), ("second", ROOMY)):
        vm = await owner.runs_on(name, host)
        assert vm["metadata"]["uid"] not in owner.cloud.hosts[DYING].machine.domains
        assert vm["status"]["startedAt"], "it was not touched"
    assert owner.witness.twice == []


async def test_a_host_that_comes_back_is_not_fenced_and_keeps_its_machines(owner: Owner) -> None:
    await owner.vm("kept", ha={"enabled": True}, placement={"hostSelector": {"role": DYING}})
    vm = await owner.runs_on("kept", DYING)
    starts = owner.cloud.hosts[DYING].machine.starts[vm["metadata"]["uid"]]
    await owner.cloud.hosts[DYING].kill()  # only its agent
    await owner.remediation("early", DYING)
    await owner.cluster(HostRemediation.KIND, "early", owner.said("MayAnswer"), "waits for the Lease to run out")
    owner.cloud.hosts[DYING].start()
    await owner.cluster(HostRemediation.KIND, "early", phase("Refused"), "is refused")
    await owner.cluster(Host.KIND, DYING, phase("Ready"), "is ready")
    vm = await owner.runs_on("kept", DYING)
    assert owner.cloud.hosts[DYING].machine.starts[vm["metadata"]["uid"]] == starts
    assert await owner.client.find(WorkOrder.KIND, FENCE_ORDER, host_namespace(DYING)) is None


@pytest.mark.wide
async def test_what_takes_down_host_after_host_stays_where_it_is(owner: Owner) -> None:
    await owner.others()
    await owner.vm("bad", ha={"enabled": True, "maxRestarts": 1})
    vm = await owner.wait(VirtualMachine.KIND, "bad", phase("Running"), "runs")
    first = vm["status"]["host"]
    await owner.cut(first)
    await owner.remediation("bad-1", first, confirmedOff=True)
    vm = await owner.wait(
        VirtualMachine.KIND, "bad", lambda v: phase("Running")(v) and v["status"]["host"] != first, "runs elsewhere"
    )
    second = vm["status"]["host"]
    owner.cloud.hosts[first].start()
    await owner.cluster(HostRemediation.KIND, "bad-1", phase("Succeeded"), "is over")
    await owner.cut(second)
    await owner.remediation("bad-2", second, confirmedOff=True)
    assert "maxRestarts" in await owner.says(VirtualMachine.KIND, "bad", "GaveUp")
    await owner.patch(VirtualMachine.KIND, "bad", highAvailability={"maxRestarts": 2})
    await owner.wait(
        VirtualMachine.KIND, "bad", lambda v: phase("Running")(v) and v["status"]["host"] != second, "runs elsewhere"
    )
    owner.cloud.hosts[second].start()
    await owner.cluster(HostRemediation.KIND, "bad-2", phase("Succeeded"), "is over")
    assert owner.witness.twice == []


async def test_a_machine_of_a_fenced_host_can_be_deleted(owner: Owner) -> None:
    await owner.vm("late", placement={"hostSelector": {"role": DYING}})
    vm = await owner.runs_on("late", DYING)
    await owner.cut(DYING)
    await owner.remediation("last", DYING, confirmedOff=True)
    await owner.cluster(Host.KIND, DYING, phase("Fenced"), "is fenced")
    await owner.delete(VirtualMachine.KIND, "late")
    await owner.gone(VirtualMachine.KIND, "late")
    owner.cloud.hosts[DYING].start()
    await owner.cluster(HostRemediation.KIND, "last", phase("Succeeded"), "is over")
    assert vm["metadata"]["uid"] not in owner.cloud.hosts[DYING].machine.domains
    await owner.gone(Volume.KIND, "late-root")


@pytest.mark.wide
async def test_a_host_without_a_bmc_ends_its_machines_itself_before_they_start_elsewhere(
    owner: Owner, tmp_path: Path
) -> None:
    await owner.others()
    host = owner.cloud.hosts[DYING]
    before = await owner.reached_at(DYING)
    await host.kill()
    host.watchdog = Watchdog(tmp_path / "dog")
    await owner.client.patch(Host.KIND, DYING, {"spec": {"fencing": {"automatic": True, "watchdog": True}}})
    host.start()
    await until(lambda: other(owner.reached_at(DYING), before), "its agent is there")

    async def says(reason: str) -> bool:
        order = await owner.client.find(WorkOrder.KIND, WATCHDOG_ORDER, host_namespace(DYING))
        return order is not None and order.get("status", {}).get("reason") == reason

    await until(lambda: says("NoWatchdog"), "it says that it has none")
    unarmed = lambda item: condition(item, "WatchdogArmed").get("reason") == "NoWatchdog"  # noqa: E731
    await owner.cluster(Host.KIND, DYING, unarmed, "says that it starts nothing")
    await owner.vm("guarded", ha={"enabled": True}, placement={"hostSelector": {"role": DYING}})

    async def fire() -> None:
        await host.kill()
        host.machine.reboot()

    async with watchdog(tmp_path / "dog", fire) as watch:
        await until(lambda: says("Armed"), "it is armed")
        vm = await owner.runs_on("guarded", DYING)
        await owner.patch(VirtualMachine.KIND, "guarded", placement={"hostSelector": None})
        await host.kill()
        assert owner.runs_here(vm, DYING), "its guests run on without it"
        name = await until(lambda: owner.going_on(DYING, "Fenced"), "it is fenced")
        done = await owner.client.get(HostRemediation.KIND, name)
        assert watch.state is State.FIRED and done["status"]["method"] == "watchdog"
        assert "watchdog is armed" in done["status"]["evidence"] and "attempts" not in done["status"]
        await owner.wait(
            VirtualMachine.KIND, "guarded", lambda v: phase("Running")(v) and v["status"]["host"] != DYING, "moves"
        )
        host.start()
        await owner.cluster(HostRemediation.KIND, name, phase("Succeeded"), "is over")
        await owner.client.patch(Host.KIND, DYING, {"spec": {"fencing": None}})
        gone = lambda: owner.client.find(WorkOrder.KIND, WATCHDOG_ORDER, host_namespace(DYING))  # noqa: E731
        await until(lambda: _none(gone()), "the order is gone")
        assert watch.state is State.IDLE
    host.watchdog = None
    assert owner.witness.twice == []


async def test_a_host_that_hangs_is_switched_off_by_its_bmc_and_one_that_is_only_cut_off_is_not(
    owner: Owner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First it does not reach the API server, which other hosts know to be all. Then its agent is gone and its guests run on:
    silence, and nothing else, is what one sees of it."""
    async with relayed(owner.cloud.lab.kubeconfig, tmp_path) as (relay, client):
        with emulator(tmp_path) as bmc:
            await _cut_off_then_hung(owner, relay, client, bmc, capsys)
    assert owner.witness.twice == []


async def other(what: Awaitable[object], before: object) -> bool:
    return await what not in (None, before)


async def _none(what: Awaitable[object]) -> bool:
    return await what is None


async def _cut_off_then_hung(
    owner: Owner, relay: Relay, client: KubeClient, bmc: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    await owner.others()
    secret = {"metadata": {"name": "bmc"}, "stringData": {"username": USER, "password": "not this one"}}
    await owner.client.create(SECRET, secret, "kumulus-system")
    spec = {"bmc": bmc.bmc().to_json(), "fencing": {"automatic": True}}
    await owner.client.patch(Host.KIND, DYING, {"spec": spec})
    await owner.vm("hung", ha={"enabled": True}, placement={"hostSelector": {"role": DYING}})
    vm = await owner.runs_on("hung", DYING)
    await owner.patch(VirtualMachine.KIND, "hung", placement={"hostSelector": None})
    host, machine = owner.cloud.hosts[DYING], owner.cloud.hosts[DYING].machine
    before = await owner.reached_at(DYING)
    await host.kill()
    straight, host.client = host.client, client
    host.start()
    await until(lambda: other(owner.reached_at(DYING), before), "it has a certificate again")
    relay.cut()

    def cut_off(item: Raw) -> bool:
        kinds = {one["kind"] for one in item["status"].get("witnesses", ()) if one["says"] == "Alive"}
        return condition(item, "Isolated").get("reason") == "WitnessAlive" and kinds == {"Peer", "Storage"}

    said = await owner.cluster(
        Host.KIND, DYING, cut_off, "is known to be alive, by others and by what it leaves in pools"
    )
    alive = {(item["witness"], item["kind"]) for item in said["status"]["witnesses"] if item["says"] == "Alive"}
    assert alive <= {(name, kind) for name in (SPARE, ROOMY) for kind in ("Peer", "Storage")}
    await owner.remediation("heeds", DYING, methods=["redfish"])
    told = await owner.cluster(HostRemediation.KIND, "heeds", owner.said("WitnessAlive"), "waits")
    assert "--despite-witnesses" in condition(told)["message"]
    await owner.client.delete(HostRemediation.KIND, "heeds")
    assert await owner.ctl("host", "confirm-dead", DYING, "--powered-off") == 1
    assert "is alive" in capsys.readouterr().err
    assert await owner.ctl("host", "show", DYING) == 0
    shown = capsys.readouterr().out
    assert "Isolated" in shown and "Alive" in shown and "does not accept the credentials" in shown
    await until(lambda: _none(owner.going_on(DYING)), "what was deleted is over")
    with pytest.raises(AssertionError):
        await until(lambda: owner.going_on(DYING), "somebody asks for it to be fenced", (MARGIN_SECONDS + 1) / PATIENCE)
    assert bmc.power == "On" and owner.runs_here(vm, DYING)

    async def power() -> None:
        await until(lambda: asyncio.sleep(0, bmc.power == "Off"), "the power is cut", 60)
        machine.reboot()

    supply = asyncio.create_task(power())
    await host.kill()
    host.client = straight
    try:
        name = await until(lambda: owner.going_on(DYING), "somebody asks for it to be fenced")
        said = await owner.cluster(HostRemediation.KIND, name, owner.said("BmcRefuses"), "says why it cannot")
        assert "credentials" in condition(said)["message"] and bmc.power == "On"
        assert owner.runs_here(vm, DYING), "nothing was taken from a host that nobody has switched off"
        await owner.client.delete(SECRET, "bmc", "kumulus-system")
        secret["stringData"]["password"] = PASSWORD  # type: ignore[index]
        await owner.client.create(SECRET, secret, "kumulus-system")
        elsewhere = await owner.wait(
            VirtualMachine.KIND,
            "hung",
            lambda v: phase("Running")(v) and v["status"]["host"] != DYING,
            "runs elsewhere",
        )
        assert elsewhere["status"]["epoch"] == vm["status"]["epoch"] + 1 and bmc.power == "Off"
        done = await owner.cluster(HostRemediation.KIND, name, phase("Fenced"), "is fenced")
        assert done["status"]["method"] == "redfish" and done["status"]["attempts"] == 1
        assert "says that it is off" in done["status"]["evidence"]
        for item in await owner.cloud.listed(HostRemediation.KIND):
            assert PASSWORD not in str(item)
    finally:
        supply.cancel()
        bmc.press()
        host.start()
    await owner.cluster(HostRemediation.KIND, name, phase("Succeeded"), "is over")
    await owner.cluster(Host.KIND, DYING, lambda h: phase("Ready")(h) and not h["status"]["witnesses"], "is as before")
    assert [o for o in await owner.cloud.listed(WorkOrder.KIND) if o["spec"]["type"] == "Witness"] == []
    await owner.client.patch(Host.KIND, DYING, {"spec": {"bmc": None, "fencing": None}})
    await owner.client.delete(SECRET, "bmc", "kumulus-system")
