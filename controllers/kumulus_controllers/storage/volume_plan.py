"""What a volume is to be and who may write to it, from what was read. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kumulus.api.base import DOMAIN, FORCE_DETACH, ObjectRef
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import (
    DiskManner,
    DiskOrder,
    ExistingFile,
    PoolRef,
    SnapshotRef,
    UnownedFile,
    UnownedKind,
    VolumeOrder,
    VolumeOrigin,
    WorkOrder,
    WorkOrderSpec,
    WorkState,
    WorkType,
    luks_secret_name,
)
from kumulus.api.qos import Qos
from kumulus.api.quantity import from_bytes, to_bytes
from kumulus.api.snapshots import SnapshotPhase
from kumulus.api.storage import (
    OPTICAL,
    Attachment,
    ClusterImage,
    Image,
    ImagePhase,
    Provisioning,
    StoragePool,
    Volume,
    VolumeClass,
    VolumePhase,
    VolumeStatus,
)
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.api.volumes import CacheMode, CloneMode, Encryption, ExistingData, ReclaimPolicy
from kumulus.runtime.conditions import Fact, derive
from kumulus_controllers.orders import host_of
from kumulus_controllers.planning.views import VolumeDemand
from kumulus_controllers.storage.image import image_ref
from kumulus_controllers.storage.sharing import NotUsable, Reference, usable

AnyImage = Image | ClusterImage

MADE_FOR = f"{DOMAIN}/made-for"
"""Annotation of a volume that a machine brought along: the machine's uid."""

FIRST_USE = "WaitForFirstConsumer"
"""Reason of a volume that is made when its first machine has a host."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Why the volume cannot be made, used or removed yet."""

    reason: str
    message: str
    stalled: bool = True
    """Somebody has to do something; False when it will pass by itself."""


HANDING_OVER = "HandingOver"
"""Reason of a volume that one host gives up and another one takes."""


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


@dataclass(frozen=True, slots=True)
class Scope:
    """Everything one pass has read."""

    volume: Volume
    order: WorkOrder | None = None
    """The order that keeps it on its host."""
    strays: tuple[WorkOrder, ...] = ()
    """Orders that keep it on other hosts."""
    shared: bool = False
    """It is in a pool that hosts share."""
    reaching: frozenset[str] = frozenset()
    """Of the hosts of its users, those that can use its pool. Known of a volume in a pool that hosts share."""
    copied: str | None = None
    """Name of a Volume that is being made as a copy of it."""
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
    if spec.source is not None and scope.order is None and volume.status.size is None:
        found = _origin(scope)
        if isinstance(found, Lack):
            return found
        origin, least = found
        if (lack := _unencryptable(scope, origin, encryption)) is not None:
            return lack
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
    """Why what it begins with and its encryption do not go together: whole copies are not made with encryption yet."""
    thick = scope.volume_class is not None and scope.volume_class.spec.provisioning is Provisioning.THICK
    source = scope.source.status.encryption if scope.source is not None and origin.volume is not None else None
    if encryption is None and source is None:
        return None
    if origin.image is None or thick:
        return Lack(
            "EncryptedCopy",
            "Encrypted volumes are not copied yet: make it blank, or of an image with a class that is Thin, and copy what"
            " is to be in it within a machine.",
        )
    return None


def retained(scope: Scope) -> bool:
    """Whether the data outlives the volume. Data is never given up because a class went."""
    if scope.volume.spec.reclaim_policy is not None:
        return scope.volume.spec.reclaim_policy is ReclaimPolicy.RETAIN
    if scope.volume_class is not None:
        return scope.volume_class.spec.reclaim_policy is ReclaimPolicy.RETAIN
    disk = scope.order.spec.disk if scope.order is not None else None
    return disk is not None and disk.volume is not None and disk.volume.retain


def _origin(scope: Scope) -> tuple[VolumeOrigin, int] | Lack:
    """What it begins with, and how many bytes that has."""
    source = scope.volume.spec.source
    assert source is not None
    if source.existing is not None:
        return _existing(scope, source.existing)
    if source.volume is not None:
        other = scope.source
        if other is None or other.deleting:
            return Lack("SourceNotFound", f"There is no Volume {source.volume} in the namespace.")
        if other.status.pool is None or other.status.size is None:
            return Lack("SourceNotReady", f"Volume {other.name} is not made yet.", stalled=False)
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
    return VolumeOrigin(existing=ExistingFile(id=asked.id, foreign=asked.foreign)), file.virtual_size


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


