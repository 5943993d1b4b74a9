"""What a volume is to be and who may write to it, from what was read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kumulus.api.base import DOMAIN, FORCE_DETACH, ObjectRef
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkOrderSpec, WorkType
from kumulus.api.image import OPTICAL, ClusterImage, Image, ImagePhase
from kumulus.api.machine_import import FOUND, UNMANAGE
from kumulus.api.order_names import luks_secret_name
from kumulus.api.pool_order import PoolRef, UnownedFile, UnownedKind
from kumulus.api.qos import Qos
from kumulus.api.quantity import from_bytes, to_bytes
from kumulus.api.snapshots import SnapshotPhase
from kumulus.api.storage import Attachment, Provisioning, StoragePool, Volume, VolumeClass
from kumulus.api.volume_order import DiskOrder, ExistingFile, SnapshotRef, VolumeOrder, VolumeOrigin
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.api.volumes import CacheMode, CloneMode, Encryption, ExistingData, ReclaimPolicy
from kumulus_controllers.planning.views import VolumeDemand
from kumulus_controllers.storage.image_orders import image_ref
from kumulus_controllers.storage.sharing import NotUsable, Reference, usable

AnyImage = Image | ClusterImage

MADE_FOR = f"{DOMAIN}/made-for"
"""Annotation of a volume that a machine brought along: the machine's uid."""

_FOUND = re.compile(r"([a-z0-9][-a-z0-9]{0,62})/([a-z0-9][-a-z0-9.]{0,62})/([-0-9a-f]{36})/([-0-9a-f]{36})")

FIRST_USE = "WaitForFirstConsumer"
"""Reason of a volume that is made when its first machine has a host."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Why the volume cannot be made, used or removed yet."""

    reason: str
    message: str
    stalled: bool = True
    """Somebody has to do something; False when it will pass by itself."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How machines have a volume: what of its class may change while they do."""

    qos: Qos | None = None
    cache: CacheMode | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a volume is."""

    pool: PoolRef
    host: str
    """In a pool that hosts share: the one whose agent sees to it."""
    epoch: int | None = None
    """How often it was handed over, in a pool that hosts share."""
    came_by: str | None = None
    """Uid of the migration by which it has come there with its machine, and is not a volume of that pool until it is ordered."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    volume: Volume
    order: WorkOrder | None = None
    """The order that keeps it on its host."""
    strays: tuple[WorkOrder, ...] = ()
    """Orders that keep it on other hosts."""
    left_behind: tuple[WorkOrder, ...] = ()
    """Orders on hosts that it has left with its machine, of a volume in a pool of one host."""
    shared: bool = False
    """It is in a pool that hosts share."""
    reaching: frozenset[str] = frozenset()
    """Of the hosts of its users, those that can use its pool. Known of a volume in a pool that hosts share."""
    pool: StoragePool | None = None
    """The pool it is in."""
    target: StoragePool | None = None
    """The pool that it is being moved to, as it is on record."""
    linked: tuple[str, ...] = ()
    """Names of the Volumes that are linked to snapshots of it."""
    copied: str | None = None
    """What is being made as a copy of it, or of a snapshot of it: its kind and name."""
    snapped: bool = False
    """A host keeps snapshots of it."""
    host: Host | None = None
    """The host it is on, if that host exists."""
    volume_class: VolumeClass | None = None
    """The class it names, else the default one, if there is any."""
    asked: StoragePool | None = None
    """The pool it asks for by name, if that exists."""
    existing: UnownedFile | None = None
    """The data that it is to be, as the host lists it."""
    existing_owned: bool = False
    """That data belongs to a volume that there is."""
    image: AnyImage | None = None
    source: Volume | None = None
    source_busy: str | None = None
    """Name of a machine that writes to the source."""
    snapshot: VolumeSnapshot | None = None
    """The snapshot that it is to be made from."""
    made_of: Volume | None = None
    """The volume that it is to be a copy of, or that the snapshot is of."""
    snapshot_going: bool = False
    """That snapshot is being removed."""
    snapshots: tuple[str, ...] = ()
    """What is kept of it, as `kubectl delete` takes it."""
    users: tuple[VirtualMachine, ...] = ()
    """Machines of the namespace that name it."""
    instances: tuple[WorkOrder, ...] = ()
    """Orders of machines that have it, or have it still."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the volume is to be."""

    size: int
    """Bytes."""
    demand: VolumeDemand
    thick: bool
    retain: bool
    origin: VolumeOrigin | None
    encryption: Encryption | None = None


