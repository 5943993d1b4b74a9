"""The module `controllers.storage`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kumulus.api.image import ClusterImage, Image
from kumulus.runtime.modules import Context, Module
from kumulus_controllers.module import fleet_of
from kumulus_controllers.storage.eviction import EvictionReconciler
from kumulus_controllers.storage.image import ImageReconciler
from kumulus_controllers.storage.pool import PoolReconciler
from kumulus_controllers.storage.snapshot import SnapshotReconciler
from kumulus_controllers.storage.upload import UploadReconciler
from kumulus_controllers.storage.volume import VolumeReconciler


class StorageSettings(BaseModel):
    """What the controllers of storage can be told."""

    model_config = ConfigDict(extra="forbid")

    moves_at_once: int = Field(
        default=2, ge=1, le=64, description="So many volumes are moved out of a pool on one host at once; others wait."
    )


async def _setup(context: Context) -> None:
    fleet = fleet_of(context.registry)
    context.reconcilers.append(PoolReconciler(context.services, fleet))
    context.reconcilers.append(ImageReconciler(context.services, fleet, Image))
    context.reconcilers.append(ImageReconciler(context.services, fleet, ClusterImage))
    context.reconcilers.append(UploadReconciler(context.services))
    context.reconcilers.append(EvictionReconciler(context.services))
    context.reconcilers.append(VolumeReconciler(context.services, fleet, context.settings.moves_at_once))
    context.reconcilers.append(SnapshotReconciler(context.services))


storage = Module(
    description="Pools on hosts, images in pools, volumes and their snapshots.",
    setup=_setup,
    settings=StorageSettings,
)
