"""The part of the rules that sees connections: security groups. Pure.

A table of family `inet`, entered through br_netfilter because the kernel tracks connections of a bridge there. `bridging`
has put both ends into the packet's mark. `judge` lets packets of known connections pass at once, and takes the mark off. Others
go through three stages; an end that is filtered elsewhere passes its own:

* `leave`: may the port that sends it open, or answer, this connection;
* `reach`: may the port that gets it;
* `known`: a new connection is counted for both ends, and one too many is dropped before the kernel remembers it, so that no
  guest fills the host's table; then it is marked with both its ends, differing (XOR) by a number that follows from all
  these rules and members.

What serves the network may be reached by every port, and reaches each.

Packets of a connection that is marked with the very ends they are between, and with the number of these rules, are known.
Others are judged: where a frame goes is said by its MAC, and who is allowed to send a packet to a device may
not be allowed to send the same packet to another. When anything changes, so does the number, and each connection has to show
again, with its next packet in either direction, that it is allowed: an answer is held against the same rules, read the
other way round. So connections that are still allowed go on, the others are cut by the transaction that changes the rules.
What goes the way of the connection's first packet marks it, answers do not.

That a packet is between the ends that its connection is marked with takes two look-ups of halves of marks to see, so the set
`passing-...` remembers it, by direction and both marks, for a minute. It is named by the number of the rules: the transaction
that changes them ends it with all that it remembers.

A group's rule that fits says so by a bit of the mark, `LET`, for what it is asked by still has other questions.

In a network without ranges a guest may send as any address, so an answer is what goes between the same ends as the question,
and nothing else. There connections are marked with the ends alone, and each packet is judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from kumulus.api.addresses import is_v4
from kumulus.api.segments import FilterGroup, FilterRule, Ports, Protocol
from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.bridging import BOTH_OPEN, FROM, FROM_SHIFT, TO
from kumulus_agents.network.linux.expressions import (
    ACCEPT,
    COUNTER,
    DROP,
    RETURN,
    any_of,
    ct,
    differing,
    everything,
    jump,
    learn,
    masked,
    match,
    meta,
    more_connections,
    payload,
    ranges,
    set_to,
    together,
    value_of,
    ways,
    ways_of,
)
from kumulus_agents.network.linux.gateway_links import LINK_VNI
from kumulus_agents.network.linux.layout import LIMITS, OPEN, SERVED, Layout, Limits, Network
from kumulus_agents.network.linux.ruleset import Chain, Json, Learned, Members, Name, Rule, Ruleset, Ways

FAMILY = "inet"
ZONES = -450
"""Priority: before fragments are put together, which must not be mixed between networks."""
JUDGE = -400
"""Priority: before other software's rules, which may change marks."""
LET = 0x8000
"""Of a packet's mark: a group's rule lets it through."""
PASSING, PASSING_SECONDS = 65535, 60
"""How many pairs of ends are remembered whose connections pass at once, and how long. What is more goes the longer way."""
GATEWAYS = "gateways"
"""In place of a network's short name: the link between gateways."""

_ICMP = ["icmp", "ipv6-icmp"]
_TRAFFIC = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.ICMP: "icmp", Protocol.ICMPV6: "ipv6-icmp"}


def render(layout: Layout, limits: Limits = LIMITS) -> Ruleset:
    """The table."""
    chains: dict[Name, Chain] = {}
    sets: dict[Name, Members] = {}
    zones: dict[str, int] = {}
    stages: dict[str, dict[str | int, str]] = {
        stage: {} for stage in ("leaves", "answers", "reached", "answered", "counted")
    }
    for uid, network in sorted(layout.networks.items()):
        short = names.short(uid)
        zones[names.bridge(uid)] = network.number
        sets |= _members(network)
        known = {group.uid for group in network.order.groups}
        for group in network.order.groups:
            chains |= _group(short, group, known)
        made: dict[str, Chain] = {}
        for place in layout.ports_of(uid):
            groups = sorted(known.intersection(place.port.nic.groups))
            some = hashlib.sha256(" ".join(groups).encode()).hexdigest()[:10]
            for way in ("egress", "ingress"):
                for answer in ("", "-answer"):
                    if (name := f"{way}{answer}-{short}-{some}") not in made:
                        made[name] = _any_group(short, groups, way + answer)
            stages["leaves"][place.number << FROM_SHIFT] = f"egress-{short}-{some}"
            stages["answers"][place.number << FROM_SHIFT] = f"ingress-answer-{short}-{some}"
            stages["reached"][place.number] = f"ingress-{short}-{some}"
            stages["answered"][place.number] = f"egress-answer-{short}-{some}"
            count = f"count-{names.tap(place.port.nic.uid)}"
            chains[FAMILY, count] = _count(limits)
            stages["counted"] |= {place.number << FROM_SHIFT: count, place.number: count}
        chains |= {(FAMILY, name): chain for name, chain in made.items()}
    maps = {(FAMILY, name): Ways("mark", ways, for_good=name != "counted") for name, ways in stages.items()}
    chains |= {
        (FAMILY, "zone"): Chain(tuple(_zone(zones)), "prerouting", ZONES),
        (FAMILY, "leave"): Chain(tuple(_leave())),
        (FAMILY, "reach"): Chain(tuple(_reach())),
        (FAMILY, "unranged"): Chain(tuple(_unranged())),
    }
    sets |= _ends(layout)
    number = _number(Ruleset(chains, sets, maps))
    passing = f"passing-{number:08x}"
    chains[FAMILY, "judge"] = Chain(tuple(_judge(number, passing)), "forward", JUDGE)
    chains[FAMILY, "known"] = Chain(tuple(_known(number)))
    tunnels = _tunnels(layout)
    chains |= tunnels.chains
    chains[FAMILY, "to-host"] = Chain((*_entrance(layout, limits), *_uplinks()), "input", 0)
    learned = {(FAMILY, passing): Learned(("ct_dir", "mark", "mark"), PASSING, PASSING_SECONDS)}
    return Ruleset(chains, {**sets, **tunnels.sets}, maps, learned=learned)


