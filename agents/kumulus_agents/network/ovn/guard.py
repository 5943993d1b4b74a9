"""What OVN cannot keep a guest from sending: flows of a small bridge of its own between each guest and OVN. Pure.

A logical switch with stateful ACLs lets all neighbour discovery and router advertisements through, whatever its ACLs say
(ovn-northd(8), priority 65532), and sees no ports of fragments. So each tap is on a bridge with one other port, a patch to
OVN's bridge. Its flows are there before the tap is and outlive the agent. Sources: RFC 4861, 6105, 6980; ovs-fields(7).
"""

from __future__ import annotations

from collections.abc import Sequence

from kumulus.api.addresses import is_v4
from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.ovn import detours
from kumulus_agents.network.ovn.acls import ranges
from kumulus_agents.network.ovn.routing import Detour

_MARK = "cookie=0x3"
_GROUP = "01:00:00:00:00:00/01:00:00:00:00:00"
_EXTENSIONS = (0, 43, 44, 60, 135)
"""Headers of IPv6 behind which another header follows."""


def flows(
    order: SegmentOrder, nic: Nic, inner: int, detour: Detour | None = None, *, advertises: bool = True
) -> Sequence[str]:
    """All flows of the bridge. `inner`: the number of the port towards OVN; `detour`: what goes to a logical router;
    `advertises`: see `detours`."""
    on = f"actions=output:{inner}"
    made = [f"priority=100,in_port={inner} actions=ALL", f"priority=0 {on}"]
    if order.subnets:
        own = [*nic.addresses, *(pair.cidr for pair in nic.pairs), link_local(nic.mac)]
        own += [link_local(pair.mac) for pair in nic.pairs if pair.mac]
        _, sixes = ranges(own)
        never = [
            f"dl_src={names.service_mac(order.uid)}",
            "icmp6,icmp_type=134",
            "icmp6,icmp_type=137",
            "icmp6,nw_frag=yes",
            *(f"ipv6,nw_frag=yes,nw_proto={number}" for number in _EXTENSIONS),
            f"udp,nw_frag=yes,dl_dst={_GROUP}",
            "udp,nw_frag=yes,nw_dst=255.255.255.255",
            *(
                f"icmp6,icmp_type=136,icmp_code=0,nd_target={subnet.service}"
                for subnet in order.subnets
                if not is_v4(subnet.service)
            ),
        ]
        made += [f"priority=60,{what} actions=drop" for what in never]
        for what in ("icmp6,icmp_type=136", "icmp6,icmp_type=135,ipv6_src=::"):
            made += [f"priority=50,{what},icmp_code=0,nd_target={mine} {on}" for mine in sixes if mine.prefixlen]
            if all(mine.prefixlen for mine in sixes):
                made.append(f"priority=40,{what} actions=drop")
    besides = detours.flows(detour, inner, advertises=advertises) if detour is not None else ()
    return [*(f"{_MARK},table=0,{flow}" for flow in made), *(f"{_MARK},{flow}" for flow in besides)]
