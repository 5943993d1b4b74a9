"""`kumulusctl volume move`: bring a volume into another pool, and say how far that is."""

from __future__ import annotations

from typing import Annotated

import typer

from kumulus.api.base import ConditionStatus
from kumulus.api.storage import Volume
from kumulus.cli import progress
from kumulus.cli import volume as volumes
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line

STEP = 10
"""Where there is no terminal, progress is told in steps of so many percent."""


def said(volume: Volume) -> str:
    """How far its move is, or why it does not get on; empty when it is not moved. Pure."""
    moving = volume.status.condition("Moving")
    if moving is not None and moving.status is not ConditionStatus.TRUE:
        return f"{moving.reason}: {one_line(moving.message)}"
    if volume.status.moving_to is None:
        return ""
    return progress.line(volume.status.progress) or "begun"


def ended(volume: Volume, pool: str) -> bool:
    """Whether the volume is where it was sent, by a status that answers its present spec. Pure.

    Raises `Problem` when it will not get there unless somebody does something.
    """
    status = volume.status
    if (status.observed_generation or 0) < volume.metadata.generation:
        return False
    if status.pool == pool and status.moving_to is None:
        return True
    if volume.spec.pool != pool:
        raise Problem(
            f"Volume {volume.name} was sent elsewhere meanwhile: its spec.pool is {volume.spec.pool or 'empty'}."
        )
    stalled = status.condition("Stalled")
    if stalled is not None and stalled.status is ConditionStatus.TRUE:
        raise Problem(f"Volume {volume.name} does not get on ({stalled.reason}): {one_line(stalled.message)}")
    return False


class _Teller:
    """Says how far it is beside the answer: on a terminal in one line that changes, else now and then."""

    def __init__(self, session: Session) -> None:
        self._out = session.printer.err
        self._told = ""

    def tell(self, volume: Volume) -> None:
        text, at = said(volume), volume.status.progress
        if self._out.is_terminal:
            self._out.print(f"{volume.name}: {text}\x1b[K", end="\r")
            return
        step = f"{100 * at.bytes // at.total // STEP * STEP}%" if at is not None and at.total else text
        if text and step != self._told:
            self._told = step
            self._out.print(f"{volume.name}: {text}")

    def done(self) -> None:
        if self._out.is_terminal:
            self._out.print("\x1b[K", end="\r")


def await_moved(session: Session, name: str, pool: str, seconds: float) -> None:
    """Follow the volume until it is in that pool. Raises `Problem` when that cannot be, or is not in time."""
    teller, last = _Teller(session), ""
    try:
        for raw in session.cluster.follow(Volume.KIND, name, session.namespace, seconds=seconds):
            if raw is None:
                raise Problem(f"The volume {one_line(name)} was deleted meanwhile.")
            volume = Volume.parse(raw)
            if ended(volume, pool):
                teller.done()
                session.printer.done(Volume.KIND, raw, f"is in pool {pool}")
                return
            last = said(volume)
            teller.tell(volume)
    finally:
        teller.done()
    how = f" ({last})" if last else ""
    raise Problem(
        f"{name} is not in pool {pool} after {seconds:g}s{how}; it goes on, and `kumulusctl volume show {name}`."
    )


def _move(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="VOLUME", help="Name of the volume.")],
    to: Annotated[str, typer.Option("--to", metavar="POOL", help="Name of the pool it is to be in.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is there.")] = False,
    timeout: Annotated[float, typer.Option(min=1, max=604800, help="Seconds to wait.")] = 86400,
) -> None:
    """Move a volume into another pool of its host, also while a machine uses it. To its old pool: take the move back."""
    before = Volume.parse(volumes.fetch(session, name))
    raw = session.cluster.patch(Volume.KIND, name, {"spec": {"pool": to}}, session.namespace)
    status = before.status
    if status.pool is None:
        session.printer.done(Volume.KIND, raw, f"will be made in pool {to}, with its first machine")
    elif status.pool == to and status.moving_to is None:
        session.printer.done(Volume.KIND, raw, f"is in pool {to} already")
    elif wait:
        await_moved(session, name, to, timeout)
    elif status.pool == to:
        session.printer.done(Volume.KIND, raw, f"will stay in pool {to}, or come back should it be moved already")
    else:
        session.printer.done(Volume.KIND, raw, f"will be moved to pool {to}: kumulusctl volume show {name}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "move")(_move)
