"""Names in OVN's northbound database and in Open vSwitch. They follow from uids. Pure."""

from __future__ import annotations

import re

from kumulus_agents.network.linux import names as devices

_CROSSING = re.compile(r"^k[yl][0-9a-f]{10}$")
_PATCH = re.compile(r"^kq[0-9a-f]{10}$")

_ROUTER_PORT = re.compile(r"^kr[0-9a-f]{10}$")

NETWORK = "kumulus"
"""What logical switches call the way to other hosts; mapped to the bridge of tunnels."""
GATEWAY = "kumulus-gateway"
"""In `external_ids` of an interface of Open vSwitch: the uid of the gateway whose cable it is."""
TUNNEL = "kumulus-geneve"
"""The one port of tunnels."""


def switch(network: str) -> str:
    """The logical switch of a network."""
    return devices.namespace(network)


def network_of(switch: str) -> str | None:
    """The uid of the network whose switch that is; None when it is not Kumulus' own."""
    return devices.network_of(switch)


def wire(network: str) -> str:
    """The switch's port to other hosts."""
    return f"kn{devices.short(network)}"


def anchor(network: str) -> tuple[str, str]:
    """Two ends of a patch that carries nothing, on OVN's bridge and on that of tunnels: ovn-controller connects the switch's
    way to other hosts only where the switch has another port. The first is also the name of the switch's port."""
    return f"kc{devices.short(network)}", f"kz{devices.short(network)}"


def uplink_bridge(device: str) -> str:
    """Our bridge that an interface of the host is plugged into which is an uplink."""
    return devices.UPLINK_BRIDGE + devices.short(device)


def crossing(bridge: str) -> tuple[str, str]:
    """The patch between the bridge of tunnels and the bridge of an uplink: its end here, and there."""
    return f"ky{devices.short(bridge)}", f"kl{devices.short(bridge)}"


def is_crossing(port: str) -> bool:
    """Whether a port with that name is an end of such a patch."""
    return bool(_CROSSING.match(port))


def is_uplink_bridge(bridge: str) -> bool:
    """Whether a bridge with that name is ours, for an uplink."""
    return devices.is_ours(bridge) and bridge.startswith(devices.UPLINK_BRIDGE)


def guard(nic: str) -> str:
    """The bridge that a guest's tap is on."""
    return devices.GUARD + devices.short(nic)


def patches(nic: str) -> tuple[str, str]:
    """The patch between that bridge and OVN's: its end there, and here."""
    return f"kp{devices.short(nic)}", f"kq{devices.short(nic)}"


def is_patch(port: str) -> bool:
    """Whether a port with that name is the end, on OVN's bridge, of a guest's patch."""
    return bool(_PATCH.match(port))


def patch(network: str, integration: str) -> str:
    """Where that port comes out on the bridge of tunnels: ovn-controller makes and names it."""
    return f"patch-{wire(network)}-to-{integration}"


def everybody(network: str) -> str:
    """The group of all guests' ports of a network. A name that an expression of OVN can have."""
    return f"kumulus_{devices.short(network)}"


def everybody_of(name: str) -> str:
    """The group of all guests' ports of the network in which something has that name."""
    return "_".join(name.partition("/")[0].split("_")[:2])


def group(network: str, group: str) -> str:
    """The ports of a security group in a network."""
    return f"{everybody(network)}_{devices.short(group)}"


def legs(network: str) -> str:
    """The legs of gateways in a network."""
    return f"{everybody(network)}_legs"


def routed(network: str) -> str:
    """The end of its router in a network."""
    return f"{everybody(network)}_router"


def members(network: str, security_group: str, *, four: bool) -> str:
    """The addresses of a security group in a network."""
    return f"{group(network, security_group)}_members{4 if four else 6}"


def router(router: str) -> str:
    """The logical router that a router is on a host."""
    return f"kumulus-router-{router}"


def router_port(router: str, network: str) -> str:
    """The router's port to a network. Another router's has another name: ovn-northd does not see that a port of the same name
    has come to another router, when there are rows of Static_MAC_Binding for it, and takes no change from then on (23.03)."""
    return f"kr{devices.short(f'{router} {network}')}"


def is_router_port(port: str) -> bool:
    """Whether a port with that name is one of ours."""
    return bool(_ROUTER_PORT.match(port))


def to_router(network: str) -> str:
    """The port of a network's switch to the router."""
    return f"km{devices.short(network)}"


def direct(network: str, *, four: bool) -> str:
    """The addresses in a network that other networks of its router reach without a gateway."""
    return f"{everybody(network)}_direct{4 if four else 6}"


DATABASES = {"OVN_Northbound": "OVN's northbound database", "Open_vSwitch": "Open vSwitch's database"}
"""What people call them, by the name of the schema."""
