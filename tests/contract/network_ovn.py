"""Hosts with Open vSwitch and OVN of their own: by the kernel's datapath where it has the module, else by userspace's."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from tests.contract import network_world
from tests.contract.network_world import Host

PROGRAMS = ("ovs-vsctl", "ovs-ofctl", "ovs-vswitchd", "ovsdb-server", "ovn-northd", "ovn-controller", "ethtool")
_SCHEMAS = {
    "/run/openvswitch/conf.db": "/usr/share/openvswitch/vswitch.ovsschema",
    "/run/ovn/ovnnb_db.db": "/usr/share/ovn/ovn-nb.ovsschema",
    "/run/ovn/ovnsb_db.db": "/usr/share/ovn/ovn-sb.ovsschema",
}
_REMOTES = {
    "/run/openvswitch/conf.db": "/run/openvswitch/db.sock",
    "/run/ovn/ovnnb_db.db": "/run/ovn/ovnnb_db.sock",
    "/run/ovn/ovnsb_db.db": "/run/ovn/ovnsb_db.sock",
}


def why_none() -> str | None:
    """Why there can be no such hosts here, in a sentence; None when there can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if missing:
        return f"Hosts with OVN need {', '.join(missing)}; hack/setup.py --tests installs them."
    if find_spec("ovsdbapp") is None:
        return "Hosts with OVN need ovsdbapp."
    return network_world.why_none()


def has_module() -> bool:
    """Whether this kernel has a datapath of Open vSwitch."""
    module = Path("/sys/module/openvswitch")
    if not module.exists() and shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "openvswitch"], check=False)
    return module.exists()


class OvnHost(Host):
    """A host as the packages openvswitch-switch, ovn-central and ovn-host make it."""

    name = "ovn"

    def equip(self) -> None:
        """Start the daemons; the driver itself finds out who forwards packets."""
        run = self.machine.run
        run("mkdir", "-p", "/run/openvswitch", "/run/ovn")
        for file, schema in _SCHEMAS.items():
            run("ovsdb-tool", "create", file, schema)
            pid = file.replace(".db", ".pid")
            control = file.replace(".db", ".ctl")
            self._start("ovsdb-server", file, f"--remote=punix:{_REMOTES[file]}", pid=pid, control=control)
        run("ovs-vsctl", "--no-wait", "init")
        switchd = "/run/openvswitch/ovs-vswitchd.pid"
        self._start("ovs-vswitchd", "unix:/run/openvswitch/db.sock", pid=switchd, control=None)
        if not has_module():
            self._userspace()
        self._start(
            "ovn-northd",
            "--ovnnb-db=unix:/run/ovn/ovnnb_db.sock",
            "--ovnsb-db=unix:/run/ovn/ovnsb_db.sock",
            pid="/run/ovn/ovn-northd.pid",
            control=None,
        )
        self._start("ovn-controller", "unix:/run/openvswitch/db.sock", pid="/run/ovn/ovn-controller.pid", control=None)
        self.settings |= {"state": "/run/kumulus/network-ovn"}

    def _userspace(self) -> None:
        """Have the underlay's device on a bridge of Open vSwitch: without the kernel, tunnels are there."""
        run = self.machine.run
        phy = ["--", "set", "bridge", "br-phy", "datapath_type=netdev", "--", "add-port", "br-phy", "eth0"]
        run("ip", "address", "flush", "dev", "eth0")
        run("ovs-vsctl", "add-br", "br-phy", *phy)
        run("ip", "address", "add", f"{self.address}/24", "dev", "br-phy")
        run("ip", "link", "set", "dev", "br-phy", "up")
        run("ethtool", "-K", "br-phy", "tx", "off")

    def _start(self, program: str, *arguments: str, pid: str, control: str | None) -> None:
        log = [f"--log-file={pid.replace('.pid', '.log')}", "-vconsole:off", "--no-chdir", f"--pidfile={pid}"]
        own = [f"--unixctl={control}"] if control else []
        self.machine.run(program, *arguments, *log, *own, "--detach")
