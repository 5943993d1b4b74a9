"""Does a thing again and again, killed with SIGKILL at its first, second, third, ... step; then lets it end.

A program, because forking is for processes without threads: `killed.py import|disk|volume|grow POOL URL SHA UID OWNER STRIDE`.
A step is a call that changes the disk, or starts a program. After each death it says what a fresh
agent finds: one line of JSON.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath

from kumulus.api.image import ImageFormat
from kumulus.api.image_order import HttpFetch, ImageRef
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.settings import FetchSettings, StorageSettings
from tests.unit.storage.material import ignore, pool_ref

GROWN = 64 << 20

_STEPS = ("open", "mkdir", "pwrite", "write", "ftruncate", "fchown", "fchmod", "fsync", "rename", "unlink", "rmdir")


def count_down(steps: int) -> None:
    """Die before the step of that number, counted from 1."""
    left = steps

    def counted(call):
        def wrapper(*arguments, **more):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **more)

        return wrapper

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))
    asyncio.create_subprocess_exec = counted(asyncio.create_subprocess_exec)
    subprocess.Popen.wait = counted(subprocess.Popen.wait)  # after the program has begun


def main() -> None:
    verb, pool, url, sha, uid, owner, stride = sys.argv[1:]
    settings = StorageSettings(
        roots=(PurePosixPath(pool).parent,),
        readers=(),
        fetch=FetchSettings(allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),), backoff=0),
    )
    image = ImageRef(uid=uid, sha256=sha, format=ImageFormat.RAW)

    async def perform() -> None:
        driver = DirStorage(pool_ref(Path(pool)), settings)
        if verb == "import":
            await driver.import_image(image, HttpFetch(url=url), ignore)
        elif verb == "disk":
            await driver.ensure_disk(owner, "root", uid, None)
        elif verb == "volume":
            await driver.ensure_volume(owner, None, VolumeOrigin(image=image), thick=True)
        else:
            await driver.grow_volume(owner, GROWN)

    async def found() -> str | None:
        driver = DirStorage(pool_ref(Path(pool)), settings)
        whole = await (driver.image(uid) if verb in ("import", "disk") else driver.volume(owner))
        return whole.path if whole else None

    steps = 1
    while True:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            count_down(steps)
            asyncio.run(perform())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        look = os.fork()
        if not look:
            print(json.dumps({"steps": steps, "status": status, "image": asyncio.run(found())}), flush=True)
            os._exit(0)
        os.waitpid(look, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(status)
        steps += int(stride)


if __name__ == "__main__":
    main()