def found_as(data: ExistingData) -> str:
    """What the annotation `FOUND` says of data that a domain has."""
    return f"{data.host}/{data.pool}/{data.id}/{data.domain}"


def existing_of(volume: Volume) -> ExistingData | None:
    """The data that a volume is to be, by what was found, else by its source."""
    match = _FOUND.fullmatch(volume.metadata.annotations.get(FOUND, ""))
    if match is not None:
        return ExistingData(host=match[1], pool=match[2], id=match[3], foreign=True, domain=match[4])
    return volume.spec.source.existing if volume.spec.source is not None else None


def wanted(scope: Scope) -> Wanted | Lack:
    """What the volume is to be, or why that cannot be said yet. A class that goes later changes nothing of what was made."""
    volume, spec = scope.volume, scope.volume.spec
    offered = scope.volume_class
    if scope.order is None and volume.status.size is None:
        if spec.volume_class is not None and offered is None:
            return Lack("VolumeClassNotFound", f"There is no VolumeClass {spec.volume_class}: ask your operator.")
        allowed = offered.spec.allowed_namespaces if offered is not None else ()
        if offered is not None and allowed and volume.namespace not in allowed:
            return Lack(
                "VolumeClassNotAllowed", f"VolumeClass {offered.name} may not be used in namespace {volume.namespace}."
            )
        asked = scope.asked
        if (
            asked is not None
            and asked.spec.allowed_namespaces
            and volume.namespace not in asked.spec.allowed_namespaces
        ):
            return Lack("PoolNotAllowed", f"StoragePool {asked.name} may not be used in namespace {volume.namespace}.")
    encryption = _encryption(scope)
    least, origin = 0, None
    existing = existing_of(volume)
    if (spec.source is not None or existing is not None) and scope.order is None and volume.status.size is None:
        found = _origin(scope, existing)
        if isinstance(found, Lack):
            return found
        origin, least = found
        if (lack := _unencryptable(scope, origin, encryption)) is not None:
            return lack
        if existing is None and scope.made_of is not None and scope.made_of.status.encryption is not None:
            origin = origin.model_copy(update={"secret": luks_secret_name(scope.made_of.uid)})
    size = max(to_bytes(spec.size) if spec.size else least, 1)
    if spec.size and size < least:
        return Lack("DiskTooSmall", f"Its source has {from_bytes(least)}: make a volume of at least that size.")
    return Wanted(
        size=size,
        demand=VolumeDemand(
            uid=volume.uid,
            size=size,
            selector=offered.spec.pool_selector if offered else {},
            pool=spec.pool,
        ),
        # What stands on a snapshot cannot have all of its space at once.
        thick=offered is not None
        and offered.spec.provisioning is Provisioning.THICK
        and not (origin is not None and origin.linked),
        retain=retained(scope),
        origin=origin,
        encryption=encryption,
    )


def _encryption(scope: Scope) -> Encryption | None:
    """How it is encrypted: as its class said when it was given a place, whatever that says now."""
    if scope.volume.status.pool is not None:
        return scope.volume.status.encryption
    return scope.volume_class.spec.encryption if scope.volume_class is not None else None


