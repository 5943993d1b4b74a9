"""The passphrases of this host's encrypted volumes, read from the Secrets that orders name. Kept nowhere."""

from __future__ import annotations

import base64
import binascii

from kumulus.api.host import PASSPHRASE
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageError


class Passphrases:
    """The Secrets in one host's namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def read(self, name: str) -> Passphrase:
        """What the Secret of that name has. Raises `StorageError` (SecretNotFound, SecretUnreadable) and `KubeError`."""
        secret = await self._client.find(SECRET, name, self._namespace)
        if secret is None:
            raise StorageError("The passphrase of the volume is not on this host yet.", reason="SecretNotFound")
        try:
            text = base64.b64decode((secret.get("data") or {})[PASSPHRASE], validate=True).decode()
        except (KeyError, binascii.Error, UnicodeDecodeError):
            raise StorageError("The Secret with the volume's passphrase has none.", reason="SecretUnreadable") from None
        return Passphrase(text)
