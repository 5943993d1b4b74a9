"""What serves a network's guests on this host: its namespace, and dnsmasq in it and beside it."""

from __future__ import annotations

import asyncio
import grp
import ipaddress
import pwd
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import structlog

from kumulus.api.segments import SegmentOrder
from kumulus_agents.network.linux import dnsmasq, host, links, names
from kumulus_agents.network.linux.daemons import Daemon
from kumulus_agents.network.linux.layout import Network, Place
from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.linux.settings import ServingSettings
from kumulus_agents.network.protocol import NetworkError

log = structlog.get_logger(__name__)


class Service:
    """One network's. Nothing of it exists for a network without ranges. Its verbs are called one at a time."""

    def __init__(self, uid: str, settings: ServingSettings, *, dhcp4: bool = True) -> None:
        """`dhcp4`: whether dnsmasq answers DHCP of IPv4, which somebody else may do."""
        self._uid = uid
        self._settings = settings
        self._dhcp4 = dhcp4
        self._namespace = names.namespace(uid)
        self._directory = PurePosixPath(settings.state) / "served" / uid
        self._user, self._group, gid = runs_as(settings.user)
        program = str(settings.dnsmasq)
        inside = [str(settings.nsenter), f"--net={host.namespace_file(self._namespace)}", "--"]
        self._server = Daemon("server", Path(self._directory), program, gid, inside=inside)
        self._asker = Daemon("asker", Path(self._directory), program, gid)
        self._bound: frozenset[tuple[str, str]] | None = None
        self._complaint = ""

    def check(self, order: SegmentOrder) -> None:
        """Raises `NetworkError(reason="BadOption")` when guests cannot be told what the order says."""
        dnsmasq.options(order)
        for server in map(ipaddress.ip_address, order.dns.servers):
            if server.is_loopback or server.is_link_local or server.is_unspecified or server.is_multicast:
                raise NetworkError(
                    f"{server} is no DNS server that hosts may ask for guests. Change dns.servers of the network.",
                    reason="BadOption",
                    retryable=False,
                )

    async def ensure_namespace(self, order: SegmentOrder) -> Sequence[str]:
        """Have the namespace, for cables to end in; what was not so."""
        if not order.subnets:
            return ()
        if await self._answers():
            return ()
        ip = str(self._settings.ip)
        await self._server.remove()  # it would keep a namespace alive that has lost its name
        await attempt([ip, "netns", "delete", self._namespace])  # a file that no namespace is mounted on
        await run([ip, "netns", "add", self._namespace])
        return (f"The namespace {self._namespace} was missing.",)

    async def ensure(self, network: Network, places: Sequence[Place]) -> Sequence[str]:
        """Have guests served, with the cables there; what was not so."""
        order = network.order
        if not order.subnets:
            return ()
        ip = [str(self._settings.ip), "-n", self._namespace]
        there = links.parse(await run([*ip, "-json", "-details", "address"]))
        commands = links.inside(order, there)
        if commands.ip:
            enter = [str(self._settings.nsenter), f"--net={host.namespace_file(self._namespace)}", "--"]
            sysctls = [f"{name}={value}" for name, value in links.SYSCTLS.items()]
            await run([*enter, str(self._settings.sysctl), "-q", "-w", *sysctls])
            await run([*ip, "-batch", "-"], "".join(f"{line}\n" for line in commands.ip))
            # Guests' DHCP clients read whole frames, and some believe no checksum that is still to be filled in.
            await run([*enter, str(self._settings.ethtool), "-K", links.LEG, "tx", "off"])
        # dnsmasq knows devices by their numbers, which another of the same name does not have.
        return [*commands.wrong, *await self.tell(network, places, anew=bool(commands.ip))]

    async def tell(self, network: Network, places: Sequence[Place], *, anew: bool = False) -> Sequence[str]:
        """Have dnsmasq know these ports, started anew if need be; what was not so. Guests get addresses also when names
        of the world cannot be looked up, which is in the log."""
        order = network.order
        if not order.subnets:
            return ()
        bound = frozenset((place.port.nic.mac, address) for place in places for address in place.port.nic.addresses)
        if self._bound is None:
            self._bound = await asyncio.to_thread(self._on_file)
        wrong = []
        serves = dnsmasq.serving(
            order,
            self._directory,
            user=self._user,
            group=self._group,
            lease_seconds=self._settings.lease_seconds,
            dhcp4=self._dhcp4,
        )
        files = {
            dnsmasq.HOSTS: dnsmasq.hosts(places),
            dnsmasq.NAMES: dnsmasq.names_file(order),
            dnsmasq.OPTIONS: dnsmasq.options(order),
        }
        # An address that is another guest's now is not given to it while the one before is remembered to have it.
        if await self._server.ensure(serves, files, forgets=anew or bool(self._bound - bound)):
            wrong.append(f"dnsmasq of {self._namespace} did not run as it should.")
        self._bound = bound
        try:
            asked_anew = await self._ask(order, anew=anew)
        except NetworkError as error:
            if str(error) != self._complaint:
                log.warning("names of the world are not looked up", network=self._uid, error=str(error))
            self._complaint = str(error)
        else:
            self._complaint = ""
            if asked_anew:
                wrong.append(f"dnsmasq of {names.uplink(self._uid)} did not run as it should.")
        return wrong

    async def _ask(self, order: SegmentOrder, *, anew: bool) -> bool:
        """Have names of the world looked up; whether they were not. Raises `NetworkError`."""
        addresses: Sequence[str] = order.dns.servers or tuple(map(str, self._settings.dns_servers))
        addresses = addresses or await asyncio.to_thread(host.resolvers)
        configuration = dnsmasq.asking(self._uid, self._directory, user=self._user, group=self._group)
        return await self._asker.ensure(configuration, {dnsmasq.SERVERS: dnsmasq.servers(addresses)}, forgets=anew)

    async def remove(self) -> None:
        """Have nothing of it."""
        await self._server.remove()
        await self._asker.remove()
        if host.namespace_file(self._namespace).exists():
            await run([str(self._settings.ip), "netns", "delete", self._namespace])
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
        self._bound = None

    def _on_file(self) -> frozenset[tuple[str, str]]:
        """Who had which address, as dnsmasq was last told."""
        try:
            lines = (Path(self._directory) / dnsmasq.HOSTS).read_text().splitlines()
        except OSError:
            return frozenset()
        said = [line.split(",") for line in lines]
        return frozenset(
            (words[0], word.strip("[]")) for words in said for word in words[1:] if "." in word or ":" in word
        )

    async def _answers(self) -> bool:
        status, _, _ = await attempt([str(self._settings.ip), "-n", self._namespace, "link", "show", "dev", "lo"])
        return status == 0


@cache
def runs_as(user: str) -> tuple[str, str, int]:
    """User, group and number of the group that dnsmasq runs as."""
    for name in (user, "nobody"):
        try:
            gid = pwd.getpwnam(name).pw_gid
            return name, grp.getgrgid(gid).gr_name, gid
        except KeyError:
            continue
    return "root", "root", 0
