"""What an order says of a load balancer: where it listens, among whom it shares, and how it knows who is well. Part of
host.kumulus.io; the words of listeners and checks are those of the LoadBalancer too.

All that a driver writes into another program's configuration is a number, an address, a word of an enumeration, a uid, or
a path of a pattern that leaves no room for anything else.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.addresses import Address
from kumulus.api.base import Model, Rule, list_map
from kumulus.api.segments import Uid

LISTENERS_MOST = 16
MEMBERS_MOST = 64
Port = Annotated[int, Field(ge=1, le=65535)]

Digest = Annotated[str, StringConstraints(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal digits."""

CheckPath = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^/[A-Za-z0-9._~/-]*$")]
"""Path of a request, without query, fragment, or anything that would have to be escaped."""


class ListenerProtocol(StrEnum):
    """What a listener understands of what it passes on."""

    TCP = "TCP"
    """Bytes."""
    TLS = "TLS"
    """Bytes in TLS, which ends here: members get them as they are."""
    HTTP = "HTTP"
    """Requests."""
    HTTPS = "HTTPS"
    """Requests in TLS, which ends here."""

    @property
    def encrypted(self) -> bool:
        """Whether TLS ends here."""
        return self in (ListenerProtocol.TLS, ListenerProtocol.HTTPS)

    @property
    def http(self) -> bool:
        """Whether requests are told apart."""
        return self in (ListenerProtocol.HTTP, ListenerProtocol.HTTPS)


class Algorithm(StrEnum):
    """Who gets the next connection."""

    ROUND_ROBIN = "RoundRobin"
    """One after the other."""
    LEAST_CONNECTIONS = "LeastConnections"
    """Who has the fewest."""
    SOURCE = "Source"
    """By the client's address: the same one gets the same member as long as that is well."""


class StickinessType(StrEnum):
    """How a client is known again."""

    SOURCE_IP = "SourceIP"
    COOKIE = "Cookie"
    """By a cookie that the balancer sets; of HTTP and HTTPS."""


class Stickiness(Model):
    """A client that comes again gets the member that it had, as long as that is well."""

    type: StickinessType = Field(description="How it is known again.")
    timeout_seconds: int = Field(
        default=3600, description="A client that stayed away for so long is a new one.", ge=1, le=86400
    )


class CheckType(StrEnum):
    """What a member has to do to be well."""

    TCP = "TCP"
    """Take a connection."""
    HTTP = "HTTP"
    """Answer a request with a status of 200 to 399."""


class HealthCheck(Model):
    """How it is known which members are well. Those that are not get no connections."""

    rules = (Rule("!has(self.path) || self.type == 'HTTP'", "path is for checks of the type HTTP", field=".path"),)

    type: CheckType = Field(default=CheckType.TCP, description="What a member has to do.")
    port: Port | None = Field(default=None, description="At which port; the one that connections go to when empty.")
    path: CheckPath | None = Field(
        default=None, description="What is asked for, by HTTP: letters, digits and ._~/- only; `/` when empty."
    )
    interval_seconds: int = Field(default=5, description="How often.", ge=1, le=300)
    timeout_seconds: int = Field(default=3, description="How long an answer may take.", ge=1, le=300)
    unhealthy_threshold: int = Field(
        default=3, description="A member that fails so often in a row is not well.", ge=1, le=10
    )
    healthy_threshold: int = Field(
        default=2, description="A member that succeeds so often in a row is well again.", ge=1, le=10
    )


class Certificate(Model):
    """With what a listener ends TLS."""

    digest: Digest = Field(description="Of certificates and key, as the Secret has them.")
    secret: Annotated[str, StringConstraints(min_length=1, max_length=253)] = Field(
        description="Name of the Secret of this namespace that has them."
    )


class BalancerListener(Model):
    """A port that the balancer listens at, on all of its addresses."""

    port: Port = Field(description="The port.")
    protocol: ListenerProtocol = Field(description="What it understands.")
    target_port: Port = Field(description="Port of members that connections go to.")
    algorithm: Algorithm = Field(default=Algorithm.ROUND_ROBIN, description="Who gets the next connection.")
    stickiness: Stickiness | None = Field(default=None, description="Whether a client stays with its member.")
    proxy_protocol: bool = Field(
        default=False, description="Tell members by the PROXY protocol, version 2, who the client is."
    )
    certificate: Certificate | None = Field(default=None, description="With what TLS is ended.")


class BalancerMember(Model):
    """Somebody to share among."""

    uid: Uid = Field(description="Uid of the NetworkInterface.")
    address: Address = Field(description="Its address.")


class Balancing(Model):
    """What a gateway that is a load balancer does."""

    addresses: tuple[Address, ...] = Field(
        description="Where it listens; they are on the active host.",
        min_length=1,
        max_length=2,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    listeners: tuple[BalancerListener, ...] = Field(
        description="The ports that it listens at.",
        min_length=1,
        max_length=LISTENERS_MOST,
        json_schema_extra=list_map("port"),
    )
    members: tuple[BalancerMember, ...] = Field(
        default=(), description="Among whom it shares.", max_length=MEMBERS_MOST, json_schema_extra=list_map("uid")
    )
    health_check: HealthCheck = Field(default_factory=HealthCheck, description="Who of them is well.")
    gateways: tuple[Address, ...] = Field(
        default=(), description="Who knows the way to clients in other networks, one of a family.", max_length=2
    )
    max_connections: int = Field(default=8192, description="Connections at a time; more wait.", ge=1, le=65536)


PEM = "tls.pem"
"""Key of a Secret of a host's namespace that has certificates and key."""


def tls_secret_name(balancer_uid: str, digest: str) -> str:
    """Name of the Secret in a host's namespace with which a load balancer ends TLS."""
    return f"tls-{balancer_uid}-{digest[:16]}"


class MemberFacts(Model):
    """What is so of a member."""

    uid: Uid = Field(description="Uid of the NetworkInterface.")
    healthy: bool = Field(description="Whether it passes the health check at every listener's target port.")


class BalancingFacts(Model):
    """What is so of a load balancer on this host."""

    members: tuple[MemberFacts, ...] = Field(
        default=(), description="Its members.", max_length=MEMBERS_MOST, json_schema_extra=list_map("uid")
    )
