"""What ovn-controller answers to guests that ask for an address of IPv4. Pure.

The same as `linux.dnsmasq` tells; IPv6, names and metadata are dnsmasq's and the metadata server's here too. ovn-northd copies
values into expressions: what is text stands in quotes, and consists of characters that mean nothing there, because the
order's types and `dnsmasq.options` have checked it. Source: ovn-nb(5), table DHCP_Options.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from kumulus.api.addresses import is_v4
from kumulus.api.segments import DhcpOptionName, Nic, SegmentOrder, Subnet
from kumulus_agents.network.linux import names as devices
from kumulus_agents.network.linux.dnsmasq import ROUTERLESS_SECONDS


def subnet_of(order: SegmentOrder) -> Subnet | None:
    """The range from which guests get addresses of IPv4 by DHCP."""
    if not order.dhcp:
        return None
    return next((subnet for subnet in order.subnets if is_v4(subnet.cidr)), None)


def options(order: SegmentOrder, subnet: Subnet, lease_seconds: int) -> Mapping[str, str]:
    """What all guests of the network are told."""
    routes = [f"{devices.METADATA}/32", subnet.service]
    if subnet.gateway:
        routes += ["0.0.0.0/0", subnet.gateway]
    said = {
        "server_id": subnet.service,
        "server_mac": devices.service_mac(order.uid),
        "lease_time": str(lease_seconds),
        "mtu": str(order.mtu),
        "dns_server": subnet.service,
        "classless_static_route": f"{{{', '.join(routes)}}}",
        "ms_classless_static_route": f"{{{', '.join(routes)}}}",
    }
    if subnet.gateway:
        said["router"] = subnet.gateway
    else:
        said["T1"] = str(ROUTERLESS_SECONDS)
    if order.dns.domain:
        said["domain_name"] = _text(order.dns.domain)
        said["domain_search_list"] = _text(order.dns.domain)
    for option in order.options:
        if option.name is DhcpOptionName.NTP_SERVER:
            fours = [value for value in option.values if is_v4(value)]
            if fours:
                said["ntp_server"] = f"{{{', '.join(fours)}}}"
        elif option.name is DhcpOptionName.DOMAIN_SEARCH:
            said["domain_search_list"] = _text(",".join(option.values))
        elif option.name is DhcpOptionName.TFTP_SERVER:
            said["tftp_server"] = _text(option.values[0])
        else:
            said["bootfile_name"] = _text(option.values[0])
    return said


def of_port(nic: Nic) -> Mapping[str, str]:
    """What one guest is told besides."""
    name = nic.hostname.partition(".")[0] if nic.hostname else ""
    return {"hostname": _text(name)} if name else {}


def _text(value: str) -> str:
    return json.dumps(value)
