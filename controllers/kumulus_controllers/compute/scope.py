"""Everything one pass over a machine has read. Built once; nothing reads around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kumulus.api.compute import InstanceType, VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.storage import ClusterImage, Image

AnyImage = Image | ClusterImage


@dataclass(frozen=True, slots=True)
class Scope:
    """What there is."""

    vm: VirtualMachine
    order: WorkOrder | None
    """The work order of the machine, on whichever host it is."""
    host: Host | None
    """The host it is placed on, if that host exists."""
    instance_type: InstanceType | None
    images: Mapping[str, AnyImage]
    """By the name that a disk uses."""
    zone_exists: bool = True
