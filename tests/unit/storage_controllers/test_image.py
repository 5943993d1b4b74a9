"""An image's status: the furthest of its hosts speaks, a failure only when nothing else is left, and nothing is forgotten."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kumulus.api.base import ConditionStatus
from kumulus.api.host import WorkOrder
from kumulus.api.image import Compression, Image, ImageFormat, ImagePhase, ImageStatus
from kumulus.api.pool_order import PoolRef
from kumulus_controllers.storage.image_orders import arrived, arriving, import_order
from kumulus_controllers.storage.image_status import LISTED, Scope, derive_status

NOW = "2026-01-01T00:00:00Z"
UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
SHA = "ab" * 32


def image(*, deleting: bool = False, status: dict[str, Any] | None = None) -> Image:
    metadata = {"name": "debian", "namespace": "ns", "uid": UID, "generation": 1}
    if deleting:
        metadata["deletionTimestamp"] = NOW
    spec = {"source": {"http": {"url": "https://x.example/y"}}, "checksum": {"sha256": SHA}, "format": "qcow2"}
    return Image.parse({"metadata": metadata, "spec": spec, "status": status or {}})


def order(
    host: str, state: str | None, *, reason: str = "", message: str = "", disk: dict[str, Any] | None = None
) -> WorkOrder:
    ref = {"uid": UID, "sha256": SHA, "format": "qcow2"}
    pool = {"uid": UID, "name": "local", "driver": "dir", "parameters": {"path": "/x"}}
    return WorkOrder.parse(
        {
            "metadata": {"name": f"image-{host}", "namespace": f"kumulus-host-{host}"},
            "spec": {
                "type": "Disk",
                "for": {"kind": "Image", "namespace": "ns", "name": "debian", "uid": UID},
                "disk": {"pool": pool, "importImage": {"image": ref, "http": {"url": "https://x.example/y"}}},
            },
            "status": {"state": state, "reason": reason, "message": message, "disk": disk},
        }
    )


DISK = {"sha256": SHA, "format": "qcow2", "virtualSize": 2**30, "size": 2**20}


def status_of(scope: Scope) -> ImageStatus:
    """The status, checked for what may never be."""
    after = derive_status(scope, NOW)
    types = [condition.type for condition in after.conditions]
    ready = after.condition("Ready")
    assert len(set(types)) == len(types) and not {"Reconciling", "Stalled"} <= set(types)
    assert ready is not None and (ready.status is ConditionStatus.TRUE) == (after.phase is ImagePhase.READY)
    return after


@pytest.mark.parametrize(
    ("orders", "phase", "reason"),
    [
        ((), ImagePhase.PENDING, "NoHostFits"),
        ((order("a", None),), ImagePhase.PENDING, "Importing"),
        ((order("a", "Working"),), ImagePhase.IMPORTING, "Importing"),
        ((order("a", "Waiting", reason="Unreachable", message="no route"),), ImagePhase.IMPORTING, "Unreachable"),
        (
            (order("a", "Failed", reason="ChecksumMismatch", message="it differs"),),
            ImagePhase.FAILED,
            "ChecksumMismatch",
        ),
        ((order("a", "Ready", disk=DISK),), ImagePhase.READY, "Verified"),
        ((order("a", "Failed"), order("b", "Working")), ImagePhase.IMPORTING, "Importing"),
        ((order("a", "Failed"), order("b", "Ready", disk=DISK)), ImagePhase.READY, "Verified"),
    ],
)
def test_phases(orders: tuple[WorkOrder, ...], phase: ImagePhase, reason: str) -> None:
    after = status_of(Scope(image(), orders, "there are no hosts"))
    ready = after.condition("Ready")
    assert after.phase is phase and ready is not None and ready.reason == reason


def test_the_status_does_not_depend_on_the_order_in_which_hosts_report() -> None:
    orders = [
        order("a", "Failed", reason="X"),
        order("b", "Working", disk={"progress": {"bytes": 5}}),
        order("c", "Working", disk={"progress": {"bytes": 9}}),
        order("d", None),
    ]
    found = set()
    for seed in range(10):
        random.Random(seed).shuffle(orders)
        found.add(status_of(Scope(image(), tuple(orders))).model_dump_json())
    assert len(found) == 1


def test_what_was_verified_stays_known_while_another_host_fetches_it() -> None:
    ready = status_of(Scope(image(), (order("a", "Ready", disk=DISK),))).to_json()
    later = status_of(Scope(image(status=ready), (order("b", "Working", disk={"progress": {"bytes": 1}}),)))
    assert later.phase is ImagePhase.READY and later.virtual_size == 2**30 and later.sha256 == SHA
    gone = status_of(Scope(image(status=ready), ()))
    assert gone.phase is ImagePhase.READY and gone.virtual_size == 2**30


def test_a_thousand_hosts_fit_into_a_status() -> None:
    orders = tuple(order(f"h{number:04}", "Ready", disk=DISK) for number in range(1500))
    assert len(status_of(Scope(image(), orders)).caches) == LISTED


def test_the_order_says_how_the_download_is_packed_and_what_it_has_to_be() -> None:
    packed = image()
    spec = packed.spec.model_copy(update={"compression": Compression.XZ, "format": ImageFormat.VMDK})
    packed = packed.model_copy(update={"spec": spec})
    pool = PoolRef.model_validate(order("a", None).spec.disk.pool.to_json())  # type: ignore[union-attr]
    disk = import_order(packed, pool, 7).to_json()["disk"]
    http = disk["importImage"]["http"]
    assert (http["url"], http["compression"]) == ("https://x.example/y", "xz")
    assert disk["importImage"]["image"]["format"] == "vmdk"
    unsaid = import_order(image(), pool, 7).disk
    assert unsaid is not None and unsaid.import_image.http.compression is Compression.NONE


def test_an_image_in_use_says_where_when_it_is_deleted() -> None:
    after = status_of(Scope(image(deleting=True), (order("a", "Ready", reason="ImageInUse", disk=DISK),)))
    stalled = after.condition("Stalled")
    assert stalled is not None and "on a: delete their machines" in stalled.message


def test_a_pool_that_hosts_share_is_one_cache_whichever_hosts_have_found_the_image_there() -> None:
    orders = []
    for host, state in (("a", "Working"), ("b", "Ready"), ("c", None)):
        raw = order(host, state, disk=DISK).to_json()
        raw["spec"]["disk"]["pool"] |= {"name": "shared", "parameters": {"path": "/x", "shared": True}}
        orders.append(WorkOrder.parse(raw))
    caches = status_of(Scope(image(), (*orders, order("d", "Ready", disk=DISK)))).caches
    assert [(cache.name, cache.host, cache.state) for cache in caches] == [
        ("shared", None, "Ready"),
        ("local/d", "d", "Ready"),
    ]
    pool = orders[0].spec.disk.pool
    assert [arriving(item, pool) for item in orders] == [True, False, True]
    assert arrived(orders[0], orders[1]) and not arrived(orders[1], orders[1])
