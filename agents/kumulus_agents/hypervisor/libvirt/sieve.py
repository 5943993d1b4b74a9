"""Lets through to the own libvirtd what another host's needs for one migration, and nothing else (docs/adr/0029).

Who is at the other end may be anybody who has taken over a host. What they can do: have this machine come, as this host
defines it, halted; end that; and ask which features there are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import libvirt

from kumulus_agents.hypervisor.libvirt import disks_along, wire
from kumulus_agents.hypervisor.libvirt.arrival import Refused
from kumulus_agents.hypervisor.migration import Stream

FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PAUSED
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    | libvirt.VIR_MIGRATE_UNSAFE
)
"""How a guest may come. What else the other side says of it is dropped."""

URI = "qemu:///system"
ASKING = frozenset({wire.SUPPORTS_FEATURE, wire.AUTH_LIST, wire.REGISTER_CLOSE, wire.UNREGISTER_CLOSE, wire.CLOSE})
CHUNK = 1 << 16


@dataclass(slots=True)
class Sieve:
    """For one connection."""

    name: str
    """Of the domain that is to come."""
    uri: str
    """Where QEMU is to listen for its memory."""
    define: Callable[[str], str]
    """This host's definition of the guest from the other host's. Raises `Refused`."""
    copied: frozenset[str] = frozenset()
    """Serials of the disks that come with it, as this host's order says."""
    disks_uri: str | None = None
    """Where QEMU is to listen for them."""
    prepared: bool = field(default=False, init=False)

    def sift(self, message: bytes) -> bytes:
        """What is passed on in place of a message. Raises `Refused`, `wire.Malformed`."""
        head = wire.Head.of(message)
        if head.program == wire.KEEP_ALIVE:
            return message
        if head.program != wire.REMOTE or head.kind != wire.CALL:
            raise Refused("it speaks of something else than a migration")
        if head.procedure in ASKING:
            return message
        if head.procedure == wire.OPEN:
            if wire.name_of(message) != URI:
                raise Refused("it asks for another hypervisor")
            return message
        if head.procedure == wire.PREPARE:
            given = wire.arguments_of(message)
            if self.prepared:
                raise Refused("it begins a second time")
            self.prepared = True
            return self._prepare(head, given, self.define(given.text("destination_xml") or ""))
        if head.procedure == wire.FINISH:
            return self._message(head, wire.arguments_of(message), destination_name=self.name)
        raise Refused("it speaks of something else than a migration")

    def _prepare(self, head: wire.Head, given: wire.Arguments, xml: str) -> bytes:
        """A disk that one host takes for copied and the other does not would be an empty one."""
        try:
            disks = disks_along.devices(xml, self.copied) if self.copied else ()
        except disks_along.UnknownDisk as error:
            raise Refused(str(error)) from error
        if bool(given.flags & libvirt.VIR_MIGRATE_NON_SHARED_DISK) != bool(disks) or sorted(given.disks) != [*disks]:
            raise Refused("it copies other disks than its order says")
        texts = {"destination_xml": xml, "migrate_uri": self.uri}
        if self.disks_uri is not None and disks:
            texts["disks_uri"] = self.disks_uri
        return self._message(head, given, disks, **texts)

    def _message(self, head: wire.Head, given: wire.Arguments, disks: tuple[str, ...] = (), **texts: str) -> bytes:
        said = given.saying(**texts)
        taken = FLAGS | (disks_along.FLAGS if self.copied else 0)
        flags = given.flags & taken | libvirt.VIR_MIGRATE_PAUSED
        return wire.message(head, wire.Arguments(said.parameters, said.cookie, flags, said.rest, disks))


async def serve(sieve: Sieve, other: Stream, own: Stream) -> None:
    """Between the other host and the own libvirtd, until one of them ends. Raises `Refused`."""
    async with asyncio.TaskGroup() as tasks:
        answers = tasks.create_task(pump(own[0], other[1]))
        try:
            while (message := await _message(other[0])) is not None:
                own[1].write(sieve.sift(message))
                await own[1].drain()
        except wire.Malformed as error:
            raise Refused(str(error)) from error
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            own[1].close()  # libvirtd takes back what was begun
            answers.cancel()


async def _message(reader: asyncio.StreamReader) -> bytes | None:
    """The next whole message; None at the end."""
    head = await reader.read(1)
    if not head:
        return None
    head += await reader.readexactly(3)
    length = int.from_bytes(head, "big")
    if not wire.HEADER.size <= length <= wire.LONGEST:
        raise wire.Malformed("a message has a length that none has")
    return head + await reader.readexactly(length - 4)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, until its end, and that too."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
