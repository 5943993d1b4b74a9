"""UnmanagedInstances: the domains on the host that are not ours, one object each. Told about, never touched.

Looked at when the hypervisor says that one has changed; now and then also for what it says nothing of.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog

from kumulus.api.unmanaged import (
    DEVICES_MOST,
    UnmanagedDisk,
    UnmanagedInstance,
    UnmanagedInstanceStatus,
    UnmanagedMachine,
    UnmanagedNic,
)
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists, KubeError, NotFound
from kumulus.kube.patching import merge_patch
from kumulus_agents.agent.report import clean
from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignDomain, ForeignNic, NotedNic, Orphan
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError

log = structlog.get_logger(__name__)

SHOWN_MOST = 256
"""So many domains of a host have an object, and all of lost machines; how many there are is in the HostReport."""
SETTLE_SECONDS = 0.5
"""What happens together, as a definition and its start, is written together."""
EACH_SECONDS = 5.0
"""The object of one domain is written at most so often."""
TOLD_SECONDS = 1.0
"""So long after the report was to tell of fewer orphans is it looked at whether it does."""
RESYNC_SECONDS = 300.0
AGAIN_SECONDS = 5.0
AGAIN_MOST = 120.0
"""So long after an API server that did not answer, or refused: at first, and at most."""
REREAD_EVERY = 12
"""Every so many resyncs the objects are listed, in case somebody has removed one."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")

Known = Mapping[str, UnmanagedInstanceStatus]
"""What the objects say, by their names, which are the UUIDs of the domains."""


def _clean(text: str | None, limit: int) -> str | None:
    return clean(text, limit) or None if text else None


def derive(domain: ForeignDomain) -> UnmanagedInstanceStatus:
    """What is said of a domain. Pure."""
    ours, noted = domain.machine is not None, domain.machine.nics if domain.machine is not None else ()
    disks = {disk.target: disk for item in domain.shape.disks if (disk := _disk(item, ours=ours)) is not None}
    known = {nic.mac.lower(): nic for nic in noted}
    return UnmanagedInstanceStatus(
        name=_clean(domain.name, 253),
        state=_clean(domain.state, 32),
        cpus=domain.cpus,
        memory=domain.memory,
        machine_type=_clean(domain.shape.machine, 64),
        firmware=_clean(domain.shape.firmware, 16),
        persistent=domain.persistent,
        machine=_machine(domain.machine),
        disks=tuple(list(disks.values())[:DEVICES_MOST]),
        devices=tuple([name for item in domain.shape.others if (name := _clean(item, 64))][:DEVICES_MOST]),
        nics=tuple([nic for item in domain.shape.nics if (nic := _nic(item, known)) is not None][:DEVICES_MOST]),
    )


def _machine(orphan: Orphan | None) -> UnmanagedMachine | None:
    if orphan is None:
        return None
    return UnmanagedMachine(namespace=clean(orphan.namespace, 63), name=clean(orphan.name, 253), epoch=orphan.epoch)


def _disk(disk: ForeignDisk, *, ours: bool) -> UnmanagedDisk | None:
    target = _clean(disk.target, 32)
    if target is None:
        return None
    return UnmanagedDisk(
        target=target,
        device=_clean(disk.device, 16),
        bus=_clean(disk.bus, 16),
        kind=_clean(disk.kind, 16),
        source=_clean(disk.source, 1024),
        format=_clean(disk.format, 16),
        read_only=disk.read_only or None,
        layered=disk.layered or None,
        pool=disk.pool,
        data=disk.data,
        size=disk.size,
        name=_clean(disk.name, 63) if ours else None,
    )


