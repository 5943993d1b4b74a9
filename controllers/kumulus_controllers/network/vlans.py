"""The numbers that networks can have: of tunnels, and of VLANs of a physical network. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kumulus.api.network import Isolation, NetworkClass, NetworkClassSpec
from kumulus.api.routing import ExternalNetwork, PhysicalNetwork
from kumulus.api.vlans import numbers, said
from kumulus_controllers.network.ranges import vnis


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a network can have."""

    name: str
    """Of the SegmentId that is its claim."""
    vlan: int | None = None
    """None: it is that of a tunnel."""


@dataclass(frozen=True, slots=True)
class Pool:
    """VLANs of a physical network that networks of a class are given."""

    physical: str
    """Name of the PhysicalNetwork."""
    vlans: tuple[int, ...] = ()
    ranges: str = "none"
    """For people."""
    where: str = ""
    """Which field of which object says so."""


def claim_name(physical: str, vlan: int) -> str:
    """Name of the claim of a VLAN. Those of tunnels are numbers."""
    return f"vlan-{physical}-{vlan}"


def external_vlans(externals: Iterable[ExternalNetwork], physical: str) -> frozenset[int]:
    """The VLANs of a physical network that external networks are."""
    return frozenset(
        item.spec.vlan for item in externals if item.spec.physical_network == physical and item.spec.vlan is not None
    )


def own_vlans(classes: Iterable[NetworkClass], physical: str) -> frozenset[int]:
    """The VLANs of a physical network that classes name for themselves."""
    ranges = [
        part
        for item in classes
        if item.spec.physical_network == physical and not item.deleting
        for part in item.spec.vlans
    ]
    return frozenset(numbers(ranges))


def pool(
    physical: PhysicalNetwork,
    offer: NetworkClassSpec,
    offered: str,
    *,
    external: frozenset[int],
    own: frozenset[int],
) -> Pool:
    """The VLANs that networks of the class of the name `offered` are given. `external` are those of external networks, `own`
    those that classes name for themselves."""
    if offer.vlans:
        free = [number for number in numbers(offer.vlans) if number not in external]
        return Pool(physical.name, tuple(free), said(offer.vlans), f"spec.vlans of NetworkClass {offered}")
    free = [number for number in numbers(physical.spec.vlans) if number not in external | own]
    where = f"spec.vlans of PhysicalNetwork {physical.name}"
    return Pool(physical.name, tuple(free), said(physical.spec.vlans), where)


def is_vlan(offer: NetworkClassSpec) -> bool:
    """Whether networks of the class are VLANs."""
    return offer.isolation is Isolation.VLAN and offer.physical_network is not None


def tried(network_uid: str, given: Pool | None) -> Iterator[Number]:
    """Numbers to try for a network, each once: the first follows from its uid. None: that of a tunnel."""
    if given is None:
        return (Number(str(vni)) for vni in vnis(network_uid))
    return (Number(claim_name(given.physical, vlan), vlan) for vlan in _from(network_uid, given.vlans))


def _from(network_uid: str, numbers_: Sequence[int]) -> Iterator[int]:
    count = len(numbers_)
    start = int.from_bytes(hashlib.sha256(network_uid.encode()).digest()[:8]) % count if count else 0
    return (numbers_[(start + step) % count] for step in range(count))
