"""Single acts on images of a Ceph pool, each safe to repeat. What is being made has another name until it is whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.cluster import Cluster
from kumulus_agents.storage.rbd.faults import AlreadyThere, Busy, NotThere

RECORD = "kumulus"
"""Metadata key of an image's record."""
OWN = f"{RECORD}."
"""What keys begin with whose records are of that image alone: a clone has the metadata of what it was cloned from."""

_FEATURES = ("--image-feature", "layering,exclusive-lock,object-map,fast-diff,deep-flatten")
"""exclusive-lock: one client writes at a time; the others make clones, sizes and usage quick."""


OUT_SECONDS = 20.0
"""Within which a cluster lets go of clients that it was told to refuse."""
AGAIN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Lock:
    """An exclusive lock of an image, by whom and from where it is held. The owner may be gone."""

    cookie: str
    owner: str
    address: str


@dataclass(frozen=True, slots=True)
class Clients:
    """Whom the cluster knows to have an image open to write."""

    watchers: frozenset[str] = frozenset()
    """Addresses. One that has not been heard of for half a minute is forgotten; its lock stays."""
    locks: tuple[Lock, ...] = ()

    @property
    def addresses(self) -> frozenset[str]:
        """Of all of them."""
        return self.watchers | {lock.address for lock in self.locks}

    def __bool__(self) -> bool:
        return bool(self.watchers or self.locks)


