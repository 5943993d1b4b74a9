"""The keeper of a volume in a shared pool: which host is to be it, and what a hand-over to it waits for. Pure."""

from __future__ import annotations

from kumulus.api.base import FORCE_DETACH
from kumulus.api.host import WorkOrder, WorkOrderSpec
from kumulus.api.storage import Attachment
from kumulus_controllers.orders import host_of, moved
from kumulus_controllers.storage.volume_plan import Lack, Scope

HANDING_OVER = "HandingOver"
"""Reason of a volume that one host gives up and another one takes."""


def home(scope: Scope, attached: Attachment | None) -> str | None:
    """The host whose agent is to see to a volume in a pool that hosts share: that of its machine, else the one that
    does. None when that one is gone, or about to go: any other will do."""
    for vm in scope.users:
        if attached is not None and vm.uid == attached.uid and vm.status.host in scope.reaching:
            return vm.status.host
    return None if scope.host is None or scope.host.deleting else scope.volume.status.host


def kept_back(scope: Scope, host: str, *, heard: bool = True, lost: bool = False) -> Lack | None:
    """Why the volume cannot be handed to `host` yet, whatever the agent that has it does: somebody works with it.
    `heard`: that agent answers. One that does not may be given up in the middle of a move, and nowhere else.
    `lost`: its host is fenced."""
    elsewhere = sorted(
        {order.spec.for_.name for order in scope.instances if host_of(order) != host and not moved(order)}
    )
    if elsewhere:
        return Lack("VolumeInUse", f"Machine {', '.join(elsewhere)} has it on another host.", stalled=False)
    if _reverting(scope.order):
        return Lack(
            "Restoring", "It is being given the content of a snapshot: it moves when that is done.", stalled=False
        )
    if scope.copied is not None:
        return Lack("VolumeInUse", f"It is being copied to {scope.copied}: it moves when that is done.", stalled=False)
    forced = scope.volume.metadata.annotations.get(FORCE_DETACH) == "true" and not heard
    if scope.volume.status.moving_to is not None and not (forced or lost):
        return Lack(
            "VolumeMoves",
            f"Host {scope.volume.status.host} moves it to StoragePool {scope.volume.status.moving_to}: it goes to host {host}"
            " when that is done.",
            stalled=False,
        )
    return None


def _reverting(order: WorkOrder | None) -> bool:
    """Whether the host that has it is to revert it, and has not done so yet."""
    wanted = order.spec.disk.volume if order is not None and order.spec.disk is not None else None
    if order is None or order.deleting or wanted is None or wanted.revert is None:
        return False
    return order.status.disk is None or order.status.disk.reverted != wanted.revert.request


def handing_over(scope: Scope, order: WorkOrder, host: str, *, heard: bool) -> Lack:
    """What is said while the agent that has the volume lets go of it. Silence is no proof that a host is dead."""
    before = host_of(order)
    if heard:
        why = f" {before}: {order.status.message}" if order.deleting and order.status.message else ""
        return Lack(HANDING_OVER, f"Host {before} gives it up, then host {host} takes it.{why}", stalled=False)
    return Lack(
        HANDING_OVER,
        f"Host {before}, which has it, does not answer, and may still write to it. It goes to host {host} when {before}"
        f" answers. If {before} is off for good: kubectl annotate volume {scope.volume.name} {FORCE_DETACH}=true",
    )


def snapshots_left(scope: Scope, before: str, host: str, *, heard: bool) -> Lack:
    """What is said while the agent that had the volume has still orders for snapshots of it."""
    if heard:
        return Lack(HANDING_OVER, f"Host {before} gives its snapshots up, then host {host} takes it.", stalled=False)
    return Lack(
        HANDING_OVER,
        f"Host {before}, which keeps its snapshots, does not answer. It goes to host {host} when {before} answers."
        f" If {before} is off for good: kubectl annotate volume {scope.volume.name} {FORCE_DETACH}=true",
    )


def retaining(order: WorkOrderSpec, retain: bool, term: int) -> WorkOrderSpec:
    """The order in such a way that its end leaves the data where it is, or does not."""
    assert order.disk is not None and order.disk.volume is not None
    if order.disk.volume.retain == retain:
        return order
    after = order.disk.volume.model_copy(update={"retain": retain})
    return order.model_copy(
        update={"disk": order.disk.model_copy(update={"volume": after}), "term": max(term, order.term)}
    )
