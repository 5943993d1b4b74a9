"""What one pass over a migration has read, and what the two hosts say in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kumulus.api.compute import VirtualMachine
from kumulus.api.host import HostReport, MigrationEndpoint, WorkOrder
from kumulus.api.instance_order import MigrationFacts, MigrationState
from kumulus.api.migration import (
    VirtualMachineMigration,
)
from kumulus_controllers.compute.scope import Link, Use
from kumulus_controllers.storage.volume_plan import Lack


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    migration: VirtualMachineMigration
    vm: VirtualMachine | None
    now: float
    """Seconds since the epoch."""
    source: WorkOrder | None = None
    """The machine's order on the host that it leaves; before that is on record, on the one where it is."""
    target: WorkOrder | None = None
    """The machine's order on the host that is on record as its target."""
    endpoint: MigrationEndpoint | None = None
    """Where the target takes guests."""
    source_fenced: bool = False
    """Whether the host that it leaves is known to be off: it sends nothing any more, and answers nothing."""
    source_report: HostReport | None = None
    volumes: Mapping[str, Use] = field(default_factory=dict)
    """By name of the disk: the machine's, and those on record as going along, whether or not it names them still."""
    pinned: Mapping[str, Lack] = field(default_factory=dict)
    """Why a volume cannot leave its host, by name of the disk; of those that only its host has."""
    unsettled: frozenset[str] = frozenset()
    """Disks that go along whose volumes are not on record at the target, or which it does not see to yet."""
    kept_on: Mapping[str, str] = field(default_factory=dict)
    """Other hosts that have an order still for a volume that is to go along, and the name of its disk."""
    links: Mapping[str, Link] = field(default_factory=dict)
    """By name of the interface."""
    restoring: str | None = None
    """Name of a restore of the machine that is under way."""
    others: tuple[VirtualMachineMigration, ...] = ()
    """Other migrations of the machine."""

    @property
    def begun(self) -> bool:
        """Whether a target is on record."""
        return self.migration.status.target_host is not None

    @property
    def taken_over(self) -> bool:
        """Whether the machine's placement is the target's."""
        status = self.migration.status
        return self.vm is not None and (self.vm.status.host, self.vm.status.epoch) == (status.target_host, status.epoch)


def given(scope: Scope) -> bool:
    """Whether the source has given the guest away: it says so, or the target that it was told."""
    source, target = facts(scope.source, scope.migration), facts(scope.target, scope.migration)
    return (source is not None and source.state is MigrationState.SENT) or (
        target is not None and target.state is MigrationState.ARRIVED
    )


def facts(order: WorkOrder | None, migration: VirtualMachineMigration) -> MigrationFacts | None:
    """What a host says of this migration."""
    said = order.status.instance.migration if order is not None and order.status.instance is not None else None
    return said if said is not None and said.migration == migration.uid else None
