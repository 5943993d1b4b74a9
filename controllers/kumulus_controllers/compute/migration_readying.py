"""What the target of a migration waits for beside its order: first-boot data, discs, passphrases of encrypted volumes.

It is given again for as long as the target has not said that all is ready: whoever made the order may have died before.
"""

from __future__ import annotations

from dataclasses import replace

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.runtime.reconciler import Services
from kumulus_controllers import order_secret
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.provisions import Provisions
from kumulus_controllers.orders import host_of
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.storage import passphrase
from kumulus_controllers.storage.volume_plan import Lack


class Readying:
    """Of all migrations."""

    def __init__(self, services: Services, fleet: Fleet, known: Machines) -> None:
        self._services = services
        self._known = known
        self._provisions = Provisions(services, fleet, known)
        self._passed_on: set[str] = set()
        """Uids of orders whose host has all passphrases."""

    def attach(self) -> None:
        """Forget orders that are gone."""
        self._provisions.attach()

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if before is not None and after is None:
                self._passed_on.discard(before.uid)

        self._known.orders.listen(order_changed)

    async def provide(self, vm: VirtualMachine, source: WorkOrder, target: WorkOrder) -> Lack | None:
        """See that the target has what its order names; why it cannot. Raises `KubeError`."""
        problem = await self._provisions.provide(replace(self._known.observe(vm), order=target))
        if problem is not None:
            return Lack(problem.reason, problem.message, stalled=problem.stalled)
        if target.uid not in self._passed_on:
            for name in _secrets(target):
                # It goes with this order until the volume's own order is there, when the machine has moved.
                await passphrase.pass_on(self._services.client, name, host_namespace(host_of(source)), target)
            self._passed_on.add(target.uid)
        return None

    async def take_back(self, order: WorkOrder) -> None:
        """Secrets of an order that ends go first: the garbage collector may take half a minute. Raises `KubeError`."""
        await order_secret.take_back_seed(self._services.client, order)
        for name in _secrets(order):
            await order_secret.take_back(self._services.client, name, order)


def _secrets(order: WorkOrder) -> list[str]:
    """Names of the Secrets with the passphrases of its disks."""
    disks = order.spec.instance.disks if order.spec.instance is not None else ()
    return [disk.secret for disk in disks if disk.secret is not None]
