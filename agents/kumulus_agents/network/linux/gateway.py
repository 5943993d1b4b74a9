"""One gateway on this host: its network namespace, cables, rules, and what runs in it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from kumulus.api.addresses import is_v4
from kumulus.api.balancing import BalancingFacts
from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus_agents.network.linux import (
    dnsmasq,
    gateway_links,
    gateway_rules,
    host,
    keepalived,
    links,
    names,
    replication,
    uplinks,
)
from kumulus_agents.network.linux.balancer import Balancer
from kumulus_agents.network.linux.daemons import KEEPALIVED, Daemon
from kumulus_agents.network.linux.links import Commands, Link
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.linux.replication import Replication
from kumulus_agents.network.linux.service import runs_as
from kumulus_agents.network.linux.settings import GatewaySettings
from kumulus_agents.network.linux.tables import Tables
from kumulus_agents.network.protocol import Identity, NetworkError


def missing(settings: GatewaySettings, function: GatewayFunction) -> str | None:
    """What this host lacks for gateways of that function, a sentence; None when it lacks nothing. Blocks."""
    if function is GatewayFunction.KEPT_CONNECTION:
        return replication.missing(settings)
    needs = {"keepalived": settings.keepalived, "nftables": settings.nft}
    if function is GatewayFunction.LOAD_BALANCER:
        needs["haproxy"] = settings.haproxy
    if function is GatewayFunction.ROUTER:
        needs["conntrack"] = settings.conntrack
    for package, program in needs.items():
        if not os.access(program, os.X_OK):
            return f"{program} is missing, which {function.plural} need; install the package {package}."
    return None


_LOOKS, _LOOK_SECONDS = 20, 0.1
"""How long addresses may take to come."""


class Cabling(Protocol):
    """How a driver plugs gateways' cables into its networks. On the host, cables are named and found alike by all drivers."""

    @property
    def whole(self) -> bool:
        """Whether the networks carry no packet whose checksum is still to be filled in."""

    async def masters(self, order: GatewayOrder, there: Mapping[str, Link]) -> Mapping[str, str | None]:
        """What the host's ends of the gateway's cables are plugged into, by name; None for what `connect` plugs in. A leg in an
        external network that is not in it goes by the bridge of its uplink. Raises `NetworkError(reason="SegmentNotReady")`."""

    async def prepare(self, order: GatewayOrder, there: Mapping[str, Link]) -> Sequence[str]:
        """Have what must be there before the cables are made that are not there; what was not so. Raises `NetworkError`."""

    async def connect(self, order: GatewayOrder, orders: Mapping[str, GatewayOrder]) -> Sequence[str]:
        """Have the cables, which are there, carry what they should; what was not so. `orders` are those of all gateways of
        this host. Raises `NetworkError`."""

    async def disconnect(self, uid: str) -> None:
        """Have nothing that `connect` made for the gateway. Its cables go next."""


