"""Open vSwitch and OVN of a host, as Debian's packages openvswitch-switch, ovn-central and ovn-host would start them.

Packets go through Open vSwitch itself, whatever the kernel has, so a lab is the same everywhere. For that the host's cable
is a port of a bridge, which has the host's address: Open vSwitch sends and hears tunnels there. Databases are in the host's
memory and begin anew with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

from kumulus_lab import commands, deadline

BRIDGE = "br-phy"
"""Has the host's address."""
DAEMONS = ("ovsdb", "ovnnb", "ovnsb", "vswitchd", "northd", "ovn-controller")
AGENT = {"KUMULUS_AGENT_NETWORK__DRIVERS__OVN__DATAPATH": "netdev"}
"""What the agent is told, in its environment."""

_PROGRAMS = (
    "ovs-vsctl",
    "ovs-ofctl",
    "ovs-vswitchd",
    "ovsdb-server",
    "ovsdb-tool",
    "ovn-northd",
    "ovn-controller",
    "ethtool",
)
_SWITCH, _NORTH, _SOUTH = "/run/openvswitch/db.sock", "/run/ovn/ovnnb_db.sock", "/run/ovn/ovnsb_db.sock"
_DATABASES = (
    ("ovsdb", "/run/openvswitch/conf.db", "/usr/share/openvswitch/vswitch.ovsschema", _SWITCH),
    ("ovnnb", "/run/ovn/ovnnb_db.db", "/usr/share/ovn/ovn-nb.ovsschema", _NORTH),
    ("ovnsb", "/run/ovn/ovnsb_db.db", "/usr/share/ovn/ovn-sb.ovsschema", _SOUTH),
)


class Machine(Protocol):
    """What has it."""

    def start_service(self, service: str, argv: Sequence[str]) -> None:
        """Start a program there, unless it runs."""

    def exec(self, argv: Sequence[str], *, check: bool = True, seconds: float = 60) -> commands.Finished:
        """Run a program there to its end."""


def why_none(path: str) -> str | None:
    """Why hosts cannot have it here, in a sentence; None when they can. `path`: where programs are looked for."""
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"hosts with OVN need {', '.join(missing)}, which `hack/setup.py --tests` installs on Debian as root"
    if find_spec("ovsdbapp") is None:
        return "hosts with OVN need the Python package ovsdbapp, which `make setup` installs"
    return None


def start(machine: Machine, address: str, device: str = "eth0") -> None:
    """It runs on a host, and the host's address, with its prefix, is on the bridge that its cable is plugged into. May be
    repeated."""
    machine.exec(["mkdir", "-p", "/run/openvswitch", "/run/ovn"])
    for service, file, schema, socket in _DATABASES:
        if not _there(machine, file):
            machine.exec(["ovsdb-tool", "create", file, schema])
        control = file.replace(".db", ".ctl")
        _run(machine, service, "ovsdb-server", file, f"--remote=punix:{socket}", f"--unixctl={control}", file=file)
        deadline.until(lambda: _there(machine, socket), f"the database {service}", seconds=10)  # noqa: B023
    machine.exec(["ovs-vsctl", "--no-wait", "init"])
    # Started again when it fails, as the packages have it: the connection tracking that 3.1 has of its own may
    # (`conn_update_state`, an assertion).
    _run(machine, "vswitchd", "ovs-vswitchd", f"unix:{_SWITCH}", "--monitor", file="/run/openvswitch/ovs-vswitchd.db")
    bridge = ["--may-exist", "add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev"]
    machine.exec(["ovs-vsctl", *bridge, "--", "--may-exist", "add-port", BRIDGE, device])
    machine.exec(["ip", "address", "flush", "dev", device])
    machine.exec(["ip", "address", "replace", address, "dev", BRIDGE])
    machine.exec(["ip", "link", "set", "dev", BRIDGE, "up"])
    # What comes for the host it gets from the bridge, and not twice.
    for family, hook in (("inet", "prerouting priority -450"), ("arp", "input priority 0")):
        table = f"table {family} lab"
        chain = f"chain cable {{ type filter hook {hook}; iifname {device} drop; }}"
        machine.exec(["nft", f"{table}\ndelete {table}\n{table} {{ {chain}; }}"])
    # Open vSwitch fills in no checksums and cuts nothing up.
    machine.exec(["ethtool", "-K", BRIDGE, "tx", "off"])
    northd = ["ovn-northd", f"--ovnnb-db=unix:{_NORTH}", f"--ovnsb-db=unix:{_SOUTH}"]
    _run(machine, "northd", *northd, file="/run/ovn/ovn-northd.db")
    _run(machine, "ovn-controller", "ovn-controller", f"unix:{_SWITCH}", file="/run/ovn/ovn-controller.db")


def _run(machine: Machine, service: str, program: str, *arguments: str, file: str) -> None:
    pid = f"--pidfile={file.replace('.db', '.pid')}"
    machine.start_service(service, [program, *arguments, "--no-chdir", "-vconsole:info", "-vsyslog:off", pid])


def _there(machine: Machine, path: str) -> bool:
    return machine.exec(["test", "-e", path], check=False).returncode == 0
