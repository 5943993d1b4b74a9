"""`kumulusctl pool`: where disks live, and what lies there that nobody owns."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import pool_order_name
from kumulus.api.pool_order import UnownedFile
from kumulus.api.storage import PoolHost, StoragePool
from kumulus.cli import conditions
from kumulus.cli.amounts import age, count, size
from kumulus.cli.output import Column
from kumulus.cli.session import Session, command

Raw = dict[str, Any]

KIND = StoragePool.KIND

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the pool.", show_default=False)]


def fetch(session: Session, name: str) -> Raw:
    """The pool of that name. Raises `Problem` when there is none."""
    return session.fetch(KIND, name, "pool", "`kumulusctl pool list` shows all")


def reason(pool: StoragePool) -> str:
    """Why it takes nothing new, or warns, in a word; empty when all is well."""
    for kind, well in (("Ready", "True"), ("AcceptsVolumes", "True"), ("SpaceLow", "False")):
        found = pool.status.condition(kind)
        if found is not None and found.status != well:
            return found.reason
    return ""


def _list(session: Session) -> None:
    """Show the pools: what there is, what is in use, what was promised."""
    raws = session.cluster.objects(KIND)
    if session.printer.objects(KIND, raws, many=True):
        return
    now = session.now
    columns: list[Column[StoragePool]] = [
        Column("Name", lambda p: p.name),
        Column("Driver", lambda p: p.spec.driver),
        Column("Phase", lambda p: p.status.phase or "-"),
        Column("Reason", reason),
        Column("Hosts", lambda p: str(p.status.ready_hosts or 0), right=True),
        Column("Capacity", lambda p: size(p.status.capacity), right=True),
        Column("Used", lambda p: size(p.status.used), right=True),
        Column("Promised", lambda p: size(p.status.allocated), right=True),
        Column("Unowned", lambda p: str(p.status.unowned_files or ""), right=True),
        Column("Age", lambda p: age(p.metadata.creation_timestamp, now), right=True),
    ]
    session.printer.table(columns, map(StoragePool.parse, raws), empty="There are no pools: a machine needs one.")


def _show(session: Session, name: Name) -> None:
    """Show one pool: its conditions, and how it is on each host."""
    raw = fetch(session, name)
    if session.printer.objects(KIND, [raw], many=False):
        return
    pool, printer = StoragePool.parse(raw), session.printer
    spec, status = pool.spec, pool.status
    shares = ((spec.thresholds.warn_at, "warns"), (spec.thresholds.stop_new_volumes_at, "takes nothing new"))
    printer.facts(
        [
            ("Name", pool.name),
            ("Driver", spec.driver),
            ("Phase", status.phase or "-"),
            ("Capacity", size(status.capacity)),
            ("Used", size(status.used)),
            ("Promised", size(status.allocated)),
            ("Thresholds", ", ".join(f"{what} at {share}%" for share, what in shares if share is not None)),
            ("For", ", ".join(spec.allowed_namespaces) or "all namespaces"),
            (
                "Unowned",
                f"{count(status.unowned_files, 'file')}, {size(status.unowned_bytes)}" if status.unowned_files else "",
            ),
        ]
    )
    conditions.show(printer, status.conditions, session.now)
    printer.heading("Hosts")
    columns: list[Column[PoolHost]] = [
        Column("Host", lambda h: h.name),
        Column("Ready", lambda h: "True" if h.ready else "False"),
        Column("Capacity", lambda h: size(h.capacity), right=True),
        Column("Used", lambda h: size(h.used), right=True),
        Column("Promised", lambda h: size(h.allocated), right=True),
        Column("Unowned", lambda h: str(h.unowned or ""), right=True),
        Column("Message", lambda h: h.message or ""),
    ]
    printer.table(columns, status.hosts, empty="  none")


def _unowned(session: Session, name: Name) -> None:
    """List the files in a pool that nobody owns. They are left alone; a Volume can be made of some of them."""
    pool = StoragePool.parse(fetch(session, name))
    rows: list[tuple[str, UnownedFile]] = []
    total = 0
    for host in (entry.name for entry in pool.status.hosts if entry.unowned):
        raw = session.cluster.find(WorkOrder.KIND, pool_order_name(pool.uid), host_namespace(host))
        facts = WorkOrder.parse(raw).status.pool if raw is not None else None
        if facts is not None:
            rows += [(host, file) for file in facts.unowned]
            total += facts.unowned_count
    columns: list[Column[tuple[str, UnownedFile]]] = [
        Column("Host", lambda row: row[0]),
        Column("Id", lambda row: row[1].id),
        Column("Kind", lambda row: row[1].kind),
        Column("Size", lambda row: size(row[1].size), right=True),
        Column("Disk", lambda row: size(row[1].virtual_size), right=True),
        Column("Was", lambda row: f"{row[1].namespace}/{row[1].volume}" if row[1].namespace else ""),
        Column("File", lambda row: row[1].name),
    ]
    session.printer.table(columns, rows, empty=f"In the pool {pool.name} there is nothing that nobody owns.")
    if total > len(rows):
        session.printer.line(f"and {total - len(rows)} more: a host lists 64")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "list")(_list)
    command(app, "show")(_show)
    command(app, "unowned")(_unowned)
