"""`make demo`: the main job, from nothing to a guest's console, told as it happens."""

from __future__ import annotations

from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor

SIMULATED = 10


def wanted(hosts: str) -> Wanted:
    """What `HOSTS=` asks for: a number of libvirt hosts, or `simulated`."""
    if hosts == Hypervisor.SIMULATED:
        return Wanted(hosts=SIMULATED, hypervisor=Hypervisor.SIMULATED)
    if not hosts.isdigit() or not 1 <= int(hosts) <= 50:
        raise LabError(f"HOSTS={hosts} is neither a number from 1 to 50 nor `simulated`")
    return Wanted(hosts=int(hosts))


def run(lab: Lab, what: Wanted) -> None:
    """Bring the lab up and run the examples."""
    lab.up(what)
