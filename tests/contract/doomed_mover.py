"""A host's agent that is killed (SIGKILL) right after one thing it did has been done, or by somebody else.

`python -m tests.contract.doomed_mover KUBECONFIG HOST DIRECTORY URI [PLACE]`, where PLACE is a method of libvirt's binding
(`libvirt:virDomain.blockCopy`) or a function of a module (`kumulus_agents.storage.dir.arrivals:settle`).
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from kumulus.kube.client import KubeClient
from kumulus_agents.hypervisor.libvirt.driver import LibvirtHypervisor
from kumulus_agents.hypervisor.libvirt.settings import LibvirtSettings
from tests.unit.agent.host import TestHost


def die_after(place: str) -> None:
    """Let the process end as soon as that has returned."""
    module, _, names = place.partition(":")
    owner: Any = importlib.import_module(module)
    *above, name = names.split(".")
    for one in above:
        owner = getattr(owner, one)
    original = getattr(owner, name)

    def doomed(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, doomed)


async def main(kubeconfig: str, name: str, directory: str, uri: str, place: str = "") -> None:
    """Work until then."""
    client = await KubeClient.from_kubeconfig(Path(kubeconfig), user_agent="doomed")
    host = TestHost(client, name, directory=Path(directory))
    host.agents_client = client
    if place:
        die_after(place)
    await host.agent(hypervisor=LibvirtHypervisor(LibvirtSettings.model_validate({"uri": uri}))).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
