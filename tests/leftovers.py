"""What tests left in namespaces that are being deleted.

Nobody who would drop the finalizers runs any more. Each such namespace would be looked at by the namespace
controller for ever, which takes the API server a good part of a CPU from the tests that follow.
"""

from __future__ import annotations

from contextlib import suppress

from kumulus.api.base import Scope
from kumulus.api.registry import KINDS
from kumulus.cli.cluster import Cluster
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.errors import NotFound


def let_go(api: Cluster) -> None:
    """Let everything of Kumulus go that is in a namespace which is being deleted. Gone already: nothing."""
    ending = {
        raw["metadata"]["name"] for raw in api.objects(NAMESPACE) if raw.get("status", {}).get("phase") == "Terminating"
    }
    if not ending:
        return
    for model in KINDS:
        if model.KIND.scope is not Scope.NAMESPACED:
            continue
        for raw in api.objects(model.KIND):
            about = raw["metadata"]
            if about["namespace"] in ending and about.get("finalizers"):
                with suppress(NotFound):
                    api.patch(model.KIND, about["name"], {"metadata": {"finalizers": None}}, about["namespace"])