class RbdImages:
    """The images of one pool."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._at = cluster.at

    async def size(self, name: str) -> int | None:
        """Bytes of the disk, None when there is no such image."""
        with suppress(NotThere):
            return int((await self._cluster.ask("info", self._at(name)))["size"])
        return None

    async def usage(self, name: str) -> tuple[int, int] | None:
        """Bytes of the disk and bytes it takes, snapshots included; None when there is no such image."""
        try:
            entries = (await self._cluster.ask("du", self._at(name)))["images"]
        except NotThere:
            return None
        used = sum(int(entry["used_size"]) for entry in entries)
        return next((int(entry["provisioned_size"]), used) for entry in entries if "snapshot" not in entry)

    async def snapshot_usage(self, name: str, snapshot: str) -> tuple[int, int] | None:
        """Bytes of the disk in a snapshot and bytes that it takes; None when there is none."""
        try:
            entries = (await self._cluster.ask("du", self._at(name)))["images"]
        except NotThere:
            return None
        found = (entry for entry in entries if entry.get("snapshot") == snapshot)
        return next(((int(entry["provisioned_size"]), int(entry["used_size"])) for entry in found), None)

    async def record(self, name: str, key: str = RECORD) -> Mapping[str, Any] | None:
        """What was recorded of it; None when there is no such image, or nothing was."""
        return (await self.records(name)).get(key)

    async def records(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        """All that was recorded of it, by key; nothing when there is no such image."""
        try:
            found = await self._cluster.ask("image-meta", "list", self._at(name)) or {}
        except NotThere:
            return {}
        records: dict[str, Mapping[str, Any]] = {}
        for key, text in found.items():
            with suppress(ValueError):
                record = json.loads(text)
                if isinstance(record, dict) and not _inherited(str(key), record, name):
                    records[str(key)] = record
        return records

    async def keep_record(self, name: str, record: Mapping[str, object], key: str = RECORD) -> None:
        """Record it."""
        record = {**record, "of": names.settled(name)} if key.startswith(OWN) else record
        await self._cluster.do("image-meta", "set", self._at(name), key, json.dumps(record, sort_keys=True))

    async def drop_record(self, name: str, key: str) -> None:
        """Forget what was recorded; nothing was: nothing."""
        with suppress(NotThere):
            await self._cluster.do("image-meta", "remove", self._at(name), key)

    async def create(self, name: str, size: int, *, thick: bool = False) -> None:
        """A blank image, in place of what an attempt that was cut short left under that name."""
        reserve = ("--thick-provision",) if thick else ()
        await self._afresh(
            name,
            lambda: self._cluster.do(
                *("create", "--no-progress", "--size", f"{size}B", *_FEATURES, *reserve, self._at(name)),
                long=thick,
            ),
        )

    async def clone(self, image: str, snapshot: str, name: str, size: int) -> None:
        """An image of `size` bytes that stands on a snapshot of another one: that cannot go any more then.

        Raises `NotThere` when there is no such snapshot.
        """
        parent = self._at(image, snapshot)

        async def clone() -> None:
            await self._cluster.do("clone", *_FEATURES, parent, self._at(name))

        try:
            await self._afresh(name, clone)
        except StorageError as error:
            if error.reason != "PoolFailed":
                raise
            # It is not protected: nobody stands on it yet, or the removal of its image was cut short.
            await self.protect(image, snapshot)
            await self._afresh(name, clone)
        if await self.size(name) != size:
            await self.resize(name, size)

    async def resize(self, name: str, size: int) -> None:
        """Make it larger; it is not made smaller."""
        await self._cluster.do("resize", "--no-progress", "--size", f"{size}B", self._at(name))

    async def settle(self, name: str) -> None:
        """What was made under the other name is whole. One of that name that is there already stays."""
        try:
            await self._cluster.do("rename", self._at(names.making(name)), self._at(name))
        except AlreadyThere:
            await self.drop(names.making(name))

    async def changes(self, name: str, since: str | None, until: str | None) -> list[tuple[int, int]]:
        """Offset and length of what differs between two snapshots; None: its beginning, or now."""
        began = () if since is None else ("--from-snap", since)
        entries = await self._cluster.ask("diff", *began, self._at(name, until))
        return [(int(entry["offset"]), int(entry["length"])) for entry in entries or ()]

    async def roll_back(self, name: str, snapshot: str) -> None:
        """Give it what the snapshot has, and its size."""
        await self._cluster.do("snap", "rollback", "--no-progress", self._at(name, snapshot), long=True)

    async def keep_base(self, name: str) -> None:
        """Let others stand on what it has now: for that it cannot be removed."""
        await self._cluster.do("snap", "create", "--no-progress", self._at(name, names.BASE))
        await self.protect(name, names.BASE)

    async def protect(self, name: str, snapshot: str) -> None:
        """Let others stand on the snapshot. They may already: nothing. Raises `NotThere`."""
        with suppress(Busy):
            await self._cluster.do("snap", "protect", self._at(name, snapshot))

    async def unprotect(self, name: str, snapshot: str) -> None:
        """Let nobody stand on the snapshot any more, which is protected. Raises `Busy` when something does."""
        await self._cluster.do("snap", "unprotect", self._at(name, snapshot))

    async def users(self, name: str, snapshot: str) -> list[str]:
        """Names of what stands on the snapshot. What waits in the trash is cleared away first."""
        at = self._at(name, snapshot)
        try:
            children = await self._cluster.ask("children", "--all", at)
            if any(child.get("trash") for child in children):
                await self.sweep()
                children = await self._cluster.ask("children", "--all", at)
        except NotThere:
            return []
        return sorted(str(child["image"]) for child in children)

    async def in_use(self, name: str) -> bool:
        """Whether anybody has it open to write. One that is not there is not in use."""
        with suppress(NotThere):
            return bool((await self._cluster.ask("status", self._at(name)))["watchers"])
        return False

    async def clients(self, name: str) -> Clients:
        """Who has it open to write, or holds its lock. One that is not there: nobody."""
        try:
            watchers = (await self._cluster.ask("status", self._at(name)))["watchers"]
            locks = await self._cluster.ask("lock", "ls", self._at(name)) or ()
        except NotThere:
            return Clients()
        return Clients(
            frozenset(str(one["address"]) for one in watchers),
            tuple(Lock(str(one["id"]), str(one["locker"]), str(one["address"])) for one in locks),
        )

    async def shut_out(self, name: str) -> frozenset[str]:
        """Have the cluster refuse everybody who has it open to write or holds its lock, for good; their addresses. When it returns the
        cluster has let go of them, so what they still send is refused. May be repeated. Raises `Busy` when they do not end."""
        out: set[str] = set()
        deadline = asyncio.get_running_loop().time() + OUT_SECONDS
        while found := await self.clients(name):
            if asyncio.get_running_loop().time() > deadline:
                raise Busy
            for address in sorted(found.addresses - out):
                await self._cluster.shut_out(address)
                out.add(address)
            for lock in found.locks:
                with suppress(NotThere):
                    await self._cluster.do("lock", "rm", self._at(name), lock.cookie, lock.owner)
            await asyncio.sleep(AGAIN_SECONDS)
        return frozenset(out)

    async def freeze(self, name: str, snapshot: str, *, soon: bool = False) -> None:
        """Keep what it has now as a snapshot of that name, in place of an older one, but not of one that has a record.
        `soon`: within the time for questions; a guest is halted for it."""
        command = ("snap", "create", "--no-progress", self._at(name, snapshot))
        try:
            await self._cluster.do(*command, soon=soon)
        except AlreadyThere:
            if await self.record(name, key=snapshot) is not None:
                return
            await self.thaw(name, snapshot)
            await self._cluster.do(*command, soon=soon)

    async def thaw(self, name: str, snapshot: str) -> None:
        """Remove the snapshot; gone already: nothing. Raises `Busy` when something stands on it."""
        command = ("snap", "rm", "--no-progress", self._at(name, snapshot))
        with suppress(NotThere):
            try:
                await self._cluster.do(*command)
            except Busy:
                if await self.users(name, snapshot):
                    raise
                await self.unprotect(name, snapshot)
                await self._cluster.do(*command)

    async def snapshots(self, name: str) -> Mapping[str, bool]:
        """Names of its snapshots, in the order in which they were made, and whether they are protected. Raises `NotThere`."""
        listed = sorted(await self._cluster.ask("snap", "ls", self._at(name)), key=lambda entry: int(entry["id"]))
        return {str(entry["name"]): str(entry.get("protected")) == "true" for entry in listed}

    async def listed(self) -> list[str]:
        """Names of all images in the pool."""
        return [str(name) for name in await self._cluster.ask("ls", self._cluster.pool)]

    async def retire(self, name: str) -> None:
        """Take the base away from it, and then its name: it is being made again, or removed. Gone: nothing.

        Raises `Busy` when somebody stands on it; it is as it was then.
        """
        with suppress(NotThere):
            await self._unprotect(name)
            await self._cluster.do("rename", self._at(name), self._at(names.making(name)))

    async def drop(self, name: str) -> None:
        """Remove it and its snapshots; its blocks go with it. Gone: nothing. Raises `Busy` when it is in use.

        It loses its name first: no image is ever found that is half gone. The cluster itself would take it away
        from an emulator, too.
        """
        if await self.in_use(name):
            raise Busy
        with suppress(NotThere):
            await self._unprotect(name)
            await self._cluster.do("trash", "mv", self._at(name))
        await self.sweep()

    async def sweep(self) -> None:
        """Give back the room of what was removed. What cannot be now is the next time."""
        for entry in await self._cluster.ask("trash", "ls", self._cluster.pool):
            if names.is_ours(str(entry["name"])):
                with suppress(NotThere, Busy):
                    at = f"{self._cluster.pool}/{entry['id']}"
                    await self._cluster.do(
                        "snap", "purge", "--no-progress", "--image-id", str(entry["id"]), "--pool", self._cluster.pool
                    )
                    await self._cluster.do("trash", "rm", "--no-progress", at, long=True)

    async def _unprotect(self, name: str) -> None:
        for snapshot, protected in (await self.snapshots(name)).items():
            if protected:
                await self.unprotect(name, snapshot)

    async def _afresh(self, name: str, make: Callable[[], Awaitable[None]]) -> None:
        try:
            await make()
        except AlreadyThere:
            if await self.in_use(name):
                raise StorageError("Another host is making it. It is looked at again.", reason="Busy") from None
            with suppress(NotThere):
                await self._unprotect(name)
                await self._cluster.do("snap", "purge", "--no-progress", self._at(name))
            with suppress(NotThere):
                await self._cluster.do("rm", "--no-progress", self._at(name), long=True)
            await make()


def _inherited(key: str, record: Mapping[str, Any], name: str) -> bool:
    """Whether it is of what the image was cloned from."""
    return key.startswith(OWN) and record.get("of") != names.settled(name)
