"""Guests that this host sends to others, and those that it waits for. What is to be done is decided in `instance_moving`.

What is here is gone with the process: connections end, so the hypervisors give up what was not whole, and the next agent finds
out from them how it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from kumulus.api.compute import PowerState
from kumulus.api.host import WorkOrder
from kumulus.api.instance_order import InstanceOrder, MigrationFacts, MigrationState, Outgoing
from kumulus_agents.agent.convergence import Convergence
from kumulus_agents.agent.copied_disks import CopiedDisks
from kumulus_agents.agent.instance_scope import Moving
from kumulus_agents.agent.networks import Networks
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.agent.word import GO, HEARD_WITHIN, Word
from kumulus_agents.hypervisor.domain import DomainSpec, DomainState, ExitReason, Marks
from kumulus_agents.hypervisor.migration import Progress, Sending, Stream
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.network import connections
from kumulus_agents.network.protocol import NetworkError
from kumulus_agents.storage.blocking import to_the_end
from kumulus_agents.transfer.tunnel import READY, End, Purpose, Tunnel

log = structlog.get_logger(__name__)

TAKEN = b"taken\n"


class NotExpected(Exception):
    """Nobody is waited for in that way. The text is for the log."""


@dataclass(slots=True)
class _Send:
    migration: str
    convergence: Convergence | None = None
    """Of a copy that was begun: it may have to wait for others."""
    task: asyncio.Task[None] | None = None
    progress: Progress | None = None
    failure: tuple[str, str] | None = None


@dataclass(slots=True)
class _Awaited:
    migration: str
    spec: DomainSpec
    failure: tuple[str, str] | None = None


class Migrations:
    """Of one host. By uid of the machine: each is on one way at most."""

    def __init__(
        self,
        orders: Orders,
        hypervisor: Hypervisor,
        reservations: Reservations,
        networks: Networks,
        disks: CopiedDisks,
        tunnel: Tunnel | None,
        tasks: asyncio.TaskGroup,
        *,
        wake: Callable[[str], None],
    ) -> None:
        """`wake` has an order looked at soon, by name. Without a tunnel no guest leaves or comes."""
        self._orders = orders
        self._hypervisor = hypervisor
        self._reservations = reservations
        self._networks = networks
        self.disks = disks
        self._tunnel = tunnel
        self._tasks = tasks
        self._wake = wake
        self._sends: dict[str, _Send] = {}
        self._awaited: dict[str, _Awaited] = {}
        self._ended: set[str] = set()
        """Uids of migrations that this process has made an end of."""
        if tunnel is not None:
            tunnel.serve(self.serve)

    def moving(self, order: InstanceOrder, said: MigrationFacts | None) -> Moving | None:
        """What is being done about the machine, by this process, for the migration that its order speaks of; or for any,
        when it speaks of none. `said`: what was reported last. A guest that was being sent then may be on its way still, by
        an agent before this one, until `end`."""
        send, awaited = self._sends.get(order.uid), self._awaited.get(order.uid)
        wanted = order.outgoing or order.incoming
        if send is not None and (wanted is None or wanted.migration == send.migration):
            stalled = send.convergence.stalled(self._time()) if send.convergence is not None else 0.0
            return Moving(send.progress, send.failure, stalled)
        if awaited is not None and (wanted is None or wanted.migration == awaited.migration):
            return Moving(failure=awaited.failure)
        sent = said is not None and said.state is MigrationState.SENDING and said.migration not in self._ended
        return Moving() if wanted is None and sent else None

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()

    # The host that a guest leaves.

    def send(self, order: WorkOrder, instance: InstanceOrder, outgoing: Outgoing) -> None:
        """Begin to send it; it is being sent already: nothing. Raises `StorageError(reason="VolumeBusy")`."""
        before = self._sends.get(instance.uid)
        if before is not None and before.migration == outgoing.migration:
            return
        volumes = [disk.volume for disk in instance.disks if disk.volume is not None]
        stack = contextlib.ExitStack()
        stack.enter_context(self._reservations.hold(volumes, "a machine that has it goes to another host", along=True))
        send = self._sends[instance.uid] = _Send(outgoing.migration)
        send.task = self._tasks.create_task(self._send(order.name, instance, outgoing, send, stack))

    async def _send(
        self, name: str, instance: InstanceOrder, outgoing: Outgoing, send: _Send, reserved: contextlib.ExitStack
    ) -> None:
        with reserved:
            try:
                await self._bring(instance, outgoing, send)
            except HypervisorError as error:
                send.failure = (error.reason, str(error))
            except Exception as error:
                log.exception("a guest was not sent", order=name)
                send.failure = ("AgentError", f"the agent failed with {type(error).__name__}; its log has more")
        self._wake(name)

    async def _bring(self, instance: InstanceOrder, outgoing: Outgoing, send: _Send) -> None:
        uid, tunnel = instance.uid, self._tunnel
        if tunnel is None:
            raise HypervisorError("This host sends no guests: its agent has no port for that.", reason="NoTunnel")
        end = End(outgoing.host, outgoing.address, outgoing.port)
        last: list[str] = []
        word = Word(tunnel, end, outgoing.migration, instance.nics, self._networks)

        async def connect(channel: str) -> Stream:
            try:
                return await tunnel.connect(end, Purpose(outgoing.migration, channel))
            except OSError as error:
                last.append(str(error))
                raise

        def at(progress: Progress) -> None:
            now = self._time()
            if progress.halted:
                word.halted()
            send.progress, send.convergence = progress, (send.convergence or Convergence(now)).seen(progress, now)

        sending = Sending(
            outgoing.migration, outgoing.bandwidth, outgoing.max_downtime_ms, outgoing.converge, outgoing.disks
        )
        await self._hypervisor.end_sending(uid)  # what an agent before this one has begun
        ready = asyncio.create_task(word.stand_ready())
        try:
            await self._hypervisor.send(uid, sending, connect, at)
            await self._give_away(uid, word, outgoing.migration)
        except HypervisorError as error:
            why = f" ({last[-1]})" if last else ""
            raise HypervisorError(f"{error}{why}", reason=error.reason) from error
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)
            await word.close()

    async def _give_away(self, uid: str, word: Word, migration: str) -> None:
        """The guest has left: that goes on record, and it may go on elsewhere. Its connections are asked for meanwhile."""
        began = self._time()
        word.halted()
        # From the first of these lines on it is never started here; only then the other host may let it go on.
        domain = await self._hypervisor.domain(uid)
        if domain is None or domain.state is not DomainState.STOPPED or domain.exit_reason is not ExitReason.MIGRATED:
            raise HypervisorError("The guest is not said to have left.", reason="MigrationFailed")
        await self._hypervisor.mark(uid, replace(domain.marks, departed=migration))
        recorded = self._time()
        known = await word.known()
        asked = self._time()
        await word.say(known)
        steps = {"recorded": recorded - began, "connections": asked - recorded, "heard": self._time() - asked}
        log.info("a guest has left", uid=uid, **{step: round(took * 1000) for step, took in steps.items()})

    async def end(self, uid: str, said: MigrationFacts | None) -> None:
        """Do nothing any more for a migration of that machine. Raises `HypervisorError`."""
        self._awaited.pop(uid, None)
        send = self._sends.get(uid)
        if send is not None and send.task is not None and not send.task.done():
            send.task.cancel()
            await to_the_end(asyncio.ensure_future(asyncio.wait([send.task])))
        await self._hypervisor.end_sending(uid)
        if said is not None:
            self._ended.add(said.migration)
        if send is not None and self._sends.get(uid) is send:
            del self._sends[uid]

    # The host that a guest comes to.

    async def receive(self, spec: DomainSpec, migration: str) -> None:
        """Everything for it is ready. Raises `HypervisorError`."""
        await self._hypervisor.receive(spec, migration)
        self._awaited[spec.marks.uid] = _Awaited(migration, spec)

    async def arrive(self, order: InstanceOrder, migration: str | None, marks: Marks) -> None:
        """The guest that has come by that migration is this host's, with the disks that it brought; those first. Raises
        `HypervisorError`, `StorageError`."""
        if migration is not None:
            await self.disks.settle(order, migration)
        await self._hypervisor.arrive(order.uid, marks)

    async def serve(self, peer: str, purpose: Purpose, stream: Stream) -> None:
        """A connection of another host. Raises `NotExpected`, `HypervisorError`, `StorageError`, `OSError`."""
        order = self._order(peer, purpose.migration)
        instance = order.spec.instance
        assert instance is not None
        if purpose.channel == GO:
            await self._go(order, instance, stream)
            return
        awaited = self._awaited.get(instance.uid)
        if awaited is None or awaited.migration != purpose.migration:
            raise NotExpected("the guest is expected, and nothing is ready for it yet")
        # The source keeps its volumes as they are from before it asks.
        if (changed := await self.disks.written_elsewhere(instance, awaited.spec.disks)) is not None:
            why = f"A snapshot of the volume of disk {changed} was taken or let go of since this host got ready: try again."
            awaited.failure = ("VolumeChanged", why)
            self._wake(order.name)
            raise NotExpected(why)
        stream[1].write(READY)
        await stream[1].drain()
        try:
            await self._hypervisor.take(awaited.spec, purpose.migration, purpose.channel, stream)
        except HypervisorError as error:
            awaited.failure = (error.reason, str(error))
            self._wake(order.name)
            raise

    def _order(self, peer: str, migration: str) -> WorkOrder:
        for order in self._orders.store:
            incoming = order.spec.instance.incoming if order.spec.instance is not None else None
            if incoming is not None and (incoming.migration, incoming.host) == (migration, peer) and not order.deleting:
                return order
        raise NotExpected(f"host {peer} speaks of a guest that no order of this host knows")

    async def _go(self, order: WorkOrder, instance: InstanceOrder, stream: Stream) -> None:
        """The other host has given it away."""
        domain = await self._hypervisor.domain(instance.uid)
        assert instance.incoming is not None
        if domain is None or domain.arriving not in (None, instance.incoming.migration):
            raise NotExpected("the guest is not here")
        reader, writer = stream
        began = self._time()
        with contextlib.suppress(OSError, TimeoutError, ValueError, NetworkError):
            async with asyncio.timeout(HEARD_WITHIN):
                writer.write(READY)
                await writer.drain()
                said = json.loads(await reader.readline())
                for nic in instance.nics:
                    theirs = said.get(nic.uid) if isinstance(said, dict) else None
                    await self._networks.know(nic, connections.from_json(theirs, nic.addresses))
        known = self._time()
        await self.arrive(instance, instance.incoming.migration, replace(domain.marks, wanted=PowerState.RUNNING))
        steps = {"connections": known - began, "resumed": self._time() - known}
        log.info("a guest goes on", uid=instance.uid, **{step: round(took * 1000) for step, took in steps.items()})
        with contextlib.suppress(OSError):
            writer.write(TAKEN)
            await writer.drain()
        self._wake(order.name)
