"""The part of the rules that sees frames: who may say to be whom, and what is plugged into what. Pure.

A table of family `bridge`. A frame is looked at twice: when it enters a bridge (`entry`: is the sender who it says it is),
and when the bridge knows where it goes (`passage`: both ends get into its mark, for `filtering`, which takes it off, because
nobody else shall take it for his own; off what `filtering` does not see it is taken before a tunnel). Devices that the
maps do not know pass nothing on our bridges, so that no guest and no stranger's device can be early. Other bridges of the
host are passed by.

Each frame between guests comes this way, so what most frames are comes first. The sender is looked up twice because a mark
that is set on entry would meet rules of other software on its way here, and some clear marks of everything (Calico's do).

Sources: what guests must not do is RFC 826 and 5227 (ARP), RFC 4861 and 6105 (ND, RA), RFC 6980 (ND in fragments),
RFC 2131 and 8415 (DHCP).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from functools import lru_cache

from kumulus.api.addresses import is_v4
from kumulus.api.segments import Nic, SegmentOrder, Subnet
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.expressions import (
    ACCEPT,
    COUNTER,
    DROP,
    any_of,
    everything,
    field,
    looked_up,
    masked,
    match,
    meta,
    more_often,
    over,
    ranges,
    set_to,
    ways,
)
from kumulus_agents.network.linux.layout import OPEN, SERVED, Layout, Place
from kumulus_agents.network.linux.ruleset import Chain, Json, Marks, Name, Rule, Ruleset, Ways

FAMILY = "bridge"
FROM_SHIFT = 16
FROM = 0x7FFF << FROM_SHIFT
TO = 0x7FFF
"""Of a packet's mark: who sends it, and who gets it."""
BOTH_OPEN = OPEN << FROM_SHIFT | OPEN

DEVICES = 1 << 15
"""The most that may be on our bridges: half a megabyte of the kernel's memory a map."""

ENTRY, PASSAGE = -300, -200
"""Priorities: before the bridge learns an address, before br_netfilter's part of the passage."""

_PLUGGED = (names.TAP, names.TUNNEL, names.SERVICE, names.LEG)
_ADVERTISEMENT, _SOLICITATION = 136, 135
_ND = [133, 134, 135, 136, 137]
ASKS_A_SECOND = 50
"""Who is where, for a port that may have many addresses. The kernel may forget a neighbour that asked, after five seconds."""
_LINK_LOCAL: Json = {"prefix": {"addr": "fe80::", "len": 10}}
_EXTENSIONS = [0, 43, 44, 60, 135]
"""Headers of IPv6 behind which another header follows."""


def render(layout: Layout) -> Ruleset:
    """The table."""
    chains: dict[Name, Chain] = {}
    enters: dict[str | int, str] = {}
    marks: dict[str, int] = {}
    reaches: dict[str | int, str] = {}
    asks: dict[str | int, str] = {}

    def chain(name: str, rules: Iterator[Rule]) -> str:
        chains[FAMILY, name] = Chain(tuple(rules))
        return name

    for uid, network in sorted(layout.networks.items()):
        service, tunnel = names.service(uid), names.tunnel(uid)
        enters[service], marks[service] = "", SERVED << FROM_SHIFT | OPEN
        reaches[service] = chain(f"to-{service}", _to_service())
        enters[tunnel], marks[tunnel] = chain(f"enter-{tunnel}", _enter_tunnel(network.order)), BOTH_OPEN
        reaches[tunnel] = chain(f"to-{tunnel}", _to_tunnel(network.order))
        for gateway, leg in layout.legs_in(uid):
            device = names.leg(gateway, uid)
            enters[device], marks[device] = chain(f"enter-{device}", _enter_leg(uid, leg.mac)), BOTH_OPEN
            reaches[device] = chain(f"to-{device}", _to_leg(leg.mac))
        for place in layout.ports_of(uid):
            tap = names.tap(place.port.nic.uid)
            enter, ask, reach = _port(network.order.subnets, place)
            for name, made in ((f"enter-{tap}", enter), (f"ask-{tap}", ask), (f"to-{tap}", reach)):
                chains[FAMILY, name] = made
            enters[tap], asks[tap], reaches[tap] = f"enter-{tap}", f"ask-{tap}", f"to-{tap}"
            marks[tap] = place.number << FROM_SHIFT | OPEN
    chains |= {
        (FAMILY, "entry"): Chain(
            (Rule((ways(meta("iifname"), "enters"),)), *_none("iifname", "a device that nobody ordered")),
            "prerouting",
            ENTRY,
        ),
        (FAMILY, "passage"): Chain(
            (
                Rule((set_to(meta("mark"), looked_up(meta("iifname"), "marks")),)),
                Rule((ways(meta("oifname"), "reaches"),)),
                *_none("oifname", "to a device that nobody ordered"),
            ),
            "forward",
            PASSAGE,
        ),
        (FAMILY, "to-host"): Chain(_none("iifname", "the host is not in the network"), "input", PASSAGE),
        (FAMILY, "from-host"): Chain(_none("oifname", "the host is not in the network"), "output", PASSAGE),
    }
    return Ruleset(
        chains,
        maps={
            (FAMILY, "enters"): Ways("ifname", enters, size=DEVICES),
            (FAMILY, "reaches"): Ways("ifname", reaches, size=DEVICES),
            (FAMILY, "asks"): Ways("ifname", asks),
        },
        marks={(FAMILY, "marks"): Marks("ifname", marks, DEVICES)},
    )


