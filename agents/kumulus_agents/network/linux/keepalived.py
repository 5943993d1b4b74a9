"""What keepalived reads, which decides on which host a gateway's addresses are. Pure.

VRRP version 3 between link-local addresses, over a link that only gateways have; who is not in the list is not listened to.
All values are numbers, our own names of devices and addresses that were parsed. Source: keepalived.conf(5), RFC 5798.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from pathlib import PurePosixPath

from kumulus.api.addresses import is_v4
from kumulus.api.gateways import GatewayOrder
from kumulus_agents.network.linux import gateway_links, names
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.gateway_rules import LINK, token

INSTANCE = "instance"
"""The file with what can change while it runs."""
SECONDS, ALONE_SECONDS = 1, 0.1
"""Between two advertisements. Who is alone need not wait for others."""


def configuration(directory: PurePosixPath) -> str:
    """What it is started with; it never changes."""
    return f"include {directory / INSTANCE}\n"


def instance(order: GatewayOrder, notifies: Sequence[tuple[str, str]] = ()) -> str:
    """The gateway's addresses with the ways beyond them, and who else may have them. `notifies`: what it becomes (master,
    backup, fault), and the command that it runs then, as root and without a shell; no word of it has a space."""
    redundancy = order.redundancy
    lines = [
        "global_defs {",
        "  router_id kumulus",
        "  vrrp_version 3",
        "  vrrp_check_unicast_src",
        "  vrrp_garp_master_repeat 3",
        "  vrrp_garp_lower_prio_repeat 0",
        "  vrrp_garp_master_refresh 60",
        *(["  script_user root"] if notifies else []),
        "}",
        "vrrp_instance gateway {",
        "  state BACKUP",
        "  nopreempt",
        f"  interface {LINK}",
        f"  virtual_router_id {redundancy.group}",
        f"  priority {redundancy.priority}",
        f"  advert_int {SECONDS if redundancy.peers else ALONE_SECONDS}",
        "  garp_master_delay 1",
        *(f'  notify_{when} "{command}"' for when, command in notifies),
    ]
    if redundancy.peers:
        lines.append(f"  unicast_src_ip {link_local(redundancy.mac)}")
        lines.append("  unicast_peer {")
        lines += [f"    {link_local(peer.mac)}" for peer in redundancy.peers]
        lines.append("  }")
    lines += ["  virtual_ipaddress {", f"    {token(order)}/64 dev {LINK}", "  }"]
    placed = [f"    {address} dev {device}" for address, device in addresses(order)]
    if placed:
        lines += ["  virtual_ipaddress_excluded {", *placed, "  }"]
    ways = [f"    {to} via {via} dev {device}" for to, via, device in gateway_links.routes(order)]
    if ways:
        lines += ["  virtual_routes {", *ways, "  }"]
    return "".join(f"{line}\n" for line in [*lines, "}"])


def addresses(order: GatewayOrder) -> list[tuple[str, str]]:
    """Every address of the active host, with its device; a link-local one of IPv6 with each leg that has IPv6."""
    found = []
    for leg in order.legs:
        device = names.inner(leg.network)
        found += [(address, device) for address in leg.addresses]
        if any(not is_v4(address) for address in leg.addresses):
            found.append((f"{announced(order.uid, leg.network)}/64", device))
    return found


def announced(gateway: str, network: str) -> str:
    """The link-local address by which guests of a network know the router: the same on all hosts."""
    digits = hashlib.sha256(f"router {gateway} {network}".encode()).digest()[:8]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + digits))
