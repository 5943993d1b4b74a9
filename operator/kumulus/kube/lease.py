"""Leases (`coordination.k8s.io`): the heartbeat of a host, and the seat of a leader."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import Field

from kumulus.api.base import Kind, Model, Resource
from kumulus.kube.builtin import LEASE


class LeaseSpec(Model):
    """Who holds it and since when."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Lease(Resource):
    """A lease as the API has it."""

    KIND: ClassVar[Kind] = LEASE

    spec: LeaseSpec = Field(default_factory=LeaseSpec)


def micro_time(moment: datetime | None = None) -> str:
    """A `MicroTime` of the API; now by default."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def lease_body(name: str, spec: LeaseSpec, resource_version: str | None = None) -> dict[str, Any]:
    """The object to create, or with `resource_version` to replace."""
    metadata: dict[str, Any] = {"name": name}
    if resource_version is not None:
        metadata["resourceVersion"] = resource_version
    return {"metadata": metadata, "spec": spec.to_json()}
