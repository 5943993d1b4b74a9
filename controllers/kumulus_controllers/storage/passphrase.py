"""The passphrases of encrypted volumes: read from a tenant's Secret once, and copied to the host that has the volume."""

from __future__ import annotations

import base64
import binascii

from kumulus.api.host import PASSPHRASE, WorkOrder, luks_secret_name
from kumulus.api.storage import Volume
from kumulus.api.volumes import Encryption
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists
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


async def copy(client: KubeClient, volume: Volume, order: WorkOrder, encryption: Encryption) -> Lack | None:
    """See that the host that has the volume has the passphrase; a copy that is there stays as it is.

    It goes with the order. One that belongs to an earlier order of the volume is made anew.
    """
    name, namespace = luks_secret_name(volume.uid), order.namespace
    there = await client.find(SECRET, name, namespace)
    if there is not None:
        if order.uid in {owner["uid"] for owner in there["metadata"].get("ownerReferences", [])}:
            return None
        await client.delete(SECRET, name, namespace, uid=there["metadata"]["uid"])
    text = await read(client, volume, encryption)
    if isinstance(text, Lack):
        return text
    owner = {
        "apiVersion": WorkOrder.KIND.api_version,
        "kind": WorkOrder.KIND.kind,
        "name": order.name,
        "uid": order.uid,
    }
    body = {"metadata": {"name": name, "ownerReferences": [owner]}, "immutable": True, "stringData": {PASSPHRASE: text}}
    try:
        await client.create(SECRET, body, namespace)
    except AlreadyExists:
        return Lack("SecretBusy", "The passphrase is being handed over to the host.", stalled=False)
    return None
