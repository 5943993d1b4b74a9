"""Connections that a guest brings along from another host, which OVN's filters here do not know. Pure.

Open vSwitch takes up a connection of TCP in its middle, from whichever end it hears first; and if that is not the end that
opened it, the filter asks the rules of the other direction, and drops it. So for a while the packets of that end alone pass
without being tracked, of exactly these connections and only as far as the rules allow them. The guest's answer to the first of
them is taken up the right way round, and from then on the connection is known. ovn-nb(5), `allow-stateless`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kumulus.api.addresses import is_v4
from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.network.connections import MOST, Connection
from kumulus_agents.network.ovn import connections
from kumulus_agents.network.ovn.acls import FROM, TO, UNTRACKED, Acl

KNOWN = 2200
"""Priority: above what groups let through and the end for everything else, below what nobody may."""
SECONDS = 60.0
"""For which they pass. A peer sends a lost segment again well within that."""
REMEMBERED = 3600
"""Seconds; Open vSwitch does not say for how long it remembers a connection."""
PASSING_MOST = 256
"""Of a guest: each is two flows or more."""

_LINE = re.compile(
    r"^tcp,orig=\((?P<orig>[^)]*)\),reply=\((?P<reply>[^)]*)\).*?,zone=(?P<zone>\d+).*protoinfo=\(state=ESTABLISHED\)"
)


def listed(listing: str, zone: int, nic: Nic) -> tuple[Connection, ...]:
    """Those of the interface in `dpctl/dump-conntrack` that are established and not translated."""
    own, found = frozenset(nic.addresses), []
    for line in listing.splitlines():
        if (match := _LINE.match(line)) is None or int(match["zone"]) != zone:
            continue
        orig, reply = (
            dict(part.split("=", 1) for part in match[way].split(",") if "=" in part) for way in ("orig", "reply")
        )
        mirrored = (reply.get("dst"), reply.get("src"), reply.get("dport"), reply.get("sport"))
        said = (orig.get("src"), orig.get("dst"), orig.get("sport"), orig.get("dport"))
        source, target, source_port, target_port = said
        if mirrored != said or source is None or target is None or source_port is None or target_port is None:
            continue
        if (source in own) != (target in own):
            found.append(Connection(source, int(source_port), target, int(target_port), REMEMBERED))
    return tuple(found[:MOST])


def acls(order: SegmentOrder, nic: Nic, brought: Sequence[Connection]) -> Iterator[Acl]:
    """By which they pass."""
    own = frozenset(nic.addresses)
    for c in brought[:PASSING_MOST]:
        ports = {"sport": str(c.source_port), "dport": str(c.target_port)}
        if not connections.allowed(order, nic, connections.Connection(0, "tcp", c.source, c.target, ports)):
            continue
        family = "ip4" if is_v4(c.source) else "ip6"
        # What the end that was reached says, to the one that opened it.
        back = f"{family}.src == {c.target} && {family}.dst == {c.source} && tcp.src == {c.target_port}"
        back += f" && tcp.dst == {c.source_port}"
        if c.source in own:
            yield Acl(TO, KNOWN, f'outport == "{nic.uid}" && {back}', UNTRACKED)
        else:
            yield Acl(FROM, KNOWN, f'inport == "{nic.uid}" && {back}', UNTRACKED)