def link_local(mac: str) -> str:
    """The link-local address of IPv6 that a guest makes of its MAC (RFC 4291, appendix A)."""
    parts = [int(part, 16) for part in mac.split(":")]
    identifier = [parts[0] ^ 2, *parts[1:3], 0xFF, 0xFE, *parts[3:]]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(identifier)))


def _prefix(key: str, prefix: str) -> Json:
    return match(meta(key), f"{prefix}*")


def _none(key: str, comment: str) -> tuple[Rule, ...]:
    return tuple(Rule((_prefix(key, prefix), COUNTER, DROP), comment) for prefix in _PLUGGED)


def _drop(*conditions: Json, comment: str) -> Rule:
    return Rule((*conditions, COUNTER, DROP), comment)


def _accept(*conditions: Json) -> Rule:
    return Rule((*conditions, ACCEPT))


_ELSEWHERE = "each host serves its own guests"


def _to_service() -> Iterator[Rule]:
    """To what serves the network: from guests of this host only."""
    yield Rule((ways(meta("iifname"), "asks"),))
    yield _drop(comment=_ELSEWHERE)


def _not_served() -> Rule:
    return _drop(_prefix("iifname", names.SERVICE), comment=_ELSEWHERE)


def _enter_tunnel(order: SegmentOrder) -> Iterator[Rule]:
    mac = names.service_mac(order.uid)
    for side in ("saddr", "daddr"):
        yield _drop(field("ether", side, mac), comment=_ELSEWHERE)
    if order.uplink is not None:  # others are on that wire than hosts, which keep their guests from this
        for subnet in order.subnets:
            if is_v4(subnet.service):
                yield _drop(field("arp", "saddr ip", subnet.service), comment="service address")
            else:
                yield _drop(_nd(_ADVERTISEMENT), match(_TARGET, _number(subnet.service)), comment="service address")
        if order.subnets and order.dhcp:
            yield _drop(field("ether", "type", "ip"), field("udp", "sport", 67), comment="DHCP server")
            yield _drop(field("ether", "type", "ip6"), field("udp", "sport", 547), comment="DHCP server")
    yield Rule((ACCEPT,))


def _to_tunnel(order: SegmentOrder) -> Iterator[Rule]:
    yield _not_served()
    yield _drop(field("ether", "daddr", names.service_mac(order.uid)), comment=_ELSEWHERE)
    if order.uplink is not None and order.subnets and order.dhcp:  # a server there would keep an address for each guest
        yield _drop(field("ether", "type", "ip"), field("udp", "dport", 67), comment=_ELSEWHERE)
        yield _drop(field("ether", "type", "ip6"), field("udp", "dport", 547), comment=_ELSEWHERE)
    yield Rule((match(meta("protocol"), any_of(["ip", "ip6"]), "!="), set_to(meta("mark"), 0)))
    yield Rule((ACCEPT,))


def _enter_leg(network: str, mac: str) -> Iterator[Rule]:
    """From a gateway, which speaks for many addresses with one MAC. What it may send is its own rules' business."""
    yield _drop(field("ether", "daddr", names.service_mac(network)), comment=_ELSEWHERE)
    yield _accept(field("ether", "saddr", mac))
    yield _drop(comment="not its own")


def _to_leg(mac: str) -> Iterator[Rule]:
    """To a gateway: what is for it, or for many."""
    yield _not_served()
    one = match(masked({"payload": {"base": "ll", "offset": 0, "len": 8}}, 1), 0)
    yield _drop(one, field("ether", "daddr", mac, "!="), comment="for another guest")
    yield Rule((ACCEPT,))


