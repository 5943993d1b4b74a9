"""Heartbeats of hosts in a pool that hosts share: `hosts/<digest of the host's name>.json`. Blocks."""

from __future__ import annotations

import hashlib

from kumulus_agents.storage.dir.pool import PoolDirectory
from kumulus_agents.storage.pulse import BEAT_MAX
from kumulus_agents.storage.record import read_record, write_record


def write(pool: PoolDirectory, host: str, beat: str) -> None:
    """Replace the host's last beat. Raises `OSError`."""
    with pool.hosts(make=True) as hosts:
        write_record(hosts, _file(host), {"host": host, "beat": beat[:BEAT_MAX]}, flush=False)


def read(pool: PoolDirectory, host: str) -> str | None:
    """The host's last beat; None when there is none that can be read. Raises `OSError`."""
    try:
        with pool.hosts(make=False) as hosts:
            record = read_record(hosts, _file(host))
    except FileNotFoundError:
        return None
    if record is None or record.get("host") != host:
        return None
    beat = record.get("beat")
    return beat[:BEAT_MAX] if isinstance(beat, str) else None


def _file(host: str) -> str:
    return f"{hashlib.sha256(host.encode()).hexdigest()[:32]}.json"
