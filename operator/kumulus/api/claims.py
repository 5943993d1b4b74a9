"""network.kumulus.io: claims, which are objects: whose an address is, and whose the number of a VXLAN or a VLAN.

Made by Kumulus alone; what is free is what has no object.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from kumulus.api.addresses import Address
from kumulus.api.base import AGE, VERSION, Column, Kind, Model, Resource, Rule, Scope, immutable
from kumulus.api.network import GROUP
from kumulus.api.segments import FIRST_VLAN, LAST_VLAN
from kumulus.api.volumes import ObjectName


class HolderKind(StrEnum):
    """What can have an address."""

    NETWORK_INTERFACE = "NetworkInterface"
    ROUTER = "Router"
    FLOATING_IP = "FloatingIP"


class IPAddressSpec(Model):
    """Whose an address is."""

    network: Annotated[str, StringConstraints(min_length=36, max_length=36)] = Field(
        description="Uid of the Network, or of the ExternalNetwork.", json_schema_extra=immutable("network")
    )
    address: Address = Field(description="The address.", json_schema_extra=immutable("address"))
    kind: HolderKind = Field(
        default=HolderKind.NETWORK_INTERFACE, description="What has it.", json_schema_extra=immutable("kind")
    )
    interface: ObjectName = Field(
        description="Name of the NetworkInterface, or of what kind says.", json_schema_extra=immutable("interface")
    )
    interface_uid: Annotated[str, StringConstraints(min_length=36, max_length=36)] = Field(
        description="Its uid.", json_schema_extra=immutable("interfaceUid")
    )
    interface_namespace: ObjectName | None = Field(
        default=None,
        description="Its namespace, when that is another one.",
        json_schema_extra=immutable("interfaceNamespace"),
    )
    released_at: str | None = Field(
        default=None,
        description="When its interface went (RFC 3339): it rests before another one gets it.",
        max_length=64,
    )


class IPAddress(Resource):
    """An address of a network that is somebody's: the object is the claim. Made by Kumulus alone."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="IPAddress",
        plural="ipaddresses",
        short_names=("ipaddr",),
        categories=("kumulus",),
        selectable=(".spec.network", ".spec.interface"),
        columns=(
            Column("Address", ".spec.address"),
            Column("Kind", ".spec.kind"),
            Column("Interface", ".spec.interface"),
            Column("Released", ".spec.releasedAt", "date", priority=1),
            AGE,
        ),
        status=False,
        name_max=90,
    )

    spec: IPAddressSpec = Field(description="Whose it is.")


class SegmentHolder(StrEnum):
    """What can have a number."""

    NETWORK = "Network"
    EXTERNAL_NETWORK = "ExternalNetwork"


class SegmentIdSpec(Model):
    """Whose a number is."""

    rules = (
        Rule("self == oldSelf", "a claim cannot be changed"),
        Rule("has(self.physicalNetwork) == has(self.vlan)", "a VLAN is one of a physical network", field=".vlan"),
    )

    kind: SegmentHolder = Field(default=SegmentHolder.NETWORK, description="What has it.")
    network: Annotated[str, StringConstraints(min_length=36, max_length=36)] = Field(
        description="Uid of the Network; of an ExternalNetwork that has a VLAN, which others of these may have as well."
    )
    name: ObjectName = Field(description="Its name.")
    namespace: ObjectName | None = Field(default=None, description="Its namespace.")
    physical_network: ObjectName | None = Field(
        default=None, description="Name of the PhysicalNetwork that a VLAN is of; a VXLAN has none."
    )
    vlan: int | None = Field(default=None, description="Number of the VLAN.", ge=FIRST_VLAN, le=LAST_VLAN)


class SegmentId(Resource):
    """The number of a VXLAN, or of a VLAN, that is some network's: the object, named by the number, is the claim. Made by
    Kumulus alone."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="SegmentId",
        plural="segmentids",
        scope=Scope.CLUSTER,
        categories=("kumulus-admin",),
        columns=(
            Column("Namespace", ".spec.namespace"),
            Column("Network", ".spec.name"),
            Column("Physical", ".spec.physicalNetwork"),
            Column("VLAN", ".spec.vlan", "integer"),
            AGE,
        ),
        status=False,
        name_max=80,
    )

    spec: SegmentIdSpec = Field(description="Whose it is.")
