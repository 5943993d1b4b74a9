"""LoadBalancer: one address in a network for what several machines serve. Part of network.kumulus.io."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from kumulus.api.addresses import IS_ADDRESS, Address
from kumulus.api.balancing import (
    LISTENERS_MOST,
    MEMBERS_MOST,
    Algorithm,
    HealthCheck,
    ListenerProtocol,
    Port,
    Stickiness,
)
from kumulus.api.base import (
    AGE,
    PHASE,
    VERSION,
    Column,
    Kind,
    Model,
    Resource,
    Rule,
    Status,
    cel,
    immutable,
    list_map,
    reason_of,
)
from kumulus.api.network import GROUP
from kumulus.api.placement import Selector
from kumulus.api.volumes import ObjectName

NAME_MAX = 57
"""Its interface is called after it."""


class ListenerTls(Model):
    """With what TLS ends here."""

    secret: ObjectName = Field(
        description="Name of a Secret of the namespace of the type kubernetes.io/tls: certificate, those that it"
        " stands on, and key. When it changes, the new one is used within five minutes."
    )


class Listener(Model):
    """A port at which clients are served."""

    rules = (
        Rule(
            "has(self.tls) == (self.protocol in ['TLS', 'HTTPS'])",
            "listeners of the protocols TLS and HTTPS have tls, others have not",
            field=".tls",
        ),
        Rule(
            "!has(self.stickiness) || self.stickiness.type != 'Cookie' || self.protocol in ['HTTP', 'HTTPS']",
            "only HTTP and HTTPS know cookies: use SourceIP",
            field=".stickiness.type",
        ),
    )

    port: Port = Field(description="The port.")
    protocol: ListenerProtocol = Field(
        default=ListenerProtocol.TCP, description="What it understands. There is no UDP: haproxy does not pass it on."
    )
    target_port: Port | None = Field(default=None, description="Port of members; the same one when empty.")
    algorithm: Algorithm = Field(default=Algorithm.ROUND_ROBIN, description="Who gets the next connection.")
    stickiness: Stickiness | None = Field(default=None, description="Whether a client stays with its member.")
    proxy_protocol: bool = Field(
        default=False,
        description="Tell members who the client is by the PROXY protocol, version 2. They have to expect it.",
    )
    tls: ListenerTls | None = Field(default=None, description="With what TLS ends, of the protocols TLS and HTTPS.")


class Members(Model):
    """Among whom it shares."""

    rules = (Rule("has(self.selector) != has(self.interfaces)", "set exactly one of selector and interfaces"),)

    selector: Selector | None = Field(
        default=None,
        description="Labels of VirtualMachines of the namespace: their interfaces in the network, as they come and go.",
        min_length=1,
    )
    interfaces: tuple[ObjectName, ...] | None = Field(
        default=None,
        description="Names of NetworkInterfaces of the namespace, in the network.",
        max_length=MEMBERS_MOST,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class LoadBalancerSpec(Model):
    """What a load balancer shall do."""

    network: ObjectName = Field(
        description="Name of the Network of the namespace that its address and its members are in.",
        json_schema_extra=immutable("network"),
    )
    addresses: tuple[Annotated[Address, Field(json_schema_extra=cel(IS_ADDRESS))], ...] = Field(
        default=(),
        description="Addresses that it shall have; one of each of the network's ranges that none of these is of is chosen.",
        max_length=2,
        json_schema_extra={"x-kubernetes-list-type": "set"} | immutable("addresses", ": make a new load balancer"),
    )
    security_groups: tuple[ObjectName, ...] = Field(
        default=(),
        description="SecurityGroups that it is a member of, so that members can let it in by name; `default` when empty."
        " Who may reach the load balancer itself is not filtered: everybody who can reach its address.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    listeners: tuple[Listener, ...] = Field(
        description="The ports at which clients are served.",
        min_length=1,
        max_length=LISTENERS_MOST,
        json_schema_extra=list_map("port"),
    )
    members: Members = Field(description="Among whom it shares.")
    health_check: HealthCheck = Field(
        default_factory=HealthCheck, description="How it is known which members are well."
    )
    max_connections: int = Field(default=8192, description="Connections at a time; more have to wait.", ge=1, le=65536)


class LoadBalancerMember(Model):
    """A member, and whether it is well."""

    name: str = Field(description="Name of its NetworkInterface.", max_length=253)
    vm: str | None = Field(default=None, description="Name of the machine that has it.", max_length=253)
    address: Address = Field(description="Its address.")
    healthy: bool = Field(description="Whether it passes the health check for every listener.")


class LoadBalancerStatus(Status):
    """What a load balancer does."""

    phase: str | None = Field(default=None, description="Pending, Ready, Failed or Terminating.")
    addresses: tuple[Address, ...] = Field(default=(), description="Its addresses, for life.", max_length=2)
    active_host: str | None = Field(default=None, description="Name of the host that serves its addresses.")
    standby_hosts: tuple[str, ...] = Field(
        default=(), description="Names of the hosts that take over when that one is gone.", max_length=8
    )
    members: tuple[LoadBalancerMember, ...] = Field(
        default=(), description="Its members.", max_length=MEMBERS_MOST, json_schema_extra=list_map("name")
    )
    healthy: str | None = Field(default=None, description="How many of how many are well.", max_length=16)


class LoadBalancer(Resource):
    """One address in a network for what several machines serve: shares connections or requests among those that are well."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="LoadBalancer",
        plural="loadbalancers",
        short_names=("lb", "lbs"),
        categories=("kumulus",),
        selectable=(".spec.network",),
        columns=(
            Column("Network", ".spec.network"),
            Column("Addresses", ".status.addresses"),
            Column("Healthy", ".status.healthy"),
            PHASE,
            Column("Host", ".status.activeHost", priority=1),
            reason_of(),
            AGE,
        ),
        name_max=NAME_MAX,
    )

    spec: LoadBalancerSpec = Field(description="What the load balancer shall do.")
    status: LoadBalancerStatus = Field(default_factory=LoadBalancerStatus, description="What the load balancer does.")

    @property
    def interface_name(self) -> str:
        """Name of the NetworkInterface that holds its addresses."""
        return f"{self.name}-lb"