def keeper(scope: Scope) -> Attachment | None:
    """The machine that has it, and keeps it until it wants it no more and its agent no longer has it."""
    before = scope.volume.status.attached_to
    if before is None:
        return None
    had = any(order.spec.for_.uid == before.uid for order in scope.instances)
    wants = any(vm.uid == before.uid and not vm.deleting for vm in scope.users)
    return before if had or wants else None


def attachment(scope: Scope) -> Attachment | None:
    """The one machine that may write: whoever has it, else the oldest machine that wants it and is where it is."""
    volume = scope.volume
    if (before := keeper(scope)) is not None:
        return before
    if volume.deleting or scope.instances:
        return None
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


def home(scope: Scope, attached: Attachment | None) -> str | None:
    """The host whose agent is to see to a volume in a pool that hosts share: that of its machine, else the one that
    does. None when that one is gone, or about to go: any other will do."""
    for vm in scope.users:
        if attached is not None and vm.uid == attached.uid and vm.status.host in scope.reaching:
            return vm.status.host
    return None if scope.host is None or scope.host.deleting else scope.volume.status.host


def kept_back(scope: Scope, host: str) -> Lack | None:
    """Why the volume cannot be handed to `host` yet, whatever the agent that has it does: somebody works with it."""
    elsewhere = sorted({order.spec.for_.name for order in scope.instances if host_of(order) != host})
    if elsewhere:
        return Lack("VolumeInUse", f"Machine {', '.join(elsewhere)} has it on another host.", stalled=False)
    if scope.snapped:
        return Lack(
            "HasSnapshots",
            f"It has snapshots, which host {scope.volume.status.host} keeps, and cannot go to host {host} yet: delete them,"
            f" or run the machine on host {scope.volume.status.host}.",
        )
    if scope.copied is not None:
        return Lack(
            "VolumeInUse", f"It is being copied to Volume {scope.copied}: it moves when that is done.", stalled=False
        )
    return None


def handing_over(scope: Scope, order: WorkOrder, host: str, *, heard: bool) -> Lack:
    """What is said while the agent that has the volume lets go of it. Silence is no proof that a host is dead."""
    before = host_of(order)
    if heard:
        why = f" {before}: {order.status.message}" if order.deleting and order.status.message else ""
        return Lack(HANDING_OVER, f"Host {before} gives it up, then host {host} takes it.{why}", stalled=False)
    return Lack(
        HANDING_OVER,
        f"Host {before}, which has it, does not answer, and may still write to it. It goes to host {host} when {before}"
        f" answers. If {before} is off for good: kubectl annotate volume {scope.volume.name} {FORCE_DETACH}=true",
    )


def retaining(order: WorkOrderSpec, retain: bool, term: int) -> WorkOrderSpec:
    """The order in such a way that its end leaves the data where it is, or does not."""
    assert order.disk is not None and order.disk.volume is not None
    if order.disk.volume.retain == retain:
        return order
    after = order.disk.volume.model_copy(update={"retain": retain})
    return order.model_copy(
        update={"disk": order.disk.model_copy(update={"volume": after}), "term": max(term, order.term)}
    )


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
            ),
        ),
    )


def renewed(order: WorkOrderSpec, want: Wanted, term: int) -> WorkOrderSpec:
    """The order as the volume's spec has it now: it may grow, and its reclaim policy may change."""
    assert order.disk is not None and order.disk.volume is not None
    before = order.disk.volume
    size = max(want.size, before.size or 0)
    if (before.size, before.retain) == (size, want.retain):
        return order
    after = before.model_copy(update={"size": size, "retain": want.retain})
    return order.model_copy(
        update={"disk": order.disk.model_copy(update={"volume": after}), "term": max(term, order.term)}
    )


