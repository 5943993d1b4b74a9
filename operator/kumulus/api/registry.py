"""All kinds of Kumulus, by group. What is listed here gets a CRD and a reference page."""

from __future__ import annotations

from kumulus.api.base import Resource
from kumulus.api.compute import ConsoleRequest, InstanceType, VirtualMachine
from kumulus.api.fabric import Host, Zone
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.storage import ClusterImage, Image, StoragePool, Volume, VolumeClass

KINDS: tuple[type[Resource], ...] = (
    VirtualMachine,
    InstanceType,
    ConsoleRequest,
    Image,
    ClusterImage,
    StoragePool,
    VolumeClass,
    Volume,
    Zone,
    Host,
    WorkOrder,
    HostReport,
)
