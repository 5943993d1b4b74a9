"""Hosts and guests that are namespaces of this machine, on a wire between hosts. All of it goes with its processes.

A host has network, mount and pid namespaces of its own: what a driver starts there ends with the host. A guest is a
network namespace behind a device that is made and plugged in as the driver's `Plug` says, like a hypervisor would.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus.api.segments import Nic, SegmentFacts, SegmentOrder
from kumulus_agents.network.protocol import (
    Dropped,
    Foreign,
    Found,
    Identity,
    NetworkError,
    Plug,
    Port,
    Traffic,
    Uplinks,
)
from tests.patience import PATIENCE

CHECKOUT = Path(__file__).parents[2]
SECONDS = 20.0
WORLD_NAME, WORLD_ADDRESS = "www.world.example", "192.0.2.77"
"""A name that only the world's name server knows."""
METADATA = "169.254.169.254"
WORLD_SERVER = "10.99.0.254"


def why_none() -> str | None:
    """Why there can be no such hosts here, in a sentence; None when there can."""
    if os.geteuid() != 0:
        return "Hosts in namespaces need root."
    missing = [
        name
        for name in ("nft", "ip", "dnsmasq", "conntrack", "tini", "nsenter", "busybox", "haproxy", "ethtool")
        if not _has(name)
    ]
    return f"Hosts in namespaces need {', '.join(missing)}; hack/setup.py installs them." if missing else None


def why_no_vlans() -> str | None:
    """Why this kernel can have no VLANs, in a sentence; None when it can."""
    made = "link add name a type veth peer name b\nlink add link a name c type vlan id 2\n"
    tried = subprocess.run(["unshare", "--net", "ip", "-batch", "-"], input=made, text=True, capture_output=True)
    return "This kernel has no VLANs (8021q)." if tried.returncode else None


def _has(program: str) -> bool:
    return shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is not None


