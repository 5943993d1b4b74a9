"""The links of a lab by the names of their ends: a host, and another host, the API server or the network outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kumulus_lab.cable import Cable
from kumulus_lab.cuts import API, OUTSIDE, Direction, Switch
from kumulus_lab.errors import LabError
from kumulus_lab.host import LibvirtHost
from kumulus_lab.lab import Lab
from kumulus_lab.outside import LEG


@dataclass(frozen=True, slots=True)
class Link:
    """Between a port of a bridge and another, or all others."""

    switch: Switch
    port: str
    other: str = ""
    cable: Cable | None = None
    """What carries it, if nothing else goes through there."""

    def cut(self, direction: Direction = Direction.BOTH) -> None:
        """Have nothing pass, that way. May be repeated."""
        self.switch.cut(self.port, self.other, direction)

    def heal(self) -> None:
        """Have everything pass that no other cut stops, as fast as it can. May be repeated."""
        self.switch.heal(self.port, self.other)
        if self.cable is not None:
            self.cable.heal()

    def slow(self, rate: str) -> None:
        """Have no more pass than that each way, such as `10mbit`. May be repeated. Raises LabError where that cannot be."""
        if self.cable is None:
            raise LabError(
                "a link shares its host's cable with others, and only cables can be slow: name the host alone"
            )
        self.cable.slow(rate)


def between(lab: Lab, host: str, other: str) -> Link:
    """The link of a host to another, to `api` or to `outside`. Raises LabError when there is none such."""
    near = lab.host(host)
    if other == OUTSIDE:
        outside = near.network.outside
        return Link(outside.switch, outside.port(near.state.number), cable=_outer(near))
    network = near.network
    if other == API:
        return Link(network.switch, network.cable(near.state.number), API)
    far = lab.host(other)
    if far.name == near.name:
        raise LabError(f"{host} has no link to itself; name another host, {API} or {OUTSIDE}")
    return Link(network.switch, network.cable(near.state.number), network.cable(far.state.number))


def of(lab: Lab, host: str) -> Link:
    """A host's link to all others and the API server; not the one to the outside."""
    near = lab.host(host)
    return Link(near.network.switch, near.network.cable(near.state.number), cable=_inner(near))


def _inner(host: LibvirtHost) -> Cable:
    network = host.network
    return Cable((((), network.cable(host.state.number)), (network.enter(host.name), "eth0")))


def _outer(host: LibvirtHost) -> Cable:
    network = host.network
    outside = network.outside
    return Cable(((outside.enter, outside.port(host.state.number)), (network.enter(host.name), LEG)))


def rates(lab: Lab) -> dict[str, Sequence[str]]:
    """Which cables of each running host are slow."""
    said: dict[str, Sequence[str]] = {}
    for host in lab.hosts:
        on = host.running()
        found = {"all": _inner(host).rate(), OUTSIDE: _outer(host).rate()} if on else {}
        said[host.name] = [f"{name} {rate / 1e6:g} Mbit/s" for name, rate in found.items() if rate is not None]
    return said


def cuts(lab: Lab) -> dict[str, Sequence[str]]:
    """What each host is cut off from: `all`, a host, `api` or `outside`, with `in` or `out` where it is one way."""
    network = lab.network
    if network is None:
        return {}
    names = {network.cable(host.number): host.name for host in lab.state.hosts} | {API: API, "": "all"}
    outer = {network.outside.port(host.number): host.name for host in lab.state.hosts} | {"": OUTSIDE}
    lost = {
        (known[cut.source], known[cut.target])
        for known, switch in ((names, network.switch), (outer, network.outside.switch))
        for cut in switch.cuts()
        if cut.source in known and cut.target in known
    }
    said: dict[str, Sequence[str]] = {}
    for host in lab.state.hosts:
        others = {far for near, far in lost if near == host.name} | {near for near, far in lost if far == host.name}
        said[host.name] = [
            _way((host.name, other) in lost, (other, host.name) in lost, other) for other in sorted(others)
        ]
    return said


def _way(out: bool, inward: bool, other: str) -> str:
    return other if out and inward else f"{other} ({'out' if out else 'in'})"
