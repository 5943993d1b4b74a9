"""The demo's step with networks: two tiers behind a router, and an address of the world that leads to the web tier.

What is looked at is what guests and a client outside get, not what an object's status says. Simulated hosts carry no packets:
of them the step shows what statuses say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kumulus_lab import deadline, examples, outside
from kumulus_lab.errors import LabError
from kumulus_lab.examples import Machine
from kumulus_lab.lab import Lab
from kumulus_lab.outside import Outside

NAMESPACE, ROUTER, BALANCER, ADDRESS = "quickstart", "main", "site", "site"
WEB, DATABASE = ("web-1", "web-2"), "db"
DATABASE_AT, DATABASE_PORT, BACK = "10.20.1.10", 5432, "10.20.1.0/24"
"""As examples/network has them."""
_KINDS = ("Router", "LoadBalancer", "FloatingIP")
_DONE = ("Active", "Ready")
_SECONDS = 120

Kumulusctl = Callable[..., str]
"""What it prints."""
Follow = Callable[[Path], list[Machine]]
"""Waits for the machines in rendered manifests."""


@dataclass(frozen=True, slots=True)
class Part:
    """A router, a load balancer or a floating address, as its status tells."""

    kind: str
    name: str
    phase: str
    address: str
    why: str
    """What it waits for, in a sentence."""

    @property
    def settled(self) -> bool:
        """Whether it does what it is for."""
        return self.phase in _DONE


def run(lab: Lab, console: Console, kumulusctl: Kumulusctl, follow: Follow) -> list[Machine]:
    """Apply examples/network and see who reaches whom; its machines. Repeated, it changes nothing and looks from outside: what
    somebody tried meanwhile stays."""
    directory = examples.render(lab, examples.NETWORK)
    again = "FloatingIP" in _parts(lab)  # the last of it
    if not again:
        examples.apply(lab.control_plane, directory)
    machines = follow(directory)
    network = lab.network
    carried = network is not None and {machine.host for machine in machines} <= {host.name for host in lab.hosts}
    if again:
        if network is not None and carried:
            _look(network.outside, _parts(lab).get("FloatingIP", _NONE).address, console)
        return machines
    parts = _follow(lab, console)
    if network is None or not carried:
        console.print("[dim]·[/] simulated hosts carry no packets: who reaches whom cannot be seen here")
        return machines
    address, router = parts["FloatingIP"].address, parts["Router"].address
    _answers(network.outside, address)
    console.print(f"[dim]·[/] from outside, http://{address}/ is answered by {' and '.join(WEB)}, by a load balancer")
    for name in WEB:
        fetched = f"fetched {DATABASE_AT}:{DATABASE_PORT}/: {DATABASE}"
        _wait(kumulusctl, name, [fetched, f"fetched {outside.WORLD[0]}/: you are {router}"])
    console.print(
        f"[dim]·[/] {' and '.join(WEB)} reach {DATABASE} through the router, and the world, which sees them as {router}"
    )
    refuse(network.outside, router)
    console.print(f"[dim]·[/] {DATABASE} is not reached from outside, not even by a route through the router")
    return machines


def try_next(lab: Lab, option: str) -> list[str]:
    """Commands to go on with, once `run` is through."""
    address = _parts(lab).get("FloatingIP", _NONE).address
    if lab.network is None or not address:
        return []
    return [
        f"kumulus-lab outside exec{option} -- busybox wget -q -O - http://{address}/    # as the client outside",
        f"kubectl kumulus -n {NAMESPACE} router show {ROUTER}",
        f"kubectl kumulus -n {NAMESPACE} lb show {BALANCER}",
    ]


def fetch(client: Outside, address: str) -> str:
    """What the client outside gets from http://ADDRESS/; empty when it gets nothing within two seconds."""
    # Debian's static busybox does not survive its own option -T.
    asked = client.exec(["timeout", "2", "busybox", "wget", "-q", "-O", "-", f"http://{address}/"], check=False)
    return asked.stdout.strip()


