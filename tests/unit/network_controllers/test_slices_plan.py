"""Endpoints in slices: at most a hundred each, each endpoint once, and no more writes than it takes."""

from __future__ import annotations

import random
from typing import Any

from kumulus.kube.service import (
    AddressType,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    Service,
    TargetRef,
)
from kumulus_controllers.network.slices_plan import ENDPOINTS_MOST, Steps, plan
from tests.unit.network_controllers.material import meta

V4, V6 = AddressType.IPV4, AddressType.IPV6
PORTS = (EndpointPort(name="http", protocol="TCP", port=8080),)
SERVICE = Service.parse({"metadata": meta("web"), "spec": {"clusterIP": "10.96.0.9"}})


def endpoint(number: int, *, ready: bool = True) -> Endpoint:
    conditions = EndpointConditions(ready=ready, serving=ready, terminating=False)
    return Endpoint(
        addresses=(f"10.0.{number // 250}.{number % 250 + 1}",),
        conditions=conditions,
        target_ref=TargetRef(kind="VirtualMachine", name=f"vm-{number}", uid=str(number)),
    )


class Server:
    """What the API server has of the Service, by name."""

    def __init__(self) -> None:
        self.slices: dict[str, dict[str, Any]] = {}
        self._made = 0

    def parsed(self) -> list[EndpointSlice]:
        return [EndpointSlice.parse(raw) for raw in self.slices.values()]

    def do(self, steps: Steps) -> int:
        """Do that; how many writes it took."""
        for body in steps.make:
            self._made += 1
            name = f"{body['metadata']['generateName']}{self._made:04}"
            made = meta(
                name, labels=dict(body["metadata"]["labels"]), ownerReferences=body["metadata"]["ownerReferences"]
            )
            self.slices[name] = {**body, "metadata": made}
        for item, patch in steps.change:
            old = self.slices[item.name]
            labels = {
                k: v for k, v in {**old["metadata"]["labels"], **patch["metadata"]["labels"]}.items() if v is not None
            }
            self.slices[item.name] = {**old, **patch, "metadata": {**old["metadata"], "labels": labels}}
        for item in steps.remove:
            del self.slices[item.name]
        return len(steps.make) + len(steps.change) + len(steps.remove)

    def sync(self, *wanted: Endpoint, service: Service = SERVICE, ports: tuple[EndpointPort, ...] = PORTS) -> int:
        """Writes that it took; afterwards nothing is left to do, and all of it is there once."""
        took = self.do(plan(service, ports, {V4: wanted}, self.parsed()))
        assert not plan(service, ports, {V4: wanted}, self.parsed())
        there = [one for item in self.parsed() for one in item.endpoints]
        assert sorted(map(repr, there)) == sorted(map(repr, wanted))
        assert all(0 < len(item.endpoints) <= ENDPOINTS_MOST and item.ports == ports for item in self.parsed())
        return took


def test_the_life_of_slices() -> None:
    server = Server()
    many = [endpoint(number) for number in range(250)]
    assert server.sync() == 0, "of nothing there is no slice"
    assert server.sync(*many) == 3
    assert server.sync(*many) == 0 == server.sync(*reversed(many)), "in whatever order"
    assert server.sync(endpoint(0, ready=False), *many[1:]) == 1
    assert server.sync(*many[1:]) == 1
    assert server.sync(*many[1:], endpoint(300)) == 1, "where there is room"
    assert server.sync(*many[101:]) == 2, "those of the first slice go, and it with them; the second may lose one"
    assert server.sync(many[101]) <= 3
    assert server.sync() == 1 and server.slices == {}


def test_what_comes_goes_where_something_is_written_anyway() -> None:
    server = Server()
    many = [endpoint(number) for number in range(150)]
    server.sync(*many)
    server.sync(*many[1:])  # room in both
    assert server.sync(*many[1:149], endpoint(300)) == 1


def test_a_slice_says_whose_it_is() -> None:
    server = Server()
    server.sync(endpoint(1))
    (raw,) = server.slices.values()
    assert raw["addressType"] == "IPv4"
    assert raw["metadata"]["labels"] == {
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "network.kumulus.io",
    }
    (owner,) = raw["metadata"]["ownerReferences"]
    assert (owner["apiVersion"], owner["kind"], owner["uid"]) == ("v1", "Service", SERVICE.uid)
    assert not owner["blockOwnerDeletion"], "that would need a right to the Service's finalizers"


def test_each_family_has_slices_of_its_own() -> None:
    six = Endpoint(addresses=("fd00::5",), target_ref=TargetRef(uid="1"))
    steps = plan(SERVICE, PORTS, {V4: [endpoint(1)], V6: [six]}, [])
    assert [body["addressType"] for body in steps.make] == ["IPv4", "IPv6"]


def test_what_changes_of_the_service_changes_in_all_slices() -> None:
    server = Server()
    many = [endpoint(number) for number in range(150)]
    server.sync(*many)
    other = (EndpointPort(name="http", protocol="TCP", port=9090),)
    assert server.sync(*many, ports=other) == 2
    headless = Service.parse({"metadata": meta("web"), "spec": {"clusterIP": "None"}})
    assert server.sync(*many, service=headless, ports=other) == 2
    assert all("service.kubernetes.io/headless" in raw["metadata"]["labels"] for raw in server.slices.values())
    assert server.sync(*many, ports=other) == 2
    assert not any("service.kubernetes.io/headless" in raw["metadata"]["labels"] for raw in server.slices.values())


def test_slices_of_a_namesake_go() -> None:
    server = Server()
    server.sync(endpoint(1))
    before = set(server.slices)
    again = Service.parse({"metadata": {**meta("web"), "uid": "another"}, "spec": {"clusterIP": "10.96.0.9"}})
    assert server.sync(endpoint(1), service=again) == 2
    assert not before & set(server.slices)


def test_an_endpoint_that_is_in_two_slices_stays_in_one() -> None:
    """As after a write whose answer was lost."""
    server = Server()
    server.sync(endpoint(1))
    server.do(plan(SERVICE, PORTS, {V4: [endpoint(1), endpoint(2)]}, []))
    assert len(server.slices) == 2
    server.sync(endpoint(1), endpoint(2))


def test_what_the_api_server_gives_as_null_is_nothing() -> None:
    item = EndpointSlice.parse({"metadata": meta("x"), "addressType": "IPv4", "endpoints": None, "ports": None})
    assert item.endpoints == () == item.ports


def test_any_change_converges_in_one_step() -> None:
    chance, server = random.Random(7), Server()
    for _ in range(25):
        numbers = chance.sample(range(400), chance.randrange(0, 350))
        wanted = [endpoint(number, ready=chance.random() < 0.9) for number in numbers]
        assert server.sync(*wanted) <= 8
