"""All rules of Kumulus on a host. Pure."""

from __future__ import annotations

from kumulus_agents.network.linux import bridging, filtering
from kumulus_agents.network.linux.layout import LIMITS, Layout, Limits
from kumulus_agents.network.linux.ruleset import Ruleset


def render(layout: Layout, limits: Limits = LIMITS) -> Ruleset:
    """Everything that nftables shall hold, of all networks and ports together. Nothing where there is no network and
    no gateway; where all are barred, what lets nothing pass."""
    if not layout.networks and not layout.gateways:
        return Ruleset()
    passing = layout.open()
    frames, connections = bridging.render(passing), filtering.render(passing, limits)
    return Ruleset(
        {**frames.chains, **connections.chains},
        {**frames.sets, **connections.sets},
        {**frames.maps, **connections.maps},
        frames.marks,
        connections.learned,
    )
