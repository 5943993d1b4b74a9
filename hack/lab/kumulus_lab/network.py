"""The cables of a lab's hosts: a bridge for the network between them, and one veth with a network namespace for each.

All names begin with the lab's, so everything of a lab can be found and removed without its records.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from kumulus_lab import commands
from kumulus_lab.cuts import Switch
from kumulus_lab.errors import LabError
from kumulus_lab.outside import Outside

_RANGE = ipaddress.ip_network("10.213.0.0/16")
_FIRST_HOST = 10


def choose_subnet() -> str:
    """A subnet that no interface and no route of this machine uses."""
    used = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in _ip_json("route", "show", "table", "all")
        if route.get("dst", "default")[0].isdigit()
    ]
    for subnet in _RANGE.subnets(new_prefix=24):
        if not any(subnet.overlaps(other) for other in used if isinstance(other, ipaddress.IPv4Network)):
            return str(subnet)
    raise LabError(f"no free network within {_RANGE}; `kumulus-lab down` a lab that is not needed")


@dataclass(frozen=True, slots=True)
class Network:
    """The network of one lab."""

    lab: str
    subnet: str

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return f"kb-{self.lab}"

    @property
    def address(self) -> str:
        """This machine's address on the bridge."""
        return str(ipaddress.ip_network(self.subnet)[1])

    @property
    def image_address(self) -> str:
        """Where this machine serves images: not the API server's address, which agents take no image from."""
        return str(ipaddress.ip_network(self.subnet)[2])

    @property
    def prefix(self) -> int:
        """How long the subnet's prefix is."""
        return ipaddress.ip_network(self.subnet).prefixlen

    @property
    def spare_address(self) -> str:
        """An address that no host gets: for another machine on the cable, such as a storage server of a test."""
        return str(ipaddress.ip_network(self.subnet)[-2])

    def host_address(self, number: int) -> str:
        """A host's address."""
        return str(ipaddress.ip_network(self.subnet)[_FIRST_HOST + number])

    @property
    def switch(self) -> Switch:
        """What is cut of the network between hosts and to the API server."""
        return Switch(_table(self.lab), server=self.address)

    @property
    def outside(self) -> Outside:
        """The network outside."""
        return Outside(self.lab)

    def namespace(self, host: str) -> str:
        """The name of a host's network namespace."""
        return f"kl-{self.lab}-{host}"

    def enter(self, host: str) -> tuple[str, ...]:
        """The command that goes to a host's network."""
        return ("ip", "netns", "exec", self.namespace(host))

    def cable(self, number: int) -> str:
        """The name of the outer end of a host's cable."""
        return f"kv-{self.lab}-{number}"

    def ensure(self) -> None:
        """The bridge is there and up, and so is the network outside."""
        if not _link_exists(self.bridge):
            # An address of its own: a bridge without one takes a cable's, and changes it when a host loses power,
            # which cuts all other hosts off until they ask again who it is.
            hardware = ["address", _hardware_address(self.lab)]
            commands.run(["ip", "link", "add", self.bridge, *hardware, "type", "bridge", "forward_delay", "0"])
        for address in (self.address, self.image_address):
            commands.run(["ip", "address", "replace", f"{address}/{self.prefix}", "dev", self.bridge])
        commands.run(["ip", "link", "set", self.bridge, "up"])
        self.outside.ensure()

    def ensure_host(self, host: str, number: int) -> None:
        """A host's namespace is there, plugged into the bridge with its address, and into the network outside without."""
        name, cable = self.namespace(host), self.cable(number)
        if not Path("/run/netns", name).exists():
            commands.run(["ip", "netns", "add", name])
        if not _link_exists(cable):
            peer = ["peer", "name", "eth0", "netns", name]
            commands.run(["ip", "link", "add", cable, "type", "veth", *peer])
        address = f"{self.host_address(number)}/{self.prefix}"
        commands.run(["ip", "-netns", name, "address", "replace", address, "dev", "eth0"])
        commands.run(["ip", "-netns", name, "link", "set", "lo", "up"])
        commands.run(["ip", "-netns", name, "link", "set", "eth0", "up"])
        commands.run(["ip", "link", "set", cable, "master", self.bridge, "up"])
        self.outside.ensure_leg(name, number)

    def fill_in(self, number: int) -> None:
        """What the host's cable brings it has its checksums, and is no larger than the cable carries."""
        commands.run(["ethtool", "-K", self.cable(number), "tx", "off"])

    def remove_host(self, host: str, number: int) -> None:
        """Neither cable nor namespace of the host is left."""
        if _link_exists(self.cable(number)):
            commands.run(["ip", "link", "delete", self.cable(number)], check=False)
        if Path("/run/netns", self.namespace(host)).exists():
            commands.run(["ip", "netns", "delete", self.namespace(host)])


def remove_everything(lab: str) -> None:
    """No namespace, cable, bridge or cut of that lab is left, whether or not its records are."""
    for namespace in namespaces(lab):
        commands.run(["ip", "netns", "delete", namespace])
    for link in _ip_json("link", "show"):
        name = str(link.get("ifname", ""))
        if name == f"kb-{lab}" or name.startswith(f"kv-{lab}-"):
            commands.run(["ip", "link", "delete", name], check=False)
    if shutil.which("nft"):
        Switch(_table(lab)).remove()


def namespaces(lab: str) -> list[str]:
    """The network namespaces of that lab: its hosts', and that of the network outside."""
    hosts = [path.name for path in Path("/run/netns").glob(f"kl-{lab}-*")]
    outside = Outside(lab).namespace
    return [*hosts, outside] if Path("/run/netns", outside).exists() else hosts


def _table(lab: str) -> str:
    return f"kumulus_lab_{lab}"


def _hardware_address(lab: str) -> str:
    """A locally administered address, the same for the same lab."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *hashlib.sha256(lab.encode()).digest()[:5]))


def _link_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def _ip_json(*words: str) -> list[dict[str, str]]:
    output = commands.run(
        ["ip", "-4", "-json", *words] if words[0] == "route" else ["ip", "-json", *words], check=False
    )
    found: list[dict[str, str]] = json.loads(output.stdout or "[]")
    return found
