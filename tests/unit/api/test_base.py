"""What all kinds share."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kumulus.api.base import PAUSED, immutable, list_map
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import HOST_NAME_MAX, Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import console_order_name, image_order_name, instance_order_name, pool_order_name
from kumulus.api.placement import Taint, Toleration
from kumulus.api.registry import KINDS

UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
RAW = {
    "metadata": {"name": "web", "namespace": "default", "uid": UID, "managedFields": [{}], "generation": 2},
    "spec": {"instanceType": "small", "powerState": "Stopped", "added": "by a newer version"},
    "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "X"}]},
}


def test_paths() -> None:
    kind = VirtualMachine.KIND
    assert kind.path() == "/apis/compute.kumulus.io/v1alpha1/virtualmachines"
    assert (
        kind.path("ns", "web", "status") == "/apis/compute.kumulus.io/v1alpha1/namespaces/ns/virtualmachines/web/status"
    )
    assert Host.KIND.path(None, "h1") == "/apis/fabric.kumulus.io/v1alpha1/hosts/h1"


def test_reading_drops_what_it_does_not_know_and_fills_in_the_rest() -> None:
    vm = VirtualMachine.parse(RAW)
    assert (vm.name, vm.namespace, vm.uid, vm.deleting, vm.paused) == ("web", "default", UID, False, False)
    assert vm.spec.stop.grace_period_seconds == 60
    ready = vm.status.condition("Ready")
    assert ready is not None
    assert ready.reason == "X"
    assert vm.status.condition("Other") is None
    assert "added" not in vm.spec.to_json()


def test_paused_and_deleting() -> None:
    raw = {
        **RAW,
        "metadata": {"name": "web", "annotations": {PAUSED: "true"}, "deletionTimestamp": "2026-11-20T00:00:00Z"},
    }
    vm = VirtualMachine.parse(raw)
    assert vm.paused
    assert vm.deleting


def test_a_value_cannot_be_changed_in_place() -> None:
    vm = VirtualMachine.parse(RAW)
    with pytest.raises(ValidationError):
        vm.spec.zone = "z2"  # type: ignore[misc]


def test_marks_combine() -> None:
    assert set(list_map("name") | immutable("disks")) == {
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kumulus-immutable",
    }


def test_names_of_work_orders_are_dns_labels() -> None:
    for name in (
        instance_order_name(UID),
        console_order_name(UID),
        pool_order_name(UID),
        image_order_name(UID, UID),
    ):
        assert len(name) <= WorkOrder.KIND.name_max


def test_the_namespace_of_the_longest_host_name_is_a_dns_label() -> None:
    assert len(host_namespace("h" * HOST_NAME_MAX)) == 63


def test_every_kind_has_a_place() -> None:
    assert len({resource.KIND.path() for resource in KINDS}) == len(KINDS)
    for resource in KINDS:
        assert resource.KIND.kind == resource.__name__
        assert resource.KIND.categories


@pytest.mark.parametrize(
    ("toleration", "covers"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "dedicated", "operator": "Exists"}, True),
        ({"key": "other", "operator": "Exists"}, False),
        ({"key": "dedicated", "value": "web"}, True),
        ({"key": "dedicated", "value": "db"}, False),
        ({"key": "dedicated", "value": "web", "effect": "NoSchedule"}, True),
        ({"key": "dedicated", "value": "web", "effect": "PreferNoSchedule"}, False),
    ],
)
def test_tolerations(toleration: dict[str, str], covers: bool) -> None:
    taint = Taint(key="dedicated", value="web")
    assert Toleration.model_validate(toleration).tolerates(taint) is covers
