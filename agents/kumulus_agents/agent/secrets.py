"""Secrets that work orders name: read when they are needed, from the host's own namespace, and never kept."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import KubeError
from kumulus_agents.agent.missing import Missing
from kumulus_agents.storage.protocol import StorageError


class Secrets:
    """Those of one host's namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def read(self, name: str, what: str) -> Mapping[str, bytes]:
        """What is in the Secret, by key. `what` says what it is for. Raises `Missing`, `KubeError`."""
        secret = await self._client.find(SECRET, name, self._namespace)
        if secret is None:
            raise Missing("SecretNotFound", f"the Secret {name} with {what} is not there")
        try:
            return {key: base64.b64decode(data, validate=True) for key, data in (secret.get("data") or {}).items()}
        except binascii.Error:
            raise Missing("SecretUnreadable", f"the Secret {name} is not valid base64") from None


class PoolSecrets:
    """The same for drivers of pools, in their words."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def read(self, name: str) -> Mapping[str, bytes]:
        """See `storage.secrets.Secrets`."""
        try:
            return await self._secrets.read(name, "the key of the pool")
        except Missing as missing:
            raise StorageError(
                f"On this host {missing}. It is a copy of the one that the StoragePool names: look at that in"
                " kumulus-system.",
                reason=missing.reason,
            ) from missing
        except KubeError as error:
            raise StorageError(
                f"The Secret {name} of this host could not be read from the API server. It is tried again.",
                reason="SecretNotFound",
            ) from error
