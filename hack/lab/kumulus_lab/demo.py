"""`make demo`: the main job, from nothing to a guest's console, told as it happens."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kumulus_lab import commands, deadline, examples, moving, networking, operating, places, restoring, surviving
from kumulus_lab.errors import LabError
from kumulus_lab.examples import ImageProgress, Machine
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.ledger import Ledger
from kumulus_lab.state import Hypervisor

SIMULATED = 10
_SECONDS = 600
_CONSOLE_LINES = 12
_COLOURS = {"Running": "green", "Failed": "red", "CrashLoopBackOff": "red", "Stopped": "dim"}


def wanted(hosts: str) -> Wanted:
    """What `HOSTS=` asks for: a number of libvirt hosts, or `simulated`."""
    if hosts == Hypervisor.SIMULATED:
        return Wanted(hosts=SIMULATED, hypervisor=Hypervisor.SIMULATED)
    if not hosts.isdigit() or not 1 <= int(hosts) <= 50:
        raise LabError(f"HOSTS={hosts} is neither a number from 1 to 50 nor `simulated`")
    return Wanted(hosts=int(hosts))


def run(lab: Lab, what: Wanted, console: Console) -> None:
    """Bring the lab up, apply the examples, follow them, and show a guest's console and the volumes."""
    start = time.monotonic()
    lab.up(what)
    machines = _apply(lab, examples.QUICKSTART, console)
    machines += _apply(lab, examples.STORAGE, console)
    ledger = Ledger(lab, lambda *words: _kumulusctl(lab, *words).stdout)
    surviving.run(ledger, console)
    console.print(f"[dim]·[/] applying {escape(str(examples.MOVING.relative_to(places.CHECKOUT)))}, step by step")
    moving.run(ledger, console)
    console.print(f"[dim]·[/] applying {escape(str(examples.SNAPSHOTS.relative_to(places.CHECKOUT)))}, step by step")
    restoring.run(ledger, console)
    console.print(f"[dim]·[/] applying {escape(str(examples.NETWORK.relative_to(places.CHECKOUT)))}")
    machines += networking.run(
        lab,
        console,
        ledger.kumulusctl,
        lambda directory: _follow(lab, examples.names(directory), console),
    )
    console.print(f"[dim]·[/] applying {escape(str(examples.OPERATIONS.relative_to(places.CHECKOUT)))}, step by step")
    operating.run(ledger, console)
    console.print()
    console.print(_table(examples.machines(lab.control_plane)))
    _show(lab, "Volumes and snapshots", "volumes,vmsnap", console)
    _show(lab, "Networks and interfaces", "networks.network.kumulus.io,nic", console)
    _show(lab, "The way from the world", "routers,lb,fip", console)
    running = [machine for machine in machines if machine.phase == "Running"]
    if running:
        _show_console(lab, running[0], console)
    _what_next(lab, running, console)
    console.print(f"[dim]took {time.monotonic() - start:.0f} s[/]")


def _apply(lab: Lab, example: Path, console: Console) -> list[Machine]:
    """Apply an example and follow its machines."""
    directory = examples.render(lab, example)
    console.print(f"[dim]·[/] applying {escape(str(example.relative_to(places.CHECKOUT)))}")
    examples.apply(lab.control_plane, directory)
    return _follow(lab, examples.names(directory), console)


def _show(lab: Lab, what: str, kinds: str, console: Console) -> None:
    """What has a life of its own beside machines."""
    console.print(f"\n{what}:")
    listed = lab.control_plane.kubectl_run("get", kinds, "--all-namespaces", check=False)
    for line in listed.stdout.rstrip().splitlines():
        console.print(Text(f"  {line}", style="cyan"))


def _follow(lab: Lab, names: set[tuple[str, str]], console: Console) -> list[Machine]:
    cluster = lab.control_plane
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def probe() -> list[Machine] | None:
            machines = examples.machines(cluster, names)
            live.update(Group(_images(examples.images(cluster)), _table(machines)), refresh=True)
            return machines if all(machine.settled for machine in machines) else None

        try:
            return deadline.until(probe, "the start of every machine", seconds=_SECONDS, every=0.3)
        except LabError as error:
            late = [each for each in examples.machines(cluster, names) if not each.settled]
            said = [_explain(lab, machine) for machine in late[:3]]
            raise LabError("\n".join([f"not every machine runs after {_SECONDS} s:", *said])) from error


def _images(images: list[ImageProgress]) -> Table:
    table = Table("image", "phase", "arrived", show_edge=False)
    for image in images:
        share: ProgressBar | Text = Text("")
        if image.total:
            share = ProgressBar(total=image.total, completed=image.arrived, width=30)
        table.add_row(image.name, _phase(image.phase), share)
    return table


def _table(machines: list[Machine]) -> Table:
    table = Table("namespace", "virtual machine", "phase", "host", "waits for")
    for machine in machines:
        why = "" if machine.settled else machine.why
        table.add_row(machine.namespace, machine.name, _phase(machine.phase), machine.host, escape(why))
    return table


def _phase(phase: str) -> Text:
    return Text(phase, style=_COLOURS.get(phase, "yellow" if phase != "Ready" else "green"))


def _show_console(lab: Lab, machine: Machine, console: Console) -> None:
    """The last lines of a guest's serial console, once it has come as far as its login prompt."""
    argv = ["vm", "logs", machine.name, "--namespace", machine.namespace]

    def said(words: tuple[str, ...]) -> str:
        text = _kumulusctl(lab, *argv).stdout.strip()
        return text if any(word in text for word in words) else ""

    # A guest that runs for long has ticked its prompt out of what is kept.
    words = ("login:", "tick ") if machine.host in {host.name for host in lab.hosts} else ("",)
    try:
        text = deadline.until(lambda: said(words), "a login prompt", seconds=60, every=0.5)
    except LabError:
        text = said(("",))
    lines = [line for line in text.splitlines() if line.strip()]
    # Of the seconds a guest counts, the last one says enough.
    lines = [line for line in lines[:-1] if not line.startswith("kumulus-guest: tick ")] + lines[-1:]
    if lines:
        console.print(f"\nThe serial console of [bold]{escape(machine.name)}[/] ends with:")
        for line in lines[-_CONSOLE_LINES:]:
            console.print(Text(f"  {line}", style="cyan"))


def _explain(lab: Lab, machine: Machine) -> str:
    done = _kumulusctl(lab, "vm", "explain", machine.name, "--namespace", machine.namespace)
    return f"{machine.namespace}/{machine.name} is {machine.phase}: {done.stdout.strip() or machine.why}"


def _kumulusctl(lab: Lab, *words: str) -> commands.Finished:
    env = {**os.environ, "KUBECONFIG": str(lab.kubeconfig)}
    return commands.run([places.script("kumulusctl"), *words], env=env, check=False)


def _what_next(lab: Lab, running: list[Machine], console: Console) -> None:
    option = "" if lab.name == "demo" else f" --name {lab.name}"
    lines = [
        f'eval "$(.venv/bin/kumulus-lab env{option})"    # kubectl, kumulusctl and this cluster',
        "kubectl get vm -A",
    ]
    if running:
        machine = running[0]
        on = f"-n {machine.namespace} {machine.name}"
        lines += [f"kubectl kumulus vm logs {on}", f"kubectl kumulus vm stop {on}", f"kubectl delete vm {on}"]
    lines += networking.try_next(lab, option)
    lines += operating.try_next(lab, option)
    lines += ["make demo-down"]
    console.print("\nWhat to try next:")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
