"""Joining: a one-time token becomes an agent's credentials, and is burnt."""

from __future__ import annotations

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
USED = "this join token was used or has expired; run kumulusctl host add again"
USER_AGENT = "kumulus-agent-join"


async def join(bundle: JoinBundle, state: StateDirectory, clock: Clock) -> Credentials:
    """Make `state` an agent of the bundle's host; credentials that were there are replaced once the new ones are ours.

    Deleting the Secret is what counts as using the bundle: of several that hold it, one succeeds, and the others
    learn that it was used. (An API server remembers a good token for ten seconds, so that one whose Secret is
    gone may still be let in for a moment; what it then gets is not kept.) Raises `IdentityProblem`.
    """
    state.prepare()
    client = KubeClient.with_token(
        bundle.server, state.trust(bundle), bundle.token.get_secret_value, user_agent=USER_AGENT
    )
    try:
        credentials = await request_token(client, bundle, clock)
        if await client.delete(SECRET, JOIN_SECRET, bundle.namespace) is None:
            raise IdentityProblem(USED)
    except ApiError as error:
        if error.status == 401:
            raise IdentityProblem(USED) from None
        raise IdentityProblem(f"the API server refuses: {error.message}") from None
    except KubeError as error:
        raise IdentityProblem(f"{bundle.server}: {error}; nothing was changed here, try again") from None
    finally:
        await client.close()
    state.store(credentials)
    log.info("joined", host=bundle.host, server=bundle.server, expires_at=credentials.expires_at.isoformat())
    return credentials
