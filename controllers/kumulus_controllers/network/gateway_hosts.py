"""The hosts that may have gateways, looked up in the caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kumulus.api.base import ConditionStatus
from kumulus.api.fabric import Host, HostCondition, host_namespace
from kumulus.api.gateways import GatewayFunction
from kumulus.api.host import HostReport, WorkType
from kumulus_controllers.fleet_feed import closed
from kumulus_controllers.fleet_feed import uplinks as vlans
from kumulus_controllers.network.gateway_plan import Candidate
from kumulus_controllers.network.networks import Networks, underlay
from kumulus_controllers.orders import NAMESPACE


class GatewayHosts:
    """Those that `gateway_plan` chooses among."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def candidates(self, uplinks: Callable[[Host], frozenset[str]] = lambda _: frozenset()) -> list[Candidate]:
        """All hosts, as gateways see them. `uplinks` says which physical networks one is connected to."""
        return [self._candidate(host, uplinks(host)) for host in self._networks.hosts]

    def _candidate(self, host: Host, uplinks: frozenset[str]) -> Candidate:
        namespace = host_namespace(host.name)
        report = self._networks.reports.get(host.name, namespace)
        orders = self._networks.orders.by(NAMESPACE, namespace)
        return Candidate(
            name=host.name,
            drivers=drivers(report),
            functions=functions(report),
            underlay=underlay(report),
            uplinks=uplinks,
            labels=host.metadata.labels,
            vlans=vlans(report),
            closed=closed(host, guests=False),
            silent=silent(host),
            gateways=sum(order.spec.type is WorkType.GATEWAY for order in orders),
        )


def drivers(report: HostReport | None) -> frozenset[str]:
    """What can make networks on a host."""
    network = report.status.network if report is not None else None
    return frozenset(driver.value for driver in network.drivers) if network is not None else frozenset()


def functions(report: HostReport | None) -> Mapping[str, Mapping[GatewayFunction, str | None]] | None:
    """What drivers can make on a host besides networks, each with why not now; None when its agent has not said so."""
    network = report.status.network if report is not None else None
    if network is None or network.functions is None:
        return None
    return {item.driver.value: {one.name: one.message for one in item.functions} for item in network.functions}


def silent(host: Host) -> bool:
    """Whether it cannot be told anything now."""
    ready = host.status.condition(HostCondition.READY)
    return ready is None or ready.status is not ConditionStatus.TRUE
