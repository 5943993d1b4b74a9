"""Connections as `conntrack` of conntrack-tools 1.4 lists them (`-o save`), and takes them (`-R`). Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kumulus_agents.network.connections import MOST, Connection

_MIRRORED = (("-s", "-q"), ("-d", "-r"), ("--sport", "--reply-port-dst"), ("--dport", "--reply-port-src"))


def listed(text: str, addresses: Collection[str]) -> tuple[Connection, ...]:
    """Those of these addresses that are established, both ways, and not translated."""
    found = []
    for line in text.splitlines():
        words = line.split()
        said = dict(zip(words[1::2], words[2::2], strict=False))
        if words[:1] != ["-A"] or (said.get("-p"), said.get("--state")) != ("tcp", "ESTABLISHED"):
            continue
        if "SEEN_REPLY" not in said.get("-u", "") or any(said.get(a) != said.get(b) for a, b in _MIRRORED):
            continue
        if said["-s"] in addresses or said["-d"] in addresses:
            ports = int(said["--sport"]), int(said["--dport"])
            found.append(Connection(said["-s"], ports[0], said["-d"], ports[1], max(int(said["-t"]), 1)))
    return tuple(found[:MOST])


def entries(connections: Sequence[Connection], zone: int) -> str:
    """Lines by which the kernel knows them in that zone."""
    return "".join(
        f"-A -w {zone} -t {c.seconds} -u SEEN_REPLY,ASSURED -s {c.source} -d {c.target} -p tcp"
        f" --sport {c.source_port} --dport {c.target_port} --state ESTABLISHED\n"
        for c in connections
    )