_UNRANGED: Json = match(meta("iifname"), "@unranged")
"""In a network where guests may send as any address."""


def _ends(layout: Layout) -> dict[Name, Members]:
    """Halves of marks that stand for the same end."""
    numbers = [OPEN, SERVED, *(place.number for place in layout.places.values())]
    halves = frozenset(
        (one, other)
        for number in numbers
        for one in (number, number << FROM_SHIFT)
        for other in (number, number << FROM_SHIFT)
    )
    bridges = frozenset(names.bridge(uid) for uid, network in layout.networks.items() if not network.order.subnets)
    return {
        (FAMILY, "same-end"): Members(("mark", "mark"), halves),
        (FAMILY, "unranged"): Members("ifname", bridges),
    }


def _zone(zones: Mapping[str, int]) -> Iterator[Rule]:
    if zones:
        yield Rule((set_to(ct("zone"), value_of(meta("iifname"), zones)),))


_PASS = (set_to(meta("mark"), 0), ACCEPT)


def _judge(number: int, passing: str) -> Iterator[Rule]:
    """All that is between devices of our bridges. Most packets are of connections that are known, between ends of which one
    packet that way has shown so of late, and go no further than the first rule. Marks of others are never both ends of ours."""
    way = together(ct("direction"), meta("mark"), ct("mark"))
    yield Rule((match(way, f"@{passing}"), *_PASS))
    yield Rule((match(meta("iifname"), f"{names.BRIDGE}*", "!="), ACCEPT), "nobody's business here")
    for direction in ("original", "reply"):  # errors of ICMP about them included
        yield Rule((*_between_its_ends(direction, number), learn(way, passing), *_PASS))
    # On its way between a tunnel and a gateway, which have their own rules. This host may have seen only parts of the
    # connection, when a gateway's other host was active: what the kernel says of its state means nothing.
    yield Rule((match(meta("mark"), BOTH_OPEN), *_PASS))
    yield Rule((match(masked(meta("mark"), FROM), SERVED << FROM_SHIFT), *_PASS), "from what serves the network")
    nd = (match(meta("l4proto"), "ipv6-icmp"), _in_state("untracked"))
    yield Rule((match(meta("mark"), 0, "!="), *nd, *_PASS), "ND and MLD: bridging saw to them")
    elsewhere = match(masked(meta("mark"), FROM), OPEN << FROM_SHIFT)
    errors = match(meta("l4proto"), any_of(_ICMP))
    yield Rule((errors, _in_state("related"), elsewhere, *_PASS), "errors from where they are filtered")
    yield Rule((_UNRANGED, jump("unranged")))
    yield from (Rule((jump(stage),)) for stage in ("leave", "reach", "known"))
    yield Rule(_PASS)


def _unranged() -> Iterator[Rule]:
    """Where guests may send as any address."""
    icmp = match(meta("l4proto"), any_of(_ICMP))
    for direction in ("original", "reply"):
        yield Rule((icmp, _in_state("related"), *_between_its_ends(direction), *_PASS))
    answer = (_in_state("established"), match(ct("direction"), "reply"))
    yield Rule((_in_state("established"), *_between_its_ends("reply"), RETURN))
    yield Rule((*answer, COUNTER, DROP), "not between the ends of its connection")


