"""What a guest's own bridge does with packets for other networks of its router: flows that stand beside those of `guard`. Pure.

What is for a gateway's MAC and an address in one of those networks is given the MAC of the logical router instead. What a
gateway brought from somebody there is answered through the gateway: it has seen the question. A packet at the end of its time (TTL) goes to
the gateway, which says so to the sender. While a guest knows a gateway it is told that it is there, whether it is or not:
what needs none goes on without. Who is a gateway's successor says so by himself. Sources: RFC 826, 4861; ovs-actions(7).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from kumulus.api.addresses import is_v4
from kumulus_agents.network.ovn.routing import Detour
from kumulus_agents.network.ovn.transport import SEEN

ANSWERED_SECONDS = 60
"""For which one whose packets a gateway brought to an address of the guest's is answered from there through the gateway."""
ANSWERED_MOST = 1024
"""So many of them at a time."""
ANSWERED = 22
"""Table of what has become an advertisement: only such a one has a target's MAC address to be set."""
_COOKIE = 0x4
_ETHERTYPES = {True: "0x0800", False: "0x86dd"}
_FIELDS = {True: ("ip", "nw_src", "nw_dst", "NXM_OF_IP"), False: ("ipv6", "ipv6_src", "ipv6_dst", "NXM_NX_IPV6")}


def flows(detour: Detour, inner: int, *, advertises: bool = True) -> Iterator[str]:
    """Without their mark. `inner`: the number of the port towards OVN; `advertises`: whether the datapath can make a neighbour
    advertisement of a solicitation, as that of Open vSwitch can and the kernel's cannot (`nd_reserved`, ovs-fields(7)): a bridge of
    the kernel's takes no flows at all with one that does. They stand between what a guest must never send
    (priority 60) and what goes to OVN as it is (0); what comes from there has priority 100."""
    on = f"output:{inner}"
    yield f"table=0,priority=70,dl_dst={detour.mac} actions=drop"
    for gateway in detour.gateways:
        for address in (one for one in detour.known if advertises or is_v4(one)):
            yield f"table=0,priority=65,{_still_there(gateway, address)}"
    seen = f"resubmit(,{SEEN})"
    for way in detour.ways:
        family, source, target, _ = _FIELDS[is_v4(way.source)]
        for range_ in way.targets:
            own = ipaddress.ip_network(range_).network_address
            for gateway in detour.gateways:
                meant = f"{family},dl_dst={gateway},{source}={way.source}"
                for ends in ("nw_ttl=0", "nw_ttl=1"):
                    yield f"table=0,priority=31,{meant},{target}={range_},{ends} actions={on}"
                yield f"table=0,priority=31,{meant},{target}={own} actions={on}"
                yield f"table=0,priority=30,{meant},{target}={range_} actions={seen}"
    for four in (True, False):
        ranges = sorted({one for way in detour.ways if is_v4(way.source) is four for one in way.targets})
        for range_ in ranges:
            family, source, _, _ = _FIELDS[four]
            for gateway in detour.gateways:
                comes = f"in_port={inner},{family},dl_src={gateway},{source}={range_}"
                yield f"table=0,priority=110,{comes} actions={_answered(four)},ALL"
    for gateway in detour.gateways if advertises else ():
        answer = f"icmp6,icmp_type=136,icmp_code=0,dl_src={gateway}"
        yield f"table={ANSWERED},priority=1,{answer} actions=set_field:{gateway}->nd_tll,IN_PORT"
    yield f"table={SEEN},priority=0 actions=set_field:{detour.mac}->eth_dst,{on}"


def _answered(four: bool) -> str:
    field = _FIELDS[four][3]
    said = [
        f"table={SEEN}",
        f"cookie={_COOKIE:#x}",
        f"hard_timeout={ANSWERED_SECONDS}",
        f"limit={ANSWERED_MOST}",
        "priority=1",
        f"eth_type={_ETHERTYPES[four]}",
        f"{field}_DST[]={field}_SRC[]",
        f"{field}_SRC[]={field}_DST[]",
        "output:NXM_OF_IN_PORT[]",
    ]
    return f"learn({','.join(said)})"


def _still_there(gateway: str, address: str) -> str:
    """Answers a guest that asks a MAC that it knows whether it is there still."""
    back = f"move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],set_field:{gateway}->eth_src"
    if is_v4(address):
        return (
            f"arp,dl_dst={gateway},arp_op=1,arp_tpa={address} actions={back},set_field:2->arp_op,"
            f"move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],set_field:{gateway}->arp_sha,"
            f"move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],set_field:{address}->arp_spa,IN_PORT"
        )
    return (
        f"icmp6,dl_dst={gateway},icmp_type=135,icmp_code=0,nd_target={address} actions={back},"
        f"move:NXM_NX_IPV6_SRC[]->NXM_NX_IPV6_DST[],set_field:{address}->ipv6_src,"
        f"set_field:136->icmpv6_type,set_field:2->nd_options_type,set_field:0xe0000000->nd_reserved,resubmit(,{ANSWERED})"
    )
