"""Empty qcow2 files, by qemu-img. Blocks. It opens nothing but the file that is made: no image is read outside the cage."""

from __future__ import annotations

import json
import subprocess

from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.tracking import GRANULARITY, NAME

_TIMEOUT = 60.0
_THICK_TIMEOUT = 3600.0
"""A file system that cannot reserve space has it written."""


def create(
    settings: StorageSettings,
    fd: int,
    virtual_size: int,
    *,
    backing: str | None = None,
    form: str = "qcow2",
    thick: bool = False,
) -> None:
    """Write an empty disk of so many bytes into the open file: an overlay of `backing`, which is of the format `form`,
    or one that takes all of its space at once. Not both: qcow2 has no preallocated overlays. Raises `StorageError`.

    With size and formats given, and `-u`, qemu-img opens nothing but this file.
    """
    options = "compat=1.1,preallocation=falloc" if thick else "compat=1.1"
    below = ("-F", form, "-b", backing) if backing is not None else ()
    _run(
        [
            *(str(settings.cage.qemu_img), "create", "-q", "-u", "-f", "qcow2", "-o", options),
            *(*below, f"/proc/self/fd/{fd}", str(virtual_size)),
        ],
        fd,
        _THICK_TIMEOUT if thick else _TIMEOUT,
    )


def track(settings: StorageSettings, fd: int) -> None:
    """Have the new disk in the open file remember, from now on, which parts are written. Raises `StorageError`."""
    file = {"driver": "file", "filename": f"/proc/self/fd/{fd}"}
    disk = "json:" + json.dumps({"driver": "qcow2", "backing": None, "file": file})
    command = [str(settings.cage.qemu_img), "bitmap", "--add", "-g", str(GRANULARITY), disk, NAME]
    _run(command, fd, _TIMEOUT)


def _run(command: list[str], fd: int, timeout: float) -> None:
    try:
        done = subprocess.run(
            command,
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StorageError("The pool does not answer: making a disk took too long.", reason="PoolFailed") from None
    if done.returncode:
        errors = done.stderr.decode(errors="replace")
        if "No space left" in errors or "quota exceeded" in errors:
            raise StorageError(
                "Could not make the disk: the pool is full. Free space in it or choose another pool.", reason="NoSpace"
            )
        raise StorageError(f"Could not make the disk: qemu-img ended with status {done.returncode}.")