def _between_its_ends(direction: str, number: int = 0) -> Iterator[Json]:
    """That the connection is marked with the ends of this packet, differing by the number."""
    yield match(ct("direction"), direction)
    for bits in (0xFFFF, 0xFFFF0000):
        of_it = bits if direction == "original" else bits ^ 0xFFFFFFFF
        marked, differs = masked(ct("mark"), of_it), number & of_it
        yield match(
            together(masked(meta("mark"), bits), differing(marked, differs) if differs else marked), "@same-end"
        )


def _known(number: int) -> Iterator[Rule]:
    """What was let through: counted for both ends if it is new, and marked."""
    new = (_in_state("new"), match(ct("mark"), 0))
    for bits in (FROM, TO):
        yield Rule((*new, ways(masked(meta("mark"), bits), "counted")))
    opening = (_in_state("new", "established"), match(ct("direction"), "original"))
    ends = masked(meta("mark"), FROM | TO)
    yield Rule((*opening, _UNRANGED, set_to(ct("mark"), ends), RETURN))
    yield Rule((*opening, set_to(ct("mark"), differing(ends, number))))


def _number(rules: Ruleset) -> int:
    """A number that follows from the rules; never 0, which is no mark."""
    chains = [[*name, [rule.does for rule in chain.rules]] for name, chain in sorted(rules.chains.items())]
    sets = [[*name, sorted(map(str, members.members))] for name, members in sorted(rules.sets.items())]
    maps = [[*name, sorted(map(str, ways.ways.items()))] for name, ways in sorted(rules.maps.items())]
    digest = hashlib.sha256(json.dumps([chains, sets, maps], sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:4], "big") or 1


def _in_state(*states: str) -> Json:
    return match(ct("state"), list(states) if len(states) > 1 else states[0], "in")


def _leave() -> Iterator[Rule]:
    """What the end that sends it says. A packet without a mark has not come through `bridging`, and goes nowhere."""
    sender = masked(meta("mark"), FROM)
    tracked = _in_state("new", "established")
    yield Rule((tracked, match(sender, OPEN << FROM_SHIFT), RETURN))
    yield Rule((tracked, match(sender, 0, "!="), match(masked(meta("mark"), TO), SERVED), RETURN))
    yield from _stage(sender, "leaves", "answers")


def _reach() -> Iterator[Rule]:
    """What the end that gets it says."""
    target = masked(meta("mark"), TO)
    yield Rule((_in_state("new", "established"), match(target, any_of([OPEN, SERVED])), RETURN))
    yield from _stage(target, "reached", "answered")


def _stage(end: Json, opens: str, answers: str) -> Iterator[Rule]:
    yield Rule((_in_state("new", "established"), match(ct("direction"), "original"), ways(end, opens)))
    yield Rule((_in_state("established"), match(ct("direction"), "reply"), ways(end, answers)))
    yield Rule((COUNTER, DROP), "no group lets it through")


def _count(limits: Limits) -> Chain:
    said = "more connections than an interface may have"
    return Chain((Rule((more_connections(limits.connections), COUNTER, DROP), said),))


def _tunnels(layout: Layout) -> Ruleset:
    """Who may send frames of a network to this host: the other hosts that have it. Over the link between gateways, those
    that have one of this host's gateways."""
    chains: dict[Name, Chain] = {}
    sets: dict[Name, Members] = {}
    allowed: dict[str, Iterable[str]] = {
        names.short(uid): network.order.peers for uid, network in sorted(layout.networks.items()) if network.order.vni
    }
    if layout.gateways:
        allowed[GATEWAYS] = [peer.underlay for gateway in layout.gateways.values() for peer in gateway.redundancy.peers]
    for short, senders in allowed.items():
        rules = []
        for version, protocol, type_ in ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr")):
            peers = f"peers{version}-{short}"
            own = frozenset(peer for peer in senders if is_v4(peer) is (version == 4))
            sets[FAMILY, peers] = Members(type_, own)
            rules.append(
                Rule((match(payload(protocol, "saddr"), f"@{peers}", "!="), COUNTER, DROP), "not a host of it")
            )
        chains[FAMILY, f"tunnel-{short}"] = Chain(tuple(rules))
    return Ruleset(chains, sets)


def _entrance(layout: Layout, limits: Limits) -> Iterator[Rule]:
    """Tunnels of ours, by their number; others on the same port are nobody's business here (RFC 7348, section 5)."""
    ours = {
        network.order.vni: f"tunnel-{names.short(uid)}" for uid, network in layout.networks.items() if network.order.vni
    }
    if layout.gateways:
        ours[LINK_VNI] = f"tunnel-{GATEWAYS}"
    if ours:
        number: Json = {"payload": {"base": "th", "offset": 96, "len": 24}}
        yield Rule((match(payload("udp", "dport"), limits.vxlan_port), ways_of(number, ours)))


