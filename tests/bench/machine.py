"""What the machine is, and how busy it is while something is measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kumulus_lab import places


class MachineLoad(BaseModel):
    """How busy the machine is: a number measured on a busy one says less."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load1: float
    load5: float
    free_mib: int
    others: float | None = None
    """CPUs that processes outside the bench used while it was measured; None when not known."""


class Machine(BaseModel):
    """What it is measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int
    model: str
    memory_mib: int
    kernel: str
    python: str


def load(others: float | None = None) -> MachineLoad:
    """How busy it is now."""
    one, five, _ = os.getloadavg()
    return MachineLoad(load1=round(one, 2), load5=round(five, 2), free_mib=_meminfo("MemAvailable"), others=others)


def this() -> Machine:
    """The machine we are on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        model=model,
        memory_mib=_meminfo("MemTotal"),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def commit() -> str:
    """The commit of the checkout, with `+` when its tracked files differ from it."""
    head = _git("rev-parse", "--short", "HEAD")
    dirty = _git("status", "--porcelain", "--", "operator", "controllers", "agents", "crds", "charts")
    return f"{head}+" if dirty else head


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it booted (proc(5), /proc/stat)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ticks = [int(field) for field in fields]
    idle = ticks[3] + ticks[4]
    return (sum(ticks[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) // 1024
    return 0


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=places.CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
