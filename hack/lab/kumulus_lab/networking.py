"""The demo's step with a network: one machine asks another by its name, where the other's group lets it, and by the address
of a load balancer.

What is looked at is what the guest gets, not what an object's status says. Simulated guests say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from kumulus_lab import deadline, examples
from kumulus_lab.errors import LabError
from kumulus_lab.examples import Machine
from kumulus_lab.lab import Lab

NAMESPACE, SERVER, CLIENT, BALANCER = "quickstart", "web", "client", "site"
_CLOSED = (f"fetched {SERVER}/: {SERVER}", f"fetched {SERVER}:81/: nothing")
_OPENED = (f"fetched {SERVER}:81/: {SERVER}",)
_BALANCED = (f"fetched 10.20.0.80/: {SERVER}",)
_SECONDS = 120

Kumulusctl = Callable[..., str]
"""What it prints."""
Follow = Callable[[Path], list[Machine]]
"""Waits for the machines in rendered manifests."""


def run(lab: Lab, console: Console, kumulusctl: Kumulusctl, follow: Follow) -> list[Machine]:
    """Take the steps of examples/network, and see who reaches whom; its machines. Done once: nothing is applied again."""
    directory = examples.render(lab, examples.NETWORK)
    done = _done(lab, kumulusctl)
    if not done:
        examples.apply(lab.control_plane, directory / "1-network.yaml")
        examples.apply(lab.control_plane, directory / "2-machines.yaml")
    machines = follow(directory)
    hosts = {machine.name: machine.host for machine in machines}
    if done or not set(hosts.values()) <= {host.name for host in lab.hosts}:
        return machines
    _wait(kumulusctl, _CLOSED)
    examples.apply(lab.control_plane, directory / "3-group.yaml")
    _wait(kumulusctl, _OPENED)
    examples.apply(lab.control_plane, directory / "5-load-balancer.yaml")
    _wait(kumulusctl, _BALANCED)
    deadline.until(
        lambda: _serves(lab), f"the load balancer {BALANCER} to say that it serves", seconds=_SECONDS, every=0.5
    )
    console.print(
        f"[dim]·[/] {CLIENT} on {hosts[CLIENT]} reached {SERVER} on {hosts[SERVER]} by its name; port 81 was closed to it,"
        " and then opened; then it reached it by the address of a load balancer"
    )
    return machines


def _serves(lab: Lab) -> bool:
    words = ["-n", NAMESPACE, "get", "lb", BALANCER, "-o", "jsonpath={.status.phase}"]
    return lab.control_plane.kubectl_run(*words, check=False).stdout == "Ready"


def _done(lab: Lab, kumulusctl: Kumulusctl) -> bool:
    found = lab.control_plane.kubectl_run("-n", NAMESPACE, "get", "vm", CLIENT, "-o", "name", check=False)
    return found.returncode == 0 and _BALANCED[0] in _said(kumulusctl)


def _said(kumulusctl: Kumulusctl) -> str:
    return kumulusctl("vm", "logs", CLIENT, "-n", NAMESPACE)


def _wait(kumulusctl: Kumulusctl, lines: Sequence[str]) -> None:
    def probe() -> bool:
        said = _said(kumulusctl)
        return all(line in said for line in lines)

    try:
        deadline.until(probe, f"{' and '.join(lines)} on the console of {CLIENT}", seconds=_SECONDS, every=0.5)
    except LabError as error:
        tail = "\n".join(line for line in _said(kumulusctl).splitlines() if "tick" not in line)
        raise LabError(f"{error}; it says:\n{tail[-2000:]}") from error
