"""A machine's interface as the orders for its host have it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from kumulus.api.network import AllowedAddressPair, NetworkInterface
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.segments import AddressPair, Bandwidth, Nic
from kumulus_controllers.network.networks import at_home
from kumulus_controllers.network.ranges import single

_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}

LEAST_BANDWIDTH = 8000
"""Bits a second: with less, not even a lease comes through in time."""


def bits(text: str | None) -> int | None:
    """Bits a second, from `100M`."""
    if text is None:
        return None
    unit = _UNITS.get(text[-1])
    return max(int(text) if unit is None else int(text[:-1]) * unit, LEAST_BANDWIDTH)


def nic(
    name: str, interface: NetworkInterface, groups: Mapping[str, SecurityGroup | None], hostname: str | None
) -> Nic:
    """The interface in the order of its machine. It must have been allocated. A group that is not there lets nothing
    through, so it is left out."""
    status, spec = interface.status, interface.spec
    assert status.network is not None and status.mac_address is not None
    width = spec.bandwidth
    limits = Bandwidth(inbound=bits(width.inbound), outbound=bits(width.outbound)) if width is not None else None
    return Nic(
        name=name,
        uid=interface.uid,
        network=status.network,
        mac=status.mac_address,
        addresses=status.addresses,
        pairs=tuple(map(_pair, spec.allowed_address_pairs)) if at_home(interface) else (),
        groups=tuple(sorted({group.uid for group in groups.values() if group is not None})),
        bandwidth=limits,
        hostname=hostname,
    )


def _pair(pair: AllowedAddressPair) -> AddressPair:
    cidr = pair.address if "/" in pair.address else single(pair.address)
    return AddressPair(cidr=cidr, mac=pair.mac_address)
