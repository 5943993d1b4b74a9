"""The orders of the two hosts between which a machine moves, at each step (docs/adr/0029). Pure."""

from __future__ import annotations

from kumulus.api.compute import PowerState
from kumulus.api.host import MigrationEndpoint, WorkOrderSpec
from kumulus.api.instance_order import Incoming, Outgoing
from kumulus.api.migration import VirtualMachineMigration
from kumulus_controllers.compute import migration_disks
from kumulus_controllers.compute.migration_stall import throttles


def target_order(source: WorkOrderSpec, migration: VirtualMachineMigration, term: int) -> WorkOrderSpec:
    """The order by which the target gets everything ready: the source's, of the placement to come. It says `Stopped`, so that
    an agent which does not know of `incoming` starts nothing either."""
    assert source.instance is not None and migration.status.epoch is not None
    incoming = Incoming(
        migration=migration.uid, host=migration.status.source_host or "", disks=migration_disks.coming(migration)
    )
    instance = source.instance.model_copy(
        update={
            "epoch": migration.status.epoch,
            "incoming": incoming,
            "outgoing": None,
            "power": PowerState.STOPPED,
            "adopt": False,  # that was for the placement at which it was taken in
        }
    )
    return source.model_copy(update={"instance": instance, "term": max(term, source.term)})


def sending(
    source: WorkOrderSpec, migration: VirtualMachineMigration, endpoint: MigrationEndpoint, term: int
) -> WorkOrderSpec:
    """The source's order, by which it sends the guest."""
    assert source.instance is not None
    limits = migration.spec.limits
    outgoing = Outgoing(
        migration=migration.uid,
        host=migration.status.target_host or "",
        address=endpoint.address,
        port=endpoint.port,
        bandwidth=limits.bandwidth,
        max_downtime_ms=limits.max_downtime_ms,
        converge=throttles(migration.spec),
        disks=tuple(disk.name for disk in migration.status.disks),
    )
    return _changed(source, term, outgoing=outgoing)


def withdrawn(source: WorkOrderSpec, term: int) -> WorkOrderSpec:
    """The source's order, by which it sends no guest."""
    return _changed(source, term, outgoing=None)


def settled(target: WorkOrderSpec, term: int) -> WorkOrderSpec:
    """The target's order as one like any other."""
    return _changed(target, term, incoming=None, power=PowerState.RUNNING)


def _changed(order: WorkOrderSpec, term: int, **update: object) -> WorkOrderSpec:
    assert order.instance is not None
    instance = order.instance.model_copy(update=update)
    return order.model_copy(update={"instance": instance, "term": max(term, order.term)})