@lru_cache(maxsize=1 << 14)
def _port(subnets: tuple[Subnet, ...], place: Place) -> tuple[Chain, Chain, Chain]:
    """A port's chains. Rendered once, for a host has many ports and one of them changes."""
    rules = (_enter_port(subnets, place), _ask(place), _to_port(place))
    enter, ask, reach = (Chain(tuple(part)) for part in rules)
    return enter, ask, reach


def _ask(place: Place) -> Iterator[Rule]:
    """From a guest to what serves its network."""
    own: list[object] = [address for address in place.port.nic.addresses if is_v4(address)]
    asks = field("ip", "daddr", names.METADATA)
    is_another = (field("ip", "saddr", any_of(own), "!="),) if own else ()
    yield _drop(asks, *is_another, comment="metadata is told by who asks")
    if place.port.nic.pairs:  # what serves the network would have each of many addresses as a neighbour
        for protocol, nobody in (("ip", ["0.0.0.0"]), ("ip6", ["::", _LINK_LOCAL])):  # noqa: S104 - has none yet
            its = [address for address in place.port.nic.addresses if is_v4(address) is (protocol == "ip")]
            is_other = field(protocol, "saddr", any_of([*its, *nobody]), "!=")
            yield _drop(is_other, comment="served by its own address")
    yield Rule((set_to(meta("mark"), place.number << FROM_SHIFT | SERVED), ACCEPT))


def _to_port(place: Place) -> Iterator[Rule]:
    """To a guest: what is for it or for many, in no more than its bandwidth. What serves it does not count."""
    nic = place.port.nic
    one = match(masked({"payload": {"base": "ll", "offset": 0, "len": 8}}, 1), 0)
    macs: list[object] = [*sorted({nic.mac, *(pair.mac for pair in nic.pairs if pair.mac)})]
    mark = set_to(meta("mark"), {"|": [masked(meta("mark"), FROM), place.number]})
    if not (nic.bandwidth and nic.bandwidth.inbound):
        yield Rule((field("ether", "daddr", any_of(macs)), mark, ACCEPT))  # most frames
    yield _drop(one, field("ether", "daddr", any_of(macs), "!="), comment="for another guest")
    if nic.bandwidth and nic.bandwidth.inbound:
        is_other = match(masked(meta("mark"), FROM), SERVED << FROM_SHIFT, "!=")
        yield _drop(is_other, over(nic.bandwidth.inbound), comment="over its bandwidth")
    yield Rule((mark, ACCEPT))


def _enter_port(subnets: tuple[Subnet, ...], place: Place) -> Iterator[Rule]:
    """From a guest, before the bridge has learned anything."""
    nic = place.port.nic
    if nic.bandwidth and nic.bandwidth.outbound:
        yield _drop(over(nic.bandwidth.outbound), comment="over its bandwidth")
    if subnets:
        services = [subnet.service for subnet in subnets]
        yield from _mostly(nic, {names.service_mac(nic.network), *services})
        yield from _never(names.service_mac(nic.network), services)
        if nic.pairs:  # who has many addresses could fill others' tables of neighbours, by asking in the name of each
            for asks in ((_arp(), field("arp", "operation", 1)), (_nd(_SOLICITATION),)):
                yield _drop(*asks, more_often(ASKS_A_SECOND), comment="asks too often")
    own: dict[str, list[str]] = {nic.mac: list(nic.addresses)}
    for pair in nic.pairs:
        own.setdefault(pair.mac or nic.mac, []).append(pair.cidr)
    for mac, cidrs in sorted(own.items()):
        is_mac = field("ether", "saddr", mac)
        if not subnets:
            yield _accept(is_mac, _arp(), field("arp", "saddr ether", mac))
            yield _accept(is_mac, field("ether", "type", any_of(["ip", "ip6"])))
            continue
        fours, sixes = ranges([*cidrs, f"{link_local(mac)}/128"])
        yield from _four(mac, is_mac, fours)
        yield from _six(is_mac, sixes)
    yield _drop(comment="not its own")


