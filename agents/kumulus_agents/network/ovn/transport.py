"""The bridge of tunnels: which network's frames go to which hosts, as flows of OpenFlow. Pure.

One tunnel port has all hosts, told apart by the addresses, and all networks, told apart by their numbers (VNI). What comes
out of a network's port goes to the host from which its target was last seen, and to all others that have the network while
that is not known. What comes in from one of these hosts goes to the network's port, never to another host; what comes from
anybody else goes nowhere. A network that is a VLAN goes to the bridge of its uplink, and no other way. Frames from or to
what serves a network do neither. Gateways of several hosts have a link with each other beside the networks. Source: ovs-fields(7), ovs-actions(7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kumulus.api.addresses import is_v4
from kumulus.api.gateways import GatewayOrder
from kumulus.api.segments import SegmentOrder
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.gateway_links import LINK_VNI

IN, OUT, SEEN, ALL = 0, 10, 20, 21
"""Tables."""
REMEMBERED = 300
"""Seconds for which it is known where somebody was last seen."""
_BASE = 1
_LEARNED = 1 << 48
_PRESENT = 0x1000
"""Of a VLAN's number in OpenFlow: there is a tag."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Numbers of ports of the bridge."""

    tunnel: int
    networks: Mapping[str, int]
    """By the network's uid."""
    uplinks: Mapping[str, int] = field(default_factory=dict)
    """Ways to uplinks, by the network's uid."""


def cookie(uid: str) -> int:
    """What marks flows of a network, or of a gateway's link."""
    return int(names.short(uid), 16) << 4 | 2


def base() -> Sequence[str]:
    """Flows for all networks."""
    mark = f"cookie={_BASE:#x}"
    return (
        f"{mark},table={OUT},priority=10,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00 actions=resubmit(,{ALL})",
        f"{mark},table={OUT},priority=0 actions=resubmit(,{SEEN})",
        f"{mark},table={SEEN},priority=0 actions=resubmit(,{ALL})",
    )


def flows(order: SegmentOrder, ends: Ends, underlay: str | None) -> Sequence[str]:
    """Flows of one network; none when it is on this host alone, or is not connected yet."""
    end = ends.networks.get(order.uid)
    if order.uplink is not None:
        return _vlan(order, end, ends.uplinks.get(order.uid))
    if order.vni is None or underlay is None or end is None:
        return ()
    mark = cookie(order.uid)
    service = names.service_mac(order.uid)
    number = f"set_field:{order.vni}->metadata"
    family = "IPV4" if is_v4(underlay) else "IPV6"
    learn = ",".join(
        [
            f"table={SEEN}",
            f"cookie={mark | _LEARNED:#x}",
            f"hard_timeout={REMEMBERED}",
            "priority=1",
            "OXM_OF_METADATA[]",
            "NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[]",
            "load:NXM_NX_TUN_ID[]->NXM_NX_TUN_ID[]",
            f"load:NXM_NX_TUN_{family}_SRC[]->NXM_NX_TUN_{family}_DST[]",
            f"output:{'NXM_OF_IN_PORT[]'}",
        ]
    )
    target, sender = ("tun_dst", "tun_src") if is_v4(underlay) else ("tun_ipv6_dst", "tun_ipv6_src")
    peers = sorted(peer for peer in order.peers if peer != underlay and is_v4(peer) is is_v4(underlay))
    everywhere = [f"set_field:{peer}->{target},output:{ends.tunnel}" for peer in peers]
    head = f"cookie={mark:#x}"
    comes, leaves = f"in_port={ends.tunnel},tun_id={order.vni}", f"in_port={end}"
    return (
        *(
            f"{head},table={IN},priority=20,{way},{side}={service} actions=drop"
            for way in (comes, leaves)
            for side in ("dl_src", "dl_dst")
        ),
        *(f"{head},table={IN},priority={said}" for said in _routed_here(order, comes, leaves)),
        f"{head},table={IN},priority=10,{leaves} actions={number},resubmit(,{OUT})",
        *(
            f"{head},table={IN},priority={priority},{comes},{sender}={peer}{what}"
            f" actions={number},learn({learn}),output:{end}"
            for peer in peers
            for priority, what in ((10, ""), *_told_router(order))
        ),
        f"{head},table={ALL},priority=10,metadata={order.vni} actions="
        + ",".join([f"set_field:{order.vni}->tun_id", *everywhere] if everywhere else ["drop"]),
    )


