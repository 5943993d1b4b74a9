"""The agent's token: asked for with the token before it, long before that one ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog
from pydantic import SecretStr

from kumulus.api.host import AGENT_SERVICE_ACCOUNT
from kumulus.kube.builtin import SERVICE_ACCOUNT
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import ApiError, KubeError
from kumulus.runtime.clock import Clock, parse_time
from kumulus_agents.agent.identity import Credentials, Identity, IdentityProblem, StateDirectory

log = structlog.get_logger(__name__)

LIFETIME = 3600
RENEW_AT = 2 / 3
"""Share of a token's life after which it is renewed."""
RETRY_FIRST = 5.0
RETRY_MOST = 120.0

Sleep = Callable[[float], Awaitable[object]]


async def request_token(client: KubeClient, identity: Identity, clock: Clock) -> Credentials:
    """A fresh token of the agent's ServiceAccount. Raises `KubeError`."""
    now = clock.now()
    answer = await client.create_sub(
        SERVICE_ACCOUNT,
        AGENT_SERVICE_ACCOUNT,
        "token",
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": LIFETIME},
        },
        identity.namespace,
    )
    status = answer["status"]
    return Credentials(
        server=identity.server,
        ca_data=identity.ca_data,
        host=identity.host,
        namespace=identity.namespace,
        token=SecretStr(status["token"]),
        issued_at=now,
        expires_at=parse_time(status["expirationTimestamp"]),
    )


class TokenKeeper:
    """Keeps a valid token at hand, in memory and on disk."""

    def __init__(
        self,
        state: StateDirectory,
        credentials: Credentials,
        clock: Clock,
        *,
        renewed: Callable[[], None] = lambda: None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._state = state
        self._credentials = credentials
        self._clock = clock
        self._renewed = renewed
        self._sleep = sleep
        self.problem: str | None = None
        """Why it could not be renewed; None when all is well."""

    def token(self) -> str:
        """The current token; fits `KubeClient.with_token`."""
        return self._credentials.token.get_secret_value()

    @property
    def expires_at(self) -> datetime:
        """When it ends."""
        return self._credentials.expires_at

    def due(self) -> float:
        """Seconds until it is to be renewed. A wall clock that jumped cannot put it off beyond its share of life."""
        life = (self._credentials.expires_at - self._credentials.issued_at).total_seconds()
        left = (self._credentials.expires_at - self._clock.now()).total_seconds()
        return min(max(left - life * (1 - RENEW_AT), 0.0), life * RENEW_AT)

    async def run(self, client: KubeClient) -> None:
        """Renew until cancelled."""
        while True:
            await self._sleep(self.due())
            await self._renew(client)

    async def _renew(self, client: KubeClient) -> None:
        pause = RETRY_FIRST
        while True:
            try:
                fresh = await request_token(client, self._credentials, self._clock)
                self._credentials = fresh
                self._state.store(fresh)
            except (KubeError, OSError) as error:
                if self._replaced():
                    continue
                self.problem = f"credentials, which end {self.expires_at.isoformat()}, not renewed: {_harmless(error)}"
                log.warning("credentials not renewed", expires_at=self.expires_at.isoformat(), error=_harmless(error))
                await self._sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spread, not secret
                pause = min(pause * 2, RETRY_MOST)
                continue
            self.problem = None
            log.info("credentials renewed", expires_at=self.expires_at.isoformat())
            self._renewed()
            return

    def _replaced(self) -> bool:
        """Whether somebody has joined this host anew meanwhile, as the same host; takes those credentials."""
        try:
            stored = self._state.load()
        except IdentityProblem:
            return False
        mine = self._credentials
        if stored.token == mine.token or (stored.server, stored.namespace) != (mine.server, mine.namespace):
            return False
        self._credentials = stored
        return True


def _harmless(error: Exception) -> str:
    if isinstance(error, ApiError) and error.status == 401:
        return "the API server no longer accepts them: join again with a fresh bundle from kumulusctl host add"
    return str(error)
