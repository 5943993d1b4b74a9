"""An agent that is killed (SIGKILL) right after one call of libvirt has returned, while it starts a machine or takes a
snapshot of one for which its guest is halted.

`python -m tests.contract.doomed_agent URI CLASS.METHOD < pickled DomainSpec or Snapshot`; for a snapshot `keep` in place
of a method is what pools do.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from collections.abc import Mapping
from typing import Any

import libvirt

from kumulus.api.snapshots import QuiesceMode
from kumulus_agents.hypervisor.domain import DomainSpec, Quiesce, Still
from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.libvirt.settings import LibvirtSettings
from kumulus_agents.storage.source import LayerFile
from tests.contract.hypervisor import Heard

KEEP = "keep"


Snapshot = tuple[str, Mapping[str, LayerFile], frozenset[str]]
"""Of which machine, what its volumes are to go over to, and which ones pools keep."""


def die_after(place: str) -> None:
    """Let the process end as soon as that method has returned."""
    if place == KEEP:
        return
    cls, method = place.split(".")
    original = getattr(getattr(libvirt, cls), method)

    def doomed(*arguments: Any) -> None:
        original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(getattr(libvirt, cls), method, doomed)


async def main(uri: str, place: str) -> None:
    """Do what is asked, as far as that."""
    job: DomainSpec | Snapshot = pickle.load(sys.stdin.buffer)
    die_after(place)
    hypervisor, heard = LibvirtHypervisor(LibvirtSettings.model_validate({"uri": uri, "acceleration": "tcg"})), Heard()
    await hypervisor.connect(heard)
    await heard.about("")
    if isinstance(job, DomainSpec):
        await hypervisor.start(job)
        return
    uid, layers, volumes = job

    async def keep() -> None:
        if place == KEEP:
            os.kill(os.getpid(), signal.SIGKILL)

    await hypervisor.snapshot_disks(uid, layers, Quiesce(QuiesceMode.IF_POSSIBLE, 30), still=Still(volumes, keep, 60))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
