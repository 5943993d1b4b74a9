"""Something that is to be deleted, and that an annotation keeps Kumulus from looking after: its status says why it stays."""

from __future__ import annotations

from typing import Any

from kumulus.kube.store import Store
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import derive
from kumulus.runtime.reconciler import Services
from kumulus_controllers.network.lack import facts, left_alone
from kumulus_controllers.status import write_report

_SAID = frozenset({"Ready", "Stalled", "Reconciling"})


async def say_so(services: Services, store: Store[Any], item: Any) -> None:
    """Have the status of `item`, which is paused, say so if it is to be deleted: that it goes when the annotation does. Nothing
    else of the status changes; without need there is no write. Raises `errors.Conflict`."""
    if not item.deleting:
        return
    generation, now = item.metadata.generation, rfc3339(services.clock.now())
    lack = left_alone(item.KIND.kind.lower(), item.name)
    said = derive(item.status.conditions, facts(lack, "Ready"), generation=generation, now=now)
    others = tuple(one for one in item.status.conditions if one.type not in _SAID)
    update = {"observed_generation": generation, "conditions": (*said, *others)}
    await write_report(services.client, store, item, item.status.model_copy(update=update))
