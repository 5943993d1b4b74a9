"""An agent that is killed (SIGKILL) right after one call of libvirt has returned, while it starts a machine.

`python -m tests.contract.doomed_agent URI CLASS.METHOD < pickled DomainSpec`
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from typing import Any

import libvirt

from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.libvirt.settings import LibvirtSettings
from tests.contract.hypervisor import Heard


def die_after(place: str) -> None:
    """Let the process end as soon as that method has returned."""
    cls, method = place.split(".")
    original = getattr(getattr(libvirt, cls), method)

    def doomed(*arguments: Any) -> None:
        original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(getattr(libvirt, cls), method, doomed)


async def main(uri: str, place: str) -> None:
    """Start the machine, as far as that."""
    spec = pickle.load(sys.stdin.buffer)
    die_after(place)
    hypervisor, heard = LibvirtHypervisor(LibvirtSettings.model_validate({"uri": uri, "acceleration": "tcg"})), Heard()
    await hypervisor.connect(heard)
    await heard.about("")
    await hypervisor.start(spec)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
