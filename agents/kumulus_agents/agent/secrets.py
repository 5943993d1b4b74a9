"""Secrets that work orders name: read when they are needed, from the host's own namespace, and never kept."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus_agents.agent.missing import Missing


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
