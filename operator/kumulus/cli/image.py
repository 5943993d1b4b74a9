"""`kumulusctl image`: the images of a namespace and those of the cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kumulus.api.compute import VirtualMachine
from kumulus.api.image import ClusterImage, Compression, Image
from kumulus.cli import conditions
from kumulus.cli import vm as machines
from kumulus.cli.amounts import age, size
from kumulus.cli.output import Column
from kumulus.cli.problem import Problem
from kumulus.cli.progress import line
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line

Raw = dict[str, Any]
AnyImage = Image | ClusterImage


def parse(raw: Raw) -> AnyImage:
    """The typed view, by the kind the object says it is."""
    return ClusterImage.parse(raw) if raw.get("kind") == ClusterImage.KIND.kind else Image.parse(raw)


def progress(image: AnyImage) -> str:
    """How far the import is: `42% of 1.5 GiB, 12 MiB/s, 75s left`, or bytes when the total is not known; empty when
    there is none."""
    return "" if image.status.phase == "Ready" else line(image.status.progress)


def resolve(session: Session, name: str, namespace: str) -> Raw | None:
    """The Image of the namespace, else the ClusterImage of that name, as machines find it; else None.

    `namespace/name` is an Image of that namespace.
    """
    other, slash, foreign = name.partition("/")
    if slash:
        return session.cluster.find(Image.KIND, foreign, other)
    raw = session.cluster.find(Image.KIND, name, namespace)
    if raw is not None:
        return raw
    return session.cluster.find(ClusterImage.KIND, name)


def _source(image: AnyImage) -> str:
    source = image.spec.source
    if source.oci is not None:
        return source.oci.reference
    if source.volume is not None:
        return f"volume {source.volume}"
    if source.snapshot is not None:
        return f"snapshot {source.snapshot}"
    return source.http.url if source.http is not None else ""


def _reason(image: AnyImage) -> str:
    ready = image.status.condition("Ready")
    return ready.reason if ready is not None and ready.status != "True" else ""


def _list(
    session: Session,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
) -> None:
    """Show the images machines can be made from: those of the cluster and those of the namespace."""
    namespace = None if all_namespaces else session.namespace
    raws = session.cluster.objects(ClusterImage.KIND) + session.cluster.objects(Image.KIND, namespace)
    if session.printer.format == "name":
        for raw in raws:
            session.printer.objects(parse(raw).KIND, [raw], many=False)
        return
    if session.printer.objects(Image.KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[AnyImage]] = [
        Column("Name", lambda i: i.name),
        Column("Of", lambda i: i.namespace or "cluster"),
        Column("Phase", lambda i: i.status.phase or "-"),
        Column("Reason", _reason),
        Column("Progress", progress),
        Column("Format", lambda i: i.spec.format),
        Column("Size", lambda i: size(i.status.virtual_size), right=True),
        Column("Age", lambda i: age(i.metadata.creation_timestamp, now), right=True),
    ]
    session.printer.table(columns, map(parse, raws), empty="There are no images.")


def _show(session: Session, name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the image.")]) -> None:
    """Show one image: the one of the namespace, else the one of the cluster."""
    raw = resolve(session, name, session.namespace)
    if raw is None:
        raise Problem(
            f"There is no image {one_line(name)} in namespace {session.namespace}, nor in the cluster; "
            "`kumulusctl image list -A` shows all."
        )
    image, printer, now = parse(raw), session.printer, session.now
    if printer.objects(image.KIND, [raw], many=False):
        return
    status, os = image.status, image.spec.os
    printer.facts(
        [
            ("Name", image.name),
            ("Of", f"namespace {image.namespace}" if image.namespace else "the cluster"),
            ("Phase", status.phase or "-"),
            ("Progress", progress(image)),
            ("Source", _source(image)),
            ("Digest", status.digest or ""),
            ("SHA-256", image.spec.checksum.sha256 if image.spec.checksum else status.sha256 or ""),
            ("Compression", "" if image.spec.compression is Compression.NONE else image.spec.compression),
            ("Format", image.spec.format),
            ("Disk size", size(status.virtual_size) if status.virtual_size else ""),
            ("Takes", size(status.size) if status.size else ""),
            ("Shared with", ", ".join(image.spec.allowed_namespaces) or ("" if image.namespace else "all namespaces")),
            ("System", " ".join(filter(None, (os.name, os.version))) or (os.family or "")),
            ("Created", f"{age(image.metadata.creation_timestamp, now)} ago"),
        ]
    )
    if status.caches:
        printer.heading("In the pools")
        printer.table(
            [
                Column("Pool", lambda c: c.pool),
                Column("Host", lambda c: c.host or "all"),
                Column("State", lambda c: c.state),
                Column("From", lambda c: (c.copied_from or "source") if c.state == "Ready" else ""),
            ],
            status.caches,
            empty="",
        )
    conditions.show(printer, status.conditions, now)


def published(vm: VirtualMachine, disk: str | None) -> str:
    """Name of the volume that the machine's disk is; without a name, that of its first disk that is one. Pure.

    Raises `Problem`.
    """
    volumes = {item.name: item.volume_of(vm.name) for item in vm.spec.disks}
    wanted = disk if disk is not None else next((name for name, volume in volumes.items() if volume), None)
    if wanted not in volumes:
        there = ", ".join(volumes) or "none"
        raise Problem(f"Machine {vm.name} has no disk {one_line(wanted or '')} that is a volume; its disks: {there}.")
    volume = volumes[wanted]
    if volume is None:
        raise Problem(
            f"Disk {wanted} of machine {vm.name} is no volume, but goes with the machine; an image is made of volumes."
        )
    return volume


def _publish(
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name of the machine.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the image to be made.")],
    disk: Annotated[
        str | None, typer.Option("--disk", help="Name of the machine's disk; the first that is a volume.")
    ] = None,
) -> None:
    """Make an image of a machine's disk. It is made once the machine is off."""
    machine = VirtualMachine.parse(machines.fetch(session, vm))
    body = {"metadata": {"name": name}, "spec": {"source": {"volume": published(machine, disk)}, "format": "qcow2"}}
    raw = session.cluster.create(Image.KIND, body, session.namespace)
    off = machine.status.phase == "Stopped"
    session.printer.done(
        Image.KIND, raw, "is being made" if off else f"will be made when {vm} is off: kumulusctl vm stop {vm}"
    )


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "list")(_list)
    command(app, "show")(_show)
    command(app, "publish")(_publish)
