"""A switch for the power of simulated hosts, by which controllers fence them: the method `switch`, plugged in as others are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from kumulus.runtime.modules import Context, Module, ModuleTree
from kumulus_controllers.fabric.fencing import METHODS, Power, Target

SWITCH = "switch"
"""The method, and the Secret with what opens it."""
BMC = {"type": SWITCH, "address": "https://switch.example", "credentialsSecret": SWITCH}
"""As a Host's spec names it."""


class Powered(Protocol):
    """Hosts that can be switched off: a `World`."""

    def powered(self, name: str) -> bool:
        """Whether a host is on."""

    async def cut_power(self, name: str) -> None:
        """Take its power away."""


class Switch:
    """A `Fencer`."""

    def __init__(self, hosts: Powered) -> None:
        self._hosts = hosts

    async def power(self, target: Target) -> Power:
        """See the protocol."""
        return Power.ON if self._hosts.powered(target.host) else Power.OFF

    async def off(self, target: Target) -> None:
        """See the protocol."""
        await self._hosts.cut_power(target.host)


def plug_in(tree: ModuleTree, switch: Any) -> None:
    """The module that fences finds it among what is plugged in."""

    def with_switch(module: Module) -> Module:
        async def setup(context: Context) -> None:
            context.registry.offer(METHODS)
            context.registry.plug(METHODS, SWITCH, switch)
            await module.setup(context)

        return replace(module, setup=setup)

    for node in tree.nodes:
        if node.name == "controllers.fabric" and node.module is not None:
            node.module = with_switch(node.module)
