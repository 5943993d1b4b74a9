"""What there is around networks: classes, interfaces, claims, groups, their machines and orders, looked up in the caches."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from kumulus.api.addresses import Address, is_v4
from kumulus.api.claims import IPAddress, SegmentId
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import DEFAULT_GROUP, Network, NetworkClass, NetworkClassSpec, NetworkInterface, NetworkType
from kumulus.api.routing import PhysicalNetwork, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.network.ranges import mac_of
from kumulus_controllers.orders import HAS_NIC, ON_NETWORK, host_of, work_orders
from kumulus_controllers.planning.ways import Way, device_on
from kumulus_controllers.storage.volume_plan import MADE_FOR

UID = "uid"
OF_NETWORK = "of-network"
OF_CLASS = "of-class"
IN_PHYSICAL = "in-physical"
UNNUMBERED = "unnumbered"
IN_GROUP = "in-group"
HAS_MAC = "has-mac"
CLAIMS_IN = "claims-in"
CLAIMED_BY = "claimed-by"
USES_NIC = "uses-nic"
NUMBER_OF = "number-of"
NUMBER_FOR = "number-for"
NUMBER_IN = "number-in"
NAMES_GROUP = "names-group"
MADE_BY = "made-by"
OVER_V6 = "over-v6"
ROUTES = "routes"
HAS_ROUTED = "has-routed"
BALANCES = "balances"


def network_key(interface: NetworkInterface) -> Key:
    """The network that an interface is to be in."""
    return Key(interface.spec.network_namespace or interface.namespace, interface.spec.network)


def at_home(interface: NetworkInterface) -> bool:
    """Whether it is in a network of its own namespace."""
    return network_key(interface).namespace == interface.namespace


def permits(network: Network, namespace: str | None) -> bool:
    """Whether its owner lets another namespace have interfaces in it."""
    return network.spec.type is NetworkType.SHARED and namespace in network.spec.allowed_namespaces


def counts(interface: NetworkInterface, network: Network) -> bool:
    """Whether an interface that names the network is to be reckoned with: anybody can name a network of another namespace,
    and is in it only when that is on record."""
    return at_home(interface) or interface.status.network == network.uid


def competes(interface: NetworkInterface, network: Network) -> bool:
    """Whether it has the MAC that it names in the network, or may get it: of two that come at once, the first does."""
    return counts(interface, network) or permits(network, interface.namespace)


def group_names(interface: NetworkInterface) -> tuple[str, ...]:
    """Names of its security groups, in its namespace."""
    return interface.spec.security_groups or (DEFAULT_GROUP,)


def mac(interface: NetworkInterface) -> str:
    """The MAC that it has, or will have."""
    return interface.status.mac_address or interface.spec.mac_address or mac_of(interface.uid)


def named_groups(group: SecurityGroup) -> set[str]:
    """The groups of its namespace that its rules name."""
    peers = [*(rule.from_ for rule in group.spec.ingress), *(rule.to for rule in group.spec.egress)]
    return {peer.security_group for peer in peers if peer is not None and peer.security_group is not None}


def interface_keys(vm: VirtualMachine) -> set[Key]:
    """The NetworkInterfaces that a machine's interfaces are, whether they exist or not."""
    return {Key(vm.namespace, item.interface_of(vm.name)) for item in vm.spec.interfaces}


def routed_names(router: Router) -> set[str]:
    """Names of the networks that a router is to have, or has."""
    return {*router.spec.networks, *(part.name for part in router.status.networks)}


def underlay(report: HostReport | None) -> Address | None:
    """Where the tunnels of a host end, if it has said so."""
    return report.status.network.underlay if report is not None and report.status.network is not None else None


def over_v6(report: HostReport | None) -> bool:
    """Whether that is an address of IPv6."""
    address = underlay(report)
    return address is not None and not is_v4(address)


def _made_by(interface: NetworkInterface) -> Iterable[str]:
    """Uid of the machine that brought it along."""
    uid = interface.metadata.annotations.get(MADE_FOR)
    return (uid,) if uid is not None else ()


