"""From a source that was verified to a qcow2 file of our own making, by qemu-img in the cage."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

from kumulus_agents.storage import cage, qcow2
from kumulus_agents.storage.cage import Handed, Limits
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rejection import Found, Rejected
from kumulus_agents.storage.settings import StorageSettings

_PERCENT = re.compile(rb"\(\s*(\d{1,3})\.\d+/100%\)")
_SOURCE, _TARGET = "source", "target"


def rejected(why: str) -> StorageError:
    """The refusal of an image."""
    return StorageError(f"The image is refused: it {why}.", reason="ImageRejected", retryable=False)


async def inspect(source: int, declared: str, settings: StorageSettings) -> Found:
    """What the open file is, said by the inspector in the cage. Raises `StorageError(reason="ImageRejected")`."""
    answer = await cage.inspect(source, declared, settings.max_virtual_size, settings=settings.cage)
    why, form, size = answer.get("rejected"), answer.get("format"), answer.get("virtualSize")
    if isinstance(why, str):
        raise rejected(why)
    if form != declared or not isinstance(size, int) or not 0 < size <= settings.max_virtual_size:
        raise rejected("could not be inspected")
    return Found(declared, size)


async def convert(
    source: int, found: Found, target: int, settings: StorageSettings, progress: Callable[[int, int], None]
) -> int:
    """Fill the open, empty file `target` with a qcow2 file that has what `source` has. Returns its virtual size.

    Both files must be of this process alone; they are lent to the cage's user meanwhile, the source
    for reading only. `progress` is told bytes done and bytes in all. The result is checked like a
    source: a qemu-img that was taken over cannot leave a file that names another.
    Raises `StorageError`: ImageRejected, NoSpace, ImageTimeout, CageUnavailable.
    """
    uid = settings.cage.uid
    for fd in (source, target):
        os.fchown(fd, uid, uid)
    os.fchmod(source, 0o400)

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            progress(min(found.virtual_size, found.virtual_size * percent // 100), found.virtual_size)

    try:
        outcome = await cage.run(
            [
                *(str(settings.cage.qemu_img), "convert", "-p", "-O", "qcow2", "-o", "compat=1.1"),
                *(*_opened(found.format), f"/{_TARGET}"),
            ],
            [Handed(source, _SOURCE), Handed(target, _TARGET, write=True)],
            limits=Limits(
                settings.cage.address_space,
                settings.cage.convert_seconds,
                settings.cage.convert_seconds,
                file_size=_largest(found.virtual_size, settings),
            ),
            settings=settings.cage,
            on_output=on_output,
        )
    finally:
        for fd in (source, target):
            os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, 0o600)
    _judge(outcome)
    return _checked(target, found)


def percent_done(output: bytes) -> int | None:
    """What `qemu-img -p` said last in this piece of its output."""
    percents = _PERCENT.findall(output)
    return int(percents[-1]) if percents else None


def _opened(form: str) -> tuple[str, ...]:
    """The source as qemu-img is told to open it, its format pinned.

    A VHD's footer has the size of its disk twice; which one counts would depend on who wrote it.
    """
    if form == "vhd":
        return "--image-opts", f"driver=vpc,force_size_calc=current_size,file.driver=file,file.filename=/{_SOURCE}"
    return "-f", form, f"/{_SOURCE}"


def _largest(virtual_size: int, settings: StorageSettings) -> int:
    """Bytes the result may have: the disk and its tables, and no more than an import may."""
    return min(virtual_size, settings.fetch.max_bytes) // 8 * 9 + (64 << 20)


def _judge(outcome: cage.Outcome) -> None:
    if outcome.status == 0:
        return
    if "No space left on device" in outcome.errors or "Disk quota exceeded" in outcome.errors:
        raise StorageError(
            "Could not convert the image: the pool is full. Free space in it or choose another pool.", reason="NoSpace"
        )
    if outcome.ended_by(signal.SIGXFSZ) or "File too large" in outcome.errors:
        raise rejected("unpacks to more than an import may have")
    if outcome.ended_by(signal.SIGXCPU) or outcome.ended_by(signal.SIGKILL):
        raise rejected("takes too much time or memory to convert")
    if "Input/output error" in outcome.errors:
        raise rejected("has parts that cannot be read, or the pool has: qemu-img says Input/output error")
    raise rejected(f"cannot be converted by qemu-img (status {outcome.status})")


def _checked(target: int, found: Found) -> int:
    """The virtual size of the result, rounded up to sectors by qemu-img."""
    try:
        made = qcow2.inspect(
            lambda offset, length: os.pread(target, length, offset), os.fstat(target).st_size, found.virtual_size + 511
        )
    except Rejected as error:
        raise rejected("was converted to something that is not in order") from error
    if made.virtual_size < found.virtual_size:
        raise rejected("was converted to something shorter")
    return made.virtual_size
