"""From a qcow2 file of our own making to a raw one, by qemu-img in the cage.

For pools that keep no files: who writes to such a pool reads bytes then, and no format.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from kumulus_agents.storage import cage
from kumulus_agents.storage.cage import Handed, Limits
from kumulus_agents.storage.convert import percent_done
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings

_SOURCE, _TARGET = "source", "target"


async def expand(
    source: int, size: int, target: int, settings: StorageSettings, progress: Callable[[int, int], None]
) -> None:
    """Fill the open, empty file `target` with the disk of `size` bytes in the open qcow2 file `source`; with holes.

    Both files must be of this process alone; they are lent to the cage's user meanwhile.
    Raises `StorageError`: NoSpace, ImageTimeout, CageUnavailable, ImageDamaged.
    """
    uid = settings.cage.uid
    for fd in (source, target):
        os.fchown(fd, uid, uid)

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            progress(min(size, size * percent // 100), size)

    try:
        outcome = await cage.run(
            [str(settings.cage.qemu_img), "convert", "-p", "-f", "qcow2", "-O", "raw", f"/{_SOURCE}", f"/{_TARGET}"],
            [Handed(source, _SOURCE), Handed(target, _TARGET, write=True)],
            limits=Limits(
                settings.cage.address_space,
                settings.cage.convert_seconds,
                settings.cage.convert_seconds,
                file_size=size,
            ),
            settings=settings.cage,
            on_output=on_output,
        )
    finally:
        for fd in (source, target):
            os.fchown(fd, os.geteuid(), os.getegid())
    if "No space left on device" in outcome.errors or "Disk quota exceeded" in outcome.errors:
        raise StorageError("Could not convert the image: the scratch directory is full.", reason="NoSpace")
    if outcome.status or os.fstat(target).st_size != size:
        raise StorageError(
            f"The image could not be read again: qemu-img ended with status {outcome.status}.", reason="ImageDamaged"
        )
