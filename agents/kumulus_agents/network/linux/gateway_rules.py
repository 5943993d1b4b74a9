"""The rules in a gateway's own network namespace: what is passed on, and which addresses are put in the place of others. Pure.

One table of family `inet`. Nothing passes but what a rule lets through: between the gateway's own networks, from these to
the world, and from the world what is for a floating address. Connections are cut when the order no longer has the
translation that they were opened by: each packet is held against the translations of now.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from kumulus.api.addresses import is_v4
from kumulus.api.balancing import Balancing
from kumulus.api.gateways import ForwardProtocol, GatewayLeg, GatewayOrder, Masquerade, RouterFunction
from kumulus_agents.network.linux import gateway_neighbours, names
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.expressions import (
    ACCEPT,
    COUNTER,
    DROP,
    any_of,
    ct,
    everything,
    field,
    jump,
    match,
    meta,
    payload,
    ranges,
    set_to,
)
from kumulus_agents.network.linux.ruleset import Chain, Json, Name, Rule, Ruleset

FAMILY, FAMILIES = "inet", ("inet", "ip6", "arp")
LINK = "link"
"""The end in the gateway of the cable to its other hosts."""
VRRP = 112
TRANSLATED = 1
"""Mark of connections that are: others can be found by its absence."""
COPIES_PORT = 3780
"""UDP port of conntrackd, which copies connections over the link."""

_TRAFFIC = {ForwardProtocol.TCP: "tcp", ForwardProtocol.UDP: "udp"}
_LINK_LOCAL = "169.254.0.0/16"
_ND: list[object] = [133, 135, 136]
_FAMILIES = (("ip", True), ("ip6", False))


def render(order: GatewayOrder) -> Ruleset:
    """The table."""
    router = order.router or RouterFunction()
    chains = {
        "input": Chain(tuple(_input(order)), "input", 0, policy="drop"),
        "output": Chain(tuple(_output(order)), "output", 0),
        "forward": Chain(tuple(_forward(order, router)), "forward", 0, policy="drop"),
        "to": Chain(tuple(_to(router)), "prerouting", -100, kind="nat"),
        "from": Chain(tuple(_from(order, router)), "postrouting", 100, kind="nat"),
        "translated-to": Chain(tuple(_still_to(router))),
        "translated-from": Chain(tuple(_still_from(order, router))),
    }
    is_translated = match({"&": [{"ct": {"key": "status"}}, ["snat", "dnat"]]}, 0, "!=")
    marks = Rule((_state("new"), is_translated, set_to(ct("mark"), TRANSLATED)))
    chains["mark"] = Chain((marks,), "postrouting", 150)
    if clamps := tuple(_clamp(order)):
        chains["clamp"] = Chain(clamps, "forward", -150)
    for hook, device in (("prerouting", "iifname"), ("output", "oifname")):
        untracked = Rule((match(meta(device), LINK), {"notrack": None}))
        chains[f"link-{hook}"] = Chain((untracked,), hook, -300)
    bounds = gateway_neighbours.sets()
    named: dict[Name, Chain] = {(FAMILY, name): chain for name, chain in chains.items()}
    named |= {("ip6", name): chain for name, chain in _copies(order)}
    return Ruleset({**named, **bounds.chains}, learned=bounds.learned)


def token(order: GatewayOrder) -> str:
    """The address on the link that is where the gateway is active."""
    return link_local(names.mac("active", order.uid))


def copies(order: GatewayOrder) -> bool:
    """Whether it has connections that another host can only go on with when it knows them."""
    router = order.router
    return bool(order.redundancy.peers and router and (router.masquerade or router.floating or router.forwards))


def outside(order: GatewayOrder) -> list[GatewayLeg]:
    """The legs in external networks."""
    return [leg for leg in order.legs if leg.uplink is not None]


def inside(order: GatewayOrder) -> list[GatewayLeg]:
    """The legs in networks of tenants."""
    return [leg for leg in order.legs if leg.uplink is None]


def own(leg: GatewayLeg, *, v4: bool) -> str | None:
    """The gateway's own address there, with its prefix."""
    return next((address for address in leg.addresses if is_v4(address) is v4), None)


def behind(order: GatewayOrder, leg: GatewayLeg) -> list[str]:
    """The ranges that are reached through a leg: its network's, and those of routes that begin there."""
    near = [str(ipaddress.ip_interface(address).network) for v4 in (True, False) if (address := own(leg, v4=v4))]
    routes = order.router.routes if order.router is not None else ()
    far = [
        route.destination
        for route in routes
        if any(ipaddress.ip_address(route.via) in ipaddress.ip_network(range_) for range_ in near)
    ]
    return [*near, *far]


