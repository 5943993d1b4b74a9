"""Volumes that something is being done with, which nobody else may touch meanwhile.

Locks of drivers keep the files in order; this keeps apart what goes through several drivers: a machine
does not start in the middle of a snapshot of its volumes. Nobody waits for a reservation: who does not
get one says why, and tries again when it is told that the volume is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from kumulus_agents.storage.protocol import StorageError

BUSY = "VolumeBusy"


class Reservations:
    """Of this host's volumes, by uid."""

    def __init__(self, freed: Callable[[str], None]) -> None:
        """`freed` is told the uid of each volume that is free again and that somebody else has asked for."""
        self._freed = freed
        self._held: dict[str, str] = {}
        self._asked: set[str] = set()
        self._halting: set[str] = set()

    def may_be_halted(self, machine: str) -> bool:
        """Whether the machine of that uid may be paused for a moment, and goes on without anybody's help."""
        return machine in self._halting

    @contextmanager
    def halting(self, machine: str) -> Iterator[None]:
        """The machine will be paused for a moment."""
        self._halting.add(machine)
        try:
            yield
        finally:
            self._halting.discard(machine)

    @contextmanager
    def hold(self, volumes: Iterable[str], doing: str) -> Iterator[None]:
        """Have all these volumes. `doing` is a sentence for others: "a snapshot of it is being taken".

        Raises `StorageError(reason="VolumeBusy")` when somebody has one of them.
        """
        wanted = frozenset(volumes)
        for volume in sorted(wanted & self._held.keys()):
            self._asked.update(wanted & self._held.keys())
            raise StorageError(
                f"The volume is busy: {self._held[volume]}. This goes on when that is done.", reason=BUSY
            )
        self._held.update(dict.fromkeys(wanted, doing))
        try:
            yield
        finally:
            for volume in wanted:
                del self._held[volume]
            waited_for = wanted & self._asked
            self._asked -= waited_for
            for volume in sorted(waited_for):
                self._freed(volume)