def _nic(nic: ForeignNic, known: Mapping[str, NotedNic]) -> UnmanagedNic | None:
    """The interface; of a machine of ours with what was noted of it."""
    if _MAC.fullmatch(nic.mac) is None:
        return None
    noted = known.get(nic.mac.lower())
    return UnmanagedNic(
        name=_clean(noted.name, 63) if noted is not None else None,
        addresses=tuple(clean(address, 45) for address in noted.addresses[:16]) if noted is not None else (),
        network=_clean(noted.network, 317) if noted is not None else None,
        vni=noted.vni if noted is not None else None,
        vlan=noted.vlan if noted is not None else None,
        mac_address=nic.mac.lower(),
        kind=_clean(nic.kind, 16),
        source=_clean(nic.source, 253),
        model=_clean(nic.model, 32),
    )


@dataclass(frozen=True, slots=True)
class Writes:
    """What is to be written."""

    remove: tuple[str, ...] = ()
    create: tuple[str, ...] = ()
    say: Mapping[str, UnmanagedInstanceStatus] | None = None
    """Of those that have an object then: what it is to say, where it says something else."""


def plan(known: Known, found: Iterable[ForeignDomain]) -> Writes:
    """What has to be written so that the objects say what was found. Those that are shown stay so while they are there,
    however many come; of lost machines all are. Pure."""
    there = {domain.uuid: domain for domain in found if _UUID.fullmatch(domain.uuid)}
    kept = [name for name in sorted(known) if name in there]
    fresh = sorted(there.keys() - known.keys())
    lost = [name for name in fresh if there[name].machine is not None]  # a rebuild waits for all of them
    others = [name for name in fresh if there[name].machine is None]
    new = [*lost, *others[: max(SHOWN_MOST - len(kept) - len(lost), 0)]]
    said = {name: derive(there[name]) for name in (*kept, *new)}
    empty = UnmanagedInstanceStatus()
    return Writes(
        remove=tuple(sorted(known.keys() - there.keys())),
        create=tuple(new),
        say={name: status for name, status in said.items() if status != known.get(name, empty)},
    )


