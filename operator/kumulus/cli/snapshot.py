"""`kumulusctl snapshot`: what is kept of volumes and machines, and giving it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from kumulus.api.base import Kind
from kumulus.api.machine_snapshot import (
    FINISHED,
    KeptDisk,
    RestorePhase,
    RestoreState,
    VirtualMachineRestore,
    VirtualMachineSnapshot,
)
from kumulus.api.snapshots import QuiesceMode, SnapshotPhase
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.api.volumes import CloneMode
from kumulus.cli import conditions
from kumulus.cli.amounts import age, size
from kumulus.cli.output import Column, qualified
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line

Raw = dict[str, Any]
AnySnapshot = VirtualMachineSnapshot | VolumeSnapshot

KEPT_SECONDS = 86400
"""Restores that this command made delete themselves a day after they have ended."""

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the snapshot.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")]
Timeout = Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")]


def parse(raw: Raw) -> AnySnapshot:
    """The typed view, by the kind the object says it is."""
    if raw.get("kind") == VirtualMachineSnapshot.KIND.kind:
        return VirtualMachineSnapshot.parse(raw)
    return VolumeSnapshot.parse(raw)


def of(item: AnySnapshot) -> str:
    """What it is of: `vm/web1`, `volume/data`."""
    return f"vm/{item.spec.vm}" if isinstance(item, VirtualMachineSnapshot) else f"volume/{item.spec.volume}"


def part_of(item: AnySnapshot) -> str | None:
    """Name of the machine's snapshot that it is a part of."""
    owners = (owner for owner in item.metadata.owner_references if owner.kind == VirtualMachineSnapshot.KIND.kind)
    return next((owner.name for owner in owners), None)


def _reason(item: AnySnapshot | VirtualMachineRestore) -> str:
    ready = item.status.condition("Ready")
    return ready.reason if ready is not None and ready.status != "True" else ""


def _list(
    session: Session,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
    parts: Annotated[bool, typer.Option("--parts", help="Also the single volumes of machines' snapshots.")] = False,
) -> None:
    """Show the snapshots: of what, since when, and how far they can be trusted."""
    namespace, cluster = None if all_namespaces else session.namespace, session.cluster
    raws = cluster.objects(VirtualMachineSnapshot.KIND, namespace) + cluster.objects(VolumeSnapshot.KIND, namespace)
    raws = [raw for raw in raws if parts or part_of(parse(raw)) is None]
    if session.printer.format == "name":
        for raw in raws:
            session.printer.objects(parse(raw).KIND, [raw], many=False)
        return
    if session.printer.objects(VolumeSnapshot.KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[AnySnapshot]] = [
        Column("Name", lambda s: s.name),
        Column("Of", of),
        Column("Phase", lambda s: s.status.phase or "-"),
        Column("Reason", _reason),
        Column("Size", lambda s: size(s.status.size), right=True),
        Column("Used", lambda s: size(s.status.used), right=True),
        Column("Taken", lambda s: age(s.status.taken_at, now), right=True),
        Column("Indications", lambda s: ", ".join(s.status.indications)),
    ]
    if all_namespaces:
        columns.insert(0, Column("Namespace", lambda s: s.namespace or ""))
    where = "in any namespace" if all_namespaces else f"in namespace {namespace} (-A shows all)"
    session.printer.table(columns, map(parse, raws), empty=f"There are no snapshots {where}.")


def _fetch(session: Session, name: str) -> Raw:
    """The snapshot of that name: a machine's, else a volume's. Raises `Problem` when there is none."""
    for kind in (VirtualMachineSnapshot.KIND, VolumeSnapshot.KIND):
        raw = session.cluster.find(kind, name, session.namespace)
        if raw is not None:
            return {"kind": kind.kind, "apiVersion": kind.api_version, **raw}
    raise Problem(
        f"There is no snapshot {one_line(name)} in namespace {session.namespace}; `kumulusctl snapshot list -A` shows all."
    )


