"""platform.kumulus.io: where events go."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from kumulus.api.base import (
    AGE,
    DOMAIN,
    VERSION,
    Column,
    DnsLabel,
    Kind,
    LocalSecretKey,
    Model,
    Resource,
    Rule,
    Status,
    cel,
    reason_of,
)

GROUP = f"platform.{DOMAIN}"

REDELIVER = f"{DOMAIN}/redeliver"
"""Annotation of an EventSink; a new value has what is among its dead letters sent once more."""


REDELIVERED_MAX = 253
"""Characters of its value that a sink's status has room for."""


class HttpTarget(Model):
    """A webhook: one POST an event, in the structured JSON mode of CloudEvents 1.0."""

    url: str = Field(
        description="Where events are posted to: http or https, without user name or password. Of a tenant's sink,"
        " addresses that are not public (loopback, link-local, private, the cluster's) are refused unless the operator"
        " allows them. Redirections are not followed.",
        max_length=2048,
        json_schema_extra=cel(
            Rule(
                r"isURL(self) && self.matches(r'^https?://[^\s/?#@\\:][^\s/?#@\\]*([/?#]\S*)?$')",
                "must be an http or https URL without user name or password",
            )
        ),
    )
    secret: LocalSecretKey | None = Field(
        default=None,
        description="Secret of the namespace by which each request is signed (HMAC-SHA256, headers webhook-id,"
        " webhook-timestamp and webhook-signature, as www.standardwebhooks.com says). A value that begins with whsec_"
        " is taken as base64.",
    )
    handshake: bool = Field(
        default=True,
        description="Ask first, by OPTIONS and WebHook-Request-Origin, whether the receiver wants events (CloudEvents"
        " webhooks). Nothing is sent to one that does not allow it.",
    )
    ca_bundle: str | None = Field(
        default=None, description="PEM certificates to trust instead of the usual ones.", max_length=65536
    )


class NatsTarget(Model):
    """A stream of NATS JetStream. Each event has its id as Nats-Msg-Id, by which the stream drops what came twice."""

    url: str = Field(
        description="A server: nats or tls, without user name or password. What is refused is as with http.",
        max_length=2048,
        json_schema_extra=cel(
            Rule(
                r"self.matches(r'^(nats|tls)://([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\])"
                r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$')",
                "must be nats://HOST:PORT or tls://HOST:PORT",
            )
        ),
    )
    subject: str = Field(
        default="kumulus.events",
        description="Events go to this subject, followed by .NAMESPACE.TYPE without io.kumulus, such as"
        " kumulus.events.shop.vm.started; namespace is _ for what is in none. A stream of yours must take them.",
        max_length=256,
        pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$",
    )
    credentials: LocalSecretKey | None = Field(
        default=None,
        description="Secret of the namespace by which the connection is made: a credentials file of NATS (nsc), or a token.",
    )
    ca_bundle: str | None = Field(
        default=None, description="PEM certificates to trust instead of the usual ones.", max_length=65536
    )


EventTypePattern = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[a-z0-9]+(\.[a-z0-9]+)*(\.\*)?$")
]


class EventFilter(Model):
    """Which events a sink gets: those that fit all that is said here. What is empty leaves all through."""

    kinds: tuple[Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Z][A-Za-z]+$")], ...] = (
        Field(default=(), description="Kinds, such as VirtualMachine.", max_length=64)
    )
    types: tuple[EventTypePattern, ...] = Field(
        default=(),
        description="Types, such as io.kumulus.vm.started; io.kumulus.vm.* is all that begins with io.kumulus.vm.",
        max_length=64,
    )
    namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Namespaces; for sinks in kumulus-system only. Others get what is in their own namespace.",
        max_length=256,
    )
    labels: Mapping[str, Annotated[str, StringConstraints(max_length=63)]] = Field(
        default_factory=dict,
        description="Labels that the object must have.",
        max_length=16,
    )


