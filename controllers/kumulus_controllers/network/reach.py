"""By which address the cluster reaches a machine in a tenant's network, if it does. Pure.

Who can choose what is published can make a load balancer or an ingress of the cluster send to anybody
(CVE-2021-25740). So an address counts only when it is claimed for that very interface or FloatingIP, and is
the operator's to give in the world: that of a FloatingIP, or one in a range that an ExternalNetwork says to be
routed to the network's namespace. Ranges of networks are what tenants choose them to be, and mean nothing
outside.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from kumulus.api.addresses import Address, is_v4
from kumulus.api.compute import VirtualMachine
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, FloatingPhase, Router, RouterPhase

CidrRange = ipaddress.IPv4Network | ipaddress.IPv6Network
Number = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Member:
    """A machine, by one of its interfaces."""

    machine: VirtualMachine
    interface: NetworkInterface
    floating: tuple[FloatingIP, ...] = ()
    """FloatingIPs that stand for the interface, or for ports of it; the oldest first."""


@dataclass(frozen=True, slots=True)
class Reached:
    """By which address the cluster reaches an interface."""

    address: Address
    up: bool
    """Whether a host says that it routes there."""


def bare(router: Router, external: ExternalNetwork) -> bool:
    """Whether packets of the router's networks are in the world with addresses of their own."""
    same = router.status.external_network == external.uid
    return same and not router.deleting and not router.spec.source_nat and external.spec.allow_routed


class Outside:
    """What is outside of a network, as far as it leads to machines in it."""

    def __init__(
        self,
        network: Network,
        routers: Iterable[Router],
        external: Iterable[ExternalNetwork],
        claimed: frozenset[tuple[str, Address]],
        cluster: Iterable[CidrRange],
    ) -> None:
        """`routers` are those that have the network, `external` are all networks outside, `claimed` are addresses, each with
        the uid of whose it is, and `cluster` are ranges of the cluster itself."""
        there = tuple(external)
        self._namespace = network.namespace
        self._claimed, self._cluster = claimed, tuple(cluster)
        self._external = {one.uid: ipaddress.ip_network(one.spec.cidr) for one in there}
        self.bare = tuple((router, one) for router in routers for one in there if bare(router, one))
        """Routers without source NAT, each with the external network that lets it do without."""
        said = [(item, one.uid) for one in there for item in one.spec.routed] if self.bare else []
        self._owners = [(ipaddress.ip_network(item.cidr), item.namespace, where) for item, where in said]

    def way(self, member: Member, *, v4: bool) -> Reached | None:
        """The address of that family that may be published: the interface's own, if that is routed to its network, else that
        of a FloatingIP; None when there is none."""
        for address in member.interface.status.addresses if self.bare else ():
            number = ipaddress.ip_address(address)
            router = self._router(number) if is_v4(address) is v4 else None
            if router is not None and self._may(member.interface.uid, number):
                return Reached(str(number), router.status.phase is RouterPhase.ACTIVE)
        for item in member.floating:
            given = item.status.address
            if given is None or is_v4(given) is not v4 or not _whole(item, member.interface):
                continue
            number, cidr = ipaddress.ip_address(given), self._external.get(item.status.network or "")
            if cidr is not None and number in cidr and self._may(item.uid, number):
                return Reached(str(number), item.status.phase is FloatingPhase.ACTIVE)
        return None

    def _may(self, holder: str, number: Number) -> bool:
        """Whether an address is the holder's by a claim, and none that nobody may be sent to."""
        special = number.is_loopback or number.is_link_local or number.is_multicast or number.is_unspecified
        mapped = isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None
        if special or mapped or any(number in one for one in self._cluster):
            return False
        return (holder, str(number)) in self._claimed

    def _router(self, number: Number) -> Router | None:
        """The router by which the world reaches that address of the network; None when it does not."""
        owner = self._owner_of(number)
        if owner is None or owner[0] != self._namespace:
            return None
        for router, external in self.bare:
            # By an external network that does not say so, the same address may be somebody else's.
            if external.uid in owner[1] and is_v4(external.spec.gateway) is (number.version == 4):
                return router
        return None

    def _owner_of(self, number: Number) -> tuple[str, frozenset[str]] | None:
        """Whose an address is in the world, and in which external networks (uids), as the operator says; nobody's when that is
        said of two namespaces."""
        said = [(cidr.prefixlen, namespace, where) for cidr, namespace, where in self._owners if number in cidr]
        longest = max((length for length, _, _ in said), default=0)
        owners = {namespace for length, namespace, _ in said if length == longest}
        if len(owners) != 1:
            return None
        return owners.pop(), frozenset(where for length, _, where in said if length == longest)


def _whole(item: FloatingIP, interface: NetworkInterface) -> bool:
    """Whether it stands for that interface as a whole, and a router has it."""
    meant = item.spec.target is not None and item.spec.target.interface == interface.name
    return meant and not item.deleting and item.status.router is not None
