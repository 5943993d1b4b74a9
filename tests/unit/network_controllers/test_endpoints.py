"""What a Service that means machines is looked at for, and what not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from kumulus.api.base import Kind, Resource
from kumulus.api.claims import IPAddress
from kumulus.api.compute import VirtualMachine
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import Refused
from kumulus.kube.service import EndpointSlice, Service
from kumulus.kube.store import Key
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.reconciler import Caches, Services
from kumulus.runtime.result import Requeue
from kumulus_controllers.network.endpoints import CIDR_RETRY_SECONDS, CIDR_SECONDS, PACE_SECONDS, EndpointsReconciler
from tests.unit.network_controllers.material import NS, READY, meta, uid

Raw = dict[str, Any]

LABELS = {"network.kumulus.io/vm-network": "net"}
SELECTOR = {"selector": {"app": "web"}}
VM_SPEC = {"resources": {"cpus": 1, "memory": "64Mi"}}
FLOATING = {"externalNetwork": "public", "target": {"interface": "nic"}}
ROUTED = [{"name": "net", "uid": uid(f"{NS}net")}]


def of(spec: Raw, status: Raw | None = None, **metadata: Any) -> Raw:
    return {"metadata": metadata, "spec": spec, "status": status or {}}


THERE: tuple[tuple[type[Resource], str, Raw], ...] = (
    (Service, "site", of(SELECTOR, labels=LABELS)),
    (Service, "else", of({"selector": {"app": "db"}}, labels={"network.kumulus.io/vm-network": "back"})),
    (EndpointSlice, "site-1", {"metadata": {"labels": {"kubernetes.io/service-name": "site"}}, "addressType": "IPv4"}),
    (Network, "net", of({"cidrs": ["10.0.0.0/24"]}, READY)),
    (NetworkInterface, "nic", of({"network": "net"}, {"phase": "Allocated", "vm": "one"})),
    (VirtualMachine, "one", of(VM_SPEC, {"phase": "Starting"}, labels={"app": "web"})),
    (FloatingIP, "fip", of(FLOATING)),
    (Router, "main", of({"networks": ["net"]}, {"networks": ROUTED})),
    (ExternalNetwork, "public", of({"physicalNetwork": "p", "cidr": "203.0.113.0/24", "gateway": "203.0.113.1"})),
)


class World:
    """What there is, and who was looked at for what changed of it."""

    def __init__(self) -> None:
        self.caches, self.woken, self._version = Caches(), set[str](), 1
        services = Services(cast(KubeClient, None), self.caches, SystemClock(), lambda: 1)
        EndpointsReconciler(services).attach(lambda key, *, urgent=False: self.woken.add(key.name))
        self._there: dict[tuple[type[Resource], str], Raw] = {}
        for model, name, raw in THERE:
            self._there[model, name] = raw
            self.change(model, name)

    def change(self, model: type[Resource], name: str, **part: Raw) -> set[str]:
        """Change that of it; the names of the Services that are looked at for that."""
        old = self._there[model, name]
        merged = {key: {**old.get(key, {}), **part.get(key, {})} for key in ("metadata", "spec", "status")}
        self._version += 1
        known = meta(name, **merged["metadata"]) | {"resourceVersion": str(self._version)}
        self._there[model, name] = {**old, **merged}
        self.woken.clear()
        self.caches.store(model).apply({**old, **merged, "metadata": known})
        return set(self.woken)


@pytest.mark.parametrize(
    ("model", "name", "part", "wakes"),
    [
        (Service, "site", {"spec": {"selector": {"app": "db"}}}, True),
        (Service, "site", {"metadata": {"annotations": {"a": "b"}}}, False),
        (Service, "site", {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}, False),
        (VirtualMachine, "one", {"status": {"phase": "Running"}}, True),
        (VirtualMachine, "one", {"metadata": {"labels": {"app": "other"}}}, True),
        (VirtualMachine, "one", {"status": {"host": "h2"}}, False),
        (NetworkInterface, "nic", {"status": {"phase": "Attached"}}, True),
        (NetworkInterface, "nic", {"status": {"host": "h2"}}, False),
        (NetworkInterface, "nic", {"spec": {"securityGroups": ["web"]}}, False),
        (FloatingIP, "fip", {"status": {"address": "203.0.113.9"}}, True),
        (FloatingIP, "fip", {"status": {"host": "h2"}}, False),
        (FloatingIP, "fip", {"status": {"observedGeneration": 2}}, True),
        (FloatingIP, "fip", {"status": {"conditions": [{"type": "Reconciling", "status": "True"}]}}, True),
        (FloatingIP, "fip", {"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "X"}]}}, True),
        (Router, "main", {"status": {"phase": "Active"}}, True),
        (Router, "main", {"spec": {"sourceNAT": False}}, True),
        (Router, "main", {"status": {"activeHost": "h2"}}, False),
        (Network, "net", {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, True),
        (Network, "net", {"status": {"allocated": 7}}, False),
        (EndpointSlice, "site-1", {"metadata": {"labels": {"kubernetes.io/service-name": "site", "by": "hand"}}}, True),
    ],
)
def test_it_is_looked_at_for_what_counts_and_for_nothing_else(
    model: type[Resource], name: str, part: Raw, wakes: bool
) -> None:
    assert World().change(model, name, **part) == ({"site"} if wakes else set())


def test_what_is_outside_concerns_all_of_them() -> None:
    assert World().change(ExternalNetwork, "public", spec={"allowRouted": True}) == {"site", "else"}
    assert World().change(ExternalNetwork, "public", status={"allocated": 3}) == set()


def test_a_service_is_remembered_by_its_slices_alone() -> None:
    caches = Caches()
    made = EndpointsReconciler(Services(cast(KubeClient, None), caches, SystemClock(), lambda: 1))
    labels = {"kubernetes.io/service-name": "gone"}
    caches.store(EndpointSlice).apply({"metadata": meta("gone-1", labels=labels), "addressType": "IPv4"})
    assert [(key.namespace, key.name) for key in made.everything()] == [(NS, "gone")]


def test_of_all_services_and_slices_only_ours_are_watched() -> None:
    caches = Caches()
    EndpointsReconciler(Services(cast(KubeClient, None), caches, SystemClock(), lambda: 1))
    shown = {part.store.model: part.labels for part in caches.reflections() if part.labels is not None}
    assert shown == {
        Service: "network.kumulus.io/vm-network",
        EndpointSlice: "endpointslice.kubernetes.io/managed-by=network.kumulus.io",
    }


class Later(SystemClock):
    """A clock whose monotonic time is set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


