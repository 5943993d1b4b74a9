"""`kumulusctl net trace`: what becomes of a packet from one end to another, and which rule or route says so.

What is read here is all that the answer is made of; nothing is sent. How it is worked out is the controllers' code
(`kumulus.api.trace`).
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import json
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, TypeVar, cast

import typer
import yaml

from kumulus.api.base import Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import Network, NetworkInterface, NetworkType
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.segments import Protocol
from kumulus.api.trace import GROUP, OUTSIDE, Need, Question, Scene, Trace, Tracer, Unclear, Verdict, name_of
from kumulus.cli.output import Format
from kumulus.cli.problem import Problem, Usage
from kumulus.cli.session import Session, command
from kumulus.cli.terminal import one_line
from kumulus.kube import errors

R = TypeVar("R", bound=Resource)
T = TypeVar("T")

DROPPED, NOT_KNOWN = 3, 4
"""Exit codes, beside 1 and 2 of every command: what could not be asked was not dropped."""
_MARKS = {Verdict.PASSES: ("ok", "green"), Verdict.DROPPED: ("DROP", "red"), Verdict.UNKNOWN: ("?", "yellow")}


class _Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


def tracer() -> Tracer:
    """What works it out. Raises `Problem` when this installation has only a part of Kumulus."""
    for entry in importlib.metadata.entry_points(group=GROUP, name="network"):
        return cast(Tracer, entry.load())
    raise Problem(
        "This kumulusctl was installed without the controllers' code, which works it out: install all of kumulus."
    )


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except errors.Refused:
        return None


def _all(session: Session, model: type[R], namespace: str | None, fields: str | None = None) -> list[R] | None:
    """None: the user may not see them."""
    raws = _or_none(lambda: session.cluster.objects(model.KIND, namespace, fields=fields))
    return [model.parse(raw) for raw in raws] if raws is not None else None


def gather(session: Session, namespaces: set[str]) -> Scene:
    """Read all that is in these namespaces, and the networks of others that interfaces there are in."""
    partial: set[str] = set()
    networks: dict[str, Network] = {}
    interfaces: dict[str, NetworkInterface] = {}
    routers: list[Router] = []
    read: dict[type[Resource], list[Resource]] = {}
    for namespace in sorted(namespaces):
        networks |= {item.uid: item for item in _required(session, Network, namespace)}
        interfaces |= {item.uid: item for item in _required(session, NetworkInterface, namespace)}
        routers += _required(session, Router, namespace)
        for model in (SecurityGroup, FloatingIP, LoadBalancer, VirtualMachine):
            read.setdefault(model, []).extend(_required(session, model, namespace))
    foreign = {
        (item.spec.network_namespace, item.spec.network)
        for item in interfaces.values()
        if item.spec.network_namespace not in (None, *namespaces)
    }
    unseen = set()
    for namespace in sorted({str(one) for one, _ in foreign}):
        beside = _all(session, Router, namespace)
        if beside is None:
            unseen.add(namespace)
        partial |= {router.uid for router in beside or []}
        routers += beside or []
    for place, name in sorted(foreign, key=str):
        raw = _or_none(lambda p=place, n=name: session.cluster.find(Network.KIND, n, p))  # type: ignore[misc]
        if raw is not None:
            network = Network.parse(raw)
            networks[network.uid] = network
            partial |= {network.uid} if place in unseen else set()
    for network in networks.values():
        if network.spec.type is not NetworkType.SHARED:
            continue
        there = _all(session, NetworkInterface, None, fields=f"spec.network={network.name}")
        if there is None:
            partial.add(network.uid)
        interfaces |= {item.uid: item for item in there or [] if item.status.network == network.uid}
    unread = set()
    for namespace in sorted({str(item.namespace) for item in interfaces.values()} - namespaces):
        for other in (SecurityGroup, LoadBalancer, VirtualMachine):
            found = _all(session, other, namespace)
            if found is None:
                unread.add(namespace)
                break
            read[other].extend(found)
    return Scene(
        networks=tuple(networks.values()),
        interfaces=tuple(interfaces.values()),
        groups=cast("list[SecurityGroup]", read[SecurityGroup]),
        routers=routers,
        floating=cast("list[FloatingIP]", read[FloatingIP]),
        externals=_all(session, ExternalNetwork, None) or (),
        balancers=cast("list[LoadBalancer]", read[LoadBalancer]),
        machines=cast("list[VirtualMachine]", read[VirtualMachine]),
        partial=frozenset(partial),
        unread=frozenset(unread),
    )


def _required(session: Session, model: type[R], namespace: str) -> list[R]:
    return [model.parse(raw) for raw in session.cluster.objects(model.KIND, namespace)]


def with_hosts(session: Session, scene: Scene, needs: frozenset[Need]) -> Scene:
    """The scene with what hosts on the way are told, and how they are, as far as the user may see it."""
    names = sorted({host for host, _ in needs})
    raws = _or_none(lambda: {name: session.cluster.find(Host.KIND, name) for name in names})
    told = _or_none(
        lambda: {need: session.cluster.find(WorkOrder.KIND, need[1], host_namespace(need[0])) for need in needs}
    )
    return replace(
        scene,
        hosts={name: Host.parse(raw) for name, raw in raws.items() if raw is not None} if raws is not None else None,
        orders={need: WorkOrder.parse(raw) for need, raw in told.items() if raw is not None}
        if told is not None
        else None,
    )


def _namespaces(session: Session, *ends: str) -> set[str]:
    """Those that the ends are in."""
    found = {session.namespace}
    for end in ends:
        if end != OUTSIDE and not _is_address(end):
            found.add(name_of(end, session.namespace)[1])
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


End = Annotated[
    str,
    typer.Argument(
        help="A machine, `nic/NAME`, `lb/NAME`, an address, or `outside`; of another namespace as NAMESPACE/NAME."
    ),
]


def _trace(
    session: Session,
    source: End,
    target: End,
    protocol: Annotated[
        _Protocol | None, typer.Option("--protocol", help="Default: tcp when there is a port, else icmp (a ping).")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port that it is for.")] = None,
    sent_from: Annotated[
        str | None, typer.Option("--source", metavar="ADDRESS", help="The address that the guest sends from.")
    ] = None,
) -> None:
    """Say which rules and routes carry a packet from one end to another, or drop it. Nothing is sent.

    Exit codes: 0 it passes, 3 it is dropped, 4 that cannot be told from what there is to read.
    """
    kind = protocol or (_Protocol.TCP if port is not None else _Protocol.ICMP)
    if (kind is _Protocol.ICMP) is (port is not None):
        raise Usage("Name --port with tcp and udp, and only with these.")
    if sent_from is not None and not _is_address(sent_from):
        raise Usage(f"--source {sent_from} is not an address.")
    wanted = {_Protocol.TCP: Protocol.TCP, _Protocol.UDP: Protocol.UDP, _Protocol.ICMP: Protocol.ICMP}[kind]
    works_out = tracer()
    try:
        question = Question(
            source=source,
            target=target,
            namespace=session.namespace,
            protocol=wanted,
            port=port,
            sent_from=str(ipaddress.ip_address(sent_from)) if sent_from is not None else None,
        )
        scene = gather(session, _namespaces(session, source, target))
        found = works_out(with_hosts(session, scene, works_out(scene, question).needs), question)
    except Unclear as unclear:
        raise Problem(str(unclear)) from unclear
    _tell(session, question, found)
    code = {Verdict.PASSES: 0, Verdict.DROPPED: DROPPED, Verdict.UNKNOWN: NOT_KNOWN}[found.verdict]
    if code:
        raise typer.Exit(code)


def _tell(session: Session, question: Question, found: Trace) -> None:
    printer, body = session.printer, found.to_json()
    if printer.format is Format.JSON:
        printer.text(json.dumps(body, indent=2))
        return
    if printer.format is Format.YAML:
        printer.text(yaml.safe_dump(body, sort_keys=False), end="")
        return
    port = f" {question.port}" if question.port is not None else ""
    printer.line(f"{question.protocol}{port} from {one_line(found.source)} to {one_line(found.target)}")
    printer.line()
    wide = max((len(step.where) for step in found.steps), default=0)
    for number, step in enumerate(found.steps, 1):
        mark, style = _MARKS[step.verdict]
        says = f"  ({step.object}{f', {step.field}' if step.field else ''})" if step.object and step.field else ""
        label = f"{number:>2}  {mark:<5}{step.where:<{wide}}  "
        printer.indented(one_line(f"{step.what}{says}"), by=len(label), label=label, label_style=style)
    printer.line()
    printer.line(_summary(found))
    printer.heading("This does not see")
    for sentence in found.unseen:
        printer.indented(one_line(sentence), by=4, label="  -")


def _summary(found: Trace) -> str:
    first = next(((at, step) for at, step in enumerate(found.steps, 1) if step.verdict is found.verdict), None)
    if found.verdict is Verdict.PASSES:
        return "It passes."
    assert first is not None
    what = "It is dropped" if found.verdict is Verdict.DROPPED else "Whether it passes is not known: see"
    return f"{what} {'at ' if found.verdict is Verdict.DROPPED else ''}step {first[0]} ({first[1].where})."


def register(networks: typer.Typer) -> None:
    """Add the commands."""
    command(networks, "trace")(_trace)
