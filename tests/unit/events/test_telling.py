"""Envelopes, filters, signatures, addresses: the pure parts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from ipaddress import ip_network

import pytest

from kumulus.api.events import EventFilter, NatsTarget
from kumulus.crdgen.command import CHECKOUT
from kumulus_services.events.envelope import BODY_MAX, Change, events, slim
from kumulus_services.events.filters import wanted
from kumulus_services.events.guard import Guard
from kumulus_services.events.jetstream import subject
from kumulus_services.events.reference import PAGE, main, page
from kumulus_services.events.signing import key_of, signed
from kumulus_services.events.transitions import Told
from kumulus_services.events.transport import AddressRefused


def change(
    *verbs: str, namespace: str | None = "shop", labels: Mapping[str, str] | None = None, pad: int = 0
) -> Change:
    item = {"apiVersion": "v1", "kind": "VirtualMachine", "metadata": {"name": "web", "uid": "u-1"}, "pad": "x" * pad}
    told = tuple(Told(verb, "status.phase", "Running", "Paused") if verb == "paused" else Told(verb) for verb in verbs)
    at = "2026-01-01T00:00:00.000Z"
    return Change(7, "u-1", "VirtualMachine", namespace, "web", "42", at, told, json.dumps(item), labels or {})


def test_one_change_is_its_events_in_order_each_with_an_id_of_its_own() -> None:
    first, second = events(change("updated", "paused"), "/kumulus")
    assert (first.id, second.id) == ("u-1.42.updated", "u-1.42.paused")
    body = json.loads(second.body)
    assert body["type"] == "io.kumulus.vm.paused"
    assert body["subject"] == "virtualmachines.compute.kumulus.io/shop/web"
    assert body["data"]["change"] == {"field": "status.phase", "from": "Running", "to": "Paused"}
    assert body["data"]["object"]["metadata"]["name"] == "web"
    assert all(name.isalnum() and name.islower() for name in body), "names of attributes, as the specification has them"
    assert subject(NatsTarget(url="nats://n"), second) == "kumulus.events.shop.vm.paused"


def test_an_end_is_one_event_however_it_is_seen() -> None:
    (ended,) = events(change("deleted"), "/kumulus")
    assert ended.id == "u-1.deleted"


def test_what_is_too_large_is_told_without_the_object() -> None:
    (event,) = events(change("created", pad=BODY_MAX), "/kumulus")
    data = json.loads(event.body)["data"]
    assert len(event.body) < 2000
    assert (data["truncated"], data["object"]["metadata"]["uid"]) == (True, "u-1")


def test_what_is_only_for_the_api_server_is_left_out() -> None:
    noise = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
    raw = {"metadata": {"name": "a", "managedFields": [1], "annotations": noise}, "spec": {}}
    assert slim(raw) == {"metadata": {"name": "a"}, "spec": {}}
    assert raw["metadata"]["annotations"] == noise, "others have the object too"


@pytest.mark.parametrize(
    ("filter_", "home", "types"),
    [
        ({}, "shop", ["updated", "paused"]),
        ({}, "other", []),
        ({}, "kumulus-system", ["updated", "paused"]),
        ({"kinds": ["Volume"]}, "shop", []),
        ({"kinds": ["Volume", "VirtualMachine"], "types": ["io.kumulus.vm.paused"]}, "shop", ["paused"]),
        ({"types": ["io.kumulus.vm.*"]}, "shop", ["updated", "paused"]),
        ({"types": ["io.kumulus.v.*"]}, "shop", []),
        ({"namespaces": ["shop"]}, "kumulus-system", ["updated", "paused"]),
        ({"namespaces": ["other"]}, "kumulus-system", []),
        ({"labels": {"tier": "front"}}, "shop", ["updated", "paused"]),
        ({"labels": {"tier": "back"}}, "shop", []),
    ],
)
def test_who_gets_what(filter_: dict[str, object], home: str, types: list[str]) -> None:
    found = wanted(EventFilter.model_validate(filter_), home, change("updated", "paused", labels={"tier": "front"}))
    assert found == {f"io.kumulus.vm.{verb}" for verb in types}


def test_of_the_cluster_only_the_operator_is_told() -> None:
    assert not wanted(EventFilter(), "shop", change("created", namespace=None))
    assert wanted(EventFilter(), "kumulus-system", change("created", namespace=None))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "10.1.2.3",
        "192.168.0.9",
        "169.254.169.254",
        "fe80::1%eth0",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "fd00::1",
        "8.8.4.4",
    ],
)
def test_tenants_reach_public_addresses_only(address: str) -> None:
    guard = Guard(False, allowed=[ip_network("172.16.0.0/12")], denied=[ip_network("8.8.4.0/24")])
    with pytest.raises(AddressRefused):
        guard.check(address)
    Guard(True).check(address)
    for public in ("8.8.8.8", "2606:4700::1111", "172.16.3.4"):
        guard.check(public)


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The example of the specification."""
    key = key_of(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    body = b'{"test": 2432232314}'
    found = signed(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    digest = hmac.new(b"plain", b"i.1.b", hashlib.sha256).digest()
    assert signed(key_of(b"plain"), "i", 1, b"b")["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    for bad in (b"", b"whsec_", b"whsec_%%%"):
        with pytest.raises(ValueError, match=r"empty|base64"):
            key_of(bad)


def test_the_page_is_as_the_table_says() -> None:
    assert (CHECKOUT / PAGE).read_text() == page()
    assert main(["--check"]) == 0
    assert "`vm.started`" in page()
