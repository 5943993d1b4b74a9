"""The shape that all kinds share: metadata, conditions, references, and what a kind says of itself.

Kinds are pydantic models. From them come the CRDs (`kumulus.crdgen`), the reference pages and the
typed view that controllers and agents have of an object. This package does no I/O and imports
nothing of Kumulus outside itself.

Reading is lenient (unknown fields are dropped, as the API server prunes them), because strictness
belongs to admission: the generated schema and its CEL rules refuse what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

DOMAIN = "kumulus.io"
VERSION = "v1alpha1"

PLATFORM_NAMESPACE = "kumulus-system"
"""Where the controllers run, and what belongs to the platform itself is kept."""

FINALIZER = f"{DOMAIN}/cleanup"
"""The one finalizer Kumulus puts on its objects: something outside Kubernetes is to be removed first."""

PAUSED = f"{DOMAIN}/paused"
"""Annotation; `"true"` stops reconciling of that object."""

FORCE_DETACH = f"{DOMAIN}/force-detach"
"""Annotation; `"true"` lets an object go although a host that is gone for good cannot clean up."""

DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""A name that is a DNS label."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule of a schema (`x-kubernetes-validations`).

    `field` is the optional `fieldPath` of the API, such as `.zone`: which field below this one an
    error is about.
    """

    rule: str
    message: str
    field: str | None = None

    def as_json(self) -> dict[str, str]:
        """The rule as the CRD writes it."""
        entry = {"rule": self.rule, "message": self.message}
        if self.field:
            entry["fieldPath"] = self.field
        return entry


class Model(BaseModel):
    """A part of a kind: camelCase outside, snake_case inside, immutable, unknown fields dropped."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_enum_values=False,
    )

    rules: ClassVar[Sequence[Rule]] = ()
    """CEL rules that hold for every value of this type."""

    def to_json(self) -> dict[str, Any]:
        """As the API has it: camelCase, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def cel(*rules: Rule) -> dict[str, Any]:
    """`json_schema_extra` of a field that carries CEL rules of its own."""
    return {"x-kubernetes-validations": [rule.as_json() for rule in rules]}


IMMUTABLE = "x-kumulus-immutable"
"""Mark in a model's JSON schema; `kumulus.crdgen` makes transition rules of it. Never in a CRD."""


def immutable(what: str, why: str = "") -> dict[str, Any]:
    """`json_schema_extra` of a field that may never change, come or go.

    `what` is the field's name as users know it; `why` follows "cannot be changed" in the message.
    Combines with others: `json_schema_extra=list_map("name") | immutable("disks")`.
    """
    return {IMMUTABLE: f"{what} cannot be changed{why}"}


TEMPLATE = "x-kumulus-template"
"""Mark in a model's JSON schema; `kumulus.crdgen` takes it out, with what it asks for. Never in a CRD."""


def template() -> dict[str, Any]:
    """`json_schema_extra` of a field that holds what other objects are made from: what may not change in those may change
    here, so that rules about a change (`oldSelf`) do not hold below it."""
    return {TEMPLATE: True}


def list_map(key: str = "name", *rules: Rule) -> dict[str, Any]:
    """`json_schema_extra` of a list that server-side apply merges by `key`."""
    extra: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    if rules:
        extra |= cel(*rules)
    return extra


class Scope(StrEnum):
    """Whether objects of a kind live in a namespace."""

    NAMESPACED = "Namespaced"
    CLUSTER = "Cluster"


@dataclass(frozen=True, slots=True)
class Column:
    """A printer column: what `kubectl get` shows. `priority` 1 is shown with `-o wide` only."""

    name: str
    path: str
    type: Literal["string", "integer", "date", "boolean", "number"] = "string"
    priority: int = 0
    description: str = ""


PHASE = Column("Phase", ".status.phase")
"""Column of an object's state in one word."""

AGE = Column("Age", ".metadata.creationTimestamp", "date")
"""Column of how long an object has been there."""


def reason_of(condition: str = "Ready", *, priority: int = 1) -> Column:
    """Column of why a condition of an object is what it is."""
    return Column("Reason", f".status.conditions[?(@.type=='{condition}')].reason", priority=priority)


