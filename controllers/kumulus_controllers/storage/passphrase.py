"""The passphrases of encrypted volumes: read from a tenant's Secret once, and copied to the host that has the volume."""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress

from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import luks_secret_name
from kumulus.api.storage import Volume
from kumulus.api.volume_order import PASSPHRASE
from kumulus.api.volumes import Encryption
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient, Raw
from kumulus.kube.errors import AlreadyExists
from kumulus_controllers.order_secret import belonging, belongs
from kumulus_controllers.storage.volume_plan import Lack

SHORTEST, LONGEST = 16, 512
"""Bytes of a passphrase."""


async def read(client: KubeClient, volume: Volume, encryption: Encryption) -> str | Lack:
    """The passphrase as the tenant's Secret has it now, or why there is none. A live read: Secrets are never cached."""
    name, key = encryption.secret, encryption.key
    found = await client.find(SECRET, name, volume.namespace)
    if found is None:
        return Lack(
            "SecretNotFound",
            f"There is no Secret {name} in namespace {volume.namespace}, which the class says the volume is encrypted with."
            f' Make one: kubectl create secret generic {name} --from-literal={key}="$(openssl rand -hex 32)"',
        )
    data = (found.get("data") or {}).get(key)
    if data is None:
        return Lack("SecretKeyNotFound", f"Secret {name} has no key {key}.")
    try:
        text = base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return Lack("SecretNotText", f"Key {key} of Secret {name} is not UTF-8 text.")
    if not SHORTEST <= len(text.encode()) <= LONGEST or "\0" in text:
        return Lack("PassphraseUnfit", f"Key {key} of Secret {name} must be text of {SHORTEST} to {LONGEST} bytes.")
    return text


async def _of(client: KubeClient, volume: Volume) -> str | None:
    """The passphrase that the host of a volume has; None when it has none."""
    if volume.status.host is None:
        return None
    found = await client.find(SECRET, luks_secret_name(volume.uid), host_namespace(volume.status.host))
    return _text(found) if found is not None else None


def _text(secret: Raw) -> str | None:
    data = (secret.get("data") or {}).get(PASSPHRASE)
    return base64.b64decode(data).decode() if data is not None else None


async def copy(
    client: KubeClient, volume: Volume, order: WorkOrder, encryption: Encryption, stands_on: Volume | None
) -> Lack | None:
    """See that the host that has the volume has the passphrase; a copy that is there stays as it is.

    It goes with the order. One that was there before this order is taken over: a volume that is made keeps its passphrase,
    whatever the tenant's Secret has by now. So does one that stands on a snapshot of another one, and has that one's.
    """
    name, namespace = luks_secret_name(volume.uid), order.namespace
    there = await client.find(SECRET, name, namespace)
    if there is not None:
        if belongs(there, order.uid):
            return None
        await client.delete(SECRET, name, namespace, uid=there["metadata"]["uid"])
    text: str | Lack | None = _text(there) if there is not None and volume.status.size is not None else None
    if text is None and stands_on is not None:
        text = await _of(client, stands_on)
    if text is None:
        text = await read(client, volume, encryption)
    if isinstance(text, Lack):
        return text
    try:
        await client.create(SECRET, belonging(name, order, {"stringData": {PASSPHRASE: text}}), namespace)
    except AlreadyExists:
        return Lack("SecretBusy", "The passphrase is being handed over to the host.", stalled=False)
    return None


async def pass_on(client: KubeClient, name: str, namespace: str, owner: WorkOrder) -> None:
    """Copy what one host has to the namespace of `owner`, an order of the host that is to have the volume next.

    It belongs to that order until `copy` finds it there.
    """
    found = await client.find(SECRET, name, namespace)
    text = _text(found) if found is not None else None
    if text is None:
        return
    with suppress(AlreadyExists):
        await client.create(SECRET, belonging(name, owner, {"stringData": {PASSPHRASE: text}}), owner.namespace)
