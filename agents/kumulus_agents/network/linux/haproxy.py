"""What haproxy reads, and what it says of members. Pure.

Nothing that a tenant wrote comes to stand in the configuration but numbers, addresses, words of our own enumerations, and
the path of a health check, which was checked when the order was read and is checked here once more. Servers are named by
uids. Sources: haproxy's configuration manual and management guide, 2.6.
"""

from __future__ import annotations

import csv
import hashlib
import io
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from kumulus.api.balancing import (
    Algorithm,
    BalancerListener,
    BalancerMember,
    Balancing,
    CheckType,
    HealthCheck,
    ListenerProtocol,
    MemberFacts,
    StickinessType,
)
from kumulus_agents.network.protocol import NetworkError

COOKIE = "kumulus-lb"
PEER = "self"
PEER_PORT = 19
"""Of the loopback, where a successor is told which client has which member."""
CONNECT_SECONDS = 3
TCP_IDLE_SECONDS = 3600
HTTP_IDLE_SECONDS = 60
REQUEST_SECONDS = 15
"""A client that does not finish its request's head in so long is let go."""
LAST_SECONDS = 3600
"""Connections of before a change go on for so long."""
STICKY_CLIENTS = 65536
THREADS = 2
_MEMORY = 384 << 20
"""Bytes of addresses that it takes with full tables of who has which member, before anybody is connected."""
_MEMORY_EACH = 32 << 10
"""Bytes for each connection at a time: its two buffers."""
_FILES = 2048
"""Open files but those of connections: listeners, and one for each member that is asked."""

_BALANCE = {
    Algorithm.ROUND_ROBIN: "roundrobin",
    Algorithm.LEAST_CONNECTIONS: "leastconn",
    Algorithm.SOURCE: "source",
}
_UNKNOWN = ("UNK", "INI")
"""Results of checks that there were none yet."""
_PATH = re.compile(r"/[A-Za-z0-9._~/-]{0,255}")


@dataclass(frozen=True, slots=True)
class Files:
    """Where the files of one haproxy are."""

    directory: PurePosixPath

    @property
    def sockets(self) -> PurePosixPath:
        """What haproxy itself writes to."""
        return self.directory / "run"

    @property
    def stats(self) -> PurePosixPath:
        """Where it is asked, and hands over what it listens at."""
        return self.sockets / "stats"

    @property
    def pid(self) -> PurePosixPath:
        """The number of the one that takes connections."""
        return self.sockets / "pid"

    @property
    def states(self) -> PurePosixPath:
        """Who was well when it was started."""
        return self.directory / "states"

    def key(self, digest: str) -> PurePosixPath:
        """Certificates and their key."""
        return self.directory / "keys" / f"{digest}.pem"