def refuse(client: Outside, router: str) -> None:
    """Raises LabError when the client outside reaches the database, for which it has a route through the router."""
    route = ["ip", "route", "replace", BACK, "via", router]
    client.exec(route)
    try:
        got = fetch(client, f"{DATABASE_AT}:{DATABASE_PORT}")
    finally:
        client.exec(["ip", "route", "delete", BACK], check=False)
    if got:
        raise LabError(f"the client outside reached {DATABASE} at {DATABASE_AT}:{DATABASE_PORT}, and got: {got[:200]}")


def _look(client: Outside, address: str, console: Console) -> None:
    """Say who answers from outside; nobody may, for somebody may have changed that."""
    try:
        got = deadline.until(lambda: fetch(client, address), "an answer", seconds=10) if address else ""
    except LabError:
        got = ""
    console.print(f"[dim]·[/] from outside, http://{address or '-'}/ is answered by {escape(got) or 'nobody'}")


def _answers(client: Outside, address: str) -> None:
    seen: set[str] = set()

    def probe() -> bool:
        seen.add(fetch(client, address))
        return set(WEB) <= seen

    try:
        deadline.until(probe, f"answers of {' and '.join(WEB)} at http://{address}/ from outside", seconds=_SECONDS)
    except LabError as error:
        got = ", ".join(sorted(filter(None, seen))) or "nothing"
        raise LabError(f"{error}; what the client outside got: {got[:500]}") from error


_NONE = Part(kind="", name="", phase="Pending", address="", why="")


def _parts(lab: Lab) -> dict[str, Part]:
    """Those of the example, by kind, as far as they are there."""
    words = ["-n", NAMESPACE, "get", "routers,loadbalancers,floatingips", "-o", "json"]
    output = lab.control_plane.kubectl_run(*words, check=False).stdout
    items = json.loads(output or "{}").get("items", [])
    found = {str(item["kind"]): item for item in items if item["metadata"]["name"] in (ROUTER, BALANCER, ADDRESS)}
    return {kind: _part(found[kind]) for kind in _KINDS if kind in found}


def _part(item: Mapping[str, Any]) -> Part:
    status = item.get("status", {})
    addresses = [status.get("externalAddress"), status.get("address"), *status.get("addresses", [])]
    ready: Mapping[str, Any] = next((each for each in status.get("conditions", []) if each["type"] == "Ready"), {})
    return Part(
        kind=str(item["kind"]),
        name=str(item["metadata"]["name"]),
        phase=str(status.get("phase", "Pending")),
        address=next((str(one) for one in addresses if one), ""),
        why="" if ready.get("status") == "True" else str(ready.get("message", "")),
    )


def _follow(lab: Lab, console: Console) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def probe() -> bool:
            parts.update(_parts(lab))
            live.update(_table(parts), refresh=True)
            return all(parts.get(kind, _NONE).settled for kind in _KINDS)

        try:
            deadline.until(probe, "the router, the load balancer and the floating address", seconds=_SECONDS, every=0.3)
        except LabError as error:
            late = [
                f"{part.kind} {part.name} is {part.phase}: {part.why}" for part in parts.values() if not part.settled
            ]
            raise LabError("\n".join([str(error), *late])) from error
    return parts


def _table(parts: Mapping[str, Part]) -> Table:
    table = Table("kind", "name", "phase", "address", "waits for")
    for kind in _KINDS:
        part = parts.get(kind, _NONE)
        colour = "green" if part.settled else "yellow"
        table.add_row(
            kind, part.name, Text(part.phase, style=colour), part.address, "" if part.settled else Text(part.why)
        )
    return table


def _wait(kumulusctl: Kumulusctl, machine: str, lines: Sequence[str]) -> None:
    def said() -> str:
        return kumulusctl("vm", "logs", machine, "-n", NAMESPACE)

    def probe() -> bool:
        text = said()
        return all(line in text for line in lines)

    try:
        deadline.until(probe, f"{' and '.join(lines)} on the console of {machine}", seconds=_SECONDS, every=0.5)
    except LabError as error:
        tail = "\n".join(line for line in said().splitlines() if "tick" not in line)
        raise LabError(f"{error}; it says:\n{tail[-2000:]}") from error
