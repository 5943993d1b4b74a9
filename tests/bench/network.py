"""The driver of networks on hosts that are namespaces, with real packets: attaching, changes of groups, many rules, what
filters cost, and what a liar gets through. What stands around the driver (orders, the API server) is not in these numbers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from kumulus.api.segments import FilterGroup, FilterRule, Nic, Ports, Protocol, SegmentOrder, Subnet
from kumulus_agents.network.linux import names
from kumulus_agents.network.protocol import Plug, Port
from tests.bench import machine, percentiles, wires
from tests.bench.bench import Context
from tests.bench.cloud import BenchError
from tests.bench.record import Better, Goal, Record, record
from tests.bench.wires import Stream, Way
from tests.contract import network_world
from tests.contract.network import OPEN, Net, new_uid
from tests.contract.network_frames import Party, honest, spoofs
from tests.contract.network_programs import Sender, Watcher
from tests.contract.network_world import Guest, Host, Machine, World

HOSTS = 3
NEIGHBOURS = 20
"""Interfaces that the host has besides."""
RULES, MANY = 20, 1000
SPOOFED = 10_000
TRIPS, TRIP_TURNS, POUR_TURNS = 500, 40, 15
"""Of a round: round trips a turn, and how many turns."""
SUBNET = Subnet(cidr="10.20.0.0/16", service="10.20.0.2")
BARE = "a bare bridge"
_SIX = Subnet(cidr="fd00:20::/64", service="fd00:20::2")
_IN_A_GROUP = 128


def _filter(number: int) -> FilterRule:
    """A rule that none of the bench's packets fits."""
    cidr = f"192.0.2.{number % 256}/32"
    ports = (Ports(first=1000 + number, last=1000 + number),)
    return FilterRule(protocol=Protocol.TCP, ports=ports, cidrs=(cidr,))


_LET = (*(_filter(number) for number in range(RULES - 1)), FilterRule())
FILTERED = FilterGroup(uid=new_uid(), ingress=_LET, egress=_LET)
"""What the bench's guests are members of: the last of its rules lets their packets through."""


@dataclass(slots=True)
class _Found:
    """What was measured, in seconds but for shares."""

    attached: list[float] = field(default_factory=list)
    ordered: list[float] = field(default_factory=list)
    """The driver's part of it."""
    by_hand: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    replaced: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    bare_bytes: list[float] = field(default_factory=list)
    trip: list[float] = field(default_factory=list)
    bare_trip: list[float] = field(default_factory=list)
    early: int = 0
    """Frames that arrived from a device before the driver was asked for its filter."""
    sent: int = 0
    false: int = 0
    examples: list[str] = field(default_factory=list)
    """Some of those that arrived."""


