"""What the rules have dropped, read from their counters in the kernel's listing. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kumulus_agents.network.linux import names
from kumulus_agents.network.linux.layout import Layout
from kumulus_agents.network.protocol import Dropped

OTHERS = "other"
"""Of rules without a comment."""


def parse(listings: Sequence[str], layout: Layout) -> Sequence[Dropped]:
    """From listings of tables (`nft -j list table`): only what is more than none, summed up by interface, network and why."""
    whose = _whose(layout)
    found: Counter[tuple[str, str, str]] = Counter()
    for listing in listings:
        for entry in json.loads(listing)["nftables"]:
            rule = entry.get("rule")
            if rule is not None and (packets := _dropped(rule)):
                parts = str(rule["chain"]).split("-")
                network, interface = next((whose[part] for part in parts if part in whose), ("", ""))
                found[network, interface, str(rule.get("comment", OTHERS))] += packets
    return [Dropped(network, interface, why, packets) for (network, interface, why), packets in sorted(found.items())]


def _whose(layout: Layout) -> Mapping[str, tuple[str, str]]:
    """Network and interface of the names that are in names of chains."""
    found = {}
    for uid in layout.networks:
        for name in (names.short(uid), names.tunnel(uid), names.service(uid)):
            found[name] = (uid, "")
    for uid, place in layout.places.items():
        found[names.tap(uid)] = (place.port.nic.network, uid)
    return found


def _dropped(rule: Mapping[str, Any]) -> int:
    expressions: Sequence[Mapping[str, Any]] = rule.get("expr", ())
    if not any("drop" in expression for expression in expressions):
        return 0
    return sum(int(expression["counter"]["packets"]) for expression in expressions if expression.get("counter"))
