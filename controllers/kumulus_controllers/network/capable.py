"""Which hosts can make networks of a driver, and why others cannot. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kumulus.api.fabric import Host
from kumulus.api.gateways import GatewayFunction
from kumulus.api.host import HostReport
from kumulus.api.segments import NetworkDriverName
from kumulus.runtime.conditions import Fact
from kumulus_controllers.fleet_feed import uplinks
from kumulus_controllers.network.lack import Lack
from kumulus_controllers.planning import ways
from kumulus_controllers.planning.ways import Way

CONDITION = "HostsCapable"
CONNECTED = "HostsConnected"
_NAMED = 5


def capable(driver: NetworkDriverName, reports: Iterable[HostReport]) -> tuple[Fact | None, Lack | None]:
    """What is to be said of the hosts, and why there can be no networks when there is a reason. Nothing of either while no
    host has said what it can."""
    said = sorted(
        ((report.name, report.status.network) for report in reports if report.status.network is not None),
        key=lambda one: one[0],
    )
    if not said:
        return None, None
    unable = [(name, network) for name, network in said if driver not in network.drivers]
    if not unable:
        return Fact(CONDITION, True, "AllHosts", f"All hosts have the driver {driver}."), None
    why = "; ".join(f"{name} ({_why(driver, network.message)})" for name, network in unable[:_NAMED])
    more = f" and {len(unable) - _NAMED} more" if len(unable) > _NAMED else ""
    if len(unable) < len(said):
        have = len(said) - len(unable)
        text = f"{have} of {len(said)} hosts have the driver {driver}; machines with networks of this class go there. Without: {why}{more}."
        return Fact(CONDITION, False, "SomeHosts", text), None
    text = f"No host has the driver {driver}: {why}{more}."
    return Fact(CONDITION, False, "NoHost", text), Lack("NoHostHasDriver", text)


def connected(way: Way, hosts: Iterable[tuple[Host, HostReport | None]]) -> tuple[Fact | None, Lack | None]:
    """What is to be said of the way of VLANs to the hosts that have the driver, and why there can be no networks when there
    is a reason. Nothing of either while no host has the driver."""
    said = sorted(
        (host.name, ways.lack(way, host.metadata.labels, uplinks(report)))
        for host, report in hosts
        if report is not None and report.status.network is not None and way.driver in report.status.network.drivers
    )
    if not said:
        return None, None
    unable = [(name, why) for name, why in said if why is not None]
    if not unable:
        return Fact(CONNECTED, True, "AllHosts", f"VLANs of PhysicalNetwork {way.physical} come to all hosts."), None
    named = "; ".join(f"{name} ({why[:_MOST]})" for name, why in unable[:_NAMED])
    more = f" and {len(unable) - _NAMED} more" if len(unable) > _NAMED else ""
    if len(unable) < len(said):
        have = len(said) - len(unable)
        text = (
            f"VLANs of PhysicalNetwork {way.physical} come to {have} of {len(said)} hosts; machines with networks of this class"
            f" go there. Not: {named}{more}."
        )
        return Fact(CONNECTED, False, "SomeHosts", text), None
    text = f"VLANs of PhysicalNetwork {way.physical} come to no host: {named}{more}."
    return Fact(CONNECTED, False, "NoHost", text), Lack("NoHostConnected", text)


def serving(driver: NetworkDriverName, function: GatewayFunction, reports: Iterable[HostReport]) -> Fact | None:
    """What is to be said of gateways in networks of the driver; nothing while no host that has it has said so."""
    said = sorted(
        (report.name, {one.name: one.message for one in item.functions})
        for report in reports
        for item in (report.status.network.functions or () if report.status.network is not None else ())
        if item.driver is driver
    )
    what, type_ = function.plural, f"{function}s"
    if not said:
        return None
    if not any(function in functions for _, functions in said):
        if function is GatewayFunction.KEPT_CONNECTION:  # agents are older than it
            return None
        text = f"The driver {driver} makes no {what}: who needs them takes a class with another driver."
        return Fact(type_, False, "NotByDriver", text)
    unable = [
        (name, why) for name, functions in said if (why := functions.get(function, "its agent cannot")) is not None
    ]
    if not unable:
        return Fact(type_, True, "AllHosts", f"All hosts that have the driver {driver} can have {what}.")
    named = "; ".join(f"{name} ({why.rstrip('.')[:_MOST]})" for name, why in unable[:_NAMED])
    more = f" and {len(unable) - _NAMED} more" if len(unable) > _NAMED else ""
    if len(unable) == len(said):
        return Fact(type_, False, "NoHost", f"No host can have {what}: {named}{more}.")
    text = f"{len(said) - len(unable)} of {len(said)} hosts can have {what}; they are there. Not: {named}{more}."
    return Fact(type_, False, "SomeHosts", text)


_SAID = re.compile(rf"(?:^|; )({'|'.join(NetworkDriverName)}): ")
_MOST = 200


def _why(driver: NetworkDriverName, message: str | None) -> str:
    """What the host says of that driver."""
    parts = _SAID.split(message or "")
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        if name == driver:
            return text.rstrip(".")[:_MOST]
    return "the agent has no such driver"
