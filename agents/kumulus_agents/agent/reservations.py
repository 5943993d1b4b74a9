"""Volumes that something is being done with, which nobody else may touch meanwhile.

Locks of drivers keep the files in order; this keeps apart what goes through several drivers: a machine
does not start in the middle of a snapshot of its volumes. Nobody waits for a reservation: who does not
get one says why, and tries again when it is told that the volume is free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from kumulus_agents.storage.protocol import StorageError

BUSY = "VolumeBusy"


class Reservations:
    """Of this host's volumes, by uid."""

    def __init__(
        self, freed: Callable[[str], None], *, leaving: Callable[[str], str | None] = lambda _volume: None
    ) -> None:
        """`freed` is told the uid of each volume that is free again and that somebody else has asked for. `leaving` names
        the machine that takes a volume along to another host: nobody gets it but for that."""
        self._freed = freed
        self._leaving = leaving
        self._held: dict[str, str] = {}
        self._asked: set[str] = set()
        self._halting: Counter[str] = Counter()
        self._resuming: Counter[str] = Counter()
        self._resumable: set[str] = set()

    def may_be_halted(self, machine: str) -> bool:
        """Whether the machine of that uid may be paused for a moment, and goes on without anybody's help."""
        return self._halting[machine] > 0

    @contextmanager
    def halting(self, machine: str) -> Iterator[None]:
        """The machine will be paused for a moment. Raises `StorageError(reason="VolumeBusy")` while it is being resumed."""
        if self._resuming[machine]:
            raise StorageError("The machine is being resumed just now.", reason=BUSY)
        with _counted(self._halting, machine):
            yield

    @contextmanager
    def resuming(self, machine: str, volumes: Iterable[str]) -> Iterator[None]:
        """The machine, which has these volumes, will go on. Who holds one of them may not mind.

        Raises `StorageError(reason="VolumeBusy")` when somebody does, or the machine is paused for a moment just now.
        """
        if self._halting[machine]:
            raise StorageError("The machine is halted for a moment.", reason=BUSY)
        doing = "a machine that has it is being resumed"
        with self.hold(frozenset(volumes) - self._resumable, doing, along=True), _counted(self._resuming, machine):
            yield

    @contextmanager
    def hold(
        self, volumes: Iterable[str], doing: str, *, resumable: bool = False, along: bool = False
    ) -> Iterator[None]:
        """Have all these volumes. `doing` is a sentence for others: "a snapshot of it is being taken". `resumable`: a
        machine that has them may be resumed meanwhile. `along`: it is for the machine that takes them to another host, or
        for that host.

        Raises `StorageError(reason="VolumeBusy")` when somebody has one of them.
        """
        wanted = frozenset(volumes)
        for volume in sorted(wanted & self._held.keys()):
            self._asked.update(wanted & self._held.keys())
            raise StorageError(
                f"The volume is busy: {self._held[volume]}. This goes on when that is done.", reason=BUSY
            )
        for volume in () if along else sorted(wanted):
            if (machine := self._leaving(volume)) is not None:
                raise StorageError(
                    f"The volume is busy: machine {machine} takes it along to another host. This goes on when that is done.",
                    reason=BUSY,
                )
        self._held.update(dict.fromkeys(wanted, doing))
        if resumable:
            self._resumable |= wanted
        try:
            yield
        finally:
            self._resumable -= wanted
            for volume in wanted:
                del self._held[volume]
            waited_for = wanted & self._asked
            self._asked -= waited_for
            for volume in sorted(waited_for):
                self._freed(volume)


@contextmanager
def _counted(counter: Counter[str], machine: str) -> Iterator[None]:
    """Several may do it at once; each ends by itself."""
    counter[machine] += 1
    try:
        yield
    finally:
        counter[machine] -= 1
        if not counter[machine]:
            del counter[machine]