def configuration(balancing: Balancing, files: Files) -> str:
    """What haproxy reads. Raises `NetworkError(reason="BadBalancer")` for what it cannot be told."""
    lines = [*_global(balancing, files), "", *_defaults(balancing.health_check)]
    if any(_remembers(listener) for listener in balancing.listeners):
        lines += ["", "peers peers", f"    peer {PEER} 127.0.0.1:{PEER_PORT}"]
    checks: dict[tuple[int, bool], str] = {}
    for listener in sorted(balancing.listeners, key=lambda one: one.port):
        # What is asked of a member is asked once: listeners that would ask the same go by the first of them.
        asked = (balancing.health_check.port or listener.target_port, listener.proxy_protocol)
        first = checks.setdefault(asked, name(listener))
        lines += ["", *_listen(balancing, listener, files, None if first == name(listener) else first)]
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the kernel lets one haproxy have."""

    memory: int
    """Bytes of addresses."""
    files: int
    """Open files: a connection is two, its client's and its member's."""


def bounds(balancing: Balancing) -> Bounds:
    """What one haproxy may have, also one that finishes what it began."""
    most = balancing.max_connections
    return Bounds(memory=_MEMORY + most * _MEMORY_EACH, files=_FILES + 2 * most)


def name(listener: BalancerListener) -> str:
    """What haproxy calls a listener."""
    return f"p{listener.port}"


def _global(balancing: Balancing, files: Files) -> list[str]:
    return [
        "global",
        f"    localpeer {PEER}",
        f"    nbthread {THREADS}",
        f"    maxconn {balancing.max_connections}",
        "    no strict-limits",
        f"    hard-stop-after {LAST_SECONDS}s",
        f"    stats socket {files.stats} mode 600 level admin expose-fd listeners",
        "    stats timeout 30s",
        f"    server-state-file {files.states}",
        "    spread-checks 5",
        "    ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
    ]


def _defaults(check: HealthCheck) -> list[str]:
    fast = min(check.interval_seconds, 1)
    return [
        "defaults",
        "    load-server-state-from-file global",
        f"    timeout connect {CONNECT_SECONDS}s",
        f"    timeout check {check.timeout_seconds}s",
        f"    timeout queue {REQUEST_SECONDS}s",
        "    retries 3",
        "    option redispatch 1",
        "    option clitcpka",
        "    option srvtcpka",
        f"    default-server inter {check.interval_seconds}s fastinter {fast}s downinter {fast}s"
        f" fall {check.unhealthy_threshold} rise {check.healthy_threshold}"
        + (f" port {check.port}" if check.port is not None else ""),
    ]


def _listen(balancing: Balancing, listener: BalancerListener, files: Files, asks: str | None) -> Iterator[str]:
    """A listener. `asks` is the one that asks members for it; None: itself."""
    yield f"listen {name(listener)}"
    yield f"    mode {'http' if listener.protocol.http else 'tcp'}"
    for address in balancing.addresses:
        yield f"    bind {_at(address, listener.port)}{_tls(listener, files)}"
    yield f"    balance {_BALANCE[listener.algorithm]}"
    if listener.algorithm is Algorithm.SOURCE:
        yield "    hash-type consistent"
    if listener.protocol.http:
        yield from _http(listener)
    else:
        yield f"    timeout client {TCP_IDLE_SECONDS}s"
        yield f"    timeout server {TCP_IDLE_SECONDS}s"
    if asks is None:
        yield from _check(balancing.health_check)
    yield from _stick(listener)
    for member in sorted(balancing.members, key=lambda one: one.uid):
        known = "check" if asks is None else f"track {asks}/{member.uid}"
        at = _at(member.address, listener.target_port)
        yield f"    server {member.uid} {at} {known}{_options(listener, member, checks=asks is None)}"


def _http(listener: BalancerListener) -> Iterator[str]:
    yield f"    timeout client {HTTP_IDLE_SECONDS}s"
    yield f"    timeout server {HTTP_IDLE_SECONDS}s"
    yield f"    timeout http-request {REQUEST_SECONDS}s"
    yield f"    timeout http-keep-alive {HTTP_IDLE_SECONDS}s"
    yield f"    timeout tunnel {TCP_IDLE_SECONDS}s"
    yield "    option forwardfor"
    yield f"    http-request set-header X-Forwarded-Proto {'https' if listener.protocol.encrypted else 'http'}"
    yield f"    http-request set-header X-Forwarded-Port {listener.port}"


def _check(check: HealthCheck) -> Iterator[str]:
    if check.type is CheckType.HTTP:
        path = check.path or "/"
        if not _PATH.fullmatch(path):
            raise _bad("The path of the health check has characters that no path may have here.")
        yield "    option httpchk"
        yield f"    http-check send meth GET uri {path} ver HTTP/1.1 hdr Host health-check hdr Connection close"
        yield "    http-check expect status 200-399"


def _stick(listener: BalancerListener) -> Iterator[str]:
    if listener.stickiness is None:
        return
    seconds = listener.stickiness.timeout_seconds
    if listener.stickiness.type is StickinessType.COOKIE:
        if not listener.protocol.http:
            raise _bad("Only listeners for HTTP and HTTPS know cookies.")
        secure = " secure" if listener.protocol.encrypted else ""
        yield f"    cookie {COOKIE} insert indirect nocache httponly{secure} maxidle {seconds}s"
    else:
        yield f"    stick-table type ipv6 size {STICKY_CLIENTS} expire {seconds}s peers peers"
        yield "    stick on src"


def _remembers(listener: BalancerListener) -> bool:
    return listener.stickiness is not None and listener.stickiness.type is StickinessType.SOURCE_IP


def _tls(listener: BalancerListener, files: Files) -> str:
    if not listener.protocol.encrypted:
        return ""
    if listener.certificate is None:
        raise _bad("A listener for TLS has no certificate.")
    alpn = " alpn h2,http/1.1" if listener.protocol is ListenerProtocol.HTTPS else ""
    return f" ssl crt {files.key(listener.certificate.digest)}{alpn}"


def _options(listener: BalancerListener, member: BalancerMember, *, checks: bool) -> str:
    words = ""
    if listener.proxy_protocol:
        words += " send-proxy-v2 check-send-proxy" if checks else " send-proxy-v2"
    if listener.stickiness is not None and listener.stickiness.type is StickinessType.COOKIE:
        words += f" cookie {hashlib.sha256(member.uid.encode()).hexdigest()[:16]}"
    return words


def _at(address: str, port: int) -> str:
    parsed = ipaddress.ip_address(address)
    return f"{parsed}:{port}" if parsed.version == 4 else f"[{parsed}]:{port}"


def _bad(message: str) -> NetworkError:
    return NetworkError(message, reason="BadBalancer", retryable=False)


_STATE = {"listener": 1, "server": 3, "address": 4, "port": 18, "check": 21}
"""Columns of `show servers state`, version 1."""


def states(said: str, balancing: Balancing) -> str:
    """What the next process reads of who is well, from `show servers state`: of those members that are asked there as they
    were. What is on file of others would count more than the configuration, for ports too."""
    check = str(balancing.health_check.port or 0)
    ports = {name(listener): str(listener.target_port) for listener in balancing.listeners}
    addresses = {member.uid: member.address for member in balancing.members}

    def holds(words: list[str]) -> bool:
        if len(words) <= max(_STATE.values()):
            return False
        of = {key: words[column] for key, column in _STATE.items()}
        where = (addresses.get(of["server"]), ports.get(of["listener"]), check)
        return where == (of["address"], of["port"], of["check"])

    lines = said.splitlines()
    kept = [line for number, line in enumerate(lines) if number == 0 or line.startswith("#") or holds(line.split())]
    return "".join(f"{line}\n" for line in kept)


def health(stats: str) -> Mapping[str, bool]:
    """Who is well, by uid, from `show stat`: at every listener. Members that were not looked at yet are not in it."""
    found: dict[str, bool] = {}
    unknown: set[str] = set()
    for row in csv.DictReader(io.StringIO(stats.removeprefix("# "))):
        server, check = row.get("svname") or "", (row.get("check_status") or "").removeprefix("* ")
        if not server or not check:  # none that is asked, but one that goes by another
            continue
        if check in _UNKNOWN:
            unknown.add(server)
        found[server] = found.get(server, True) and (row.get("status") or "").startswith("UP")
    return {server: well for server, well in found.items() if server not in unknown}


def facts(
    balancing: Balancing, found: Mapping[str, bool], before: Mapping[str, bool] | None = None
) -> tuple[MemberFacts, ...]:
    """What is so of the members, from `health`; of those that it does not know yet what was known `before`."""
    known = {**(before or {}), **found}
    return tuple(
        MemberFacts(uid=member.uid, healthy=known.get(member.uid, False))
        for member in sorted(balancing.members, key=lambda one: one.uid)
    )
