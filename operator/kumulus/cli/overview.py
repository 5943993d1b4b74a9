"""`kumulusctl status`: the whole cloud on one screen. `kumulusctl install`: its parts that live in the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import typer

from kumulus.api.base import PLATFORM_NAMESPACE
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.image import ClusterImage, Image
from kumulus.api.storage import StoragePool
from kumulus.cli.amounts import age, count, moment, size
from kumulus.cli.install import install
from kumulus.cli.session import Session, command
from kumulus.kube import errors
from kumulus.kube.builtin import LEASE

Raw = dict[str, Any]

CONTROLLERS_LEASE = "kumulus-controllers"


def _phases(raws: list[Raw]) -> str:
    """`3 Running, 1 Pending`, the most first; empty when there are none. Pure."""
    counted = Counter(str(raw.get("status", {}).get("phase") or "new") for raw in raws)
    return ", ".join(f"{number} {phase}" for phase, number in counted.most_common())


def leads(lease: Raw | None, now: datetime) -> bool:
    """Whether somebody leads the controllers: the Lease is held and was renewed lately. Pure."""
    spec = (lease or {}).get("spec", {})
    renewed = moment(spec.get("renewTime"))
    patience = timedelta(seconds=2 * int(spec.get("leaseDurationSeconds") or 15))
    return bool(spec.get("holderIdentity")) and renewed is not None and now - renewed <= patience


def controllers(lease: Raw | None, now: datetime) -> str:
    """Who leads the controllers, by their Lease. Pure."""
    if lease is None:
        return "none has ever run here: start `kumulus run`"
    spec = lease.get("spec", {})
    holder, renewed = str(spec.get("holderIdentity") or "").partition("@")[0], moment(spec.get("renewTime"))
    if not holder or renewed is None:
        return "none runs now: the last one has given its lease back"
    if not leads(lease, now):
        return f"none seems to run: {holder} was last heard of {age(spec.get('renewTime'), now)} ago"
    return f"{holder} leads, for {age(spec.get('acquireTime'), now)}"


def _hosts(session: Session) -> str:
    raws = session.cluster.objects(Host.KIND)
    if not raws:
        return "none yet: `kumulusctl host add NAME --zone ZONE`"
    ready = sum(raw.get("status", {}).get("phase") == "Ready" for raw in raws)
    cordoned = sum(bool(raw.get("spec", {}).get("unschedulable")) for raw in raws)
    others = [raw for raw in raws if raw.get("status", {}).get("phase") != "Ready"]
    parts = [
        f"{ready} of {count(len(raws), 'host')} ready",
        _phases(others),
        f"{cordoned} cordoned" if cordoned else "",
    ]
    return ", ".join(filter(None, parts))


def _machines(session: Session) -> str:
    where = ""
    try:
        raws = session.cluster.objects(VirtualMachine.KIND)
    except errors.Refused:
        raws = session.cluster.objects(VirtualMachine.KIND, session.namespace)
        where = f" (in namespace {session.namespace}; you may not see the others)"
    return (f"{len(raws)}: {_phases(raws)}" if raws else "none") + where


def _images(session: Session) -> str:
    raws, where = session.cluster.objects(ClusterImage.KIND), ""
    try:
        raws = raws + session.cluster.objects(Image.KIND)
    except errors.Refused:
        raws = raws + session.cluster.objects(Image.KIND, session.namespace)
        where = f" (of the cluster and namespace {session.namespace})"
    return (f"{len(raws)}: {_phases(raws)}" if raws else "none") + where


def _pools(session: Session) -> str:
    pools = [StoragePool.parse(raw) for raw in session.cluster.objects(StoragePool.KIND)]
    return "; ".join(_pool(pool) for pool in pools) or "none: a machine needs a StoragePool"


def _pool(pool: StoragePool) -> str:
    status = pool.status
    hosts = f" on {count(status.ready_hosts, 'host')}" if status.ready_hosts is not None else ""
    used = f", {size(status.used)} of {size(status.capacity)} used" if status.capacity else ""
    return f"{pool.name} ({pool.spec.driver}) {status.phase or 'new'}{hosts}{used}"


def _controllers(session: Session) -> str:
    return controllers(session.cluster.find(LEASE, CONTROLLERS_LEASE, PLATFORM_NAMESPACE), session.now)


def _status(session: Session) -> None:
    """Show the whole cloud at a glance."""
    parts: list[tuple[str, Callable[[Session], str]]] = [
        ("Controllers", _controllers),
        ("Hosts", _hosts),
        ("Machines", _machines),
        ("Pools", _pools),
        ("Images", _images),
    ]
    rows = [("Cluster", session.cluster.server)]
    rows += [(name, _tolerant(part, session)) for name, part in parts]
    session.printer.facts(rows)


def _tolerant(part: Callable[[Session], str], session: Session) -> str:
    try:
        return part(session)
    except errors.Refused as error:
        if error.status == 403:
            return "you may not see that"
        raise


def _install(session: Session) -> None:
    """Install Kumulus in the cluster: its kinds and who may do what. May be repeated, to upgrade."""
    install(session)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "status")(_status)
    command(app, "install")(_install)
