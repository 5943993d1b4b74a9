"""What `kumulusctl net trace` asks and is answered. The answer is worked out by the controllers' code, which makes the same
things of the same objects when it tells hosts (entry point of the group `kumulus.tracing`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from kumulus.api import segments
from kumulus.api.addresses import Address
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.api.security_groups import SecurityGroup

GROUP = "kumulus.tracing"
"""Entry points; the one named `network` is a `Tracer`."""
OUTSIDE = "outside"


Need = tuple[str, str]
"""Name of a host, and of a work order of its."""


class Verdict(StrEnum):
    """What becomes of the packet."""

    PASSES = "Passes"
    DROPPED = "Dropped"
    UNKNOWN = "Unknown"
    """It depends on what nobody can tell from the objects of the API."""


@dataclass(frozen=True, slots=True)
class Step:
    """One of the things that the packet meets, in order."""

    where: str
    """In a word: Guest, Address, Egress, Network, Router, Translation, Ingress, ..."""
    verdict: Verdict
    what: str
    """A sentence, and what to do when it does not pass."""
    object: str | None = None
    """What decides, such as `securitygroup/web`."""
    field: str | None = None
    """Where it says so, such as `spec.ingress[1]`."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The answer."""

    source: str
    target: str
    steps: Sequence[Step]
    unseen: Sequence[str] = ()
    """What it cannot see, a sentence each."""
    needs: frozenset[Need] = frozenset()
    """The work orders that say whether the hosts on the way have been told. The way itself does not depend on them."""

    @property
    def verdict(self) -> Verdict:
        """Dropped when anything drops it, else unknown when anything is, else it passes."""
        found = {step.verdict for step in self.steps}
        return next((v for v in (Verdict.DROPPED, Verdict.UNKNOWN) if v in found), Verdict.PASSES)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        steps = [
            {
                "where": step.where,
                "verdict": step.verdict.value,
                "what": step.what,
                **({"object": step.object} if step.object else {}),
                **({"field": step.field} if step.field else {}),
            }
            for step in self.steps
        ]
        return {
            "verdict": self.verdict.value,
            "source": self.source,
            "target": self.target,
            "steps": steps,
            "cannotSee": list(self.unseen),
        }


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a first packet, or a ping, comes from one end to the other."""

    source: str
    """A machine, `nic/NAME`, an address, or `outside`; of another namespace as NAMESPACE/NAME."""
    target: str
    namespace: str
    protocol: segments.Protocol = segments.Protocol.ICMP
    """TCP, UDP or ICMP (of the packet's family)."""
    port: int | None = None
    """The port it is for, of TCP and UDP."""
    sent_from: Address | None = None
    """The address that the guest sends from; its own when empty."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that was read, of the namespaces in question and of the cluster, as far as the user may see it."""

    networks: Sequence[Network] = ()
    interfaces: Sequence[NetworkInterface] = ()
    groups: Sequence[SecurityGroup] = ()
    routers: Sequence[Router] = ()
    floating: Sequence[FloatingIP] = ()
    externals: Sequence[ExternalNetwork] = ()
    balancers: Sequence[LoadBalancer] = ()
    machines: Sequence[VirtualMachine] = ()
    partial: frozenset[str] = frozenset()
    """Uids of networks with interfaces, or routers, that were not read; and of routers with networks or floating addresses
    that were not."""
    unread: frozenset[str] = frozenset()
    """Namespaces of interfaces whose security groups, machines or load balancers the user may not see."""
    hosts: Mapping[str, Host] | None = None
    """None: the user may not see them."""
    orders: Mapping[Need, WorkOrder] | None = None
    """What hosts are told, as far as they are; None: the user may not see it."""


class Unclear(Exception):
    """The question names what is not there, or what may be several things. The text says what to do."""


_KINDS = ("vm", "nic", "lb")


def name_of(said: str, namespace: str) -> tuple[str, str, str]:
    """Kind (empty: any), namespace and name of an end that is named: NAME, `nic/NAME`, NAMESPACE/NAME, NAMESPACE/nic/NAME.
    Raises `Unclear`."""
    *before, name = said.split("/")
    kind = before.pop() if before and before[-1] in _KINDS else ""
    if len(before) > 1 or not all([*before, name]):
        raise Unclear(f"{said} names nothing: write NAME, nic/NAME, NAMESPACE/NAME or NAMESPACE/nic/NAME.")
    return kind, before[0] if before else namespace, name


class Tracer(Protocol):
    """Works it out. Pure. Raises `Unclear`."""

    def __call__(self, scene: Scene, question: Question) -> Trace: ...
