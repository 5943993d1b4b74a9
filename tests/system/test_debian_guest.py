"""A real Debian guest, with real cloud-init and qemu-guest-agent: one machine, which all tests of this file look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kumulus_lab import deadline
from kumulus_lab.lab import Lab
from tests.conftest import namespace_on
from tests.system.inside import Inside
from tests.system.world import Object, World
from tests.unit.storage.material import iso

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(1800)]

NAME = "deb"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE alice@example.org"
USER_DATA = """#cloud-config
write_files:
- path: /etc/qemu/fsfreeze-hook.d/say
  permissions: "0755"
  content: |
    #!/bin/sh
    [ "$1" = freeze ] && [ -e /run/dawdle ] && rm /run/dawdle && sleep 10
    echo "kumulus-test: the hook says $1" > /dev/ttyS0
- path: /usr/local/sbin/count
  permissions: "0755"
  content: |
    #!/bin/sh
    while n=$((n + 1)) && echo $n > /var/count && sync /var/count; do
        echo "kumulus-test: wrote $n." > /dev/ttyS0
        sleep 0.2
    done
- path: /usr/local/sbin/halt-agent
  permissions: "0755"
  content: |
    #!/bin/sh
    agent=$(pidof qemu-ga)
    kill -STOP $agent
    echo "kumulus-test: the agent is halted" > /dev/ttyS0
    until [ -e /dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_wake ]; do sleep 0.2; done
    kill -CONT $agent
bootcmd:
- 'echo "kumulus-test: the note says $(cat /var/note)." > /dev/ttyS0'
runcmd:
- 'echo "kumulus-test: user data ran on $(hostname)" > /dev/ttyS0'
- 'echo "kumulus-test: $(grep -rh alice@example.org /root/.ssh /home/*/.ssh | wc -l) keys" > /dev/ttyS0'
"""
ROOT = {"name": "root", "volumeTemplate": {"source": {"image": "debian"}}}
EMPTY = {"name": "cd", "cdrom": {"bus": "scsi"}}


@dataclass(frozen=True, slots=True)
class Debian:
    """The machine, and what is in it."""

    world: World
    inside: Inside

    def has(self, *disks: Object, cd: Object = EMPTY) -> None:
        """Give the machine these disks beside its root, and no others."""
        self.world.patch("vm", NAME, {"spec": {"disks": [ROOT, cd, *disks]}})

    def volume(self, name: str, **spec: Any) -> None:
        """Apply a volume."""
        self.world.apply(_storage("Volume", name, spec))

    def lose(self, *volumes: str) -> None:
        """Take what it was given away, and delete it."""
        self.has()
        for name in volumes:
            self.world.delete("volume", name)

    def disk(self, name: str, partition: str = "") -> str:
        """The disk of that name, or a partition of it ("-part2"), once the guest has it."""
        path = f"/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{name}{partition}"
        self.inside.sees(f"test ! -e {path} || echo there", "there")
        return path

    def snapshot(self, name: str, **quiesce: Any) -> set[str]:
        """Take a snapshot of the machine; how far it can be trusted."""
        self.world.apply(machine_snapshot(name, NAME, quiesce))
        item = self.world.wait("vmsnap", name, lambda s: s.get("status", {}).get("phase") == "Ready", "taken")
        return set(item["status"]["indications"])

    def said(self, text: str) -> int:
        """How often the guest has said that on its console."""
        return self.world.console_file(NAME).read_text(errors="replace").count(text)

    def says(self, text: str, before: int = 0, *, seconds: float = 60) -> None:
        """Return once it has said that more often than before."""
        deadline.until(lambda: self.said(text) > before, f"{text!r} on the console", seconds=seconds, every=0.1)


def machine_snapshot(name: str, vm: str, quiesce: Object) -> Object:
    return {
        "apiVersion": "compute.kumulus.io/v1alpha1",
        "kind": "VirtualMachineSnapshot",
        "metadata": {"name": name},
        "spec": {"vm": vm, "quiesce": quiesce},
    }


def _storage(kind: str, name: str, spec: Object) -> Object:
    return {
        "apiVersion": "storage.kumulus.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def debian(lab: Lab) -> Iterator[Debian]:
    """The machine, booted, its agent answering."""
    with namespace_on(lab) as namespace:
        lab.services.wait_for_hosts([host.name for host in lab.hosts])
        world = World(lab, namespace)
        world.image("debian", "debian.qcow2")
        secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "boot"}, "stringData": {"data": USER_DATA}}
        world.apply(secret)
        world.machine(
            NAME,
            image=None,
            disks=[ROOT, EMPTY],
            resources={"cpus": 1, "memory": "512Mi"},
            cloudInit={"userDataSecret": {"name": "boot", "key": "data"}},
            sshKeys=[{"publicKey": KEY}],
        )
        vm = world.phase(NAME, "Running", seconds=120)
        inside = Inside(world.host_of(NAME), vm["metadata"]["uid"])
        world.console(NAME, " keys", seconds=420)
        deadline.until(inside.answers, "the guest's agent", seconds=60, every=0.5)
        yield Debian(world, inside)


def test_it_runs_its_user_data(debian: Debian) -> None:
    """User data from a Secret is run, the host name is the machine's, the key is in place, a login prompt appears."""
    debian.world.console(NAME, f"kumulus-test: user data ran on {NAME}")
    assert "kumulus-test: 0 keys" not in debian.world.console(NAME, " keys")
    debian.world.console(NAME, "login:", seconds=120)


