"""A hypervisor of a few lines, whose domains outlive the agent that talks to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kumulus.api.compute import PowerState
from kumulus_agents.hypervisor.protocol import (
    Domain,
    DomainListener,
    DomainSpec,
    DomainState,
    ExitReason,
    ForeignDomain,
    HypervisorError,
    Inventory,
    Marks,
)


@dataclass
class World:
    """What runs on a host, and what was done to it."""

    domains: dict[str, Domain] = field(default_factory=dict)
    specs: dict[str, DomainSpec] = field(default_factory=dict)
    foreign: list[ForeignDomain] = field(default_factory=list)
    acts: list[tuple[str, str]] = field(default_factory=list)
    listeners: list[DomainListener] = field(default_factory=list)
    failures: dict[str, list[HypervisorError]] = field(default_factory=dict)
    guest_obeys: bool = True
    start_seconds: float = 0.0
    down: bool = False

    def count(self, verb: str, uid: str | None = None) -> int:
        """How often a verb was carried out."""
        return sum(1 for act in self.acts if act[0] == verb and uid in (None, act[1]))

    def end(self, uid: str, reason: ExitReason) -> None:
        """The guest ends by itself."""
        self.domains[uid] = replace(
            self.domains[uid], state=DomainState.STOPPED, exit_reason=reason, started_at=None
        )
        self.tell(uid)

    def tell(self, uid: str) -> None:
        """Tell whoever listens."""
        for listener in self.listeners:
            listener(uid)


class FakeHypervisor:
    """One agent's connection to a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._listener: DomainListener | None = None

    def _act(self, verb: str, uid: str) -> None:
        if self.world.down:
            raise HypervisorError("libvirtd does not answer", reason="HypervisorUnavailable")
        waiting = self.world.failures.get(verb)
        if waiting:
            raise waiting.pop(0)
        self.world.acts.append((verb, uid))

    async def connect(self, listener: DomainListener) -> None:
        self._listener = listener
        self.world.listeners.append(listener)
        listener("")

    async def close(self) -> None:
        if self._listener in self.world.listeners:
            self.world.listeners.remove(self._listener)

    def _see(self) -> None:
        if self.world.down:
            raise HypervisorError("libvirtd does not answer", reason="HypervisorUnavailable")

    async def inventory(self) -> Inventory:
        self._see()
        return Inventory(cpus=8, memory=16 << 30, acceleration="tcg", machine_types=("q35", "pc"))

    async def domain(self, uid: str) -> Domain | None:
        self._see()
        return self.world.domains.get(uid)

    async def domains(self) -> Sequence[Domain]:
        self._see()
        return list(self.world.domains.values())

    async def foreign(self) -> Sequence[ForeignDomain]:
        self._see()
        return list(self.world.foreign)

    async def start(self, spec: DomainSpec) -> Domain:
        uid = spec.marks.uid
        known = self.world.domains.get(uid)
        if known is not None and known.state is not DomainState.STOPPED:
            self._act("mark", uid)
            self.world.domains[uid] = replace(known, marks=spec.marks)
            return self.world.domains[uid]
        if self.world.start_seconds:
            await asyncio.sleep(self.world.start_seconds)
        self._act("start", uid)
        self.world.specs[uid] = spec
        self.world.domains[uid] = Domain(spec.marks, DomainState.RUNNING, started_at=time.time())
        self.world.tell(uid)
        return self.world.domains[uid]

    async def mark(self, uid: str, marks: Marks) -> None:
        self._act("mark", uid)
        if uid in self.world.domains:
            self.world.domains[uid] = replace(self.world.domains[uid], marks=marks)

    async def power_button(self, uid: str) -> None:
        self._act("power_button", uid)
        if self.world.guest_obeys and uid in self.world.domains:
            self.world.end(uid, ExitReason.SHUTDOWN)

    async def force_off(self, uid: str) -> None:
        self._act("force_off", uid)
        if uid in self.world.domains:
            self.world.end(uid, ExitReason.DESTROYED)

    async def pause(self, uid: str) -> None:
        self._act("pause", uid)
        self.world.domains[uid] = replace(self.world.domains[uid], state=DomainState.PAUSED)

    async def resume(self, uid: str) -> None:
        self._act("resume", uid)
        self.world.domains[uid] = replace(self.world.domains[uid], state=DomainState.RUNNING)

    async def remove(self, uid: str) -> None:
        self._act("remove", uid)
        self.world.domains.pop(uid, None)
        self.world.tell(uid)


def wanted_of(world: World, uid: str) -> PowerState:
    """The power state last carried out, by the domain's own marks."""
    return world.domains[uid].marks.wanted
