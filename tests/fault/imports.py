"""Domains of others that become machines, and are given back: whoever dies at whatever deed, no guest is touched.

In memory, in virtual time. The oracle is the guest: it is never started, ended or halted, whatever is done to objects.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.machine_import import UNMANAGE, VirtualMachineImport
from kumulus.api.pool_order import UnownedKind
from kumulus.api.storage import Volume
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.builtin import NAMESPACE
from kumulus_agents.hypervisor.domain import DomainState
from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignDomain, ForeignNic, ForeignShape
from kumulus_agents.storage.adoption import Unclaimed, Unowned
from kumulus_agents.storage.layers import Layers
from kumulus_agents.storage.protocol import StorageError, StoredVolume
from kumulus_agents.storage.simulated import SimulatedStorage
from kumulus_agents.storage.source import FileSource
from tests.fault.backends import Memory, run
from tests.fault.parties import Fault, How
from tests.fault.world import CONTROLLERS, World, world

TENANT = "tenant"
HERE = "one"
HOME = host_namespace(HERE)
DOMAIN = "6f3a0c7e-9d1b-4c55-8a2e-000000000001"
SIZE = 16 << 20
FILE = "/pool/old.qcow2"
PARTIES = (CONTROLLERS, HERE)


class AdoptingStorage(SimulatedStorage):
    """A simulated pool in whose directory somebody has a file."""

    taken: ClassVar[dict[str, str]] = {}
    """Of which file, by its id, a volume was made, by its uid."""

    @staticmethod
    def id_of(path: str) -> str:
        return str(uuid.uuid5(uuid.UUID(DOMAIN), path))

    async def unowned(self, owned: Collection[str]) -> Unclaimed:
        return Unclaimed((), 0, 0)

    async def identify(self, path: str) -> Unowned | None:
        if path != FILE and path not in [volume.path for _, volume in self.state.volumes.values()]:
            return None
        return Unowned(self.id_of(path), UnownedKind.FILE, "old.qcow2", SIZE, SIZE)

    async def adopt_volume(
        self, uid: str, id: str, owned: Collection[str], namespace: str | None, **options: Any
    ) -> StoredVolume:
        if (found := await self.volume(uid)) is None:
            if not options["beside"] or not options["foreign"]:
                raise StorageError("It would be taken away from who has it.", reason="DataRefused")
            made = StoredVolume(FileSource(f"/pool/volumes/{uid}.qcow2"), "qcow2", SIZE, SIZE)
            self.state.volumes[uid], self.state.layers[uid] = (None, made), Layers.first(uid)
            self.taken[uid] = id
            found = await self.volume(uid)
        assert found is not None
        return found

    async def retain_volume(self, uid: str, namespace: str | None, name: str) -> None:
        self.state.volumes.pop(uid, None)
        self.state.layers.pop(uid, None)


@dataclass(eq=False)
class Story:
    """What an operator does with one domain, in one world."""

    made: World

    async def begin(self) -> None:
        shape = ForeignShape(
            "pc-q35-7.2",
            "bios",
            [ForeignDisk("vda", "disk", "virtio", "file", FILE, "qcow2")],
            [ForeignNic("52:54:00:00:00:01", "bridge", "br0", "virtio")],
        )
        await self.made.ensure(NAMESPACE, TENANT, {})
        self.machine.plant(ForeignDomain(DOMAIN, "by-hand", "running", 1, 256 << 20, True, shape))
        self.machine.attach(self)
        self.ended: list[str] = []
        await self.wait(UnmanagedInstance, DOMAIN, HOME, self._located)
        for name in PARTIES:
            self.made.parties[name].counting = True

    @property
    def machine(self) -> Any:
        return self.made.sites[HERE].machine

    def told(self, uid: str) -> None:
        """Hears of every change of a machine on the host."""
        domain = self.machine.domains.get(DOMAIN)
        if domain is not None and domain.state is not DomainState.RUNNING:
            self.ended.append(str(domain.state))

    def told_foreign(self) -> None:
        """Not of interest."""

    @staticmethod
    def _located(item: Mapping[str, Any]) -> bool:
        return bool(item.get("status", {}).get("disks", [{}])[0].get("data"))

    async def wait(
        self, model: Any, name: str, namespace: str | None, holds: Callable[[Any], bool], seconds: float = 120
    ) -> Any:
        last: Any = None

        async def probe() -> Any:
            nonlocal last
            last = await self.made.user.find(model.KIND, name, namespace)
            return last if last is not None and holds(last) else None

        try:
            return await self.made.until(probe, f"{model.KIND.kind} {name}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {(last or {}).get('status')}") from None

    async def gone(self, model: Any, name: str, namespace: str) -> None:
        async def probe() -> bool:
            return await self.made.user.find(model.KIND, name, namespace) is None

        await self.made.until(probe, f"the end of {model.KIND.kind} {name}", 120)

    async def order(self) -> None:
        spec = {
            "unmanagedInstance": {"host": HERE, "name": DOMAIN},
            "template": {"namespace": TENANT, "name": "vm", "disks": [{"target": "vda", "name": "root"}]},
        }
        await self.made.make(VirtualMachineImport.KIND, "get", spec, HOME)

    async def imported(self) -> None:
        await self.wait(
            VirtualMachineImport, "get", HOME, lambda item: item.get("status", {}).get("phase") == "Succeeded"
        )
        vm = await self.wait(
            VirtualMachine, "vm", TENANT, lambda item: item.get("status", {}).get("phase") == "Running"
        )
        assert (vm["status"]["host"], vm["status"]["epoch"]) == (HERE, 1)
        domain = self.machine.domains[DOMAIN]
        assert domain.state is DomainState.RUNNING and DOMAIN not in self.machine.foreign
        await self.wait(
            Volume, "vm-root", TENANT, lambda item: item.get("status", {}).get("attachedTo", {}).get("vm") == "vm"
        )

    async def let_go(self) -> None:
        await self.made.user.patch(VirtualMachine.KIND, "vm", {"metadata": {"annotations": {UNMANAGE: "true"}}}, TENANT)
        await self.made.user.delete(VirtualMachine.KIND, "vm", TENANT)
        await self.as_it_was()

    async def take_back(self) -> None:
        await self.made.user.delete(VirtualMachineImport.KIND, "get", HOME)
        await self.gone(VirtualMachineImport, "get", HOME)

    async def as_it_was(self) -> None:
        """The domain runs and is nobody's, and nothing of it is left."""
        await self.gone(VirtualMachine, "vm", TENANT)
        await self.gone(Volume, "vm-root", TENANT)
        await self.made.until(self._nothing, "nothing is left of it")
        assert self.machine.foreign[DOMAIN].state == "running"

    async def _nothing(self) -> bool:
        orders = [item async for page, _ in self.made.user.list_pages(WorkOrder.KIND, HOME) for item in page]
        left = [item for item in orders if item["spec"]["type"] in ("Instance", "Disk")]
        return (
            not left
            and DOMAIN not in self.machine.domains
            and not any(pool.volumes for pool in self.made.sites[HERE].pools.values())
        )

    def untouched(self) -> None:
        """The guest has noticed nothing, and nobody had an error."""
        assert not self.ended and DOMAIN not in self.machine.starts
        assert not self.made.problems, self.made.problems


