"""The network example between real guests and a client outside: who reaches whom, by which address, and what goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kumulus_lab import deadline, examples, networking, outside
from kumulus_lab.networking import DATABASE, DATABASE_AT, DATABASE_PORT, WEB
from kumulus_lab.outside import Outside
from tests.system.test_networks import Networks, networks
from tests.system.world import Object

__all__ = ["networks"]  # the fixture

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster]

HEALTH_CHECK = "healthCheck: {type: HTTP, path: /, intervalSeconds: 2"
DATABASE_SAID = f"fetched {DATABASE_AT}:{DATABASE_PORT}/: {DATABASE}"


@pytest.fixture
def client(networks: Networks) -> Iterator[Outside]:
    """The client outside. A size that the example's machines have is offered meanwhile."""
    lab = networks.world.lab
    assert lab.network is not None
    size = examples.QUICKSTART / "2-instancetype.yaml"
    lab.cluster.kubectl_run("apply", "-f", size)
    try:
        yield lab.network.outside
    finally:
        lab.cluster.kubectl_run("delete", "--wait=false", "-f", size)


def floating(fip: Object) -> str | None:
    """Its address, once a host routes for it."""
    status = fip["status"]
    return str(status["address"]) if status.get("phase") == "Active" else None


def answers(client: Outside, address: str, *wanted: str) -> None:
    """Everybody of these answers requests from outside at that address, and nobody else."""
    seen: set[str] = set()

    def probe() -> bool:
        seen.add(networking.fetch(client, address))
        return set(wanted) <= seen

    deadline.until(probe, f"answers of {', '.join(wanted)} at {address}", seconds=60)
    assert seen <= {*wanted, ""}


def ready_since(balancer: Object) -> tuple[str, str]:
    """Whether it serves, and since when that is so."""
    (ready,) = (each for each in balancer["status"]["conditions"] if each["type"] == "Ready")
    return ready["status"], ready["lastTransitionTime"]


@pytest.mark.timeout(300)
def test_the_network_example(networks: Networks, client: Outside) -> None:
    world = networks.world
    text = "".join(manifest.read_text() for manifest in sorted(examples.NETWORK.glob("*.yaml")))
    text = text.replace("namespace: quickstart", f"namespace: {world.namespace}")
    # Guests are slow here: who only answers late is well, so that what moves Ready is what is done to members.
    assert HEALTH_CHECK in text
    text = text.replace(HEALTH_CHECK, f"{HEALTH_CHECK}, timeoutSeconds: 20, unhealthyThreshold: 10")
    world.lab.cluster.kubectl_run("apply", "--server-side", "-f", "-", stdin=text)

    # From outside the web tier answers, in turns. The world sees it by the router's address.
    fip = world.wait("fip", "site", floating, "a host routes for it", seconds=120)
    address = str(floating(fip))
    answers(client, address, *WEB)
    router = world.wait("routers", "main", lambda r: r["status"]["externalAddress"], "its address outside")["status"]
    assert (router["phase"], fip["status"]["host"]) == ("Active", router["activeHost"])
    for name in WEB:
        networks.says(name, DATABASE_SAID)
        networks.says(name, f"fetched {outside.WORLD[0]}/: you are {router['externalAddress']}")

    # The database answers the web tier alone, whatever way anybody knows to it.
    networking.refuse(client, router["externalAddress"])
    mark = len(networks.said("web-2"))
    world.patch("nic", "web-2-eth0", {"spec": {"securityGroups": ["entrance"]}})
    networks.says("web-2", f"fetched {DATABASE_AT}:{DATABASE_PORT}/: nothing", after=mark)
    assert "nothing" not in networks.said("web-1").rpartition(DATABASE_SAID)[2]

    # A machine is taken out: what serves goes on, and the load balancer is Ready all the while.
    world.patch("nic", "web-2-eth0", {"spec": {"securityGroups": ["web"]}})
    before = world.wait("lb", "site", lambda lb: lb["status"]["healthy"] == "2/2", "both are well")
    assert ready_since(before)[0] == "True"
    world.patch("vm", "web-1", {"metadata": {"labels": {"tier": "none"}}})
    after = world.wait("lb", "site", lambda lb: lb["status"]["healthy"] == "1/1", "the other one is its only member")
    assert ready_since(after) == ready_since(before)
    deadline.until(lambda: networking.fetch(client, address) == "web-2", "an answer of web-2", seconds=60)

    # An address that stands for nobody is answered by nobody.
    world.patch("fip", "site", {"spec": {"target": None}})
    world.wait("fip", "site", lambda item: item["status"]["phase"] == "Allocated", "it stands for nobody")
    assert networking.fetch(client, address) == ""
