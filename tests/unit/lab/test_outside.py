"""The network outside: what tenants are offered is what there is, and who asks there learns by which address."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading

import pytest
import yaml

from kumulus.api.routing import ExternalNetwork, PhysicalNetwork
from kumulus_lab import networking, outside, places, worldserver

MANIFEST = places.CHECKOUT / "hack" / "lab" / "manifests" / "outside.yaml"


def test_what_is_offered_is_the_network_outside() -> None:
    one, two = yaml.safe_load_all(MANIFEST.read_text())
    physical, external = PhysicalNetwork.parse(one), ExternalNetwork.parse(two)
    assert [uplink.device for uplink in physical.spec.uplinks] == [outside.LEG]
    assert external.spec.physical_network == physical.name
    assert (external.spec.cidr, external.spec.gateway) == (outside.RANGES[0], outside.GATEWAYS[0])
    taken = ipaddress.ip_address(outside.GATEWAYS[0])
    for given in external.spec.ranges:
        start, end = (ipaddress.ip_address(text) for text in (given.start, given.end))
        assert not int(start) <= int(taken) <= int(end)


def test_the_demo_looks_for_what_the_example_has() -> None:
    found = {}
    for path in (places.CHECKOUT / "examples" / "network").glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            found[document["kind"], document["metadata"]["name"]] = document["spec"]
    assert found["Network", "back"]["cidrs"] == [networking.BACK]
    (nic,) = found["VirtualMachine", networking.DATABASE]["interfaces"]
    assert nic["addresses"] == [networking.DATABASE_AT]
    assert found["FloatingIP", networking.ADDRESS]["target"] == {"interface": f"{networking.BALANCER}-lb"}
    for name in networking.WEB:
        said = found["VirtualMachine", name]["cloudInit"]["userData"]
        assert f"#kumulus-fetch: {networking.DATABASE_AT}:{networking.DATABASE_PORT}/" in said
        assert f"#kumulus-fetch: {outside.WORLD[0]}/" in said
    assert f"#kumulus-serve: {networking.DATABASE_PORT}" in found["VirtualMachine", "db"]["cloudInit"]["userData"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_who_asks_is_told_by_which_address(address: str) -> None:
    if ":" in address and not _has_v6():
        pytest.skip("this machine has no IPv6 on loopback")
    with worldserver.Server(("::", 0), worldserver.Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            connection = http.client.HTTPConnection(address, server.server_port, timeout=5)
            connection.request("GET", "/")
            assert connection.getresponse().read() == f"you are {address}\n".encode()
            connection.close()
        finally:
            server.shutdown()
            thread.join()


def _has_v6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
