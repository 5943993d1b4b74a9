"""What the operating system says of the machine the agent runs on. Reads /proc and /etc, nothing else."""

from __future__ import annotations

import ipaddress
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path

ADDRESSES_MAX = 32

_LOCAL = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")


def addresses(proc: Path = Path("/proc/self/net")) -> tuple[str, ...]:
    """Own addresses without loopback and link-local ones, sorted, IPv4 first; at most 32."""
    found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    found.update(ipaddress.IPv4Address(text) for text in _LOCAL.findall(_read(proc / "fib_trie")))
    for line in _read(proc / "if_inet6").splitlines():
        found.add(ipaddress.IPv6Address(bytes.fromhex(line.split()[0])))
    kept = [address for address in found if not (address.is_loopback or address.is_link_local)]
    return tuple(str(address) for address in sorted(kept, key=lambda a: (a.version, int(a))))[:ADDRESSES_MAX]


def operating_system(release: Path = Path("/etc/os-release")) -> str | None:
    """Name of the operating system, as it calls itself."""
    for line in _read(release).splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip('"')[:253] or None
    return None


def kernel() -> str:
    """Version of the kernel."""
    return platform.release()


@cache
def agent_version() -> str:
    """Version of Kumulus."""
    try:
        return metadata.version("kumulus")
    except metadata.PackageNotFoundError:
        return "unknown"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
