"""The HostReport: what the agent found on its host. Written when it changed, and only then."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from kumulus.api.fabric import Capacity, CpuInfo, Versions
from kumulus.api.host import HostReport, HostReportStatus, MigrationEndpoint, NetworkFacts, TransferFacts
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists, KubeError, NotFound
from kumulus.kube.patching import merge_patch
from kumulus.runtime.clock import rfc3339
from kumulus_agents.hypervisor.foreign import ForeignDomain
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError, Inventory

log = structlog.get_logger(__name__)

REREAD_EVERY = 20
"""Every so many refreshes the report is read live, in case somebody removed it."""
EXPIRY_STEP = timedelta(minutes=30)
MACHINE_TYPES_MAX = 64
CPU_NAMES_MAX = 256


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What is known without asking the hypervisor."""

    addresses: Callable[[], tuple[str, ...]]
    agent: str
    kernel: str | None
    os: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """What the hypervisor said."""

    inventory: Inventory
    foreign: Sequence[ForeignDomain]


def clean(text: str, limit: int) -> str:
    """A text from outside, fit for a status: without control characters, cut. Pure."""
    return "".join("?" if unicodedata.category(c).startswith("C") else c for c in text)[:limit]


def derive(
    before: HostReportStatus,
    facts: MachineFacts,
    found: Found | HypervisorError,
    expires_at: datetime | None,
    transfer: TransferFacts | None = None,
    network: NetworkFacts | None = None,
    migration: MigrationEndpoint | None = None,
    orphans: int | None = None,
) -> HostReportStatus:
    """The report; what a hypervisor that does not answer said before is kept. Pure but for the addresses."""
    common = {
        "addresses": facts.addresses(),
        "credentials_expire_at": _rounded(expires_at),
        "transfer": transfer,
        "network": network,
        "migration": migration,
        "orphan_count": orphans,
    }
    if isinstance(found, HypervisorError):
        return before.model_copy(
            update={**common, "hypervisor_ready": False, "hypervisor_message": clean(str(found), 1024)}
        )
    inventory = found.inventory
    return HostReportStatus(
        capacity=Capacity(cpus=inventory.cpus, memory=inventory.memory),
        cpu=CpuInfo(
            model=inventory.cpu_model,
            vendor=inventory.cpu_vendor,
            architecture=inventory.architecture,
            acceleration=inventory.acceleration,
            models=_names(inventory.cpu_models),
            features=_names(inventory.cpu_features),
        ),
        versions=Versions(
            agent=facts.agent,
            hypervisor=inventory.hypervisor_version,
            emulator=inventory.emulator_version,
            kernel=facts.kernel,
            os=facts.os,
        ),
        machine_types=tuple(sorted(set(inventory.machine_types)))[:MACHINE_TYPES_MAX],
        features=tuple(sorted(inventory.features)),
        unmanaged_count=len(found.foreign),
        hypervisor_ready=True,
        hypervisor_message=None,
        **common,
    )


def _names(found: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({clean(name, 64) for name in found}))[:CPU_NAMES_MAX]


def _rounded(expires_at: datetime | None) -> str | None:
    if expires_at is None:
        return None
    return rfc3339(expires_at - timedelta(seconds=expires_at.timestamp() % EXPIRY_STEP.total_seconds()))


class Reporter:
    """Keeps one host's report true."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        host: str,
        hypervisor: Hypervisor,
        facts: MachineFacts,
        *,
        every: float,
        expires_at: Callable[[], datetime | None],
        transfer: Callable[[], TransferFacts | None] = lambda: None,
        network: Callable[[], NetworkFacts | None] = lambda: None,
        migration: Callable[[], MigrationEndpoint | None] = lambda: None,
        orphans: Callable[[], int | None] = lambda: None,
        replaced: Callable[[], None] = lambda: None,
    ) -> None:
        """`replaced`: told when the report that was written is gone, or another one: somebody deleted it, or the API server is
        another one. It is told before anything is said in the new one."""
        self._replaced = replaced
        self._uid: str | None = None
        self._orphans = orphans
        self._migration = migration
        self._network = network
        self._transfer = transfer
        self._client = client
        self._namespace = namespace
        self._host = host
        self._hypervisor = hypervisor
        self._facts = facts
        self._every = every
        self._expires_at = expires_at
        self._known: HostReportStatus | None = None
        self._refreshes = 0
        self._again = asyncio.Event()
        self._down = False

    @property
    def hypervisor_problem(self) -> str | None:
        """Why the hypervisor does not answer; None when it does."""
        if self._known is None:
            return "the host was not reported yet"
        return None if self._known.hypervisor_ready else self._known.hypervisor_message or "it does not answer"

    @property
    def orphans_told(self) -> int | None:
        """How many machines that nobody orders the report tells of now, as far as that is known."""
        return self._known.orphan_count if self._known is not None else None

    def refresh(self) -> None:
        """Something may have changed: look soon."""
        self._again.set()

    async def run(self) -> None:
        """Report until cancelled: at once, every so often, and when `refresh` says so."""
        while True:
            self._again.clear()
            try:
                await self.report()
                self._down = False
            except KubeError as error:
                if not self._down:
                    log.warning("host not reported", host=self._host, error=str(error))
                self._down, self._known = True, None
            try:
                async with asyncio.timeout(min(self._every, 5.0) if self._down else self._every):
                    await self._again.wait()
            except TimeoutError:
                continue

    async def report(self) -> bool:
        """Look once, and write if something changed. Raises `KubeError`."""
        self._refreshes += 1
        if self._known is None or self._refreshes % REREAD_EVERY == 0:
            self._known = await self._read()
        found = await self._look()
        after = self._derived(self._known, found)
        patch = merge_patch(self._known.to_json(), after.to_json())
        if not patch:
            return False
        try:
            answer = await self._patch(patch)
        except NotFound:
            self._known = await self._read()
            after = self._derived(self._known, found)
            answer = await self._patch(merge_patch(self._known.to_json(), after.to_json()))
        self._known = HostReport.parse(answer).status
        return True

    def _derived(self, before: HostReportStatus, found: Found | HypervisorError) -> HostReportStatus:
        said = self._transfer(), self._network(), self._migration(), self._orphans()
        return derive(before, self._facts, found, self._expires_at(), *said)

    async def _look(self) -> Found | HypervisorError:
        try:
            return Found(await self._hypervisor.inventory(), await self._hypervisor.foreign())
        except HypervisorError as error:
            return error

    async def _read(self) -> HostReportStatus:
        raw = await self._client.find(HostReport.KIND, self._host, self._namespace)
        if raw is None:
            try:
                raw = await self._client.create(
                    HostReport.KIND, {"metadata": {"name": self._host}, "spec": {}}, self._namespace
                )
            except AlreadyExists:
                raw = await self._client.get(HostReport.KIND, self._host, self._namespace)
        report = HostReport.parse(raw)
        if self._uid not in (None, report.uid):
            log.warning("the host's report is another one: everything is read anew", host=self._host)
            self._replaced()
        self._uid = report.uid
        return report.status

    async def _patch(self, patch: dict[str, Any]) -> dict[str, Any]:
        return await self._client.patch(
            HostReport.KIND, self._host, {"status": patch}, self._namespace, subresource="status"
        )
