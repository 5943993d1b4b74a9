"""Empty qcow2 files, by qemu-img. Blocks. It opens nothing but the file that is made: no image is read outside the cage."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack

from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.tracking import GRANULARITY, NAME

_TIMEOUT = 60.0
_TOLD = 200
_CLOCK, _CLOCK_TRIES = "Unable to get accurate CPU usage", 10
"""Where the kernel accounts for CPU time coarsely, QEMU fails now and then to measure how long a passphrase takes."""
_ITERATE = 500
"""Milliseconds that it shall take here to try one passphrase."""
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
    passphrase: Passphrase | None = None,
) -> None:
    """Write an empty disk of so many bytes into the open file: an overlay of `backing`, which is of the format `form`,
    or one that takes all of its space at once. Not both: qcow2 has no preallocated overlays. With a passphrase what is
    written to it is encrypted. Raises `StorageError`.

    With size and formats given, and `-u`, qemu-img opens nothing but this file.
    Space that is there at once is no zeros when it is read through a cipher: then each cluster is marked as zeros.
    """
    options = "compat=1.1,preallocation=falloc" if thick else "compat=1.1"
    below = ("-F", form, "-b", backing) if backing is not None else ()
    with ExitStack() as stack:
        secret: tuple[str, ...] = ()
        handed = [fd]
        if passphrase is not None:
            handed.append(stack.enter_context(passphrase.opened()))
            secret = ("--object", f"secret,id=key,file=/proc/self/fd/{handed[-1]}")
            options += f",encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time={_ITERATE}"
        command = [
            *(str(settings.cage.qemu_img), "create", "-q", "-u", "-f", "qcow2", "-o", options),
            *(*secret, *below, f"/proc/self/fd/{fd}", str(virtual_size)),
        ]
        timeout = _THICK_TIMEOUT if thick else _TIMEOUT
        failed: str | None = _CLOCK
        for _ in range(_CLOCK_TRIES):
            if failed is not None and _CLOCK in failed:
                os.ftruncate(fd, 0)
                failed = _run(command, handed, timeout)
        if failed is None and thick and passphrase is not None:
            failed = _run(_zeroing(settings, secret, fd, virtual_size), handed, timeout)
    _judge(failed)


def _zeroing(settings: StorageSettings, secret: Sequence[str], fd: int, virtual_size: int) -> list[str]:
    """How qemu-img marks all of the open, encrypted disk as zeros. `discard=ignore` keeps the space it has."""
    zeros = f"driver=null-co,size={virtual_size},read-zeroes=on"
    disk = f"driver=qcow2,discard=ignore,file.driver=file,file.filename=/proc/self/fd/{fd},encrypt.key-secret=key"
    options = ("-n", "--image-opts", "--target-image-opts", zeros, disk)
    return [str(settings.cage.qemu_img), "convert", "-q", *secret, *options]


def track(settings: StorageSettings, fd: int) -> None:
    """Have the new disk in the open file, not encrypted, remember from now on which parts are written.

    Raises `StorageError`.
    """
    file = {"driver": "file", "filename": f"/proc/self/fd/{fd}"}
    disk = "json:" + json.dumps({"driver": "qcow2", "backing": None, "file": file})
    command = [str(settings.cage.qemu_img), "bitmap", "--add", "-g", str(GRANULARITY), disk, NAME]
    _judge(_run(command, [fd], _TIMEOUT))


def _run(command: Sequence[str], handed: Sequence[int], timeout: float) -> str | None:
    """What qemu-img complains of; None when it does not."""
    try:
        done = subprocess.run(
            command,
            pass_fds=handed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StorageError("The pool does not answer: making a disk took too long.", reason="PoolFailed") from None
    return done.stderr.decode(errors="replace").strip() if done.returncode else None


def _judge(failed: str | None) -> None:
    if failed is None:
        return
    if "No space left" in failed or "quota exceeded" in failed:
        raise StorageError(
            "Could not make the disk: the pool is full. Free space in it or choose another pool.", reason="NoSpace"
        )
    raise StorageError(f"Could not make the disk: qemu-img failed: {failed[-_TOLD:]}")
