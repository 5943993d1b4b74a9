"""Flows of bridges of Open vSwitch, through `ovs-ofctl`."""

from __future__ import annotations

from collections.abc import Sequence

from kumulus_agents.network.linux.programs import attempt, run
from kumulus_agents.network.ovn import transport
from kumulus_agents.network.ovn.settings import OvnSettings


class OpenFlow:
    """Of this host."""

    def __init__(self, settings: OvnSettings) -> None:
        self._directory = settings.openvswitch
        self._command = (str(settings.ofctl), "-O", "OpenFlow13")
        """In the version of OpenFlow in which it says flows as they were given."""

    async def are(self, bridge: str, flows: Sequence[str]) -> bool:
        """Whether a bridge has these flows, and no others but what it has learned."""
        status, out, _ = await attempt([*self._command, "diff-flows", self._at(bridge), "/dev/stdin"], _lines(flows))
        return status == 0 or (bool(out) and transport.same(out))

    async def replace(self, bridge: str, flows: Sequence[str]) -> None:
        """Have it have these flows, in one step. Raises `NetworkError`."""
        await run([*self._command, "--bundle", "replace-flows", self._at(bridge), "-"], _lines(flows))

    async def change(self, bridge: str, commands: Sequence[str]) -> None:
        """Perform commands, in one step. Raises `NetworkError`."""
        await run([*self._command, "--bundle", "add-flows", self._at(bridge), "-"], _lines(commands))

    def _at(self, bridge: str) -> str:
        return f"unix:{self._directory / bridge}.mgmt"


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