def _drop(*conditions: Json, comment: str) -> Rule:
    return Rule((*conditions, COUNTER, DROP), comment)


def _accept(*conditions: Json) -> Rule:
    return Rule((*conditions, ACCEPT))


def _state(*states: str) -> Json:
    return match({"ct": {"key": "state"}}, list(states) if len(states) > 1 else states[0], "in")


def _status(name: str) -> Json:
    return match({"ct": {"key": "status"}}, name, "in")


def _untranslated() -> Json:
    return match({"&": [{"ct": {"key": "status"}}, ["snat", "dnat"]]}, 0)


def _enters(leg: GatewayLeg) -> Json:
    return match(meta("iifname"), names.inner(leg.network))


def _leaves(leg: GatewayLeg) -> Json:
    return match(meta("oifname"), names.inner(leg.network))


def _ends(way: str, protocol: str, side: str) -> Json:
    """An end of a connection as it was opened (original), or as answers come (reply)."""
    return {"ct": {"key": f"{protocol} {side}", "dir": way}}


def _input(order: GatewayOrder) -> Iterator[Rule]:
    """For the gateway itself: it can be found, it answers echoes, and its other hosts speak with it."""
    peers: list[object] = [link_local(peer.mac) for peer in order.redundancy.peers]
    if peers:
        comes = match(meta("iifname"), LINK)
        yield _accept(comes, match(meta("l4proto"), VRRP), field("ip6", "saddr", any_of(peers)))
        if copies(order):  # who is active may send by the address that it has as such
            yield _accept(
                comes, field("udp", "dport", COPIES_PORT), field("ip6", "saddr", any_of([*peers, token(order)]))
            )
    yield _drop(match(meta("iifname"), LINK), comment="not of its other hosts")
    yield _accept(_state("established", "related"))
    yield from gateway_neighbours.solicitations()
    yield _accept(field("icmpv6", "type", any_of(_ND)))
    yield _accept(field("icmp", "type", "echo-request"))
    yield _accept(field("icmpv6", "type", "echo-request"))
    if order.balancer is not None:
        yield from _listeners(order.balancer)
    yield _drop(comment="for nobody here")


def _listeners(balancing: Balancing) -> Iterator[Rule]:
    """For a load balancer: what is for its ports; and what one of its processes has to tell the next."""
    yield _accept(match(meta("iifname"), "lo"))
    ports: list[object] = [*sorted(listener.port for listener in balancing.listeners)]
    for protocol, v4 in _FAMILIES:
        if mine := [address for address in balancing.addresses if is_v4(address) is v4]:
            yield _accept(field(protocol, "daddr", any_of(mine)), match(payload("tcp", "dport"), any_of(ports)))


def _output(order: GatewayOrder) -> Iterator[Rule]:
    """Over the link to its other hosts goes nothing but VRRP and copies of connections, to them."""
    peers: list[object] = [link_local(peer.mac) for peer in order.redundancy.peers]
    if peers:
        own = match(meta("oifname"), LINK), field("ip6", "daddr", any_of(peers))
        yield _accept(match(meta("l4proto"), VRRP), *own)
        if copies(order):
            yield _accept(field("udp", "dport", COPIES_PORT), *own)
    yield _drop(match(meta("oifname"), LINK), comment="not for its other hosts")


def _copies(order: GatewayOrder) -> Iterator[tuple[str, Chain]]:
    """conntrackd sends to one of several other hosts: the rest get the same, each by its own MAC, and take it as theirs."""
    first, *others = destinations(order) or [""]
    if not (copies(order) and others):
        return
    port = field("udp", "dport", COPIES_PORT)
    sent = match(meta("oifname"), LINK), port, field("ip6", "daddr", first)
    dups = (Rule((*sent, {"dup": {"addr": other}})) for other in others)
    yield "copies-to", Chain(tuple(dups), "output", 0)
    comes = match(meta("iifname"), LINK), port, field("ip6", "saddr", any_of([first, *others, token(order)]))
    own = {"mangle": {"key": payload("ip6", "daddr"), "value": link_local(order.redundancy.mac)}}
    yield "copies-from", Chain((Rule((*comes, own)),), "prerouting", -300)


def destinations(order: GatewayOrder) -> list[str]:
    """The other hosts' ends of the link, in the same order each time. Copies are sent to the first."""
    return sorted(link_local(peer.mac) for peer in order.redundancy.peers)


