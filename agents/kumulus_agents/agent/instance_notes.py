"""What is noted of a machine's interfaces in its domain: with that a host can be understood when all objects are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from kumulus.api.host import WorkOrder
from kumulus.api.order_names import segment_order_name
from kumulus.api.segments import Nic
from kumulus_agents.hypervisor.foreign import NotedNic


def noted(
    nics: Iterable[Nic], find: Callable[[str], WorkOrder | None], before: Iterable[NotedNic]
) -> tuple[NotedNic, ...]:
    """What is to be noted. `find` finds an order of the host by its name; of a network that has none just now it stays what
    was noted `before`. Pure, but for that."""
    known = {one.uid: one for one in before}
    return tuple(_noted(nic, find(segment_order_name(nic.network)), known.get(nic.uid)) for nic in nics)


def _noted(nic: Nic, order: WorkOrder | None, before: NotedNic | None) -> NotedNic:
    one = NotedNic(nic.name, nic.uid, nic.mac, nic.addresses)
    segment = order.spec.segment if order is not None else None
    if order is not None and segment is not None:
        network, vlan = order.spec.for_, segment.uplink.vlan if segment.uplink is not None else None
        return replace(one, network=f"{network.namespace}/{network.name}", vni=segment.vni, vlan=vlan)
    return one if before is None else replace(one, network=before.network, vni=before.vni, vlan=before.vlan)
