"""Devices of the host by which networks are put into VLANs: which there are, and whether one will do."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kumulus.api.segments import Uplink
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.links import Link
from kumulus_agents.network.linux.programs import attempt
from kumulus_agents.network.linux.settings import GatewaySettings
from kumulus_agents.network.protocol import NetworkError

KINDS = frozenset({"ether", "bond", "team", "bridge", "vlan", "veth", "dummy", "macvlan", "openvswitch"})
"""What an uplink can be."""
_PASSING = re.compile(r"^(veth|cali|lxc|eni|cni|docker|flannel|kube|virbr|vnet|ovs-system$|br-[0-9a-f]{12}$)")
"""Names that programs give to devices that come and go with what they run: to report each would be a write each time."""

NO_VLANS = "This host's kernel has no VLANs (8021q): load the module"
"""The end of the sentence is another for each use."""


def devices(there: Mapping[str, Link]) -> tuple[str, ...]:
    """Names of those that can be uplinks. Pure."""
    return tuple(
        sorted(
            link.name
            for link in there.values()
            if link.kind in KINDS and not names.is_ours(link.name) and not _PASSING.match(link.name)
        )
    )


def check(uplink: Uplink, mtu: int, own: str, there: Mapping[str, Link]) -> None:
    """Whether a VLAN of the uplink can carry packets of so many bytes; `own` is the device that is that VLAN, or will be.
    Pure. Raises `NetworkError`: `UplinkMissing`, `UplinkInUse`, `UplinkMtuTooSmall`."""
    device = exists(uplink, mtu, there)
    for link in there.values():
        is_it = link.kind == "vlan" and link.parent == device.name and link.details.get("id") == uplink.vlan
        if is_it and link.name != own:
            raise NetworkError(
                f"VLAN {uplink.vlan} of {device.name} is the device {link.name} of this host already: remove that, or take"
                " the VLAN out of those that the PhysicalNetwork and NetworkClasses name.",
                reason="UplinkInUse",
            )


def exists(uplink: Uplink, mtu: int, there: Mapping[str, Link]) -> Link:
    """The device of the uplink. Pure. Raises `NetworkError`: `UplinkMissing`, `UplinkMtuTooSmall`."""
    device = there.get(uplink.device)
    if device is None:
        raise NetworkError(
            f"This host has no device {uplink.device}, which PhysicalNetwork says is the way: make it, or correct the uplinks.",
            reason="UplinkMissing",
        )
    if device.mtu < mtu:
        raise NetworkError(
            f"Device {uplink.device} carries packets of {device.mtu} bytes, and the network has some of {mtu}: ip link set dev"
            f" {uplink.device} mtu {mtu}, or correct spec.mtu of the PhysicalNetwork.",
            reason="UplinkMtuTooSmall",
        )
    return device


async def has_vlans(settings: GatewaySettings) -> bool:
    """Whether this host's kernel has VLANs."""
    probe = "link add name a type veth peer name b\nlink add link a name c type vlan id 2\n"
    status, _, _ = await attempt([str(settings.unshare), "--net", str(settings.ip), "-batch", "-"], probe)
    return status == 0
