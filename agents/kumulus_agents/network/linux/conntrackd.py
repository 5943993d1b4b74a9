"""What conntrackd reads, which copies a gateway's translated connections to its other hosts. Pure.

Reliable over UDP between two hosts (FT-FW); with more, best effort to each (NOTRACK), for the reliable protocol is one
between two. It goes over the link that only gateways have, between the addresses by which keepalived speaks. A connection
that is only being opened is not copied: who floods a gateway with them costs its standby nothing, and it is opened again.

All values are numbers, our own names, and addresses that were parsed. Sources: conntrackd.conf(5), conntrackd(8).
"""

from __future__ import annotations

from pathlib import PurePosixPath

from kumulus.api.gateways import GatewayOrder
from kumulus_agents.network.linux.bridging import link_local
from kumulus_agents.network.linux.gateway_rules import COPIES_PORT, LINK, destinations

SOCKET, LOCK = "control", "lock"
"""Files that it makes, in the directory that is its own to write in."""
CURRENT = "current.conf"
"""The same configuration by a name that stays, for who tells it something."""
PURGE_SECONDS = 60
"""After which the host that gave way forgets its connections: not before the other one has them."""
_MESSAGES = 1 << 20
"""Bytes that wait in a socket of the link."""
_EVENTS, _EVENTS_MOST = 1 << 20, 8 << 20
"""Bytes of events that wait in the kernel."""
_PER_CONNECTION = 2048
"""Bytes of memory for each in either of its two tables, generously."""
_BASE = 96 << 20


def bound(connections: int) -> int:
    """How much memory it may take, in bytes of address space."""
    return _BASE + 2 * connections * _PER_CONNECTION


def configuration(order: GatewayOrder, writable: PurePosixPath, connections: int, link: int) -> str:
    """What it is started with. `writable`: its own directory; `connections`: how many it copies, and keeps of others;
    `link`: number of that device, by which it knows it, so that another one makes for another configuration."""
    peers = destinations(order)  # it sends to the first; the gateway's rules have the others get the same
    mode = (
        ["  Mode FTFW {", f"    ResendQueueSize {max(connections // 4, 64)}"]
        if len(peers) == 1
        else ["  Mode NOTRACK {"]
    )
    lines = [
        f"# {LINK} is {link}",
        "Sync {",
        *mode,
        f"    PurgeTimeout {PURGE_SECONDS}",
        "    StartupResync yes",
        "  }",
        "  UDP {",
        f"    IPv6_address {link_local(order.redundancy.mac)}",
        f"    IPv6_Destination_Address {peers[0]}",
        f"    Port {COPIES_PORT}",
        f"    Interface {LINK}",
        f"    SndSocketBuffer {_MESSAGES}",
        f"    RcvSocketBuffer {_MESSAGES}",
        "    Checksum yes",
        "  }",
        "}",
        "General {",
        "  Systemd no",
        f"  HashSize {max(connections // 4, 64)}",
        f"  HashLimit {connections}",
        "  LogFile no",
        "  Syslog yes",
        f"  LockFile {writable / LOCK}",
        "  UNIX {",
        f"    Path {writable / SOCKET}",
        "  }",
        f"  NetlinkBufferSize {_EVENTS}",
        f"  NetlinkBufferSizeMaxGrowth {_EVENTS_MOST}",
        "  NetlinkOverrunResync yes",
        "  Filter From Kernelspace {",
        "    Protocol Accept {",
        "      TCP",
        "      UDP",
        "    }",
        "    Address Ignore {",
        "      IPv4_address 127.0.0.0/8",
        "      IPv6_address ::1",
        "      IPv6_address fe80::/10",
        "    }",
        "    State Accept {",
        "      ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT CLOSED for TCP",
        "    }",
        "  }",
        "}",
    ]
    return "".join(f"{line}\n" for line in lines)
