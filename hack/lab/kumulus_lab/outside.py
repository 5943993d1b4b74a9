"""The network outside of a lab: what routers of tenants reach, and a client there who sees north-south traffic.

What tenants are offered of it is hack/lab/manifests/outside.yaml.

It is a network namespace whose bridge has the client's addresses and one leg, `out0`, in each host. Nothing of it is in the
machine's own namespace, so ranges may be the same in every lab, and no firewall of the machine is in its way.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kumulus_lab import commands
from kumulus_lab.cuts import Switch

LEG = "out0"
"""A host's interface in it, without addresses."""
RANGES = ("198.51.100.0/24", "2001:db8:100::/64")
"""What routers may have addresses of. Of RFC 5737 and RFC 3849."""
GATEWAYS = ("198.51.100.1", "2001:db8:100::1")
"""The client's addresses in it: whatever a router sends out arrives there."""
WORLD = ("203.0.113.1", "2001:db8:200::1")
"""The client's addresses behind the gateway, which are reached by a default route only."""
PORT = 80
"""Where a web server answers at all of the client's addresses, with the address that it sees the one who asks by."""
BRIDGE = "outside"
"""The bridge that hosts' legs are in."""


@dataclass(frozen=True, slots=True)
class Outside:
    """The outside network of one lab."""

    lab: str

    @property
    def namespace(self) -> str:
        """The name of its network namespace."""
        return f"ko-{self.lab}"

    @property
    def switch(self) -> Switch:
        """What is cut of it."""
        return Switch("kumulus_lab", enter=self.enter)

    def port(self, number: int) -> str:
        """The bridge's end of a host's leg."""
        return f"host{number}"

    def ensure(self) -> None:
        """It is there, and the client answers. May be repeated."""
        if not Path("/run/netns", self.namespace).exists():
            commands.run(["ip", "netns", "add", self.namespace])
        if not self._has(BRIDGE):
            # An address of its own, for a bridge without one changes its address with its ports.
            hardware = ["address", "02:00:00:00:00:01"]
            self._ip("link", "add", BRIDGE, *hardware, "type", "bridge", "forward_delay", "0")
        for address, block in zip(GATEWAYS, RANGES, strict=True):
            self._ip("address", "replace", f"{address}/{block.split('/')[1]}", "dev", BRIDGE, "nodad")
        for address in WORLD:
            self._ip("address", "replace", address, "dev", "lo", "nodad")
        for device in ("lo", BRIDGE):
            self._ip("link", "set", device, "up")

    def ensure_leg(self, host: str, number: int) -> None:
        """The host whose network namespace that is has a leg in it, up and without any address."""
        port = self.port(number)
        if not commands.works(["ip", "-netns", host, "link", "show", "dev", LEG]):
            # One that is left from before a power cut ends with its namespace, some time later.
            commands.works(["ip", "-netns", self.namespace, "link", "delete", port])
            self._ip("link", "add", port, "type", "veth", "peer", "name", LEG, "netns", host)
        commands.run(["ip", "-netns", host, "link", "set", LEG, "addrgenmode", "none", "up"])
        self._ip("link", "set", port, "master", BRIDGE, "up")

    def exec(self, argv: Sequence[str | Path], *, check: bool = True, seconds: float = 60) -> commands.Finished:
        """Run a program as the client to its end."""
        return commands.run([*self.enter, *argv], check=check, seconds=seconds)

    def exec_here(self, argv: Sequence[str]) -> int:
        """Run a program as the client with this terminal; returns its exit status."""
        return subprocess.run([*self.enter, *argv], check=False).returncode

    @property
    def enter(self) -> tuple[str, ...]:
        """The command that goes there."""
        return ("ip", "netns", "exec", self.namespace)

    def _ip(self, *words: str) -> None:
        commands.run(["ip", "-netns", self.namespace, *words])

    def _has(self, device: str) -> bool:
        return commands.works(["ip", "-netns", self.namespace, "link", "show", "dev", device])
