"""Single acts on the logical volumes of a thin pool, each safe to repeat after a crash at any line.

What bears the mark of what is whole (`tags`) is never touched by the making of another one; what does not is removed
and made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kumulus_agents.storage.lvm import commands, faults, names
from kumulus_agents.storage.lvm.faults import Busy
from kumulus_agents.storage.lvm.group import VolumeGroup
from kumulus_agents.storage.lvm.report import Logical
from kumulus_agents.storage.lvm.tags import Tag, tag
from kumulus_agents.storage.protocol import StorageError

Listener = Callable[[bytes], None]


class ThinVolumes:
    """The logical volumes of one pool. Who calls has the lock of what it calls for."""

    def __init__(self, group: VolumeGroup) -> None:
        self._group = group

    async def begin(self, name: str, size: int) -> None:
        """A blank one of whole extents that is not whole, in place of what was begun."""
        await self._afresh(name)
        await self._group.do(commands.create(self._group.name, self._group.thin_pool, name, size, ()))

    async def blank(self, name: str, size: int, disk: int) -> None:
        """A blank one for a disk of so many bytes, whole at once."""
        await self._afresh(name)
        tags = (tag(Tag.WHOLE), tag(Tag.SIZE, disk))
        await self._group.do(commands.create(self._group.name, self._group.thin_pool, name, size, tags))

    async def stand_on(self, origin: Logical, name: str, size: int, tags: Sequence[str]) -> None:
        """One of `size` bytes that begins as the origin is, and shares its blocks; whole with these tags."""
        await self._afresh(name)
        whole = (tag(Tag.WHOLE), *tags)
        if size == origin.size:
            await self._group.do(commands.snapshot(self._group.name, origin.name, name, whole))
            return
        await self._group.do(commands.snapshot(self._group.name, origin.name, name, ()))
        await self._group.do(commands.extend(self._group.name, name, size))
        await self._group.do(commands.mark(self._group.name, name, whole))

    async def fill(
        self, name: str, origin: Logical, via: str, disk: int, progress: Listener, *, thick: bool = False
    ) -> None:
        """Make what was begun a full copy of the origin as it is now, and whole: a disk of `disk` bytes.

        It is read from a snapshot named `via`, so that whoever writes to the origin changes nothing of the copy.
        """
        if thick:
            await self._group.reserve(name)
        await self._afresh(via)
        await self._group.do(commands.snapshot(self._group.name, origin.name, via, ()))
        try:
            await self._group.copy(via, name, progress)
        finally:
            await self.drop(via)
        await self._group.do(commands.mark(self._group.name, name, (tag(Tag.WHOLE), tag(Tag.SIZE, disk))))

    async def fill_with_zeros(self, name: str, disk: int) -> None:
        """Make what was begun take all of its space, and whole."""
        await self._group.reserve(name)
        await self._group.do(commands.mark(self._group.name, name, (tag(Tag.WHOLE), tag(Tag.SIZE, disk))))

    async def take_in(self, name: str, fd: int, size: int, record: Mapping[Tag, str | int], progress: Listener) -> None:
        """Make the open raw file of `size` bytes a logical volume that nobody writes to, with this record."""
        await self.begin(name, (await self._group.listing()).extents(size))
        await self._group.copy("", name, progress, fd=fd)
        made = (await self._group.listing()).get(name)
        await self._group.do(commands.seal(self._group.name, name))
        tags = [tag(key, value) for key, value in record.items()]
        used = made.mapped if made is not None else 0
        marks = (tag(Tag.WHOLE), tag(Tag.SIZE, size), tag(Tag.USED, used), *tags)
        await self._group.do(commands.mark(self._group.name, name, marks))

    async def grow(self, found: Logical, size: int) -> None:
        """Make it so large; so large already: nothing."""
        if found.size < size:
            await self._group.do(commands.extend(self._group.name, found.name, size))

    async def remember(self, found: Logical, key: Tag, value: str | int) -> None:
        """Change what is recorded of it."""
        wanted = tag(key, value)
        old = tuple(one for one in found.record.tags(key) if one != wanted)
        await self._group.do(commands.mark(self._group.name, found.name, (wanted,), old))

    async def freeze(self, found: Logical, name: str) -> None:
        """Keep what it has now as a snapshot of that name, in place of one that was begun."""
        await self._afresh(name)
        tags = (tag(Tag.SIZE, found.disk_size), tag(Tag.USED, found.used))
        await self._group.do(commands.snapshot(self._group.name, found.name, name, tags, kept=True))

    async def mark(self, name: str, tags: Sequence[str]) -> None:
        """Record it, all at once."""
        await self._group.do(commands.mark(self._group.name, name, tags))

    async def revert(self, volume: str, now: Logical, to: Logical, request: str) -> None:
        """Have the volume of that uid be what the snapshot is, in its present size. That is so with one change."""
        name = names.volume(volume, request)
        await self._afresh(name)
        await self._group.do(commands.snapshot(self._group.name, to.name, name, ()))
        if to.size < now.size:
            await self._group.do(commands.extend(self._group.name, name, now.size))
        marks = (
            *(tag(Tag.WHOLE), tag(Tag.SIZE, now.disk_size), tag(Tag.REPLACES, now.name), tag(Tag.REVERTED, request)),
            *now.record.tags(Tag.KEEPER),
        )
        await self._group.do(commands.mark(self._group.name, name, marks))

    async def clear(self, volume: str) -> None:
        """Remove what was the volume of that uid before it was reverted, or was to become it."""
        listing = await self._group.listing()
        now = listing.volume(volume)
        for one in listing.of_volume(volume):
            if now is not None and one.name != now.name:
                await self.drop(one.name)

    async def wake(self, found: Logical) -> None:
        """Have a device of it."""
        if not found.active:
            await self._group.do(commands.activate(self._group.name, found.name))

    async def drop(self, name: str) -> None:
        """Remove it. Gone: nothing. Raises `Busy` when somebody has it open."""
        try:
            await self._group.do(commands.remove(self._group.name, name))
        except Busy:
            raise
        except StorageError:
            if (await self._group.listing()).get(name) is not None:
                raise

    async def _afresh(self, name: str) -> None:
        """Nothing of that name is there, and the pool is fit to make something in it."""
        listing = await self._group.listing()
        found = listing.get(name)
        faults.room(self._group.usable(listing), 0, self._group.pool)
        if found is not None:
            if found.record.whole:
                raise StorageError("It is there already. It is looked at again.", reason="Busy")
            await self.drop(name)