def _unencryptable(scope: Scope, origin: VolumeOrigin, encryption: Encryption | None) -> Lack | None:
    """Why what it begins with and its encryption do not go together."""
    if scope.existing is not None and scope.existing.encrypted != (encryption is not None):
        return Lack(
            "EncryptionMismatch",
            "The data is encrypted: take a class that encrypts, with a Secret that has the passphrase it was made with."
            if encryption is None
            else "The data is not encrypted, and its class encrypts: take one that does not, and have a copy of that volume"
            " encrypted.",
        )
    source = scope.made_of if origin.existing is None else None
    before = source.status.encryption if source is not None else None
    if source is not None and before is not None and encryption is None:
        one = f" as {source.status.volume_class} does" if source.status.volume_class is not None else ""
        return Lack(
            "EncryptedCopy",
            f"Volume {source.name} is encrypted, and a copy of it would not be: name a class that encrypts{one}. To give"
            " encryption up, copy what is in it within a machine.",
        )
    if source is not None and origin.linked and before != encryption:
        how = f"encrypted with key {before.key} of Secret {before.secret}" if before is not None else "not encrypted"
        return Lack(
            "LinkedPassphrase",
            f"It would stand on the snapshot of Volume {source.name}, which is {how}: take a class that says the same, or"
            " copy it in full (cloneMode: Full).",
        )
    return None


def stands_on(scope: Scope) -> Volume | None:
    """The volume whose snapshot it is linked to, and whose passphrase it has if it is encrypted."""
    source = scope.volume.spec.source
    return scope.made_of if source is not None and source.clone_mode is CloneMode.LINKED else None


def retained(scope: Scope) -> bool:
    """Whether the data outlives the volume. Data is never given up because a class went, or while a domain that is nobody's
    has it."""
    if scope.volume.metadata.annotations.get(UNMANAGE) == "true":
        return True
    if scope.volume.spec.reclaim_policy is not None:
        return scope.volume.spec.reclaim_policy is ReclaimPolicy.RETAIN
    if scope.volume_class is not None:
        return scope.volume_class.spec.reclaim_policy is ReclaimPolicy.RETAIN
    order = scope.order or next(iter(scope.left_behind), None)
    disk = order.spec.disk if order is not None else None
    return disk is not None and disk.volume is not None and disk.volume.retain


def _origin(scope: Scope, existing: ExistingData | None) -> tuple[VolumeOrigin, int] | Lack:
    """What it begins with, and how many bytes that has."""
    if existing is not None:
        return _existing(scope, existing)
    source = scope.volume.spec.source
    assert source is not None
    if source.volume is not None:
        other = scope.source
        if other is None or other.deleting:
            return Lack("SourceNotFound", f"There is no Volume {source.volume} in the namespace.")
        if other.status.pool is None or other.status.size is None:
            return Lack("SourceNotReady", f"Volume {other.name} is not made yet.", stalled=False)
        if other.status.moving_to is not None:
            return Lack(
                "SourceNotReady",
                f"Volume {other.name} is being moved to StoragePool {other.status.moving_to}: it is copied when that is done.",
                stalled=False,
            )
        if scope.source_busy is not None:
            return Lack(
                "SourceInUse",
                f"Machine {scope.source_busy} writes to Volume {other.name}: stop it until the copy is made.",
                stalled=False,
            )
        return VolumeOrigin(volume=other.uid), other.status.size
    if source.snapshot is not None:
        return _snapshot_origin(scope, source.snapshot, linked=source.clone_mode is CloneMode.LINKED)
    assert source.image is not None
    found = usable(scope.image, Reference(source.image, scope.volume.namespace or "", source.image_namespace))
    if isinstance(found, NotUsable):
        return Lack(found.reason, found.message)
    image = found
    if image.spec.format in OPTICAL:
        return Lack(
            "ImageNotADisk",
            f"{image.KIND.kind} {image.name} is a disc ({image.spec.format}), of which no volume is made:"
            " use it for an ephemeral disk, or name an image of a disk.",
        )
    if image.status.phase is not ImagePhase.READY:
        ready = image.status.condition("Ready")
        failed = image.status.phase is ImagePhase.FAILED
        why = ready.message if ready else "its import has not begun"
        return Lack("ImageFailed" if failed else "ImageNotReady", f"{image.KIND.kind} {image.name}: {why}", failed)
    least = max(image.status.virtual_size or 0, to_bytes(image.spec.min_disk) if image.spec.min_disk else 0)
    return VolumeOrigin(image=image_ref(image)), least


