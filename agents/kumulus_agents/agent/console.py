"""Consoles: performs work orders of type Console, each of which reads the end of a log once."""

from __future__ import annotations

from typing import Protocol

from kumulus.api.host import ConsoleFacts, ConsoleOrder, WorkOrder, WorkOrderStatus, WorkState
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.orders import Orders
from kumulus_agents.hypervisor.protocol import HypervisorError

ENCODED_MAX = 384 * 1024
"""Bytes that a log may have as JSON. A guest chooses its characters, and no watcher has to put up with any line."""


def fitting(text: str, budget: int = ENCODED_MAX) -> str:
    """The end of the text that surely fits the budget, in bytes, when the API server has written it as JSON. Pure.

    Go's encoder writes control characters, `<`, `>`, `&` and two line separators as six bytes each.
    """
    if len(text) * 6 <= budget:
        return text
    for position in range(len(text) - 1, -1, -1):
        character = text[position]
        escaped = character < " " or character in '<>&"\\\x7f\u2028\u2029'
        budget -= 6 if escaped else len(character.encode())
        if budget < 0:
            return text[position + 1 :]
    return text


class ConsoleReader(Protocol):
    """Reads console logs."""

    async def tail(self, uid: str, max_bytes: int) -> str | None:
        """At most `max_bytes` bytes from the end of what that machine wrote; None when it has no log here.

        Raises `OSError` when it cannot be read, `HypervisorError` when nobody can say.
        """


class Consoles:
    """Answers to requests for the console of a machine."""

    def __init__(self, orders: Orders, reader: ConsoleReader) -> None:
        self._orders = orders
        self._reader = reader

    def forget(self, name: str) -> None:
        """The order of that name is gone."""

    async def perform(self, order: WorkOrder) -> Result:
        """Read once. Raises `KubeError`."""
        if order.deleting:
            await self._orders.release(order)
        elif order.spec.console is not None and order.status.state is None:
            await self._orders.report(order, await self._read(order, order.spec.console))
        return Done()

    async def _read(self, order: WorkOrder, console: ConsoleOrder) -> WorkOrderStatus:
        generation = order.metadata.generation
        text, why = None, "this machine has no console log on this host; it may not have started here yet"
        if self._orders.of_instance(console.uid):
            try:
                text = await self._reader.tail(console.uid, console.max_bytes)
            except (OSError, HypervisorError) as error:
                why = f"its console log cannot be read: {error}"
        if text is None:
            return WorkOrderStatus(
                observed_generation=generation, state=WorkState.FAILED, reason="NoConsole", message=why[:4000]
            )
        return WorkOrderStatus(
            observed_generation=generation, state=WorkState.READY, console=ConsoleFacts(log=fitting(text))
        )
