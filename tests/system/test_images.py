"""Images on real hosts: what is broken or hostile is refused with a reason, and a corrected one heals its machines."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from tests.system.world import World

pytestmark = pytest.mark.libvirt


def test_wrong_checksum_is_refused_and_a_corrected_image_heals(world: World) -> None:
    """Image and machine say why; the machine runs once the image is made again with the right checksum."""
    world.image("broken", "tiny.qcow2", sha256="0" * 64)
    message = world.condition("image", "broken", "ChecksumMismatch")
    assert "0000" in message or "checksum" in message.lower()
    world.machine("vm", image="broken")
    assert "broken" in world.condition("vm", "vm", "ImageFailed")
    world.delete("image", "broken")
    world.condition("vm", "vm", "ImageNotFound")
    world.image("broken", "tiny.qcow2")
    world.phase("vm", "Running", seconds=90)


def test_image_that_is_not_there(world: World) -> None:
    """A 404 is said as such."""
    world.image("absent", "no-such-file.qcow2", sha256="0" * 64)
    item = world.wait("image", "absent", lambda i: i.get("status", {}).get("phase") == "Failed", "a failure")
    ready = next(c for c in item["status"]["conditions"] if c["type"] == "Ready")
    assert "404" in ready["message"]


def test_image_that_is_not_what_it_says(world: World, tmp_path: Path) -> None:
    """A raw file that calls itself qcow2 is refused."""
    file = tmp_path / "raw.qcow2"
    file.write_bytes(b"\0" * 65536)
    world.image("liar", file)
    assert "qcow2" in world.condition("image", "liar", "ImageRejected")


def test_hostile_image_is_refused_before_anything_reads_it(world: World, tmp_path: Path) -> None:
    """A qcow2 whose backing file is a file of the host never becomes an image there."""
    file = tmp_path / "hostile.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", str(file), "64M"],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    world.image("hostile", file)
    assert "backing" in world.condition("image", "hostile", "ImageRejected")
    left = [path for host in world.lab.hosts for path in host.state_directory.rglob("*") if path.suffix == ".part"]
    assert not left


def test_packed_image_of_another_cloud_comes_in(world: World, tmp_path: Path) -> None:
    """A stream-optimized VMDK in gzip is unpacked, looked at, and becomes a disk."""
    file = tmp_path / "tiny.vmdk"
    qcow2 = world.lab.image_directory / "tiny.qcow2"
    words = ["convert", "-f", "qcow2", "-O", "vmdk", "-o", "subformat=streamOptimized", str(qcow2), str(file)]
    subprocess.run(["qemu-img", *words], check=True, stdin=subprocess.DEVNULL)
    packed = tmp_path / "tiny.vmdk.gz"
    packed.write_bytes(gzip.compress(file.read_bytes(), 1))
    world.image("elsewhere", packed, format_="vmdk", compression="gzip")
    status = world.wait("image", "elsewhere", lambda i: i["status"].get("phase") == "Ready", "an import")["status"]
    assert status["format"] == "vmdk"


def test_image_on_a_forbidden_address_is_refused(world: World) -> None:
    """Loopback of the host is not a place to fetch images from."""
    world.apply(
        {
            "apiVersion": "storage.kumulus.io/v1alpha1",
            "kind": "Image",
            "metadata": {"name": "inside"},
            "spec": {
                "source": {"http": {"url": "http://127.0.0.1:16509/x"}},
                "checksum": {"sha256": "0" * 64},
                "format": "qcow2",
            },
        }
    )
    assert "127.0.0.1" in world.condition("image", "inside", "SourceForbidden")
    assert (
        world.wait("image", "inside", lambda i: i["status"].get("phase") == "Failed", "a failure")["status"]["phase"]
        == "Failed"
    )


def test_an_image_in_use_is_not_removed_under_its_machine(world: World) -> None:
    """Deleting an image waits for its machines, and says so."""
    world.image("mine", "tiny.qcow2")
    world.machine("vm", image="mine")
    world.phase("vm", "Running")
    world.lab.cluster.kubectl_run("delete", "image", "mine", "-n", world.namespace, "--wait=false")
    message = world.condition("image", "mine", "ImageInUse", type_="Stalled")
    assert "machines" in message
    world.delete("vm", "vm")
    world.delete("image", "mine")
