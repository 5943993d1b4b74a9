"""What flows of Open vSwitch have dropped, and whose it was: read from listings. Pure.

A flow on OVN's bridge has for its cookie the first 32 bits of the uuid of what it was made of. That is a row `Logical_Flow`, which
says the first 32 bits of the uuid of the northbound row behind it (`stage-hint`): an ACL, or a limit of bandwidth. Or it is a row
`Port_Binding`, of what port security takes for a pretence. The flow's own match says by whom it was sent (`reg14`), or to whom
(`reg15`), in which network (`metadata`). Sources: ovn-sb(5), ovn-architecture(7), ovs-ofctl(8); tried with OVN 23.03.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.ovn import acls, names
from kumulus_agents.network.protocol import Dropped

NOT_ITS_OWN, ANOTHERS, TOO_MUCH, STRAY = (
    "not its own",
    "for another guest",
    "over its bandwidth",
    "of no connection that is known",
)
SLACK_SECONDS = 1.0
"""A bridge says a flow's age in whole seconds."""

_FLOW = re.compile(
    r"^ *(?:cookie=(?P<cookie>0x[0-9a-f]+), )?(?:table_id=\d+, )?duration=(?P<age>[0-9.]+)s, (?:table=\d+, )?"
    r"n_packets=(?P<packets>\d+), n_bytes=\d+, (?:idle_age=\d+, )?(?P<match>\S*?)[ ,]actions=(?P<actions>.*)$"
)
_KEY = {name: re.compile(rf"(?:^|,){name}=(0x[0-9a-f]+)(?:,|$)") for name in ("metadata", "reg14", "reg15")}
_ICMP = re.compile(r"icmp_type=(\d+)")
_METER = re.compile(r"\bmeter:(\d+)")
_METERS = re.compile(r"meter[:=](\d+) .*?bands:\s*0: ?packet_count:(\d+)", re.DOTALL)
_PRETENDS = "load:0x1->NXM_NX_REG10[12]"
"""What port security does with what the port must not send, or get (OVN's MLF_CHECK_PORT_SEC)."""

Whose = tuple[str, str, str]
"""Network, interface, and why."""


@dataclass(frozen=True, slots=True)
class Flow:
    """As a listing of a bridge has it."""

    cookie: int
    age: float
    """Seconds."""
    packets: int
    match: str
    actions: str


@dataclass(frozen=True, slots=True)
class Count:
    """What one flow has dropped since it came to be."""

    flow: str
    """What tells it from others: its bridge and match."""
    whose: Whose
    packets: int
    age: float
    """Of the flow, in seconds."""
    at: float = 0.0
    """When it was read, in seconds of a clock that never goes back."""


@dataclass(frozen=True, slots=True)
class Southbound:
    """What the southbound database says of flows."""

    networks: Mapping[int, str] = field(default_factory=dict)
    """Uids, by the number that flows have."""
    ports: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """Names of logical ports, by number of the network and their own."""
    bindings: frozenset[int] = frozenset()
    """Cookies of flows that were made of ports."""
    logical: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """By cookie of flows: hint and name of the stage."""


QUERY = (
    {"op": "select", "table": "Datapath_Binding", "where": [], "columns": ["_uuid", "tunnel_key", "external_ids"]},
    {
        "op": "select",
        "table": "Port_Binding",
        "where": [],
        "columns": ["_uuid", "tunnel_key", "datapath", "logical_port"],
    },
    {"op": "select", "table": "Logical_Flow", "where": [], "columns": ["_uuid", "external_ids"]},
)
"""What is asked of the southbound database, in one transaction (RFC 7047, 5.2.2)."""


def southbound(answer: Sequence[Mapping[str, Any]]) -> Southbound:
    """From the answer to `QUERY`. Raises KeyError, ValueError, TypeError when it is none."""
    datapaths, ports, logical = (one["rows"] for one in answer)
    numbers: dict[str, int] = {}
    networks: dict[int, str] = {}
    for row in datapaths:
        number = numbers[row["_uuid"][1]] = int(row["tunnel_key"])
        if (uid := names.network_of(_map(row["external_ids"]).get("name", ""))) is not None:
            networks[number] = uid
    said = {}
    for row in logical:
        ids = _map(row["external_ids"])
        said[_cookie(row["_uuid"][1])] = (ids.get("stage-hint", ""), ids.get("stage-name", ""))
    return Southbound(
        networks,
        {(numbers[row["datapath"][1]], int(row["tunnel_key"])): str(row["logical_port"]) for row in ports},
        frozenset(_cookie(row["_uuid"][1]) for row in ports),
        said,
    )


def hints(keys: Mapping[str, str], layout: Layout) -> Mapping[str, str]:
    """Why an ACL drops, by its hint. `keys`: of ACLs in the northbound database, by uuid."""
    why = {}
    for uid, network in layout.networks.items():
        order, everybody = network.order, names.everybody(uid)
        for acl in acls.everybody(order):
            why[f"{everybody}/{acl.key}"] = acl.why
        for place in layout.ports_of(uid):
            for acl in acls.own(order, place.port.nic):
                why[f"{everybody}/{acl.key}"] = acl.why
        for acl in acls.legs(order, [leg for _, leg in layout.legs_in(uid)]):
            why[f"{names.legs(uid)}/{acl.key}"] = acl.why
    return {uuid[:8]: why[key] for uuid, key in keys.items() if why.get(key)}


