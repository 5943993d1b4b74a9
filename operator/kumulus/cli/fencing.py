"""`kumulusctl host fence` and `confirm-dead`: a BMC switches a host off, or a person says that a host is off, so that its machines can start elsewhere (ADR 33)."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import typer

from kumulus.api.fabric import Host, HostPhase, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.remediation import MANUAL, HostRemediation, RemediationPhase, WitnessUse
from kumulus.api.witness import Says
from kumulus.cli.output import qualified
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.kube.builtin import LEASE
from kumulus.kube.lease import Lease

Raw = dict[str, Any]

DespiteWitnesses = Annotated[
    bool, typer.Option("--despite-witnesses", help="Also while a witness says that the host is alive (host show).")
]

KIND = HostRemediation.KIND

MEANING = (
    "This says that {host} is powered off: that you have seen it, or have cut its power. Its machines with"
    " spec.highAvailability.enabled are then started on other hosts. If {host} runs and is only cut off, they run twice and"
    " destroy their disks. Keep it off until the take-over is done. If that is so: kumulusctl host confirm-dead {host}"
    " --powered-off"
)


def _confirm_dead(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the host.", show_default=False)],
    powered_off: Annotated[
        bool, typer.Option("--powered-off", help="You have seen that the host is off; silence is not enough.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for whoever reads it later.")] = None,
    despite_witnesses: DespiteWitnesses = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is fenced.")] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 90,
) -> None:
    """Confirm that a host which does not answer is powered off, so that its machines are started elsewhere."""
    host = Host.parse(session.fetch(Host.KIND, name, "host", "`kumulusctl host list` shows all"))
    if host.status.phase in (HostPhase.READY, HostPhase.MAINTENANCE):
        raise Problem(
            f"The host {name} answers, so it is not dead. To keep new machines away: kumulusctl host cordon {name}"
        )
    if not powered_off:
        raise Problem(MEANING.format(host=name), exit_code=2)
    if not despite_witnesses and (proof := _alive(host)) is not None:
        raise Problem(
            f"The host {name} is alive, says {proof}. If it is off, its witnesses fall silent within a minute: look again by"
            f" kumulusctl host show {name}. If they are wrong, say --despite-witnesses."
        )
    spec: Raw = {"confirmedOff": True, "lastRenewal": _last_renewal(session, name), **_use(despite_witnesses)}
    if reason is not None:
        spec["reason"] = reason
    made = _confirm(session, name, spec)
    item = HostRemediation.parse(made)
    if wait:
        _await_fenced(session, item.name, timeout)
    session.printer.done(KIND, session.cluster.find(KIND, item.name) or made, "fenced" if wait else "created")


def _fence(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the host.", show_default=False)],
    reason: Annotated[str | None, typer.Option(help="Why, for whoever reads it later.")] = None,
    despite_witnesses: DespiteWitnesses = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is fenced.")] = True,
    timeout: Annotated[float, typer.Option(min=1, max=86400, help="Seconds to wait.")] = 180,
) -> None:
    """Have a host that does not answer switched off by its BMC, or taken at its watchdog's word, so that its machines are started elsewhere."""
    host = Host.parse(session.fetch(Host.KIND, name, "host", "`kumulusctl host list` shows all"))
    if host.status.phase in (HostPhase.READY, HostPhase.MAINTENANCE):
        raise Problem(
            f"The host {name} answers, so it is not fenced. To keep new machines away: kumulusctl host cordon {name}"
        )
    methods = host.fenced_by
    if not methods:
        raise Problem(
            f"The host {name} has neither spec.bmc nor a watchdog (spec.fencing.watchdog), so nothing can switch it off from here. Once you have:"
            f" kumulusctl host confirm-dead {name}"
        )
    if not despite_witnesses and (proof := _alive(host)) is not None:
        raise Problem(
            f"The host {name} is alive and only cut off, says {proof}. Its machines run. To have it switched off all the same:"
            f" kumulusctl host fence {name} --despite-witnesses"
        )
    said: Raw = {**_use(despite_witnesses), **({"reason": reason} if reason is not None else {})}
    made = _have_fenced(session, name, [*methods, MANUAL], said)
    item = HostRemediation.parse(made)
    if wait:
        _await_fenced(session, item.name, timeout)
    session.printer.done(KIND, session.cluster.find(KIND, item.name) or made, "fenced" if wait else "created")


def _alive(host: Host) -> str | None:
    """Who says that the host is alive, and why; None: nobody does."""
    found = next((item for item in host.status.witnesses if item.says is Says.ALIVE), None)
    return None if found is None else one_line(f"{found.witness}: {found.message or 'no reason given'}")


def _use(despite: bool) -> Raw:
    return {"witnesses": WitnessUse.IGNORE.value} if despite else {}


def _make(session: Session, host: str, spec: Raw) -> Raw:
    name = f"{host[:40].rstrip('-')}-{secrets.token_hex(4)}"
    return session.cluster.create(KIND, {"metadata": {"name": name}, "spec": spec})


def _last_renewal(session: Session, host: str) -> str:
    """The last sign of life of the host."""
    raw = session.cluster.find(LEASE, LEASE_NAME, host_namespace(host))
    renewed = Lease.parse(raw).spec.renew_time if raw is not None else None
    if renewed is None:
        raise Problem(f"The host {host} has no Lease: it has never been heard of, so nothing runs on it.")
    return renewed


def _confirm(session: Session, host: str, spec: Raw) -> Raw:
    """Confirm what asks for it about that host, or what is made here."""
    for raw in session.cluster.objects(KIND):
        item = HostRemediation.parse(raw)
        if item.spec.host == host and not item.ended and not item.spec.confirmed_off:
            return session.cluster.patch(KIND, item.name, {"spec": spec})
    return _make(session, host, {"host": host, **spec})


def _have_fenced(session: Session, host: str, methods: list[str], said: Raw) -> Raw:
    """Have what is there already about that host go by these methods too, or make it here: a second one would wait for the first."""
    parsed = (HostRemediation.parse(raw) for raw in session.cluster.objects(KIND))
    there = [item for item in parsed if item.spec.host == host and not item.ended and not item.deleting]
    if not there:
        return _make(session, host, {"host": host, "methods": methods, **said})
    first = min(there, key=lambda item: (item.metadata.creation_timestamp or "", item.name))
    has = [method for method in first.spec.methods if method != MANUAL]
    wanted = [*has, *(method for method in methods if method not in has)]
    return session.cluster.patch(KIND, first.name, {"spec": {"methods": wanted, **said}})


def _await_fenced(session: Session, name: str, seconds: float) -> None:
    last: Raw | None = None
    for last in session.cluster.follow(KIND, name, seconds=seconds):
        if last is None:
            raise Problem(f"{qualified(KIND, name)} was deleted.")
        item = HostRemediation.parse(last)
        if item.status.fenced_at is not None:
            return
        if item.ended:
            ready = item.status.condition("Ready")
            raise Problem(one_line(ready.message) if ready is not None else f"{qualified(KIND, name)} did not succeed.")
    item = HostRemediation.parse(last or {})
    ready, phase = item.status.condition("Ready"), item.status.phase or RemediationPhase.PENDING
    why = f": {one_line(ready.message)}" if ready is not None and ready.message else ""
    raise Problem(f"{qualified(KIND, name)} is {phase} after {seconds:g}s{why} It goes on by itself.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "fence")(_fence)
    command(app, "confirm-dead")(_confirm_dead)