def _disk(disk: KeptDisk, *, apart: bool) -> str:
    """One volume of a machine's snapshot; with its host when they are on several."""
    where = f", host {disk.host}" if apart and disk.host is not None else ""
    return f"{disk.disk} (volume {disk.volume}, {size(disk.size)}{where})"


def _show(session: Session, name: Name) -> None:
    """Show one snapshot with its conditions: of a machine, else of a volume."""
    raw = _fetch(session, name)
    item, printer, now = parse(raw), session.printer, session.now
    if printer.objects(item.KIND, [raw], many=False):
        return
    status, owner = item.status, part_of(item)
    taken = f"{age(status.taken_at, now)} ago ({status.taken_at})" if status.taken_at else "not yet"
    disks: list[str] = []
    left_out: list[str] = []
    if isinstance(item, VirtualMachineSnapshot):
        disks = [_disk(disk, apart=status.host is None) for disk in item.status.volumes]
        left_out = [f"{disk.disk} ({disk.reason})" for disk in item.status.left_out]
    printer.facts(
        [
            ("Name", item.name),
            ("Namespace", item.namespace or ""),
            ("Of", of(item)),
            ("Part of", f"VirtualMachineSnapshot {owner}" if owner else ""),
            ("Phase", status.phase or "-"),
            ("Taken", taken),
            ("Indications", ", ".join(status.indications)),
            ("Disks", ", ".join(disks)),
            ("Not included", ", ".join(left_out)),
            ("Size", size(status.size)),
            ("Takes", size(status.used) if status.used is not None else ""),
            ("Host", status.host or ""),
            ("Protected", "from deletion" if item.spec.deletion_protection else ""),
            ("Deleted", f"{age(item.metadata.deletion_timestamp, now)} ago" if item.deleting else ""),
        ]
    )
    conditions.show(printer, status.conditions, now)


def _create(
    session: Session,
    name: Name,
    vm: Annotated[str | None, typer.Option(metavar="NAME", help="All volumes of that machine, at one instant.")] = None,
    volume: Annotated[str | None, typer.Option(metavar="NAME", help="That volume alone.")] = None,
    quiesce: Annotated[
        QuiesceMode, typer.Option(help="Whether the guest is brought to rest for it.")
    ] = QuiesceMode.IF_POSSIBLE,
    wait: Wait = True,
    timeout: Timeout = 120,
) -> None:
    """Take a snapshot of a machine or of a volume."""
    if (vm is None) == (volume is None):
        raise Problem("Say what the snapshot is of: either --vm NAME or --volume NAME.", exit_code=2)
    kind = VirtualMachineSnapshot.KIND if vm is not None else VolumeSnapshot.KIND
    spec = {"vm": vm} if vm is not None else {"volume": volume}
    body = {"metadata": {"name": name}, "spec": {**spec, "quiesce": {"mode": quiesce.value}}}
    raw = session.cluster.create(kind, body, session.namespace)
    if not wait:
        session.printer.done(kind, raw, "will be taken")
        return

    def over(item: Raw) -> bool:
        phase = parse({"kind": kind.kind, **item}).status.phase
        return phase in (SnapshotPhase.READY, SnapshotPhase.FAILED)

    raw = _follow(session, kind, name, over, timeout)
    item = parse({"kind": kind.kind, **raw})
    if item.status.phase is SnapshotPhase.FAILED:
        raise Problem(f"{name} could not be taken: {_message(raw)}")
    said = f"was taken ({', '.join(item.status.indications)})" if item.status.indications else "was taken"
    session.printer.done(kind, raw, said)


def _message(raw: Raw | None) -> str:
    found = (raw or {}).get("status", {}).get("conditions", [])
    ready: Raw = next((c for c in found if c.get("type") == "Ready"), {})
    return one_line(str(ready.get("message") or ready.get("reason") or "no controller has looked at it yet"))


