"""The preflight's view of a machine that nobody has asked to move yet: what a migration would read if it were made just now. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.base import ObjectMeta
from kumulus.api.host import HostReport
from kumulus.api.migration import VirtualMachineMigration, VirtualMachineMigrationSpec
from kumulus_controllers.compute import migration_scope
from kumulus_controllers.compute.scope import Scope

LAST = "9999-12-31T23:59:59Z"
"""When it was made: after all others, which come first."""


def asked(
    seen: Scope, report: HostReport | None, others: Iterable[VirtualMachineMigration] = ()
) -> migration_scope.Scope:
    """`report` is that of the machine's host, `others` are migrations that are in the way."""
    vm = seen.vm
    return migration_scope.Scope(
        migration=VirtualMachineMigration(
            metadata=ObjectMeta(name=vm.name, namespace=vm.namespace, creation_timestamp=LAST),
            spec=VirtualMachineMigrationSpec(vm=vm.name),
        ),
        vm=vm,
        now=0.0,
        source=seen.order,
        source_report=report,
        volumes=seen.volumes,
        links=seen.links,
        restoring=seen.restore.name if seen.restore is not None else None,
        others=tuple(others),
    )
