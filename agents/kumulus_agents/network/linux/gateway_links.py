"""Devices of a gateway: what is there, what it should be, and the commands between. Pure.

On the host each leg is the bridge's end of a cable. The other end is in the gateway's network namespace, without an address
until this host is the active one: keepalived brings addresses. Commands are lines of `ip -batch` and `bridge -batch`.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping

from kumulus.api.addresses import is_v4
from kumulus.api.gateways import GatewayLeg, GatewayOrder
from kumulus.api.segments import Uplink
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.gateway_rules import LINK
from kumulus_agents.network.linux.links import Commands, Link
from kumulus_agents.network.protocol import NetworkError

LINK_VNI = 4095
"""Number of the VXLAN between hosts that have gateways; those of networks are greater."""
LINK_MTU = 1280


def way(uplink: Uplink) -> str:
    """What a device of the host, or a VLAN there, is called here."""
    return uplink.device if uplink.vlan is None else f"{uplink.device}.{uplink.vlan}"


def outer_bridge(uplink: Uplink, there: Mapping[str, Link]) -> str:
    """The bridge that legs by this uplink are plugged into: the host's own, when the device is one, else one of ours.

    Raises `NetworkError`: `UplinkMissing`, `UplinkInUse`.
    """
    device = there.get(uplink.device)
    if device is None:
        raise NetworkError(
            f"This host has no device {uplink.device}, which PhysicalNetwork says is the way: make it, or correct the uplinks.",
            reason="UplinkMissing",
        )
    if uplink.vlan is None and device.kind == "bridge":
        return device.name
    bridge = names.outer_bridge(way(uplink))
    if uplink.vlan is None and device.master not in (None, bridge):
        raise NetworkError(
            f"Device {uplink.device} is plugged into {device.master}: name that in the uplinks of PhysicalNetwork.",
            reason="UplinkInUse",
        )
    if uplink.vlan is None and any(not ipaddress.ip_interface(one).is_link_local for one in device.addresses):
        raise NetworkError(
            f"Device {uplink.device} has addresses, which it would lose as an uplink: put it and its addresses into a bridge"
            " of the host, and name that in the uplinks of PhysicalNetwork.",
            reason="UplinkInUse",
        )
    return bridge


def unused_bridges(there: Mapping[str, Link], orders: Mapping[str, GatewayOrder]) -> tuple[str, ...]:
    """Our bridges and VLANs for uplinks that no gateway uses, and the link between hosts when there is no gateway. What a
    cable of a gateway is plugged into is in use, whichever driver's gateway that is."""
    ways = {way(leg.uplink) for order in orders.values() for leg in order.legs if leg.uplink is not None}
    used = {names.outer_bridge(one) for one in ways} | {names.outer_vlan(one) for one in ways}
    if orders:
        used |= {names.link_bridge(), names.link_tunnel()}
    cables = (names.OUTER_LEG, names.LINK)
    plugged = (link for link in there.values() if names.is_ours(link.name) and link.name[:2] in cables)
    used |= {link.master for link in plugged if link.master is not None}
    kinds = (names.OUTER_BRIDGE, names.OUTER_VLAN, names.LINK_BRIDGE, names.LINK_TUNNEL)
    ours = (link for link in there.values() if names.is_ours(link.name) and link.name[:2] in kinds)
    return tuple(sorted(link.name for link in ours if not {link.name, link.master} & used))


def outside(order: GatewayOrder, there: Mapping[str, Link], masters: Mapping[str, str | None]) -> Commands:
    """On the host: the cables to the gateway's namespace, which is there, and our bridges for its uplinks. `masters`: what the
    ends of its link and of its legs are plugged into, by the end's name; None when somebody else plugs it in. Where the way
    of a leg into an external network is not in it, that is by the uplink's bridge.

    Raises `NetworkError`: `UplinkMissing`, `UplinkInUse`.
    """
    said: list[str] = []
    wrong: list[str] = []
    alias = names.gateway_namespace(order.uid)
    wanted: set[str] = set()

    def cable(device: str, inner: str, mac: str, mtu: int, bridge: str | None) -> None:
        wanted.add(device)
        link = there.get(device)
        if link is None:
            wrong.append(f"{device} was missing.")
            said.append(f"link add name {device} type veth peer name {inner} address {mac} netns {alias}")
            said.append(f"link set dev {device} alias {alias} addrgenmode none")
        plugged = bridge is None or (link is not None and link.master == bridge)
        fixes = [
            *([f"link set dev {device} mtu {mtu}"] if link is None or link.mtu != mtu else []),
            *([] if plugged else [f"link set dev {device} master {bridge}"]),
            *(quiet(device, link) if bridge == names.link_bridge() else []),
            *([f"link set dev {device} up"] if link is None or not link.up else []),
        ]
        if link is not None and fixes:
            wrong.append(f"{device} was not as it should be.")
        said.extend(fixes)

    cable(names.link(order.uid), LINK, order.redundancy.mac, LINK_MTU, masters[names.link(order.uid)])
    for leg in order.legs:
        inner, device = names.inner(leg.network), end(order, leg)
        if leg.uplink is None or device in masters:
            cable(device, inner, leg.mac, leg.mtu, masters[device])
        else:
            bridge = outer_bridge(leg.uplink, there)
            made = list(_outer(leg.uplink, bridge, there))
            if made:
                wrong.append(f"{bridge} was not as it should be.")
            said += made
            cable(device, inner, leg.mac, leg.mtu, bridge)
    for name, link in sorted(there.items()):
        if link.alias == alias and name not in wanted:
            said.append(f"link delete dev {name}")
            wrong.append(f"{name} was not ordered.")
    return Commands(ip=tuple(said), wrong=tuple(wrong))


