"""All kinds of Kumulus, by group. What is listed here gets a CRD and a reference page."""

from __future__ import annotations

from kumulus.api.base import Resource
from kumulus.api.claims import IPAddress, SegmentId
from kumulus.api.compute import VirtualMachine
from kumulus.api.console import ConsoleRequest
from kumulus.api.events import EventSink
from kumulus.api.fabric import Host, Zone
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.image import ClusterImage, Image, ImageUpload
from kumulus.api.instance_type import InstanceType
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.machine_import import VirtualMachineImport
from kumulus.api.machine_pool import VirtualMachinePool
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.network import Network, NetworkClass, NetworkInterface
from kumulus.api.placement_group import PlacementGroup
from kumulus.api.remediation import HostRemediation
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.api.volume_snapshot import VolumeSnapshot

KINDS: tuple[type[Resource], ...] = (
    VirtualMachine,
    VirtualMachineSnapshot,
    VirtualMachineRestore,
    VirtualMachinePool,
    VirtualMachineMigration,
    VirtualMachineImport,
    InstanceType,
    PlacementGroup,
    ConsoleRequest,
    Image,
    ClusterImage,
    ImageUpload,
    StoragePool,
    VolumeClass,
    Volume,
    VolumeSnapshot,
    Network,
    NetworkInterface,
    SecurityGroup,
    Router,
    FloatingIP,
    ExternalNetwork,
    PhysicalNetwork,
    LoadBalancer,
    NetworkClass,
    IPAddress,
    SegmentId,
    Zone,
    Host,
    UnmanagedInstance,
    HostRemediation,
    EventSink,
    WorkOrder,
    HostReport,
)
