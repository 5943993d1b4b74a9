"""InstanceType: a size that machines can have, offered by the operator to all namespaces or to some."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from kumulus.api.base import (
    AGE,
    VERSION,
    Column,
    DnsLabel,
    Kind,
    Model,
    Resource,
    Scope,
)
from kumulus.api.compute import GROUP, MAX_CPUS, MAX_MEMORY, Cpus
from kumulus.api.placement import Selector
from kumulus.api.quantity import Memory


class InstanceTypeSpec(Model):
    """A size that machines can have."""

    rules = (MAX_CPUS, MAX_MEMORY)

    cpus: Cpus = Field(description="Virtual CPUs.")
    memory: Memory = Field(description="Memory, such as `2Gi`.")
    max_cpus: Cpus | None = Field(
        default=None, description="As many CPUs as its machines can get while they are on; cpus when empty."
    )
    max_memory: Memory | None = Field(
        default=None, description="As much memory as its machines can get while they are on; memory when empty."
    )
    host_selector: Selector = Field(
        default_factory=dict, description="Labels the host must have, beside the machine's own selector."
    )
    allowed_namespaces: tuple[DnsLabel, ...] = Field(
        default=(),
        description="Namespaces that may use it; empty means all.",
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class InstanceType(Resource):
    """A size that machines can have, offered by the operator."""

    KIND: ClassVar[Kind] = Kind(
        group=GROUP,
        version=VERSION,
        kind="InstanceType",
        plural="instancetypes",
        scope=Scope.CLUSTER,
        short_names=("it",),
        categories=("kumulus", "kumulus-admin"),
        columns=(
            Column("CPUs", ".spec.cpus", "integer"),
            Column("Memory", ".spec.memory"),
            AGE,
        ),
        status=False,
    )

    spec: InstanceTypeSpec = Field(description="The size.")
