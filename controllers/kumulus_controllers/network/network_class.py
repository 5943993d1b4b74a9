"""NetworkClass: the offering. Its status says whether it counts, and which hosts can make it; one that networks name stays."""

from __future__ import annotations

from kumulus.api.fabric import Host, host_namespace
from kumulus.api.gateways import GatewayFunction
from kumulus.api.host import HostReport
from kumulus.api.network import Network, NetworkClass, NetworkClassStatus
from kumulus.api.routing import PhysicalNetwork
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import Fact, derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result
from kumulus_controllers.network import leaving_alone
from kumulus_controllers.network.capable import capable, connected, serving
from kumulus_controllers.network.lack import Lack, facts, in_use, named
from kumulus_controllers.network.network_plan import is_default
from kumulus_controllers.network.networks import OF_CLASS
from kumulus_controllers.network.vlans import is_vlan
from kumulus_controllers.planning.ways import Way
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_report


class NetworkClassReconciler:
    """Says of a class whether it is ready, and whether it is the default one when it wants to be."""

    name = "networkclass"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._classes = services.caches.store(NetworkClass)
        self._reports = services.caches.store(HostReport)
        self._physical = services.caches.store(PhysicalNetwork)
        self._hosts = services.caches.store(Host)
        self._networks = services.caches.store(Network)
        self._networks.add_index(OF_CLASS, lambda network: (network.spec.network_class or "",))

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, and what hosts can; which one is the default one depends on all."""

        def class_changed(before: NetworkClass | None, after: NetworkClass | None) -> None:
            was, now = (item.spec.default and not item.deleting if item else False for item in (before, after))
            if was != now:
                for key in self._classes.keys():  # noqa: SIM118 - a store, not a dict
                    enqueue(key)
            elif after is not None and (
                before is None or before.metadata.generation != after.metadata.generation or after.deleting
            ):
                enqueue(Key(None, after.name))

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            was, now = (report.status.network if report else None for report in (before, after))
            if (was and (was.drivers, was.functions, was.uplinks, was.message)) != (
                now and (now.drivers, now.functions, now.uplinks, now.message)
            ):
                for key in self._classes.keys():  # noqa: SIM118 - a store, not a dict
                    enqueue(key)

        def physical_changed(before: PhysicalNetwork | None, after: PhysicalNetwork | None) -> None:
            if before is None or after is None or before.spec != after.spec:
                by_vlan()

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is None or after is None or before.metadata.labels != after.metadata.labels:
                by_vlan()

        def by_vlan() -> None:
            for item in self._classes:
                if is_vlan(item.spec):
                    enqueue(Key(None, item.name))

        def network_changed(before: Network | None, after: Network | None) -> None:
            if before is not None and after is None and before.spec.network_class is not None:
                enqueue(Key(None, before.spec.network_class))

        self._networks.listen(network_changed)
        self._physical.listen(physical_changed)
        self._hosts.listen(host_changed)
        self._classes.listen(class_changed)
        self._reports.listen(report_changed)

    def everything(self) -> list[Key]:
        """All classes."""
        return self._classes.keys()

    def _vlans(self, offered: NetworkClass) -> tuple[Fact | None, Lack | None]:
        """What is to be said of VLANs, and why networks can be none."""
        name = offered.spec.physical_network
        if name is None or not is_vlan(offered.spec):
            return None, None
        physical = self._physical.get(name)
        if physical is None:
            return None, Lack("PhysicalNetworkNotFound", f"There is no PhysicalNetwork {name}: make it.")
        way = Way(name, offered.spec.driver.value, physical.spec.uplinks)
        fact, lack = connected(
            way, ((host, self._reports.get(host.name, host_namespace(host.name))) for host in self._hosts)
        )
        if not offered.spec.vlans and not physical.spec.vlans:
            lack = Lack(
                "NoVlans",
                f"There are no VLANs to give: name some in spec.vlans of PhysicalNetwork {name}, or of this class.",
            )
        return fact, lack

    async def reconcile(self, key: Key) -> Result:
        """One pass over a class."""
        offered = self._classes.get(key.name)
        if offered is None:
            return Gone()
        if offered.paused:
            await leaving_alone.say_so(self._services, self._classes, offered)
            return Done()
        users = [named(network) for network in self._networks.by(OF_CLASS, offered.name)]
        if offered.deleting and not users:
            await drop_finalizer(self._services.client, self._classes, offered)
            return Gone()
        if not offered.deleting and await ensure_finalizer(self._services.client, self._classes, offered):
            offered = self._classes.get(key.name) or offered
        fact, lack = capable(offered.spec.driver, self._reports)
        connection, unconnected = self._vlans(offered)
        if offered.deleting:
            lack = in_use(users, "They go on as they are; no new one is made of it. Their owners delete them.")
        else:
            lack = is_default(offered, self._classes) or lack or unconnected
        found = facts(lack, "Ready", "Networks can be made of it.")
        found += [connection] if connection is not None else []
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
