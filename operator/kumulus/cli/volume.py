"""`kumulusctl volume`: the volumes of a namespace."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kumulus.api.quantity import to_bytes
from kumulus.api.storage import Volume
from kumulus.api.volumes import CloneMode, VolumeSource
from kumulus.cli import conditions
from kumulus.cli.amounts import age, size
from kumulus.cli.output import Column
from kumulus.cli.progress import line
from kumulus.cli.session import Session, command

Raw = dict[str, Any]

KIND = Volume.KIND


def wanted(volume: Volume) -> int | None:
    """Bytes it has, or shall have; None while that is not known."""
    asked = to_bytes(volume.spec.size) if volume.spec.size else 0
    return max(asked, volume.status.size or 0) or None


def fetch(session: Session, name: str) -> Raw:
    """The volume of that name. Raises `Problem` when there is none."""
    return session.fetch(KIND, name, "volume", "`kumulusctl volume list -A` shows all")


def reason(volume: Volume) -> str:
    """Why it cannot be used, or is not moved, in a word; empty when all is well."""
    for kind in ("Ready", "Moving"):
        found = volume.status.condition(kind)
        if found is not None and found.status != "True":
            return found.reason
    return ""


def where(volume: Volume) -> str:
    """The pool it is in, and the one that it is being moved to: `local > nfs`."""
    status = volume.status
    return f"{status.pool} > {status.moving_to}" if status.moving_to is not None else status.pool or ""


def _list(
    session: Session,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
) -> None:
    """Show the volumes: how large they are, where, and which machine has them."""
    namespace = None if all_namespaces else session.namespace
    raws = session.cluster.objects(KIND, namespace)
    if session.printer.objects(KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[Volume]] = [
        Column("Name", lambda v: v.name),
        Column("Phase", lambda v: v.status.phase or "-"),
        Column("Reason", reason),
        Column("Size", lambda v: size(wanted(v)), right=True),
        Column("Used", lambda v: size(v.status.used), right=True),
        Column("Machine", lambda v: v.status.attached_to.vm if v.status.attached_to else ""),
        Column("Pool", where),
        Column("Progress", lambda v: line(v.status.progress)),
        Column("Host", lambda v: v.status.host or ""),
        Column("Age", lambda v: age(v.metadata.creation_timestamp, now), right=True),
    ]
    if all_namespaces:
        columns.insert(0, Column("Namespace", lambda v: v.namespace or ""))
    there = "in any namespace" if all_namespaces else f"in namespace {namespace} (-A shows all)"
    session.printer.table(columns, map(Volume.parse, raws), empty=f"There are no volumes {there}.")


def _origin(source: VolumeSource) -> str:
    if source.existing is not None:
        return f"data {source.existing.id} in pool {source.existing.pool}"
    kinds = (("image", source.image), ("volume", source.volume), ("snapshot", source.snapshot))
    linked = " (linked to it)" if source.clone_mode is CloneMode.LINKED else ""
    return next(f"{kind} {name}" for kind, name in kinds if name is not None) + linked


def _show(session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the volume.")]) -> None:
    """Show one volume with its conditions."""
    raw = fetch(session, name)
    volume, printer, now = Volume.parse(raw), session.printer, session.now
    if printer.objects(KIND, [raw], many=False):
        return
    status, spec, source = volume.status, volume.spec, volume.spec.source
    begins = _origin(source) if source else "blank"
    printer.facts(
        [
            ("Name", volume.name),
            ("Namespace", volume.namespace or ""),
            ("Phase", status.phase or "-"),
            ("Size", size(wanted(volume))),
            ("Takes", size(status.used) if status.used else ""),
            ("Began as", begins),
            ("Class", spec.volume_class or "the default"),
            ("Pool", status.pool or spec.pool or "not chosen yet"),
            ("Moves to", status.moving_to or ""),
            ("Progress", line(status.progress)),
            ("Host", status.host or ""),
            ("Machine", status.attached_to.vm if status.attached_to else "none"),
            ("When deleted", f"its data: {spec.reclaim_policy}" if spec.reclaim_policy else "as its class says"),
            ("Protected", "from deletion" if spec.deletion_protection else ""),
            ("Created", f"{age(volume.metadata.creation_timestamp, now)} ago"),
            ("Deleted", f"{age(volume.metadata.deletion_timestamp, now)} ago" if volume.deleting else ""),
        ]
    )
    conditions.show(printer, status.conditions, now)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "list")(_list)
    command(app, "show")(_show)
