"""Addresses of networks as kinds and orders write them: checked by the schema, in one spelling."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from kumulus.api.base import Rule

V4_BITS = 32

IS_ADDRESS = Rule("isIP(self)", "not an address")
"""Of an `Address` in a kind: the schema's pattern alone takes more."""
IS_RANGE = Rule("isCIDR(self) && cidr(self) == cidr(self).masked()", "not a range: no bit may be set beyond its prefix")
"""Of a `Cidr` in a kind."""
RANGE_SIZE = Rule(
    "!isCIDR(self) || (cidr(self).ip().family() == 4"
    " ? cidr(self).prefixLength() >= 8 && cidr(self).prefixLength() <= 29"
    " : cidr(self).prefixLength() >= 64 && cidr(self).prefixLength() <= 120)",
    "a range of IPv4 has a prefix of 8 to 29 bits, one of IPv6 of 64 to 120",
)
"""Of the range of a network."""
UNICAST = Rule(
    "!self.matches('^.[13579bdf]:') && self != '00:00:00:00:00:00'", "macAddress must be one of a single device"
)
"""Of a `MacAddress` in a kind."""
GUESTS = Rule(
    "!self.startsWith('06:') && !self.startsWith('0a:')",
    "MAC addresses that begin with 06 or 0a are those of what serves networks and of routers",
)
"""Of a `MacAddress` in a kind that a guest is to use: whose packets come from such a one is let through."""


def _address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _cidr(value: str) -> str:
    return str(ipaddress.ip_network(value))


def _placed(value: str) -> str:
    return str(ipaddress.ip_interface(value))


Address = Annotated[
    str, StringConstraints(min_length=2, max_length=45, pattern=r"^[0-9a-fA-F.:]+$"), AfterValidator(_address)
]
"""An IPv4 or IPv6 address without a zone. Read in any spelling, kept in the shortest (RFC 5952)."""

Cidr = Annotated[
    str, StringConstraints(min_length=4, max_length=49, pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"), AfterValidator(_cidr)
]
"""A range of addresses; no bit is set beyond its prefix."""

PlacedAddress = Annotated[
    str, StringConstraints(min_length=4, max_length=49, pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"), AfterValidator(_placed)
]
"""An address with the length of the prefix of the range it is in, such as `192.0.2.7/24`."""

MacAddress = Annotated[str, StringConstraints(min_length=17, max_length=17, pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
"""A MAC address, in lower case with colons."""

DnsName = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$",
    ),
]
"""A name of the DNS, in lower case and without the last dot."""


def is_v4(value: str) -> bool:
    """Whether an `Address` or `Cidr` is of IPv4."""
    return ":" not in value
