"""What a volume is to be, who may write to it, and what its status says: state in, state out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kumulus.api.base import FORCE_DETACH
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.image import ClusterImage, Image
from kumulus.api.pool_order import PoolRef, UnownedFile, UnownedKind
from kumulus.api.storage import Attachment, StoragePool, Volume, VolumeClass, VolumePhase
from kumulus.api.volume_order import Revert, VolumeOrigin
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus_controllers.storage.volume_keeper import (
    HANDING_OVER,
    handing_over,
    home,
    kept_back,
    retaining,
    snapshots_left,
)
from kumulus_controllers.storage.volume_plan import (
    FIRST_USE,
    MADE_FOR,
    Lack,
    Place,
    Scope,
    Wanted,
    attachment,
    brought_along,
    default_class,
    held,
    host_lost,
    keeper,
    renewed,
    volume_order,
    wanted,
)
from kumulus_controllers.storage.volume_status import derive_status

NOW = "2026-01-01T00:00:00Z"
UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
OTHER = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ac"
GI = 2**30
POOL = PoolRef.model_validate({"uid": UID, "name": "local", "driver": "dir", "parameters": {"path": "/x"}})
PLACE = Place(POOL, "h1")


def volume(*, deleting: bool = False, status: dict[str, Any] | None = None, **spec: Any) -> Volume:
    metadata = {"name": "data", "namespace": "ns", "uid": UID, "generation": 2}
    if deleting:
        metadata["deletionTimestamp"] = NOW
    return Volume.parse({"metadata": metadata, "spec": spec or {"size": "1Gi"}, "status": status or {}})


def volume_class(name: str = "fast", **spec: Any) -> VolumeClass:
    return VolumeClass.parse({"metadata": {"name": name}, "spec": spec})


def image(kind: type[Image] | type[ClusterImage] = Image, phase: str = "Ready", **spec: Any) -> Image | ClusterImage:
    full = {
        "source": {"http": {"url": "https://x.example.com/i"}},
        "checksum": {"sha256": "ab" * 32},
        "format": "qcow2",
        **spec,
    }
    return kind.parse(
        {"metadata": {"name": "i", "uid": OTHER}, "spec": full, "status": {"phase": phase, "virtualSize": "2Gi"}}
    )


def machine(
    name: str = "vm", uid: str = OTHER, *, host: str | None = "h1", deleting: bool = False, made: str = NOW
) -> VirtualMachine:
    metadata = {"name": name, "namespace": "ns", "uid": uid, "creationTimestamp": made}
    if deleting:
        metadata["deletionTimestamp"] = NOW
    spec = {"resources": {"cpus": 1, "memory": "1Gi"}, "disks": [{"name": "d", "volume": "data"}]}
    return VirtualMachine.parse({"metadata": metadata, "spec": spec, "status": {"host": host} if host else {}})


def order(state: str | None, *, generation: int = 1, **status: Any) -> WorkOrder:
    spec = volume_order(volume(), Wanted(GI, None, False, False, None), PLACE, 1)  # type: ignore[arg-type]
    return WorkOrder.parse(
        {
            "metadata": {"name": f"volume-{UID}", "namespace": "kumulus-host-h1", "generation": generation},
            "spec": spec.to_json(),
            "status": {"state": state, "observedGeneration": 1, **status},
        }
    )


def instance(uid: str = OTHER, name: str = "vm") -> WorkOrder:
    disk = {"name": "d", "pool": POOL.to_json(), "volume": UID, "bootOrder": 1}
    work = {
        "uid": uid,
        "epoch": 1,
        "power": "Running",
        "restartPolicy": "Always",
        "cpus": 1,
        "memory": 1,
        "disks": [disk],
    }
    return WorkOrder.parse(
        {
            "metadata": {"name": f"instance-{uid}", "namespace": "kumulus-host-h1"},
            "spec": {
                "type": "Instance",
                "for": {"kind": "VirtualMachine", "namespace": "ns", "name": name, "uid": uid},
                "instance": work,
            },
        }
    )


def test_a_blank_volume_of_no_class_is_thin_and_goes_with_its_object() -> None:
    found = wanted(Scope(volume()))
    assert isinstance(found, Wanted)
    assert (found.size, found.thick, found.retain, found.origin) == (GI, False, False, None)
    assert found.demand.size == GI and not found.demand.selector and found.demand.pool is None


def test_a_class_says_how_and_the_volume_has_the_last_word() -> None:
    offered = volume_class(poolSelector={"tier": "nvme"}, provisioning="Thick", reclaimPolicy="Retain")
    found = wanted(Scope(volume(), volume_class=offered))
    assert isinstance(found, Wanted) and found.thick and found.retain and found.demand.selector == {"tier": "nvme"}
    found = wanted(Scope(volume(size="1Gi", reclaimPolicy="Delete"), volume_class=offered))
    assert isinstance(found, Wanted) and not found.retain


def test_encryption_is_the_class_s_until_the_volume_has_a_place_and_then_its_own() -> None:
    locked, key = volume_class(encryption={"secret": "disk-key"}), {"secret": "disk-key", "key": "passphrase"}

    def encryption(*arguments: Any, **changes: Any) -> Any:
        found = wanted(Scope(*arguments, **changes))
        assert isinstance(found, Wanted)
        return found.encryption and found.encryption.to_json()

    assert encryption(volume(), volume_class=locked) == key
    assert encryption(volume(), volume_class=volume_class()) is None
    assert encryption(volume(status={"pool": "local"}), volume_class=locked) is None
    assert encryption(volume(status={"pool": "local", "encryption": key}), volume_class=volume_class()) == key
    thick = volume_class(encryption={"secret": "disk-key"}, provisioning="Thick")
    assert encryption(volume(), volume_class=thick) == key
    found = wanted(Scope(volume(**IMAGE), image=image(), volume_class=thick))
    assert isinstance(found, Wanted) and found.encryption is not None and found.thick


@pytest.mark.parametrize("mode", [None, "Linked"])
def test_a_copy_is_told_the_passphrase_of_what_is_encrypted_and_is_never_made_in_the_clear(mode: str | None) -> None:
    locked, plain = volume_class(encryption={"secret": "disk-key"}), volume_class()
    other = volume_class(encryption={"secret": "disk-key", "key": "second"})
    origin = {"pool": "local", "host": "h1", "size": "2Gi"}
    encrypted = {**origin, "class": "safe", "encryption": {"secret": "disk-key", "key": "passphrase"}}
    taken = {"volumeUid": OTHER, "size": "2Gi", "readyToUse": True}
    kept = VolumeSnapshot.parse({"metadata": {"name": "s", "uid": OTHER}, "spec": {"volume": "old"}, "status": taken})
    of_snapshot = {"source": {"snapshot": "s", **({"cloneMode": mode} if mode else {})}}
    copies = [volume(**of_snapshot)] if mode else [volume(**of_snapshot), volume(**CLONE)]

    def made(new: Volume, status: dict[str, Any], offered: VolumeClass) -> Wanted | Lack:
        source = volume(status=status)
        return wanted(Scope(new, source=source, snapshot=kept, made_of=source, volume_class=offered))

    for new in copies:
        found = made(new, encrypted, locked)
        assert isinstance(found, Wanted) and found.origin is not None and found.origin.secret == f"luks-{UID}"
        assert found.encryption is not None
        found = made(new, encrypted, plain)
        assert isinstance(found, Lack) and found.reason == "EncryptedCopy" and "as safe does" in found.message
        found = made(new, origin, plain)
        assert isinstance(found, Wanted) and found.origin is not None and found.origin.secret is None
        for status, offered in ((encrypted, other), (origin, locked)):
            found = made(new, status, offered)
            assert isinstance(found, Lack if mode else Wanted)
            if isinstance(found, Lack):
                assert found.reason == "LinkedPassphrase" and "cloneMode: Full" in found.message
            elif status is origin:
                assert found.origin is not None and found.origin.secret is None


def test_the_default_class_is_always_the_same() -> None:
    classes = [volume_class("b", default=True), volume_class("a"), volume_class("c", default=True)]
    assert getattr(default_class(classes), "name", None) == "b"
    assert default_class([volume_class("a")]) is None


CLONE = {"source": {"volume": "old"}}
IMAGE = {"source": {"image": "i"}}
SOURCE = volume(status={"pool": "local", "host": "h1", "size": "2Gi"})


@pytest.mark.parametrize(
    ("scope", "reason", "stalled"),
    [
        (Scope(volume(**{"size": "1Gi", "class": "fast"})), "VolumeClassNotFound", True),
        (
            Scope(volume(**{"size": "1Gi", "class": "fast"}), volume_class=volume_class(allowedNamespaces=["other"])),
            "VolumeClassNotAllowed",
            True,
        ),
        (Scope(volume(**IMAGE)), "ImageNotFound", True),
        (Scope(volume(**IMAGE), image=image(phase="Importing")), "ImageNotReady", False),
        (Scope(volume(**IMAGE), image=image(phase="Failed")), "ImageFailed", True),
        (Scope(volume(**IMAGE), image=image(ClusterImage, allowedNamespaces=["other"])), "ImageNotAllowed", True),
        (Scope(volume(**IMAGE), image=image(format="iso")), "ImageNotADisk", True),
        (Scope(volume(size="1Gi", **IMAGE), image=image()), "DiskTooSmall", True),
        (Scope(volume(**CLONE)), "SourceNotFound", True),
        (Scope(volume(**CLONE), source=volume()), "SourceNotReady", False),
        (Scope(volume(**CLONE), source=SOURCE, source_busy="vm"), "SourceInUse", False),
    ],
)
def test_what_is_missing_has_a_name(scope: Scope, reason: str, stalled: bool) -> None:
    found = wanted(scope)
    assert isinstance(found, Lack) and (found.reason, found.stalled) == (reason, stalled) and found.message


def test_a_volume_has_the_size_of_its_source_unless_it_asks_for_more() -> None:
    found = wanted(Scope(volume(**IMAGE), image=image(minDisk="3Gi")))
    assert isinstance(found, Wanted) and found.size == 3 * GI
    assert found.origin is not None and found.origin.image is not None and found.origin.image.uid == OTHER
    found = wanted(Scope(volume(size="5Gi", **CLONE), source=SOURCE))
    assert isinstance(found, Wanted) and found.size == 5 * GI and found.origin == VolumeOrigin(volume=UID)


def test_a_made_volume_needs_its_source_no_more() -> None:
    made = volume(size="3Gi", status={"pool": "local", "host": "h1", "size": "2Gi"}, **IMAGE)
    assert isinstance(wanted(Scope(made)), Wanted)
    ordered = volume(size="3Gi", status={"pool": "local", "host": "h1"}, **IMAGE)
    assert isinstance(wanted(Scope(ordered, order=order(None))), Wanted)
    assert isinstance(wanted(Scope(ordered)), Lack), "bound but never ordered: it would be made blank"


def test_the_oldest_placed_machine_gets_it_and_keeps_it() -> None:
    younger = machine("b", UID, made="2026-01-02T00:00:00Z")
    older = machine("c", OTHER)
    unplaced = machine("a", UID, host=None, made="2025-01-01T00:00:00Z")
    got = attachment(Scope(volume(), users=(younger, older, unplaced)))
    assert got == Attachment(vm="c", uid=OTHER)
    before = volume(status={"attachedTo": {"vm": "b", "uid": UID}})
    assert attachment(Scope(before, users=(younger, older))) == Attachment(vm="b", uid=UID)


def test_a_volume_is_free_only_when_no_agent_has_it() -> None:
    before = volume(status={"attachedTo": {"vm": "vm", "uid": OTHER}})
    mine = Attachment(vm="vm", uid=OTHER)
    assert attachment(Scope(before, instances=(instance(),))) == mine, "taken out of the spec, not yet detached"
    assert attachment(Scope(before, users=(machine(deleting=True),), instances=(instance(),))) == mine
    assert attachment(Scope(before, users=(machine(deleting=True),))) is None
    next_one = machine("next", UID)
    assert attachment(Scope(before, users=(next_one,), instances=(instance(),))) == mine
    assert attachment(Scope(before, users=(next_one,))) == Attachment(vm="next", uid=UID)
    assert attachment(Scope(volume(), users=(next_one,), instances=(instance(),))) is None, "status lost: still had"
    both = Scope(volume(), users=(next_one, machine()), instances=(instance(),))
    assert attachment(both) == mine, "who still has it and wants it gets it back: else each waits for the other"
    of_two = Scope(volume(), users=(machine(),), instances=(instance(), instance(UID, "next")))
    assert attachment(of_two) is None


def test_what_goes_with_a_machine_stays_attached_to_it_to_its_end() -> None:
    mine = Attachment(vm="vm", uid=OTHER)
    plain = volume(status={"attachedTo": mine.to_json()})
    metadata = plain.metadata.to_json()
    owner = {"apiVersion": "v1", "kind": "VirtualMachine", "name": "vm", "uid": OTHER}
    owned = Volume.parse({**plain.to_json(), "metadata": {**metadata, "ownerReferences": [owner]}})
    kept = Volume.parse({**plain.to_json(), "metadata": {**metadata, "ownerReferences": [{**owner, "uid": UID}]}})
    going = (machine(deleting=True),)
    assert keeper(Scope(owned, users=going)) == mine
    assert keeper(Scope(kept, users=going)) is None, "it goes with another one"
    assert keeper(Scope(owned)) is None, "the machine is gone, and the volume was protected"


def test_what_is_said_once_its_place_is_on_record_holds_until_its_host_answers() -> None:
    """So that there is nothing to write when the order is made."""
    before = derive_status(Scope(volume()), PLACE, USED, None, NOW)
    assert (before.phase, before.pool, before.host) == (VolumePhase.CREATING, "local", "h1")
    there = volume(status=before.to_json())
    after = derive_status(Scope(there, order=order(None)), PLACE, USED, None, "2027-01-01T00:00:00Z")
    assert after.to_json() == before.to_json()


def test_a_volume_is_brought_along_by_the_machine_that_it_was_made_for() -> None:
    plain = volume()
    made = Volume.parse({**plain.to_json(), "metadata": {**plain.metadata.to_json(), "annotations": {MADE_FOR: OTHER}}})
    assert brought_along(Scope(made, users=(machine(),)))
    assert not brought_along(Scope(made, users=(machine(deleting=True),)))
    assert not brought_along(Scope(plain, users=(machine(),))) and not brought_along(Scope(made))


def test_a_machine_elsewhere_does_not_get_it() -> None:
    there = volume(status={"host": "h2", "pool": "local"})
    assert attachment(Scope(there, users=(machine(),))) is None


def test_an_order_grows_and_never_shrinks() -> None:
    want = wanted(Scope(volume()))
    assert isinstance(want, Wanted)
    spec = volume_order(volume(), want, PLACE, 3)
    assert renewed(spec, want, 9) is spec, "nothing differs, nothing is written"
    grown = renewed(spec, replace(want, size=2 * GI, retain=True), 9)
    assert grown.disk is not None and grown.disk.volume is not None
    assert (grown.disk.volume.size, grown.disk.volume.retain, grown.term) == (2 * GI, True, 9)
    assert renewed(spec, replace(want, size=1), 9) is spec


USED = Attachment(vm="vm", uid=OTHER)
MADE = {"disk": {"virtualSize": GI, "size": 4096}}
GROWS = {"disk": {"virtualSize": GI // 2, "size": 4096}}


@pytest.mark.parametrize(
    ("scope", "attached", "lack", "phase", "reason"),
    [
        (Scope(volume()), None, None, VolumePhase.PENDING, FIRST_USE),
        (Scope(volume()), None, Lack("ImageNotFound", "x"), VolumePhase.PENDING, "ImageNotFound"),
        (Scope(volume(), order=order(None)), USED, None, VolumePhase.CREATING, "Creating"),
        (
            Scope(volume(), order=order("Waiting", reason="ImageNotReady")),
            USED,
            None,
            VolumePhase.CREATING,
            "ImageNotReady",
        ),
        (Scope(volume(), order=order("Ready", **MADE)), None, None, VolumePhase.AVAILABLE, "Available"),
        (Scope(volume(), order=order("Ready", **MADE)), USED, None, VolumePhase.IN_USE, "InUse"),
        (
            Scope(volume(status={"size": "512Mi"}), order=order("Ready", generation=2, **GROWS)),
            USED,
            None,
            VolumePhase.RESIZING,
            "Resizing",
        ),
        (Scope(volume(), order=order("Failed", reason="NoSpace")), USED, None, VolumePhase.FAILED, "NoSpace"),
        (Scope(volume(deleting=True), order=order("Ready")), None, None, VolumePhase.DELETING, "Deleting"),
        (
            Scope(volume(deleting=True), order=order("Ready"), instances=(instance(),)),
            USED,
            Lack("VolumeInUse", "x"),
            VolumePhase.DELETING,
            "VolumeInUse",
        ),
    ],
)
def test_the_status_says_what_is_so(
    scope: Scope, attached: Attachment | None, lack: Lack | None, phase: VolumePhase, reason: str
) -> None:
    after = derive_status(scope, PLACE if scope.order else None, attached, lack, NOW)
    ready = after.condition("Ready")
    assert (after.phase, ready.reason if ready else None) == (phase, reason)
    assert after.attached_to == attached and after.observed_generation == 2
    assert (str(ready.status) == "True") == (phase in (VolumePhase.AVAILABLE, VolumePhase.IN_USE)) if ready else False
    again = replace(scope, volume=scope.volume.model_copy(update={"status": after}))
    assert derive_status(again, None, attached, lack, "2027-01-01T00:00:00Z").to_json() == after.to_json()


def test_a_volume_that_is_used_is_held_and_one_whose_host_is_gone_is_lost() -> None:
    assert held(Scope(volume())) is None
    busy = held(Scope(volume(), instances=(instance(),)))
    assert busy is not None and "Machine vm" in busy.message
    there = volume(status={"host": "h1", "pool": "local"})
    assert host_lost(Scope(there, host=Host.parse({"metadata": {"name": "h1"}, "spec": {"zone": "z"}}))) is None
    lost = host_lost(Scope(there))
    assert lost is not None and lost.reason == "HostGone"


@pytest.mark.parametrize(("namespaces", "reason"), [((), None), (("ns",), None), (("other",), "PoolNotAllowed")])
def test_a_pool_that_is_asked_for_must_be_for_the_namespace(namespaces: tuple[str, ...], reason: str | None) -> None:
    spec = {"driver": "dir", "parameters": {"path": "/x"}, "allowedNamespaces": namespaces}
    asked = StoragePool.parse({"metadata": {"name": "local", "uid": UID}, "spec": spec})
    found = wanted(Scope(volume(size="1Gi", pool="local"), asked=asked))
    assert (found.reason if isinstance(found, Lack) else None) == reason
    placed = volume(size="1Gi", pool="local", status={"pool": "local", "host": "h1", "size": "1Gi"})
    assert isinstance(wanted(Scope(placed, asked=asked)), Wanted), "what is there stays"


DATA = {"pool": "local", "host": "h1", "id": OTHER}


def file(kind: str = "Volume", namespace: str | None = "ns", size: int | None = GI) -> UnownedFile:
    return UnownedFile(id=OTHER, kind=UnownedKind(kind), name="volumes/x", virtual_size=size, namespace=namespace)


@pytest.mark.parametrize(
    ("foreign", "found", "spec", "reason"),
    [
        (False, file(), {}, None),
        (False, None, {}, "DataNotFound"),
        (False, file(namespace="other"), {}, "DataNotFound"),
        (False, file(namespace=None), {}, "DataNotFound"),
        (False, file("File"), {}, "DataNotFound"),
        (True, file(namespace="other"), {}, None),
        (True, file("File", None), {}, None),
        (True, file("File", None, size=None), {}, "DataNotADisk"),
        (True, file("Disk", None), {}, "DataNotADisk"),
        (False, file(), {"size": "512Mi"}, "DiskTooSmall"),
        (False, file(), {"size": "2Gi"}, None),
        (False, file(), {"pool": "other"}, "PoolMismatch"),
    ],
)
def test_data_in_a_pool_becomes_a_volume_of_who_may_have_it(
    foreign: bool, found: UnownedFile | None, spec: dict[str, Any], reason: str | None
) -> None:
    asked = StoragePool.parse({"metadata": {"name": "local"}, "spec": {"driver": "dir", "parameters": {"path": "/x"}}})
    some = volume(source={"existing": {**DATA, "foreign": foreign}}, **spec)
    want = wanted(Scope(some, asked=asked, existing=found))
    if reason is not None:
        assert isinstance(want, Lack) and want.reason == reason
        return
    assert isinstance(want, Wanted) and want.origin is not None and want.origin.existing is not None
    assert (want.origin.existing.id, want.origin.existing.foreign) == (OTHER, foreign)
    assert want.size == (2 * GI if spec else GI)
    taken = wanted(Scope(some, asked=asked, existing=found, existing_owned=True))
    assert isinstance(taken, Lack) and taken.reason == "DataNotFound", "it is a volume's that there is"


def test_data_in_a_pool_stays_encrypted_or_not() -> None:
    asked = StoragePool.parse({"metadata": {"name": "local"}, "spec": {"driver": "dir", "parameters": {"path": "/x"}}})
    some, locked = volume(source={"existing": DATA}), volume_class(encryption={"secret": "disk-key"})
    encrypted = file().model_copy(update={"encrypted": True})
    for found, offered, fits in (
        (encrypted, locked, True),
        (file(), volume_class(), True),
        (encrypted, volume_class(), False),
        (file(), locked, False),
    ):
        want = wanted(Scope(some, asked=asked, existing=found, volume_class=offered))
        assert isinstance(want, Wanted) if fits else isinstance(want, Lack) and want.reason == "EncryptionMismatch"


def test_data_in_a_pool_that_is_not_there_waits() -> None:
    want = wanted(Scope(volume(source={"existing": DATA}), existing=file()))
    assert isinstance(want, Lack) and want.reason == "PoolNotFound"


HERE = Host.parse({"metadata": {"name": "h1"}, "spec": {"zone": "z"}})
THERE = {"pool": "shared", "host": "h1", "size": "1Gi", "epoch": 2}


def test_a_machine_elsewhere_gets_a_volume_of_a_shared_pool_that_its_host_can_use() -> None:
    there = volume(status=THERE)
    vm = machine(host="h2")
    scope = Scope(there, shared=True, host=HERE, users=(vm,), reaching=frozenset({"h2"}))
    got = attachment(scope)
    assert got == Attachment(vm="vm", uid=OTHER)
    assert home(scope, got) == "h2"
    lone = replace(scope, reaching=frozenset())
    assert attachment(lone) is None and home(lone, None) == "h1"


def test_a_volume_of_a_shared_pool_stays_with_its_host_unless_that_goes() -> None:
    scope = Scope(volume(status=THERE), shared=True, host=HERE)
    assert home(scope, None) == "h1"
    going = Host.parse({"metadata": {"name": "h1", "deletionTimestamp": NOW}, "spec": {"zone": "z"}})
    assert home(replace(scope, host=going), None) is None
    assert home(replace(scope, host=None), None) is None
    assert host_lost(replace(scope, host=None)) is None, "the data is in the pool"


def test_a_volume_is_not_handed_over_while_anybody_elsewhere_has_it() -> None:
    scope = Scope(volume(status=THERE), shared=True, host=HERE, instances=(instance(),))
    assert kept_back(scope, "h1") is None
    busy = kept_back(scope, "h2")
    assert busy is not None and busy.reason == "VolumeInUse" and "Machine vm" in busy.message
    copied = kept_back(Scope(volume(status=THERE), shared=True, copied="Volume copy"), "h2")
    assert copied is not None and "Volume copy" in copied.message
    moving = volume(status={**THERE, "movingTo": "other"})
    moves = kept_back(Scope(moving, shared=True), "h2")
    assert (
        moves is not None and moves.reason == "VolumeMoves" and "Host h1 moves it to StoragePool other" in moves.message
    )
    given_up = {"metadata": {**moving.metadata.to_json(), "annotations": {FORCE_DETACH: "true"}}}
    forced = Volume.parse({**moving.to_json(), **given_up})
    assert kept_back(Scope(forced, shared=True), "h2") is not None, "it answers"
    assert kept_back(Scope(forced, shared=True), "h2", heard=False) is None
    raw = order("Ready", **MADE)
    assert raw.spec.disk is not None and raw.spec.disk.volume is not None
    asked = raw.spec.disk.volume.model_copy(update={"revert": Revert(snapshot=UID, request=OTHER)})
    disk = raw.spec.disk.model_copy(update={"volume": asked})
    reverting = raw.model_copy(update={"spec": raw.spec.model_copy(update={"disk": disk})})
    waits = kept_back(replace(scope, instances=(), order=reverting), "h2")
    assert waits is not None and waits.reason == "Restoring" and not waits.stalled
    facts = reverting.status.disk
    assert facts is not None
    done = reverting.status.model_copy(update={"disk": facts.model_copy(update={"reverted": OTHER})})
    assert kept_back(replace(scope, instances=(), order=reverting.model_copy(update={"status": done})), "h2") is None


def test_a_volume_waits_until_its_host_has_given_its_snapshots_up() -> None:
    scope = Scope(volume(status=THERE))
    going = snapshots_left(scope, "h1", "h2", heard=True)
    assert (going.reason, going.stalled) == (HANDING_OVER, False)
    silent = snapshots_left(scope, "h1", "h2", heard=False)
    assert silent.stalled and "kubectl annotate volume data kumulus.io/force-detach=true" in silent.message


def test_a_silent_host_is_not_taken_for_dead() -> None:
    going = handing_over(Scope(volume(status=THERE)), order("Ready"), "h2", heard=True)
    assert not going.stalled and "annotate" not in going.message
    silent = handing_over(Scope(volume(status=THERE)), order("Ready"), "h2", heard=False)
    assert silent.stalled and "does not answer, and may still write to it" in silent.message
    assert "kubectl annotate volume data kumulus.io/force-detach=true" in silent.message
    after = derive_status(Scope(volume(status=THERE), order=order("Ready", **MADE)), None, USED, silent, NOW)
    assert (after.phase, after.host, after.epoch, after.attached_to) == (VolumePhase.MOVING, "h1", 2, USED)


def test_an_order_that_is_taken_back_leaves_the_data() -> None:
    spec = order("Ready").spec
    left = retaining(spec, True, 9)
    assert left.disk is not None and left.disk.volume is not None
    assert left.disk.volume.retain and left.term == 9
    assert retaining(left, True, 10) is left
    assert retaining(left, False, 9).disk == spec.disk


def test_who_takes_a_volume_over_gets_an_order_for_what_exists_of_a_newer_epoch() -> None:
    want = wanted(Scope(volume(status=THERE)))
    assert isinstance(want, Wanted)
    made = volume_order(volume(status=THERE), want, Place(POOL, "h2", 3), 1)
    assert made.disk is not None and made.disk.volume is not None
    assert (made.disk.volume.existing, made.disk.volume.epoch) == (True, 3)
    moving = derive_status(Scope(volume(status=THERE)), Place(POOL, "h2", 3), USED, None, NOW)
    ready = moving.condition("Ready")
    assert (moving.phase, moving.host, moving.epoch) == (VolumePhase.MOVING, "h2", 3)
    assert ready is not None and ready.reason == HANDING_OVER
