"""The module `controllers.network.endpoints`, which a cluster may do without: machines as endpoints of its Services."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork

from kumulus.runtime.modules import Context, Module
from kumulus_controllers.network.endpoints import EndpointsReconciler


class EndpointsSettings(BaseModel):
    """What the operator says of the cluster."""

    model_config = ConfigDict(extra="forbid")

    cluster_ranges: list[IPvAnyNetwork] = Field(
        default_factory=list,
        description="Ranges of the cluster's pods and nodes: no address in them is ever an endpoint.",
    )


async def _setup(context: Context) -> None:
    context.reconcilers.append(EndpointsReconciler(context.services, context.settings.cluster_ranges))


endpoints = Module(
    description="Machines as endpoints of Kubernetes Services (EndpointSlices).",
    setup=_setup,
    settings=EndpointsSettings,
)
