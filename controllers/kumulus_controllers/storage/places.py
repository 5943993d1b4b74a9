"""Where a volume is to be made, or is: beside what it is made from, else with its first machine. Reads caches only."""

from __future__ import annotations

import zlib

from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import Attachment, Volume
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.pools import choose
from kumulus_controllers.storage.presence import pool_ref
from kumulus_controllers.storage.volume_keeper import home
from kumulus_controllers.storage.volume_plan import Lack, Place, Scope, Wanted, existing_of
from kumulus_controllers.storage.volumes import Volumes


class Places:
    """Finds places for volumes, in the fleet as it is."""

    def __init__(self, volumes: Volumes, fleet: Fleet) -> None:
        self._volumes = volumes
        self._fleet = fleet

    def find(self, scope: Scope, want: Wanted, attached: Attachment | None) -> Place | Lack | None:
        """Where the volume is; a new one goes where its origin is, else where its first machine is. None: nobody needs it yet."""
        volume = scope.volume
        if volume.status.pool is not None:
            pool = self._volumes.pool(volume)
            if pool is None or volume.status.host is None:
                return Lack("PoolGone", f"StoragePool {volume.status.pool} is gone, and the data with it.")
            return self.shared(scope, pool, attached) if scope.shared else Place(pool, volume.status.host)
        existing = existing_of(volume)
        if existing is not None:
            if scope.asked is None or self._fleet.host(existing.host) is None:
                return Lack("HostNotUsable", f"Host {existing.host} is gone.")
            return Place(pool_ref(scope.asked), existing.host)
        if scope.source is not None and want.origin is not None and want.origin.volume is not None:
            pool = self._volumes.pool(scope.source)
            if pool is None or scope.source.status.host is None:
                return Lack("SourceNotReady", f"Volume {scope.source.name} cannot be reached.")
            return self._beside(volume, pool, scope.source.status.host)
        if scope.snapshot is not None and want.origin is not None and want.origin.snapshot is not None:
            pool = self._volumes.pool(scope.snapshot)
            if pool is None or scope.snapshot.status.host is None:
                return Lack("SnapshotNotReady", f"VolumeSnapshot {scope.snapshot.name} cannot be reached.")
            return self._beside(volume, pool, scope.snapshot.status.host)
        host = next((vm.status.host for vm in scope.users if attached and vm.uid == attached.uid), None)
        view = self._fleet.host(host) if host else None
        if host is None:
            return None
        if view is None:
            return Lack("HostNotUsable", f"Host {host} is gone.", stalled=False)
        kept = self._fleet.kept(volume.uid)
        if kept is not None and kept[0] == host:
            for found in view.pools:
                if found.ref.uid == kept[1]:
                    return Place(found.ref, host, 0 if found.ref.shared else None)
        chosen = choose(view, self._fleet.load(host), 0, (want.demand,), volume.namespace)
        if isinstance(chosen, str):
            return Lack("NoPoolFits", f"Host {host}, where the machine is, is {chosen}.", stalled=False)
        ref = chosen.volumes[volume.uid]
        return Place(ref, host, 0 if ref.shared else None)

    def shared(self, scope: Scope, pool: PoolRef, attached: Attachment | None) -> Place | Lack:
        """Where a volume that was made goes, or stays."""
        status = scope.volume.status
        host = home(scope, attached)
        if status.size is None and scope.order is None and scope.snapshot is not None:
            host = scope.snapshot.status.host or host  # what is read to make it is in order where that is
        if host is None:
            others = [name for name in self._fleet.using(pool.uid) if name != status.host]
            if not others:
                return Lack(
                    "NoHostReaches",
                    f"No other host than {status.host} can use pool {pool.name}, where the data is: have one join.",
                )
            host = others[zlib.crc32(scope.volume.uid.encode()) % len(others)]
        return Place(pool, host, (status.epoch or 0) + (host != status.host))

    def _refused(self, pool_uid: str, host: str, namespace: str | None) -> Lack | None:
        """Why a copy cannot be beside its source, because of the pool that is in."""
        view = self._fleet.host(host)
        for pool in view.pools if view is not None else ():
            if pool.ref.uid == pool_uid and not pool.admits(namespace):
                return Lack("PoolNotAllowed", f"StoragePool {pool.ref.name} may not be used in namespace {namespace}.")
            if pool.ref.uid == pool_uid and pool.usable and not pool.open:
                return Lack(
                    "PoolInMaintenance",
                    f"StoragePool {pool.ref.name}, where its source is, is to be emptied and takes nothing new.",
                    stalled=False,
                )
            if pool.ref.uid == pool_uid and pool.stops_at is not None:
                return Lack(
                    "PoolFull",
                    f"StoragePool {pool.ref.name}, where its source is, is filled to {pool.stops_at}% on host {host} and"
                    " takes nothing new: ask your operator for room.",
                )
        return None

    def _beside(self, volume: Volume, pool: PoolRef, host: str) -> Place | Lack:
        """Where what it is made from is."""
        if volume.spec.pool not in (None, pool.name):
            return Lack(
                "SourceElsewhere",
                f"Its source is in StoragePool {pool.name}, and it shall be in {volume.spec.pool}: leave spec.pool empty.",
            )
        if (refused := self._refused(pool.uid, host, volume.namespace)) is not None:
            return refused
        return Place(pool, host, 0 if pool.shared else None)
