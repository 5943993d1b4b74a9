"""network.kumulus.io: security groups, which say who may reach whom."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from kumulus.api.addresses import IS_RANGE, Cidr
from kumulus.api.base import AGE, VERSION, Column, Kind, Model, Resource, Rule, Status, cel, reason_of
from kumulus.api.network import GROUP
from kumulus.api.segments import Protocol
from kumulus.api.volumes import ObjectName

PortRange = Annotated[str, StringConstraints(min_length=1, max_length=11, pattern=r"^[0-9]{1,5}(-[0-9]{1,5})?$")]
"""A port, or a range such as `8000-8100`."""


class Peer(Model):
    """Who may reach, or be reached."""

    rules = (Rule("has(self.cidrs) != has(self.securityGroup)", "set exactly one of cidrs and securityGroup"),)

    cidrs: tuple[Annotated[Cidr, Field(json_schema_extra=cel(IS_RANGE))], ...] | None = Field(
        default=None, description="Ranges of addresses.", min_length=1, max_length=64
    )
    security_group: ObjectName | None = Field(
        default=None, description="Name of a SecurityGroup of the namespace: its members, wherever they are."
    )


_PORTS = (
    Rule(
        "!has(self.ports) || self.ports.size() == 0 || self.protocol in ['TCP', 'UDP']",
        "ports are for TCP and UDP",
        field=".ports",
    ),
    Rule(
        "!has(self.ports) || self.ports.all(p, !p.matches('^[0-9]{1,5}(-[0-9]{1,5})?$')"
        " || (int(p.split('-')[0]) >= 1 && int(p.split('-')[p.split('-').size() - 1]) <= 65535"
        " && int(p.split('-')[0]) <= int(p.split('-')[p.split('-').size() - 1])))",
        "a port is 1 to 65535, a range goes from the lower to the higher",
        field=".ports",
    ),
)


class IngressRule(Model):
    """Lets in what fits all that it says."""

    rules = _PORTS

    protocol: Protocol = Field(default=Protocol.ANY, description="Of which protocol.")
    ports: tuple[PortRange, ...] = Field(default=(), description="To which ports; any when empty.", max_length=32)
    from_: Peer | None = Field(default=None, alias="from", description="From whom; anybody when empty.")


class EgressRule(Model):
    """Lets out what fits all that it says."""

    rules = _PORTS

    protocol: Protocol = Field(default=Protocol.ANY, description="Of which protocol.")
    ports: tuple[PortRange, ...] = Field(default=(), description="To which ports; any when empty.", max_length=32)
    to: Peer | None = Field(default=None, description="To whom; anybody when empty.")


class SecurityGroupSpec(Model):
    """Who may reach members of the group, and whom they may reach. Replies always pass."""

    ingress: tuple[IngressRule, ...] = Field(
        default=(), description="What may reach members; nothing when empty.", max_length=128
    )
    egress: tuple[EgressRule, ...] = Field(
        default=(), description="What members may reach; nothing when empty.", max_length=128
    )


class SecurityGroupStatus(Status):
    """What a group is."""

    members: int | None = Field(default=None, description="How many interfaces are in it.")


class SecurityGroup(Resource):
    """Lets packets through to and from interfaces that are in it. An interface in several: what any lets through passes."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="SecurityGroup",
        plural="securitygroups",
        short_names=("secgroup", "sg"),
        categories=("kumulus",),
        columns=(
            Column("Members", ".status.members", "integer"),
            reason_of(),
            AGE,
        ),
    )

    spec: SecurityGroupSpec = Field(default_factory=SecurityGroupSpec, description="What passes.")
    status: SecurityGroupStatus = Field(default_factory=SecurityGroupStatus, description="What the group is.")
