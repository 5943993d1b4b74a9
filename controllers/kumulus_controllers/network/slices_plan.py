"""EndpointSlices: which endpoints are in which slice, with as few writes as there can be. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kumulus.kube.service import (
    HEADLESS,
    MANAGED_BY,
    PROXY_NAME,
    SERVICE_NAME,
    AddressType,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
)

MANAGER = "network.kumulus.io"
"""Who manages our slices, by their label: nobody else touches them, and we touch no others."""
OURS = f"{MANAGED_BY}={MANAGER}"
ENDPOINTS_MOST = 100
"""Endpoints in a slice, as Kubernetes' own controller has them."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What is to be written."""

    make: tuple[Mapping[str, Any], ...] = ()
    """Bodies of new slices."""
    change: tuple[tuple[EndpointSlice, Mapping[str, Any]], ...] = ()
    """Merge patches of slices."""
    remove: tuple[EndpointSlice, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.make or self.change or self.remove)


def owned(item: EndpointSlice, service: Service) -> bool:
    """Whether a slice is that very Service's, and not one's that had the name before."""
    return any(owner.uid == service.uid for owner in item.metadata.owner_references)


def plan(
    service: Service,
    ports: tuple[EndpointPort, ...],
    wanted: Mapping[AddressType, Sequence[Endpoint]],
    slices: Iterable[EndpointSlice],
) -> Steps:
    """Have these endpoints in slices, each once; empty when they are. Endpoints stay where they are, new ones go first into
    slices that are written anyway, then where there is room. A slice without endpoints goes."""
    make: list[Mapping[str, Any]] = []
    change: list[tuple[EndpointSlice, Mapping[str, Any]]] = []
    remove: list[EndpointSlice] = []
    mine: dict[str, list[EndpointSlice]] = {}
    for item in sorted(slices, key=lambda item: (item.metadata.creation_timestamp or "", item.name)):
        if owned(item, service):
            mine.setdefault(item.address_type, []).append(item)
        else:
            remove.append(item)
    for family in AddressType:
        left = {_identity(endpoint): endpoint for endpoint in wanted.get(family, ())}
        kept = []
        for item in mine.pop(family, []):
            stays = [found for old in item.endpoints if (found := left.pop(_identity(old), None)) is not None]
            kept.append((item, stays))
        rest = list(left.values())
        for item, stays in sorted(kept, key=lambda one: not _differs(one[0], one[1], ports, service)):
            room = ENDPOINTS_MOST - len(stays)
            stays += rest[:room]
            rest = rest[room:]
            if not stays:
                remove.append(item)
            elif _differs(item, stays, ports, service):
                change.append((item, _patch(stays, ports, service)))
        while rest:
            make.append(_body(service, family, rest[:ENDPOINTS_MOST], ports))
            rest = rest[ENDPOINTS_MOST:]
    for unknown in mine.values():
        remove += unknown
    return Steps(tuple(make), tuple(change), tuple(remove))


def _identity(endpoint: Endpoint) -> tuple[str | None, tuple[str, ...]]:
    return (endpoint.target_ref.uid if endpoint.target_ref is not None else None, endpoint.addresses)


def _labels(service: Service) -> dict[str, str | None]:
    """Of the labels that we set, those that are to be there; None for one that is not to be."""
    return {
        SERVICE_NAME: service.name,
        MANAGED_BY: MANAGER,
        HEADLESS: "" if service.headless else None,
        PROXY_NAME: service.metadata.labels.get(PROXY_NAME),
    }


def _differs(
    item: EndpointSlice, endpoints: Sequence[Endpoint], ports: tuple[EndpointPort, ...], service: Service
) -> bool:
    labels = {name: item.metadata.labels.get(name) for name in _labels(service)}
    return tuple(endpoints) != item.endpoints or item.ports != ports or labels != _labels(service)


def _patch(endpoints: Sequence[Endpoint], ports: tuple[EndpointPort, ...], service: Service) -> Mapping[str, Any]:
    return {"metadata": {"labels": _labels(service)}, **_content(endpoints, ports)}


def _body(
    service: Service, family: AddressType, endpoints: Sequence[Endpoint], ports: tuple[EndpointPort, ...]
) -> Mapping[str, Any]:
    owner = {
        "apiVersion": Service.KIND.api_version,
        "kind": Service.KIND.kind,
        "name": service.name,
        "uid": service.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "metadata": {
            "generateName": f"{service.name}-",
            "labels": {name: value for name, value in _labels(service).items() if value is not None},
            "ownerReferences": [owner],
        },
        "addressType": family.value,
        **_content(endpoints, ports),
    }


def _content(endpoints: Sequence[Endpoint], ports: tuple[EndpointPort, ...]) -> Mapping[str, Any]:
    return {
        "endpoints": [endpoint.to_json() for endpoint in endpoints],
        "ports": [port.to_json() for port in ports],
    }