class Unmanaged:
    """Keeps the objects of one host true."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        hypervisor: Hypervisor,
        *,
        counted: Callable[[], None] = lambda: None,
        locate: Callable[[ForeignDisk], Awaitable[ForeignDisk]],
        ordered: Callable[[str], bool],
        complete: Callable[[], bool] = lambda: True,
        told: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`counted`: told when there are more or fewer of them than before; `locate` says in which pool a disk is; `ordered`
        whether an order is about the machine of that uid, or may be: all others of ours are told of as well. `complete`:
        whether all orders of the host are known; `told`: how many orphans the HostReport tells of."""
        self._told = told
        self._complete = complete
        self._ordered = ordered
        self.orphans: frozenset[str] = frozenset()
        """Uids of machines of ours that nobody orders, as of the last look."""
        self._locate = locate
        self._client, self._namespace, self._hypervisor, self._counted = client, namespace, hypervisor, counted
        self._known: dict[str, UnmanagedInstanceStatus] | None = None
        self._written: dict[str, float] = {}
        """When an object was last written, in seconds of the loop's clock."""
        self._count: int | None = None
        self.orphan_count: int | None = None
        """How many machines there are that nobody orders, once their objects say so."""
        self._doubts = 0
        self._changed = asyncio.Event()

    def look(self) -> None:
        """Something may have changed: look soon."""
        self._changed.set()

    def doubt(self) -> None:
        """What the API server has may not be what it had: nothing is counted until all orders were listed anew."""
        self._known = self.orphan_count = None
        self._doubts += 1
        self.look()

    async def run(self) -> None:
        """Look until cancelled."""
        self._hypervisor.watch_foreign(self.look)
        again, resyncs = AGAIN_SECONDS, 0
        fresh = True
        while True:
            self._changed.clear()
            pause = RESYNC_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - spread, not secret
            try:
                postponed = await self._round(fresh=fresh)
                pause, again = min(pause, postponed or pause), AGAIN_SECONDS
            except HypervisorError:
                pass  # what it had said is kept, and when it is back it says so
            except KubeError as error:
                if again == AGAIN_SECONDS:
                    log.warning("unmanaged domains not reported", namespace=self._namespace, error=str(error))
                self._known, pause = None, again
                again = min(again * 2, AGAIN_MOST)
            fresh = not await self._woken(pause)
            resyncs += fresh
            if resyncs >= REREAD_EVERY:
                self._known, resyncs = None, 0

    async def _woken(self, seconds: float) -> bool:
        """Wait so long, or until something has changed and what happens with it has happened, too; whether that was so."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        await asyncio.sleep(SETTLE_SECONDS)
        return True

    async def _round(self, *, fresh: bool) -> float | None:
        """Look once and write what differs. Seconds until what was written a moment ago may be written again, if it has
        to be. Raises `HypervisorError` and `KubeError`."""
        complete, doubts, domains = self._complete(), self._doubts, await self._hypervisor.domains()
        self.orphans = orphans = frozenset(one.marks.uid for one in domains if not self._ordered(one.marks.uid))
        domains_of_others = await self._hypervisor.foreign(fresh=fresh, orphans=orphans)
        found = [await self._located(domain) for domain in domains_of_others]
        if self._known is None:
            self._known = await self._listed()
        if self._count not in (None, len(found)):
            self._counted()
        self._count = len(found)
        count = sum(domain.machine is not None for domain in found)
        if complete and self.orphan_count is not None and count < self.orphan_count:
            self._count_orphans(count)
        # With fewer objects than are counted the host would have to be waited for again.
        ahead = (self._told() or 0) > count
        postponed = await self._write(self._known, found, removing=complete and not ahead)
        if complete and doubts == self._doubts:
            self._count_orphans(count)
            return min(postponed or TOLD_SECONDS, TOLD_SECONDS) if ahead else postponed
        return postponed

    def _count_orphans(self, count: int) -> None:
        if self.orphan_count != count:
            self.orphan_count = count
            self._counted()

    async def _located(self, domain: ForeignDomain) -> ForeignDomain:
        disks = [await self._locate(disk) for disk in domain.shape.disks[:DEVICES_MOST]]
        return replace(domain, shape=replace(domain.shape, disks=disks))

    async def _listed(self) -> dict[str, UnmanagedInstanceStatus]:
        pages = self._client.list_pages(UnmanagedInstance.KIND, self._namespace)
        items = [UnmanagedInstance.parse(raw) async for page, _ in pages for raw in page]
        return {item.name: item.status for item in items}

    async def _write(
        self, known: dict[str, UnmanagedInstanceStatus], found: Sequence[ForeignDomain], *, removing: bool
    ) -> float | None:
        writes, now = plan(known, found), asyncio.get_running_loop().time()
        for name in writes.remove if removing else ():
            await self._client.delete(UnmanagedInstance.KIND, name, self._namespace)
            del known[name]
            self._written.pop(name, None)
        for name in writes.create:
            body = {"metadata": {"name": name}, "spec": {}}
            with suppress(AlreadyExists):
                await self._client.create(UnmanagedInstance.KIND, body, self._namespace)
            known[name] = UnmanagedInstanceStatus()
        waits: list[float] = []
        for name, status in (writes.say or {}).items():
            left = self._written.get(name, float("-inf")) + EACH_SECONDS - now
            if left > 0:
                waits.append(left)
                continue
            await self._say(known, name, status)
            self._written[name] = now
        return min(waits, default=None)

    async def _say(self, known: dict[str, UnmanagedInstanceStatus], name: str, status: UnmanagedInstanceStatus) -> None:
        patch = merge_patch(known[name].to_json(), status.to_json())
        try:
            answer = await self._patch(name, patch)
        except NotFound:  # somebody has removed it
            body: dict[str, Any] = {"metadata": {"name": name}, "spec": {}}
            await self._client.create(UnmanagedInstance.KIND, body, self._namespace)
            answer = await self._patch(name, status.to_json())
        known[name] = UnmanagedInstance.parse(answer).status

    async def _patch(self, name: str, status: dict[str, Any]) -> dict[str, Any]:
        return await self._client.patch(
            UnmanagedInstance.KIND, name, {"status": status}, self._namespace, subresource="status"
        )