def _existing(scope: Scope, asked: ExistingData) -> tuple[VolumeOrigin, int] | Lack:
    """Data that nobody owns. To a tenant, what is not theirs does not exist."""
    if scope.asked is None:
        return Lack("PoolNotFound", f"There is no StoragePool {asked.pool}.")
    if scope.volume.spec.pool not in (None, asked.pool):
        return Lack("PoolMismatch", f"The data is in StoragePool {asked.pool}: leave spec.pool out, and move it later.")
    file = scope.existing
    if (
        file is None and asked.foreign and asked.domain is not None
    ):  # what its host said of the domain is newer than its list
        return VolumeOrigin(existing=ExistingFile(id=asked.id, foreign=True, domain=asked.domain)), 0
    theirs = file is not None and file.kind is UnownedKind.VOLUME and file.namespace == scope.volume.namespace
    if file is None or scope.existing_owned or not (asked.foreign or theirs):
        what = "file that nobody owns" if asked.foreign else f"retained volume of namespace {scope.volume.namespace}"
        return Lack(
            "DataNotFound",
            f"There is no {what} with id {asked.id} in StoragePool {asked.pool} on host {asked.host}"
            " (a host lists 64 of them): kumulusctl pool unowned shows what there is.",
        )
    if file.virtual_size is None or file.kind not in (UnownedKind.VOLUME, UnownedKind.FILE):
        return Lack("DataNotADisk", f"{file.name} is no qcow2 file: convert it first, or import it as an Image.")
    return VolumeOrigin(
        existing=ExistingFile(id=asked.id, foreign=asked.foreign, domain=asked.domain)
    ), file.virtual_size


def _snapshot_origin(scope: Scope, name: str, *, linked: bool) -> tuple[VolumeOrigin, int] | Lack:
    snapshot = scope.snapshot
    if snapshot is None:
        return Lack("SnapshotNotFound", f"There is no VolumeSnapshot {name} in the namespace.")
    if scope.snapshot_going:
        return Lack("SnapshotNotFound", f"VolumeSnapshot {name} is being deleted.")
    status = snapshot.status
    if not status.ready_to_use or status.size is None or status.volume_uid is None:
        ready = status.condition("Ready")
        failed = status.phase is SnapshotPhase.FAILED
        why = ready.message if ready else "it is not taken yet."
        return Lack("SnapshotFailed" if failed else "SnapshotNotReady", f"VolumeSnapshot {name}: {why}", failed)
    ref = SnapshotRef(snapshot=snapshot.uid, volume=status.volume_uid)
    return VolumeOrigin(snapshot=ref, linked=linked), status.size


def brought_along(scope: Scope) -> bool:
    """Whether the volume was made by a machine that is to have it."""
    made_for = scope.volume.metadata.annotations.get(MADE_FOR)
    return any(vm.uid == made_for and not vm.deleting for vm in scope.users)


def goes_with(volume: Volume, machine: str) -> bool:
    """Whether the volume is removed with the machine of that uid, which brought it along."""
    return any(owner.uid == machine for owner in volume.metadata.owner_references)


def keeper(scope: Scope) -> Attachment | None:
    """The machine that has it, and keeps it until it wants it no more and its agent no longer has it. One that brought it
    along keeps it to its end: to say that nobody has what goes at once would be a write that nobody sees."""
    before = scope.volume.status.attached_to
    if before is None:
        return None
    had = any(order.spec.for_.uid == before.uid for order in scope.instances)
    wants = any(vm.uid == before.uid and (not vm.deleting or goes_with(scope.volume, vm.uid)) for vm in scope.users)
    return before if had or wants else None