async def eventually(condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Wait for a condition; AssertionError with `what` when it does not come true in time."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


class Machine:
    """A network namespace with a process that keeps it."""

    def __init__(self, name: str, *, apart: bool = False) -> None:
        """`apart`: with mount and pid namespaces of its own, too."""
        self.name = name
        more = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"] if apart else []
        keep = ["tini", "-s", "--", "sleep", "infinity"] if apart else ["sleep", "infinity"]
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", *more, *keep], stdin=subprocess.DEVNULL
        )
        self._apart = apart
        self.pid = self._process.pid
        own = Path("/proc/self/ns/net").stat().st_ino
        deadline = time.monotonic() + SECONDS * PATIENCE
        while True:
            with suppress(OSError, ValueError, IndexError):
                if apart:
                    children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
                    self.pid = int(children.split()[0])
                if Path(f"/proc/{self.pid}/ns/net").stat().st_ino != own:
                    break
            assert time.monotonic() < deadline, f"{name} has no namespace"
            time.sleep(0.002)
        if apart:
            self.run("mount", "-t", "tmpfs", "tmpfs", "/run")
        self.run("ip", "link", "set", "dev", "lo", "up")

    def enter(self) -> list[str]:
        """Command that goes there."""
        return [
            "nsenter",
            "-t",
            str(self.pid),
            f"--wd={CHECKOUT}",
            "--net",
            *(["--mount", "--pid"] if self._apart else []),
        ]

    def run(self, *argv: str, given: str = "", check: bool = True) -> str:
        """What a command says there."""
        done = self.attempt(*argv, given=given)
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(argv)}: {done.stdout}{done.stderr}")
        return done.stdout

    def attempt(self, *argv: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """How a command ends there."""
        return subprocess.run(
            [*self.enter(), *argv],
            input=given,
            capture_output=True,
            text=True,
            cwd=CHECKOUT,
            timeout=60 * PATIENCE,
            check=False,
        )

    def add_link(self, name: str, *, mtu: int, to: Machine, peer: Sequence[str]) -> None:
        """A cable from here to another machine."""
        here = ["nsenter", "-t", str(self.pid), "--net", "ip", "link", "add", "name", name, "mtu", str(mtu)]
        subprocess.run([*here, "type", "veth", "peer", *peer, "netns", str(to.pid)], check=True, timeout=60)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A process there, with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen([*self.enter(), *argv], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=CHECKOUT)

    def links(self) -> dict[str, dict[str, Any]]:
        """Its devices."""
        return {link["ifname"]: link for link in json.loads(self.run("ip", "-json", "-details", "link"))}

    def close(self) -> None:
        """Have it gone, with all that is in it."""
        if self._apart:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


class Driver:
    """A `NetworkDriver` in another process, which is on a host. `kill` is the death of an agent."""

    def __init__(self, host: Machine, name: str, settings: dict[str, object], *, die_after: int | None = None) -> None:
        self._lock = Lock()
        dies = [] if die_after is None else [str(die_after)]
        self._process = host.start(
            sys.executable, "-m", "tests.contract.network_agent", name, json.dumps(settings, default=str), *dies
        )

    async def prepare(self) -> None:
        await self._ask("prepare")

    async def ensure_segment(self, segment: SegmentOrder) -> SegmentFacts:
        return SegmentFacts.model_validate(await self._ask("ensure_segment", segment.model_dump(mode="json")))

    async def remove_segment(self, uid: str) -> None:
        await self._ask("remove_segment", uid)

    async def ensure_port(self, port: Port) -> Plug:
        said = await self._ask("ensure_port", {"nic": port.nic.model_dump(mode="json"), "machine": port.machine})
        return Plug(**said)

    async def remove_port(self, uid: str) -> None:
        await self._ask("remove_port", uid)

    async def connections(self, nic: Nic) -> Sequence[Any]:
        """What another host is told."""
        said: Sequence[Any] = await self._ask("connections", {"nic": nic.model_dump(mode="json")})
        return said

    async def know(self, nic: Nic, connections: Sequence[Any]) -> None:
        await self._ask("know", {"nic": nic.model_dump(mode="json"), "connections": connections})

    async def found(self) -> Found:
        said = await self._ask("found")
        foreign = tuple(Foreign(**one) for one in said["foreign"])
        return Found(frozenset(said["segments"]), frozenset(said["ports"]), foreign, frozenset(said["gateways"]))

    async def ensure_gateway(
        self, gateway: GatewayOrder, certificates: Mapping[str, Identity] | None = None
    ) -> GatewayFacts:
        pems = {digest: identity.pem.decode() for digest, identity in (certificates or {}).items()}
        given = {"order": gateway.model_dump(mode="json"), "certificates": pems}
        return GatewayFacts.model_validate(await self._ask("ensure_gateway", given))

    async def remove_gateway(self, uid: str) -> None:
        await self._ask("remove_gateway", uid)

    async def gateway_facts(self, uid: str) -> GatewayFacts:
        return GatewayFacts.model_validate(await self._ask("gateway_facts", uid))

    async def mend(self) -> Sequence[str]:
        said: Sequence[str] = await self._ask("mend")
        return said

    async def dropped(self) -> Sequence[Dropped]:
        return [Dropped(**one) for one in await self._ask("dropped")]

    async def functions(self) -> Mapping[GatewayFunction, str | None]:
        said: Mapping[str, str | None] = await self._ask("functions")
        return {GatewayFunction(name): why for name, why in said.items()}

    async def uplinks(self) -> Uplinks:
        return Uplinks(**await self._ask("uplinks"))

    async def traffic(self) -> Sequence[Traffic]:
        return [Traffic(**one) for one in await self._ask("traffic")]

    async def describe(self, segment: SegmentOrder, *nics: Nic, seed: Mapping[str, str] | None = None) -> None:
        """Have guests of these interfaces of a network, and no others, told of themselves; `seed`: what their owner wrote."""
        given = {"segment": segment.model_dump(mode="json"), "nics": [nic.model_dump(mode="json") for nic in nics]}
        given |= {"seed": dict(seed or {})}
        await self._ask("describe", given)

    async def guard(self) -> Sequence[str]:
        said: Sequence[str] = await self._ask("guard")
        return said

    async def _ask(self, verb: str, given: object = None) -> Any:
        answer = await asyncio.to_thread(self._exchange, json.dumps([verb, given]))
        if "error" in answer:
            text, reason, retryable = answer["error"]
            raise NetworkError(text, reason=reason, retryable=retryable)
        return answer["answer"]

    def _exchange(self, line: str) -> Any:
        with self._lock:
            return self._say(line)

    def _say(self, line: str) -> Any:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait(timeout=SECONDS * PATIENCE)
            raise Died(self._process.stderr.read() if self._process.stderr else "")
        return json.loads(answer)

    def alive(self) -> bool:
        """Whether its process is there."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


class Died(Exception):
    """The process of a driver has ended."""


class Host:
    """A host with a driver."""

    name = "linux"
    """Of the driver."""

    def __init__(self, wire: Machine, number: int) -> None:
        self.machine = Machine(f"host{number}", apart=True)
        self.address = f"10.99.0.{number}"
        self.settings: dict[str, object] = {
            "state": "/run/kumulus/network",
            "underlay": self.address,
            "dns_servers": [WORLD_SERVER],
        }
        port = f"h{number}"
        wire.add_link(port, mtu=1500, to=self.machine, peer=["name", "eth0"])
        wire.run("ip", "link", "set", "dev", port, "master", "wire", "up")
        self.machine.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.machine.run("ip", "link", "set", "dev", "eth0", "up")
        self.equip()
        self.driver = Driver(self.machine, self.name, self.settings)

    def equip(self) -> None:
        """Have there what the driver needs of a host."""

    def restart(self, *, die_after: int | None = None) -> Driver:
        """Another agent in the place of this one, which dies."""
        self.driver.kill()
        self.driver = Driver(self.machine, self.name, self.settings, die_after=die_after)
        return self.driver

    def close(self) -> None:
        self.driver.kill()
        self.machine.close()


class Guest:
    """A guest's interface and what is behind it."""

    def __init__(self, host: Host, nic: Nic, plug: Plug) -> None:
        self.machine = Machine(f"guest {nic.name}")
        self.host, self.nic, self.plug = host, nic, plug
        self.machine.run(
            "sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=2"
        )
        self._plug_in(host, plug)

    def _plug_in(self, host: Host, plug: Plug) -> None:
        peer = ["name", "eth0", "address", self.nic.mac]
        host.machine.add_link(plug.device, mtu=plug.mtu, to=self.machine, peer=peer)
        self.machine.run("ip", "link", "set", "dev", "eth0", "mtu", str(plug.mtu), "up")
        if plug.openvswitch is None:
            host.machine.run("ip", "link", "set", "dev", plug.device, "master", plug.bridge, "up")
            return
        if plug.whole:
            self.machine.run("ethtool", "-K", "eth0", "tx", "off")
        host.machine.run("ip", "link", "set", "dev", plug.device, "up")
        add = ["ovs-vsctl", "--may-exist", "add-port", plug.bridge, plug.device]
        host.machine.run(*add, "--", "set", "interface", plug.device, f"external_ids:iface-id={plug.openvswitch}")

    async def move(self, host: Host) -> None:
        """Go on at another host with all that it has, and say so as Linux does, before that host knows of its connections."""
        plug = await host.driver.ensure_port(Port(self.nic, machine=self.nic.uid))
        before, self.host, self.plug = self.host, host, plug
        before.machine.attempt("ip", "link", "delete", "dev", plug.device)
        if plug.openvswitch is not None:
            before.machine.run("ovs-vsctl", "--if-exists", "del-port", plug.device)
        self._plug_in(host, plug)
        self.address()
        for address in self.nic.addresses:
            if ":" not in address:
                self.machine.attempt("busybox", "arping", "-U", "-c", "1", "-w", "1", "-I", "eth0", address)
        await before.driver.remove_port(self.nic.uid)

    def address(self) -> None:
        """Use its own addresses without asking anybody."""
        for address in self.nic.addresses:
            length = 64 if ":" in address else 24
            self.machine.run("ip", "address", "replace", f"{address}/{length}", "dev", "eth0")

    def reaches(self, address: str, *, seconds: int = 1) -> bool:
        """Whether one echo comes back within that time. Who has to be reached by the first one is given more of it."""
        family = "-6" if ":" in address else "-4"
        return self.machine.attempt("busybox", "ping", family, "-c", "1", "-W", str(seconds), address).returncode == 0

    def told(self, path: str, *, seconds: int = 5) -> str:
        """What it is told of itself at 169.254.169.254; nothing when nobody answers, or not with that."""
        self.machine.run("ip", "route", "replace", f"{METADATA}/32", "dev", "eth0")
        ask = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=int(sys.argv[2])).read().decode())"
        url = f"http://{METADATA}{path}"
        return self.machine.run(sys.executable, "-I", "-S", "-c", ask, url, str(seconds), check=False).strip()

    def sent(self) -> int:
        """How many frames it has sent."""
        link = json.loads(self.machine.run("ip", "-json", "-statistics", "link", "show", "dev", "eth0"))[0]
        return int(link["stats64"]["tx"]["packets"])

    def counted(self) -> tuple[int, int, int, int]:
        """Bytes and packets that it has received, and sent."""
        link = json.loads(self.machine.run("ip", "-json", "-statistics", "link", "show", "dev", "eth0"))[0]
        stats = link["stats64"]
        return tuple(int(stats[way][what]) for way in ("rx", "tx") for what in ("bytes", "packets"))  # type: ignore[return-value]

    def dhcp(self, *, seconds: int = 15) -> dict[str, str]:
        """What a DHCP client is told, by the names that udhcpc has for it; nothing when nobody answers."""
        return self._ask(
            *("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", str(seconds), "-T", "1"),
            *(
                word
                for option in (*("mtu", "staticroutes", "ntpsrv", "search"), *("hostname", "tftp", "bootfile", "58"))
                for word in ("-O", option)
            ),
            *("-s", "SCRIPT"),
            only_when=("bound",),
        )

    def dhcp6(self) -> dict[str, str]:
        """What a DHCPv6 client is told, by the names that dhclient has for it."""
        lease = ["-lf", "/dev/null", "-pf", "/dev/null"]
        return self._ask(
            "dhclient",
            "-6",
            "-1",
            "-d",
            "-v",
            "-cf",
            "/dev/null",
            *lease,
            "-sf",
            "SCRIPT",
            "eth0",
            only_when=("BOUND6",),
        )

    def _ask(self, *argv: str, only_when: Sequence[str]) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as directory:
            script, told = Path(directory) / "script", Path(directory) / "told"
            cases = "|".join(only_when)
            script.write_text(
                f'#!/bin/sh\ncase "${{1:-$reason}}" in {cases}) env > {told}.new; mv {told}.new {told};; esac\n'
            )
            script.chmod(0o755)
            process = self.machine.start(*(str(script) if word == "SCRIPT" else word for word in argv))
            try:
                deadline = time.monotonic() + SECONDS * PATIENCE
                while not told.exists() and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
            finally:
                process.kill()
                process.communicate()
            return (
                dict(line.split("=", 1) for line in told.read_text().splitlines() if "=" in line)
                if told.exists()
                else {}
            )

    def look_up(self, name: str, server: str) -> set[str]:
        """The addresses that the server gives for a name."""
        said: set[str] = set()
        for kind in ("A", "AAAA"):
            out = self.machine.run("dig", "+short", "+tries=2", "+time=2", f"@{server}", name, kind, check=False)
            said |= {line for line in out.split() if not line.startswith(";")}
        return said

    def unplug(self) -> None:
        """The guest has let go of it."""
        if self.plug.openvswitch is not None:
            self.host.machine.run("ovs-vsctl", "--if-exists", "del-port", self.plug.bridge, self.plug.device)
        self.host.machine.attempt("ip", "link", "delete", "dev", self.plug.device)

    def close(self) -> None:
        self.machine.close()


