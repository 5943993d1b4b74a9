"""The networks of this host, as the agent's performers use them: which driver has what, one thing at a time for each uid.

Performs for orders; `tend` removes what nobody ordered, and mends what somebody changed. Only what drivers say is Kumulus'
own is touched, and only when all orders of the host are known.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from weakref import WeakValueDictionary

import structlog

from kumulus.api.gateways import GatewayFacts, GatewayFunction, GatewayOrder
from kumulus.api.host import DriverFunctions, DriverUplinks, FunctionFacts, NetworkFacts, WorkType
from kumulus.api.order_names import gateway_order_name, segment_order_name
from kumulus.api.segments import NetworkDriverName, Nic, SegmentFacts, SegmentOrder
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.traffic import Counted
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.metadata.keeper import Metadata
from kumulus_agents.network.connections import Connection
from kumulus_agents.network.protocol import (
    Dropped,
    Foreign,
    GatewayDriver,
    Identity,
    KnowsConnections,
    NetworkDriver,
    NetworkError,
    Plug,
    Port,
    Traffic,
    Uplinks,
)

log = structlog.get_logger(__name__)

TEND_EVERY = 20.0
"""What somebody changed by hand is noticed within so many seconds."""
GUARD_AGAIN = 5.0
"""A driver that could not have filters in force tries again after so many seconds."""
DEVICES_MOST = 128
"""What a report takes."""
DEVICE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
TIDY_EVERY = 3
"""What nobody ordered is looked for every so many times."""


class Networks:
    """Of one host."""

    def __init__(
        self,
        drivers: Mapping[NetworkDriverName, NetworkDriver],
        orders: Orders,
        hypervisor: Hypervisor,
        *,
        metadata: Metadata | None = None,
        underlay: Callable[[], str | None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
        port_removed: Callable[[], None] = lambda: None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`underlay` says at which address other hosts reach this one's tunnels; `changed` is told when `facts` says
        something else; `port_removed` when a network may be free of ports; `ready` when a driver can work that could not."""
        self._drivers = drivers
        self._orders = orders
        self._hypervisor = hypervisor
        self._metadata = metadata
        self._underlay = underlay
        self._changed = changed
        self._port_removed = port_removed
        self._tell_ready = ready
        self._problems: dict[NetworkDriverName, NetworkError] = {}
        self._ready: set[NetworkDriverName] = set()
        self._functions: dict[NetworkDriverName, Mapping[GatewayFunction, str | None]] = {}
        self._uplinks: dict[NetworkDriverName, Uplinks] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._foreign: Sequence[Foreign] = ()
        self._unserved = asyncio.Event()
        """Metadata may not be served in all networks."""
        self._looked = asyncio.Event()
        """Every driver was asked once whether it can work here; until then nobody is refused."""
        if not drivers:
            self._looked.set()

    async def looked(self, seconds: float) -> None:
        """Return when every driver was asked whether it can work here, after so many seconds at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._looked.wait()

    def facts(self) -> NetworkFacts | None:
        """What is reported of the host; nothing before it is known."""
        if not self._drivers or not (self._ready or self._problems):
            return None
        lacks = "; ".join(f"{name}: {problem}" for name, problem in sorted(self._problems.items()))
        return NetworkFacts(
            drivers=tuple(sorted(self._ready)),
            functions=tuple(_functions(name, self._functions.get(name, {})) for name in sorted(self._ready)),
            uplinks=tuple(_uplinks(name, self._uplinks.get(name, Uplinks())) for name in sorted(self._ready)),
            underlay=self._underlay(),
            message=lacks[:1024] if lacks else None,
        )

    async def ensure_segment(self, segment: SegmentOrder) -> SegmentFacts:
        """Have the network here. Raises `NetworkError`."""
        async with self._one_at_a_time(segment.uid):
            driver = await self._driver(segment.driver)
            facts = await driver.ensure_segment(segment)
            if self._metadata is not None:
                await self._metadata.put_network(segment)
        self._unserved.set()
        return facts

    async def remove_segment(self, uid: str) -> None:
        """Have nothing of the network here. Raises `NetworkError(reason="SegmentInUse")`."""
        await self._looked.wait()
        async with self._one_at_a_time(uid):
            for driver in self._prepared():
                await driver.remove_segment(uid)
            await self._forget_network(uid)

    async def describe(self, uid: str, namespace: str, name: str, seed: Mapping[str, bytes]) -> None:
        """What the machine of that uid is told when it asks for its metadata."""
        if self._metadata is not None:
            await self._metadata.put_machine(uid, namespace, name, seed)

    async def forget_machine(self, uid: str) -> None:
        """The machine is gone."""
        if self._metadata is not None:
            await self._metadata.drop_machine(uid)

    def demand(self, nic: Nic) -> SegmentOrder:
        """The order of the interface's network. Raises `NetworkError(reason="SegmentNotReady")`."""
        order = self._orders.get(segment_order_name(nic.network))
        if order is None or order.deleting or order.spec.segment is None:
            raise NetworkError(f"the network of interface {nic.name} is not on this host yet", reason="SegmentNotReady")
        return order.spec.segment

    async def ensure_port(self, nic: Nic, machine: str) -> Plug:
        """Have the interface's filter in force. Raises `NetworkError`, also `SegmentNotReady`."""
        segment = self.demand(nic)
        async with self._one_at_a_time(nic.uid):
            driver = await self._driver(segment.driver)
            if self._metadata is not None:
                await self._metadata.put_nic(machine, nic, segment)
            return await driver.ensure_port(Port(nic, machine))

    async def connections(self, nic: Nic) -> Sequence[Connection]:
        """What connections of the interface its filter knows; none where that cannot be told. Raises `NetworkError`."""
        driver = await self._driver(self.demand(nic).driver)
        return await driver.connections(nic) if isinstance(driver, KnowsConnections) else ()

    async def know(self, nic: Nic, connections: Sequence[Connection]) -> None:
        """Have the interface's filter know connections. Raises `NetworkError`."""
        driver = await self._driver(self.demand(nic).driver)
        if isinstance(driver, KnowsConnections):
            await driver.know(nic, connections)

    async def remove_port(self, uid: str, machine: str) -> None:
        """Have nothing of the interface here; that machine's guest has let go of it. Another machine of this host is to have
        it: nothing. Raises `NetworkError`."""
        await self._looked.wait()
        async with self._one_at_a_time(uid):
            if all(
                order.spec.instance is None or order.spec.instance.uid == machine for order in self._orders.of_nic(uid)
            ):
                await self._remove_port(uid)

    async def ensure_gateway(self, gateway: GatewayOrder, certificates: Mapping[str, Identity]) -> GatewayFacts:
        """Have the gateway here; `certificates` are those that were missing. Raises `NetworkError`."""
        async with self._one_at_a_time(gateway.uid):
            driver = await self._gateway_driver(gateway.driver)
            return await driver.ensure_gateway(gateway, certificates)

    async def missing_certificates(self, gateway: GatewayOrder) -> frozenset[str]:
        """Digests of the certificates that a gateway needs and that are not here. Raises `NetworkError`."""
        return await (await self._gateway_driver(gateway.driver)).missing_certificates(gateway)

    async def gateway_facts(self, gateway: GatewayOrder) -> GatewayFacts:
        """What is so of a gateway that is here. Raises `NetworkError`."""
        async with self._one_at_a_time(gateway.uid):
            return await (await self._gateway_driver(gateway.driver)).gateway_facts(gateway.uid)

    async def remove_gateway(self, uid: str) -> None:
        """Have nothing of the gateway here. Raises `NetworkError`."""
        await self._looked.wait()
        async with self._one_at_a_time(uid):
            for driver in self._prepared():
                if isinstance(driver, GatewayDriver):
                    await driver.remove_gateway(uid)
        self._port_removed()

    async def tend(self, complete: Callable[[], Awaitable[object]]) -> None:
        """Prepare, tidy and mend until cancelled; tidying waits for `complete`, which says that all orders are known."""
        rounds = 0
        while True:
            await self._try("prepared", self.prepare)
            await complete()
            if rounds % TIDY_EVERY == 0:
                await self._try("tidied", self.tidy)
            await self._try("mended", self.mend)
            self._unserved.set()
            rounds += 1
            await asyncio.sleep(TEND_EVERY * random.uniform(0.9, 1.1))  # noqa: S311 - spread, not secret

    async def guard(self) -> None:
        """Have filters in force also between two rounds of `tend`, until cancelled."""
        await self._looked.wait()
        async with asyncio.TaskGroup() as tasks:
            for name, driver in self._drivers.items():
                tasks.create_task(self._guard(name, driver))

    async def _guard(self, name: NetworkDriverName, driver: NetworkDriver) -> None:
        async def once() -> None:
            for sentence in await driver.guard():
                log.warning("mended", what=sentence)

        while True:
            if name not in self._ready or not await self._try("guarded", once):
                await asyncio.sleep(GUARD_AGAIN)

    async def _try(self, what: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Whether that could be done; else why not is in the log, and what comes next is done all the same."""
        try:
            await work()
        except (NetworkError, HypervisorError) as error:
            log.warning(f"networks not {what}", reason=error.reason, error=str(error))
        except Exception:  # of a driver: the agent has more to do than this
            log.exception(f"networks not {what}")
        else:
            return True
        return False

    async def serve_metadata(self) -> None:
        """Have guests of all networks told of themselves until cancelled; nobody waits for it. While orders are still being
        listed, a network that is not among them may be one that comes yet."""
        while self._metadata is not None:
            await self._unserved.wait()
            self._unserved.clear()
            segments = (order.spec.segment for order in self._orders.store if order.spec.type is WorkType.SEGMENT)
            known = {segment.uid for segment in segments if segment is not None}
            try:
                await self._metadata.sync(known, complete=self._orders.store.synced)
            except Exception:  # the agent has more to do than this
                log.exception("metadata not served")

    async def prepare(self) -> None:
        """Look which drivers can work here, and what else they can make; those that could work are not asked again for that."""
        before = self.facts()
        try:
            for name, driver in self._drivers.items():
                if name not in self._ready:
                    await self._prepare(name, driver)
                if name in self._ready:
                    self._functions[name] = dict(await driver.functions())
                    self._uplinks[name] = await driver.uplinks()
        finally:
            self._looked.set()
        if self.facts() != before:
            self._changed()

    async def _prepare(self, name: NetworkDriverName, driver: NetworkDriver) -> None:
        try:
            await driver.prepare()
        except NetworkError as error:
            if str(self._problems.get(name)) != str(error):
                log.warning("no networks by this driver", driver=name, reason=error.reason, error=str(error))
            self._problems[name] = error
        else:
            self._ready.add(name)
            if self._problems.pop(name, None) is not None:
                self._tell_ready()

    async def tidy(self) -> None:
        """Remove what nobody ordered: first interfaces that no machine has either, then gateways, then networks.

        Raises `NetworkError`, `HypervisorError`.
        """
        domains = await self._hypervisor.domains()
        used = {nic.uid for domain in domains for nic in domain.nics}
        for driver in self._prepared():
            found = await driver.found()
            self._tell_foreign(found.foreign)
            for uid in sorted(found.ports - used):
                async with self._one_at_a_time(uid):
                    if not self._orders.of_nic(uid):
                        log.info("an interface that nobody ordered is removed", nic=uid)
                        await self._remove_port(uid)
            for uid in sorted(found.gateways):
                async with self._one_at_a_time(uid):
                    if self._orders.get(gateway_order_name(uid)) is None and isinstance(driver, GatewayDriver):
                        log.info("a gateway that nobody ordered is removed", gateway=uid)
                        await driver.remove_gateway(uid)
            for uid in sorted(found.segments):
                async with self._one_at_a_time(uid):
                    if self._orders.get(segment_order_name(uid)) is not None:
                        continue
                    try:
                        await driver.remove_segment(uid)
                        await self._forget_network(uid)
                        log.info("a network that nobody ordered is removed", network=uid)
                    except NetworkError as error:
                        if error.reason != "SegmentInUse":
                            raise
        if self._metadata is not None:
            ordered = {order.spec.instance.uid for order in self._orders.store if order.spec.instance is not None}
            await self._metadata.keep_machines(ordered.union(domain.marks.uid for domain in domains))

    async def mend(self) -> None:
        """Make so again what is not any more. A driver that cannot does not keep the others from it. Raises `NetworkError`."""
        failed: NetworkError | None = None
        for driver in self._prepared():
            try:
                for sentence in await driver.mend():
                    log.warning("mended", what=sentence)
            except NetworkError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def dropped(self) -> Sequence[Dropped]:
        """What rules have dropped on this host. Raises `NetworkError`."""
        found: list[Dropped] = []
        for driver in self._prepared():
            found += await driver.dropped()
        return found

    async def traffic(self) -> Sequence[Counted]:
        """What has passed the interfaces of this host. Raises `NetworkError`, `OSError`."""
        found: list[Traffic] = []
        for driver in self._prepared():
            found += await driver.traffic()
        return [self._counted(one) for one in found]

    def _counted(self, traffic: Traffic) -> Counted:
        for order in self._orders.of_nic(traffic.interface):
            whose = order.spec.for_
            for nic in order.spec.instance.nics if order.spec.instance is not None else ():
                if nic.uid == traffic.interface:
                    return Counted(traffic, whose.namespace or "", whose.name, nic.name)
        return Counted(traffic, "", "", "")

    def _tell_foreign(self, foreign: Sequence[Foreign]) -> None:
        if foreign != self._foreign:
            log.info("bridges and interfaces that are not ours", names=sorted(item.name for item in foreign)[:64])
        self._foreign = foreign

    async def _remove_port(self, uid: str) -> None:
        for driver in self._prepared():
            await driver.remove_port(uid)
        if self._metadata is not None:
            await self._metadata.drop_nic(uid)
        self._port_removed()

    async def _forget_network(self, uid: str) -> None:
        if self._metadata is not None:
            await self._metadata.drop_network(uid)
        self._unserved.set()

    async def _driver(self, name: NetworkDriverName) -> NetworkDriver:
        await self._looked.wait()
        if name in self._ready:
            return self._drivers[name]
        problem = self._problems.get(name)
        if problem is not None:
            raise NetworkError(str(problem), reason=problem.reason, retryable=problem.retryable)
        raise NetworkError(f"This host has no network driver {name}.", reason="NoSuchDriver", retryable=False)

    async def _gateway_driver(self, name: NetworkDriverName) -> GatewayDriver:
        driver = await self._driver(name)
        if not isinstance(driver, GatewayDriver):
            raise NetworkError(
                f"Network driver {name} of this host makes no routers or load balancers.",
                reason="GatewaysUnsupported",
                retryable=False,
            )
        return driver

    def _prepared(self) -> list[NetworkDriver]:
        return [driver for name, driver in self._drivers.items() if name in self._ready]

    def _one_at_a_time(self, uid: str) -> asyncio.Lock:
        return self._locks.setdefault(uid, asyncio.Lock())


def _uplinks(driver: NetworkDriverName, known: Uplinks) -> DriverUplinks:
    """As it is reported."""
    devices = tuple(sorted(filter(_is_reportable, known.devices)))[:DEVICES_MOST] if known.lack is None else ()
    return DriverUplinks(driver=driver, devices=devices, message=known.lack[:512] if known.lack is not None else None)


def _is_reportable(device: str) -> bool:
    """Whether an operator could name it."""
    return DEVICE_NAME.fullmatch(device) is not None


def _functions(driver: NetworkDriverName, functions: Mapping[GatewayFunction, str | None]) -> DriverFunctions:
    found = (FunctionFacts(name=name, message=why[:512] if why else None) for name, why in sorted(functions.items()))
    return DriverFunctions(driver=driver, functions=tuple(found))
