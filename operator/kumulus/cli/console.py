"""`kumulusctl vm logs`: what a machine printed on its serial console.

A ConsoleRequest asks for it once; the host's agent reads the log, a controller hands it back in the
request's status. What the guest printed is shown without anything that a terminal would obey.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from kumulus.api.compute import VirtualMachine
from kumulus.api.console import ConsoleRequest
from kumulus.cli import vm as machines
from kumulus.cli.overlap import new_part
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import Filter, one_line, printable
from kumulus.cli.vm import Name
from kumulus.kube import errors

Raw = dict[str, Any]

KIND = ConsoleRequest.KIND

WINDOW = 65536
WINDOW_MAX = 262144
ANSWER_SECONDS = 40.0
"""Longer than the controllers wait for a host, so that theirs is the answer."""
TTL_SECONDS = 60
PAUSE = 1.0
"""Seconds between two looks of --follow: each is an object made, answered and deleted."""


def read(session: Session, vm: str, *, max_bytes: int) -> str:
    """The end of the console's log, unfiltered. Raises `Problem` when it cannot be had."""
    made = session.cluster.create(
        KIND,
        {
            "metadata": {"generateName": f"{vm[:40]}-log-"},
            "spec": {"vm": vm, "type": "Log", "maxBytes": max_bytes, "ttlSeconds": TTL_SECONDS},
        },
        session.namespace,
    )
    name = made["metadata"]["name"]
    try:
        return _answer(session, vm, name)
    finally:
        with contextlib.suppress(errors.KubeError):  # it deletes itself after its TTL
            session.cluster.delete(KIND, name, session.namespace, uid=made["metadata"]["uid"])


def _answer(session: Session, vm: str, name: str) -> str:
    for raw in session.cluster.follow(KIND, name, session.namespace, seconds=ANSWER_SECONDS):
        if raw is None:
            raise Problem(f"The request for the console of {vm} was deleted before it was answered; try again.")
        request = ConsoleRequest.parse(raw)
        if request.status.phase == "Ready":
            return request.status.log or ""
        if request.status.phase == "Failed":
            raise Problem(f"The console of {vm} cannot be read: {_why(request)}")
    raise Problem(
        f"Nobody answered for the console of {vm} within {ANSWER_SECONDS:g}s: its host or the controllers may be "
        f"down; `kumulusctl vm explain {vm}` says more."
    )


def _why(request: ConsoleRequest) -> str:
    ready = request.status.condition("Ready")
    if ready is None or not (ready.message or ready.reason):
        return "no reason was given."
    return one_line(ready.message or ready.reason)


def tail(text: str, lines: int | None) -> str:
    """The last so many lines; all when None. Pure."""
    if lines is None:
        return text
    kept = text.splitlines(keepends=True)[-lines:] if lines else []
    return "".join(kept)


def _logs(
    session: Session,
    name: Name,
    lines: Annotated[
        int | None, typer.Option("--tail", min=0, help="Only so many lines from the end.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
) -> None:
    """Show what a machine printed on its serial console: 64 KiB at most, 256 with --tail."""
    VirtualMachine.parse(machines.fetch(session, name))
    window = WINDOW if lines is None else WINDOW_MAX
    before = read(session, name, max_bytes=window)
    if not before:
        session.printer.note(f"{name} has printed nothing on its console yet.")
    screen = Filter()
    screen.feed(before)
    shown = tail(printable(before), lines)
    session.printer.text(shown, end="" if follow or shown.endswith("\n") or not shown else "\n")
    while follow:
        session.sleep(PAUSE)
        after = read(session, name, max_bytes=WINDOW)
        if not after:
            continue
        fresh, missed = new_part(before, after)
        if missed:
            session.printer.note("--- some output was missed ---")
        session.printer.text(screen.feed(fresh), end="")
        before = after


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "logs")(_logs)
