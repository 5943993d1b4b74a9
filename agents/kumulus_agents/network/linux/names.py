"""What is made on a host is named after uids, so that it is found again and nobody's text names anything. Pure."""

from __future__ import annotations

import hashlib
import re

LENGTH = 10
TABLE = "kumulus"
"""Name of the tables of nftables."""

BRIDGE = "kb"
TUNNEL = "kx"
TAP = "kt"
SERVICE = "ks"
UPLINK = "ku"
LEG = "kg"
OUTER_LEG = "ko"
OUTER_BRIDGE = "ke"
OUTER_VLAN = "kw"
LINK = "ka"
LINK_BRIDGE = "kh"
LINK_TUNNEL = "kj"
GUARD = "kf"
"""Of the driver `ovn`."""
UPLINK_BRIDGE = "kv"
"""Of the driver `ovn`."""

METADATA = "169.254.169.254"
"""Where guests of every network find their metadata."""

_OURS = re.compile(r"^k[bxtsugoewahjfv][0-9a-f]{10}$")
_NAMESPACE = re.compile(r"^kumulus-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_GATEWAY = "kumulus-gateway-"
_GATEWAY_NAMESPACE = re.compile(r"^kumulus-gateway-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


def short(uid: str) -> str:
    """Ten hexadecimal digits that follow from the uid."""
    return hashlib.sha256(uid.encode()).hexdigest()[:LENGTH]


def bridge(network: str) -> str:
    """What the ports of a network are plugged into."""
    return BRIDGE + short(network)


def tunnel(network: str) -> str:
    """The device of a network that leads to other hosts: a VXLAN, or a VLAN of an uplink."""
    return TUNNEL + short(network)


def tap(nic: str) -> str:
    """The device of a guest's interface."""
    return TAP + short(nic)


def service(network: str) -> str:
    """The bridge's end of the cable to what serves the network."""
    return SERVICE + short(network)


def uplink(network: str) -> str:
    """The host's end of the cable through which names are looked up."""
    return UPLINK + short(network)


def namespace(network: str) -> str:
    """The network namespace of what serves the network."""
    return f"kumulus-{network}"


def network_of(namespace: str) -> str | None:
    """The uid of the network whose namespace that is; None when it is not Kumulus' own."""
    return namespace.removeprefix("kumulus-") if _NAMESPACE.match(namespace) else None


def gateway_namespace(gateway: str) -> str:
    """The network namespace that a gateway is."""
    return _GATEWAY + gateway


def gateway_of(namespace: str) -> str | None:
    """The uid of the gateway whose namespace that is; None when it is none of Kumulus' own."""
    return namespace.removeprefix(_GATEWAY) if _GATEWAY_NAMESPACE.match(namespace) else None


def leg(gateway: str, network: str) -> str:
    """The bridge's end of the cable from a network to a gateway."""
    return LEG + short(f"{gateway} {network}")


def outer_leg(gateway: str, network: str) -> str:
    """The bridge's end of the cable from an external network to a gateway."""
    return OUTER_LEG + short(f"{gateway} {network}")


def inner(network: str) -> str:
    """The gateway's end of its cable to a network."""
    return "n" + short(network)


def outer_bridge(way: str) -> str:
    """What gateways are plugged into that use this device of the host."""
    return OUTER_BRIDGE + short(way)


def outer_vlan(way: str) -> str:
    """The device of a VLAN on a device of the host."""
    return OUTER_VLAN + short(way)


def link(gateway: str) -> str:
    """The bridge's end of a gateway's cable to what hosts agree over who is active."""
    return LINK + short(gateway)


def link_bridge() -> str:
    """What these cables of all gateways are plugged into."""
    return LINK_BRIDGE + short("gateways")


def link_tunnel() -> str:
    """The VXLAN device between hosts that have gateways."""
    return LINK_TUNNEL + short("gateways")


def is_ours(device: str) -> bool:
    """Whether a device with that name is Kumulus' own."""
    return bool(_OURS.match(device))


def service_mac(network: str) -> str:
    """The MAC address of what serves the network: the same on every host."""
    return mac("service", network)


def mac(what: str, uid: str) -> str:
    """A locally administered MAC address that follows from what it is for. Not in the range of guests', which begin
    with 02."""
    digits = hashlib.sha256(f"{what} {uid}".encode()).hexdigest()[:LENGTH]
    return ":".join(["06", *(digits[at : at + 2] for at in range(0, LENGTH, 2))])
