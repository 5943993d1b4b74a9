"""NetworkClass: the offering. Nothing is made of it; its status says whether it counts, and which hosts can make it."""

from __future__ import annotations

from kumulus.api.gateways import GatewayFunction
from kumulus.api.host import HostReport
from kumulus.api.network import NetworkClass, NetworkClassStatus
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result
from kumulus_controllers.network.capable import capable, serving
from kumulus_controllers.network.lack import facts
from kumulus_controllers.network.network_plan import is_default
from kumulus_controllers.status import write_report


class NetworkClassReconciler:
    """Says of a class whether it is ready, and whether it is the default one when it wants to be."""

    name = "networkclass"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._classes = services.caches.store(NetworkClass)
        self._reports = services.caches.store(HostReport)

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, and what hosts can; which one is the default one depends on all."""

        def class_changed(before: NetworkClass | None, after: NetworkClass | None) -> None:
            was, now = (item.spec.default and not item.deleting if item else False for item in (before, after))
            if was != now:
                for key in self._classes.keys():  # noqa: SIM118 - a store, not a dict
                    enqueue(key)
            elif after is not None and (before is None or before.metadata.generation != after.metadata.generation):
                enqueue(Key(None, after.name))

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            was, now = (report.status.network if report else None for report in (before, after))
            if (was and (was.drivers, was.functions, was.message)) != (
                now and (now.drivers, now.functions, now.message)
            ):
                for key in self._classes.keys():  # noqa: SIM118 - a store, not a dict
                    enqueue(key)

        self._classes.listen(class_changed)
        self._reports.listen(report_changed)

    def everything(self) -> list[Key]:
        """All classes."""
        return self._classes.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a class."""
        offered = self._classes.get(key.name)
        if offered is None:
            return Gone()
        if offered.paused or offered.deleting:
            return Done()
        fact, lack = capable(offered.spec.driver, self._reports)
        found = facts(is_default(offered, self._classes) or lack, "Ready", "Networks can be made of it.")
        gateways = [serving(offered.spec.driver, function, self._reports) for function in GatewayFunction]
        found += [one for one in (fact, *gateways) if one is not None]
        generation = offered.metadata.generation
        now = rfc3339(self._services.clock.now())
        after = NetworkClassStatus(
            observed_generation=generation,
            conditions=derive(offered.status.conditions, found, generation=generation, now=now),
        )
        await write_report(self._services.client, self._classes, offered, after)
        return Done()
