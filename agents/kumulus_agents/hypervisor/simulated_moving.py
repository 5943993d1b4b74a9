"""Guests of simulated hosts that leave for another host, and guests that come: one line of JSON each way.

As with libvirt, the source takes an answer that does not come for a refusal and lets its guest go on, while the other host
has it whole: who lets it go on there too has it run twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import astuple, replace

from kumulus.api.compute import PowerState
from kumulus.api.hardware import Shape
from kumulus_agents.hypervisor.domain import Domain, DomainSpec, DomainState, ExitReason, Growth, Marks
from kumulus_agents.hypervisor.migration import Connect, Progress, Sending, Stream
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.hypervisor.simulated_host import SimulatedHost, plugged

MEMORY = "memory"


async def send(
    host: SimulatedHost, uid: str, sending: Sending, connect: Connect, progress: Callable[[Progress], None]
) -> None:
    """See the protocol."""
    domain = host.domains.get(uid)
    if domain is not None and domain.exit_reason is ExitReason.MIGRATED:
        return
    if domain is None or domain.state is not DomainState.RUNNING:
        raise HypervisorError("The simulated machine does not run.", reason="NotRunning")
    size = domain.memory or 1
    progress(Progress(size, size, 0, 1, sending.max_downtime))
    host.sending.add(uid)
    try:
        reader, writer = await connect(MEMORY)
        try:
            answered = asyncio.ensure_future(reader.readline())
            await asyncio.wait([answered], timeout=host.delay(host.settings.migrate_seconds))
            progress(Progress(size, 0, 0, 1, sending.max_downtime, halted=True))
            said = {
                "memory": domain.memory,
                "cpus": domain.cpus,
                "growth": astuple(domain.growth) if domain.growth is not None else None,
                "shape": domain.shape.to_json(),
                "board": domain.machine_type,
                "startedAt": domain.started_at,
                "volumes": sorted(domain.volumes),
                "disks": sorted(sending.disks),
            }
            writer.write(json.dumps(said).encode() + b"\n")
            await writer.drain()
            answer = await answered
        finally:
            answered.cancel()
            writer.close()
    except OSError as error:
        raise HypervisorError(f"The guest was not brought there: {error}.", reason="MigrationFailed") from error
    finally:
        given_up = uid not in host.sending
        host.sending.discard(uid)
    if answer != b"whole\n" or given_up:
        raise HypervisorError("The other simulated host did not take the guest.", reason="MigrationFailed")
    if host.domains.get(uid) is None or host.domains[uid].state is DomainState.STOPPED:
        raise HypervisorError("The guest has ended meanwhile.", reason="MigrationFailed")
    host.end(uid, ExitReason.MIGRATED)


def receive(host: SimulatedHost, spec: DomainSpec, migration: str) -> None:
    """See the protocol."""
    uid = spec.marks.uid
    domain = host.domains.get(uid)
    if uid in host.foreign:
        raise HypervisorError("There is a foreign domain.", reason="DomainConflict", retryable=False)
    if domain is not None and domain.state is not DomainState.STOPPED:
        if domain.arriving == migration:
            return
        raise HypervisorError("The simulated machine is on here already.", reason="AlreadyOn")
    host.put(replace(host.as_defined(spec), arriving=migration, exit_reason=ExitReason.UNKNOWN))


async def take(host: SimulatedHost, spec: DomainSpec, migration: str, stream: Stream) -> None:
    """See the protocol."""
    reader, writer = stream
    try:
        _expected(host, spec, migration)
        line = await reader.readline()
        if not line:
            return
        said = json.loads(line)
        domain = _expected(host, spec, migration)
        if said["volumes"] != sorted(domain.volumes):
            raise HypervisorError("It has other disks than its order says.", reason="GuestRefused", retryable=False)
        if said["disks"] != sorted(disk.name for disk in spec.disks if disk.copied):
            raise HypervisorError("It copies other disks than its order says.", reason="GuestRefused", retryable=False)
        halted = replace(domain, state=DomainState.PAUSED, exit_reason=None, started_at=said["startedAt"])
        growth = Growth(*said["growth"]) if said["growth"] is not None else None
        made = replace(halted, shape=Shape.model_validate(said["shape"]), machine_type=said["board"], growth=growth)
        host.put(replace(made, cpus=said["cpus"], memory=said["memory"], nics=tuple(map(plugged, spec.nics))))
        writer.write(b"whole\n")
        await writer.drain()
    except OSError as error:
        raise HypervisorError(f"The guest cannot come: {error}.", reason="MigrationFailed") from error
    finally:
        writer.close()


def arrive(host: SimulatedHost, uid: str, marks: Marks) -> None:
    """See the protocol."""
    domain = host.domains.get(uid)
    if domain is not None and domain.arriving is None:
        return
    if domain is None or domain.state is not DomainState.PAUSED:
        raise HypervisorError("The simulated guest has not come.", reason="NotArrived")
    state = DomainState.RUNNING if marks.wanted is PowerState.RUNNING else domain.state
    host.put(replace(domain, marks=marks, arriving=None, state=state))


def _expected(host: SimulatedHost, spec: DomainSpec, migration: str) -> Domain:
    domain = host.domains.get(spec.marks.uid)
    if domain is None or domain.arriving != migration or domain.state is not DomainState.STOPPED:
        raise HypervisorError("The machine is not waited for by that migration.", reason="NotExpected")
    return domain