class Retry(Model):
    """What is tried when a receiver does not take an event."""

    attempts: int = Field(
        default=10,
        description="An event that was answered with an error so often goes to the dead letters, and the next one of"
        " its object is sent. Pauses between attempts grow from 1 s to 1 min.",
        ge=1,
        le=100,
    )
    max_age_seconds: int = Field(
        default=86400,
        description="While nobody answers at all (no connection, no answer in time, 429, 502, 503, 504), events wait. Older"
        " ones than this go to the dead letters.",
        ge=1,
        le=604800,
    )
    timeout_seconds: int = Field(default=10, description="For how long an answer is waited for.", ge=1, le=60)
    parallel: int = Field(
        default=16,
        description="So many events are on their way at once, each of another object: those of one object go one after"
        " the other.",
        ge=1,
        le=64,
    )


class EventSinkSpec(Model):
    """Where events go, and which."""

    rules = (
        Rule(
            "[has(self.http), has(self.nats)].exists_one(x, x)",
            "must have exactly one of http and nats",
        ),
    )

    http: HttpTarget | None = Field(default=None, description="A webhook.")
    nats: NatsTarget | None = Field(default=None, description="A stream of NATS JetStream.")
    filter: EventFilter = Field(default_factory=EventFilter, description="Which events it gets; all when empty.")
    retry: Retry = Field(default_factory=Retry, description="What is tried when the receiver does not take an event.")
    replay: bool = Field(
        default=False,
        description="Begin with one event for each object that there is (type ending in .present), so that a receiver that"
        " knows nothing learns all. Else it begins with what happens next.",
    )
    suspend: bool = Field(default=False, description="Send nothing for now; events wait.")


class SinkCondition(StrEnum):
    """Conditions of a sink."""

    READY = "Ready"


class SinkReason(StrEnum):
    """Why a sink is ready, or not."""

    DELIVERING = "Delivering"
    """Events reach it."""
    STARTING = "Starting"
    """Nothing was sent yet since the exporter began with it."""
    SUSPENDED = "Suspended"
    """Its spec says so."""
    HANDSHAKE_REFUSED = "HandshakeRefused"
    """The receiver does not say that it wants events."""
    UNREACHABLE = "Unreachable"
    """Nobody answers there."""
    ADDRESS_REFUSED = "AddressRefused"
    """Its address is none that a tenant's sink may reach."""
    REJECTING = "Rejecting"
    """The receiver answers with errors."""
    RETIRED = "Retired"
    """The receiver says that it is gone for good (410)."""
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, no secret
    """The Secret that it names, or the key in it, is not there."""
    NO_STREAM = "NoStream"
    """No stream of JetStream takes its subject."""
    TOO_MANY_SINKS = "TooManySinks"
    """Its namespace has more than are served."""


class EventSinkStatus(Status):
    """How a sink does. Written now and then: at once when the condition changes, else every half minute at most."""

    delivered: int | None = Field(default=None, description="Events that the receiver has taken, since it was made.")
    pending: int | None = Field(default=None, description="Changes that wait to be sent.")
    dead_letters: int | None = Field(
        default=None,
        description="Events that were given up and are kept; the annotation kumulus.io/redeliver sends them.",
    )
    lost: int | None = Field(
        default=None,
        description="Events that were dropped: intermediate states of objects, or the oldest dead letters.",
    )
    last_delivered_at: str | None = Field(default=None, description="When the last one was taken (RFC 3339).")
    last_error: str | None = Field(default=None, description="What was wrong the last time.", max_length=1024)
    redelivered: str | None = Field(
        default=None,
        description="The last value of the annotation kumulus.io/redeliver that was carried out; its digest (sha256:...) where it is"
        " longer than 253 characters.",
        max_length=REDELIVERED_MAX,
    )


class EventSink(Resource):
    """Where events go: a CloudEvent for each change of an object of Kumulus. A sink gets what is in its own namespace; one
    in kumulus-system gets all."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="EventSink",
        plural="eventsinks",
        short_names=("sink",),
        categories=("kumulus",),
        columns=(
            Column("Ready", ".status.conditions[?(@.type=='Ready')].status"),
            reason_of(priority=0),
            Column("Delivered", ".status.delivered", "integer"),
            Column("Pending", ".status.pending", "integer"),
            Column("Dead", ".status.deadLetters", "integer"),
            Column("URL", ".spec.http.url", priority=1),
            AGE,
        ),
    )

    spec: EventSinkSpec = Field(description="Where events go, and which.")
    status: EventSinkStatus = Field(default_factory=EventSinkStatus, description="How the sink does.")
