"""The namespace of a host, and who may do what in it: made once, when the host is made.

The agent's ServiceAccount is bound to the ClusterRole `kumulus-host-agent` in this namespace only,
so no host can read or write what is another's. A namespace of that name that is not ours is not used.
"""

from __future__ import annotations

from typing import Any

from kumulus.api.base import DOMAIN
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import AGENT_SERVICE_ACCOUNT, JOIN_SERVICE_ACCOUNT
from kumulus.kube.builtin import NAMESPACE, ROLE_BINDING, SERVICE_ACCOUNT
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists

HOST_UID_LABEL = f"{DOMAIN}/host-uid"
HOST_LABEL = f"{DOMAIN}/host"

ROLES = {AGENT_SERVICE_ACCOUNT: "kumulus-host-agent", JOIN_SERVICE_ACCOUNT: "kumulus-host-join"}
"""ServiceAccount to the ClusterRole it has in the host's namespace."""


class NamespaceTaken(Exception):
    """A namespace of that name exists and belongs to something else."""


class NamespaceEnding(Exception):
    """A namespace of that name, most likely of an earlier host of that name, is still being deleted."""


async def ensure_namespace(client: KubeClient, host: Host) -> str:
    """Make the namespace, the ServiceAccounts and their bindings; there already: nothing. Returns the namespace.

    Raises `NamespaceTaken` and `NamespaceEnding`.
    """
    name = host_namespace(host.name)
    labels = {HOST_LABEL: host.name, HOST_UID_LABEL: host.uid}
    try:
        await client.create(NAMESPACE, {"metadata": {"name": name, "labels": labels}})
    except AlreadyExists:
        found = await client.get(NAMESPACE, name)
        if "deletionTimestamp" in found["metadata"]:
            raise NamespaceEnding(name) from None
        if found["metadata"].get("labels", {}).get(HOST_UID_LABEL) != host.uid:
            raise NamespaceTaken(name) from None
    for account, role in ROLES.items():
        await _create(
            client, SERVICE_ACCOUNT, {"metadata": {"name": account}, "automountServiceAccountToken": False}, name
        )
        binding = {
            "metadata": {"name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": name}],
        }
        await _create(client, ROLE_BINDING, binding, name)
    return name


async def _create(client: KubeClient, kind: Any, body: dict[str, Any], namespace: str) -> None:
    try:
        await client.create(kind, body, namespace)
    except AlreadyExists:
        return


async def remove_namespace(client: KubeClient, host: Host) -> bool:
    """Have the namespace deleted if it is ours; True when it is gone."""
    name = host_namespace(host.name)
    found = await client.find(NAMESPACE, name)
    if found is None or found["metadata"].get("labels", {}).get(HOST_UID_LABEL) != host.uid:
        return True
    if "deletionTimestamp" not in found["metadata"]:
        await client.delete(NAMESPACE, name, uid=found["metadata"]["uid"])
    return False
