"""The addresses of a network: which are kept for its router and its services, and which interfaces can have. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Container, Iterator
from dataclasses import dataclass

from kumulus.api.addresses import V4_BITS, is_v4
from kumulus.api.network import AddressRange, Network

IPAddr = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNet = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Range:
    """One of a network's ranges."""

    cidr: IPNet
    gateway: IPAddr
    """Kept for a router, whether there is one or not."""
    service: IPAddr
    """Where each host serves its own guests."""
    given: tuple[tuple[int, int], ...]
    """What interfaces are given that ask for no address: first and last of each part, as numbers, in order."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.cidr.version

    def lack(self, address: IPAddr) -> str | None:
        """Why no interface can have that address of the range; None when one can."""
        if address == self.gateway:
            return "is kept for the network's router"
        if address == self.service:
            return "is where hosts serve DHCP, DNS and metadata"
        if address == self.cidr.network_address:
            return "is the range's own"
        if self.cidr.version == 4 and address == self.cidr.broadcast_address:
            return "is the range's broadcast address"
        return None

    def address(self, number: int) -> IPAddr:
        """The address of that number."""
        return ipaddress.IPv4Address(number) if self.cidr.version == 4 else ipaddress.IPv6Address(number)

    def gives(self, address: IPAddr) -> bool:
        """Whether interfaces can be given that address."""
        return address.version == self.version and any(first <= int(address) <= last for first, last in self.given)

    @property
    def size(self) -> int:
        """How many addresses can be given to interfaces that ask for none."""
        parts = sum(last - first + 1 for first, last in self.given)
        kept = {self.gateway, self.service, self.cidr.network_address}
        if self.cidr.version == 4:
            kept.add(self.cidr.broadcast_address)
        return parts - sum(any(first <= int(item) <= last for first, last in self.given) for item in kept)

    def free(self, taken: Container[int], at_least: int = 0) -> Iterator[IPAddr]:
        """Addresses to give, from the lowest; none that is taken, none below `at_least`."""
        for first, last in self.given:
            for number in range(max(first, at_least), last + 1):
                if number not in taken and self.lack(address := self.address(number)) is None:
                    yield address


def ranges(network: Network) -> tuple[Range, ...]:
    """The ranges of a network, in the order of its spec; none for one of type L2."""
    spec = network.spec
    wanted = ipaddress.ip_address(spec.gateway) if spec.gateway is not None else None
    found = []
    for text in spec.cidrs:
        cidr = ipaddress.ip_network(text)
        first, second = cidr[1], cidr[2]
        gateway = wanted if wanted is not None and wanted in cidr else first
        service = second if gateway != second else first
        found.append(Range(cidr, gateway, service, _given(cidr, spec.dhcp.ranges)))
    return tuple(found)


def external_range(cidr: str, gateway: str, given: tuple[AddressRange, ...]) -> Range:
    """The range of an external network."""
    network, router = ipaddress.ip_network(cidr), ipaddress.ip_address(gateway)
    return Range(network, router, router, _given(network, given))


def _given(cidr: IPNet, wanted: tuple[AddressRange, ...]) -> tuple[tuple[int, int], ...]:
    """What of a range is given out. Parts may overlap as they were written; here they do not."""
    lowest, highest = int(cidr.network_address), int(cidr.broadcast_address)
    parts = sorted(
        (int(ipaddress.ip_address(part.start)), int(ipaddress.ip_address(part.end)))
        for part in wanted
        if (4 if is_v4(part.start) else 6) == cidr.version
    )
    if not parts:
        return ((lowest, highest),)
    found: list[tuple[int, int]] = []
    for start, end in parts:
        start, end = max(start, lowest), min(end, highest)
        if found:
            start = max(start, found[-1][1] + 1)
        if start <= end:
            found.append((start, end))
    return tuple(found)


def idle_ranges(network: Network) -> tuple[str, ...]:
    """Those of `spec.dhcp.ranges` that give no address, or not all they name, and why; a part of a sentence each."""
    cidrs = [ipaddress.ip_network(text) for text in network.spec.cidrs]
    found = []
    for number, part in enumerate(network.spec.dhcp.ranges):
        start, end = int(ipaddress.ip_address(part.start)), int(ipaddress.ip_address(part.end))
        version = 4 if is_v4(part.start) else 6
        bounds = [(int(cidr.network_address), int(cidr.broadcast_address)) for cidr in cidrs if cidr.version == version]
        named = f"[{number}] ({part.start} to {part.end})"
        if start > end:
            found.append(f"{named} ends before it starts")
        elif not any(start <= last and end >= first for first, last in bounds):
            found.append(f"{named} is outside of the network")
        elif not any(start >= first and end <= last for first, last in bounds):
            found.append(f"{named} is partly outside of the network")
    return tuple(found)


def in_range(network: Network, address: str) -> Range | None:
    """The range of the network that the address is of."""
    number = ipaddress.ip_address(address)
    return next((item for item in ranges(network) if number in item.cidr), None)


def claim_name(network_uid: str, address: str) -> str:
    """Name of the claim of an address. One of IPv6 is written out, so that each has one name, which can be one."""
    return f"{network_uid}-{ipaddress.ip_address(address).exploded.replace('.', '-').replace(':', '-')}"


def mac_of(interface_uid: str) -> str:
    """The MAC that an interface has which asks for none: locally administered, and for life."""
    digest = hashlib.sha256(interface_uid.encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


VXLAN_OVERHEAD = 50
"""Bytes that a tunnel over IPv4 takes of a packet: Ethernet 14, IPv4 20, UDP 8, VXLAN 8."""
VXLAN_OVERHEAD_V6 = 70
UNDERLAY_MTU = 1500
"""What hosts' own network carries, if the class does not say."""
V6_LEAST = 1280
"""What IPv6 needs of a link (RFC 8200)."""

FIRST_VNI, LAST_VNI = 4096, 16777215


def carried(underlay_mtu: int, *, over_v6: bool) -> int:
    """The largest packet that fits into a tunnel between hosts."""
    return underlay_mtu - (VXLAN_OVERHEAD_V6 if over_v6 else VXLAN_OVERHEAD)


def vnis(network_uid: str) -> Iterator[int]:
    """Numbers to try for a network's VXLAN: the first follows from its uid, then the next ones, each once."""
    count = LAST_VNI - FIRST_VNI + 1
    start = int.from_bytes(hashlib.sha256(network_uid.encode()).digest()[:8]) % count
    return (FIRST_VNI + (start + step) % count for step in range(count))


def single(address: str) -> str:
    """An address as the range that has only it."""
    return f"{address}/{V4_BITS if is_v4(address) else 128}"
