"""What tests left in namespaces.

The end of a namespace costs the API server more than a hundred requests: the namespace controller asks twice for each kind
that it might have. So where no controller works, a namespace is left, and what of Kumulus is in it is removed with all
that the module's other tests left.

In namespaces that are being deleted, nobody who would drop the finalizers runs any more. Each such namespace would be
looked at by the namespace controller for ever, which takes the API server a good part of a CPU from the tests that follow.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kumulus.api.base import Kind, Scope
from kumulus.api.registry import KINDS
from kumulus.cli.cluster import Cluster
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.errors import NotFound, Refused

_left: set[str] = set()


def leave(namespace: str) -> None:
    """Keep the namespace; what is in it goes with the next `clear`."""
    _left.add(namespace)


def clear(api: Cluster) -> None:
    """Remove everything of Kumulus from namespaces that were left."""
    if not _left:
        return
    for kind, raw in _in(api, _left.__contains__):
        about = raw["metadata"]
        name, namespace = about["name"], about["namespace"]
        with suppress(NotFound):
            if about.get("finalizers"):
                api.patch(kind, name, {"metadata": {"finalizers": None}}, namespace)
            try:
                api.delete(kind, name, namespace)
            except Refused:  # it is protected, or not for an administrator to delete
                with suppress(Refused):
                    api.patch(kind, name, {"spec": {"deletionProtection": False}}, namespace)
                    api.delete(kind, name, namespace)
    _left.clear()


def let_go(api: Cluster) -> None:
    """Let everything of Kumulus go that is in a namespace which is being deleted. Gone already: nothing."""
    ending = {
        raw["metadata"]["name"] for raw in api.objects(NAMESPACE) if raw.get("status", {}).get("phase") == "Terminating"
    }
    if not ending:
        return
    for kind, raw in _in(api, ending.__contains__):
        about = raw["metadata"]
        if about.get("finalizers"):
            with suppress(NotFound):
                api.patch(kind, about["name"], {"metadata": {"finalizers": None}}, about["namespace"])


def _in(api: Cluster, wanted: Callable[[str], bool]) -> list[tuple[Kind, dict[str, Any]]]:
    """The objects of Kumulus in these namespaces."""
    kinds = [model.KIND for model in KINDS if model.KIND.scope is Scope.NAMESPACED]
    return [(kind, raw) for kind in kinds for raw in api.objects(kind) if wanted(raw["metadata"]["namespace"])]
