"""What a host has of Open vSwitch and OVN: programs, sockets, a module of the kernel."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path, PurePosixPath

from kumulus_agents.network.linux.programs import attempt
from kumulus_agents.network.ovn.settings import Datapath, OvnSettings
from kumulus_agents.network.protocol import NetworkError

PACKAGES = {
    "ofctl": "openvswitch-switch",
    "appctl": "openvswitch-switch",
    "ip": "iproute2",
    "dnsmasq": "dnsmasq-base",
    "nsenter": "util-linux",
    "sysctl": "procps",
    "ethtool": "ethtool",
}
"""What the programs are in, as Debian calls it."""

_MODULE = Path("/sys/module/openvswitch")


def switch_socket(settings: OvnSettings) -> Path:
    """Where Open vSwitch's database answers."""
    return Path(settings.openvswitch / "db.sock")


def northbound_socket(settings: OvnSettings) -> Path:
    """Where this host's northbound database answers."""
    return Path(settings.ovn / "ovnnb_db.sock")


def control(settings: OvnSettings) -> Path:
    """Where Open vSwitch takes commands. Blocks. Raises `NetworkError`."""
    directory = Path(settings.openvswitch)
    try:
        pid = int((directory / "ovs-vswitchd.pid").read_text())
    except (OSError, ValueError) as error:
        raise NetworkError(
            "Open vSwitch does not run; start openvswitch-switch.", reason="NotRunning", retryable=True
        ) from error
    return directory / f"ovs-vswitchd.{pid}.ctl"


def southbound(settings: OvnSettings) -> str:
    """Where ovn-controller finds this host's southbound database."""
    return f"unix:{settings.ovn / 'ovnsb_db.sock'}"


async def check(settings: OvnSettings) -> None:
    """Whether this host can. Raises `NetworkError`: ProgramMissing, NotRoot, NotRunning."""
    for name, package in PACKAGES.items():
        program = PurePosixPath(getattr(settings, name))
        if not await asyncio.to_thread(os.access, program, os.X_OK):
            raise NetworkError(
                f"{program} is missing; install the package {package}.", reason="ProgramMissing", retryable=False
            )
    if os.geteuid() != 0:
        raise NetworkError("Networks need root; run the agent as root.", reason="NotRoot", retryable=False)
    for socket, what in (
        (switch_socket(settings), "Open vSwitch does not run; install and start openvswitch-switch"),
        (
            northbound_socket(settings),
            "This host's OVN databases do not run; install and start ovn-central and ovn-host",
        ),
    ):
        if not await asyncio.to_thread(socket.exists):
            raise NetworkError(f"{what} ({socket} is missing).", reason="NotRunning", retryable=False)


async def datapath(settings: OvnSettings) -> str:
    """Who is to forward packets."""
    if settings.datapath is not Datapath.AUTO:
        return settings.datapath.value
    if not await asyncio.to_thread(_MODULE.exists):
        await attempt([str(settings.modprobe), "openvswitch"])
    there = await asyncio.to_thread(_MODULE.exists)
    return Datapath.SYSTEM.value if there else Datapath.NETDEV.value