def _forward(order: GatewayOrder, router: RouterFunction) -> Iterator[Rule]:
    if order.router is None:
        yield _drop(comment="no router")
        return
    yield _drop(field("ip", "daddr", _prefix(_LINK_LOCAL)), comment="link-local")
    yield _drop(field("ip", "saddr", _prefix(_LINK_LOCAL)), comment="link-local")
    inner, outer = inside(order), outside(order)
    for leg in inner:
        for protocol, mine in zip(("ip", "ip6"), ranges(behind(order, leg)), strict=True):
            if not mine:
                yield _drop(_enters(leg), match(meta("nfproto"), _nfproto(protocol)), comment="not its own")
            elif not everything(mine):
                yield _drop(_enters(leg), field(protocol, "saddr", any_of(mine), "!="), comment="not its own")
    tenants = [range_ for leg in inner for range_ in behind(order, leg)]
    for leg in outer:
        for protocol, theirs in zip(("ip", "ip6"), ranges(tenants), strict=True):
            if theirs and not everything(theirs):
                yield _drop(_enters(leg), field(protocol, "saddr", any_of(theirs)), comment="not from outside")
    yield from gateway_neighbours.heard(order)
    for leg in outer:  # TCP that is picked up in the middle, after a takeover, is new: it is translated
        for protocol, v4 in _FAMILIES:
            whole = [one.internal for one in router.floating if is_v4(one.external) is v4]
            if any(is_v4(one.address) is v4 for one in router.masquerade):
                whose = match(meta("nfproto"), _nfproto(protocol))
            elif whole:
                whose = field(protocol, "saddr", any_of(whole))
            else:
                continue
            yield _drop(_leaves(leg), whose, _state("invalid", "untracked"), comment="cannot be translated")
    yield from _not_yet(order, router)
    yield Rule((_status("dnat"), jump("translated-to")))
    yield Rule((_status("snat"), jump("translated-from")))
    yield _accept(_state("established", "related"))
    yield from gateway_neighbours.bounded(order)
    if inner:
        insides = match(meta("iifname"), any_of([names.inner(leg.network) for leg in inner]))
        yield _accept(insides, match(meta("oifname"), any_of([names.inner(leg.network) for leg in order.legs])))
    for leg in outer:
        if router.floating or router.forwards:
            yield _accept(_enters(leg), _status("dnat"))
        for protocol, v4 in _FAMILIES:
            if own(leg, v4=v4) and not any(is_v4(one.address) is v4 for one in router.masquerade):
                yield _accept(_enters(leg), match(meta("nfproto"), _nfproto(protocol)))
    yield _drop(comment="nobody's way")


def _not_yet(order: GatewayOrder, router: RouterFunction) -> Iterator[Rule]:
    """Connections that began before there was source NAT do not go on with tenants' addresses. (The agent has the kernel
    forget them.)"""
    for leg in outside(order):
        for one in router.masquerade:
            for protocol, sources in _sources(one):
                family = match(meta("nfproto"), _nfproto(protocol))
                theirs = family if everything(sources) else field(protocol, "saddr", any_of(sources))
                is_open = (_leaves(leg), _state("established", "related"), _untranslated())
                yield _drop(*is_open, theirs, comment="not translated yet")


def _clamp(order: GatewayOrder) -> Iterator[Rule]:
    """Both ends of TCP are told of the smallest packet on their way here, for errors that say so are lost now and then
    (RFC 4459). No segment is made longer."""
    most = max((leg.mtu for leg in order.legs), default=0)
    size: Json = {"tcp option": {"name": "maxseg", "field": "size"}}
    for leg in order.legs if order.router is not None else ():
        for protocol, headers in (("ip", 40), ("ip6", 60)):
            if leg.mtu < most:
                for way in (_enters(leg), _leaves(leg)):
                    segment = leg.mtu - headers
                    yield Rule(
                        (
                            way,
                            match(meta("nfproto"), _nfproto(protocol)),
                            match(payload("tcp", "flags"), "syn", "in"),
                            match(size, segment, ">"),
                            {"mangle": {"key": size, "value": segment}},
                        )
                    )


def _nfproto(protocol: str) -> str:
    return "ipv4" if protocol == "ip" else "ipv6"


def _prefix(cidr: str) -> Json:
    network = ipaddress.ip_network(cidr)
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _mapped(key: Json, pairs: Sequence[tuple[str, str]]) -> Json:
    return {"map": {"key": key, "data": {"set": [list(pair) for pair in pairs]}}}


def _to(router: RouterFunction) -> Iterator[Rule]:
    """What is for a floating address goes to whom it stands for, wherever it comes from."""
    for forward in router.forwards:
        protocol = _protocol(forward.external)
        yield Rule(
            (
                field(protocol, "daddr", forward.external),
                match(payload(_TRAFFIC[forward.protocol], "dport"), forward.port),
                {"dnat": {"addr": forward.internal, "port": forward.target_port, "family": protocol}},
            )
        )
    for protocol, v4 in _FAMILIES:
        if pairs := [(one.external, one.internal) for one in router.floating if is_v4(one.external) is v4]:
            key = payload(protocol, "daddr")
            yield Rule(
                (
                    match(key, any_of([external for external, _ in pairs])),
                    {"dnat": {"addr": _mapped(key, pairs), "family": protocol}},
                )
            )