def _follow(session: Session, kind: Kind, name: str, over: Callable[[Raw], bool], seconds: float) -> Raw:
    """The object once it is `over`; what it waits for meanwhile is told. Raises `Problem` when it is not in time."""
    last: Raw | None = None
    told = ""
    for raw in session.cluster.follow(kind, name, session.namespace, seconds=seconds):
        if raw is None:
            raise Problem(f"{one_line(name)} was deleted meanwhile." if last else f"{one_line(name)} is not there.")
        if over(raw):
            return raw
        last = raw
        if raw.get("status", {}).get("conditions") and (said := _message(raw)) != told:
            told = said
            session.printer.note(said)
    raise Problem(f"{name} is not done after {seconds:g}s: {_message(last)}")


def _delete(session: Session, name: Name, wait: Wait = True, timeout: Timeout = 120) -> None:
    """Delete a snapshot: of a machine, else of a volume."""
    item = parse(_fetch(session, name))
    session.cluster.delete(item.KIND, name, session.namespace, uid=item.uid)
    if wait:
        told = ""
        for raw in session.cluster.follow(item.KIND, name, session.namespace, seconds=timeout):
            if raw is None:
                break
            said = _message(raw)
            if (
                "deletionTimestamp" in raw["metadata"]
                and said != told
                and raw.get("status", {}).get("phase") == "Deleting"
            ):
                told = said
                session.printer.note(said)
        else:
            raise Problem(f"{name} is not gone after {timeout:g}s: {told or 'no controller has looked at it yet'}")
    session.printer.text(f"{qualified(item.KIND, name)} {'deleted' if wait else 'is being deleted'}")


def _restore(
    session: Session,
    name: Name,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Into the machine's own volumes: what they have now is lost.")
    ] = False,
    as_: Annotated[str | None, typer.Option("--as", metavar="NEWVM", help="As a new machine of that name.")] = None,
    linked: Annotated[
        bool,
        typer.Option(
            "--linked", help="Volumes of the new machine stand on the snapshot: made at once, not free of it."
        ),
    ] = False,
    wait: Wait = True,
    timeout: Timeout = 600,
) -> None:
    """Give a machine back what a snapshot of it kept, or make a new machine of that."""
    if in_place == (as_ is not None) or (linked and as_ is None):
        raise Problem("Say where to: either --in-place, or --as NEWVM (which may be --linked).", exit_code=2)
    raw = session.cluster.find(VirtualMachineSnapshot.KIND, name, session.namespace)
    if raw is None:
        raise Problem(
            f"There is no snapshot of a machine called {one_line(name)} in namespace {session.namespace}. Of a volume's"
            " snapshot a new volume is made: spec.source.snapshot of a Volume."
        )
    target: Raw = {"vm": raw["spec"]["vm"]} if in_place else {"newVM": as_}
    if linked:
        target["cloneMode"] = CloneMode.LINKED.value
    body = {
        "metadata": {"generateName": f"{name[:50]}-"},
        "spec": {"snapshot": name, "target": target, "ttlSecondsAfterFinished": KEPT_SECONDS},
    }
    kind = VirtualMachineRestore.KIND
    raw = session.cluster.create(kind, body, session.namespace)
    if not wait:
        session.printer.done(kind, raw, "will be carried out")
        return

    def over(item: Raw) -> bool:
        return VirtualMachineRestore.parse(item).status.phase in FINISHED

    raw = _follow(session, kind, raw["metadata"]["name"], over, timeout)
    restore = VirtualMachineRestore.parse(raw)
    if restore.status.phase is RestorePhase.FAILED:
        raise Problem(f"{restore.name} failed: {_message(raw)}")
    volumes = [disk.volume for disk in restore.status.volumes if disk.state is RestoreState.RESTORED]
    session.printer.done(kind, raw, f"is done: {', '.join(volumes)}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "list")(_list)
    command(app, "show")(_show)
    command(app, "create")(_create)
    command(app, "delete")(_delete)
    command(app, "restore")(_restore)
