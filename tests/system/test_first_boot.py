"""A real Debian guest with real cloud-init runs its first-boot data."""

from __future__ import annotations

import pytest

from tests.system.world import World

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(900)]


def test_debian_runs_its_user_data(world: World) -> None:
    """User data from a Secret is run, the host name is the machine's, the key is in place, a login prompt appears."""
    world.image("debian", "debian.qcow2")
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE alice@example.org"
    data = """#cloud-config
runcmd:
- 'echo "kumulus-test: user data ran on $(hostname)" > /dev/ttyS0'
- 'echo "kumulus-test: $(grep -rh alice@example.org /root/.ssh /home/*/.ssh | wc -l) keys" > /dev/ttyS0'
"""
    world.apply({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "boot"}, "stringData": {"data": data}})
    world.machine(
        "deb",
        image="debian",
        resources={"cpus": 1, "memory": "512Mi"},
        cloudInit={"userDataSecret": {"name": "boot", "key": "data"}},
        sshKeys=[{"publicKey": key}],
    )
    world.phase("deb", "Running", seconds=120)
    world.console("deb", "kumulus-test: user data ran on deb", seconds=420)
    said = world.console("deb", " keys", seconds=60)
    assert "kumulus-test: 0 keys" not in said
    world.console("deb", "login:", seconds=120)
