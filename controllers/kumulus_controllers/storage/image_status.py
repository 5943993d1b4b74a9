"""The status of an image, derived from what the hosts say of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.image import ImageCache, ImagePhase, ImageStatus
from kumulus.api.image_order import WAITING_FOR_UPLOAD
from kumulus.api.volumes import Progress
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.orders import host_of
from kumulus_controllers.storage.copies import AnyImage
from kumulus_controllers.storage.logins import LoginProblem
from kumulus_controllers.storage.published import Unready

_PHASES = {
    WorkState.READY: ImagePhase.READY,
    WorkState.FAILED: ImagePhase.FAILED,
    WorkState.REFUSED: ImagePhase.FAILED,
    WorkState.WORKING: ImagePhase.IMPORTING,
    WorkState.WAITING: ImagePhase.IMPORTING,
}

_RANK: Mapping[WorkState | None, int] = {
    state: rank
    for rank, state in enumerate(
        (WorkState.READY, WorkState.WORKING, WorkState.WAITING, WorkState.PENDING, None, WorkState.FAILED)
    )
}
"""Which of several hosts' states is the image's: the one that is furthest, and a failure only when nothing else is left."""

_KNOWN = ("sha256", "digest", "made_of", "format", "virtual_size", "size", "progress")
"""Of a status: what the first import found."""

LISTED = 256
"""Pools that a status lists at most; the API takes 1,024, and there may be more hosts than that."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    image: AnyImage
    orders: tuple[WorkOrder, ...]
    refusal: str = ""
    """Why no host can import it."""
    problem: LoginProblem | Unready | None = None
    """Why its registry cannot be logged in to, or it cannot be made of its volume."""


def caches(orders: Iterable[WorkOrder]) -> tuple[ImageCache, ...]:
    """The pools that have the image, or are to have it; one that hosts share once."""
    found: dict[str, ImageCache] = {}
    for order in orders:
        if order.spec.disk is None:
            continue
        pool, host = order.spec.disk.pool, None if order.spec.disk.pool.shared else host_of(order)
        name = pool.name if host is None else f"{pool.name}/{host}"
        state = _PHASES.get(order.status.state, ImagePhase.PENDING) if order.status.state else ImagePhase.PENDING
        told = order.status.disk.copied_from if order.status.disk is not None and host is not None else None
        if name not in found:
            found[name] = ImageCache(name=name, pool=pool.name, host=host, state=str(state), copied_from=told)
    return tuple(sorted(found.values(), key=lambda cache: (cache.host or "", cache.name))[:LISTED])


def derive_status(scope: Scope, now: str) -> ImageStatus:
    """The whole status from what was read. Pure. What was verified once stays known."""
    image, before = scope.image, scope.image.status
    # One and the same order speaks for the image whatever order they come in, else its status would flap.
    orders = sorted(scope.orders, key=lambda order: (_RANK.get(order.status.state, len(_RANK)), host_of(order)))
    ready = [order for order in orders if order.status.state is WorkState.READY and not order.deleting]
    leading = next(iter(ready or orders), None)
    disk = leading.status.disk if leading else None
    if ready or before.phase is ImagePhase.READY:
        phase, fact = (
            ImagePhase.READY,
            Fact("Ready", True, "Verified", "The image was fetched, verified and inspected."),
        )
    elif leading is None:
        phase = ImagePhase.PENDING
        fact = Fact("Ready", False, "NoHostFits", f"No host can import the image: {scope.refusal}")
    else:
        state = leading.status.state
        phase = _PHASES.get(state, ImagePhase.PENDING) if state else ImagePhase.PENDING
        if leading.status.reason == WAITING_FOR_UPLOAD:
            phase = ImagePhase.PENDING
        if phase is ImagePhase.FAILED:
            fact = Fact(
                "Ready", False, leading.status.reason or "Failed", leading.status.message or "The import failed."
            )
        else:
            fact = Fact(
                "Ready",
                False,
                leading.status.reason or "Importing",
                leading.status.message or f"{host_of(leading)} fetches the image.",
            )
    if scope.problem is not None and phase is not ImagePhase.READY:
        phase, fact = ImagePhase.PENDING, Fact("Ready", False, scope.problem.reason, scope.problem.message)
    facts = [fact]
    if image.deleting:
        waiting = next((order for order in scope.orders if order.status.reason == "ImageInUse"), None)
        if waiting is not None:
            facts.append(
                Fact(
                    "Stalled",
                    True,
                    "ImageInUse",
                    f"Disks made from the image are still on {host_of(waiting)}: delete their machines first.",
                )
            )
    elif phase is ImagePhase.FAILED or (scope.problem is not None and phase is not ImagePhase.READY):
        facts.append(Fact("Stalled", True, fact.reason, fact.message))
    elif phase is not ImagePhase.READY:
        facts.append(Fact("Reconciling", True, fact.reason, fact.message))
    facts_known: Mapping[str, object] = {}
    if disk is not None and ready:
        facts_known = {
            "sha256": before.sha256 or disk.sha256,
            "digest": before.digest or disk.digest,
            "made_of": before.made_of or _made_of(leading),
            "format": disk.format,
            "virtual_size": disk.virtual_size,
            "size": disk.size,
            "progress": disk.progress,
        }
    elif before.phase is ImagePhase.READY:
        facts_known = {name: getattr(before, name) for name in _KNOWN}
    elif disk is not None:
        facts_known = {"progress": disk.progress or Progress()}
    contents = [order.status.disk.content for order in ready if order.status.disk and order.status.disk.content]
    content = before.content if before.content in contents or not contents else contents[0]
    generation = image.metadata.generation
    return ImageStatus(
        observed_generation=generation,
        conditions=derive(before.conditions, facts, generation=generation, now=now),
        phase=phase,
        content=content,
        caches=caches(orders),
        **facts_known,
    )


def _made_of(order: WorkOrder | None) -> str | None:
    disk = order.spec.disk if order is not None else None
    return disk.import_image.volume if disk is not None and disk.import_image is not None else None
