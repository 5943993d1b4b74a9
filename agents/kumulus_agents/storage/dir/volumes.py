"""Volumes in a pool: qcow2 files with a life of their own, blank, on a verified image, or copied.

A volume's record is written before the volume gets its name: a volume that exists has one. It says
of which layers the volume is, and which image it stands on; the header of a layer belongs to a
guest's emulator.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from kumulus_agents.storage import chain
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.chain import Chain
from kumulus_agents.storage.dir.creation import create, track
from kumulus_agents.storage.dir.images import stored as stored_image
from kumulus_agents.storage.dir.pool import PoolDirectory, uid_of
from kumulus_agents.storage.layers import Layers, from_record, to_record
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageError, StoredVolume
from kumulus_agents.storage.record import read_record, write_record
from kumulus_agents.storage.refusals import a_disc, linked_thick
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.sizes import at_least, of_blank
from kumulus_agents.storage.source import FileSource, LayerFile

MOST = 40
"""Layers that one is read through: more are slow, and every one is open in the emulator and in the cage."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a volume is a full copy of."""

    volume: str
    snapshot: str | None = None
    """None: the volume as it is."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a volume."""

    layers: Layers
    image: str | None = None
    """Uid of the image that the first layer stands on."""
    thick: bool = False
    base: tuple[str, str] | None = None
    """Volume and layer that the first layer stands on, of a volume that is linked to a snapshot."""
    reverted: str | None = None
    """The last request to revert it that was carried out."""
    encrypted: bool = False
    """All its layers are, with one passphrase, and so are those of other volumes that it stands on."""
    moved: str | None = None
    """The move that brought it here, of a volume that was made in another pool."""
    beside: str | None = None
    """The name that its file has besides, below the pool, of one that was a foreign domain's and was not opened since."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a volume is made of."""

    size: int
    """Bytes it shall have, whole sectors."""
    thick: bool
    overlay_of: str | None = None
    """Uid of the image it shall stand on."""
    linked_to: tuple[str, str] | None = None
    """Volume and layer it shall stand on."""
    copied: int = 0
    """Bytes of the disk that is copied into it."""


def known(volumes: Directory, uid: str) -> Record | None:
    """The volume's record, or None when there is none. Blocks. Raises `StorageError` for one that says nonsense."""
    record = read_record(volumes, record_of(uid))
    if record is None:
        return None
    try:
        layers = from_record(uid, record)
        base = _base(record.get("base"))
        for one in (*layers.parents, *(base or ())):
            uid_of(one)
    except (ValueError, StorageError) as error:
        raise StorageError(
            "The volume's record is damaged. Restore the volume from a backup.", reason="VolumeDamaged"
        ) from error
    image, reverted, moved = record.get("image"), record.get("reverted"), record.get("moved")
    beside = record.get("beside")
    return Record(
        layers,
        uid_of(image) if isinstance(image, str) else None,
        bool(record.get("thick")),
        base,
        reverted if isinstance(reverted, str) else None,
        bool(record.get("encrypted")),
        moved if isinstance(moved, str) else None,
        beside if isinstance(beside, str) else None,
    )


def _base(found: object) -> tuple[str, str] | None:
    match found:
        case None:
            return None
        case {"volume": str(volume), "layer": str(layer)}:
            return volume, layer
    raise ValueError("the record does not say what the volume stands on")


def note(volumes: Directory, uid: str, record: Record, *, flush: bool = True) -> None:
    """Make this what is known of the volume. Blocks; durable when it returns, with `flush`."""
    written = {"image": record.image, "thick": record.thick, **to_record(record.layers)}
    if record.base is not None:
        written["base"] = dict(zip(("volume", "layer"), record.base, strict=True))
    if record.reverted is not None:
        written["reverted"] = record.reverted
    if record.encrypted:
        written["encrypted"] = True
    if record.moved is not None:
        written["moved"] = record.moved
    if record.beside is not None:
        written["beside"] = record.beside
    write_record(volumes, record_of(uid), written, flush=flush)


def stored(pool: PoolDirectory, uid: str) -> StoredVolume | None:
    """The volume of that uid, if it is whole. Blocks."""
    with pool.volumes() as volumes:
        record = known(volumes, uid)
        while record is not None:
            try:
                return _whole(pool, volumes, uid, record)
            except FileNotFoundError:
                # Two layers may have been merged since the record was read.
                before, record = record, known(volumes, uid)
                if record == before:
                    return None
        return None