def attachment(scope: Scope) -> Attachment | None:
    """The one machine that may write: whoever has it, else the oldest machine that wants it and is where it is.

    Who has it and wants it gets it back when that is not on record any more, by a look at what was long past say: else it
    would wait for the volume, and the volume for it.
    """
    volume = scope.volume
    if (before := keeper(scope)) is not None:
        return before
    if volume.deleting:
        return None
    if scope.instances:
        having = {order.spec.for_.uid for order in scope.instances}
        wanting = [vm for vm in scope.users if having == {vm.uid} and not vm.deleting]
        return Attachment(vm=wanting[0].name, uid=wanting[0].uid) if wanting else None
    fitting = [
        vm
        for vm in scope.users
        if not vm.deleting
        and vm.status.host is not None
        and (volume.status.host in (None, vm.status.host) or vm.status.host in scope.reaching)
    ]
    if not fitting:
        return None
    first = min(fitting, key=lambda vm: (vm.metadata.creation_timestamp or "", vm.name))
    return Attachment(vm=first.name, uid=first.uid)


def volume_order(volume: Volume, want: Wanted, place: Place, term: int) -> WorkOrderSpec:
    """The order that makes the volume and keeps it."""
    return WorkOrderSpec(
        type=WorkType.DISK,
        for_=ObjectRef(kind="Volume", namespace=volume.namespace, name=volume.name, uid=volume.uid),
        term=term,
        disk=DiskOrder(
            pool=place.pool,
            volume=VolumeOrder(
                uid=volume.uid,
                size=want.size,
                thick=want.thick,
                origin=want.origin,
                secret=luks_secret_name(volume.uid) if want.encryption is not None else None,
                existing=volume.status.size is not None,
                retain=want.retain,
                epoch=place.epoch or 0,
                came_by=place.came_by,
            ),
        ),
    )


def renewed(order: WorkOrderSpec, want: Wanted, term: int, *, at: int | None = None) -> WorkOrderSpec:
    """The order as the volume's spec has it now: it may grow, and its reclaim policy may change. `at`: it is being moved
    with the size that it has, and grows when that is over."""
    assert order.disk is not None and order.disk.volume is not None
    before = order.disk.volume
    size = max(want.size, before.size or 0) if at is None else at
    if (before.size, before.retain) == (size, want.retain):
        return order
    after = before.model_copy(update={"size": size, "retain": want.retain})
    return order.model_copy(
        update={"disk": order.disk.model_copy(update={"volume": after}), "term": max(term, order.term)}
    )


def held(scope: Scope) -> Lack | None:
    """Why the volume cannot be removed now."""
    names = sorted({order.spec.for_.name for order in scope.instances})
    if names:
        return Lack(
            "VolumeInUse",
            f"Machine {', '.join(names)} has it: delete the machine, or take the disk out of its spec.disks.",
        )
    if scope.snapshots:
        listed = " ".join(scope.snapshots[:16])
        return Lack(
            "HasSnapshots",
            f"{len(scope.snapshots)} snapshots are kept of it and would be lost with it. To let it go:"
            f" kubectl -n {scope.volume.namespace} delete {listed}",
        )
    return None


def host_lost(scope: Scope) -> Lack | None:
    """Why the volume cannot be reached."""
    name = scope.volume.status.host
    if name is None or scope.host is not None or scope.shared:
        return None
    return Lack(
        "HostGone",
        f"Host {name} was removed, and the data with it. Delete the volume"
        + (
            f"; if it does not go: kubectl annotate volume {scope.volume.name} {FORCE_DETACH}=true"
            if scope.order
            else ""
        )
        + ".",
    )


def default_class(classes: Iterable[VolumeClass]) -> VolumeClass | None:
    """The class of volumes that name none; of several the first by name, so that it is always the same."""
    return min(
        (item for item in classes if item.spec.default and not item.deleting), key=lambda c: c.name, default=None
    )
