"""What dnsmasq reads: configuration that only the operator and Kumulus decide, and files of values. Pure.

What tenants write comes to stand in files of hosts, names and options, after it was checked to be a name or an
address; none of these files can hold a directive. Only the network's domain, a name too, is a value in the configuration. Sources: dnsmasq(8); RFC 3442 (classless routes), RFC 8415, RFC 4861.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from kumulus.api.addresses import is_v4
from kumulus.api.gateways import GatewayOrder
from kumulus.api.segments import DhcpOption, DhcpOptionName, SegmentOrder
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.layout import Place
from kumulus_agents.network.linux.links import HOST_END, LEG, UP
from kumulus_agents.network.protocol import NetworkError

HOSTS, NAMES, OPTIONS, SERVERS = "hosts", "names", "options", "servers"
_MS_ROUTES = 249
_ADVERTISE_SECONDS = 60
ROUTERLESS_SECONDS = 60
"""After so many a guest asks again by DHCP of IPv4 while its network has no router (T1, RFC 2131, 4.4.5): there is no other way to tell
it of a new one, for clients do not heed FORCERENEW (RFC 3203). Its lease is as long as any: it keeps its address while nobody
answers."""
_ROUTER_SECONDS, _ROUTER_LIFETIME = 30, 1800
"""How often a router says that it is one, and for how long that counts."""


def serving(
    order: SegmentOrder, directory: PurePosixPath, *, user: str, group: str, lease_seconds: int, dhcp4: bool = True
) -> str:
    """Configuration of the dnsmasq that has a leg in the network."""
    lines = [
        *_common(directory, user, group),
        f"interface={LEG}",
        f"addn-hosts={directory / NAMES}",
        f"server={HOST_END}%{UP}",
        "domain-needed",
        "bogus-priv",
    ]
    if order.dns.domain:
        lines += [f"domain={order.dns.domain}", f"local=/{order.dns.domain}/"]
    if order.dhcp:
        lines += [
            f"dhcp-hostsfile={directory / HOSTS}",
            f"dhcp-optsfile={directory / OPTIONS}",
            "dhcp-authoritative",
            "dhcp-ignore=tag:!known",
            "dhcp-ignore-names",
            "dhcp-lease-max=65536",
            "leasefile-ro",
            "no-ping",
            "quiet-dhcp",
            "quiet-dhcp6",
            "quiet-ra",
        ]
        for subnet in order.subnets:
            network = ipaddress.ip_network(subnet.cidr)
            if network.version == 4 and not dhcp4:
                continue
            if network.version == 4:
                lines.append(f"dhcp-range={network.network_address},static,{network.netmask},{lease_seconds}")
                lines.append(f"dhcp-option-force=option:mtu,{order.mtu}")
            else:
                lines.append(f"dhcp-range={network.network_address},static,{network.prefixlen},{lease_seconds}")
                lines.append("enable-ra")
                lines.append(f"ra-param={LEG},mtu:{order.mtu},{_ADVERTISE_SECONDS},0")
    return _text(lines)


def asking(network: str, directory: PurePosixPath, *, user: str, group: str) -> str:
    """Configuration of the dnsmasq on the host that asks for names on behalf of the one that serves the network."""
    return _text(
        [
            *_common(directory, user, group),
            f"interface={names.uplink(network)}",
            f"servers-file={directory / SERVERS}",
            "cache-size=0",
        ]
    )


def announcing(order: GatewayOrder, *, user: str, group: str) -> str:
    """Configuration of the dnsmasq of a router, which says by router advertisements that it is one, and no more. It does so
    where its addresses are. Empty: there is nothing to say."""
    legs = [leg for leg in order.legs if leg.uplink is None and any(not is_v4(one) for one in leg.addresses)]
    if not legs or order.router is None or not order.router.advertise:
        return ""
    lines = [f"user={user}", f"group={group}", "port=0", "except-interface=lo", "bind-dynamic"]
    lines += ["dhcp-ignore=tag:!known", "leasefile-ro", "no-ping", "quiet-dhcp6", "quiet-ra", "enable-ra"]
    for leg in legs:
        device = names.inner(leg.network)
        lines.append(f"interface={device}")
        lines.append(f"ra-param={device},mtu:{leg.mtu},high,{_ROUTER_SECONDS},{_ROUTER_LIFETIME}")
        for address in leg.addresses:
            if not is_v4(address):
                near = ipaddress.IPv6Interface(address).network
                lines.append(f"dhcp-range={near.network_address},static,{near.prefixlen},{_ROUTER_LIFETIME}")
    return _text(lines)


def _common(directory: PurePosixPath, user: str, group: str) -> list[str]:
    return [
        f"user={user}",
        f"group={group}",
        "except-interface=lo",
        "bind-dynamic",
        "no-hosts",
        "no-resolv",
    ]


def hosts(places: Iterable[Place]) -> str:
    """Who gets which address: MAC, one address of either family, and what the guest is told to be called."""
    return _text(_hosts(places))


def _hosts(places: Iterable[Place]) -> Iterator[str]:
    for place in places:
        nic = place.port.nic
        four = [address for address in nic.addresses if is_v4(address)][:1]
        six = [f"[{address}]" for address in nic.addresses if not is_v4(address)][:1]
        name = nic.hostname.partition(".")[0] if nic.hostname else ""
        called = [name] if name and not _MEANS_SOMETHING.fullmatch(name) else []
        if four or six:
            yield ",".join([nic.mac, *four, *six, *called])


def names_file(order: SegmentOrder) -> str:
    """Names of the network, with its domain and without."""
    lines = []
    for record in order.dns.records:
        full = [f"{record.name}.{order.dns.domain}"] if order.dns.domain else []
        lines += [" ".join([address, *full, record.name]) for address in record.addresses]
    return _text(lines)


def options(order: SegmentOrder) -> str:
    """What guests are told besides their addresses."""
    lines = []
    for subnet in order.subnets:
        if is_v4(subnet.cidr):
            routes = [f"{names.METADATA}/32", subnet.service]
            if subnet.gateway:
                routes += ["0.0.0.0/0", subnet.gateway]
            lines.append(f"option:router,{subnet.gateway}" if subnet.gateway else "option:router")
            lines += [] if subnet.gateway else [f"option:T1,{ROUTERLESS_SECONDS}"]
            lines.append(f"option:dns-server,{subnet.service}")
            lines += [f"{code},{','.join(routes)}" for code in ("option:classless-static-route", _MS_ROUTES)]
        else:
            lines.append(f"option6:dns-server,[{subnet.service}]")
    fours = any(is_v4(subnet.cidr) for subnet in order.subnets)
    sixes = any(not is_v4(subnet.cidr) for subnet in order.subnets)
    for option in order.options:
        _check(option)
        if option.name is DhcpOptionName.NTP_SERVER:
            lines += _by_family(option)
            continue
        values = ",".join(option.values)
        if fours:
            lines.append(f"option:{option.name.value},{values}")
        if sixes and option.name is DhcpOptionName.DOMAIN_SEARCH:
            lines.append(f"option6:{option.name.value},{values}")
    if order.dns.domain and DhcpOptionName.DOMAIN_SEARCH not in {option.name for option in order.options}:
        if fours:
            lines.append(f"option:domain-search,{order.dns.domain}")
        if sixes:
            lines.append(f"option6:domain-search,{order.dns.domain}")
    return _text(lines)


def servers(addresses: Sequence[str]) -> str:
    """Who is asked for names of the world."""
    return _text(f"server={address}" for address in addresses)


def _by_family(option: DhcpOption) -> list[str]:
    fours = [value for value in option.values if is_v4(value)]
    sixes = [f"[{value}]" for value in option.values if not is_v4(value)]
    return [
        *([f"option:ntp-server,{','.join(fours)}"] if fours else []),
        *([f"option6:ntp-server,{','.join(sixes)}"] if sixes else []),
    ]


_MEANS_SOMETHING = re.compile(r"ignore|infinite|deprecated|id|[0-9]+[smhdw]?")
"""Words that dnsmasq reads as something else where a name stands: never a lease, or how long one is for."""

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")


def _check(option: DhcpOption) -> None:
    """Raises `NetworkError(reason="BadOption")` when a value is not of the option's type."""
    for value in option.values:
        if option.name is DhcpOptionName.NTP_SERVER:
            fits = _is_address(value)
        elif option.name is DhcpOptionName.DOMAIN_SEARCH:
            fits = not set(value) - _NAME and ".." not in value
        else:
            fits = len(option.values) == 1 and (option.name is DhcpOptionName.BOOTFILE_NAME or not set(value) - _NAME)
        if not fits:
            raise NetworkError(
                f"{value} cannot be {option.name.value} of DHCP. Change the option of the network.",
                reason="BadOption",
                retryable=False,
            )


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
