"""Marks in a pool that hosts share: which host sees to a volume. Blocks."""

from __future__ import annotations

from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.dir.pool import PoolDirectory
from kumulus_agents.storage.keepers import refuse_older
from kumulus_agents.storage.record import read_record, write_record


def claim(pool: PoolDirectory, volume: str, host: str, epoch: int) -> None:
    """Mark the volume as that host's. Raises `StorageError(reason="VolumeElsewhere")` or `OSError`."""
    with pool.keepers() as keepers:
        marked = _marked(keepers, volume)
        refuse_older(marked, host, epoch)
        if marked != (epoch, host):
            write_record(keepers, _file(volume), {"epoch": epoch, "host": host})


def remove(pool: PoolDirectory, volume: str) -> None:
    """Remove the mark. There is none: nothing."""
    with pool.keepers() as keepers:
        keepers.erase(_file(volume))


def _marked(keepers: Directory, volume: str) -> tuple[int, str] | None:
    record = read_record(keepers, _file(volume))
    if record is None:
        return None
    epoch, host = record.get("epoch"), record.get("host")
    return (epoch, host) if isinstance(epoch, int) and isinstance(host, str) else None


def _file(volume: str) -> str:
    return f"{volume}.json"
