"""Which host sees to a volume in a Ceph pool, on the image itself; and how one that has not given it up is shut out (ADR 10, 46).

Clients are shut out before the mark is made, for the mark takes the lock of the image, which a client that hangs does not give; and again
after it, for from then on the agent of the host before is refused by it, and who has opened the image in between is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from kumulus_agents.storage.keepers import refuse_older
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.faults import NotThere
from kumulus_agents.storage.rbd.images import OWN, RbdImages

log = structlog.get_logger(__name__)

KEEPER = f"{OWN}keeper"
"""Metadata key of the mark."""
_HELD, _NOT_GIVEN_UP = "held", "notGivenUp"
"""Of the mark: its host has not given the volume up; the one before had not, and is not shut out yet. Agents from before this was
recorded say neither, and nothing follows from that."""

Mark = Mapping[str, Any]


class RbdKeepers:
    """The marks of one pool. Who calls sees to it that no two verbs are about one volume at a time."""

    def __init__(self, images: RbdImages) -> None:
        self._images = images
        self._unmade: dict[str, tuple[str, int]] = {}
        """Host and epoch that a volume is to be marked with that is not made yet, by uid."""

    async def claim(self, uid: str, host: str, epoch: int) -> None:
        """See `StorageDriver.claim_volume`. What is not made yet is marked when it is."""
        name = names.volume(uid)
        found = await self._images.record(name, key=KEEPER)
        refuse_older(_who(found), host, epoch)
        mark = claimed(found, host, epoch)
        self._unmade.pop(uid, None)
        if found is None or mark != {key: found.get(key) for key in mark}:
            try:
                await self._images.keep_record(name, mark, key=KEEPER)
            except NotThere:
                self._unmade[uid] = (host, epoch)

    async def made(self, uid: str, image: str) -> None:
        """The image is about to become the volume."""
        if (one := self._unmade.pop(uid, None)) is not None:
            await self._images.keep_record(image, claimed(None, *one), key=KEEPER)

    async def release(self, uid: str, host: str, epoch: int) -> None:
        """See `Locking.release_volume`."""
        name = names.volume(uid)
        self._unmade.pop(uid, None)
        found = await self._images.record(name, key=KEEPER)
        if found is not None and _who(found) == (epoch, host) and found.get(_HELD):
            with suppress(NotThere):
                await self._images.keep_record(name, {**found, _HELD: False}, key=KEEPER)

    async def shut_out(self, uid: str, host: str, epoch: int, *, used: bool) -> None:
        """See `Locking.shut_out`. Raises `Busy`."""
        name = names.volume(uid)
        found = await self._images.record(name, key=KEEPER)
        if found is None or not claimed(found, host, epoch)[_NOT_GIVEN_UP]:
            return
        ours = _who(found) == (epoch, host)
        if not ours and int(found["epoch"]) >= epoch:
            return
        if not used:
            clients = await self._images.shut_out(name)
            if clients:
                log.warning(
                    "who had a volume is shut out of it", volume=uid, host=found["host"], clients=sorted(clients)
                )
        if ours:
            await self._images.keep_record(name, {**found, _NOT_GIVEN_UP: False}, key=KEEPER)


def claimed(before: Mark | None, host: str, epoch: int) -> dict[str, object]:
    """The mark of the host that claims the volume, in place of that one. Pure."""
    found = before or {}
    taken = bool(found.get(_HELD)) and found.get("host") != host
    return {"epoch": epoch, "host": host, _HELD: True, _NOT_GIVEN_UP: taken or bool(found.get(_NOT_GIVEN_UP))}


def _who(mark: Mark | None) -> tuple[int, str] | None:
    return (int(mark["epoch"]), str(mark["host"])) if mark is not None else None
