"""What leaves the cloud of an object has nothing that a person wrote, whatever field of whatever kind it is in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from kumulus.api.base import Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.registry import KINDS
from kumulus.cli.redaction import DROPPED, KEPT, redacted, scrub
from kumulus.crdgen.crd import schema
from tests.patience import PATIENCE

SECRET = "Tr0ub4dor & 3 horses"
"""No name, no number, no address: what only a person writes."""


def filled(shape: Mapping[str, Any], text: str) -> Any:
    """An object of that schema that has everything, with that text in all that is text."""
    if shape.get("type") == "array":
        return [filled(shape.get("items", {}), text)]
    if "properties" in shape:
        return {name: filled(inner, text) for name, inner in shape["properties"].items()}
    if isinstance(inner := shape.get("additionalProperties"), Mapping):
        return {"key": filled(inner, text)}
    return text


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text, and where."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(item, f"{path}.{key}")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND.kind)
def test_no_text_of_a_person_is_left_but_in_fields_that_are_none(kind: type[Resource]) -> None:
    raw = {"kind": kind.KIND.kind, "metadata": {"name": "a"}, **filled(schema(kind), SECRET)}
    raw["metadata"] = {
        "name": "a",
        "labels": {"team": SECRET},
        "annotations": {"note": SECRET},
        "managedFields": SECRET,
    }
    left = {path for path, text in texts(redacted(raw, schema(kind))) if SECRET in text}
    assert {path.rpartition(".")[2] for path in left} <= KEPT
    assert not any(path.startswith(".spec.") and path.endswith((".reason", ".message")) for path in left)
    assert not any(name in path.split(".") for path in left for name in DROPPED)


def test_labels_by_which_machines_are_chosen_are_their_owners() -> None:
    shape = {"properties": {"spec": {"properties": {"selector": {"additionalProperties": {"pattern": ".*"}}}}}}
    left = redacted({"kind": "VirtualMachinePool", "spec": {"selector": {"team": "falcon"}}}, shape)
    assert left["spec"] == {"selector": {"team": "(6 characters)"}}


def test_a_machine_keeps_what_explains_it_and_nothing_of_its_owners() -> None:
    raw = {
        "apiVersion": "compute.kumulus.io/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {
            "name": "web1",
            "namespace": "shop",
            "annotations": {"kumulus.io/paused": "true", "kubectl.kubernetes.io/last-applied-configuration": SECRET},
        },
        "spec": {
            "instanceType": "small",
            "powerState": "Running",
            "restartRequest": SECRET,
            "sshKeys": [{"publicKey": "ssh-ed25519 AAAA alice"}],
            "cloudInit": {"userData": SECRET, "unknown": SECRET},
        },
        "status": {
            "phase": "Pending",
            "host": "h1",
            "epoch": 3,
            "guest": {"hostname": "web1", "os": "Debian"},
            "conditions": [{"type": "Ready", "status": "False", "reason": "NoHostFits", "message": "0 of 3 hosts fit"}],
        },
    }
    found = redacted(raw, schema(VirtualMachine))
    assert found["metadata"] == {
        "name": "web1",
        "namespace": "shop",
        "annotations": {
            "kumulus.io/paused": "true",
            "kubectl.kubernetes.io/last-applied-configuration": f"({len(SECRET)} characters)",
        },
    }
    length = f"({len(SECRET)} characters)"
    assert found["spec"] == {
        "instanceType": "small",
        "powerState": "Running",
        "restartRequest": length,
        "sshKeys": [{"publicKey": "(left out)"}],
        "cloudInit": {"userData": length, "unknown": length},
    }
    assert found["status"] == {**raw["status"], "guest": "(left out)"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "fetch https://bob:pw@images.example.com/a.img?sig=abc#x failed",
            "fetch https://images.example.com/a.img?(left out) failed",
        ),
        ("https://bob:p/w?x#y@images.example.com/a.img", "https://images.example.com/a.img"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer (secret)"),
        ("token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln-bmF0dXJl ends", "token (token) ends"),
        ('{"password": "hunter 2", "user": "x"}', '{"password": (secret), "user": "x"}'),
        (r'{"error": "of {\"password\": \"hunter 2\"}"}', r'{"error": "of {\"password\": (secret)}"}'),
        (r'{"event": "password=\"hunter 2\" is"}', r'{"event": "password=(secret) is"}'),
        ("key = AQDRxkZlAAAAABAAZJ0cNkYBl5nAAdVYt4bPzA== now", "key = (key) now"),
        ("BMC_PASSWORD=hunter2 and more", "BMC_PASSWORD=(secret) and more"),
        ("a\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\nb", "a\n(PEM)\nb"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA", "(PEM)"),
        ('{"key": "-----BEGIN RSA PRIVATE KEY-----\\nAA+/=\\n"} and on', '{"key": "(PEM)"} and on'),
        ("0 of 3 hosts fit: 2 without enough memory (h2, h3)", "0 of 3 hosts fit: 2 without enough memory (h2, h3)"),
        ('kumulus_queue_depth{controller="machine"} 0', 'kumulus_queue_depth{controller="machine"} 0'),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_any_text(text: str, left: str) -> None:
    assert scrub(text) == left


@pytest.mark.parametrize("bit", ["a", "a-", "eyJ", "https://", "token", "token='", "-----BEGIN A-----", "a.b://", "a "])
def test_no_text_takes_long(bit: str) -> None:
    """A log is as somebody made it."""
    began = time.process_time()
    scrub(bit * (300_000 // len(bit)))
    assert time.process_time() - began < 1 * PATIENCE
