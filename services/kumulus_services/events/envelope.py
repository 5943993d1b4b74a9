"""A change as CloudEvents 1.0 in the structured JSON mode. Pure.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md, .../formats/json-format.md,
.../extensions/sequence.md, .../extensions/partitioning.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kumulus_services.events.transitions import DELETED, MODELS, Told, type_of

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"

BODY_MAX = 512 * 1024
"""Bytes. What is larger is told without the object: receivers do not take messages of any size (NATS: 1 MiB)."""

_NOISE = ("kubectl.kubernetes.io/last-applied-configuration",)
"""Annotations that say once more what the object says."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one object at one moment: one event or several."""

    seq: int
    """Its place in the journal, from 1; 0 for none."""
    uid: str
    kind: str
    namespace: str | None
    name: str
    version: str
    """The resource version that it led to."""
    at: str
    """When it was noticed (RFC 3339)."""
    told: tuple[Told, ...]
    object: str
    """The object after it, as JSON; before it when it is gone."""
    labels: Mapping[str, str]
    queued: float = 0.0
    """Since when it waits: seconds of the wall clock."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event, ready to be sent."""

    id: str
    type: str
    namespace: str | None
    body: bytes


def slim(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The object as it is told: without what is only for the API server and its clients."""
    metadata = {key: value for key, value in raw["metadata"].items() if key not in ("managedFields", "selfLink")}
    if annotations := metadata.get("annotations"):
        kept = {key: value for key, value in annotations.items() if key not in _NOISE}
        metadata = (
            {**metadata, "annotations": kept} if kept else {k: v for k, v in metadata.items() if k != "annotations"}
        )
    return {**raw, "metadata": metadata}


def event_id(change: Change, told: Told) -> str:
    """The same for the same event, whoever tells it and however often: by it receivers know what came twice. An object
    ends once, whatever version is seen of that."""
    return f"{change.uid}.{DELETED}" if told.verb == DELETED else f"{change.uid}.{change.version}.{told.verb}"


def subject(change: Change) -> str:
    """Which object it is about, such as virtualmachines.compute.kumulus.io/shop/web-1."""
    kind = MODELS[change.kind].KIND
    place = f"{change.namespace}/" if change.namespace else ""
    return f"{kind.plural}.{kind.group}/{place}{change.name}"


def events(change: Change, source: str, types: frozenset[str] | None = None) -> Iterator[Event]:
    """The events of a change in their order; with `types` only those."""
    for told in change.told:
        type_ = type_of(change.kind, told.verb)
        if types is None or type_ in types:
            yield _event(change, told, type_, source)


def _event(change: Change, told: Told, type_: str, source: str) -> Event:
    identity = event_id(change, told)
    head: dict[str, Any] = {
        "specversion": "1.0",
        "id": identity,
        "source": source,
        "type": type_,
        "subject": subject(change),
        "time": change.at,
        "datacontenttype": "application/json",
        "sequence": change.version.zfill(20),
        "partitionkey": change.uid,
        "kumuluskind": change.kind,
        "kumulusname": change.name,
        "kumulusuid": change.uid,
    }
    if change.namespace:
        head["kumulusnamespace"] = change.namespace
    data: dict[str, Any] = {}
    if told.field:
        data["change"] = {"field": told.field, "from": told.before, "to": told.after}
    body = _spliced(head, data, change.object)
    if len(body) > BODY_MAX:
        body = _spliced(head, {"truncated": True}, json.dumps(_bare(change.object)))
    return Event(identity, type_, change.namespace, body)


def _spliced(head: Mapping[str, Any], data: Mapping[str, Any], item: str) -> bytes:
    """The object is JSON already, and by far the most of it: it is not read again."""
    rest = json.dumps(data, separators=(",", ":"))[1:-1]
    comma = "," if rest else ""
    return f'{json.dumps(head, separators=(",", ":"))[:-1]},"data":{{{rest}{comma}"object":{item}}}}}'.encode()


def _bare(item: str) -> dict[str, Any]:
    """Which object it is, and no more."""
    raw = json.loads(item)
    metadata = {
        key: raw["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion") if key in raw["metadata"]
    }
    return {"apiVersion": raw.get("apiVersion"), "kind": raw.get("kind"), "metadata": metadata}
