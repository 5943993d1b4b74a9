"""What rules of groups mean (`kumulus.api.passage`) is what both drivers write of them, for any rules and packets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kumulus.api.addresses import is_v4
from kumulus.api.passage import Decision, Opening, Way, decide, owns
from kumulus.api.segments import FilterGroup, FilterRule, Ports, Protocol
from kumulus_agents.network.linux import bridging, filtering, names
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.ruleset import Ruleset
from kumulus_agents.network.ovn import acls
from kumulus_agents.network.ovn import names as ovn_names
from tests.unit.network.material import DATA, NETWORK, WEB, nic_uid, order, port

_L4 = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.ICMP: "icmp", Protocol.ICMPV6: "ipv6-icmp", None: "gre"}
ADDRESSES = ["10.0.0.1", "10.0.0.130", "192.0.2.7", "fd00::1", "2001:db8::9"]
CIDRS = ["10.0.0.0/24", "10.0.0.128/25", "10.0.0.1/32", "0.0.0.0/0", "fd00::/64", "fd00::1/128", "::/0"]
PORTS = [1, 79, 80, 81, 443, 65535]

ports = st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(lambda two: Ports(first=min(two), last=max(two)))
rules = st.builds(
    FilterRule,
    protocol=st.sampled_from(Protocol),
    ports=st.lists(ports, max_size=3).map(tuple),
    cidrs=st.lists(st.sampled_from(CIDRS), max_size=3, unique=True).map(tuple),
    group=st.sampled_from([None, WEB, DATA, nic_uid(99)]),
)
groups = st.builds(
    lambda web, data: (web, data),
    *(
        st.builds(
            FilterGroup,
            uid=st.just(uid),
            ingress=st.lists(rules, max_size=3).map(tuple),
            egress=st.lists(rules, max_size=3).map(tuple),
            members=st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=3).map(tuple),
        )
        for uid in (WEB, DATA)
    ),
)
openings = st.builds(
    lambda peer, protocol, number: Opening(
        peer,
        protocol if protocol not in (Protocol.ICMP, Protocol.ICMPV6) else _icmp(peer),
        number if protocol in (Protocol.TCP, Protocol.UDP) else None,
    ),
    st.sampled_from(ADDRESSES),
    st.sampled_from([Protocol.TCP, Protocol.UDP, Protocol.ICMP, None]),
    st.sampled_from(PORTS),
)
EVERYTHING = FilterRule()
NARROW = FilterRule(protocol=Protocol.TCP, ports=(Ports(first=80, last=80),), cidrs=("10.0.0.0/24",), group=WEB)
MEMBERS = FilterGroup(uid=WEB, ingress=(NARROW,), egress=(EVERYTHING,), members=("10.0.0.1",))


def _icmp(peer: str) -> Protocol:
    return Protocol.ICMP if is_v4(peer) else Protocol.ICMPV6


class Nft:
    """As much of nftables as these chains need: what a packet with these fields comes to. A mark that is set and seen is that
    of a rule that lets it through."""

    def __init__(self, rules: Ruleset, family: str, fields: Mapping[tuple[str, str], object]) -> None:
        self._rules, self._family, self._fields = rules, family, fields
        self.let = False

    def verdict(self, chain: str) -> str | None:
        for rule in self._rules.chains[self._family, chain].rules:
            for said in rule.does:
                ((what, how),) = said.items()
                if what == "match":
                    if not self._matches(how):
                        break
                elif what == "jump":
                    if (found := self.verdict(how["target"])) is not None:
                        return found
                elif what in ("accept", "drop"):
                    return what
                elif what == "return":
                    return None
                elif what == "mangle":
                    self.let = self.let or "|" in how["value"]
                else:
                    assert what in ("counter",), what
        return None

    def _matches(self, how: Mapping[str, Any]) -> bool:
        left = how["left"]
        if "&" in left:
            assert left == {"&": [{"meta": {"key": "mark"}}, filtering.LET]}
            return self.let
        key = (
            ("meta", left["meta"]["key"]) if "meta" in left else (left["payload"]["protocol"], left["payload"]["field"])
        )
        value = self._fields.get(key)
        if value is None:
            return False  # the packet has no such header
        right = how["right"]
        wanted = right["set"] if isinstance(right, dict) and "set" in right else [right]
        return any(self._is(value, one) for one in wanted) is (how["op"] == "==")

    def _is(self, value: object, wanted: object) -> bool:
        if isinstance(wanted, str) and wanted.startswith("@"):
            return value in self._rules.sets[self._family, wanted[1:]].members
        if isinstance(wanted, dict) and "prefix" in wanted:
            prefix = wanted["prefix"]
            return ipaddress.ip_address(str(value)) in ipaddress.ip_network(f"{prefix['addr']}/{prefix['len']}")
        if isinstance(wanted, dict) and "range" in wanted:
            first, last = wanted["range"]
            return int(first) <= int(str(value)) <= int(last)
        return value == wanted


def by_nftables(known: Sequence[FilterGroup], way: Way, opening: Opening) -> bool:
    assert opening.peer is not None
    layout = Layout().with_network(order(groups=[one.model_dump() for one in known])).with_port(port(11, groups=[WEB]))
    family = "ip" if is_v4(opening.peer) else "ip6"
    fields: dict[tuple[str, str], object] = {
        (family, "saddr" if way is Way.INGRESS else "daddr"): opening.peer,
        ("meta", "l4proto"): _L4[opening.protocol],
        ("meta", "nfproto"): "ipv4" if family == "ip" else "ipv6",
    }
    if opening.protocol in (Protocol.TCP, Protocol.UDP):
        fields[_L4[opening.protocol], "dport"] = opening.port
    rules = filtering.render(layout)
    chain = next(
        name for _, name in rules.chains if re.fullmatch(rf"{way}-{names.short(NETWORK)}-[0-9a-f]{{10}}", name)
    )
    passing = Nft(rules, "inet", fields)
    verdict = passing.verdict(chain)
    assert passing.let is (verdict is None), "it either goes on, or is dropped"
    return passing.let


def by_ovn(known: Sequence[FilterGroup], way: Way, opening: Opening) -> bool:
    """Whether a row of OVN's ACLs lets it through; their expressions are close enough to Python's to be read as such."""
    assert opening.peer is not None
    uids = [group.uid for group in known]
    four = is_v4(opening.peer)
    sets = {
        ovn_names.members(NETWORK, group.uid, four=family): [a for a in group.members if is_v4(a) is family]
        for group in known
        for family in (True, False)
    }
    end = "outport" if way is Way.INGRESS else "inport"
    found = []
    for acl in acls.group(NETWORK, known[0], uids):
        if not acl.match.startswith(f"{end} == "):
            continue
        found.append(all(_holds(part, opening, four, sets) for part in _parts(acl.match)[1:]))
    return any(found)


def _parts(match: str) -> list[str]:
    return re.split(r" && (?![^(]*\))", match)


def _holds(part: str, opening: Opening, four: bool, sets: Mapping[str, list[str]]) -> bool:
    assert opening.peer is not None
    protocol = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.ICMP: "icmp4", Protocol.ICMPV6: "icmp6"}.get(
        opening.protocol or Protocol.ANY
    )
    if part in ("ip", "ip4", "ip6"):
        return part == "ip" or (part == "ip4") is four
    if part in ("tcp", "udp", "icmp4", "icmp6"):
        return part == protocol
    if (said := re.fullmatch(r"ip([46])\.(?:src|dst) == \$(\S+)", part)) is not None:
        return (said[1] == "4") is four and opening.peer in sets[said[2]]
    if (said := re.fullmatch(r"ip([46])\.(?:src|dst) == (?:\{(.*)\}|(\S+))", part)) is not None:
        cidrs = (said[2] or said[3]).split(", ")
        address = ipaddress.ip_address(opening.peer)
        return (said[1] == "4") is four and any(address in ipaddress.ip_network(cidr) for cidr in cidrs)
    terms = part.strip("()").split(" || ")
    return any(_port(term, opening.port) for term in terms)


def _port(term: str, number: int | None) -> bool:
    if number is None:
        return False
    if (said := re.fullmatch(r"\S+ == (\d+)", term)) is not None:
        return number == int(said[1])
    said = re.fullmatch(r"(\d+) <= \S+ <= (\d+)", term)
    assert said is not None, term
    return int(said[1]) <= number <= int(said[2])


@settings(max_examples=250, deadline=None)
@given(groups, st.sampled_from(Way), openings)
@example((MEMBERS, MEMBERS.model_copy(update={"uid": DATA})), Way.INGRESS, Opening("10.0.0.1", Protocol.TCP, 80))
@example((MEMBERS, MEMBERS.model_copy(update={"uid": DATA})), Way.EGRESS, Opening("fd00::1", None))
@example((MEMBERS, MEMBERS.model_copy(update={"uid": DATA})), Way.INGRESS, Opening("10.0.0.1", Protocol.TCP, 81))
@example((MEMBERS, MEMBERS.model_copy(update={"uid": DATA})), Way.INGRESS, Opening("10.0.0.1", Protocol.TCP, 79))
def test_both_drivers_let_through_what_the_rules_mean(
    known: tuple[FilterGroup, FilterGroup], way: Way, opening: Opening
) -> None:
    meant = decide(known, {WEB}, way, opening) is not None
    assert by_nftables(known, way, opening) is meant
    assert by_ovn(known, way, opening) is meant


def test_the_first_rule_that_fits_is_named() -> None:
    known = (
        FilterGroup(uid=DATA, ingress=(EVERYTHING,)),
        FilterGroup(uid=WEB, ingress=(NARROW, EVERYTHING), members=("10.0.0.1",)),
    )
    assert decide(known, {WEB}, Way.INGRESS, Opening("10.0.0.1", Protocol.TCP, 80)) == Decision(WEB, 0)
    assert decide(known, {WEB}, Way.INGRESS, Opening("10.0.0.2", Protocol.TCP, 80)) == Decision(WEB, 1)
    assert decide(known, {WEB}, Way.EGRESS, Opening("10.0.0.2", Protocol.TCP, 80)) is None
    assert decide(known, {WEB}, Way.INGRESS, Opening(None, Protocol.TCP, 80)) == Decision(WEB, 1)
    assert decide(known, set(), Way.INGRESS, Opening("10.0.0.1", Protocol.TCP, 80)) is None


def test_addresses_that_a_port_may_send_from() -> None:
    """As the frames are judged that enter the bridge."""
    pairs = [
        {"cidr": "10.20.30.100/32"},
        {"cidr": "10.20.30.128/28", "mac": "02:00:5e:00:00:01"},
        {"cidr": "0.0.0.0/1"},
    ]
    plugged = port(11, pairs=pairs)
    layout = Layout().with_network(order()).with_port(plugged)
    rules = bridging.render(layout)
    for address in ("10.20.30.11", "10.20.30.12", "10.20.30.100", "10.20.30.130", "10.20.30.2", "200.0.0.1"):
        fields: dict[tuple[str, str], object] = {
            ("ether", "saddr"): plugged.nic.mac,
            ("ether", "type"): "ip",
            ("ip", "saddr"): address,
            ("meta", "l4proto"): "tcp",
            ("th", "sport"): 4000,
        }
        passes = Nft(rules, "bridge", fields).verdict(f"enter-{names.tap(plugged.nic.uid)}") == "accept"
        assert owns(order(), plugged.nic, address) is passes, address
