"""`kumulusctl`, also `kubectl kumulus`: Kumulus for people.

Exit codes: 0 done, 1 it did not work, 2 the command line does not make sense. What goes wrong is told in
one sentence; a traceback is shown only when $KUMULUS_DEBUG is set.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from kumulus.cli import (
    console,
    explaining,
    host,
    image,
    importing,
    join,
    lb,
    migrating,
    moving,
    net,
    net_explain,
    overview,
    pool,
    power,
    previewing,
    removal,
    routing,
    snapshot,
    support,
    tracing,
    upload,
    vm,
    volume,
)
from kumulus.cli.problem import Problem
from kumulus.cli.session import remember
from kumulus.cli.terminal import one_line

app = typer.Typer(
    help="Virtual machines, images, volumes, networks and hosts of a Kumulus cloud.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(remember)

_vm = typer.Typer(help="Virtual machines.", no_args_is_help=True)
_image = typer.Typer(help="Disk images.", no_args_is_help=True)
_volume = typer.Typer(help="Volumes: disks with a life of their own.", no_args_is_help=True)
_pool = typer.Typer(help="Storage pools, where disks live.", no_args_is_help=True)
_snapshot = typer.Typer(help="Snapshots of machines and volumes, and restoring them.", no_args_is_help=True)
_net = typer.Typer(help="Networks of tenants.", no_args_is_help=True)
_nic = typer.Typer(help="Network interfaces: addresses with a life of their own.", no_args_is_help=True)
_router = typer.Typer(help="Routers between networks, and to the world.", no_args_is_help=True)
_fip = typer.Typer(help="Floating IPs: addresses of the world that follow interfaces.", no_args_is_help=True)
_lb = typer.Typer(help="Load balancers.", no_args_is_help=True)
_host = typer.Typer(help="Hosts, which run the machines.", no_args_is_help=True)
app.add_typer(_vm, name="vm")
app.add_typer(_image, name="image")
app.add_typer(_volume, name="volume")
app.add_typer(_pool, name="pool")
app.add_typer(_snapshot, name="snapshot")
app.add_typer(_net, name="net")
app.add_typer(_nic, name="nic")
app.add_typer(_router, name="router")
app.add_typer(_fip, name="fip")
app.add_typer(_lb, name="lb")
app.add_typer(_host, name="host")
vm.register(_vm)
power.register(_vm)
console.register(_vm)
explaining.register(_vm)
migrating.register(_vm)
importing.register(_vm)
image.register(_image)
upload.register(_image)
volume.register(_volume)
moving.register(_volume)
pool.register(_pool)
snapshot.register(_snapshot)
net.register(_net, _nic)
tracing.register(_net)
routing.register(_router, _fip)
lb.register(_lb)
net_explain.register(_net, _nic, _router, _fip, _lb)
join.register(_host)
host.register(_host)
previewing.register(_host)
overview.register(app)
removal.register(app)
support.register(app)


_OURS = "kubectl-kumulus"


def _tell(problem: Problem) -> None:
    sys.stderr.write(f"error: {one_line(str(problem))}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    name = "kubectl kumulus" if Path(sys.argv[0]).name == _OURS else "kumulusctl"
    try:
        app(args=list(argv) if argv is not None else None, prog_name=name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except Problem as problem:
        _tell(problem)
        return problem.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("KUMULUS_DEBUG"):
            traceback.print_exc()
        _tell(
            Problem(
                f"This is a fault of kumulusctl itself ({type(error).__name__}: {error}); KUMULUS_DEBUG=1 shows where."
            )
        )
        return 1
    return 0
