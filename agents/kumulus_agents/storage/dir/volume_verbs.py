"""The part of the driver `dir` that is about volumes: how they are made, grown, adopted and removed."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from functools import partial

from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.adoption import Unclaimed, Unowned
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir import adopted, keepers, snapshots, unowned, volumes
from kumulus_agents.storage.dir.exclusion import Exclusion
from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.dir.volumes import Source
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import ProgressListener, Resize, StorageError, StoredVolume
from kumulus_agents.storage.sizes import check_grown, grown


class VolumeVerbs(Exclusion):
    """Volumes."""

    async def claim_volume(self, uid: str, host: str, epoch: int) -> None:
        """See `StorageDriver.claim_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("mark the volume"):
                await in_thread(keepers.claim, self._pool, uid, host, epoch)

    async def open_volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.open_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            if await self.volume(uid) is not None:
                with told_as("put the volume in order"):
                    await in_thread(adopted.settle, self._pool, uid)
                    await volumes.mend(self._pool, self._settings, uid)
            return await self.volume(uid)

    async def ensure_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        progress: ProgressListener | None = None,
    ) -> StoredVolume:
        """See `StorageDriver.ensure_volume`. A thick volume is a copy of its image, not an overlay."""
        return await self._ensure_volume(uid, size, origin, thick, progress, None)

    async def ensure_encrypted_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        passphrase: Passphrase,
        progress: ProgressListener | None = None,
        *,
        origin_passphrase: Passphrase | None = None,
    ) -> StoredVolume:
        """See `EncryptedVolumes.ensure_encrypted_volume`. The image it stands on is as it was."""
        return await self._ensure_volume(uid, size, origin, thick, progress, passphrase, origin_passphrase)

    async def _ensure_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        progress: ProgressListener | None,
        passphrase: Passphrase | None,
        origin_passphrase: Passphrase | None = None,
    ) -> StoredVolume:
        image = uid_of(origin.image.uid) if origin is not None and origin.image is not None else None
        source = _copied(origin)
        async with self._lock(f"volume {uid_of(uid)}"):
            if (found := await self.volume(uid)) is not None:
                await self._take_back(uid)
                return found
            pace = Pace(progress)
            with told_as("make the volume"):
                if image is not None:
                    async with self._made_of(image):
                        await self._make_on_image(uid, image, size, thick, pace, passphrase)
                elif source is not None and origin is not None and origin.linked:
                    if passphrase != origin_passphrase:
                        raise _linked_otherwise()
                    await self._make_linked(uid, source, size, thick, pace, passphrase)
                elif source is not None:
                    await self._make_copy(uid, source, size, thick, pace, passphrase, origin_passphrase)
                else:
                    plan = volumes.plan_blank(size, thick)
                    await volumes.make(self._pool, self._settings, uid, plan, None, pace, passphrase)
            return await self._present(uid)

    async def grow_volume(self, uid: str, size: int, live: Resize | None = None) -> StoredVolume:
        """See `StorageDriver.grow_volume`. An emulator grows a qcow2 file all by itself."""
        return await self._grow_volume(uid, size, live, None)

    async def grow_encrypted_volume(
        self, uid: str, size: int, passphrase: Passphrase, live: Resize | None = None
    ) -> StoredVolume:
        """See `EncryptedVolumes.grow_encrypted_volume`."""
        return await self._grow_volume(uid, size, live, passphrase)

    async def _grow_volume(
        self, uid: str, size: int, live: Resize | None, passphrase: Passphrase | None
    ) -> StoredVolume:
        async with self._lock(f"volume {uid_of(uid)}"):
            volume = await self._present(uid)
            if (wanted := grown(volume.virtual_size, size)) is None:
                await self._take_back(uid)
                return volume
            self._refuse_copied(uid)
            with told_as("look for the volume"):
                await in_thread(snapshots.refuse_begun, self._pool, uid)
            if live is not None:
                await live(wanted)
            else:
                with told_as("grow the volume"):
                    await volumes.grow(self._pool, self._settings, uid, wanted, passphrase)
            volume = await self._present(uid)
        check_grown(volume.virtual_size, wanted)
        return volume

    async def remove_volume(self, uid: str) -> None:
        """See `StorageDriver.remove_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            self._refuse_copied(uid)
            with told_as("remove the volume"):
                await in_thread(volumes.remove, self._pool, uid)
                if self._pool.shared:
                    await in_thread(keepers.remove, self._pool, uid)

    async def unowned(self, owned: Collection[str]) -> Unclaimed:
        """See `Adopting.unowned`."""
        with told_as("look for files that nobody owns"):
            return await in_thread(unowned.summary, self._pool, owned)

    async def adopt_volume(
        self,
        uid: str,
        id: str,
        owned: Collection[str],
        namespace: str | None,
        *,
        foreign: bool,
        passphrase: Passphrase | None = None,
        beside: bool = False,
    ) -> StoredVolume:
        """See `Adopting.adopt_volume`."""
        async with self._lock("adoption"), self._lock(f"volume {uid_of(uid)}"):
            if (found := await self.volume(uid)) is not None:
                return found
            with told_as("adopt the data"):
                adopt = partial(adopted.adopt, foreign=foreign, passphrase=passphrase, beside=beside)
                await adopt(self._pool, self._settings, uid, uid_of(id), owned, namespace)
            return await self._present(uid)

    async def identify(self, path: str) -> Unowned | None:
        """See `Adopting.identify`."""
        with told_as("look for a file"):
            return await in_thread(unowned.at, self._pool, path)

    async def retain_volume(self, uid: str, namespace: str | None, name: str) -> None:
        """See `Adopting.retain_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("note whose the volume was"):
                await in_thread(adopted.retain, self._pool, uid, namespace, name)

    async def _take_back(self, uid: str) -> None:
        """An agent that died may have lent the volume's file to the cage. Under the volume's lock."""
        if not self._copying[uid]:
            with told_as("look for the volume"):
                await in_thread(volumes.take_back, self._pool, uid)

    async def _make_on_image(
        self, uid: str, image: str, size: int | None, thick: bool, pace: Pace, passphrase: Passphrase | None
    ) -> None:
        plan = await in_thread(volumes.plan_on_image, self._pool, image, size, thick)
        with ExitStack() as stack:
            copied = stack.enter_context(volumes.open_image(self._pool, image)) if plan.copied else None
            await volumes.make(self._pool, self._settings, uid, plan, copied, pace, passphrase)

    async def _make_copy(
        self,
        uid: str,
        source: Source,
        size: int | None,
        thick: bool,
        pace: Pace,
        passphrase: Passphrase | None,
        origin_passphrase: Passphrase | None,
    ) -> None:
        """What is encrypted is copied to what is encrypted, with whatever passphrase, and never to what is not."""
        async with self._copied(source.volume) as found:
            if found is not None and found.encrypted and passphrase is None:
                raise volumes.in_clear("copy of it would not be. Have a class that encrypts make the copy.")
            if found is not None and found.encrypted != (origin_passphrase is not None):
                raise volumes.mismatch()
            plan, layer = await in_thread(volumes.plan_copy, self._pool, source, size, thick)
            if origin_passphrase is not None:  # before anything is made
                await volumes.unlock(self._pool, self._settings, source.volume, origin_passphrase, layer)
            with volumes.open_chain(self._pool, source.volume, layer, passphrase=origin_passphrase) as copied:
                await volumes.make(self._pool, self._settings, uid, plan, copied, pace, passphrase)

    async def _make_linked(
        self, uid: str, source: Source, size: int | None, thick: bool, pace: Pace, passphrase: Passphrase | None
    ) -> None:
        """The snapshot stays meanwhile: who removes it, or merges its layer, takes the lock of its volume."""
        async with self._lock(f"volume {source.volume}"):
            link = partial(volumes.plan_link, encrypted=passphrase is not None)
            plan = await in_thread(link, self._pool, source, size, thick)
            if passphrase is not None and plan.linked_to is not None:
                await volumes.unlock(self._pool, self._settings, source.volume, passphrase, plan.linked_to[1])
            await volumes.make(self._pool, self._settings, uid, plan, None, pace, passphrase)


def _copied(origin: VolumeOrigin | None) -> Source | None:
    """What a volume is copied from. Raises `StorageError` for what is no uid."""
    if origin is not None and origin.snapshot is not None:
        return Source(uid_of(origin.snapshot.volume), uid_of(origin.snapshot.snapshot))
    if origin is not None and origin.volume is not None:
        return Source(uid_of(origin.volume))
    return None


def _linked_otherwise() -> StorageError:
    return StorageError(
        "A volume that is linked to a snapshot is encrypted with the same passphrase as that, or not at all. Copy the"
        " snapshot in full.",
        reason="LinkedPassphrase",
        retryable=False,
    )