class Networks:
    """The caches, as networks need them."""

    def __init__(self, caches: Caches) -> None:
        self.store = caches.store(Network)
        self.classes = caches.store(NetworkClass)
        self.physical = caches.store(PhysicalNetwork)
        self.interfaces = caches.store(NetworkInterface)
        self.groups = caches.store(SecurityGroup)
        self.claims = caches.reflected(IPAddress)
        self.numbers = caches.store(SegmentId)
        self.machines = caches.store(VirtualMachine)
        self.routers = caches.store(Router)
        self.balancers = caches.store(LoadBalancer)
        self.hosts = caches.store(Host)
        self.reports = caches.store(HostReport)
        self.orders = work_orders(caches)
        self.store.add_index(UID, lambda network: (network.uid,))
        self.store.add_index(OF_CLASS, lambda network: (network.spec.network_class or "",))
        self.store.add_index(IN_PHYSICAL, lambda network: (network.status.physical_network or "",))
        self.store.add_index(UNNUMBERED, lambda network: () if network.status.numbered else ("yes",))
        self.interfaces.add_index(UID, lambda item: (item.uid,))
        self.interfaces.add_index(OF_NETWORK, lambda item: (str(network_key(item)),))
        self.interfaces.add_index(IN_GROUP, lambda item: [f"{item.namespace}/{name}" for name in group_names(item)])
        self.interfaces.add_index(HAS_MAC, lambda item: (f"{network_key(item)} {mac(item)}",))
        self.interfaces.add_index(MADE_BY, _made_by)
        self.reports.add_index(OVER_V6, lambda report: ("yes",) if over_v6(report) else ())
        self.groups.add_index(NAMES_GROUP, lambda item: [f"{item.namespace}/{name}" for name in named_groups(item)])
        self.claims.add_index(CLAIMS_IN, lambda claim: (claim.spec.network,))
        self.claims.add_index(CLAIMED_BY, lambda claim: (claim.spec.interface_uid,))
        self.numbers.add_index(NUMBER_OF, lambda number: (number.spec.network,))
        self.numbers.add_index(NUMBER_FOR, lambda number: (f"{number.spec.namespace}/{number.spec.name}",))
        self.numbers.add_index(NUMBER_IN, lambda number: (number.spec.physical_network or "",))
        self.routers.add_index(ROUTES, lambda item: [f"{item.namespace}/{name}" for name in routed_names(item)])
        self.routers.add_index(HAS_ROUTED, lambda item: [part.uid for part in item.status.networks])
        self.balancers.add_index(BALANCES, lambda item: (f"{item.namespace}/{item.spec.network}",))
        self.machines.add_index(USES_NIC, lambda vm: map(str, interface_keys(vm)))

    def network(self, interface: NetworkInterface) -> Network | None:
        """The network that an interface is to be in, if there is one of that name."""
        key = network_key(interface)
        return self.store.get(key.name, key.namespace)

    def way_of(self, network: Network) -> Way | None:
        """What it needs of hosts when it is a VLAN of a physical network."""
        name, driver = network.status.physical_network, network.status.driver
        if name is None or driver is None:
            return None
        physical = self.physical.get(name)
        return Way(name, driver.value, physical.spec.uplinks if physical is not None else ())

    def uplinks(self, network: Network, hosts: Iterable[str]) -> Mapping[str, str]:
        """The devices by which hosts are connected to the physical network whose VLAN it is, by host."""
        way = self.way_of(network)
        there = {name: self.hosts.get(name) for name in hosts} if way is not None else {}
        found = {
            name: device_on(way.uplinks, host.metadata.labels)
            for name, host in there.items()
            if way is not None and host is not None
        }
        return {name: device for name, device in found.items() if device is not None}

    def interfaces_of(self, network: Network) -> list[NetworkInterface]:
        """All interfaces that are in it, and those of its namespace that wait for it, by name."""
        named = self.interfaces.by(OF_NETWORK, f"{network.namespace}/{network.name}")
        found = [item for item in named if counts(item, network)]
        return sorted(found, key=lambda item: (item.namespace or "", item.name))

    def rivals(self, interface: NetworkInterface) -> list[NetworkInterface]:
        """Other interfaces of its network with the same MAC."""
        network = self.network(interface)
        if network is None:
            return []
        found = self.interfaces.by(HAS_MAC, f"{network_key(interface)} {mac(interface)}")
        return [item for item in found if item.uid != interface.uid and competes(item, network)]

    def groups_of(self, interface: NetworkInterface) -> Mapping[str, SecurityGroup | None]:
        """Its security groups by name; None for one that is not there."""
        return {name: self.groups.get(name, interface.namespace) for name in group_names(interface)}

    def default_class(self) -> NetworkClass | None:
        """The class of networks that name none; of several the first by name, so that it is always the same."""
        return min(
            (item for item in self.classes if item.spec.default and not item.deleting),
            key=lambda item: item.name,
            default=None,
        )

    def class_of(self, network: Network) -> NetworkClass | None:
        """The class that a network names, or else the default one; None when it is not there."""
        named = network.spec.network_class
        return self.classes.get(named) if named is not None else self.default_class()

    def rest_seconds(self, network: Network) -> int:
        """How long its addresses rest."""
        offered = self.class_of(network)
        return (offered.spec if offered is not None else NetworkClassSpec()).rest_seconds

    def having(self, interface_uid: str) -> list[WorkOrder]:
        """Instance orders of machines that are to have the interface, or have it still."""
        return self.orders.by(HAS_NIC, interface_uid)

    def hosts_with(self, network: Network) -> dict[str, frozenset[str]]:
        """The hosts that need the network, for machines or for gateways, and the uids of their interfaces in it."""
        found: dict[str, set[str]] = {}
        for order in self.orders.by(ON_NETWORK, network.uid):
            here = found.setdefault(host_of(order), set())
            nics = order.spec.instance.nics if order.spec.instance is not None else ()
            here.update(nic.uid for nic in nics if nic.network == network.uid)
        for interface in self.interfaces_of(network):
            for order in self.having(interface.uid):
                found.setdefault(host_of(order), set()).add(interface.uid)
        return {host: frozenset(uids) for host, uids in found.items()}

    def router_addresses(self, network: Network) -> frozenset[Address]:
        """The addresses that routers have in it."""
        return frozenset(
            address
            for router in self.routers_of(network)
            for part in router.status.networks
            if part.uid == network.uid and not router.deleting
            for address in part.addresses
        )

    def routers_of(self, network: Network) -> list[Router]:
        """The routers that have the network, by name."""
        return sorted(self.routers.by(HAS_ROUTED, network.uid), key=lambda router: router.name)

    def balancers_in(self, network: Network) -> list[LoadBalancer]:
        """The load balancers that are to be in the network, by name."""
        found = self.balancers.by(BALANCES, f"{network.namespace}/{network.name}")
        return sorted(found, key=lambda balancer: balancer.name)

    def beyond(self, network: Network) -> list[NetworkInterface]:
        """The interfaces in other networks that a router passes packets from."""
        uids = {part.uid for router in self.routers_of(network) for part in router.status.networks} - {network.uid}
        others = [other for uid in sorted(uids) for other in self.store.by(UID, uid)]
        return [nic for other in others for nic in self.interfaces_of(other) if nic.status.network == other.uid]

    def underlays(self, hosts: Iterable[str]) -> Mapping[str, Address]:
        """Where the tunnels of these hosts end, as far as they have said so."""
        found = {}
        for host in hosts:
            report = self.reports.get(host, host_namespace(host))
            if report is not None and (address := underlay(report)) is not None:
                found[host] = address
        return found

    def over_v6(self) -> bool:
        """Whether there is a host whose tunnels end at an address of IPv6."""
        return bool(self.reports.by(OVER_V6, "yes"))


