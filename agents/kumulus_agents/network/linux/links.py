"""Devices that carry a network: what is there, what it should be, and the commands between. Pure.

Commands are lines of `ip -batch` and `bridge -batch` (iproute2), made of names, numbers and addresses that were checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kumulus.api.addresses import is_v4
from kumulus.api.segments import SegmentOrder, Uplink
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.layout import Network, Place
from kumulus_agents.network.protocol import Foreign

LEG, UP = "leg", "up"
"""The cables' ends in the network's namespace."""
HOST_END, INNER_END = "fe80::1", "fe80::2"
"""Addresses of the uplink's ends."""

_BRIDGE = {
    "stp_state": 0,
    "mcast_snooping": 0,
    "no_linklocal_learn": 1,
    "nf_call_iptables": 1,
    "nf_call_ip6tables": 1,
}
"""No learning of link-local frames, which no rule sees. br_netfilter for this bridge, whatever holds for others."""


@dataclass(frozen=True, slots=True)
class Link:
    """A device that is there."""

    name: str
    kind: str
    master: str | None = None
    mtu: int = 0
    up: bool = False
    addresses: frozenset[str] = frozenset()
    details: Mapping[str, object] = field(default_factory=dict)
    alias: str = ""
    mac: str = ""
    port: Mapping[str, object] = field(default_factory=dict)
    """What holds for it as a port of its bridge."""
    parent: str | None = None
    """The device that it is a part of."""


@dataclass(frozen=True, slots=True)
class Commands:
    """What has to be done, and why."""

    ip: tuple[str, ...] = ()
    bridge: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    """What was not so, a sentence each."""


def parse(listing: str) -> dict[str, Link]:
    """Devices from `ip -json -details link` or `address`, by name."""
    links: dict[str, Link] = {}
    for raw in json.loads(listing or "[]"):
        if not raw.get("ifname"):
            continue
        info = raw.get("linkinfo", {})
        links[raw["ifname"]] = Link(
            name=raw["ifname"],
            kind=info.get("info_kind") or raw.get("link_type", ""),
            master=raw.get("master"),
            mtu=raw.get("mtu", 0),
            up="UP" in raw.get("flags", ()),
            addresses=frozenset(
                f"{address['local']}/{address['prefixlen']}"
                for address in raw.get("addr_info", ())
                if "local" in address
            ),
            details=info.get("info_data", {}),
            alias=raw.get("ifalias", ""),
            mac=raw.get("address", ""),
            port=info.get("info_slave_data", {}),
            parent=raw.get("link"),
        )
    return links


def outside(
    network: Network, places: Sequence[Place], links: Mapping[str, Link], underlay: str | None, port: int
) -> Commands:
    """On the host: bridge, tunnel or VLAN, the cables' ends, and taps that lost their bridge. The namespace and the
    device of an uplink are there."""
    order, uid = network.order, network.order.uid
    bridge = names.bridge(uid)
    devices: list[tuple[str, str, str | None]] = [(bridge, _make_bridge(order), None)]
    before: list[str] = []
    if order.vni and underlay:
        devices.append((names.tunnel(uid), _make_tunnel(order, underlay, port), bridge))
    if order.uplink is not None:
        if order.uplink.device in links and not links[order.uplink.device].up:  # no VLAN of it comes up before
            before.append(f"link set dev {order.uplink.device} up")
        devices.append((names.tunnel(uid), _make_vlan(uid, order.uplink), bridge))
    said, wrong = _devices(order, [*devices, *_cables(order, bridge)], links, underlay, port)
    said = before + said
    for place in places:
        tap = names.tap(place.port.nic.uid)
        if tap in links and links[tap].master != bridge:
            said.append(f"link set dev {tap} master {bridge}")
            wrong.append(f"{tap} was not plugged into {bridge}.")
    return Commands(ip=tuple(said), wrong=tuple(wrong))


def cables(order: SegmentOrder, links: Mapping[str, Link]) -> Commands:
    """On the host: the ends of the cables to what serves the network, plugged into nothing. The namespace is there."""
    said, wrong = _devices(order, _cables(order, None), links, None, 0)
    return Commands(ip=tuple(said), wrong=tuple(wrong))


def _cables(order: SegmentOrder, bridge: str | None) -> list[tuple[str, str, str | None]]:
    """Device, how it is made, and what it is plugged into."""
    if not order.subnets:
        return []
    uid = order.uid
    service, uplink = names.service(uid), names.uplink(uid)
    return [
        (service, _make_cable(uid, service, LEG, names.service_mac(uid)), bridge),
        (uplink, _make_cable(uid, uplink, UP, names.mac("uplink", uid)), None),
    ]


def _devices(
    order: SegmentOrder,
    devices: Sequence[tuple[str, str, str | None]],
    links: Mapping[str, Link],
    underlay: str | None,
    port: int,
) -> tuple[list[str], list[str]]:
    """Commands, and what was not so."""
    said: list[str] = []
    wrong: list[str] = []
    for device, make, master in devices:
        link = links.get(device)
        if link is not None and (why := _unfit(link, order, underlay, port)):
            said.append(f"link delete dev {device}")
            wrong.append(f"{device} {why}.")
            link = None
        elif link is None:
            wrong.append(f"{device} was missing.")
        if link is None:
            said.append(make)
        fixes = list(_fixes(link, device, order, master))
        if link is not None and fixes:
            wrong.append(f"{device} was not as it should be.")
        said += fixes
    return said, wrong


def _make_bridge(order: SegmentOrder) -> str:
    options = " ".join(f"{name} {value}" for name, value in _BRIDGE.items())
    return f"link add name {names.bridge(order.uid)} address {names.mac('bridge', order.uid)} type bridge {options}"