def test_a_snapshot_that_its_agent_helps_with_is_clean(debian: Debian) -> None:
    """The file systems are at rest: on a copy there is nothing to recover, and what was not even synced is there."""
    inside = debian.inside
    froze, thawed = (debian.said(f"kumulus-test: the hook says {what}") for what in ("freeze", "thaw"))
    inside.run("echo 'written just before' > /var/note")
    assert debian.snapshot("clean", mode="Required") == {"Online", "GuestAgent"}
    for what, before in (("freeze", froze), ("thaw", thawed)):
        debian.says(f"kumulus-test: the hook says {what}", before)
        assert debian.said(f"kumulus-test: the hook says {what}") == before + 1
    assert not inside.at_rest()
    inside.run("echo later > /var/note")
    assert debian.snapshot("crash", mode="Never") == {"Online"}
    for name in ("clean", "crash"):
        debian.volume(f"{name}-copy", source={"snapshot": f"{name}-root", "cloneMode": "Linked"})
    debian.has(*({"name": name, "volume": f"{name}-copy"} for name in ("clean", "crash")))
    clean, crash = (debian.disk(name, "-part2") for name in ("clean", "crash"))
    features = "dumpe2fs -h {} 2>/dev/null | grep -o needs_recovery || echo nothing to recover"
    assert inside.run(features.format(clean)) == "nothing to recover\n"
    assert inside.run(features.format(crash)) == "needs_recovery\n", "what it is without being asked to rest"
    read = f"mount -o ro,noload {clean} /mnt && cat /mnt/var/note && umount /mnt"
    assert inside.run(read) == "written just before\n"
    debian.lose("clean-copy", "crash-copy")


@pytest.mark.wide
def test_a_snapshot_boots_as_another_machine(debian: Debian) -> None:
    """With what was written just before it was taken, and not even synced."""
    inside, world = debian.inside, debian.world
    inside.run("echo 'of the first' > /var/note")
    assert debian.snapshot("first", mode="Required") == {"Online", "GuestAgent"}
    restore = {
        "apiVersion": "compute.kumulus.io/v1alpha1",
        "kind": "VirtualMachineRestore",
        "metadata": {"name": "again"},
        "spec": {"snapshot": "first", "target": {"newVM": "again", "cloneMode": "Linked"}},
    }
    world.apply(restore)
    world.wait("vmrestore", "again", lambda r: r.get("status", {}).get("phase") == "Succeeded", "done")
    world.phase("again", "Running")
    world.console("again", "kumulus-test: the note says of the first.", seconds=420)
    world.delete("vm", "again")


@pytest.mark.wide
def test_an_agent_that_needs_too_long_does_not_leave_the_guest_at_rest(debian: Debian) -> None:
    """It freezes when nobody waits for it any more. The guest goes on writing all the same, by the next agent of the host."""
    inside = debian.inside
    froze, thawed = (debian.said(f"kumulus-test: the hook says {what}") for what in ("freeze", "thaw"))
    inside.run("touch /run/dawdle; systemd-run --quiet --unit=count /usr/local/sbin/count")
    debian.says("kumulus-test: wrote ")
    assert debian.snapshot("late", timeoutSeconds=2) == {"Online", "QuiesceFailed"}
    assert debian.said("kumulus-test: the hook says freeze") == froze, "it is at its hook still"
    host = debian.world.host_of(NAME)
    host.daemon("agent").kill()
    debian.world.lab.services.start_agent(host)
    debian.says("kumulus-test: the hook says freeze", froze)
    debian.says("kumulus-test: the hook says thaw", thawed)
    wrote = debian.said("kumulus-test: wrote ")
    debian.says("kumulus-test: wrote ", wrote + 3)
    inside.run("systemctl stop count")
    assert not inside.at_rest()
    assert debian.snapshot("in-time", timeoutSeconds=20) == {"Online", "GuestAgent"}


