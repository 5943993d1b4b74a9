"""Routers and load balancers on this host: performs work orders of type Gateway."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from kumulus.api.balancing import PEM
from kumulus.api.gateways import GatewayFacts, GatewayOrder
from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState, WorkType
from kumulus.kube.errors import KubeError
from kumulus.runtime.result import Done, Failed, Requeue, Result
from kumulus_agents.agent.hold import MESSAGE_MAX
from kumulus_agents.agent.missing import Missing
from kumulus_agents.agent.networks import Networks
from kumulus_agents.agent.orders import Orders, unfit
from kumulus_agents.agent.secrets import Secrets
from kumulus_agents.network.protocol import Identity, NetworkError

log = structlog.get_logger(__name__)

AGAIN = 2.0
"""What waits is looked at again after so many seconds, should nobody tell."""
LOOK_EVERY = 2.0
"""Who is active, and which members are well, is seen within so many seconds."""
MEMBERS_EVERY = 5.0
"""Which members are well is reported at most so often: one that wavers is not a write each time."""
WAITS = ("SegmentNotReady", "SecretNotFound")


class Gateways:
    """The gateways of one host."""

    def __init__(self, orders: Orders, networks: Networks, secrets: Secrets, *, wake: Callable[[str], None]) -> None:
        """`wake` is told the name of an order that is to be looked at."""
        self._orders = orders
        self._networks = networks
        self._secrets = secrets
        self._wake = wake
        self._told: dict[str, float] = {}
        """When it was seen last that something else is so of a gateway, by the name of its order."""

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        self._told.pop(name, None)

    def arrived(self, network: str) -> None:
        """A network is here: gateways may wait for it."""
        for order in self._all():
            legs = order.spec.gateway.legs if order.spec.gateway is not None else ()
            if order.status.state is not WorkState.READY and any(leg.network == network for leg in legs):
                self._wake(order.name)

    async def perform(self, order: WorkOrder) -> Result:
        """One pass over a gateway. Raises `KubeError`."""
        gateway = order.spec.gateway
        if gateway is None:
            return Done()
        if (refusal := unfit(order)) is not None:
            await self._orders.report(order, refusal)
            return Done()
        try:
            if order.deleting:
                await self._networks.remove_gateway(gateway.uid)
                await self._orders.release(order)
                return Done()
            certificates = await self._certificates(gateway)
            facts = await self._networks.ensure_gateway(gateway, certificates)
        except NetworkError as error:
            return await self._failed(order, error)
        status = WorkOrderStatus(observed_generation=order.metadata.generation, state=WorkState.READY, gateway=facts)
        await self._orders.report(order, status)
        return Done()

    async def watch(self) -> None:
        """Look until cancelled whether what was reported of gateways is still so."""
        while True:
            await asyncio.sleep(LOOK_EVERY * random.uniform(0.9, 1.1))  # noqa: S311 - spread, not secret
            for order in self._all():
                gateway = order.spec.gateway
                if gateway is None or order.deleting or unfit(order) is not None:
                    continue
                try:
                    facts = await self._networks.gateway_facts(gateway)
                except NetworkError as error:
                    log.debug("gateway not looked at", order=order.name, error=str(error))
                    continue
                except Exception:  # of a driver: the agent has more to do than this
                    log.exception("gateway not looked at", order=order.name)
                    continue
                if self._is_news(order, facts):
                    self._wake(order.name)

    def _is_news(self, order: WorkOrder, facts: GatewayFacts) -> bool:
        """Whether something has to be reported now."""
        known, now = order.status.gateway or GatewayFacts(), asyncio.get_running_loop().time()
        if facts == known:
            return False
        same_host = known.active == facts.active
        if same_host and now - self._told.get(order.name, float("-inf")) < MEMBERS_EVERY:
            return False
        self._told[order.name] = now
        return True

    def _all(self) -> list[WorkOrder]:
        return [order for order in self._orders.store if order.spec.type is WorkType.GATEWAY]

    async def _certificates(self, gateway: GatewayOrder) -> dict[str, Identity]:
        """What the host has not got yet of what TLS is ended with, by digests. Raises `NetworkError`."""
        missing = await self._networks.missing_certificates(gateway)
        wanted = {
            one.certificate.digest: one.certificate.secret
            for one in (gateway.balancer.listeners if gateway.balancer is not None else ())
            if one.certificate is not None and one.certificate.digest in missing
        }
        found: dict[str, Identity] = {}
        for digest, secret in wanted.items():
            try:
                data = await self._secrets.read(secret, "a load balancer's certificate")
            except Missing as error:
                raise NetworkError(str(error), reason=error.reason) from None
            except KubeError as error:
                raise NetworkError(
                    "The Secret with the certificate could not be read from the API server. It is tried again.",
                    reason="SecretNotFound",
                ) from error
            found[digest] = Identity(data.get(PEM, b""))
        return found

    async def _failed(self, order: WorkOrder, error: NetworkError) -> Result:
        passing = error.reason in WAITS
        if not passing and order.status.reason != error.reason:
            log.warning("gateway not here", order=order.name, reason=error.reason, error=str(error))
        status = WorkOrderStatus(
            observed_generation=order.metadata.generation,
            state=WorkState.WAITING if passing else WorkState.FAILED,
            reason=error.reason,
            message=str(error)[:MESSAGE_MAX],
            gateway=await self._facts(order),
        )
        await self._orders.report(order, status)
        return Requeue(AGAIN) if passing else Failed(error.reason)

    async def _facts(self, order: WorkOrder) -> GatewayFacts | None:
        """What is so of a gateway, also of one that is not as it was ordered: what runs of it goes on, or does not. What is
        known when the driver cannot say."""
        known = order.status.gateway
        if order.spec.gateway is None:
            return known
        try:
            facts = await self._networks.gateway_facts(order.spec.gateway)
        except NetworkError:
            return known
        return known if facts == (known or GatewayFacts()) else facts
