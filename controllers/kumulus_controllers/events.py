"""Events: what happened to an object and will not be in its status, for `kubectl describe` and `kubectl events`."""

from __future__ import annotations

import secrets

import structlog

from kumulus.api.base import Resource
from kumulus.kube.builtin import EVENT
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import KubeError, NotLeading, Unreachable
from kumulus.runtime.clock import Clock

log = structlog.get_logger(__name__)

NOTE_MAX = 1024


async def tell(
    client: KubeClient, clock: Clock, item: Resource, reason: str, note: str, *, action: str, warning: bool = False
) -> None:
    """Say that this happened to the object; `warning` is for what somebody should look at. What cannot be said is logged:
    nothing depends on it."""
    namespace = item.namespace or "default"
    body = {
        "metadata": {"name": f"{item.name}.{secrets.token_hex(8)}", "namespace": namespace},
        "eventTime": clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "action": action,
        "note": note[:NOTE_MAX],
        "reportingController": "kumulus.io/controllers",
        "reportingInstance": "kumulus-controllers",
        "regarding": {
            "apiVersion": item.KIND.api_version,
            "kind": item.KIND.kind,
            "name": item.name,
            "uid": item.uid,
            **({"namespace": item.namespace} if item.namespace else {}),
        },
    }
    try:
        await client.create(EVENT, body, namespace)
    except (NotLeading, Unreachable):
        raise
    except KubeError as error:
        log.warning("event not told", kind=item.KIND.kind, name=item.name, reason=reason, error=str(error))
