"""A load balancer between real guests on two hosts: it shares, leaves out who is off, and is taken over by the other host."""

from __future__ import annotations

import pytest

from tests.system.test_networks import GROUP, Networks, networks
from tests.system.world import Object

__all__ = ["networks"]  # the fixture

pytestmark = [pytest.mark.libvirt, pytest.mark.cluster]

KIND = "loadbalancers.network.kumulus.io"
AT = "10.77.0.80"
ASKS = (
    f"#kumulus-run: got=$(for i in 1 2 3 4; do timeout 2 wget -q -O - http://{AT}/ 2>/dev/null; done | sort -u | tr '\\n' ' ');"
    ' echo "shared by: ${got}at $(cut -d. -f1 /proc/uptime)"'
)


@pytest.mark.wide
@pytest.mark.timeout(600)
def test_guests_are_shared_among(networks: Networks) -> None:
    world, (first, other) = networks.world, networks.world.lab.hosts
    networks.network("front")
    for name, host in (("web1", first), ("web2", other)):
        networks.machine(name, host, "front", "#kumulus-serve: 80")
        world.patch("vm", name, {"metadata": {"labels": {"app": "site"}}})
    networks.machine("client", first, "front", ASKS)
    spec: Object = {
        "network": "front",
        "addresses": [AT],
        "listeners": [{"port": 80, "protocol": "HTTP"}],
        "members": {"selector": {"app": "site"}},
        "healthCheck": {"type": "HTTP", "path": "/", "intervalSeconds": 1},
    }
    world.apply({"apiVersion": GROUP, "kind": "LoadBalancer", "metadata": {"name": "site"}, "spec": spec})
    networks.says("client", "shared by: web1 web2", seconds=180)
    found = world.wait(KIND, "site", lambda lb: lb.get("status", {}).get("healthy") == "2/2", "both are well")
    assert found["status"]["addresses"] == [AT]
    active = world.lab.host(found["status"]["activeHost"])

    # One is off, and on again; nobody tells the load balancer.
    mark = len(networks.said("client"))
    world.patch("vm", "web1", {"spec": {"powerState": "Stopped", "stop": {"mode": "Force"}}})
    networks.says("client", "shared by: web2", after=mark)
    world.wait(KIND, "site", lambda lb: lb["status"].get("healthy") == "1/2", "one is well")
    world.patch("vm", "web1", {"spec": {"powerState": "Running"}})
    networks.says("client", "shared by: web1 web2", after=mark, seconds=120)

    # The host that serves loses its gateway while its agent is down: the other one serves.
    mark = len(networks.said("client"))
    active.daemon("agent").kill()
    try:
        active.exec(["pkill", "-KILL", "-x", "haproxy"])
        active.exec(["pkill", "-KILL", "-x", "keepalived"])
        for line in active.exec(["ip", "-brief", "link"]).stdout.splitlines():
            if line.startswith("kg"):
                active.exec(["ip", "link", "set", "dev", line.split("@")[0].split()[0], "down"])
        networks.says("client", "shared by: web1 web2", after=mark, seconds=120)
        moved = f"{active.name} is silent, and the other host is active"
        world.wait(KIND, "site", lambda lb: lb["status"].get("activeHost") != active.name, moved, seconds=180)
    finally:
        world.lab.services.start_agent(active)
    world.lab.services.wait_for_hosts([active.name])

    world.delete(KIND, "site")
    for name in ("web1", "web2", "client"):
        world.delete("vm", name)
    for host in (first, other):
        assert "haproxy" not in host.exec(["ps", "-eo", "args"]).stdout
