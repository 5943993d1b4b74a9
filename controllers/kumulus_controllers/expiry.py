"""Objects that delete themselves a while after they have ended: consoles, restores, migrations."""

from __future__ import annotations

from kumulus.api.base import Resource
from kumulus.runtime.clock import parse_time
from kumulus.runtime.reconciler import Services
from kumulus.runtime.result import Done, Requeue, Result


async def expire(services: Services, item: Resource, ended: str | None, ttl: int | None) -> Result:
    """Delete an object that ended then (RFC 3339; None: just now), when so many seconds have passed; None: never. May be
    repeated: who is gone already stays gone. Raises `KubeError`."""
    if ttl is None:
        return Done()
    now = services.clock.now()
    left = ttl - (now - (parse_time(ended) if ended is not None else now)).total_seconds()
    if left > 0:
        return Requeue(left + 0.1)
    await services.client.delete(item.KIND, item.name, item.namespace, uid=item.uid)
    return Done()
