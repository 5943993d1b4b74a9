"""Machines labelled `licence` run where there are licences for that, and there where they cost least.

A filter says None, or in a few words why the host will not do; they come after a number of hosts. A scorer says how good a
host is, 0 to 1. Both are asked very often: they look at what they are given, and do no I/O.
"""

from __future__ import annotations

from kumulus_controllers.planning.views import HostView, Load, Request

LICENCE = "licence"
PRICE = "licences.example.com/price"


def licensed(request: Request, host: HostView, load: Load) -> str | None:
    """The host has a licence for what the machine runs."""
    wanted = request.labels.get(LICENCE)
    if wanted is None:
        return None
    return None if host.label(f"licences.example.com/{wanted}") is not None else f"without a licence for {wanted}"


def cheapest(request: Request, host: HostView, load: Load) -> float:
    """1 for what costs nothing; of a host whose price is no number this raises."""
    return 1 / (1 + float(host.label(PRICE) or 0))
