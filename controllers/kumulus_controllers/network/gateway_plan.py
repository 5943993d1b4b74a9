"""Which hosts a gateway is on, and what of it is each host's own. Pure.

A gateway stays where it is. A host that is silent may be as active as ever: it keeps its part until it can be told, and
another one is made ready beside it. How the hosts agree which of them is active is not decided here (VRRP does that).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kumulus.api.addresses import Address
from kumulus.api.gateways import GatewayFunction, GatewayPeer, Redundancy
from kumulus.api.host import DriverUplinks
from kumulus.api.segments import NetworkDriverName
from kumulus_controllers.planning import ways
from kumulus_controllers.planning.ways import Way

HOSTS_MOST = 8
"""So many hosts can have one gateway, those that are silent with it."""
_GROUPS = 255


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that may have gateways."""

    name: str
    drivers: frozenset[str]
    """What can make networks there."""
    underlay: Address | None
    functions: Mapping[str, Mapping[GatewayFunction, str | None]] | None = None
    """By driver, what else it can make there, each with why not now, or None; None altogether: the agent is too old to say,
    and is taken at its word that it has the driver."""
    uplinks: frozenset[str] = frozenset()
    """Names of the physical networks that it has a way into."""
    labels: Mapping[str, str] = field(default_factory=dict)
    vlans: Mapping[str, DriverUplinks] | None = None
    """What its agent says of VLANs, by what makes networks; None when it is too old to say."""
    closed: str | None = None
    """Why it takes nothing new, such as `cordoned` or `not ready`."""
    silent: bool = False
    """It cannot be told anything now."""
    gateways: int = 0
    """How many gateways it has; who has least is taken first."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a gateway needs of its hosts."""

    driver: NetworkDriverName
    function: GatewayFunction
    count: int
    """How many hosts, the active one with them."""
    physical: frozenset[str] = frozenset()
    """Names of physical networks that it has legs in."""
    ways: tuple[Way, ...] = ()
    """What the networks need that it has legs in and that are VLANs."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The hosts of a gateway, in the order in which they were chosen, and why there are not more."""

    hosts: tuple[str, ...]
    short: int = 0
    """How many are missing."""
    refused: Mapping[str, str] | None = None
    """Why not, by host, when some are missing."""
    unsupported: str | None = None
    """Why no host ever can, a sentence that says what to do; None: one may."""


def choose(need: Need, hosts: Sequence[Candidate], current: Sequence[str], active: str | None) -> Choice:
    """Hosts for the gateway. `current` are those that have it, `active` the one that is active as far as is known.

    Who has it and can have it keeps it; one that is silent besides. What is too many goes, but never the active one first.
    """
    known = {host.name: host for host in hosts}
    kept = [name for name in current if name in known and lack(need, known[name]) is None]
    well = [name for name in kept if not known[name].silent and _may(need, known[name]) is None]
    silent = [name for name in kept if known[name].silent]
    # Cordoned, or a program of it is gone: what runs there goes on until there is another.
    going = [name for name in kept if name not in well and name not in silent]
    well.sort(key=lambda name: name != active)
    taken, left = well[: need.count], set(kept)
    refused: dict[str, str] = {}
    for host in sorted(hosts, key=lambda host: (host.gateways, host.name)):
        if host.name in left:
            continue
        why = _may(need, host) or lack(need, host)
        if why is not None:
            refused[host.name] = why
        elif len(taken) < need.count:
            taken.append(host.name)
    stay = going[: max(0, need.count - len(taken))]
    chosen = [*taken, *stay, *silent][:HOSTS_MOST]
    order = [name for name in current if name in chosen]
    order += [name for name in chosen if name not in order]
    short = max(0, need.count - len(taken) - len(stay))
    return Choice(tuple(order), short, refused if short else None, unsupported(need, hosts))


def unsupported(need: Need, hosts: Sequence[Candidate]) -> str | None:
    """Why no host can have the gateway whatever is done on it: the driver makes none. What agents say of the driver counts,
    not its name. None while no agent has said so."""
    said = [
        host.functions[need.driver.value] for host in hosts if host.functions and need.driver.value in host.functions
    ]
    if not said or any(need.function in functions for functions in said):
        return None
    return f"Network driver {need.driver} makes no {need.function.plural}: make the networks of a NetworkClass with another driver."


def _may(need: Need, host: Candidate) -> str | None:
    """Why a host does not get the gateway now, in a few words."""
    if host.closed is not None:
        return host.closed
    functions = host.functions.get(need.driver.value) if host.functions is not None else None
    if functions is None or need.driver.value not in host.drivers:
        return None
    if need.function not in functions:
        return f"network driver {need.driver} makes no {need.function.plural}"
    why = functions[need.function]
    return f"cannot have {need.function.plural}: {why.rstrip('.')}" if why is not None else None


def choose_some(need: Need, hosts: Sequence[Candidate], current: Sequence[str], active: str | None) -> Choice:
    """Hosts for a gateway that goes on with one host where no two can have it: of one, nobody asks for a way to others. The
    active one is not replaced by another that would be as alone. What keeps it from having more is said of those that it
    lacks."""
    choice = choose(need, hosts, current, active)
    if need.count == 1 or (choice.hosts and (not choice.short or active is None or active in choice.hosts)):
        return choice
    alone = choose(replace(need, count=1), hosts, current, active)
    if choice.hosts and active not in alone.hosts:
        return choice
    return replace(alone, short=max(1, need.count - len(alone.hosts)), refused=choice.refused)


def lack(need: Need, host: Candidate) -> str | None:
    """Why a host cannot have the gateway at all, in a few words."""
    if need.driver.value not in host.drivers:
        return f"without network driver {need.driver.value}"
    for name in sorted(need.physical - host.uplinks):
        return f"without an uplink to physical network {name}"
    for way in need.ways:
        if (why := ways.lack(way, host.labels, host.vlans)) is not None:
            return why
    if need.count > 1 and host.underlay is None:
        return "without an address for tunnels"
    return None


def redundancy(gateway: str, host: str, hosts: Sequence[str], underlays: Mapping[str, Address]) -> Redundancy:
    """How that host agrees with the others, as far as these can be reached."""
    peers = tuple(
        GatewayPeer(underlay=underlays[other], mac=link_mac(gateway, other))
        for other in hosts
        if other != host and other in underlays
    )
    return Redundancy(
        group=vrid(gateway),
        priority=100 - (hosts.index(host) if host in hosts else HOSTS_MOST),
        mac=link_mac(gateway, host),
        peers=peers[: HOSTS_MOST - 1],
    )


def vrid(gateway: str) -> int:
    """The number that the hosts of a gateway know each other by. Only its own hosts' addresses are listened to, so that
    another gateway may have the same."""
    return 1 + int.from_bytes(hashlib.sha256(gateway.encode()).digest()[:4], "big") % _GROUPS


def link_mac(gateway: str, host: str) -> str:
    """MAC address of a host's end of the link between the gateway's hosts."""
    return _mac(f"link {gateway} {host}")


def leg_mac(gateway: str, network: str, host: str) -> str:
    """MAC address of a gateway's interface in a network on a host. Each host has its own: what learned where the one is
    is never misled by the other."""
    return _mac(f"leg {gateway} {network} {host}")


def _mac(what: str) -> str:
    """A locally administered address; guests' begin with 02, what serves them on hosts with 06."""
    digits = hashlib.sha256(what.encode()).hexdigest()[:10]
    return ":".join(["0a", *(digits[at : at + 2] for at in range(0, 10, 2))])
