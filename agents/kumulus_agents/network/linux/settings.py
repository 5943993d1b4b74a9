"""Settings of the driver `linux`, and of what serves guests and is a gateway under any driver: what an administrator
decides. No I/O."""

from __future__ import annotations

import ipaddress
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class ServingSettings(BaseModel):
    """What serves guests on this host, whatever carries their packets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: PurePosixPath
    dns_servers: tuple[IpAddress, ...] = Field(
        default=(),
        description="Who is asked for names of the world by networks that say nothing else; the host's own when empty.",
        max_length=3,
    )
    lease_seconds: int = Field(default=3600, description="How long guests may use an address unasked.", ge=120)
    user: str = Field(
        default="dnsmasq", description="User that dnsmasq runs as once it has its ports; nobody when there is no such."
    )
    ip: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/ip"), description="The program.")
    dnsmasq: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/dnsmasq"), description="The program.")
    nsenter: PurePosixPath = Field(default=PurePosixPath("/usr/bin/nsenter"), description="The program.")
    sysctl: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/sysctl"), description="The program.")
    ethtool: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/ethtool"), description="The program.")


class GatewaySettings(ServingSettings):
    """What gateways are made with on this host, whatever carries their packets."""

    underlay: IpAddress | None = Field(
        default=None,
        description="This host's address in the network between hosts, which carries tunnels. Without it a network"
        " is on this host alone.",
    )
    nft: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/nft"), description="The program.")
    keepalived: PurePosixPath = Field(
        default=PurePosixPath("/usr/sbin/keepalived"), description="The program; needed on hosts that have gateways."
    )
    conntrack: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/conntrack"), description="The program.")
    conntrackd: PurePosixPath = Field(
        default=PurePosixPath("/usr/sbin/conntrackd"),
        description="The program; without it a router's translated connections break when another host takes over.",
    )
    copies: int = Field(
        default=32768,
        description="Connections of one router that its other hosts know; beyond, they are not kept when one takes over."
        " Each takes about 2 KB of memory on each host.",
        ge=64,
        le=1 << 20,
    )
    unshare: PurePosixPath = Field(default=PurePosixPath("/usr/bin/unshare"), description="The program.")
    haproxy: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/haproxy"), description="The program.")
    setpriv: PurePosixPath = Field(default=PurePosixPath("/usr/bin/setpriv"), description="The program.")
    prlimit: PurePosixPath = Field(default=PurePosixPath("/usr/bin/prlimit"), description="The program.")
    choom: PurePosixPath = Field(default=PurePosixPath("/usr/bin/choom"), description="The program.")


class LinuxSettings(GatewaySettings):
    """How networks are made on this host."""

    state: PurePosixPath = Field(
        default=PurePosixPath("/run/kumulus/network"),
        description="Directory of what the driver has made, and of the files that dnsmasq reads. In memory: after the host"
        " was started anew there are no links either.",
    )
    vxlan_port: int = Field(default=4789, description="UDP port of tunnels, the same on all hosts.", ge=1, le=65535)
    connections: int = Field(
        default=65536,
        description="Connections that the kernel tracks for one interface, whoever opened them; more are dropped. The host"
        " has to take many times that: sysctl net.netfilter.nf_conntrack_max.",
        ge=64,
        le=1 << 24,
    )
    modprobe: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/modprobe"), description="The program.")
    bridge: PurePosixPath = Field(default=PurePosixPath("/usr/sbin/bridge"), description="The program.")