def end(order: GatewayOrder, leg: GatewayLeg) -> str:
    """The host's end of the cable to a leg."""
    return (names.leg if leg.uplink is None else names.outer_leg)(order.uid, leg.network)


def _outer(uplink: Uplink, bridge: str, there: Mapping[str, Link]) -> Iterator[str]:
    """Our bridge for an uplink that is none."""
    if bridge == uplink.device:
        return
    device = uplink.device
    if bridge not in there:
        yield f"link add name {bridge} type bridge stp_state 0 mcast_snooping 0"
        yield f"link set dev {bridge} addrgenmode none"
    if uplink.vlan is not None:
        device = names.outer_vlan(way(uplink))
        if not there[uplink.device].up:  # no VLAN of it comes up before
            yield f"link set dev {uplink.device} up"
        if device not in there:
            yield f"link add link {uplink.device} name {device} type vlan id {uplink.vlan}"
    if device not in there or there[device].master != bridge:
        yield f"link set dev {device} master {bridge}"
    for name in (device, bridge):
        if name not in there or not there[name].up:
            yield f"link set dev {name} up"


def link(there: Mapping[str, Link], underlay: str | None, port: int) -> Commands:
    """What the gateways of this host have with those of others: a bridge, and a tunnel that floods to nobody."""
    bridge, tunnel = names.link_bridge(), names.link_tunnel()
    said: list[str] = []
    if bridge not in there:
        said.append(f"link add name {bridge} type bridge stp_state 0 mcast_snooping 0")
        said.append(f"link set dev {bridge} addrgenmode none")
    if bridge not in there or not there[bridge].up:
        said.append(f"link set dev {bridge} up")
    if underlay is not None:
        here = there.get(tunnel)
        if here is not None and here.details.get("local", here.details.get("local6")) != underlay:
            said.append(f"link delete dev {tunnel}")
            here = None
        if here is None:
            said.append(f"link add name {tunnel} type vxlan id {LINK_VNI} local {underlay} dstport {port} nolearning")
            said.append(f"link set dev {tunnel} addrgenmode none mtu {LINK_MTU}")
        if here is None or here.master != bridge:
            said.append(f"link set dev {tunnel} master {bridge}")
        said += quiet(tunnel, here)
        if here is None or not here.up:
            said.append(f"link set dev {tunnel} up")
    return Commands(ip=tuple(said), wrong=("The link between gateways was not as it should be.",) if said else ())


_QUIET = ("learning", "flood", "mcast_flood", "bcast_flood")


def quiet(device: str, link: Link | None) -> list[str]:
    """Has a port of the link's bridge learn nothing, and get nothing but what is for those who are known to be there."""
    if link is not None and link.master == names.link_bridge() and all(link.port.get(one) is False for one in _QUIET):
        return []
    return [f"link set dev {device} type bridge_slave {' '.join(f'{one} off' for one in _QUIET)}"]


def peers(orders: Mapping[str, GatewayOrder], listing: str, underlay: str | None) -> Commands:
    """Who is where on the link between gateways, from `bridge -json fdb show br ...`: this host's gateways behind their
    cables, their other hosts behind the tunnel. Nobody else is anywhere."""
    tunnel, bridge = names.link_tunnel(), names.link_bridge()
    nobody = "00:00:00:00:00:00"
    listed = json.loads(listing or "[]")
    are = {(raw["mac"], raw["dst"]) for raw in listed if raw.get("dst") and raw.get("mac") != nobody}
    known = {
        (raw["mac"], raw["ifname"])
        for raw in listed
        if raw.get("master") == bridge and raw.get("state") != "permanent"  # which are the devices' own
    }
    behind = {(order.redundancy.mac, names.link(order.uid)) for order in orders.values()}
    behind |= {(peer.mac, tunnel) for order in orders.values() for peer in order.redundancy.peers}
    plugged = {raw.get("ifname") for raw in listed if raw.get("master") == bridge}
    behind = {(mac, device) for mac, device in behind if device in plugged}
    shall = {
        (peer.mac, peer.underlay)
        for order in orders.values()
        for peer in order.redundancy.peers
        if underlay is not None and is_v4(peer.underlay) is is_v4(underlay)
    }
    return Commands(
        bridge=(
            *(f"fdb delete {mac} dev {tunnel} dst {host} self" for mac, host in sorted(are - shall)),
            *(f"fdb replace {mac} dev {tunnel} dst {host} self permanent" for mac, host in sorted(shall - are)),
            *(f"fdb delete {mac} dev {device} master" for mac, device in sorted(known - behind)),
            *(f"fdb replace {mac} dev {device} master static" for mac, device in sorted(behind - known)),
        ),
        wrong=("The link between gateways did not know its ends.",) if shall - are or behind != known else (),
    )