class World:
    """A wire, hosts on it, and their guests."""

    def __init__(self, hosts: int, kind: type[Host] = Host) -> None:
        self._closing: list[Callable[[], None]] = []
        self.guests: list[Guest] = []
        try:
            self.wire = Machine("wire", apart=True)
            self._closing.append(self.wire.close)
            self.wire.run("ip", "link", "add", "name", "wire", "type", "bridge")
            self.wire.run("ip", "address", "add", f"{WORLD_SERVER}/24", "dev", "wire")
            self.wire.run("ip", "link", "set", "dev", "wire", "up")
            # Whoever forwards without the kernel, as Open vSwitch can, fills in no checksums.
            self.wire.run("ethtool", "-K", "wire", "tx", "off")
            self.wire.run(
                *("dnsmasq", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"),
                *(f"--listen-address={WORLD_SERVER}", f"--address=/{WORLD_NAME}/{WORLD_ADDRESS}", "--pid-file"),
            )
            self.hosts: list[Host] = []
            for number in range(1, hosts + 1):
                host = kind(self.wire, number)
                self.hosts.append(host)
                self._closing.append(host.close)
        except BaseException:
            self.close()
            raise

    async def guest(self, host: Host, nic: Nic, *, addressed: bool = True) -> Guest:
        """A guest with that interface, on that host; the network is there."""
        plug = await host.driver.ensure_port(Port(nic, machine=nic.uid))
        guest = await asyncio.to_thread(Guest, host, nic, plug)
        self.guests.append(guest)
        if addressed:
            guest.address()
        return guest

    async def clear(self) -> None:
        """Have no guests and no networks."""
        for guest in self.guests:
            guest.unplug()
            guest.close()
        self.guests.clear()
        for host in self.hosts:
            if not host.driver.alive():
                host.restart()
            found = await host.driver.found()
            for gateway in found.gateways:
                await host.driver.remove_gateway(gateway)
            for port in found.ports:
                await host.driver.remove_port(port)
            for segment in found.segments:
                await host.driver.remove_segment(segment)

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
        while self._closing:
            self._closing.pop()()


def two_hosts(kind: type[Host] = Host) -> Iterator[World]:
    """What a fixture of a module yields."""
    made = World(2, kind)
    try:
        yield made
    finally:
        made.close()


async def emptied(world: World, nothing_left: Callable[[Host], None]) -> AsyncIterator[World]:
    """What a fixture of a test yields: empty before; after the test everything is removed, and nothing is left."""
    for host in world.hosts:
        await host.driver.prepare()
    yield world
    await world.clear()
    for host in world.hosts:
        nothing_left(host)


def nothing_left(host: Host, ours: Callable[[str], bool]) -> None:
    """Nothing of any network is on the host that each driver makes; `ours` knows its devices by their names."""
    assert [name for name in host.machine.links() if ours(name)] == []
    assert host.machine.run("ip", "netns", "list").strip() == ""
    assert "dnsmasq" not in host.machine.run("ps", "-eo", "args")
    assert host.machine.run("find", str(host.settings["state"]), "-type", "f") == ""