class Taken:
    """Numbers of the addresses that somebody has, kept up to date: what of a network is not here is free."""

    def __init__(self, networks: Networks) -> None:
        self._numbers: dict[tuple[str, int], set[int]] = {}
        for claim in networks.claims:
            self._changed(None, claim)
        networks.claims.listen(self._changed)

    def of(self, network_uid: str, version: int) -> set[int]:
        """Those of one network and family (4 or 6). It is alive: what is claimed later appears in it."""
        return self._numbers.setdefault((network_uid, version), set())

    def _changed(self, before: IPAddress | None, after: IPAddress | None) -> None:
        for claim, there in ((before, False), (after, True)):
            if claim is not None:
                key, number = _number(claim)
                taken = self._numbers.setdefault(key, set())
                if there:
                    taken.add(number)
                else:
                    taken.discard(number)


def _number(claim: IPAddress) -> tuple[tuple[str, int], int]:
    address = ipaddress.ip_address(claim.spec.address)
    return (claim.spec.network, address.version), int(address)


def names(items: Iterable[NetworkInterface], own_namespace: str | None, most: int = 5) -> str:
    """Some of these interfaces, for people of a namespace: those of others by their namespaces too."""
    found = [item.name if item.namespace == own_namespace else f"{item.namespace}/{item.name}" for item in items]
    return ", ".join(found[:most]) + (", ..." if len(found) > most else "")