async def import_and_let_go(story: Story) -> None:
    await story.order()
    await story.imported()
    await story.let_go()


def told(story: Callable[[Story], Awaitable[None]], *faults: Fault) -> dict[str, list[str]]:
    """The story from its begin to its end; what everybody did in it."""

    async def main() -> dict[str, list[str]]:
        async with world(Memory(seed=1, latency=0.005)) as made:
            one = Story(made)
            await one.begin()
            for fault in faults:
                made.parties[fault.party].faults = (fault,)
            await story(one)
            one.untouched()
            return {name: list(made.parties[name].deeds) for name in PARTIES}

    return run(main())


async def begin_and_take_back(story: Story) -> None:
    """The operator thinks better of it while it goes on: it is taken back, or is done already."""
    await story.order()
    await story.wait(VirtualMachineImport, "get", HOME, lambda item: item.get("status", {}).get("phase") is not None)
    await story.take_back()
    if await story.made.user.find(VirtualMachine.KIND, "vm", TENANT) is not None:
        await story.let_go()
    await story.as_it_was()


STORIES = {"let go": import_and_let_go, "taken back": begin_and_take_back}


def deaths(story: Callable[[Story], Awaitable[None]], first: int, every: int, hows: Sequence[How]) -> list[str]:
    """The story again and again, with somebody dying at every so-manyth deed of everybody; what came out otherwise."""
    failed = []
    for party, done in told(story).items():
        for at in range(first, len(done) + 1, every):
            for how in hows:
                try:
                    told(story, Fault(party, at, how))
                except (AssertionError, ExceptionGroup) as error:
                    failed.append(f"{party} {at} {how} ({done[at - 1]}): {error!r}")
    return failed
