"""Who is asked whether a silent host is alive, and what follows from the answers. Pure (ADR 39)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from kumulus.api.base import ConditionStatus
from kumulus.api.fabric import Host, HostCondition
from kumulus.api.witness import Says, Statement, WitnessFacts, WitnessKind
from kumulus.runtime.conditions import Fact
from kumulus_controllers.fabric.liveness import Liveness, Verdict

PEERS = 3
"""So many other hosts are asked about one."""
AT_ONCE = 32
"""About so many silent hosts is asked at once, or about as many as may be silent while some are fenced, where that is more. While
there are more still, it is not the hosts that are silent; of those that are not asked about nothing is settled."""
NOT_YET = "It has been asked, and has not answered yet."


@dataclass(frozen=True, slots=True)
class Hearing:
    """What was heard of a silent host."""

    statements: tuple[Statement, ...] = ()
    settled: bool = False
    """Whether those who can be asked were asked, and have answered."""

    @property
    def alive(self) -> Statement | None:
        """One that proves the host alive."""
        return next((item for item in self.statements if item.says is Says.ALIVE), None)

    @property
    def says(self) -> Says:
        """What follows of it all: one witness with proof of life is enough, and goes before one that says Dead."""
        if self.alive is not None:
            return Says.ALIVE
        return Says.DEAD if any(item.says is Says.DEAD for item in self.statements) else Says.UNKNOWN


@dataclass(frozen=True, slots=True)
class Peer:
    """A host that could be asked."""

    name: str
    pools: tuple[str, ...] = ()
    """Uids of the pools that it shares with the silent one."""


def wanted(host: Host, verdict: Verdict, *, late: bool, machines: int) -> bool | None:
    """Whether witnesses are to be asked about it; None: that is not known, and what is being asked goes on. A host that would be
    fenced by itself is asked about from when it is late, so that the answers are there in time."""
    ready = host.status.condition(HostCondition.READY)
    if host.deleting or host.fenced:
        return False
    if verdict.liveness is Liveness.EXPIRED:
        return True
    if verdict.liveness is Liveness.ALIVE and not verdict.witnessed and ready is not None:
        return None if ready.status is ConditionStatus.UNKNOWN else False
    return late and host.spec.fencing.automatic and machines > 0


def chosen(host: str, able: Iterable[Peer], asked: Collection[str]) -> tuple[Peer, ...]:
    """Who is asked: those who are asked already, then those who share pools with it, then any; not the same ones about every
    host. `host` is the uid of the silent one."""

    def order(peer: Peer) -> tuple[bool, bool, bytes]:
        return (peer.name not in asked, not peer.pools, hashlib.sha256(f"{host} {peer.name}".encode()).digest())

    return tuple(sorted(able, key=order)[:PEERS])


def statements(peer: str, facts: WitnessFacts | None) -> tuple[tuple[Statement, ...], bool]:
    """What a peer says, and whether that is all it has to say."""
    found = facts or WitnessFacts()
    both = (
        (WitnessKind.PEER, found.peer, found.peer_message),
        (WitnessKind.STORAGE, found.storage, found.storage_message),
    )
    said = tuple(
        Statement(
            witness=peer,
            kind=kind,
            says=says if says is Says.ALIVE else Says.UNKNOWN,  # an agent cannot know that another host is dead
            message=(message if says is not None else NOT_YET),
        )
        for kind, says, message in both
    )
    return said, found.peer is not None and found.storage is not None


def isolated(host: Host, hearing: Hearing | None) -> Fact:
    """The condition Isolated: the host is alive, and cannot reach the API server."""
    proof = hearing.alive if hearing is not None else None
    if proof is None:
        return Fact(HostCondition.ISOLATED, None)
    why = f"{proof.witness} says so: {proof.message}" if proof.message else f"{proof.witness} says so"
    return Fact(
        HostCondition.ISOLATED,
        True,
        "WitnessAlive",
        f"It does not reach the API server, and is alive ({why}). Its machines run on and are not started elsewhere; nothing new"
        " reaches it. Look at its network and at its agent (journalctl -u kumulus-agent). To have it switched off all the same:"
        f" kumulusctl host fence {host.name} --despite-witnesses",
    )