def derive_status(
    scope: Scope, place: Place | None, attached: Attachment | None, lack: Lack | None, now: str
) -> VolumeStatus:
    """The whole status."""
    volume, before = scope.volume, scope.volume.status
    facts_known = scope.order.status.disk if scope.order else None
    phase, ready, stalled = _state(scope, attached, lack)
    facts = [ready]
    if stalled:
        facts.append(Fact("Stalled", True, ready.reason, ready.message))
    elif ready.status is False and ready.reason != FIRST_USE:
        facts.append(Fact("Reconciling", True, ready.reason, ready.message))
    generation = volume.metadata.generation
    size = facts_known.virtual_size if facts_known else None
    offered, encryption = before.volume_class, before.encryption
    if place is not None and before.pool is None and scope.volume_class is not None:
        offered, encryption = scope.volume_class.name, scope.volume_class.spec.encryption
    manner = _manner(scope)
    return VolumeStatus(
        observed_generation=generation,
        conditions=derive(before.conditions, facts, generation=generation, now=now),
        phase=phase,
        pool=place.pool.name if place else before.pool,
        host=place.host if place else before.host,
        epoch=place.epoch if place else before.epoch,
        size=size if size is not None else before.size,
        used=facts_known.size if facts_known and facts_known.size is not None else before.used,
        attached_to=attached,
        volume_class=offered,
        encryption=encryption,
        qos=manner.qos if manner else None,
        cache=manner.cache if manner else None,
    )


def _manner(scope: Scope) -> DiskManner | None:
    """How a machine that is on has it, as its agent reports."""
    for order in scope.instances:
        for manner in order.status.instance.manners if order.status.instance else ():
            if manner.volume == scope.volume.uid:
                return manner
    return None


def _state(scope: Scope, attached: Attachment | None, lack: Lack | None) -> tuple[VolumePhase, Fact, bool]:
    """Phase, the Ready condition, and whether somebody has to do something."""
    volume, order = scope.volume, scope.order
    if volume.deleting:
        return VolumePhase.DELETING, *_deleting(scope, lack)
    if lack is not None:
        known = order is not None and order.status.state is WorkState.READY
        if lack.reason == HANDING_OVER:
            return VolumePhase.MOVING, Fact("Ready", False, lack.reason, lack.message), lack.stalled
        phase = VolumePhase.FAILED if lack.stalled and known else VolumePhase.PENDING
        return phase, Fact("Ready", False, lack.reason, lack.message), lack.stalled
    if order is None and volume.status.size is not None:
        return VolumePhase.MOVING, Fact("Ready", False, HANDING_OVER, "Another host is about to take it."), False
    if order is None:
        return (
            VolumePhase.PENDING,
            Fact("Ready", False, FIRST_USE, "The volume is made on the host of the first machine that uses it."),
            False,
        )
    state, reason = order.status.state, order.status.reason or ""
    message = order.status.message or ""
    current = (order.status.observed_generation or 0) >= order.metadata.generation
    made = volume.status.size is not None
    if state in (WorkState.FAILED, WorkState.REFUSED):
        return VolumePhase.FAILED, Fact("Ready", False, reason or "Failed", message), True
    if state is WorkState.READY and current:
        phase = VolumePhase.IN_USE if attached else VolumePhase.AVAILABLE
        said = f"Attached to machine {attached.vm}." if attached else "Not attached to any machine."
        return phase, Fact("Ready", True, str(phase), said), False
    phase = _working(order, volume.status.size) if made else VolumePhase.CREATING
    return phase, Fact("Ready", False, reason or str(phase), message or f"{host_of(order)} works on it."), False


def _working(order: WorkOrder, size: int | None) -> VolumePhase:
    """What is done to a volume that was made once."""
    asked = order.spec.disk.volume if order.spec.disk is not None else None
    grows = asked is not None and (asked.size or 0) > (size or 0)
    return (
        VolumePhase.RESTORING if asked is not None and asked.revert is not None and not grows else VolumePhase.RESIZING
    )


def _deleting(scope: Scope, lack: Lack | None) -> tuple[Fact, bool]:
    if lack is not None:
        return Fact("Ready", False, lack.reason, lack.message), lack.stalled
    if scope.order is not None and scope.order.status.reason:
        return Fact("Ready", False, scope.order.status.reason, scope.order.status.message or ""), False
    return Fact("Ready", False, "Deleting", "The volume is being removed from its pool."), False


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