def _vlan(order: SegmentOrder, end: int | None, uplink: int | None) -> Sequence[str]:
    """Flows of a network that is a VLAN: its frames get the tag on their way to the uplink, and lose it on their way back. Those
    that have one already, or are from or to what serves the network or in its place, go nowhere."""
    if order.uplink is None or order.uplink.vlan is None or end is None or uplink is None:
        return ()
    head = f"cookie={cookie(order.uid):#x},table={IN}"
    vlan, service = order.uplink.vlan, names.service_mac(order.uid)
    comes, leaves = f"in_port={uplink},dl_vlan={vlan}", f"in_port={end}"
    return (
        *(
            f"{head},priority=20,{way},{side}={service} actions=drop"
            for way in (comes, leaves)
            for side in ("dl_src", "dl_dst")
        ),
        *(f"{head},priority={said}" for said in _routed_here(order, comes, leaves)),
        *(
            f"{head},priority={priority},{comes},{what[1:]} actions=pop_vlan,output:{end}"
            for priority, what in _told_router(order)
        ),
        *(f"{head},priority=20,{comes},{what} actions=drop" for what in _served_here(order)),
        *(f"{head},priority=20,{leaves},{what} actions=drop" for what in _asked_here(order)),
        f"{head},priority=10,{leaves},vlan_tci=0x0000/0x1fff"
        f" actions=push_vlan:0x8100,set_field:{vlan | _PRESENT}->vlan_vid,output:{uplink}",
        f"{head},priority=10,{comes} actions=pop_vlan,output:{end}",
    )


def _routed_here(order: SegmentOrder, comes: str, leaves: str) -> Iterator[str]:
    """What never is: this host's logical router comes from elsewhere, or routes for somebody there."""
    if order.router is not None:
        mac = order.router.mac
        yield f"20,{comes},dl_src={mac} actions=drop"
        yield f"20,{leaves},dl_dst={mac} actions=drop"
        for family in ("ip", "ipv6"):
            yield f"20,{comes},{family},dl_dst={mac} actions=drop"


def _told_router(order: SegmentOrder) -> Sequence[tuple[int, str]]:
    """What it is told for all that, with its priority: where the gateway is. (ARP is neither family.)"""
    return ((25, f",icmp6,icmp_type=136,icmp_code=0,dl_dst={order.router.mac}"),) if order.router is not None else ()


def _served_here(order: SegmentOrder) -> Iterator[str]:
    """What nobody says on the wire of a VLAN but what serves the network on each host: others are there too."""
    for subnet in order.subnets:
        if is_v4(subnet.service):
            yield f"arp,arp_spa={subnet.service}"
        else:
            yield f"icmp6,icmp_type=136,icmp_code=0,nd_target={subnet.service}"
    if order.subnets and order.dhcp:
        yield "udp,tp_src=67"
        yield "udp6,tp_src=547"


def _asked_here(order: SegmentOrder) -> Sequence[str]:
    """What guests ask their own host alone: a server on the wire would keep an address for each."""
    return ("udp,tp_dst=67", "udp6,tp_dst=547") if order.subnets and order.dhcp else ()


def link(order: GatewayOrder, tunnel: int, end: int, underlay: str | None) -> Sequence[str]:
    """Flows of the link between the hosts of a gateway: each may send to each of the others, and nobody else. `end`: the port
    of the bridge that the gateway's cable is."""
    if underlay is None:
        return ()
    target, sender = ("tun_dst", "tun_src") if is_v4(underlay) else ("tun_ipv6_dst", "tun_ipv6_src")
    head, own = f"cookie={cookie(order.uid):#x},table={IN},priority=10", order.redundancy.mac
    peers = [peer for peer in order.redundancy.peers if is_v4(peer.underlay) is is_v4(underlay)]
    return tuple(
        flow
        for peer in sorted(peers, key=lambda one: one.underlay)
        for flow in (
            f"{head},in_port={end},dl_src={own},dl_dst={peer.mac}"
            f" actions=set_field:{LINK_VNI}->tun_id,set_field:{peer.underlay}->{target},output:{tunnel}",
            f"{head},in_port={tunnel},tun_id={LINK_VNI},{sender}={peer.underlay},dl_src={peer.mac},dl_dst={own}"
            f" actions=output:{end}",
        )
    )


def replacing(network: str, before: Sequence[str] | None, said: Sequence[str]) -> Sequence[str]:
    """Commands of one bundle that have a network have these flows instead of those before (None: not known which). What was
    learned stays while every host that it was learned of still has the network."""
    gone = before is None or bool({flow for flow in before if "learn(" in flow} - set(said))
    marks = [cookie(network), cookie(network) | _LEARNED] if gone or not said else [cookie(network)]
    return (*(f"delete cookie={mark:#x}/-1" for mark in marks), *(f"add {flow}" for flow in said))


def same(differences: str) -> bool:
    """Whether what `ovs-ofctl diff-flows BRIDGE FILE` says are no differences: where somebody was last seen, or the same flow
    twice, as it does for fragments, whose bits the bridge has others of in mind than it says."""
    lines = [line for line in differences.splitlines() if not line.startswith(f"-table={SEEN} priority=1,")]
    there, wanted = ({line[1:] for line in lines if line.startswith(sign)} for sign in "-+")
    return there == wanted
