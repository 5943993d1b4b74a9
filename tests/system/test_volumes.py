"""Volumes on real hosts: what a guest sees of a disk that comes, grows, goes, and outlives its machine."""

from __future__ import annotations

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
