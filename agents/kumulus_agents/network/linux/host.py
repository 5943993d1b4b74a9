"""What a host has: programs, what its kernel can, namespaces, and who it asks for names."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kumulus.api.segments import FilterGroup, FilterRule, Nic, Ports, Protocol, SegmentOrder, Subnet
from kumulus_agents.network.linux import gateway_neighbours
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.linux.programs import attempt
from kumulus_agents.network.linux.rules import render
from kumulus_agents.network.linux.ruleset import Ruleset, whole
from kumulus_agents.network.linux.settings import LinuxSettings
from kumulus_agents.network.linux.tables import text
from kumulus_agents.network.protocol import NetworkError, Port

NAMESPACES = Path("/run/netns")
_BRIDGED = Path("/proc/sys/net/bridge")
_RESOLV = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))

NEIGHBOURS = Path("/proc/sys/net")
NEIGHBOURS_OF_HOST = 1024
"""That the host itself may have: the kernel's bound where nobody has changed it."""

PACKAGES = {
    "nft": "nftables",
    "ip": "iproute2",
    "bridge": "iproute2",
    "dnsmasq": "dnsmasq-base",
    "conntrack": "conntrack",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "sysctl": "procps",
    "ethtool": "ethtool",
}
"""What the programs are in, as Debian calls it."""


def namespace_file(namespace: str) -> Path:
    """Where `ip netns` keeps a namespace."""
    return NAMESPACES / namespace


def namespaces() -> Sequence[str]:
    """The network namespaces with names. Blocks."""
    try:
        return sorted(entry.name for entry in NAMESPACES.iterdir())
    except FileNotFoundError:
        return ()


def resolvers() -> Sequence[str]:
    """The host's own name servers, but for those that only the host reaches. Blocks."""
    for path in _RESOLV:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        found = [words[1] for line in lines if len(words := line.split()) == 2 and words[0] == "nameserver"]
        usable = [address for address in found if _is_usable(address)]
        if usable:
            return usable[:3]
    return ()


def _is_usable(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (parsed.is_unspecified or (parsed.version == 6 and parsed.is_link_local))


async def check(settings: LinuxSettings) -> None:
    """Whether this host can. Raises `NetworkError`: ProgramMissing, KernelLacks."""
    for name, package in PACKAGES.items():
        program = PurePosixPath(getattr(settings, name))
        if not await asyncio.to_thread(os.access, program, os.X_OK):
            raise NetworkError(
                f"{program} is missing; install the package {package}.", reason="ProgramMissing", retryable=False
            )
    if os.geteuid() != 0:
        raise NetworkError("Networks need root; run the agent as root.", reason="NotRoot", retryable=False)
    apart = [str(settings.unshare), "--net"]
    for kind, device in (
        ("bridge", "bridge no_linklocal_learn 1 nf_call_iptables 1"),
        ("VXLAN", "vxlan id 1 dstport 4789"),
        ("veth", "veth"),
    ):
        status, _, err = await attempt(
            [*apart, str(settings.ip), "link", "add", "name", "probe", "type", *device.split()]
        )
        if status != 0:
            raise _lacks(kind, err)
    status, _, err = await attempt([*apart, str(settings.nft), "-j", "-f", "-"], text(whole(_sample())))
    if status != 0:
        raise _lacks("nftables (families bridge and inet, conntrack)", err)
    if not await asyncio.to_thread(_BRIDGED.exists):
        await attempt([str(settings.modprobe), "br_netfilter"])
        if not await asyncio.to_thread(_BRIDGED.exists):
            raise _lacks("br_netfilter", "modprobe br_netfilter changed nothing")
        # It came with us. Our bridges say for themselves that they want it; others stay as they were.
        for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"):
            await asyncio.to_thread((_BRIDGED / name).write_text, "0")
    if not await asyncio.to_thread(Path("/proc/net/if_inet6").exists):
        raise _lacks("IPv6", "guests' names are looked up over link-local addresses; start it without ipv6.disable=1")


def make_room(gateways: int, *, thresholds: Path = NEIGHBOURS) -> None:
    """Have the kernel's tables of neighbours large enough for so many gateways at their bounds, if they are not. In a network
    namespace that is not the host's first one there is nothing to set. Blocks."""
    most = NEIGHBOURS_OF_HOST + gateways * gateway_neighbours.MOST
    for family in ("ipv4", "ipv6"):
        for name, wanted in (("gc_thresh3", most), ("gc_thresh2", most // 2)):
            path = thresholds / family / "neigh/default" / name
            with suppress(FileNotFoundError):
                if int(path.read_text()) < wanted:
                    path.write_text(f"{wanted}\n")


def _lacks(what: str, said: str) -> NetworkError:
    return NetworkError(
        f"This host's kernel lacks {what}, or its programs are too old ({' '.join(said.split())[-200:]}).",
        reason="KernelLacks",
        retryable=False,
    )


def _sample() -> Ruleset:
    """Rules that have every kind of expression the driver uses."""
    network, group, nic = (f"00000000-0000-0000-0000-{number:012}" for number in range(3))
    rules = (
        FilterRule(protocol=Protocol.TCP, ports=(Ports(first=1, last=2),), cidrs=("192.0.2.0/24", "2001:db8::/32")),
        FilterRule(group=group),
    )
    order = SegmentOrder(
        uid=network,
        driver="linux",
        vni=1,
        mtu=1450,
        peers=("192.0.2.1", "2001:db8::1"),
        subnets=(Subnet(cidr="192.0.2.0/24", service="192.0.2.2"), Subnet(cidr="2001:db8::/64", service="2001:db8::2")),
        groups=(FilterGroup(uid=group, ingress=rules, egress=rules),),
    )
    port = Nic(name="a", uid=nic, network=network, mac="02:00:00:00:00:01", addresses=("192.0.2.5",), groups=(group,))
    return render(Layout().with_network(order).with_port(Port(port, nic)))
