"""QEMU is killed under a real guest: it runs again, once, and soon (QUALITY F9)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kumulus_lab import deadline
from tests.fault.campaign import TABLE
from tests.system.world import World

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(900)]

ROUNDS = 3


def _emulator(uid: str) -> int:
    """The process of a machine's QEMU."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].rpartition(b"/")[2].startswith(b"qemu-system") and any(uid.encode() in word for word in words):
            return int(place.name)
    raise AssertionError(f"machine {uid} has no QEMU")


def test_a_guest_whose_emulator_is_killed_runs_again_once(real_world: World) -> None:
    took = []
    for number in range(ROUNDS):
        name = f"vm-{number}"
        real_world.machine(name)
        vm = real_world.phase(name, "Running")
        real_world.console(name, "kumulus-guest: ready")
        os.kill(_emulator(vm["metadata"]["uid"]), signal.SIGKILL)
        began = time.monotonic()
        again = real_world.wait(
            "vm",
            name,
            lambda vm: vm["status"]["phase"] == "Running" and vm["status"].get("restarts", 0) == 1,
            "it runs again",
        )
        took.append(time.monotonic() - began)
        log = real_world.console_file(name)
        deadline.until(
            lambda log=log: log.read_text().count("kumulus-guest: ready") == 2, "it is ready again", seconds=60
        )
        assert log.read_text().count("kumulus-guest: hello") == 2
        assert again["status"]["host"] == vm["status"]["host"]
        assert real_world.phase(name, "Running")["status"]["restarts"] == 1
    TABLE.numbers["QEMU killed to Running again"] = ", ".join(f"{seconds:.1f} s" for seconds in took)