def _whole(pool: PoolDirectory, volumes: Directory, uid: str, record: Record) -> StoredVolume:
    layers = record.layers
    with volumes.reading(file_of(uid, layers.active)) as fd:
        size = chain.virtual_size(fd)
    used = sum(bytes_of(volumes, file_of(uid, layer)) for layer in layers.parents)
    names, image = chain_of(volumes, uid, record, layers.active)
    path, *below = (pool.volume_path(name) for name in names)
    files = [LayerFile(each, "qcow2", encrypted=record.encrypted) for each in below]
    if image is not None:
        files.append(LayerFile(pool.image_path(image), "qcow2"))
    return StoredVolume(FileSource(path), "qcow2", size, used, tuple(files), record.reverted, record.encrypted)


def chain_of(volumes: Directory, uid: str, record: Record, layer: str) -> tuple[list[str], str | None]:
    """Names of the layer's file and of all it stands on, also of other volumes; and the image below them. Blocks.

    Raises `FileNotFoundError` when a volume that it stands on is gone.
    """
    names = [file_of(uid, one) for one in record.layers.chain(layer)]
    image = record.image
    while record.base is not None and len(names) <= MOST:
        uid, layer = record.base
        if (below := known(volumes, uid)) is None or layer not in below.layers.parents:
            raise FileNotFoundError(uid)
        record = below
        names += [file_of(uid, one) for one in record.layers.chain(layer)]
        image = record.image
    return names, image


def linked(volumes: Directory, uid: str) -> dict[str, list[str]]:
    """Layers of the volume that other volumes stand on, and those. Blocks."""
    found: dict[str, list[str]] = {}
    for file in sorted(volumes.names()):
        other = file.removesuffix(".json")
        if file.startswith(".") or other in (file, uid):
            continue
        record = known(volumes, other)
        if record is not None and record.base is not None and record.base[0] == uid:
            found.setdefault(record.base[1], []).append(other)
    return found


def users(pool: PoolDirectory, image_uid: str) -> int:
    """How many volumes stand on the image. Blocks."""
    count = 0
    with pool.volumes() as volumes:
        for file in volumes.names():
            if file.startswith(".") or not file.endswith(".json"):
                continue
            record = read_record(volumes, file)
            if record is None or record.get("image") == image_uid:
                count += volumes.exists(f"{file.removesuffix('.json')}.qcow2")
    return count


def plan_on_image(pool: PoolDirectory, image_uid: str, size: int | None, thick: bool) -> Plan:
    """A volume that begins as the image: standing on it, or a copy when it is to be thick. Blocks.

    (qcow2 has no preallocated overlays.)
    """
    with pool.images() as images:
        image = stored_image(pool, images.whole, image_uid)
    if image is None:
        raise StorageError("The volume's image is not in the pool yet.", reason="ImageNotReady")
    if image.format != "qcow2":
        raise a_disc(image.source_format)
    wanted = at_least(size, image.virtual_size, "volume", "image")
    if thick:
        return Plan(wanted, thick, copied=image.virtual_size)
    return Plan(wanted, thick, overlay_of=image_uid)


def plan_copy(pool: PoolDirectory, source: Source, size: int | None, thick: bool) -> tuple[Plan, str | None]:
    """A volume that begins as a copy of another one, or of a snapshot of it, whose layer is told then. Blocks."""
    found = stored(pool, source.volume)
    if source.snapshot is None:
        if found is None:
            raise StorageError("The volume that is to be copied is not in the pool yet.", reason="VolumeNotReady")
        return Plan(
            at_least(size, found.virtual_size, "volume", "volume it is copied from"), thick, copied=found.virtual_size
        ), None
    with pool.volumes() as volumes:
        record = known(volumes, source.volume) if found is not None else None
        kept = record.layers.snapshots.get(source.snapshot) if record is not None else None
        if record is not None and record.layers.merging is not None:
            raise StorageError("Layers of the volume are being merged. Wait until that is done.", reason="VolumeInUse")
        if kept is None or kept.taken is None:
            raise StorageError("The snapshot that is to be copied is not in the pool yet.", reason="SnapshotNotReady")
        with volumes.reading(file_of(source.volume, kept.layer)) as fd:
            least = chain.virtual_size(fd)
    return Plan(at_least(size, least, "volume", "snapshot it is copied from"), thick, copied=least), kept.layer


def plan_link(pool: PoolDirectory, source: Source, size: int | None, thick: bool, *, encrypted: bool = False) -> Plan:
    """A volume that begins as a snapshot of another one, and stands on it. Blocks."""
    if thick:
        raise linked_thick()
    plan, layer = plan_copy(pool, source, size, thick=False)
    if layer is None:
        raise StorageError("Only snapshots can be linked to.", reason="SnapshotNotReady")
    with pool.volumes() as volumes:
        record = known(volumes, source.volume)
        if record is None or len(chain_of(volumes, source.volume, record, layer)[0]) >= MOST:
            raise too_many()
    if record.encrypted != encrypted:
        raise mismatch()
    return Plan(plan.size, thick=False, linked_to=(source.volume, layer))


