"""`kumulus`: run a process of the platform, and see which modules make it what it is."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console
from rich.tree import Tree

from kumulus.kube.errors import KubeError
from kumulus.runtime import logging as kumulus_logging
from kumulus.runtime import settings as process_settings
from kumulus.runtime.modules import ModuleTree, Node, State, discover

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Run a process of Kumulus.")

Include = Annotated[list[str] | None, typer.Option("--module", "-m", help="Module to load, with all below it.")]
Exclude = Annotated[list[str] | None, typer.Option("--without", help="Module to leave out, with all below it.")]


def _settings(
    include: list[str] | None, exclude: list[str] | None, kubeconfig: Path | None = None, http_port: int | None = None
) -> process_settings.ProcessSettings:
    overrides = {"include": include, "exclude": exclude, "kubeconfig": kubeconfig, "http_port": http_port}
    try:
        return process_settings.load(overrides)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except OSError as error:
        raise typer.BadParameter(f"settings: {error}") from error


@app.command()
def run(
    module: Include = None,
    without: Exclude = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="Kubeconfig; default as kubectl.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of /healthz, /readyz and /metrics.")] = None,
) -> None:
    """Run until SIGTERM. The modules that are loaded make the process what it is."""
    from kumulus.runtime.process import Process

    kumulus_logging.configure()

    async def main() -> None:
        kumulus_logging.heed_signals(asyncio.get_running_loop())
        await Process(_settings(module, without, kubeconfig, http_port)).run()

    try:
        uvloop.run(main())
    except (OSError, RuntimeError, KubeError) as error:
        sys.stderr.write(f"kumulus: {error}\n")
        raise typer.Exit(1) from error


@app.command()
def modules(module: Include = None, without: Exclude = None) -> None:
    """Print the module tree: what would be loaded, and why not."""
    settings = _settings(module, without)
    tree = ModuleTree(discover(), include=settings.include, exclude=settings.exclude)
    root = Tree("kumulus")
    branches: dict[str | None, Tree] = {}
    for node in tree.nodes:
        branches[node.name] = branches.get(node.parent, root).add(_label(node))
    Console(soft_wrap=True).print(root)


def _label(node: Node) -> str:
    short = node.name.rpartition(".")[2]
    if node.state is State.LOADED and node.module is not None:
        return f"[bold]{short}[/] [green]loaded[/]  {node.module.description}"
    return f"[dim]{short}[/] [yellow]{node.state}[/]  {node.why}"


def main() -> None:
    """Entry point."""
    app()
