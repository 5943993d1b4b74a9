"""A BMC that speaks IPMI 2.0: OpenIPMI's simulator, with a chassis whose power a test can read and set."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kumulus.api.fabric import Bmc
from kumulus_lab import deadline

USER, PASSWORD = "admin", "hunter-2-hunter"
LAN = """name "h1"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{chassis}"
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
EMULATION = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""
CHASSIS = """#!/bin/sh
case $1,$2 in
get,power) echo "power:$(cat {power})" ;;
set,power) printf %s "$3" > {power} ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Simulator:
    """Where it is, and the power of its chassis."""

    port: int
    state: Path

    def bmc(self, **changes: object) -> Bmc:
        """As a Host's spec names it."""
        spec = {"type": "ipmi", "address": f"127.0.0.1:{self.port}", "credentialsSecret": "bmc"}
        return Bmc.model_validate({**spec, **changes})

    @property
    def power(self) -> str:
        """On or Off."""
        return "On" if self.state.read_text().strip() == "1" else "Off"

    def press(self) -> None:
        """Somebody switches the system on."""
        self.state.write_text("1")


@contextmanager
def simulator(directory: Path) -> Iterator[Simulator]:
    """It runs inside the block; its chassis is on."""
    state, chassis, kept = directory / "power", directory / "chassis", directory / "kept"
    state.write_text("1")
    kept.mkdir()
    chassis.write_text(CHASSIS.format(power=shlex.quote(str(state))))
    chassis.chmod(0o755)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lan, emulation = directory / "lan.conf", directory / "sim.emu"
    lan.write_text(LAN.format(port=port, chassis=chassis, user=USER, password=PASSWORD))
    emulation.write_text(EMULATION)
    argv = ["ipmi_sim", "-c", str(lan), "-f", str(emulation), "-s", str(kept), "-n"]
    with (directory / "ipmi.log").open("w") as log:
        running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline.until(lambda: _answers(port), f"the simulator ({log.name})", seconds=30, every=0.1)
            yield Simulator(port, state)
        finally:
            running.terminate()
            running.wait(10)


def _answers(port: int) -> bool:
    """An ASF presence ping (IPMI 2.0, 13.2.3) is answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.2)
        probe.connect(("127.0.0.1", port))
        try:
            probe.send(bytes.fromhex("0600ff06000011be80000000"))
            return bool(probe.recv(64))
        except OSError:
            return False


def spy(directory: Path) -> Path:
    """A program in the place of ipmitool, which puts its arguments and environment on record before it becomes it."""
    program = directory / "ipmitool"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"open({str(directory / 'seen')!r}, 'a').write(repr(sys.argv) + repr(dict(os.environ)))\n"
        "os.execv('/usr/bin/ipmitool', sys.argv)\n"
    )
    program.chmod(0o755)
    return program


def path_with(directory: Path) -> str:
    """`PATH` in which programs of that directory come first."""
    return f"{directory}:{os.environ['PATH']}"
