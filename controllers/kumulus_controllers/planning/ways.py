"""Which hosts can carry VLANs of a physical network, and why others cannot. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kumulus.api.host import DriverUplinks
from kumulus.api.routing import HostUplink


@dataclass(frozen=True, slots=True)
class Way:
    """What a network needs of a host that is a VLAN of a physical network."""

    physical: str
    """Name of the PhysicalNetwork."""
    driver: str
    """What makes the network."""
    uplinks: tuple[HostUplink, ...] = ()
    """How hosts are connected to it; none when the PhysicalNetwork is not there."""


def device_on(uplinks: Iterable[HostUplink], labels: Mapping[str, str]) -> str | None:
    """The device by which a host with these labels is connected; None when it is not."""
    for uplink in uplinks:
        if all(labels.get(key) == value for key, value in uplink.host_selector.items()):
            return uplink.device
    return None


def lack(way: Way, labels: Mapping[str, str], known: Mapping[str, DriverUplinks] | None) -> str | None:
    """Why a host cannot carry the network, in a few words; None when it can. `known` is what its agent says of each driver,
    None when that is too old to say anything."""
    device = device_on(way.uplinks, labels)
    if device is None:
        return f"without an uplink to physical network {way.physical}"
    if known is None:
        return "with an agent that is too old for networks of VLANs"
    said = known.get(way.driver)
    if said is None:
        return f"without VLANs by network driver {way.driver}"
    if said.message is not None:
        return f"without VLANs ({said.message.rstrip('.')})"
    if device not in said.devices:
        return f"without device {device}, which physical network {way.physical} names, or it cannot be an uplink"
    return None