def _mostly(nic: Nic, never: Collection[str]) -> Iterator[Rule]:
    """What most frames are: IPv4, and TCP and UDP of IPv6, from its own addresses, that no rule below would drop. They need
    not be held against each of those. Of IPv4 only what a DHCP server sends would be dropped, whose port is where other
    protocols may have any number: these go on."""
    if nic.mac in never:
        return
    is_mac = field("ether", "saddr", nic.mac)
    for protocol, server in (("ip", 67), ("ip6", 547)):
        own: list[object] = [a for a in nic.addresses if is_v4(a) is (protocol == "ip") and a not in never]
        if own:
            yield _accept(
                is_mac,
                field("ether", "type", protocol),  # a frame with a VLAN tag is a packet of IP to all other words
                field(protocol, "saddr", any_of(own)),
                *((match(meta("l4proto"), any_of(["tcp", "udp"])),) if protocol == "ip6" else ()),
                field("th", "sport", server, "!="),
            )


def _arp() -> Json:
    return field("ether", "type", "arp")


def _never(mac: str, services: list[str]) -> Iterator[Rule]:
    """What no guest is, whatever MAC it was given and whatever pairs it was allowed."""
    yield _drop(field("ether", "saddr", mac), comment="service MAC")
    for service in services:
        if is_v4(service):
            yield _drop(field("arp", "saddr ip", service), comment="service address")
            yield _drop(field("ip", "saddr", service), comment="service address")
        else:
            yield _drop(field("ip6", "saddr", service), comment="service address")
            yield _drop(_nd(_ADVERTISEMENT), match(_TARGET, _number(service)), comment="service address")
    yield _drop(field("ether", "type", "ip"), field("udp", "sport", 67), comment="DHCP server")
    yield _drop(field("ether", "type", "ip6"), field("udp", "sport", 547), comment="DHCP server")
    yield _drop(_nd(134), comment="router advertisement")
    yield _drop(_nd(137), comment="redirect")
    fragment = {"exthdr": {"name": "frag", "field": "nexthdr"}}
    yield _drop(
        field("ether", "type", "ip6"), match(fragment, any_of(_EXTENSIONS)), comment="fragment that hides what it is"
    )
    yield _drop(
        field("ether", "type", "ip6"),
        match(fragment, 58),
        field("icmpv6", "type", any_of(_ND)),
        comment="ND in fragments",
    )


_TARGET: Json = {"payload": {"base": "th", "offset": 64, "len": 128}}
"""Of a neighbour solicitation or advertisement."""


def _number(entry: object) -> object:
    """An address or a range of IPv6 as nft reads it where it has no name for the field: decimal numbers."""
    if not isinstance(entry, dict):
        return str(int(ipaddress.IPv6Address(str(entry))))
    network = ipaddress.IPv6Network(f"{entry['prefix']['addr']}/{entry['prefix']['len']}")
    return {"range": [str(int(network.network_address)), str(int(network.broadcast_address))]}


def _nd(kind: int) -> Json:
    return field("icmpv6", "type", kind)


def _four(mac: str, is_mac: Json, own: list[object]) -> Iterator[Rule]:
    arp = (
        is_mac,
        field("arp", "htype", 1),
        field("arp", "ptype", 0x0800),
        field("arp", "hlen", 6),
        field("arp", "plen", 4),
        field("arp", "saddr ether", mac),
    )
    yield _accept(*arp, field("arp", "operation", 1), field("arp", "saddr ip", "0.0.0.0"))  # noqa: S104 - a probe
    yield _accept(
        is_mac,
        field("ip", "saddr", "0.0.0.0"),  # noqa: S104 - who asks for an address has none
        field("ip", "daddr", "255.255.255.255"),
        field("udp", "sport", 68),
        field("udp", "dport", 67),
    )
    if own:
        yield _accept(*arp, field("arp", "operation", any_of([1, 2])), *_one_of("arp", "saddr ip", own))
        yield _accept(is_mac, field("ether", "type", "ip"), *_one_of("ip", "saddr", own))


def _six(is_mac: Json, own: list[object]) -> Iterator[Rule]:
    target = match(_TARGET, any_of([_number(entry) for entry in own])) if not everything(own) else None
    is_target = (target,) if target else ()
    from_nobody = field("ip6", "saddr", "::")
    yield _accept(is_mac, from_nobody, _nd(_SOLICITATION), *is_target)
    yield _accept(is_mac, from_nobody, field("icmpv6", "type", any_of([133, 143])))
    yield _accept(is_mac, _nd(_ADVERTISEMENT), *_one_of("ip6", "saddr", own), *is_target)
    yield _drop(is_mac, _nd(_ADVERTISEMENT), comment="another's neighbour advertisement")
    yield _accept(is_mac, field("ether", "type", "ip6"), *_one_of("ip6", "saddr", own))


def _one_of(protocol: str, name: str, own: list[object]) -> tuple[Json, ...]:
    return () if everything(own) else (field(protocol, name, any_of(own)),)