@pytest.mark.wide
def test_an_agent_that_does_not_answer_is_not_waited_for(debian: Debian) -> None:
    """A machine may be snapshotted and given disks meanwhile; when rest is required, it is said what to do."""
    inside, world = debian.inside, debian.world
    inside.begin("systemd-run --quiet /usr/local/sbin/halt-agent")
    try:
        debian.says("kumulus-test: the agent is halted")
        assert debian.snapshot("halted", timeoutSeconds=2) == {"Online", "QuiesceFailed"}
        world.apply(machine_snapshot("strict", NAME, {"mode": "Required", "timeoutSeconds": 2}))
        message = world.condition("vmsnap", "strict", "QuiesceFailed")
        assert "qemu-guest-agent" in message
        world.delete("vmsnap", "strict")
    finally:  # the disk tells the guest to have its agent go on
        debian.volume("wake", size="16Mi")
        debian.has({"name": "wake", "volume": "wake"})
        deadline.until(inside.answers, "the guest's agent", seconds=60, every=0.2)
        debian.lose("wake")
    assert debian.snapshot("woken") == {"Online", "GuestAgent"}


@pytest.mark.wide
def test_a_disk_grows_under_its_file_system(debian: Debian) -> None:
    """As somebody logged in sees it: a disk comes, gets a file system, grows with it, and goes."""
    inside = debian.inside
    debian.volume("data", size="64Mi")
    debian.has({"name": "data", "volume": "data"})
    disk = debian.disk("data")
    inside.run(f"mkfs.ext4 -q {disk} && mount {disk} /mnt && echo kept > /mnt/file && sync /mnt/file")
    debian.world.patch("volume", "data", {"spec": {"size": "128Mi"}})
    inside.sees(f"lsblk -ndbo SIZE $(readlink -f {disk})", str(128 << 20))
    inside.run(f"resize2fs {disk} 2>&1")
    assert int(inside.run("df --output=size -m /mnt | tail -n 1")) > 100
    assert inside.run("cat /mnt/file") == "kept\n"
    inside.run("umount /mnt")
    debian.has()
    inside.sees(f"test -e {disk} || echo gone", "gone")
    debian.lose("data")


def test_a_disc_is_inserted_and_ejected(debian: Debian, tmp_path: Path) -> None:
    """By its label, as anything that looks for a disc does."""
    inside, world = debian.inside, debian.world
    for label in ("first", "second"):
        file = tmp_path / f"{label}.iso"
        file.write_bytes(iso(label=label))
        world.image(label, file, format_="iso")
    labels = "ls /dev/disk/by-label | grep -E '^(first|second)$' || true"
    for label in ("first", "second"):
        debian.has(cd={"name": "cd", "cdrom": {"bus": "scsi", "image": label}})
        inside.sees(labels, label)
    assert "install" in inside.run("mount -o ro /dev/disk/by-label/second /mnt && ls /mnt && umount /mnt").lower()
    debian.has()
    inside.sees(labels, "")
    for label in ("first", "second"):
        world.delete("image", label)


def test_a_guest_without_an_agent_is_told_of(world: World) -> None:
    """The tiny guest has none: a snapshot says so, and who requires one gets none and is told what to do."""
    world.machine("vm", image=None, disks=[{"name": "root", "volumeTemplate": {"source": {"image": "tiny"}}}])
    world.phase("vm", "Running")
    world.console("vm", "kumulus-guest: ready")
    world.apply(machine_snapshot("strict", "vm", {"mode": "Required"}))
    assert "Install and start qemu-guest-agent" in world.condition("vmsnap", "strict", "QuiesceFailed")
    world.delete("vmsnap", "strict")
    world.apply(machine_snapshot("now", "vm", {}))
    item = world.wait("vmsnap", "now", lambda s: s.get("status", {}).get("phase") == "Ready", "taken")
    assert set(item["status"]["indications"]) == {"Online", "NoGuestAgent"}
