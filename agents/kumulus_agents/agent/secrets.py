"""Secrets of this host's namespace."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import KubeError
from kumulus_agents.storage.protocol import StorageError


class HostSecrets:
    """Reads Secrets by name, each time anew: what is in them is kept by nobody here."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def read(self, name: str) -> Mapping[str, bytes]:
        """See `storage.secrets.Secrets`."""
        try:
            secret = await self._client.find(SECRET, name, self._namespace)
        except KubeError as error:
            raise StorageError(
                f"The Secret {name} of this host could not be read from the API server. It is tried again.",
                reason="SecretNotFound",
            ) from error
        if secret is None:
            raise StorageError(
                f"This host has no Secret {name}. It is a copy of the one that the StoragePool names: create that in"
                " kumulus-system.",
                reason="SecretNotFound",
            )
        try:
            return {key: base64.b64decode(data, validate=True) for key, data in (secret.get("data") or {}).items()}
        except binascii.Error:
            raise StorageError(f"The Secret {name} is not valid base64.", reason="SecretUnreadable") from None