class Ranges:
    """An API server that tells its ranges of Services, or does not."""

    def __init__(self) -> None:
        self.refuses, self.asked = False, 0

    async def list_pages(self, kind: Kind) -> AsyncIterator[tuple[list[Raw], str]]:
        self.asked += 1
        if self.refuses:
            raise Refused(403, "Forbidden", "no")
        yield [{"spec": {"cidrs": ["10.96.0.0/12"]}}, {"spec": {"cidrs": ["fd00::/108", "10.200.0.0/24"]}}], "1"


async def test_all_ranges_of_services_are_known_and_kept_when_they_cannot_be_read() -> None:
    api, clock = Ranges(), Later()
    services = Services(cast(KubeClient, api), Caches(), clock, lambda: 1)
    made = EndpointsReconciler(services)
    found = await made._service_cidrs()
    assert [str(one) for one in found] == ["10.96.0.0/12", "fd00::/108", "10.200.0.0/24"]
    api.refuses = True
    for seconds, asked in ((1.0, 1), (CIDR_SECONDS, 2), (1.0, 2), (CIDR_RETRY_SECONDS, 3)):
        clock.seconds += seconds
        assert await made._service_cidrs() == found and api.asked == asked


async def test_nothing_is_said_of_slices_that_are_not_written_yet() -> None:
    """The API server is none: who writes the condition, or a slice, fails."""
    world, clock = World(), Later()
    services = Services(cast(KubeClient, Ranges()), world.caches, clock, lambda: 1)
    made = EndpointsReconciler(services)
    world.change(NetworkInterface, "nic", status={"network": uid(f"{NS}net"), "phase": "Attached"})
    world.change(VirtualMachine, "one", status={"phase": "Running"})
    world.change(FloatingIP, "fip", status={"address": "203.0.113.9", "router": "main", "phase": "Active"})
    world.change(FloatingIP, "fip", status={"network": uid(f"{NS}public"), "observedGeneration": 1})
    claim = {
        "network": uid(f"{NS}public"),
        "interface": "fip",
        "address": "203.0.113.9",
        "interfaceUid": uid(f"{NS}fip"),
    }
    world.caches.reflected(IPAddress).apply({"metadata": meta("claim"), "spec": claim})
    made._written[uid(f"{NS}site")] = 0.0
    assert await made.reconcile(Key(NS, "site")) == Requeue(PACE_SECONDS)
    clock.seconds = PACE_SECONDS
    with pytest.raises(AttributeError):
        await made.reconcile(Key(NS, "site"))
