"""What happens on simulated hosts, written down as it happens: which machine ran where from when to when, and what was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kumulus_agents.hypervisor.domain import Domain, DomainState
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_agents.network.simulated import SimulatedFabric
from kumulus_agents.storage.simulated import SimulatedPool


@dataclass(slots=True)
class Run:
    """From when to when a machine ran on a host."""

    uid: str
    host: str
    epoch: int
    began: float
    came: bool = False
    """Its guest came from another host and went on, and was not started."""
    ended: float | None = None

    def __str__(self) -> str:
        return f"{self.uid} on {self.host}, epoch {self.epoch}, from {self.began:.3f} to {self.ended or 'now'}"


@dataclass
class Books:
    """Of all hosts of a world."""

    time: Callable[[], float]
    runs: list[Run] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    """`made volume <uid> on one`, `removed port <uid> on two`, ..."""
    overlaps: list[str] = field(default_factory=list)
    """Two runs of a machine at once, or an older epoch after a newer one."""

    def running(self, uid: str) -> list[Run]:
        """The runs of a machine that go on."""
        return [run for run in self.runs if run.uid == uid and run.ended is None]

    def domain(self, host: str, uid: str, before: Domain | None, after: Domain | None) -> None:
        """A domain changed."""
        was, is_ = _on(before), _on(after)
        if is_ and not was and after is not None:
            came = before is not None and before.state is not DomainState.STOPPED
            run = Run(uid, host, after.marks.epoch, self.time(), came)
            for other in self.running(uid):
                self.overlaps.append(f"two at once: {other}; {run}")
            newest = max((other.epoch for other in self.runs if other.uid == uid), default=0)
            if newest > run.epoch:
                self.overlaps.append(f"an older epoch after {newest}: {run}")
            self.runs.append(run)
        if was and not is_:
            for run in self.running(uid):
                if run.host == host:
                    run.ended = self.time()

    def note(self, line: str) -> None:
        """Something came or went."""
        self.made.append(line)


def _on(domain: Domain | None) -> bool:
    """Whether it is its host's to run: a guest on its way to a host stands halted there, and runs where it was."""
    return domain is not None and domain.state is not DomainState.STOPPED and domain.arriving is None


class Noted(dict[str, Any]):
    """What is on a host, by uid; whatever comes and goes is written down."""

    def __init__(self, changed: Callable[[str, Any, Any], None], items: dict[str, Any]) -> None:
        super().__init__()
        self._changed = changed
        self.update(items)

    def __setitem__(self, key: str, value: Any) -> None:
        before = self.get(key)
        super().__setitem__(key, value)
        self._changed(key, before, value)

    def __delitem__(self, key: str) -> None:
        before = self[key]
        super().__delitem__(key)
        self._changed(key, before, None)

    def pop(self, key: str, *default: Any) -> Any:
        if key not in self:
            return super().pop(key, *default)
        before = self[key]
        del self[key]
        return before

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *others: Any, **more: Any) -> None:
        for key, value in dict(*others, **more).items():
            self[key] = value


def keep(books: Books, host: str, machine: SimulatedHost, fabric: SimulatedFabric) -> None:
    """Have a host's books kept."""
    machine.domains = Noted(lambda uid, before, after: books.domain(host, uid, before, after), machine.domains)
    fabric.segments = _noted(books, "segment", host, fabric.segments)
    fabric.ports = _noted(books, "port", host, fabric.ports)


def keep_pool(books: Books, place: str, pool: SimulatedPool) -> SimulatedPool:
    """Have a pool's books kept."""
    pool.images = _noted(books, "image", place, pool.images)
    pool.volumes = _noted(books, "volume", place, pool.volumes)
    pool.disks = _noted(books, "disks", place, pool.disks)
    return pool


def _noted(books: Books, what: str, place: str, items: dict[str, Any]) -> Noted:
    def changed(uid: str, before: Any, after: Any) -> None:
        if (before is None) != (after is None):
            books.note(f"{'made' if before is None else 'removed'} {what} {uid} {place}")

    return Noted(changed, items)
