"""What every command has: the options that all share, the cluster they name, and where to print.

kubectl takes its global options before and after the command's name, so these do too: `command` adds
them to a command's own, and what is given there goes before what was given at the root.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, cast

import pydantic
import typer

from kumulus.api.base import Kind
from kumulus.cli.cluster import Cluster
from kumulus.cli.output import Format, Printer
from kumulus.cli.problem import Problem, sentence
from kumulus.cli.terminal import one_line
from kumulus.kube import errors

P = ParamSpec("P")

COMMON_PANEL = "Options of all commands"

Kubeconfig = Annotated[
    Path | None, typer.Option("--kubeconfig", metavar="FILE", help="Kubeconfig file.", rich_help_panel=COMMON_PANEL)
]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", help="Context of the kubeconfig.", rich_help_panel=COMMON_PANEL),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="Namespace; default is the context's.", rich_help_panel=COMMON_PANEL
    ),
]
Output = Annotated[
    Format | None, typer.Option("--output", "-o", help="How to print objects.", rich_help_panel=COMMON_PANEL)
]


@dataclass(frozen=True, slots=True)
class Options:
    """The options that all commands share; None where nothing was said."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None
    format: Format | None = None

    def over(self, root: Options) -> Options:
        """These, and what they leave open from `root`."""
        names = ("kubeconfig", "context", "namespace", "format")
        return replace(self, **{name: getattr(self, name) or getattr(root, name) for name in names})


@dataclass
class Session:
    """One run of a command. Connects when it is first needed."""

    options: Options = field(default_factory=Options)
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @cached_property
    def cluster(self) -> Cluster:
        """The API server the options name."""
        return Cluster.connect(self.options.kubeconfig, self.options.context)

    @cached_property
    def printer(self) -> Printer:
        """Where to print."""
        return Printer(self.options.format or Format.TABLE)

    @property
    def namespace(self) -> str:
        """The namespace that is meant."""
        return self.options.namespace or self.cluster.namespace

    def fetch(self, kind: Kind, name: str, what: str, hint: str) -> dict[str, Any]:
        """The object of that name, in the namespace that is meant if the kind has any. Raises `Problem` when there is none:
        `what` is the kind in people's words, `hint` how to find what there is."""
        namespace = self.namespace if kind.namespaced else None
        raw = self.cluster.find(kind, name, namespace)
        if raw is None:
            where = f" in namespace {namespace}" if namespace is not None else ""
            raise Problem(f"There is no {what} {one_line(name)}{where}; {hint}.")
        return raw

    @property
    def now(self) -> datetime:
        """The time, for ages."""
        return datetime.now(UTC)


def remember(
    ctx: typer.Context,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
) -> None:
    """The root's callback: options before the command's name."""
    ctx.obj = Options(kubeconfig, context, namespace, output)


def _options(
    ctx: typer.Context,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
    output: Output = None,
) -> Options:
    return Options(kubeconfig, context, namespace, output).over(ctx.obj or Options())


_SHARED = tuple(inspect.signature(_options, eval_str=True).parameters.values())


def _misfit(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return (
        f"A {error.title} of the cluster has a field this kumulusctl does not understand ({where}: {first['msg']}); "
        "use the kumulusctl of the version that is installed there."
    )


def command(app: typer.Typer, name: str) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[P, None]]:
    """Register a function as a command of `app`. It is called with the `Session` and its own arguments."""

    def register(function: Callable[Concatenate[Session, P], None]) -> Callable[P, None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        taken = {parameter.name for parameter in own}
        shared = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in _SHARED if p.name not in taken]

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            said = {p.name: kwargs.pop(p.name) for p in shared}
            session = Session(_options(**said))
            try:
                function(session, *args, **kwargs)
            except errors.KubeError as error:
                raise Problem(sentence(error, server=session.cluster.server)) from error
            except pydantic.ValidationError as error:
                raise Problem(_misfit(error)) from error

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        cast(Any, run).__signature__ = inspect.Signature([*parameters, *shared])
        run.__annotations__ = {p.name: p.annotation for p in (*parameters, *shared)}
        del run.__wrapped__
        app.command(name)(run)
        return cast(Callable[P, None], run)

    return register
