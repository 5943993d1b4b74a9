"""Whether this host can have thin pools at all: its programs, and device-mapper in its kernel. Blocks."""

from __future__ import annotations

import os
import subprocess
from pathlib import PurePosixPath

from kumulus_agents.storage.lvm import faults
from kumulus_agents.storage.settings import LvmSettings

_TARGET, _MODULE = "thin-pool", "dm-thin-pool"


def check(pool: str, settings: LvmSettings, qemu_img: PurePosixPath) -> None:
    """Nothing, when it can. The kernel's module is loaded if it is there. Raises `StorageError`: ToolsMissing,
    DriverUnsupported."""
    for program, package in (
        (settings.lvm, "lvm2"),
        (settings.dmsetup, "dmsetup"),
        (settings.blkdiscard, "util-linux"),
        (qemu_img, "qemu-utils"),
    ):
        if not os.access(program, os.X_OK):
            raise faults.no_tool(pool, program.name, package)
    if not _has_target(settings):
        _run(settings, str(settings.modprobe), "--quiet", _MODULE)
        if not _has_target(settings):
            raise faults.no_device_mapper(pool)


def has_target(targets: str) -> bool:
    """Whether `dmsetup targets` lists the one of thin pools. Pure."""
    return any(line.split()[:1] == [_TARGET] for line in targets.splitlines())


def _has_target(settings: LvmSettings) -> bool:
    return has_target(_run(settings, str(settings.dmsetup), "targets"))


def _run(settings: LvmSettings, *command: str) -> str:
    """What it says; nothing when it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={"LC_ALL": "C"},
            cwd="/",
            timeout=settings.answer_seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
