"""Which addresses an image may be fetched from. Pure.

The rule, in this order:

1. an address in `allowed` is fine: an administrator said so;
2. an address in `forbidden` (the cluster's own ranges) is not;
3. loopback, link-local, multicast, unspecified, documentation, benchmark and reserved ranges and the
   metadata services of clouds are not;
4. an IPv6 address that carries an IPv4 address (mapped, compatible, translated, NAT64, 6to4, Teredo,
   ISATAP) is judged by that one too;
5. the rest is fine, private ranges (RFC 1918, unique local, shared) included: image servers live there.
   Whoever wants them closed puts them in `forbidden`.

Python's `ipaddress` calls NAT64, 6to4, compatible and some special ranges global, so its `is_global`
is not asked; the tables are IANA's special-purpose registries (RFC 6890 and successors).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_SPECIAL: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(cidr), why)
    for cidr, why in (
        ("0.0.0.0/8", "unspecified"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),
        ("198.18.0.0/15", "benchmark"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("100.100.100.200/32", "metadata service"),
        ("168.63.129.16/32", "metadata service"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("64:ff9b:1::/48", "translation"),
        ("100::/64", "discard"),
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("fd00:ec2::254/128", "metadata service"),
        ("fd20:ce::254/128", "metadata service"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_UNIQUE_LOCAL = IPv6Network("fc00::/7")
_PROTOCOLS = IPv6Network("2001::/23")
_TEREDO = IPv6Network("2001::/32")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_LOW_32 = (
    IPv6Network("::/96"),  # compatible, RFC 4291 2.5.5.1
    IPv6Network("::ffff:0:0:0/96"),  # translated, RFC 2765
    IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
)
_EMBEDDING = (*_LOW_32, _TEREDO, _SIX_TO_FOUR)


@dataclass(frozen=True, slots=True)
class Policy:
    """What an administrator decided."""

    forbidden: tuple[Network, ...] = ()
    allowed: tuple[Network, ...] = ()


def canonical(address: Address) -> Address:
    """The address itself, or the IPv4 address that an IPv4-mapped one is another spelling of."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def refusal(address: Address, policy: Policy) -> str | None:
    """Why images may not come from this address, in a few words; None when they may."""
    address = canonical(address)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return "an address with a zone"
    if _in_any(address, policy.allowed):
        return None
    if _in_any(address, policy.forbidden):
        return "a network that is closed to imports"
    for network, why in _SPECIAL:
        if address in network:
            return f"a {why} address"
    if isinstance(address, IPv4Address):
        return None
    embedded = tuple(_embedded(address))
    for inner in embedded:
        if why_inner := refusal(inner, Policy(forbidden=policy.forbidden)):
            return f"an IPv6 address that carries {inner}, {why_inner}"
    if embedded and _in_any(address, _EMBEDDING):
        return None
    if address in _PROTOCOLS or not (address in _GLOBAL_UNICAST or address in _UNIQUE_LOCAL):
        return "a reserved address"
    return None


def _in_any(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _embedded(address: IPv6Address) -> Iterator[IPv4Address]:
    """Every IPv4 address that some mechanism reads out of this address."""
    bits = int(address)
    if _in_any(address, _LOW_32):
        yield IPv4Address(bits & 0xFFFFFFFF)
    elif address in _SIX_TO_FOUR:
        yield IPv4Address(bits >> 80 & 0xFFFFFFFF)
    elif address in _TEREDO:
        yield IPv4Address(bits >> 64 & 0xFFFFFFFF)
        yield IPv4Address(~bits & 0xFFFFFFFF)
    if bits >> 32 & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE):  # ISATAP, RFC 5214
        yield IPv4Address(bits & 0xFFFFFFFF)
