"""What may leave the cloud of an object, a log, a page of metrics. Pure.

Of objects a text stays when its schema says that it is one of few (an enum, a name, an address), or when it is of the fields in
`KEPT`, which Kumulus or the hardware fill. All other text is somebody's: only its length is told. A field that is new, and a kind
that has no schema, are somebody's too. What stays is looked through for what looks like a secret all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Raw = Mapping[str, Any]

KEPT = frozenset(
    """
    activeHost addresses agent agentVersion answeredAt architecture at beganAt bus class conditions copiedFrom cpuModel
    credentialsExpireAt currentRevision device devices digest disk emulator expiresAt failureMessage family features fencedAt
    finishedAt firmware format host hypervisor hypervisorMessage instanceType interfaceUid kernel kind lastDeliveredAt lastExit
    lastProgressAt lastRenewal lastTransitionTime macAddress machineType machineTypes maxMemory maxSurge maxUnavailable memory
    message model models movingTo name namespace network nextStartAt os peerMessage phase physicalNetwork pool reason releasedAt
    returnedAt router secret sha256 snapshot sourceHost standbyHosts startedAt state storageMessage takenAt target targetHost type uid
    updateRevision vendor version vm vmUid volume volumeUid waitFor witness zone
    """.split()  # noqa: SIM905 - a hundred lines of words otherwise
)
"""Fields of free text that are not written by tenants or guests: reasons, times, names of other objects, versions."""
STATED = frozenset({"message", "reason"})
"""Of those, what is a person's word in a spec, and ours in a status."""
DROPPED = frozenset({"guest", "log", "publicKey", "tokenSha256"})
"""Fields that are left out with all below them, whatever their schema says: a guest's word, and what a person is known by."""
META = (
    "name",
    "namespace",
    "uid",
    "generation",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
    "ownerReferences",
)
"""Of metadata. Of labels and annotations only Kumulus' own have their values."""
_LABELS = ("labels", "annotations")
_CHOOSING = ("matchLabels", "selector")
"""Maps of labels in specs, by which a tenant's machines are chosen."""
OWN = re.compile(r"([a-z0-9-]+\.)*kumulus\.io/.*")

_PEM = re.compile(r"-----BEGIN [^-\n]{1,64}-----(?:(?!-----)[^\"]){0,20000}(?:-----END [^-\n]{1,64}-----)?", re.DOTALL)
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]*|eyJ[A-Za-z0-9_-]{8,}")
_LOGIN = re.compile(r"(?i)\b(bearer|basic)\s{1,8}[A-Za-z0-9+/=._~-]{8,}")
_ADDRESS = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]{0,15}://[^\s\"'<>]+")
_NAMED = re.compile(
    r"(?i)((?:password|passwd|passphrase|secret[_-]?key|api[_-]?key|token)(?:\\{0,3}[\"'])?\s{0,8}[:=]\s{0,8})"
    r"(?:(\\{0,3}[\"'])(?:(?!\2).){0,4096}\2|[^\s,;}\"'\\]+)"
)
"""A log that is JSON has its quotes with strokes before them."""
_CEPH = re.compile(r"\bAQ[A-Za-z0-9+/]{36,}={0,2}")


def scrub(text: str) -> str:
    """The text without what looks like a secret: keys, tokens, passwords, who logs in to an address and what is asked of it."""
    text = _ADDRESS.sub(_address, _JWT.sub(_token, _PEM.sub("(PEM)", text)))
    return _NAMED.sub(r"\1(secret)", _CEPH.sub("(key)", _LOGIN.sub(r"\1 (secret)", text)))


def _address(found: re.Match[str]) -> str:
    scheme, _, rest = found[0].partition("://")
    # What logs in may have any sign in it, so all before the last @ is taken for that.
    where, mark, _ = rest.rpartition("@")[2].partition("#")[0].partition("?")
    return f"{scheme}://{where}" + ("?(left out)" if mark else "")


def _token(found: re.Match[str]) -> str:
    return "(token)" if found[0].count(".") >= 2 else found[0]


def redacted(raw: Raw, schema: Raw) -> dict[str, Any]:
    """An object as it may leave the cloud. `schema` is that of its kind's CRD."""
    properties = schema.get("properties", {})
    parts = {
        part: _value(part, raw[part], properties.get(part, {}), kept)
        for part, kept in (("spec", KEPT - STATED), ("status", KEPT))
        if part in raw
    }
    head = {"apiVersion": raw.get("apiVersion"), "kind": raw.get("kind")}
    return {**head, "metadata": metadata(raw.get("metadata", {})), **parts}


def metadata(raw: Raw) -> dict[str, Any]:
    """Metadata as it may leave the cloud."""
    kept: dict[str, Any] = {name: raw[name] for name in META if name in raw}
    for part in _LABELS:
        if raw.get(part):
            kept[part] = _labels(raw[part])
    return kept


def _labels(raw: Raw) -> dict[str, str]:
    return {key: scrub(str(value)) if OWN.fullmatch(key) else _length(str(value)) for key, value in raw.items()}


def _value(field: str, value: Any, schema: Raw, kept: frozenset[str]) -> Any:
    if field in DROPPED:
        return "(left out)"
    if field == "values" and isinstance(value, list):  # of labels
        return [_length(str(item)) for item in value]
    if (
        field in _LABELS + _CHOOSING
        and isinstance(value, Mapping)
        and all(isinstance(one, str) for one in value.values())
    ):
        return _labels(value)
    match value:
        case bool() | int() | float() | None:
            return value
        case str():
            return scrub(value) if _stays(field, value, schema, kept) else _length(value)
        case list():
            return [_value(field, item, schema.get("items", {}), kept) for item in value]
        case dict():
            properties, others = schema.get("properties", {}), schema.get("additionalProperties")
            inner = others if isinstance(others, Mapping) else {}
            return {
                scrub(key): _value(key, item, properties[key], kept)
                if key in properties
                else _value("", item, inner, kept)
                for key, item in value.items()
            }
        case _:
            return "(left out)"


def _stays(field: str, value: str, schema: Raw, kept: frozenset[str]) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    if "pattern" in schema:
        return re.search(schema["pattern"], value) is not None
    return field in kept and bool(schema)


def _length(value: str) -> str:
    return f"({len(value)} characters)"