class Cloud:
    """Three hosts with one network."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hosts = world.hosts
        groups = (OPEN, FILTERED)
        order = SegmentOrder(uid=new_uid(), driver="linux", vni=5001, mtu=1450, subnets=(SUBNET, _SIX), groups=groups)
        self.net = Net(world, self.hosts, order)
        self._count = 0

    def nic(self, group: FilterGroup = FILTERED) -> Nic:
        """A new interface."""
        self._count += 1
        high, low = divmod(self._count, 250)
        return self.net.nic(
            mac=f"02:00:00:01:{high:02x}:{low:02x}",
            addresses=(f"10.20.{high + 1}.{low + 1}", f"fd00:20::{high + 1:x}:{low + 1:x}"),
            groups=(group.uid,),
        )

    async def ensure(self, *groups: FilterGroup) -> None:
        """Have these groups in force on all hosts, asked of all at once."""
        order = self.net.order.model_copy(update={"groups": groups})

        async def on(host: Host) -> None:
            peers = tuple(other.address for other in self.hosts if other is not host)
            await host.driver.ensure_segment(order.model_copy(update={"peers": peers}))

        await asyncio.gather(*(on(host) for host in self.hosts))

    async def guest(self, host: Host, group: FilterGroup = FILTERED) -> Guest:
        """A guest on that host, with its addresses."""
        nic = self.nic(group)
        guest = await self.world.guest(host, nic, addressed=False)
        guest.machine.run("ip", "address", "add", f"{nic.addresses[0]}/16", "dev", "eth0")
        return guest


def _party(nic: Nic) -> Party:
    return Party(nic.mac, *nic.addresses)


class Bare:
    """A bridge without anything else, in a namespace of its own."""

    def __init__(self, *options: str) -> None:
        """`options`: of the bridge (ip-link(8))."""
        self.host = Machine("bare")
        self.host.run("ip", "link", "add", "name", "bare", "type", "bridge", *options)
        self.host.run("ip", "link", "set", "dev", "bare", "mtu", "1450", "up")
        self.guests: list[Machine] = []

    def plug(self, guest: Machine, number: int) -> Party:
        """Plug it in."""
        me = Party(f"02:00:00:02:00:{number:02x}", f"10.20.0.{number}", f"fd00:20::{number:x}")
        wires.plug(self.host, guest, me.mac, Plug(device=f"bare{number}", bridge="bare", mtu=1450))
        return me

    def guest(self, number: int) -> tuple[Machine, Party]:
        """A guest with its address."""
        made = Machine(f"bare guest {number}")
        self.guests.append(made)
        me = self.plug(made, number)
        made.run("ip", "address", "add", f"{me.four}/16", "dev", "eth0")
        return made, me

    def unplug(self, number: int) -> None:
        self.host.run("ip", "link", "delete", "dev", f"bare{number}")

    def close(self) -> None:
        for guest in (*self.guests, self.host):
            guest.close()


async def run(context: Context) -> list[Record]:
    """Everything, on one world."""
    if (why := network_world.why_none()) is not None:
        raise BenchError(why)
    found = _Found()
    world = await asyncio.to_thread(World, HOSTS)
    try:
        cloud = Cloud(world)
        for host in world.hosts:
            await host.driver.prepare()
        await cloud.ensure(*cloud.net.order.groups)
        for host in world.hosts:
            nics = [cloud.nic() for _ in range(NEIGHBOURS)]
            await asyncio.gather(*(host.driver.ensure_port(Port(nic, nic.uid)) for nic in nics))
        bare = await asyncio.to_thread(Bare)
        try:
            steps: Sequence[tuple[str, Callable[[], Awaitable[None]]]] = (
                ("attach", lambda: _attach(cloud, bare, found, context.scale.attaches)),
                ("group changes", lambda: _change(cloud, found, context.scale.group_changes)),
                ("many rules", lambda: _replace(cloud, found, context.scale.rounds)),
                ("traffic", lambda: _carry(cloud, bare, found, context.scale.rounds, context.scale.traffic_seconds)),
                ("spoofs", lambda: _lie(cloud, found)),
            )
            for name, step in steps:
                context.say(f"network: {name}")
                await step()
        finally:
            bare.close()
        await world.clear()
    finally:
        await asyncio.to_thread(world.close)
    load = machine.load()
    return [each.model_copy(update={"load": load}) for each in _records(found)]


async def _attach(cloud: Cloud, bare: Bare, found: _Found, times: int) -> None:
    """Ask for a port, plug a guest in, send until something arrives at a guest of another host. Then by hand."""
    host, other = cloud.hosts[:2]
    far = await cloud.guest(other)
    near, near_party = await asyncio.to_thread(bare.guest, 250)
    targets = wires.receiver(far.machine), wires.receiver(near)
    for number in range(times):
        nic = cloud.nic()
        guest = await asyncio.to_thread(Machine, "arriving")
        try:
            began = time.perf_counter()
            plug = await host.driver.ensure_port(Port(nic, nic.uid))
            found.ordered.append(time.perf_counter() - began)
            await asyncio.to_thread(wires.plug, host.machine, guest, nic.mac, plug)
            frame = honest(_party(nic), _party(far.nic))
            with wires.sender(guest) as source, Stream(source, [frame], targets[:1]) as stream:
                found.attached.append(await asyncio.to_thread(stream.arrived) - began)
            host.machine.run("ip", "link", "delete", "dev", plug.device)
            await host.driver.remove_port(nic.uid)
        finally:
            guest.close()
        hand = await asyncio.to_thread(Machine, "arriving by hand")
        try:
            began = time.perf_counter()
            me = await asyncio.to_thread(bare.plug, hand, 1 + number % 200)
            frame = honest(me, near_party)
            with wires.sender(hand) as source, Stream(source, [frame], targets[1:]) as stream:
                found.by_hand.append(await asyncio.to_thread(stream.arrived) - began)
            bare.unplug(1 + number % 200)
        finally:
            hand.close()
    for each in targets:
        each.close()


async def _change(cloud: Cloud, found: _Found, times: int) -> None:
    """A group of guests on all hosts is opened and closed; until it is so on all of them."""
    shut = FilterGroup(uid=new_uid(), ingress=_LET[:-1], egress=(FilterRule(),))
    rule = FilterRule(protocol=Protocol.UDP, ports=(Ports(first=wires.PORT, last=wires.PORT),))
    opened = shut.model_copy(update={"ingress": (*_LET[:-1], rule)})
    asker = await cloud.guest(cloud.hosts[0])
    await cloud.ensure(OPEN, FILTERED, shut)
    guests = [await cloud.guest(host, shut) for host in cloud.hosts]
    receivers = [wires.receiver(guest.machine) for guest in guests]
    frames = [honest(_party(asker.nic), _party(guest.nic)) for guest in guests]
    with wires.sender(asker.machine) as source:
        for _ in range(times):
            with Stream(source, frames, receivers) as stream:
                began = time.perf_counter()
                await cloud.ensure(OPEN, FILTERED, opened)
                found.changed.append(await asyncio.to_thread(stream.arrived) - began)
                began = time.perf_counter()
                await cloud.ensure(OPEN, FILTERED, shut)
                found.changed.append(max(0.0, await asyncio.to_thread(stream.silent) - began))
    for each in receivers:
        each.close()


async def _replace(cloud: Cloud, found: _Found, times: int) -> None:
    """All of a thousand rules become others, with interfaces that have them."""

    def groups(first: int) -> list[FilterGroup]:
        rules = [_filter(first + number) for number in range(MANY)]
        parts = [rules[at : at + _IN_A_GROUP] for at in range(0, MANY, _IN_A_GROUP)]
        return [FilterGroup(uid=uid, ingress=tuple(part)) for uid, part in zip(uids, parts, strict=True)]

    uids = [new_uid() for _ in range(0, MANY, _IN_A_GROUP)]
    host = cloud.hosts[0]
    peers = tuple(other.address for other in cloud.hosts[1:])
    nic = cloud.nic().model_copy(update={"groups": tuple(uids)})
    for number in range(times + 1):
        more = {"peers": peers, "groups": (OPEN, FILTERED, *groups(number * MANY))}
        began = time.perf_counter()
        await host.driver.ensure_segment(cloud.net.order.model_copy(update=more))
        if number:
            found.replaced.append(time.perf_counter() - began)
        else:
            await host.driver.ensure_port(Port(nic, nic.uid))
    await host.driver.remove_port(nic.uid)
    await cloud.ensure(OPEN, FILTERED)


async def _carry(cloud: Cloud, bare: Bare, found: _Found, rounds: int, seconds: float) -> None:
    """What passes between two guests of one host, and between two on a bare bridge, in short turns."""
    ours = [await cloud.guest(cloud.hosts[0]) for _ in range(2)]
    theirs = [await asyncio.to_thread(bare.guest, number) for number in (251, 252)]
    ways: list[Way] = []
    try:
        ways.append(Way(ours[0].machine, ours[1].machine, ours[1].nic.addresses[0]))
        ways.append(Way(theirs[0][0], theirs[1][0], theirs[1][1].four))
        for _ in range(rounds):
            for measure, turns, mine, other in (
                (lambda way: way.throughput(seconds / POUR_TURNS), POUR_TURNS, found.bytes, found.bare_bytes),
                (lambda way: way.trip(TRIPS), TRIP_TURNS, found.trip, found.bare_trip),
            ):
                carried = await asyncio.to_thread(wires.in_turns, ways, measure, turns)
                mine.append(percentiles.median(carried[0]))
                other.append(percentiles.median(carried[1]))
    finally:
        for way in ways:
            way.close()


async def _lie(cloud: Cloud, found: _Found) -> None:
    """Somebody lies before there is a filter for him, when it comes, while rules change, and while the agent dies."""
    host, other = cloud.hosts[:2]
    victims = [await cloud.guest(host, OPEN), await cloud.guest(other, OPEN)]
    service = Party(names.service_mac(cloud.net.order.uid), SUBNET.service, _SIX.service)
    stranger = Party("02:00:00:00:00:99", "10.20.99.99", "fd00:20::99")
    nic = cloud.nic(OPEN)
    me = _party(nic)
    lies = [lie for victim in victims for lie in spoofs(me, _party(victim.nic), service, stranger).values()]
    truths = [honest(me, _party(victim.nic)) for victim in victims]
    plug = Plug(device=names.tap(nic.uid), bridge=names.bridge(cloud.net.order.uid), mtu=1450)
    liar = await asyncio.to_thread(Guest, host, nic, plug)
    cloud.world.guests.append(liar)
    watchers = [Watcher(victim) for victim in victims]
    try:
        with Sender(liar, [*lies, *truths]) as sender:
            await network_world.eventually(lambda: liar.sent() > SPOOFED // 4, "nothing is sent")
            found.early = sum(sum(watcher.seen()) for watcher in watchers)
            await host.driver.ensure_port(Port(nic, nic.uid))
            for watcher in watchers:
                await network_world.eventually(lambda w=watcher: w.seen()[0] > 50, "honest frames do not arrive")
            for number in range(8):
                group = FilterGroup(uid=new_uid(), ingress=(_filter(number),))
                await cloud.ensure(OPEN, FILTERED, group)
            driver = host.restart()
            await driver.prepare()
            await cloud.ensure(OPEN, FILTERED)
            await driver.ensure_port(Port(nic, nic.uid))
            await network_world.eventually(lambda: liar.sent() > 2 * SPOOFED, "too little is sent")
        found.sent = sender.sent * len(lies) // (len(lies) + len(truths))
        found.false = sum(watcher.seen()[1] for watcher in watchers)
        found.examples = [example for watcher in watchers for example in watcher.examples]
    finally:
        for watcher in watchers:
            watcher.close()


def _records(found: _Found) -> list[Record]:
    def share(name: str, shares: list[float], ours: list[float], theirs: list[float]) -> Record:
        goal = Goal(id="N", limit=0.95, better=Better.HIGHER)
        detail = {"ours": ours, "bare": theirs}
        return record(name, goal, "of it", percentiles.median(shares), rounds=shares, detail=detail, note=BARE)

    carried = [mine / other for mine, other in zip(found.bytes, found.bare_bytes, strict=True)]
    quick = [other / mine for mine, other in zip(found.trip, found.bare_trip, strict=True)]
    to_filter = f"interface with {RULES} rules each way, asked for to its first packet on another host"
    p95 = percentiles.exact(found.changed, 95)
    return [
        record(
            f"{to_filter}, P50",
            Goal(id="G13", limit=0.1),
            "s",
            percentiles.median(found.attached),
            rounds=found.attached,
            against=(f"{BARE}, by hand", found.by_hand),
            detail={"driver": found.ordered, "attached": found.attached},
        ),
        record(f"{to_filter}, P95", Goal(id="G13", limit=0.25), "s", percentiles.exact(found.attached, 95)),
        record(
            f"change of a group in force on {HOSTS} hosts, P95",
            Goal(id="G13", limit=0.5),
            "s",
            p95,
            rounds=found.changed,
            note="drivers only",
        ),
        record(f"{MANY} rules replaced", Goal(id="G13", limit=1), "s", max(found.replaced), rounds=found.replaced),
        record("frames that passed before their filter", Goal(id="G13", limit=0), "", float(found.early)),
        share("throughput between two guests of a host", carried, found.bytes, found.bare_bytes),
        share("round trips a second between two guests of a host", quick, found.trip, found.bare_trip),
        record(
            "spoofed frames delivered",
            Goal(id="G25", limit=0),
            "",
            float(found.false),
            detail={"sent": found.sent, "examples": found.examples},
            note=f"of {found.sent}: before the filter, steady, while rules change, while the agent dies",
        ),
    ]