def _any_group(short: str, groups: Sequence[str], way: str) -> Chain:
    let = match(masked(meta("mark"), LET), LET)
    off = set_to(meta("mark"), masked(meta("mark"), FROM | TO))
    rules: list[Rule] = []
    for group in groups:
        rules += (Rule((jump(f"{way}-{short}-{group}"),)), Rule((let, off, RETURN)))
    return Chain((*rules, Rule((COUNTER, DROP), "no group lets it through")))


def _members(network: Network) -> dict[Name, Members]:
    short = names.short(network.order.uid)
    made: dict[Name, Members] = {}
    for group in network.order.groups:
        for four, type_ in ((True, "ipv4_addr"), (False, "ipv6_addr")):
            members = frozenset(member for member in group.members if is_v4(member) is four)
            made[FAMILY, _set_name(short, group.uid, four=four)] = Members(type_, members)
    return made


def _set_name(short: str, group: str, *, four: bool) -> str:
    return f"members{4 if four else 6}-{short}-{group}"


def _group(short: str, group: FilterGroup, known: Collection[str]) -> dict[Name, Chain]:
    made: dict[Name, Chain] = {}
    for way, rules in (("ingress", group.ingress), ("egress", group.egress)):
        for answer in (False, True):
            said = tuple(
                rule
                for number, wanted in enumerate(rules)
                for rule in _rules(short, wanted, known, way, answer, f"{way} {number} of {group.uid}")
            )
            made[FAMILY, f"{way}{'-answer' if answer else ''}-{short}-{group.uid}"] = Chain(said)
    return made


def _rules(
    short: str, rule: FilterRule, known: Collection[str], way: str, answer: bool, comment: str
) -> Iterator[Rule]:
    """The rule, for packets that open a connection or, read the other way round, for answers."""
    side = "saddr" if (way == "ingress") is not answer else "daddr"
    port = "sport" if answer else "dport"
    what: list[Json] = []
    if rule.protocol in (Protocol.TCP, Protocol.UDP) and rule.ports:
        what.append(match(payload(_TRAFFIC[rule.protocol], port), any_of(_ports(rule.ports))))
    elif rule.protocol is not Protocol.ANY:
        what.append(match(meta("l4proto"), _TRAFFIC[rule.protocol]))
    for where in _where(short, rule, side, known):
        yield Rule((*where, *what, COUNTER, _LETS, RETURN), comment)


_LETS = set_to(meta("mark"), {"|": [meta("mark"), LET]})


def _where(short: str, rule: FilterRule, side: str, known: Collection[str]) -> Iterator[tuple[Json, ...]]:
    """Conditions on the other end, one of which has to hold. A group that the order does not have has no members."""
    if rule.group is not None and rule.group not in known:
        return
    member: dict[str, tuple[Json, ...]] = {"ip": (), "ip6": ()}
    if rule.group is not None:
        member = {
            "ip": (match(payload("ip", side), f"@{_set_name(short, rule.group, four=True)}"),),
            "ip6": (match(payload("ip6", side), f"@{_set_name(short, rule.group, four=False)}"),),
        }
        if not rule.cidrs:
            yield from member.values()
    elif not rule.cidrs:
        yield ()
    fours, sixes = ranges(rule.cidrs)
    if everything(fours):
        yield (*member["ip"], match(meta("nfproto"), "ipv4"))
    elif fours:
        yield (*member["ip"], match(payload("ip", side), any_of(fours)))
    if everything(sixes):
        yield (*member["ip6"], match(meta("nfproto"), "ipv6"))
    elif sixes:
        yield (*member["ip6"], match(payload("ip6", side), any_of(sixes)))


def _ports(ports: Sequence[Ports]) -> list[object]:
    """Ranges that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted((range_.first, range_.last) for range_ in ports if range_.first <= range_.last):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return [first if first == last else {"range": [first, last]} for first, last in merged]


def _uplinks() -> Iterator[Rule]:
    """What serves a network may ask this host for names, and nothing else."""
    uplink = match(meta("iifname"), f"{names.UPLINK}*")
    yield Rule((match(meta("iifname"), f"{names.UPLINK}*", "!="), ACCEPT))
    yield Rule((uplink, match(meta("l4proto"), "ipv6-icmp"), ACCEPT))
    for protocol in ("udp", "tcp"):
        yield Rule((uplink, match(payload(protocol, "dport"), 53), ACCEPT))
    yield Rule((uplink, COUNTER, DROP))
