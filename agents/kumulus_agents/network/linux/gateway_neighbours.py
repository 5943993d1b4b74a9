"""How many neighbours a gateway can be made to know: rules that bound them. Pure.

The kernel has one table of neighbours for the whole host, a family (net.ipv4.neigh.default.gc_thresh3, 1024 where nobody
has changed it). A guest that sends to each address of its router's networks, or asks the router in the name of many, would
fill it, and no other tenant's gateway could find anybody. So each gateway is held to a number of them:

* whoever has sent something through the gateway is somebody (`alive`);
* others are sought, so many at a time (`sought`); who established a connection had an answer, and is not asked;
* who asks for the gateway becomes its neighbour by that (`asking`; ARP, and neighbour solicitations of IPv6).

A tenant that is over the bound hurts nobody but itself. `most` is what a gateway can come to; the host's table has to have
room for that from each.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from kumulus.api.addresses import is_v4
from kumulus.api.gateways import GatewayLeg, GatewayOrder
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.expressions import (
    ACCEPT,
    COUNTER,
    DROP,
    RETURN,
    any_of,
    field,
    jump,
    match,
    meta,
    payload,
    ranges,
)
from kumulus_agents.network.linux.ruleset import Chain, Json, Learned, Name, Rule, Ruleset

FAMILY, ARP = "inet", "arp"
ALIVE, ALIVE_SECONDS = 4096, 600
SOUGHT, SOUGHT_SECONDS = 256, 10
ASKING, ASKING_SECONDS = 4096, 60
MOST = ALIVE + 4 * SOUGHT + ASKING
"""Neighbours that one gateway can have, a family. What was sought stays in the kernel's table for half a minute or so."""
_SETS = {"ip": ("alive4", "sought4", "asking4"), "ip6": ("alive6", "sought6", "asking6")}
_TYPES = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
_SOLICITATION = 135


def sets() -> Ruleset:
    """The sets, and the chains that are jumped to."""
    learned: dict[Name, Learned] = {}
    chains: dict[Name, Chain] = {}
    for protocol, (alive, sought, asking) in _SETS.items():
        type_ = _TYPES[protocol]
        learned[FAMILY, alive] = Learned(type_, ALIVE, ALIVE_SECONDS)
        learned[FAMILY, sought] = Learned(type_, SOUGHT, SOUGHT_SECONDS)
        chains[FAMILY, sought] = Chain(
            (
                Rule((_learn(payload(protocol, "daddr"), sought), RETURN)),
                Rule((COUNTER, DROP), "too many that are not known to be there"),
            )
        )
        if protocol == "ip6":
            learned[FAMILY, asking] = Learned(type_, ASKING, ASKING_SECONDS)
    learned[ARP, "asking4"] = Learned("ipv4_addr", ASKING, ASKING_SECONDS)
    requests = field("arp", "operation", 1)
    chains[ARP, "input"] = Chain(
        (
            Rule((requests, _learn(payload("arp", "saddr ip"), "asking4"), ACCEPT)),
            Rule((requests, COUNTER, DROP), "too many who ask"),
        ),
        "input",
        0,
    )
    return Ruleset(chains, learned=learned)


def heard(order: GatewayOrder) -> Iterator[Rule]:
    """Who sends something through the gateway is there. First of all that is passed on, but for false senders."""
    for leg in order.legs:
        for protocol, near in _near(leg):
            yield Rule(
                (
                    match(meta("iifname"), names.inner(leg.network)),
                    field(protocol, "saddr", any_of(near)),
                    _learn(payload(protocol, "saddr"), _SETS[protocol][0]),
                )
            )


def bounded(order: GatewayOrder) -> Iterator[Rule]:
    """What is passed on to somebody on the spot who has not been heard yet. After what is of a connection has passed."""
    for leg in order.legs:
        for protocol, near in _near(leg):
            alive, sought, _ = _SETS[protocol]
            daddr = payload(protocol, "daddr")
            yield Rule(
                (
                    match(meta("oifname"), names.inner(leg.network)),
                    match(daddr, any_of(near)),
                    match(daddr, f"@{alive}", "!="),
                    jump(sought),
                )
            )


def solicitations() -> Iterator[Rule]:
    """Of IPv6, to the gateway itself. ARP has a table of its own."""
    asks = field("icmpv6", "type", _SOLICITATION)
    yield Rule((asks, _learn(payload("ip6", "saddr"), "asking6"), ACCEPT))
    yield Rule((asks, COUNTER, DROP), "too many who ask")


def _near(leg: GatewayLeg) -> Iterator[tuple[str, Sequence[object]]]:
    """Families of a leg's ranges, and these."""
    networks: Iterable[str] = {str(ipaddress.ip_interface(one).network) for one in leg.addresses if _is_range(one)}
    for protocol, found in zip(("ip", "ip6"), ranges(networks), strict=True):
        if found:
            yield protocol, found


def _is_range(address: str) -> bool:
    return not address.endswith("/32" if is_v4(address) else "/128")


def _learn(value: Json, into: str) -> Json:
    """Keep it in the set; goes on only if it is there now, which it is not when the set is full."""
    return {"set": {"op": "add", "elem": value, "set": f"@{into}"}}
