"""`kumulus-lab`: the lab by its commands. Parses, calls, prints; what is done is done elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from kumulus_lab import binaries, cuts, demo, images, installed, kind, links, machine, places, state, status
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.processes import Daemon
from kumulus_lab.state import Hypervisor, Networking

app = typer.Typer(
    help="A Kubernetes control plane and any number of hosts on this machine, to develop and try Kumulus.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
host_app = typer.Typer(help="The libvirt hosts of a lab.", no_args_is_help=True)
app.add_typer(host_app, name="host")
link_app = typer.Typer(
    help="The links between hosts, to the API server and to the network outside.", no_args_is_help=True
)
app.add_typer(link_app, name="link")
outside_app = typer.Typer(help="The network outside, and the client in it.", no_args_is_help=True)
app.add_typer(outside_app, name="outside")

_console = Console(stderr=True, highlight=False, soft_wrap=True)

Name = Annotated[str, typer.Option("--name", envvar="KUMULUS_LAB", help="Which lab.")]


def _say(text: str) -> None:
    _console.print(f"[dim]·[/] {escape(text)}")


def _lab(name: str) -> Lab:
    return Lab(name, _say)


@app.command()
def up(
    name: Name = state.DEFAULT,
    hosts: Annotated[int, typer.Option(min=0, help="How many hosts.")] = 2,
    hypervisor: Annotated[Hypervisor, typer.Option(help="What runs machines on them.")] = Hypervisor.LIBVIRT,
    networking: Annotated[
        Networking | None, typer.Option("--network", help="What makes machines' networks.", show_default="linux")
    ] = None,
    controllers: Annotated[bool, typer.Option(help="Run Kumulus' controllers.")] = True,
    agents: Annotated[bool, typer.Option(help="Run an agent on each host.")] = True,
) -> None:
    """Bring a lab up; finds what runs already."""
    lab = _lab(name)
    wanted = Wanted(hosts=hosts, hypervisor=hypervisor, controllers=controllers, agents=agents, networking=networking)
    lab.up(wanted)
    _console.print(f"lab {name} is up: [bold]export KUBECONFIG={lab.kubeconfig}[/]")


@app.command()
def down(
    name: Name = state.DEFAULT,
    every: Annotated[bool, typer.Option("--all", help="Every lab of this checkout.")] = False,
) -> None:
    """Take a lab down; nothing of it stays outside the cache. May be repeated."""
    found = [path.name for path in sorted(places.labs().glob("*")) if path.is_dir()] if every else [name]
    for each in found:
        _lab(each).down()
        _console.print(f"lab {each} is gone")


@app.command("status")
def show(name: Name = state.DEFAULT) -> None:
    """Show what runs and where the logs are."""
    lab = _lab(name)
    out = Console()
    out.print(status.processes(lab))
    if lab.state.hosts:
        out.print(status.hosts(lab))
        out.print(status.outside(lab))


@app.command("demo")
def run_demo(
    hosts: Annotated[str, typer.Option(help="How many libvirt hosts, or `simulated`.")] = "2",
    name: Name = state.DEFAULT,
) -> None:
    """Bring a lab up and run the examples on it."""
    demo.run(_lab(name), demo.wanted(hosts), Console(highlight=False, soft_wrap=not sys.stdout.isatty()))


@app.command()
def prepare(
    kubernetes: Annotated[bool, typer.Option(help="The Kubernetes programs.")] = True,
    image: Annotated[list[str] | None, typer.Option(help="A guest image, such as tiny or debian.")] = None,
    libvirt: Annotated[bool, typer.Option(help="All guest images, where there can be libvirt hosts.")] = False,
    control_plane: Annotated[bool, typer.Option("--control-plane", help="What labs of tests begin with.")] = False,
) -> None:
    """Make what the lab needs and the cache has not yet."""
    os.environ["PATH"] = machine.path()
    if kubernetes:
        binaries.ensure(_say)
    wanted = list(image or [])
    if libvirt:
        if (why := machine.why_no_libvirt()) is not None:
            _say(why)
        else:
            wanted = list(images.NAMES)
    for each in wanted:
        images.ensure(each, _say)
    if control_plane:
        os.environ.setdefault(kind.CHOICE, "native")
        installed.ensure(_say)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def kubectl(context: typer.Context, name: Name = state.DEFAULT) -> None:
    """Run kubectl as the lab's administrator."""
    lab = _lab(name)
    _ = lab.state
    os.environ["KUBECONFIG"] = str(lab.kubeconfig)
    os.execv(lab.control_plane.kubectl, ["kubectl", *context.args])  # noqa: S606


@app.command()
def env(name: Name = state.DEFAULT) -> None:
    """Print what to export: `eval "$(kumulus-lab env)"`."""
    lab = _lab(name)
    _ = lab.state
    out = {
        "KUBECONFIG": lab.kubeconfig,
        "KUMULUS_LAB": name,
        "KUMULUS_LAB_AUDIT_LOG": lab.audit_log,
        "KUMULUS_LAB_IMAGES": lab.image_url,
        "PATH": f"{lab.control_plane.kubectl.parent}:{Path(sys.executable).parent}:$PATH",
    }
    for key, value in out.items():
        print(f'export {key}="{value}"')


