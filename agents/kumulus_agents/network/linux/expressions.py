"""Words of rules: the expressions of libnftables-json(5) that this driver uses. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from kumulus.api.addresses import is_v4
from kumulus_agents.network.linux.ruleset import Json

COUNTER: Json = {"counter": None}
DROP: Json = {"drop": None}
ACCEPT: Json = {"accept": None}
RETURN: Json = {"return": None}

_MOST = 100_000_000_000 // 8


def meta(key: str) -> Json:
    """What is known of the packet besides its content: iifname, mark, ..."""
    return {"meta": {"key": key}}


def payload(protocol: str, field: str) -> Json:
    """A field of a header."""
    return {"payload": {"protocol": protocol, "field": field}}


def ct(key: str) -> Json:
    """What is known of the packet's connection."""
    return {"ct": {"key": key}}


def match(left: Json, right: object, op: str = "==") -> Json:
    """Goes on only if it is so."""
    return {"match": {"op": op, "left": left, "right": right}}


def field(protocol: str, name: str, right: object, op: str = "==") -> Json:
    """Goes on only if the field of the header is so."""
    return match(payload(protocol, name), right, op)


def any_of(values: Sequence[object]) -> object:
    """One of these values; the value itself when it is the only one."""
    return values[0] if len(values) == 1 else {"set": list(values)}


def set_to(key: Json, value: object) -> Json:
    """Set what is known of the packet or its connection."""
    return {"mangle": {"key": key, "value": value}}


def masked(left: Json, mask: int) -> Json:
    """Some bits of it."""
    return {"&": [left, mask]}


def differing(left: Json, bits: int) -> Json:
    """It, with these bits the other way round (XOR)."""
    return {"^": [left, bits]}


def together(*parts: Json) -> Json:
    """All of these as one value, for a set of tuples."""
    return {"concat": list(parts)}


def learn(what: Json, name: str) -> Json:
    """Put it into the set, if it is not there. A rule goes on only if the set has it then."""
    return {"set": {"op": "add", "elem": what, "set": f"@{name}"}}


def ways(key: Json, name: str) -> Json:
    """Go where the map says."""
    return {"vmap": {"key": key, "data": f"@{name}"}}


def looked_up(key: Json, name: str) -> Json:
    """What the map has for it, as a value. A rule goes on only if there is something."""
    return {"map": {"key": key, "data": f"@{name}"}}


def value_of(key: Json, values: Mapping[str, int]) -> Json:
    """The value of the key, for values that no named map has a type for. A rule goes on only if there is one."""
    return {"map": {"key": key, "data": {"set": [[one, value] for one, value in sorted(values.items())]}}}


def ways_of(key: Json, where: Mapping[int, str]) -> Json:
    """Go to the chain of the value, for a key that no map has a type for."""
    return {"vmap": {"key": key, "data": {"set": [[value, jump(chain)] for value, chain in sorted(where.items())]}}}


def jump(chain: str) -> Json:
    """Go there, and come back if it decides nothing."""
    return {"jump": {"target": chain}}


def over(bits: int) -> Json:
    """Goes on only for what is more than so many bits a second, after a burst of a quarter of a second. The kernel counts
    to 100 Gbit/s."""
    rate = min(bits // 8, _MOST)
    burst = max(rate // 4, 128 * 1024)
    said = {"rate": rate, "rate_unit": "bytes", "per": "second", "burst": burst, "burst_unit": "bytes", "inv": True}
    return {"limit": said}


def more_often(than: int) -> Json:
    """Goes on only for what is more than so many packets a second, after a burst of two seconds'."""
    return {"limit": {"rate": than, "per": "second", "burst": 2 * than, "inv": True}}


def more_connections(than: int) -> Json:
    """Goes on only for a connection that would be one too many for this rule. Each rule counts for itself, until the kernel
    forgets a connection."""
    return {"ct count": {"val": than, "inv": True}}


def ranges(cidrs: Iterable[str]) -> tuple[list[object], list[object]]:
    """Those of IPv4 and those of IPv6, as values for `any_of`; none overlaps another."""
    fours, sixes = [], []
    for cidr in cidrs:
        if is_v4(cidr):
            fours.append(ipaddress.IPv4Network(cidr))
        else:
            sixes.append(ipaddress.IPv6Network(cidr))
    return (
        [_range(network) for network in ipaddress.collapse_addresses(fours)],
        [_range(network) for network in ipaddress.collapse_addresses(sixes)],
    )


def everything(found: Iterable[object]) -> bool:
    """Whether one of these, as `ranges` has them, is all addresses, which nftables has no word for. Two halves are."""
    return any(isinstance(entry, dict) and entry["prefix"]["len"] == 0 for entry in found)


def _range(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> object:
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