def mismatch() -> StorageError:
    """A volume is encrypted and its passphrase is not known, or the other way round."""
    return StorageError(
        "The volume that it is made from is encrypted and its order does not say so, or the other way round.",
        reason="EncryptionMismatch",
        retryable=False,
    )


def in_clear(why: str) -> StorageError:
    """What is encrypted would be copied to what is not."""
    return StorageError(f"The volume is encrypted, and a {why}", reason="EncryptedCopy", retryable=False)


def too_many() -> StorageError:
    """There are as many layers as there may be."""
    return StorageError(
        f"The volume has {MOST} layers, one a snapshot. Delete a snapshot, or copy the volume to a new one.",
        reason="TooManySnapshots",
        retryable=False,
    )


def plan_blank(size: int | None, thick: bool) -> Plan:
    """A volume with nothing in it."""
    return Plan(of_blank(size), thick)


async def make(
    pool: PoolDirectory,
    settings: StorageSettings,
    uid: str,
    plan: Plan,
    source: Chain | None,
    pace: Pace,
    passphrase: Passphrase | None = None,
) -> None:
    """Make the volume. `source` is what it is copied from. Raises `StorageError` or `OSError`.

    Whatever an earlier attempt left is replaced; nothing is left of this one when it fails. In one that is encrypted
    there is no bitmap of which parts are written.
    """
    with pool.volumes() as volumes:
        fd = await in_thread(volumes.fresh, making(uid))
        try:
            backing = pool.backing_of_volume(plan.overlay_of) if plan.overlay_of is not None else None
            if plan.linked_to is not None:
                backing = file_of(*plan.linked_to)
            await in_thread(create, settings, fd, plan.size, backing=backing, thick=plan.thick, passphrase=passphrase)
            if source is not None:
                pace.stage("Copying", 0, plan.copied)
                await chain.copy(source, plan.copied, fd, settings, pace.at, passphrase)
            if passphrase is None:
                await in_thread(track, settings, fd)
            record = Record(
                Layers.first(uid), plan.overlay_of, plan.thick, plan.linked_to, encrypted=passphrase is not None
            )
            await in_thread(_settle, volumes, uid, fd, record)
        except BaseException:
            volumes.remove(making(uid))
            raise
        finally:
            os.close(fd)


async def grow(
    pool: PoolDirectory, settings: StorageSettings, uid: str, size: int, passphrase: Passphrase | None = None
) -> None:
    """Make the disk in the file larger; nobody may use it. Raises `StorageError` or `OSError`.

    Of a thick volume with snapshots nothing is reserved: qcow2 has no preallocated overlays. Nor is it of one that is
    encrypted.
    """
    with pool.volumes() as volumes:
        record = await in_thread(known, volumes, uid)
    thick = record is not None and record.thick and len(record.layers.parents) == 1
    with open_chain(pool, uid, write=1, passphrase=passphrase) as volume:
        await chain.mend(volume.layers[0], settings)
        await chain.grow(volume, size, settings, thick=thick)


async def mend(pool: PoolDirectory, settings: StorageSettings, uid: str) -> None:
    """Put in order what an emulator that was killed left in the files that it wrote to. Somebody has one open: nothing.

    They are the one that is written, and the one that is merged into, which an emulator cannot make as large as what it
    merges unless that is in order. Idempotent. Raises `StorageError` or `OSError`.
    """
    with pool.volumes() as volumes:
        record = await in_thread(known, volumes, uid)
    with open_chain(pool, uid, write=1) as volume:
        await chain.mend(volume.layers[0], settings)
    if record is None or record.layers.merging is None:
        return
    upper, lower = record.layers.merging
    if record.layers.parents.get(upper) == lower:
        with open_chain(pool, uid, lower, write=1) as volume:
            await chain.mend(volume.layers[0], settings)


async def unlock(
    pool: PoolDirectory, settings: StorageSettings, uid: str, passphrase: Passphrase, layer: str | None = None
) -> None:
    """See whether that is the passphrase of the layer (None: of the one that is written), which may be in use.

    Raises `StorageError(reason="WrongPassphrase")` or `OSError`.
    """
    with open_chain(pool, uid, layer) as volume:
        await chain.unlock(volume.layers[0], passphrase, settings)