def _make_tunnel(order: SegmentOrder, underlay: str, port: int) -> str:
    return f"link add name {names.tunnel(order.uid)} type vxlan id {order.vni} local {underlay} dstport {port} learning"


def _make_vlan(uid: str, uplink: Uplink) -> str:
    return f"link add link {uplink.device} name {names.tunnel(uid)} type vlan id {uplink.vlan}"


def _make_cable(uid: str, device: str, inner: str, mac: str) -> str:
    return f"link add name {device} type veth peer name {inner} address {mac} netns {names.namespace(uid)}"


def _unfit(link: Link, order: SegmentOrder, underlay: str | None, port: int) -> str:
    """Why the device has to be made anew; empty when it has not."""
    carrier = "vlan" if order.uplink is not None else "vxlan"
    kinds = {names.BRIDGE: "bridge", names.TUNNEL: carrier, names.SERVICE: "veth", names.UPLINK: "veth"}
    if link.kind != (kind := kinds[link.name[:2]]):
        return f"was no {kind}"
    if kind == "vxlan":
        here = link.details.get("local", link.details.get("local6"))
        if (link.details.get("id"), link.details.get("port"), here) != (order.vni, port, underlay):
            return "was another tunnel"
    if kind == "vlan" and order.uplink is not None:
        if (link.details.get("id"), link.parent) != (order.uplink.vlan, order.uplink.device):
            return "was another VLAN"
        if link.details.get("protocol", "802.1Q") != "802.1Q":
            return "was a VLAN of another protocol"
    return ""


def _fixes(link: Link | None, device: str, order: SegmentOrder, master: str | None) -> Iterator[str]:
    if link is not None and link.kind == "bridge":
        off = [f"{name} {value}" for name, value in _BRIDGE.items() if int(str(link.details.get(name, value))) != value]
        if off:
            yield f"link set dev {device} type bridge {' '.join(off)}"
    alias = names.namespace(order.uid)
    if link is None or link.alias != alias:
        yield f"link set dev {device} alias {alias}"
    if not device.startswith(names.UPLINK) and (link is None or link.mtu != order.mtu):
        yield f"link set dev {device} mtu {order.mtu}"
    if link is None:
        yield f"link set dev {device} addrgenmode none"
    if master is not None and (link is None or link.master != master):
        yield f"link set dev {device} master {master}"
    if device.startswith(names.UPLINK) and (link is None or f"{HOST_END}/64" not in link.addresses):
        yield f"address add {HOST_END}/64 dev {device} nodad"
    if link is None or not link.up:
        yield f"link set dev {device} up"


def flooding(order: SegmentOrder, listing: str, underlay: str | None) -> Commands:
    """To whom the tunnel floods, from `bridge -json fdb show dev ...`."""
    tunnel = names.tunnel(order.uid)
    nobody = "00:00:00:00:00:00"
    are = {raw["dst"] for raw in json.loads(listing or "[]") if raw.get("mac") == nobody and raw.get("dst")}
    shall = {peer for peer in order.peers if peer != underlay and (underlay is None or is_v4(peer) is is_v4(underlay))}
    return Commands(
        bridge=(
            *(f"fdb append {nobody} dev {tunnel} dst {peer} self permanent" for peer in sorted(shall - are)),
            *(f"fdb delete {nobody} dev {tunnel} dst {peer} self" for peer in sorted(are - shall)),
        ),
        wrong=(f"{tunnel} did not flood to its peers.",) if shall != are else (),
    )


def inside(order: SegmentOrder, links: Mapping[str, Link]) -> Commands:
    """In the network's namespace, from its `ip -json -details address`; the cables are there."""
    said: list[str] = []
    wrong: list[str] = []
    own = f"{link_local(names.service_mac(order.uid))}/64"
    mine = [f"{subnet.service}/{subnet.cidr.partition('/')[2]}" for subnet in order.subnets]
    if any(is_v4(subnet.cidr) for subnet in order.subnets):
        mine.append(f"{names.METADATA}/32")
    for device, addresses in (("lo", []), (LEG, [own, *mine]), (UP, [f"{INNER_END}/64"])):
        link = links.get(device)
        if link is None:
            wrong.append(f"{device} was missing in {names.namespace(order.uid)}.")
            continue
        before = len(said)
        if device == LEG and link.mtu != order.mtu:
            said.append(f"link set dev {device} mtu {order.mtu}")
        if not link.up:
            if device != "lo":
                said.append(f"link set dev {device} addrgenmode none")
            said.append(f"link set dev {device} up")
        said += [
            f"address add {address} dev {device}{'' if is_v4(address) else ' nodad'}"
            for address in addresses
            if address not in link.addresses
        ]
        if device == LEG:
            said += [
                f"address delete {address} dev {device}"
                for address in sorted(link.addresses)
                if address not in addresses
            ]
        if len(said) != before:
            wrong.append(f"{device} in {names.namespace(order.uid)} was not as it should be.")
    return Commands(ip=tuple(said), wrong=tuple(wrong))


SYSCTLS = {
    "net.ipv4.ip_forward": 0,
    "net.ipv6.conf.all.forwarding": 0,
    "net.ipv6.conf.all.accept_ra": 0,
    "net.ipv6.conf.default.accept_ra": 0,
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.accept_redirects": 0,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv6.conf.all.accept_redirects": 0,
}
"""Of the namespace: nothing is routed through it, and it believes no guest."""


def foreign(links: Mapping[str, Link]) -> tuple[Foreign, ...]:
    """What is not Kumulus' own."""
    return tuple(
        Foreign(link.name, link.kind or "ethernet", link.master)
        for link in sorted(links.values(), key=lambda one: one.name)
        if not names.is_ours(link.name) and link.name != "lo"
    )
