"""The demo's last step: a machine moves to another host while it runs, and then starts elsewhere when that host loses its power.

What is looked at is what a client outside gets from the machine meanwhile. The host that was killed is switched on again, and what
was left on it starts there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from kumulus_lab import asking, commands, deadline, examples, networking, places
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab
from kumulus_lab.ledger import NAMESPACE, Ledger
from kumulus_lab.outside import Outside

MACHINE, ADDRESS, MIGRATION, POOL = "roamer", "roamer", "roamer-moves", "shared"
_SECONDS = 120


def run(ledger: Ledger, console: Console) -> None:
    """Take the steps of examples/operations, then cut a host's power. What was done before is not done again."""
    lab, say = ledger.lab, _Say(console)
    if len(lab.hosts) < 2:
        say("a machine cannot change hosts here: that takes two hosts with real guests (make demo HOSTS=2)")
        return
    network = lab.network
    assert network is not None
    directory = examples.render(lab, examples.OPERATIONS)
    examples.apply(lab.control_plane, directory / "1-pool.yaml")
    deadline.until(
        lambda: ledger.status("storagepool", POOL).get("readyHosts", 0) >= 2, f"pool {POOL} on both hosts", seconds=60
    )
    examples.apply(lab.control_plane, directory / "2-machine.yaml")
    ledger.until("vm", MACHINE, "Running")
    ledger.until("fip", ADDRESS, "Active")
    url = ledger.status("fip", ADDRESS).get("address", "")
    _answers(network.outside, url)
    _move(ledger, say, network.outside, url)
    _fail_over(ledger, say, network.outside, url)


def try_next(lab: Lab, option: str) -> list[str]:
    """Commands to go on with, once `run` is through."""
    lines = [f"kubectl kumulus -n {NAMESPACE} vm migrate {MACHINE}"] if len(lab.hosts) > 1 else []
    lines += ["kubectl kumulus host list"]
    if lab.hosts:
        host = lab.hosts[0].name
        lines += [
            f"kumulus-lab host kill {host}{option}    # cut its power",
            f"kubectl kumulus host confirm-dead {host} --powered-off    # 20 s later: its machines may start elsewhere",
            f"kumulus-lab host start {host}{option}    # boot it again",
        ]
    return lines


class _Say:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, text: str) -> None:
        self._console.print(f"[dim]·[/] {text}")


def _move(ledger: Ledger, say: _Say, client: Outside, address: str) -> None:
    match ledger.phase("vmm", MIGRATION):
        case "Succeeded":
            return
        case "Failed":  # of a demo that was broken off
            ledger.lab.control_plane.kubectl_run("-n", NAMESPACE, "delete", "vmm", MIGRATION)
    before = ledger.status("vm", MACHINE)
    manifest = ledger.lab.directory / "examples" / examples.OPERATIONS.name / "3-migration.yaml"
    with asking.meanwhile(client, f"http://{address}/") as asked:
        began = time.monotonic()
        examples.apply(ledger.lab.control_plane, manifest)
        ledger.until("vmm", MIGRATION, "Succeeded")
        took = time.monotonic() - began
    after = ledger.status("vm", MACHINE)
    if after.get("host") == before.get("host") or after.get("startedAt") != before.get("startedAt"):
        raise LabError(f"machine {MACHINE} was to move from host {before.get('host')}, and says: {after}")
    say(f"machine {MACHINE} moved from {before['host']} to {after['host']} while it ran, in {took:.1f} s")
    say(
        f"a client outside that asked http://{address}/ all the time waited {_gap(asked.answers):.1f} s for an answer at most"
    )


def _fail_over(ledger: Ledger, say: _Say, client: Outside, address: str) -> None:
    lab, before = ledger.lab, ledger.status("vm", MACHINE)
    if before.get("failovers"):
        say(f"machine {MACHINE} was started elsewhere before, when its host was killed: that is not done again")
        return
    host = str(before["host"])
    say(f"cutting the power of {host}, where {MACHINE} runs now, as `kumulus-lab host kill {host}` does")
    with asking.meanwhile(client, f"http://{address}/") as asked:
        lab.kill_host(host)
        try:
            deadline.until(lambda: ledger.phase("host", host) == "Unknown", f"{host} Unknown", seconds=_SECONDS)
            say(f"{host} is silent. Dead, or only cut off? That cannot be told from here, so its machines wait")
            say(f"somebody has looked and says that it is off: kumulusctl host confirm-dead {host} --powered-off")
            _confirm(lab, host)
            ledger.until("vm", MACHINE, "Running")
            after = deadline.until(
                lambda: _elsewhere(ledger.status("vm", MACHINE), host), f"{MACHINE} on another host", seconds=_SECONDS
            )
            _answers(client, address)
        finally:
            lab.start_host(host)
    say(
        f"{MACHINE} runs on {after['host']} now and answers at the same address, {_gap(asked.answers):.0f} s after it last did"
    )
    say(f"{host} has power again, and boots")
    lab.services.wait_for_hosts([host])
    _all_back(ledger)
    say(f"{host} found that {MACHINE} had been taken from it, and started its other machines")


def _all_back(ledger: Ledger) -> None:
    """Wait until all machines are what their owners want."""
    deadline.until(
        lambda: all(machine.settled for machine in examples.machines(ledger.lab.control_plane)),
        "all machines as they were",
        seconds=_SECONDS,
        every=0.5,
    )


def _elsewhere(status: Mapping[str, Any], host: str) -> Mapping[str, Any] | None:
    return status if status.get("phase") == "Running" and status.get("host") not in (None, host) else None


def _confirm(lab: Lab, host: str) -> None:
    argv = [str(places.script("kumulusctl")), "host", "confirm-dead", host, "--powered-off", "--reason", "make demo"]
    commands.run(argv, env={**os.environ, "KUBECONFIG": str(lab.kubeconfig)})


def _gap(answers: asking.Answers | None) -> float:
    if answers is None or answers.silent:
        raise LabError(
            f"{MACHINE} does not answer the client outside any more: kubectl kumulus vm explain {MACHINE} -n {NAMESPACE}"
        )
    return answers.gap


def _answers(client: Outside, address: str) -> None:
    until: Callable[[], bool] = lambda: networking.fetch(client, address) == MACHINE  # noqa: E731
    deadline.until(until, f"an answer of {MACHINE} at http://{address}/ from outside", seconds=_SECONDS, every=0.3)