def meters(listing: str) -> Mapping[int, int]:
    """Packets that each meter has dropped (`ovs-ofctl meter-stats`)."""
    return {int(number): int(packets) for number, packets in _METERS.findall(listing)}


def integration(
    listing: str,
    layout: Layout,
    said: Southbound,
    why: Mapping[str, str],
    limits: Mapping[str, str],
    metered: Mapping[int, int],
    at: float,
) -> Iterator[Count]:
    """What flows of OVN's bridge have dropped. `why`: by hint of ACLs; `limits`: interfaces, by hint of their limits; `metered`:
    packets, by number of meters; `at`: when it was read."""
    left = dict(metered)  # several flows can have one meter
    for flow in parse(listing):
        network = _number(flow, "metadata")
        if network is None or (uid := said.networks.get(network)) is None:
            continue
        hint, stage = said.logical.get(flow.cookie, ("", ""))
        ports = (said.ports.get((network, _number(flow, side) or 0), "") for side in ("reg14", "reg15"))
        sender, target = (port if port in layout.places else "" for port in ports)  # not what serves, or routes
        name = f"{flow.match} {flow.cookie}"
        if (meter := _METER.search(flow.actions)) is not None:
            if hint in limits and (packets := left.pop(int(meter[1]), 0)):
                yield Count(name, (uid, limits[hint], TOO_MUCH), packets, flow.age, at)
        elif flow.cookie in said.bindings:
            if flow.actions == _PRETENDS:
                yield Count(
                    name, (uid, sender or target, NOT_ITS_OWN if sender else ANOTHERS), flow.packets, flow.age, at
                )
        elif hint in why:
            yield Count(name, (uid, sender or target, why[hint]), flow.packets, flow.age, at)
        elif flow.actions == "drop" and (reason := _of_all(stage)):
            yield Count(name, (uid, "", reason), flow.packets, flow.age, at)


def guarding(listing: str, network: str, nic: str, at: float) -> Iterator[Count]:
    """What the bridge between a guest and OVN has dropped."""
    for flow in parse(listing):
        if flow.actions == "drop" and (why := guarded(flow.match)) is not None:
            yield Count(f"{nic} {flow.match}", (network, nic, why), flow.packets, flow.age, at)


def guarded(match: str) -> str | None:
    """Why a flow of the bridge between a guest and OVN drops (`guard`), by its match as Open vSwitch says it, in the words of the driver
    `linux`; None when it is none of these."""
    if "dl_src=" in match:
        return "service MAC"
    if "nw_frag=" in match:
        return "ND in fragments" if "icmp6" in match else "fragment that hides what it is"
    if (kind := _ICMP.search(match)) is None:
        return None
    if "nd_target=" in match:
        return "service address"
    return {"134": "router advertisement", "137": "redirect", "136": "another's neighbour advertisement"}.get(
        kind[1], "not its own"
    )


def parse(listing: str) -> Iterator[Flow]:
    """Flows that have counted anything, or limit something: of `ovs-ofctl dump-flows`, or of `bridge/dump-flows`."""
    for line in listing.splitlines():
        if "n_packets=0," in line or (found := _FLOW.match(line)) is None:
            continue
        cookie = int(found["cookie"] or "0", 16)
        yield Flow(cookie, float(found["age"]), int(found["packets"]), found["match"], found["actions"])


class Tally:
    """Sums of what flows have counted, which never become less while whoever lost it is here: flows come and go with every
    change of rules, and begin anew. What a flow has counted between the last reading and its end is not known."""

    def __init__(self) -> None:
        self._flows: dict[str, Count] = {}
        """As they were last read."""
        self._sums: dict[Whose, int] = {}

    def add(self, counts: Iterable[Count]) -> None:
        """Take a reading of all flows."""
        before, self._flows = self._flows, {}
        for count in counts:
            known = before.get(count.flow)
            new = count.packets - known.packets if known is not None and _goes_on(known, count) else count.packets
            self._flows[count.flow] = count
            self._sums[count.whose] = self._sums.get(count.whose, 0) + new

    def dropped(self, layout: Layout) -> Sequence[Dropped]:
        """What those that are here have lost; others are forgotten."""
        self._sums = {
            (network, interface, why): packets
            for (network, interface, why), packets in self._sums.items()
            if network in layout.networks and (not interface or interface in layout.places)
        }
        return [Dropped(*whose, packets) for whose, packets in sorted(self._sums.items()) if packets]


def _goes_on(before: Count, now: Count) -> bool:
    """Whether that is the same flow. One that has begun anew is as old as the time between both readings at most; one that has not is
    older by what it had been before. Half of that is what a slow host may be wrong by."""
    passed = now.at - before.at
    return now.packets >= before.packets and now.age + SLACK_SECONDS >= passed + before.age / 2


def _of_all(stage: str) -> str | None:
    """Why the drop of a network's flow is, that no ACL is behind and that knows no port."""
    if stage.startswith(("ls_in_acl", "ls_out_acl")):
        return STRAY
    return NOT_ITS_OWN if stage == "ls_in_check_port_sec" else None


def _number(flow: Flow, name: str) -> int | None:
    found = _KEY[name].search(flow.match)
    return int(found[1], 16) if found else None


def _cookie(uuid: str) -> int:
    return int(uuid[:8], 16)


def _map(value: Sequence[Any]) -> Mapping[str, str]:
    """A map as OVSDB writes it (RFC 7047, 5.1)."""
    kind, pairs = value
    if kind != "map":
        raise ValueError(f"{kind} is not a map")
    return dict(pairs)