def inside(order: GatewayOrder, links: Mapping[str, Link]) -> Commands:
    """In the gateway's namespace, from its `ip -json -details address`; the cables are there."""
    said: list[str] = []
    wrong: list[str] = []
    own = f"{link_local(order.redundancy.mac)}/64"
    for device, mac, mtu, addresses in (
        ("lo", "", 0, ()),
        (LINK, order.redundancy.mac, LINK_MTU, (own,)),
        *((names.inner(leg.network), leg.mac, leg.mtu, ()) for leg in order.legs),
    ):
        link = links.get(device)
        if link is None:
            wrong.append(f"{device} was missing in {names.gateway_namespace(order.uid)}.")
            continue
        before = len(said)
        if mac and link.mac != mac:
            said.append(f"link set dev {device} address {mac}")
        if mtu and link.mtu != mtu:
            said.append(f"link set dev {device} mtu {mtu}")
        if not link.up:
            if device != "lo":
                said.append(f"link set dev {device} addrgenmode none")
            said.append(f"link set dev {device} up")
        said += [f"address add {address} dev {device} nodad" for address in addresses if address not in link.addresses]
        if len(said) != before:
            wrong.append(f"{device} in {names.gateway_namespace(order.uid)} was not as it should be.")
    return Commands(ip=tuple(said), wrong=tuple(wrong))


def leftovers(order: GatewayOrder, links: Mapping[str, Link]) -> tuple[str, ...]:
    """Takes away what a keepalived has left that ended without a word: the next one begins without addresses."""
    own = f"{link_local(order.redundancy.mac)}/64"
    return tuple(
        f"address delete {address} dev {name}"
        for name, link in sorted(links.items())
        for address in sorted(link.addresses)
        if name != "lo" and address != own
    )


def neighbours(order: GatewayOrder) -> tuple[str, ...]:
    """The other hosts' ends of the link are known without asking, and are found on it whoever looks for them."""
    ends = [(link_local(peer.mac), peer.mac) for peer in order.redundancy.peers]
    return (
        *(f"neigh replace {address} lladdr {mac} dev {LINK} nud permanent" for address, mac in ends),
        *(f"route replace {address}/128 dev {LINK}" for address, _ in ends),
    )


def routes(order: GatewayOrder) -> list[tuple[str, str, str]]:
    """Ways besides those that come with addresses: where to, by whom, with its device. The kernel drops them with the last
    address of the device, so keepalived brings them after the addresses."""
    every = {True: "0.0.0.0/0", False: "::/0"}
    wanted = [(every[is_v4(via)], via) for via in (order.balancer.gateways if order.balancer is not None else ())]
    wanted += [(route.destination, route.via) for route in (order.router.routes if order.router is not None else ())]
    return [(to, via, names.inner(leg.network)) for to, via in wanted if (leg := _leg_to(order, via)) is not None]


def _leg_to(order: GatewayOrder, via: str) -> GatewayLeg | None:
    address = ipaddress.ip_address(via)
    for leg in order.legs:
        if any(address in ipaddress.ip_interface(one).network for one in leg.addresses):
            return leg
    return None


SYSCTLS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv6.conf.all.accept_ra": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.arp_announce": 2,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv4.conf.all.accept_redirects": 0,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv4.conf.default.send_redirects": 0,
    "net.ipv6.conf.all.accept_redirects": 0,
    "net.ipv4.ip_nonlocal_bind": 1,
    "net.ipv6.ip_nonlocal_bind": 1,
    "net.ipv4.ip_unprivileged_port_start": 0,
}
"""Of the namespace: it routes, and believes nobody. Programs may bind to addresses that are elsewhere now, and need no
privilege for any port."""


def queues(order: GatewayOrder) -> list[str]:
    """Of devices: what waits until a neighbour is found takes little memory."""
    devices = [names.inner(leg.network) for leg in order.legs]
    return [f"net.{ip}.neigh.{device}.unres_qlen_bytes=16384" for ip in ("ipv4", "ipv6") for device in devices]