def _from(order: GatewayOrder, router: RouterFunction) -> Iterator[Rule]:
    """To the world: a floating address first, else source NAT. Back into the network that it comes from, so that answers
    come this way too: the gateway's own address."""
    for leg in outside(order):
        for protocol, v4 in _FAMILIES:
            if pairs := [(one.internal, one.external) for one in router.floating if is_v4(one.external) is v4]:
                key = payload(protocol, "saddr")
                yield Rule(
                    (
                        _leaves(leg),
                        match(key, any_of([internal for internal, _ in pairs])),
                        {"snat": {"addr": _mapped(key, pairs), "family": protocol}},
                    )
                )
        for one in router.masquerade:
            for protocol, sources in _sources(one):
                yield Rule(
                    (
                        _leaves(leg),
                        *(() if everything(sources) else (field(protocol, "saddr", any_of(sources)),)),
                        {"snat": {"addr": one.address, "family": protocol}},
                    )
                )
    for leg, protocol, near, mine in _hairpins(order, router):
        yield Rule(
            (
                _leaves(leg),
                field(protocol, "saddr", _prefix(near)),
                _status("dnat"),
                {"snat": {"addr": mine, "family": protocol}},
            )
        )


def _sources(one: Masquerade) -> Iterator[tuple[str, list[object]]]:
    fours, sixes = ranges(one.sources)
    protocol, sources = ("ip", fours) if is_v4(one.address) else ("ip6", sixes)
    if sources:
        yield protocol, sources


def _hairpins(order: GatewayOrder, router: RouterFunction) -> Iterator[tuple[GatewayLeg, str, str, str]]:
    """Leg, family, range and own address there, where somebody can mean a neighbour by a floating address."""
    if not (router.floating or router.forwards):
        return
    for leg in inside(order):
        for protocol, v4 in _FAMILIES:
            if address := own(leg, v4=v4):
                near = ipaddress.ip_interface(address)
                yield leg, protocol, str(near.network), str(near.ip)


def _still_to(router: RouterFunction) -> Iterator[Rule]:
    """Returns for a connection to a floating address that is that interface's still."""
    for protocol, pairs in _by_family((one.external, one.internal) for one in router.floating):
        ends = {"concat": [_ends("original", protocol, "daddr"), _ends("reply", protocol, "saddr")]}
        yield Rule((match(ends, _concats(pairs)), {"return": None}))
    for forward in router.forwards:
        protocol = _protocol(forward.external)
        yield Rule(
            (
                match(meta("l4proto"), _TRAFFIC[forward.protocol]),
                match(_ends("original", protocol, "daddr"), forward.external),
                match({"ct": {"key": "proto-dst", "dir": "original"}}, forward.port),
                match(_ends("reply", protocol, "saddr"), forward.internal),
                match({"ct": {"key": "proto-src", "dir": "reply"}}, forward.target_port),
                {"return": None},
            )
        )
    yield _drop(comment="translated no more")


def _still_from(order: GatewayOrder, router: RouterFunction) -> Iterator[Rule]:
    """Returns for a connection whose source would be translated so now."""
    for protocol, pairs in _by_family((one.internal, one.external) for one in router.floating):
        ends = {"concat": [_ends("original", protocol, "saddr"), _ends("reply", protocol, "daddr")]}
        yield Rule((match(ends, _concats(pairs)), {"return": None}))
    for one in router.masquerade:
        for protocol, sources in _sources(one):
            near = () if everything(sources) else (match(_ends("original", protocol, "saddr"), any_of(sources)),)
            yield Rule((match(_ends("reply", protocol, "daddr"), one.address), *near, {"return": None}))
    for _, protocol, subnet, mine in _hairpins(order, router):
        yield Rule(
            (
                match(_ends("reply", protocol, "daddr"), mine),
                match(_ends("original", protocol, "saddr"), _prefix(subnet)),
                {"return": None},
            )
        )
    yield _drop(comment="translated no more")


def _by_family(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    found = list(pairs)
    for protocol, v4 in _FAMILIES:
        if mine := [pair for pair in found if is_v4(pair[0]) is v4]:
            yield protocol, mine


def _concats(pairs: Sequence[tuple[str, str]]) -> object:
    return {"set": [{"concat": list(pair)} for pair in pairs]}


def _protocol(address: str) -> str:
    return "ip" if is_v4(address) else "ip6"
