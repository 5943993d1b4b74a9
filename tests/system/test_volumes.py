"""Volumes on real hosts: what a guest sees of a disk that comes, grows, goes, and outlives its machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.system.world import Object, World

pytestmark = pytest.mark.libvirt

MIB = 1 << 20
ROOT = {"name": "root", "ephemeral": {"image": "tiny"}}
DATA = {"name": "data", "volume": "data"}


def volume(world: World, name: str, **spec: Any) -> None:
    world.apply(
        {
            "apiVersion": "storage.kumulus.io/v1alpha1",
            "kind": "Volume",
            "metadata": {"name": name},
            "spec": spec or {"size": "64Mi"},
        }
    )


def attached(world: World, name: str, machine: str | None) -> Object:
    """The volume, once that machine has it, or none."""

    def holds(item: Object) -> bool:
        status = item.get("status", {})
        wanted = "InUse" if machine else "Available"
        return status.get("phase") == wanted and status.get("attachedTo", {}).get("vm") == machine

    return world.wait("volume", name, holds, f"attached to {machine}")


def test_data_outlives_the_machine(world: World) -> None:
    """What one guest wrote the next one reads, after its machine was deleted."""
    volume(world, "data")
    world.machine("one", disks=[ROOT, DATA])
    world.phase("one", "Running")
    world.console("one", "kumulus-guest: boot 1 of disk data")
    attached(world, "data", "one")
    host = world.host_of("one").name
    world.delete("vm", "one")
    attached(world, "data", None)
    world.machine("two", disks=[ROOT, DATA])
    world.phase("two", "Running")
    said = world.console("two", "kumulus-guest: boot 2 of disk data")
    assert "boot 1 of this disk" in said, "the root disk is another"
    assert world.host_of("two").name == host
    world.delete("vm", "two")
    world.delete("volume", "data")


def test_a_disk_comes_grows_and_goes_while_the_guest_runs(world: World) -> None:
    """Attach, grow and detach, as the guest sees them."""
    world.machine("vm", disks=[ROOT])
    world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: ready")
    volume(world, "data")
    world.patch("vm", "vm", {"spec": {"disks": [ROOT, DATA]}})
    attached(world, "data", "vm")
    world.console("vm", f"kumulus-guest: disk data came with {64 * MIB}")
    world.patch("volume", "data", {"spec": {"size": "96Mi"}})
    world.console("vm", f"kumulus-guest: disk data has {96 * MIB}")
    world.wait("volume", "data", lambda v: v["status"].get("size") == "96Mi", "has grown")
    world.patch("vm", "vm", {"spec": {"disks": [ROOT]}})
    attached(world, "data", None)
    said = world.console("vm", "kumulus-guest: disk data went")
    assert said.count("kumulus-guest: hello") == 1, "it was never restarted"
    world.delete("vm", "vm")
    world.delete("volume", "data")


def test_a_machine_boots_from_a_volume_made_from_an_image(world: World) -> None:
    """A root disk that is a volume keeps what was written across machines."""
    root = {"name": "root", "volumeTemplate": {"source": {"image": "tiny"}, "reclaimPolicy": "Retain"}}
    world.machine("vm", disks=[root])
    world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: boot 1 of this disk")
    world.delete("vm", "vm")
    attached(world, "vm-root", None)
    world.machine("again", disks=[{"name": "root", "volume": "vm-root"}])
    world.phase("again", "Running")
    world.console("again", "kumulus-guest: boot 2 of this disk")
    world.delete("vm", "again")
    # What is retained stands on its image, and would keep that from being deleted.
    world.patch("volume", "vm-root", {"spec": {"reclaimPolicy": "Delete"}})
    world.delete("volume", "vm-root")


@pytest.mark.wide
def test_an_encrypted_disk_is_copied_and_kept_and_its_passphrase_is_seen_nowhere(world: World) -> None:
    """What one guest wrote is in an encrypted copy, a linked clone and a restored machine; a wrong passphrase is explained."""
    text, key, tag = "planted passphrase of a tenant", "disk-key", world.namespace[-8:]
    safe = f"safe-{tag}"
    world.apply(
        {
            "apiVersion": "storage.kumulus.io/v1alpha1",
            "kind": "VolumeClass",
            "metadata": {"name": safe},
            "spec": {"encryption": {"secret": key}},
        },
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": key}, "stringData": {"passphrase": text}},
    )
    try:
        with watching(text) as seen:
            volume(world, "data", **{"size": "64Mi", "class": safe})
            world.machine("one", disks=[ROOT, DATA])
            world.phase("one", "Running")
            world.console("one", "kumulus-guest: boot 1 of disk data")
            world.kumulusctl("snapshot", "create", "kept", "--vm", "one")
            world.wait("vmsnap", "kept", lambda item: item.get("status", {}).get("phase") == "Ready", "is taken")
            world.delete("vm", "one")
            attached(world, "data", None)
            volume(world, "copy", **{"class": safe, "source": {"volume": "data"}})
            volume(world, "link", **{"class": safe, "source": {"snapshot": "kept-data", "cloneMode": "Linked"}})
            for name in ("copy", "link"):
                attached(world, name, None)
                world.machine(f"of-{name}", disks=[ROOT, {"name": "data", "volume": name}])
                world.phase(f"of-{name}", "Running")
                world.console(f"of-{name}", "kumulus-guest: boot 2 of disk data")
                world.delete("vm", f"of-{name}")
            world.kumulusctl("snapshot", "restore", "kept", "--as", "again")
            world.phase("again", "Running")
            world.console("again", "kumulus-guest: boot 2 of disk data")

            host = world.host_of("again")
            copied = attached(world, "copy", None)
            mixed_up(world, f"luks-{copied['metadata']['uid']}", f"kumulus-host-{host.name}")
            world.machine("wrong", disks=[ROOT, {"name": "data", "volume": "copy"}])
            assert "passphrase" in world.condition("vm", "wrong", "WrongPassphrase")
        assert seen == [], "arguments or environments of processes have it"
        kinds = "workorders,volumes,volumesnapshots,vms,vmsnaps,vmrestores,events"
        assert text not in world.lab.cluster.kubectl_run("get", kinds, "-A", "-o", "json").stdout
        files = [
            path
            for directory in (*(host.directory for host in world.lab.hosts), world.lab.directory / "logs")
            for path in directory.rglob("*")
            if path.is_file() and not path.is_symlink()
        ]
        assert files and not [path for path in files if text.encode() in path.read_bytes()]
    finally:
        for name in ("one", "of-copy", "of-link", "again", "wrong"):
            world.delete("vm", name)
        for name in ("copy", "link"):
            world.delete("volume", name)
        world.delete_all("vmrestore")
        world.delete("vmsnap", "kept")
        world.delete_all("volume")
        world.delete("volumeclass", safe)


def mixed_up(world: World, secret: str, namespace: str) -> None:
    """Somebody gives the host another passphrase than the volume has."""
    kubectl = world.lab.cluster.kubectl_run
    kubectl("delete", "secret", secret, "-n", namespace)
    other = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret, "namespace": namespace},
        "stringData": {"passphrase": "of another volume altogether"},
    }
    kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(other))


@contextmanager
def watching(text: str) -> Iterator[list[str]]:
    """Looks through arguments and environments of all processes of this machine meanwhile; names of those that have the text."""
    found: list[str] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if any(text.encode() in (process / name).read_bytes() for name in ("cmdline", "environ")):
                        found.append((process / "comm").read_text().strip())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
