"""Joining: a one-time token becomes an agent's credentials, and is burnt."""

from __future__ import annotations

import asyncio

import structlog

from kumulus.api.host import JOIN_SERVICE_ACCOUNT
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import ApiError, KubeError
from kumulus.runtime.clock import Clock
from kumulus_agents.agent.credentials import request_token
from kumulus_agents.agent.identity import Credentials, IdentityProblem, JoinBundle, StateDirectory

log = structlog.get_logger(__name__)

JOIN_SECRET = JOIN_SERVICE_ACCOUNT
"""The Secret that a join token is bound to: when it goes, the token ends."""
ATTEMPTS = 3
USER_AGENT = "kumulus-agent-join"


async def join(bundle: JoinBundle, state: StateDirectory, clock: Clock) -> Credentials:
    """Make `state` an agent of the bundle's host; credentials that were there are replaced once the new ones work.

    May be repeated with a bundle that was not used up. Raises `IdentityProblem`.
    """
    state.prepare()
    client = KubeClient.with_token(
        bundle.server, state.trust(bundle), bundle.token.get_secret_value, user_agent=USER_AGENT
    )
    try:
        credentials = await request_token(client, bundle, clock)
        state.store(credentials)
        await _burn(client, bundle)
    except ApiError as error:
        if error.status == 401:
            raise IdentityProblem("this join token was used or has expired; run kumulusctl host add again") from None
        raise IdentityProblem(f"the API server refuses: {error.message}") from None
    except KubeError as error:
        raise IdentityProblem(f"{bundle.server}: {error}; nothing was changed, try again") from None
    finally:
        await client.close()
    log.info("joined", host=bundle.host, server=bundle.server, expires_at=credentials.expires_at.isoformat())
    return credentials


async def _burn(client: KubeClient, bundle: JoinBundle) -> None:
    """Delete the Secret the token is bound to. A token that cannot be burnt is reported: it could be used again."""
    for attempt in range(ATTEMPTS):
        try:
            await client.delete(SECRET, JOIN_SECRET, bundle.namespace)
        except ApiError as error:
            if error.status == 401:
                return
            if not error.retryable or attempt == ATTEMPTS - 1:
                raise IdentityProblem(
                    f"the host has joined, but its join token could not be revoked ({error.message});"
                    f" delete the Secret {JOIN_SECRET} in namespace {bundle.namespace}"
                ) from None
        except KubeError:
            if attempt == ATTEMPTS - 1:
                raise IdentityProblem(
                    "the host has joined, but its join token could not be revoked;"
                    f" delete the Secret {JOIN_SECRET} in namespace {bundle.namespace}"
                ) from None
        else:
            return
        await asyncio.sleep(1.0)
