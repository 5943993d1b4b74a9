"""Images that go from one real host to the other: guests boot from what came over the wire."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kumulus_lab import deadline
from kumulus_lab.host import LibvirtHost
from tests.system.world import Object, World

pytestmark = pytest.mark.libvirt

PORT = 9411


class Shipment:
    """An image that one host has from the web server, and that the other one will need."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self._original = world.lab.serve_image("tiny").path
        file = directory / "shipped.qcow2"
        shutil.copyfile(self._original, file)
        world.image("shipped", file)
        self.served = world.lab.image_directory / f"{world.namespace}-{file.name}"
        self.image = world.wait("image", "shipped", lambda i: "content" in i.get("status", {}), "imported", seconds=120)
        [cache] = self.image["status"]["caches"]
        self.first = world.lab.host(cache["host"])
        [self.other] = [host for host in world.lab.hosts if host.name != self.first.name]
        assert self.downloads() == 1

    def downloads(self) -> int:
        """How often anybody has asked the web server for the file."""
        log = (self.world.lab.directory / "logs" / "images.log").read_text()
        return sum(f'"GET /{self.served.name} ' in line for line in log.splitlines())

    def boots(self) -> None:
        """A machine of it runs on the other host, and its guest has booted."""
        self.machine()
        self.world.phase("vm", "Running", seconds=120)
        self.world.console("vm", "kumulus-guest: ready")

    def machine(self) -> None:
        """Apply a machine of it, which has to be on the other host."""
        self.world.machine("vm", image="shipped", placement=self.world.only_on(self.other))

    def explained(self) -> str:
        """Why the image that the machine waits for does not come, once the machine says so."""

        def why(vm: Object) -> str | None:
            messages = (c["message"] for c in vm.get("status", {}).get("conditions", ()) if c["type"] == "VolumesReady")
            return next((str(message) for message in messages if "yet: " in message), None)

        return why(self.world.wait("vm", "vm", why, "says why its image does not come")) or ""

    def came_from(self) -> str | None:
        """Who gave it to the other host, once it has it; None: the web server."""

        def cache(item: Object) -> Object | None:
            caches = item["status"].get("caches", ())
            return next((c for c in caches if c.get("host") == self.other.name and c["state"] == "Ready"), None)

        found = cache(self.world.wait("image", "shipped", cache, f"on {self.other.name}"))
        return None if found is None else found.get("copiedFrom")

    def spoil(self) -> None:
        """One bit of the first host's file is another one."""
        [path] = self.first.state_directory.rglob(f"images/{self.image['metadata']['uid']}.qcow2")
        with path.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))

    def dropped(self) -> list[tuple[str, str]]:
        """Whom the other host has left, and why."""
        words = ["get", "workorders", "-n", f"kumulus-host-{self.other.name}", "-o", "json"]
        for order in json.loads(self.world.lab.cluster.kubectl_run(*words).stdout)["items"]:
            if order["spec"]["for"]["uid"] == self.image["metadata"]["uid"]:
                dropped = order.get("status", {}).get("disk", {}).get("dropped", ())
                return [(peer["host"], peer["reason"]) for peer in dropped]
        return []


@pytest.fixture
def shipment(world: World, tmp_path: Path) -> Iterator[Shipment]:
    for host in world.lab.hosts:
        deadline.until(lambda host=host: _certified(world, host), f"the certificate of {host.name}", seconds=60)
    yield Shipment(world, tmp_path)


def _certified(world: World, host: LibvirtHost) -> bool:
    order = world.find("workorder", "certificate", f"kumulus-host-{host.name}")
    return order is not None and order.get("status", {}).get("observedGeneration") == order["metadata"]["generation"]


def test_an_image_is_downloaded_once_and_boots_on_both_hosts(shipment: Shipment) -> None:
    shipment.boots()
    assert shipment.came_from() == shipment.first.name
    assert shipment.downloads() == 1 and shipment.dropped() == []


def test_who_has_no_certificate_of_the_installation_gets_nothing(shipment: Shipment) -> None:
    """TLS from both sides, on the real port of a real host."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    uid, content = shipment.image["metadata"]["uid"], shipment.image["status"]["content"]["sha256"]
    answer = b""
    with (
        socket.create_connection((shipment.first.address, PORT), timeout=10) as plain,
        suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(plain, server_hostname=shipment.first.address) as tls,
    ):
        tls.sendall(f"GET /v1/images/{uid}/{content} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = tls.recv(1 << 16)
    assert answer == b""


def test_a_spoilt_copy_is_left_for_the_source(shipment: Shipment) -> None:
    shipment.spoil()
    shipment.boots()
    assert shipment.came_from() is None
    assert shipment.dropped() == [(shipment.first.name, "WrongDigest")]
    assert shipment.downloads() == 2


@pytest.mark.wide
def test_a_spoilt_copy_without_a_source_is_explained_and_heals(shipment: Shipment) -> None:
    """Nothing boots from it. The machine says what it waits for, and boots when the source is back."""
    shipment.spoil()
    away = shipment.served.with_suffix(".away")
    shipment.served.rename(away)
    shipment.machine()
    message = shipment.explained()
    assert "404" in message and f"{shipment.first.name}: " in message
    away.rename(shipment.served)
    shipment.world.phase("vm", "Running", seconds=120)
    shipment.world.console("vm", "kumulus-guest: ready")
    assert shipment.came_from() is None