class Gateway:
    """Its verbs are called one at a time. What runs goes on while the agent is down."""

    def __init__(self, uid: str, settings: GatewaySettings, cabling: Cabling) -> None:
        self._uid = uid
        self._settings = settings
        self._cabling = cabling
        self._namespace = names.gateway_namespace(uid)
        self._directory = PurePosixPath(settings.state) / "routed" / uid
        self._enter = [str(settings.nsenter), f"--net={host.namespace_file(self._namespace)}", "--"]
        self._user, self._group, gid = runs_as(settings.user)
        directory = Path(self._directory)
        self._vrrp = Daemon("vrrp", directory, str(settings.keepalived), gid, inside=self._enter, options=KEEPALIVED)
        self._announcer = Daemon("announcer", directory, str(settings.dnsmasq), gid, inside=self._enter)
        self._replication = Replication(uid, self._enter, settings)
        self._balancer = Balancer(uid, host.namespace_file(self._namespace), settings)
        self._tables = Tables(settings, inside=self._enter, families=gateway_rules.FAMILIES)
        self._ip = [str(settings.ip), "-n", self._namespace]

    async def ensure(
        self,
        order: GatewayOrder,
        orders: Mapping[str, GatewayOrder],
        certificates: Mapping[str, Identity] | None = None,
    ) -> Sequence[str]:
        """Have it as the order says; what was not so. `orders` are those of all gateways of this host, this one with them.
        The rules that let its legs into networks are in force. `certificates` are those that were not here yet, by their
        digests. Raises `NetworkError`."""
        function = GatewayFunction.ROUTER if order.balancer is None else GatewayFunction.LOAD_BALANCER
        if (why := await asyncio.to_thread(missing, self._settings, function)) is not None:
            raise NetworkError(why, reason="ProgramMissing")
        wrong = list(await self._ensure_namespace(order))
        rules = gateway_rules.render(order)
        if not await self._tables.are(rules):
            await self._tables.load(rules)
            await self._forget_untranslated(order)
            wrong.append(f"The rules of {self._namespace} were not what they should be.")
        outside = await self._carry(order)
        there = await self._links()
        inside = gateway_links.inside(order, there)
        if (
            self._cabling.whole and inside.wrong
        ):  # before they are up: afterwards nothing would tell that it was not done
            for device in sorted(there.keys() - {"lo"}):
                await run([*self._enter, str(self._settings.ethtool), "-K", device, "tx", "off"])
        await self._batch(inside, namespace=True, more=gateway_links.neighbours(order))
        if (outside or inside.wrong) and (queues := gateway_links.queues(order)):
            await run([*self._enter, str(self._settings.sysctl), "-q", "-w", *queues])
        outside += await self._cabling.connect(order, orders)
        wrong += [*outside, *inside.wrong]
        link_anew = f"{names.link(self._uid)} was missing." in outside
        wrong += await self._run(order, anew=bool(outside or inside.wrong), link_anew=link_anew)
        if order.balancer is None:
            await self._balancer.remove()
        elif await self._balancer.ensure(order.balancer, certificates or {}):
            wrong.append(f"haproxy of {self._namespace} did not run as it should.")
        return wrong

    def lacks(self, order: GatewayOrder) -> frozenset[str]:
        """Digests of the certificates that it needs and that are not here yet."""
        return self._balancer.lacks(order.balancer) if order.balancer is not None else frozenset()

    async def facts(self, order: GatewayOrder) -> GatewayFacts:
        """What is so of it. Members are told of where it is active: nobody else reaches them."""
        active = await self._active(order)
        if not active or order.balancer is None:
            unkept = await self._replication.unkept(order) or None
            return GatewayFacts(active=active, kept=unkept is None, unkept=unkept)
        try:
            members = await self._balancer.facts(order.balancer)
        except NetworkError:  # it is being started, or is made so again soon
            return GatewayFacts(active=True)
        return GatewayFacts(active=True, balancer=BalancingFacts(members=members))

    async def _active(self, order: GatewayOrder) -> bool:
        """Whether its addresses are here."""
        status, out, _ = await attempt([*self._ip, "-json", "address", "show", "dev", gateway_rules.LINK])
        there = links.parse(out) if status == 0 else {}
        addresses = {address for link in there.values() for address in link.addresses}
        return f"{gateway_rules.token(order)}/64" in addresses

    async def remove(self, there: Mapping[str, Link]) -> None:
        """Have nothing of it."""
        await self._balancer.remove()
        await self._vrrp.remove()
        await self._replication.remove()
        await self._announcer.remove()
        await self._cabling.disconnect(self._uid)
        for device in sorted(link.name for link in there.values() if link.alias == self._namespace):
            await attempt([str(self._settings.ip), "link", "delete", "dev", device])
        if host.namespace_file(self._namespace).exists():
            await run([str(self._settings.ip), "netns", "delete", self._namespace])
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _forget_untranslated(self, order: GatewayOrder) -> None:
        """Have the kernel know no connection that began before it would have been translated: its next packet is of a new
        one. (Rules stop it meanwhile, and those between networks go on.)"""
        for one in order.router.masquerade if order.router is not None else ():
            delete = [*self._enter, str(self._settings.conntrack), "-D", "-f", "ipv4" if is_v4(one.address) else "ipv6"]
            for source in one.sources:
                if is_v4(source) is is_v4(one.address):
                    await attempt([*delete, "-s", source, "-m", "0"])

    async def _ensure_namespace(self, order: GatewayOrder) -> Sequence[str]:
        status, _, _ = await attempt([*self._ip, "link", "show", "dev", "lo"])
        if status != 0:
            await self._balancer.stop()
            await self._vrrp.remove()
            await self._replication.remove()
            await self._announcer.remove()
            ip = str(self._settings.ip)
            await attempt([ip, "netns", "delete", self._namespace])  # a file that no namespace is mounted on
            await run([ip, "netns", "add", self._namespace])
            there = links.parse(await run([ip, "-json", "-details", "link"]))
            for device in sorted(link.name for link in there.values() if link.alias == self._namespace):
                await attempt([ip, "link", "delete", "dev", device])  # its other end is in what has lost its name
        wanted = gateway_links.SYSCTLS
        said = await run([*self._enter, str(self._settings.sysctl), "-n", *wanted])
        if said.split() == [str(value) for value in wanted.values()]:
            return ()
        sysctls = [f"{name}={value}" for name, value in wanted.items()]
        await run([*self._enter, str(self._settings.sysctl), "-q", "-w", *sysctls])
        return (f"The namespace {self._namespace} was not as it should be.",)

    async def _carry(self, order: GatewayOrder) -> list[str]:
        """Have its cables, plugged into what they are for as far as `ip` does that; what was not so."""
        there = links.parse(await run([str(self._settings.ip), "-json", "-details", "address"]))
        masters = await self._cabling.masters(order, there)
        outside = gateway_links.outside(order, there, masters)
        for leg in order.legs:
            by_vlan = leg.uplink is not None and leg.uplink.vlan is not None
            if by_vlan and gateway_links.end(order, leg) not in masters:
                await self._probe_vlan()
        wrong = list(await self._cabling.prepare(order, there))
        await self._batch(outside, namespace=False)
        return [*wrong, *outside.wrong]

    async def _probe_vlan(self) -> None:
        """Raises `NetworkError(reason="VlanUnsupported")` when this host's kernel has no VLANs."""
        if not await uplinks.has_vlans(self._settings):
            raise NetworkError(
                f"{uplinks.NO_VLANS}, or name a device in the uplinks of PhysicalNetwork that is in the VLAN already, and no"
                " VLAN in ExternalNetwork.",
                reason="VlanUnsupported",
            )

    async def _batch(self, commands: Commands, *, namespace: bool, more: Sequence[str] = ()) -> None:
        ip = self._ip if namespace else [str(self._settings.ip)]
        if lines := [*commands.ip, *more]:
            await run([*ip, "-batch", "-"], _lines(lines))

    async def _links(self) -> dict[str, Link]:
        return links.parse(await run([*self._ip, "-json", "-details", "address"]))

    async def _run(self, order: GatewayOrder, *, anew: bool, link_anew: bool) -> Sequence[str]:
        """Have what brings its addresses, what copies connections, and what tells guests of it; what was not so. `anew`:
        some device was made, `link_anew`: that of the link."""
        wrong = []
        # Before keepalived, which tells it what this host becomes.
        if said := await self._replication.ensure(order, active=await self._active(order), anew=link_anew):
            wrong.append(f"{self._namespace}: {said}")
        alone = keepalived.configuration(self._directory)
        if not self._vrrp.runs(alone):
            await self._batch(Commands(ip=gateway_links.leftovers(order, await self._links())), namespace=True)
        missing = await self._missing(order)
        # keepalived knows devices by their numbers, which another of the same name does not have, and brings an address once.
        instance = keepalived.instance(order, self._replication.notifies(order))
        if await self._vrrp.ensure(alone, {keepalived.INSTANCE: instance}, forgets=missing):
            wrong.append(f"keepalived of {self._namespace} did not run as it should.")
        elif missing:
            wrong.append(f"{self._namespace} had not all of its addresses.")
        says = dnsmasq.announcing(order, user=self._user, group=self._group)
        if not says:
            await self._announcer.remove()
        elif await self._announcer.ensure(says, {}, forgets=anew):
            wrong.append(f"dnsmasq of {self._namespace} did not run as it should.")
        return wrong

    async def _missing(self, order: GatewayOrder) -> bool:
        """Whether this host is active, and has not every address that it was told to have then. It was told just now: it
        has a moment."""
        told = await asyncio.to_thread(self._told)
        wanted = [one for one in keepalived.addresses(order) if f"    {one[0]} dev {one[1]}" in told]
        for _ in range(_LOOKS):
            if not await self._active(order):
                return False
            there = await self._links()
            if all(device not in there or address in there[device].addresses for address, device in wanted):
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    def _told(self) -> Sequence[str]:
        try:
            return (Path(self._directory) / keepalived.INSTANCE).read_text().splitlines()
        except OSError:
            return ()


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
