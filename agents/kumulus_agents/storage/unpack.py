"""From a packed source that was verified to what is in it, in the cage."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from kumulus_agents.storage import cage
from kumulus_agents.storage.convert import rejected
from kumulus_agents.storage.faults import storage_error
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings


class NoRoom(Exception):
    """What is packed has more bytes than there is room for."""


_TICK = re.compile(rb"(\d{1,18})\n")


async def unpack(
    source: int,
    compression: str,
    target: int,
    room: int,
    settings: StorageSettings,
    progress: Callable[[int], None],
) -> None:
    """Fill the open, empty file `target` with what is packed in `source`; zeros become holes.

    The target must be of this process alone; it is lent to the cage's user meanwhile. `progress` is told
    bytes of the source that were read, at least whenever the target has grown by a sixteenth or a MiB;
    what it raises ends the work and is raised here. Raises `NoRoom` when more than `room` bytes would be taken, and `StorageError`: ImageRejected, ImageTooLarge, NoSpace, ImageTimeout, CageUnavailable.
    """
    packed, limit = os.fstat(source).st_size, settings.fetch.max_bytes

    def on_output(data: bytes) -> None:
        if ticks := _TICK.findall(data):
            progress(min(int(ticks[-1]), packed))

    os.fchown(target, settings.cage.uid, settings.cage.uid)
    try:
        answer = await cage.unpack(
            source,
            target,
            compression,
            limit,
            room,
            settings=settings.cage,
            on_output=on_output,
        )
    finally:
        os.fchown(target, os.geteuid(), os.getegid())
    why, failed, size = answer.get("rejected"), answer.get("failed"), answer.get("size")
    if isinstance(why, str):
        raise rejected(why)
    if answer.get("tooLarge"):
        raise StorageError(
            f"The image is refused: its {packed} bytes unpack to more than the {limit} an import may have.",
            reason="ImageTooLarge",
            retryable=False,
        )
    if answer.get("noRoom"):
        raise NoRoom
    if isinstance(failed, int):
        raise storage_error(OSError(failed, os.strerror(failed)), "unpack the image")
    if size != os.fstat(target).st_size:
        raise rejected("could not be unpacked")
