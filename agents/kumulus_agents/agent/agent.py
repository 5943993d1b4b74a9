"""One host's agent: takes work orders from a watch, has them performed, and keeps heartbeat and report going.

A handful of tasks whatever the number of orders; many agents share one event loop. What it starts is
left as it is when it stops: guests run on and the Lease runs out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.order_names import pool_order_name
from kumulus.api.segments import NetworkDriverName
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import KubeError
from kumulus.kube.queue import WorkQueue
from kumulus.kube.reflector import Reflector
from kumulus.kube.store import Key
from kumulus.runtime.clock import Clock, SystemClock
from kumulus.runtime.metrics import PASS_SECONDS, PASSES
from kumulus.runtime.result import Done, Failed, Requeue, Result, Wait
from kumulus_agents.agent.certificate import Certificates
from kumulus_agents.agent.console import ConsoleReader, Consoles
from kumulus_agents.agent.copied_disks import CopiedDisks
from kumulus_agents.agent.disk import Disks
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.fence import Fences
from kumulus_agents.agent.gateway import Gateways
from kumulus_agents.agent.guests import Guests
from kumulus_agents.agent.image import Images, given_image
from kumulus_agents.agent.instance import Instances
from kumulus_agents.agent.instance_files import InstanceFiles
from kumulus_agents.agent.instance_steps import InstanceSteps
from kumulus_agents.agent.lease import Heartbeat
from kumulus_agents.agent.locating import Locating, nowhere
from kumulus_agents.agent.migrations import Migrations
from kumulus_agents.agent.networks import Networks
from kumulus_agents.agent.orders import Orders, volumes_of
from kumulus_agents.agent.passphrases import Passphrases
from kumulus_agents.agent.performer import Performer
from kumulus_agents.agent.pool import PoolPresences
from kumulus_agents.agent.pools import PoolFactory, Pools
from kumulus_agents.agent.pulse import Pulse
from kumulus_agents.agent.report import MachineFacts, Reporter
from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.agent.returning import Returning
from kumulus_agents.agent.secrets import PoolSecrets, Secrets
from kumulus_agents.agent.segment import Segments
from kumulus_agents.agent.self_fence import SelfFence
from kumulus_agents.agent.settings import Timings
from kumulus_agents.agent.snapshot import Snapshots
from kumulus_agents.agent.tidying import Tidying
from kumulus_agents.agent.traffic import Counted
from kumulus_agents.agent.unmanaged import Unmanaged
from kumulus_agents.agent.upload import UploadOrders
from kumulus_agents.agent.volume import Volumes
from kumulus_agents.agent.whereabouts import Whereabouts
from kumulus_agents.agent.witness import Witnesses
from kumulus_agents.hypervisor.foreign import ForeignDisk
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.metadata.keeper import Metadata
from kumulus_agents.network.protocol import Dropped, NetworkDriver
from kumulus_agents.transfer.transfer import Transfer
from kumulus_agents.watchdog.client import Watchdog

log = structlog.get_logger(__name__)

FINISH_SECONDS = 5.0
"""At a graceful stop passes under way get so long to come to their end."""
RESYNC = 300.0
PREPARE_SECONDS = 5.0
"""So long does the first report wait for what network drivers find."""


@dataclass(frozen=True, slots=True)
class Drivers:
    """What an agent uses its machine through."""

    hypervisor: Hypervisor
    pool: PoolFactory
    files: InstanceFiles
    console: ConsoleReader
    facts: MachineFacts
    transfer: Transfer | None = None
    """None: images are not exchanged with other hosts."""
    networks: Mapping[NetworkDriverName, NetworkDriver] = field(default_factory=dict)
    """Without one the host has no networks."""
    underlay: str | None = None
    """Address at which other hosts reach its tunnels; its first one when empty."""
    metadata: Metadata | None = None
    """None: guests are told nothing of themselves."""
    watchdog: Watchdog | None = None
    """What ends the host's machines when its Lease cannot be renewed; None: nothing can."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which host, and where its objects are."""

    host: str
    namespace: str


class _Stopped(Exception):
    """The agent was asked to stop."""


