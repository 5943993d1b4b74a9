"""The part of the driver `dir` that is about volumes that move from pool to pool."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from kumulus_agents.storage import chain
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir import arrivals, keepers, volumes
from kumulus_agents.storage.dir.exclusion import Exclusion
from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.moving import Arrival, Content, Traits, Use
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import ProgressListener


class ArrivalVerbs(Exclusion):
    """Volumes that go to another pool, or come from one."""

    async def traits(self, uid: str) -> Traits:
        """See `MovableVolumes.traits`."""
        with told_as("look for the volume"):
            return await in_thread(arrivals.traits, self._pool, uid_of(uid))

    async def send_volume(self, uid: str, use: Use) -> None:
        """See `MovableVolumes.send_volume`."""
        async with self._copied(uid_of(uid)):
            await self._present(uid)
            with told_as("copy the volume"), volumes.open_chain(self._pool, uid) as copied, chain.lending(copied):
                await use(replace(copied, lent=True))

    async def arrival(self, uid: str) -> Arrival | None:
        """See `MovableVolumes.arrival`."""
        with told_as("look for the volume"):
            return await in_thread(arrivals.find, self._pool, uid_of(uid))

    async def begin_arrival(
        self,
        uid: str,
        traits: Traits,
        passphrase: Passphrase | None = None,
        *,
        live: bool = False,
        move: str | None = None,
    ) -> Arrival:
        """See `MovableVolumes.begin_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("make room for the volume"):
                work = partial(
                    arrivals.begin, self._pool, self._settings, uid, traits, passphrase, live=live, move=move
                )
                return await in_thread(work)

    async def fill_arrival(
        self,
        uid: str,
        traits: Traits,
        content: Content,
        progress: ProgressListener,
        passphrase: Passphrase | None = None,
    ) -> None:
        """See `MovableVolumes.fill_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("copy the volume"):
                await arrivals.fill(self._pool, self._settings, uid, traits, content, Pace(progress), passphrase)

    async def reserve_arrival(self, uid: str, traits: Traits) -> None:
        """See `MovableVolumes.reserve_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            if traits.thick:
                with told_as("reserve the volume's space"):
                    await in_thread(arrivals.reserve, self._pool, uid, traits)

    async def settle_arrival(self, uid: str, traits: Traits, move: str) -> None:
        """See `MovableVolumes.settle_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("note that the volume has come"):
                await in_thread(arrivals.settle, self._pool, uid, traits, move)

    async def abandon_arrival(self, uid: str) -> None:
        """See `MovableVolumes.abandon_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("remove what has come of the volume"):
                await in_thread(arrivals.abandon, self._pool, uid)
                if self._pool.shared and await self.volume(uid) is None:
                    await in_thread(keepers.remove, self._pool, uid)
