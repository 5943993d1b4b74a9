"""Certificates of hosts: signed when an agent asks for one, and again before it ends.

The agent asks in its report, which nobody else can write; the answer is a work order in the same namespace. Whom a
certificate names comes from that namespace and not from the request, so no agent can become another.
"""

from __future__ import annotations

import random

import structlog

from kumulus.api.base import ObjectRef
from kumulus.api.fabric import HOST_NAMESPACE_PREFIX, Host, host_namespace
from kumulus.api.host import CertificateOrder, HostReport, WorkOrder, WorkOrderSpec, WorkType
from kumulus.api.order_names import CERTIFICATE_ORDER
from kumulus.kube.errors import AlreadyExists, NotFound
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.fabric import authority
from kumulus_controllers.fabric.authority import Authority, BadRequest
from kumulus_controllers.orders import host_of, work_orders

log = structlog.get_logger(__name__)

REREAD_SECONDS = 60.0
"""The authority's Secret is read at most so often."""


class CertificateReconciler:
    """Gives each host that asks a certificate."""

    name = "certificate"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._hosts = services.caches.store(Host)
        self._reports = services.caches.store(HostReport)
        self._orders = work_orders(services.caches)
        self._authority: tuple[float, Authority] | None = None

    def attach(self, enqueue: Enqueue) -> None:
        """Agents that ask; orders that were taken away; hosts that get their namespace."""

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            if after is not None and (before is None or before.status.transfer != after.status.transfer):
                enqueue(Key(None, (after.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX)))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if after is None and before is not None and before.spec.type is WorkType.CERTIFICATE:
                enqueue(Key(None, host_of(before)))

        self._reports.listen(report_changed)
        self._orders.listen(order_changed)

    def everything(self) -> list[Key]:
        """All hosts."""
        return self._hosts.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a host's certificate."""
        host = self._hosts.get(key.name)
        if host is None:
            return Gone()
        report = self._reports.get(host.name, host_namespace(host.name))
        asked = report.status.transfer if report is not None else None
        if host.deleting or host.paused or asked is None:
            return Done()
        now = self._services.clock.now()
        try:
            signer = await self._signer()
            order = self._orders.get(CERTIFICATE_ORDER, host_namespace(host.name))
            given = order.spec.certificate if order is not None else None
            left = signer.good_for(given.certificate, asked.request, now) if given is not None else None
            if not left:
                fresh = signer.sign(asked.request, host.name, now)
                await self._give(host, order, fresh, signer.pem())
                left = signer.good_for(fresh, asked.request, now)
        except BadRequest as error:
            log.warning("no certificate for a host", host=host.name, error=str(error))
            return Wait("BadRequest", 300.0)
        except ValueError as error:
            log.error("the Secret of the certificate authority cannot be used", error=str(error))
            return Wait("BadAuthority", 60.0)
        return Requeue(left.total_seconds() * random.uniform(0.9, 1.0) + 1)  # noqa: S311 - spread, not secret

    async def _signer(self) -> Authority:
        clock = self._services.clock
        if self._authority is None or clock.monotonic() - self._authority[0] > REREAD_SECONDS:
            self._authority = (clock.monotonic(), await authority.load(self._services.client, clock.now()))
        return self._authority[1]

    async def _give(self, host: Host, order: WorkOrder | None, certificate: str, authorities: str) -> None:
        client, namespace = self._services.client, host_namespace(host.name)
        spec = WorkOrderSpec(
            type=WorkType.CERTIFICATE,
            for_=ObjectRef(kind=Host.KIND.kind, name=host.name, uid=host.uid),
            term=self._services.term(),
            certificate=CertificateOrder(certificate=certificate, authorities=authorities),
        )
        try:
            if order is None:
                body = {"metadata": {"name": CERTIFICATE_ORDER}, "spec": spec.to_json()}
                self._orders.apply(await client.create(WorkOrder.KIND, body, namespace))
            else:
                change = {
                    "metadata": {"resourceVersion": order.metadata.resource_version},
                    "spec": merge_patch(order.spec.to_json(), spec.to_json()),
                }
                self._orders.apply(await client.patch(WorkOrder.KIND, order.name, change, namespace))
        except (AlreadyExists, NotFound):
            return
        log.info("certificate given", host=host.name)