@dataclass(frozen=True, slots=True)
class Scaled:
    """The scale subresource of a kind, by which `kubectl scale` and a HorizontalPodAutoscaler set how many: JSON paths."""

    wanted: str = ".spec.replicas"
    found: str = ".status.replicas"
    selector: str = ".status.selector"
    """A string in the form of a label selector."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the API server has to know of a kind, ours or a built-in one."""

    group: str
    version: str
    kind: str
    plural: str
    scope: Scope = Scope.NAMESPACED
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    selectable: tuple[str, ...] = ()
    """JSON paths usable in field selectors (`selectableFields`), such as `.spec.zone`."""
    status: bool = True
    """Whether the kind has the status subresource."""
    scale: Scaled | None = None
    """How it is scaled, if it is."""
    name_max: int = 63
    """Longest allowed name. Names become DNS labels unless `name_rule` is off."""
    dns_label: bool = True
    rules: tuple[Rule, ...] = field(default=())
    """CEL rules on the whole object (metadata.name is visible there)."""

    @property
    def api_version(self) -> str:
        """`group/version`, or `version` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def namespaced(self) -> bool:
        """Whether objects of it live in a namespace."""
        return self.scope is Scope.NAMESPACED

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, an object, or one of its subresources.

        `namespace=None` on a namespaced kind is the collection over all namespaces.
        """
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/" + "/".join(parts)


class OwnerReference(Model):
    """An owner, as the garbage collector knows it."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Model):
    """The part of `metadata` that Kumulus reads."""

    name: str = ""
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()


class ConditionStatus(StrEnum):
    """The three values a condition has."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """One aspect of an object's state, in the Kubernetes shape."""

    type: str = Field(description="Which aspect, in CamelCase.", max_length=63)
    status: ConditionStatus = Field(description="True, False or Unknown.")
    observed_generation: int | None = Field(
        default=None, description="The generation of the spec this was derived from."
    )
    last_transition_time: str | None = Field(default=None, description="When the status last changed (RFC 3339).")
    reason: str = Field(default="", description="One word for programs, in CamelCase.", max_length=128)
    message: str = Field(default="", description="A sentence for people: what is so, and what to do.", max_length=4096)


class Resource(Model):
    """An object of one of the kinds. Subclasses set `KIND` and declare `spec` and `status`."""

    KIND: ClassVar[Kind]

    metadata: ObjectMeta = Field(default_factory=ObjectMeta)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """The typed view of an object as the API server gave it.

        Raises `pydantic.ValidationError` when the object does not fit, which admission prevents for
        everything but objects written before a field got stricter.
        """
        return cls.model_validate(raw)

    @property
    def name(self) -> str:
        """`metadata.name`."""
        return self.metadata.name

    @property
    def namespace(self) -> str | None:
        """`metadata.namespace`; None for cluster-scoped kinds."""
        return self.metadata.namespace

    @property
    def uid(self) -> str:
        """`metadata.uid`."""
        return self.metadata.uid

    @property
    def deleting(self) -> bool:
        """Whether somebody asked to delete it."""
        return self.metadata.deletion_timestamp is not None

    @property
    def paused(self) -> bool:
        """Whether its owner asked Kumulus to leave it alone for now."""
        return self.metadata.annotations.get(PAUSED) == "true"


class Status(Model):
    """What every status has."""

    observed_generation: int | None = Field(default=None, description="The generation of the spec this status answers.")
    conditions: tuple[Condition, ...] = Field(
        default=(), description="Aspects of the state, with reasons.", max_length=32, json_schema_extra=list_map("type")
    )

    def condition(self, type_: str) -> Condition | None:
        """The condition of that type, if there is one."""
        return next((c for c in self.conditions if c.type == type_), None)


class LocalSecretKey(Model):
    """A key of a Secret in the same namespace."""

    name: str = Field(
        description="Name of the Secret.",
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    )
    key: str = Field(description="Key within the Secret.", min_length=1, max_length=253, pattern=r"^[-._A-Za-z0-9]+$")


class ObjectRef(Model):
    """Which object this is about: by name for people, by uid for machines."""

    kind: str = Field(description="Kind of the object.", max_length=63)
    namespace: str | None = Field(
        default=None, description="Its namespace; empty for cluster-scoped kinds.", max_length=63
    )
    name: str = Field(description="Its name.", max_length=253)
    uid: str = Field(description="Its uid: another object of the same name is another object.", max_length=36)