@dataclass(slots=True)
class _Flow:
    """How many passes are under way."""

    running: int = 0
    calm: asyncio.Event = field(default_factory=asyncio.Event)


class Agent:
    """One host. `run` may be called once."""

    def __init__(
        self,
        place: Place,
        client: KubeClient,
        drivers: Drivers,
        *,
        timings: Timings | None = None,
        clock: Clock | None = None,
        phase: float = 0.0,
        expires_at: Callable[[], datetime | None] = lambda: None,
    ) -> None:
        """`phase`, from 0 to 1, spreads the heartbeats of hosts that share a process."""
        timings = timings or Timings()
        self.place = place
        self._client = client
        self._drivers = drivers
        self._clock = clock or SystemClock()
        self._workers = timings.workers
        self._starts_at_boot = timings.starts_at_boot
        self._beat_seconds = timings.beat_seconds
        self.queue: WorkQueue[Key] = WorkQueue()
        self.orders = Orders(client, place.namespace)
        self.reflector: Reflector[WorkOrder] = Reflector(self.orders.store, client, place.namespace)
        self._networks = Networks(
            drivers.networks,
            self.orders,
            drivers.hypervisor,
            metadata=drivers.metadata,
            underlay=self._underlay,
            changed=lambda: self.reporter.refresh(),
            port_removed=self._port_removed,
            ready=self._networks_ready,
        )
        self.heartbeat = Heartbeat(
            client,
            place.namespace,
            place.host,
            self._clock,
            duration=timings.lease_seconds,
            every=timings.renew_seconds,
            phase=phase,
            recovered=self._recovered,
            renewed=lambda stamp: self._self_fence.renewed(stamp),
        )
        self._self_fence = SelfFence(
            self.orders, self.heartbeat, drivers.watchdog, lease_seconds=timings.lease_seconds, wake=self._wake
        )
        self.reporter = Reporter(
            client,
            place.namespace,
            place.host,
            drivers.hypervisor,
            drivers.facts,
            every=timings.report_seconds,
            expires_at=expires_at,
            transfer=lambda: drivers.transfer.facts() if drivers.transfer is not None else None,
            migration=lambda: drivers.transfer.migration_facts() if drivers.transfer is not None else None,
            network=self._networks.facts,
            orphans=lambda: self._unmanaged.orphan_count,
            replaced=self._doubt,
        )
        self._unmanaged = Unmanaged(
            client,
            place.namespace,
            drivers.hypervisor,
            counted=self.reporter.refresh,
            locate=lambda disk: self._locate(disk),
            ordered=lambda uid: not self.reflector.synced.is_set() or bool(self.orders.of_instance(uid)),
            complete=lambda: self.reflector.sure,
            told=lambda: self.reporter.orphans_told,
        )
        self._locate: Callable[[ForeignDisk], Awaitable[ForeignDisk]] = nowhere
        self._performers: Mapping[WorkType, Performer] = {}
        self._flow = _Flow()
        self._stop = asyncio.Event()
        self._ended: Callable[[str], None] = lambda _: None
        """Told of volumes whose machine may have gone off, which may be what somebody waits for."""
        self._networks_came: Callable[[], None] = lambda: None
        """Told when machines need not wait for networks any longer."""
        self._orphans: set[str] = set()
        self._unreported: set[Key] = set()
        self.orders.listen(self.queue.add)
        self.orders.store.listen(self._order_changed)

    def stop(self) -> None:
        """Stop gracefully: passes under way are finished, nothing new begins. `run` then returns."""
        self._stop.set()

    @property
    def busy(self) -> bool:
        """Whether a pass is under way."""
        return self._flow.running > 0

    async def dropped(self) -> Sequence[Dropped]:
        """What rules of networks have dropped on the host."""
        return await self._networks.dropped()

    async def traffic(self) -> Sequence[Counted]:
        """What has passed interfaces on the host."""
        return await self._networks.traffic()

    async def run(self) -> None:
        """Work until `stop` is called or the task is cancelled. Guests are left as they are."""
        await self._drivers.hypervisor.connect(self._domain_changed)
        transfer, secrets = self._drivers.transfer, PoolSecrets(Secrets(self._client, self.place.namespace))
        pools = Pools(self._drivers.pool, secrets, met=self._met)
        try:
            if transfer is not None:
                await transfer.open(lambda uid, sha256: given_image(self.orders, pools, uid, sha256))
            self._locate = Locating(self.orders, pools).locate
            async with asyncio.TaskGroup() as tasks:
                self._performers = self._assemble(tasks, pools)
                tasks.create_task(self._report())
                tasks.create_task(self.heartbeat.run())
                tasks.create_task(self._reflect())
                tasks.create_task(self._watch_orphans())
                tasks.create_task(self._unmanaged.run())
                tasks.create_task(self._self_fence.tend(self.reflector.synced.wait))
                if self._drivers.networks:
                    tasks.create_task(self._networks.tend(self.reflector.synced.wait))
                    tasks.create_task(self._networks.guard())
                    tasks.create_task(self._networks.serve_metadata())
                for _ in range(self._workers):
                    tasks.create_task(self._work())
                tasks.create_task(self._end())
        except* _Stopped:
            log.info("agent stopped", host=self.place.host)
        finally:
            if transfer is not None:
                await transfer.close()
            if self._drivers.watchdog is not None:
                await self._drivers.watchdog.close()
            await self._drivers.hypervisor.close()

    def _assemble(self, tasks: asyncio.TaskGroup, pools: Pools) -> Mapping[WorkType, Performer]:
        drivers = self._drivers
        reservations = Reservations(lambda volume: freed(volume), leaving=self.orders.leaving)
        secrets = Secrets(self._client, self.place.namespace)
        passphrases = Passphrases(secrets)
        tidying = Tidying(drivers.hypervisor, reservations, passphrases)
        whereabouts = Whereabouts(self.orders, pools, drivers.hypervisor, complete=self.reflector.synced.is_set)
        migrations = Migrations(
            self.orders,
            drivers.hypervisor,
            reservations,
            self._networks,
            CopiedDisks(pools),
            drivers.transfer.tunnel if drivers.transfer is not None else None,
            tasks,
            wake=self._wake,
        )
        steps = InstanceSteps(
            secrets,
            drivers.hypervisor,
            pools,
            drivers.files,
            reservations,
            whereabouts,
            self._networks,
            migrations,
            has=lambda volume: volumes.holds(volume),
            image_failure=self.orders.image_failure,
        )
        guests = Guests(drivers.hypervisor, self._clock, changed=self._guest_changed)
        tasks.create_task(guests.run())
        fences = Fences(self.orders, drivers.hypervisor, wake=self._wake, complete=self.reflector.synced.is_set)
        instances = Instances(
            self.orders,
            drivers.hypervisor,
            steps,
            self._clock,
            wake=self._wake,
            removed=lambda: images.disks_removed(),
            guest=guests.told,
            returning=Returning(lambda: self.orders.store, self._clock, at_once=self._starts_at_boot, wake=self._wake),
            fenced=lambda: fences.in_force() or self._self_fence.unarmed(),
        )

        def arrived(uid: str) -> None:
            instances.arrived(uid)
            volumes.origin_arrived(uid)
            snapshots.freed(uid)

        def let_go(volume: str) -> None:
            volumes.let_go(volume)
            for order in self.orders.of_volume(volume):
                self._wake(order.name)

        def removed() -> None:
            images.disks_removed()
            for order in self.orders.store:
                if order.spec.type is WorkType.POOL:
                    self.queue.add_after(Key(self.place.namespace, order.name), 1.0)

        def freed(volume: str) -> None:
            instances.arrived(volume)
            volumes.let_go(volume)
            snapshots.freed(volume)

        work = DiskWork(self.orders, self._clock, tasks, wake=self._wake)
        images = Images(
            self.orders,
            pools,
            drivers.hypervisor,
            work,
            secrets,
            tasks,
            wake=self._wake,
            arrived=arrived,
            transfer=drivers.transfer,
        )
        volumes = Volumes(
            self.orders,
            pools,
            drivers.hypervisor,
            passphrases,
            work,
            reservations,
            tidying,
            whereabouts,
            host=self.place.host,
            wake=self._wake,
            arrived=arrived,
            removed=removed,
        )
        snapshots = Snapshots(
            self.orders,
            pools,
            drivers.hypervisor,
            passphrases,
            work,
            reservations,
            tidying,
            whereabouts,
            self._clock,
            sees_to=lambda volume: volumes.sees_to(volume),
            arrived=arrived,
            removed=freed,
        )
        disks = Disks(self.orders, work, images, volumes)
        gateways = Gateways(self.orders, self._networks, secrets, wake=self._wake)
        unproved = drivers.transfer.unproved if drivers.transfer is not None else None
        beat = self._beat_seconds
        witnesses = Witnesses(self.orders, pools, unproved, self._clock, tasks, beat_seconds=beat, wake=self._wake)
        tasks.create_task(Pulse(self.place.host, lambda: self.orders.store, pools, every=beat).run())
        if drivers.networks:
            tasks.create_task(gateways.watch())

        def network_arrived(uid: str) -> None:
            instances.arrived(uid)
            gateways.arrived(uid)

        self.orders.listen_let_go(let_go)
        self._ended = volumes.may_be_free
        self._networks_came = instances.networks_ready
        return {
            WorkType.INSTANCE: instances,
            WorkType.DISK: disks,
            WorkType.SNAPSHOT: snapshots,
            WorkType.POOL: PoolPresences(
                self.orders, pools, complete=self.reflector.synced.is_set, returned=work.pool_returned
            ),
            WorkType.CONSOLE: Consoles(self.orders, drivers.console),
            WorkType.CERTIFICATE: Certificates(self.orders, drivers.transfer, adopted=self.reporter.refresh),
            WorkType.UPLOAD: UploadOrders(self.orders, pools, drivers.transfer, self._clock, images.uploaded),
            WorkType.SEGMENT: Segments(self.orders, self._networks, arrived=network_arrived),
            WorkType.GATEWAY: gateways,
            WorkType.FENCE: fences,
            WorkType.WITNESS: witnesses,
            WorkType.WATCHDOG: self._self_fence,
        }

    async def _reflect(self) -> None:
        """Read what is ordered, but not before the Lease was renewed: who fences this host looks at the Lease, to know whether
        orders were read before it said that nothing may start (ADR 33)."""
        await self.heartbeat.begun.wait()
        await self.reflector.run()

    async def _report(self) -> None:
        """The first report says of networks what there is to say, if that is known soon."""
        await self._networks.looked(PREPARE_SECONDS)
        await self.reporter.run()

    def _underlay(self) -> str | None:
        return self._drivers.underlay or next(iter(self._drivers.facts.addresses()), None)

    def _port_removed(self) -> None:
        """A network that is to go may be free of ports now."""
        for order in self.orders.store:
            if order.spec.type is WorkType.SEGMENT and order.deleting:
                self._wake(order.name)

    def _networks_ready(self) -> None:
        """What failed because a driver could not work is tried again, without waiting out its back-off."""
        for order in self.orders.store:
            if order.spec.type in (WorkType.SEGMENT, WorkType.GATEWAY):
                self._wake(order.name)
        self._networks_came()

    def _met(self, pool: str) -> bool:
        """Whether this host had the pool of that uid before, as it reported."""
        order = self.orders.get(pool_order_name(pool))
        return order is not None and order.status.pool is not None and order.status.pool.met

    def _wake(self, name: str) -> None:
        self.queue.add(Key(self.place.namespace, name), urgent=True)

    def _recovered(self) -> None:
        """The API server answers again: what could not be reported is, without waiting out its back-off."""
        for key in self._unreported:
            self.queue.add(key, urgent=True)
        self.reporter.refresh()

    def _domain_changed(self, uid: str) -> None:
        """The hypervisor's listener: one domain, or (reconnected) any of them."""
        if uid:
            for order in self.orders.of_instance(uid):
                self._wake(order.name)
                for volume in volumes_of(order):
                    self._ended(volume)
            return
        for order in self.orders.store:
            if order.spec.type is WorkType.INSTANCE:
                self._wake(order.name)
        self.reporter.refresh()

    def _order_changed(self, before: WorkOrder | None, after: WorkOrder | None) -> None:
        """In a pool that has come there may be disks of domains that are not ours; a machine may have nobody who orders it, or
        somebody again."""
        order = after or before
        instance = order.spec.instance if order is not None else None
        if instance is not None and (after is None or instance.uid in self._unmanaged.orphans):
            self._unmanaged.look()
        if order is None or order.spec.type is not WorkType.POOL:
            return
        if (before.status.state if before else None) is not (after.status.state if after else None):
            self._unmanaged.look()

    def _guest_changed(self, uid: str) -> None:
        for order in self.orders.of_instance(uid):
            self._wake(order.name)

    async def _work(self) -> None:
        await self.reflector.synced.wait()  # one order may forbid what another asks for
        while not self._stop.is_set():
            key = await self.queue.get()
            self._flow.running += 1
            try:
                await self._pass(key)
            finally:
                self._flow.running -= 1
                if not self._flow.running:
                    self._flow.calm.set()
                self.queue.done(key)

    async def _pass(self, key: Key) -> None:
        order = self.orders.get(key.name)
        self._unreported.discard(key)
        if order is None:
            self.queue.forget(key)
            for performer in self._performers.values():
                performer.forget(key.name)
            return
        controller, loop = f"agent.{order.spec.type}", asyncio.get_running_loop()
        began = loop.time()
        try:
            result = await self._performers[order.spec.type].perform(order)
        except KubeError as error:
            told = log.debug if error.retryable else log.warning
            told("not reported", host=self.place.host, order=key.name, error=str(error))
            self._unreported.add(key)
            self.queue.retry(key)
            PASSES.labels(controller, "unreported").inc()
        except Exception:
            log.exception("pass failed", host=self.place.host, order=key.name)
            self.queue.retry(key)
            PASSES.labels(controller, "error").inc()
        else:
            self.queue.forget(key)
            self._again(key, result)
            outcome = type(result).__name__.lower()
            log.debug("pass", host=self.place.host, order=key.name, type=order.spec.type, result=outcome)
            PASSES.labels(controller, outcome).inc()
        PASS_SECONDS.labels(controller).observe(loop.time() - began)

    def _again(self, key: Key, result: Result) -> None:
        match result:
            case Done():
                self.queue.add_after(key, RESYNC * random.uniform(0.8, 1.2))  # noqa: S311 - spread, not secret
            case Requeue(after) | Wait(_, after):
                self.queue.add_after(key, after)
            case Failed():
                self.queue.retry(key)

    def _doubt(self) -> None:
        """The API server may be another one, which knows nothing of what is remembered here."""
        self.reflector.doubt()
        self._unmanaged.doubt()

    async def _watch_orphans(self) -> None:
        """Say in the log which of our domains have no work order. They are left running: nobody asked us to end them."""
        while True:
            await self.reflector.synced.wait()
            self._unmanaged.look()
            try:
                domains = await self._drivers.hypervisor.domains()
            except HypervisorError:
                domains = ()
            orphans = {d.marks.uid: d for d in domains if not self.orders.of_instance(d.marks.uid)}
            for uid in orphans.keys() - self._orphans:
                marks = orphans[uid].marks
                log.warning(
                    "a machine of ours has no work order; it is left as it is",
                    host=self.place.host,
                    uid=uid,
                    namespace=marks.namespace,
                    name=marks.name,
                    state=orphans[uid].state,
                )
            self._orphans = set(orphans)
            await asyncio.sleep(RESYNC * random.uniform(0.8, 1.2))  # noqa: S311 - spread, not secret

    async def _end(self) -> None:
        await self._stop.wait()
        while self._flow.running:
            self._flow.calm.clear()
            try:
                async with asyncio.timeout(FINISH_SECONDS):
                    await self._flow.calm.wait()
            except TimeoutError:
                log.info("passes under way are cut short", host=self.place.host, passes=self._flow.running)
                break
        raise _Stopped