@contextmanager
def open_chain(
    pool: PoolDirectory, uid: str, layer: str | None = None, *, write: int = 0, passphrase: Passphrase | None = None
) -> Iterator[Chain]:
    """A layer's file (None: the one that is written), those of all it stands on, and the image's, open. The topmost
    `write` of them can be written. Blocks shortly."""
    with ExitStack() as stack:
        volumes, images = stack.enter_context(pool.volumes()), stack.enter_context(pool.images())
        record = known(volumes, uid)
        if record is None:
            raise FileNotFoundError(uid)
        names, below = chain_of(volumes, uid, record, layer or record.layers.active)
        fds = []
        for number, name in enumerate(names):
            fds.append(volumes.open(name, os.O_RDWR if number < write else os.O_RDONLY))
            stack.callback(os.close, fds[-1])
        image = None
        if below is not None:
            image = images.whole.open(f"{below}.qcow2")
            stack.callback(os.close, image)
        yield Chain(tuple(fds), image, frozen=layer is not None and not write, passphrase=passphrase)


@contextmanager
def open_image(pool: PoolDirectory, uid: str) -> Iterator[Chain]:
    """The image's file, open to be copied. Blocks shortly."""
    with pool.images() as images, images.whole.reading(f"{uid}.qcow2") as fd:
        yield Chain((), fd)


def take_back(pool: PoolDirectory, uid: str) -> None:
    """Nobody but its owner may read the volume's files, whatever they were lent for. Blocks."""
    with pool.volumes() as volumes:
        record = known(volumes, uid)
        for layer in record.layers.parents if record is not None else ():
            with suppress(FileNotFoundError), volumes.reading(file_of(uid, layer)) as fd:
                if stat.S_IMODE(os.fstat(fd).st_mode) != chain.MODE:
                    os.fchmod(fd, chain.MODE)


def remove(pool: PoolDirectory, uid: str) -> None:
    """Remove the volume and everything on the way to it; the volume before its record. A name that its file has besides, from
    before it was ours, stays. Blocks.

    Raises `StorageError(reason="VolumeInUse")` when it has snapshots, or an emulator writes to it after all.
    """
    with pool.volumes() as volumes:
        record = read_record(volumes, record_of(uid))
        if record is not None and (snapshots := record.get("snapshots")):
            count = len(snapshots) if isinstance(snapshots, dict) else 1
            raise StorageError(
                f"The volume has {count} snapshot(s), which cannot be without it. Delete the snapshots first.",
                reason="VolumeInUse",
            )
        # The one that is written goes first: without it nobody takes the rest for a volume.
        active = record.get("active") if record is not None else None
        first = file_of(uid, active if isinstance(active, str) else uid)
        _refuse_written(volumes, first)
        for file in sorted(files_of(volumes, uid), key=lambda file: file != first):
            volumes.remove(file)
        volumes.flush()
        volumes.erase(record_of(uid))
        for name in (making(uid), coming(uid)):
            volumes.remove(name)


def _refuse_written(volumes: Directory, file: str) -> None:
    """Nobody should: but what a guest is told to be safe would be lost. Where there are no locks nobody can tell."""
    with suppress(OSError), volumes.reading(file) as fd:
        if chain.is_written(fd):
            raise StorageError(
                "An emulator writes to the volume: it is not removed. Stop the machine that has it.",
                reason="VolumeInUse",
            )


def files_of(volumes: Directory, uid: str) -> list[str]:
    """The files of the volume's layers, those that are in no record too. Blocks."""
    names = (name for name in volumes.names() if name.startswith(f"{uid}.") and name.endswith(".qcow2"))
    return sorted(names)


def _settle(volumes: Directory, uid: str, fd: int, record: Record) -> None:
    """Give the file its name, its record first. One call, so that cancelling does not end it halfway."""
    note(volumes, uid, record, flush=False)  # the volume's own flush keeps both names
    try:
        volumes.settle(fd, making(uid), file_of(uid, uid))
    except BaseException:
        volumes.remove(record_of(uid))
        raise


def bytes_of(volumes: Directory, file: str) -> int:
    """What the file takes. Blocks."""
    return os.stat(file, dir_fd=volumes.fd, follow_symlinks=False).st_blocks * 512


def file_of(uid: str, layer: str) -> str:
    """Name of a layer's file."""
    return f"{uid}.qcow2" if layer == uid else f"{uid}.{layer}.qcow2"


def record_of(uid: str) -> str:
    """Name of a volume's record."""
    return f"{uid}.json"


def making(uid: str) -> str:
    """Name of a file that is on its way to be the volume's."""
    return f".{uid}.new"


def coming(uid: str) -> str:
    """Name of the record that says by which move the file comes that has the volume's name and is no volume yet."""
    return f".{uid}.comes"