@app.command("images")
def show_images(names: list[str], name: Name = state.DEFAULT) -> None:
    """Serve guest images to the lab's hosts, and print their addresses and checksums."""
    lab = _lab(name)
    for each in names:
        image = lab.serve_image(each)
        print(f"{lab.image_url}/{each}.qcow2 {image.sha256}")


@app.command()
def logs(
    component: Annotated[str | None, typer.Argument(help="A process, such as controllers or h1-agent.")] = None,
    name: Name = state.DEFAULT,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
) -> None:
    """Print the log of a process of the lab; without a name, which logs there are."""
    lab = _lab(name)
    _ = lab.state
    if component is None:
        for path in sorted((lab.directory / "logs").glob("*.log")):
            print(f"{path.stem:32} {path}")
        return
    log = Daemon.within(lab.directory, component).log
    if not log.exists():
        raise LabError(f"lab {name} has no log {component}; `kumulus-lab logs` lists them")
    os.execvp("tail", ["tail", "-n", str(lines), *(["-F"] if follow else []), str(log)])  # noqa: S606, S607


@app.command()
def restart(
    what: Annotated[str, typer.Argument(help="apiserver, controllers, fleet or agent.")],
    host: Annotated[str | None, typer.Argument(help="The host, for an agent.")] = None,
    name: Name = state.DEFAULT,
) -> None:
    """Restart a process of the lab, with the code as it is now."""
    lab = _lab(name)

    def agent() -> None:
        for each in [lab.host(host)] if host else lab.hosts:
            each.daemon("agent").stop()
            lab.start_host(each.name)

    def controllers() -> None:
        lab.services.controllers.stop()
        lab.services.start_controllers()

    def fleet() -> None:
        lab.services.fleet.stop()
        lab.services.start_fleet()

    ways: dict[str, Callable[[], None]] = {
        "apiserver": lambda: lab.control_plane.restart_apiserver(),
        "controllers": controllers,
        "fleet": fleet,
        "agent": agent,
    }
    if what not in ways:
        raise LabError(f"cannot restart '{what}'; what can be restarted: {', '.join(ways)}")
    ways[what]()


@host_app.command("list")
def host_list(name: Name = state.DEFAULT) -> None:
    """The libvirt hosts of a lab."""
    Console().print(status.hosts(_lab(name)))


@host_app.command("add")
def host_add(host: str, name: Name = state.DEFAULT, agent: bool = True) -> None:
    """Add a libvirt host to a lab."""
    lab = _lab(name)
    lab.add_host(host, agent=agent)
    if agent:
        lab.services.wait_for_hosts([host])


@host_app.command("kill")
def host_kill(host: str, name: Name = state.DEFAULT) -> None:
    """Cut a host's power: its guests, libvirt and agent end at once."""
    _lab(name).kill_host(host)


@host_app.command("start")
def host_start(host: str, name: Name = state.DEFAULT, agent: bool = True) -> None:
    """Boot a host again, with the disks and domains it had."""
    _lab(name).start_host(host, agent=agent)


@host_app.command(
    "exec",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def host_exec(context: typer.Context, host: str, name: Name = state.DEFAULT) -> None:
    """Run a command in a host: `kumulus-lab host exec h1 -- virsh list`."""
    raise typer.Exit(_lab(name).host(host).exec_here(context.args or ["bash", "-i"]))


Other = Annotated[str | None, typer.Argument(help="Another host, `api` or `outside`; if none: all, but `outside`.")]


@link_app.command("cut")
def link_cut(
    host: str,
    other: Other = None,
    name: Name = state.DEFAULT,
    direction: Annotated[cuts.Direction, typer.Option(help="Which way is cut, as HOST sees it.")] = cuts.Direction.BOTH,
) -> None:
    """Cut a link of a host; its guests go on."""
    lab = _lab(name)
    (links.between(lab, host, other) if other else links.of(lab, host)).cut(direction)


@link_app.command("slow")
def link_slow(
    host: str,
    rate: Annotated[str, typer.Argument(help="Such as 10mbit, each way.")],
    outside: Annotated[bool, typer.Option("--outside", help="The link to the network outside.")] = False,
    name: Name = state.DEFAULT,
) -> None:
    """Let a host's cable carry no more than so many bits a second: what is more waits up to 300 ms, then it is lost."""
    lab = _lab(name)
    (links.between(lab, host, cuts.OUTSIDE) if outside else links.of(lab, host)).slow(rate)


@link_app.command("heal")
def link_heal(host: str, other: Other = None, name: Name = state.DEFAULT) -> None:
    """Undo what was done to a host's link to another; to all its links but that to `outside`, when no other is named."""
    lab = _lab(name)
    (links.between(lab, host, other) if other else links.of(lab, host)).heal()


@outside_app.command(
    "exec",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def outside_exec(context: typer.Context, name: Name = state.DEFAULT) -> None:
    """Run a command as the client outside: `kumulus-lab outside exec -- ping 198.51.100.20`."""
    network = _lab(name).network
    if network is None:
        raise LabError(f"lab {name} has simulated hosts only, and so nothing outside")
    raise typer.Exit(network.outside.exec_here(context.args or ["bash", "-i"]))


def main() -> None:
    """Run the command; a LabError is one sentence on standard error and status 1."""
    try:
        app()
    except LabError as error:
        _console.print(f"[red]kumulus-lab:[/] {escape(str(error))}")
        sys.exit(1)
