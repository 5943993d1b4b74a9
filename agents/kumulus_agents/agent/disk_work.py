"""What goes on for Disk and Snapshot orders beside their passes: imports, copies, merges, and the pauses after what
went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.order_names import pool_order_name
from kumulus.api.volume_order import DiskFacts
from kumulus.api.volumes import Progress
from kumulus.runtime.clock import Clock
from kumulus.runtime.result import Requeue, Result, Wait
from kumulus_agents.agent import hold
from kumulus_agents.agent.hold import Hold
from kumulus_agents.agent.orders import Orders
from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.protocol import ImportProgress, ProgressListener, StorageError

log = structlog.get_logger(__name__)

REPORT_EVERY = 2.0
"""Seconds between two reports of progress."""
QUIET = 1.0
"""Work that takes less, in seconds, is reported only when it is done."""
RETRY_FIRST = 10.0
IN_USE_EVERY = 10.0

WAITED_FOR = frozenset(
    {
        "WaitingForZone",
        "WaitingForUpload",
        "ImageNotReady",
        "VolumeNotReady",
        "SnapshotNotReady",
        "VolumeInUse",
        "VolumeBusy",
        "SnapshotInUse",
        "HypervisorUnavailable",
        "PoolNotAnswering",
        "SecretNotFound",
    }
)
"""Reasons that nobody has to do anything about but wait."""

AWAY = frozenset({"PoolNotThere", "PoolFailed", "PoolReadOnly", "PoolUnsafe"})
"""Reasons that say of a pool that it cannot be used: its own order is looked at then."""

Work = Callable[[ProgressListener], Awaitable[None]]


@dataclass(slots=True)
class _Job:
    """Work under way."""

    generation: int
    task: asyncio.Task[None]
    began: float
    progress: ImportProgress | None = None
    reported_at: float = field(default=float("-inf"))
    woken: bool = False
    """What it may come to wait for came while it ran: it may have looked just before."""


class DiskWork:
    """At most one job an order."""

    def __init__(self, orders: Orders, clock: Clock, tasks: asyncio.TaskGroup, *, wake: Callable[[str], None]) -> None:
        """`wake` has an order looked at soon, by name."""
        self._orders = orders
        self._clock = clock
        self._tasks = tasks
        self._wake = wake
        self._jobs: dict[str, _Job] = {}
        self._holds: dict[str, Hold] = {}

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        job = self._jobs.pop(name, None)
        if job is not None:
            job.task.cancel()
        self._holds.pop(name, None)

    def outdated(self, order: WorkOrder) -> bool:
        """Whether what is under way is for an older version of the order."""
        job = self._jobs.get(order.name)
        return job is not None and job.generation != order.metadata.generation

    async def under_way(self, order: WorkOrder, facts: DiskFacts) -> Result | None:
        """Report how far the job is, or why there is a pause; None when there is neither. Raises `KubeError`.

        `facts` are what is known apart from that.
        """
        job = self._jobs.get(order.name)
        if job is not None:
            return await self._report_progress(order, job, facts)
        held = hold.current(self._holds.get(order.name), order)
        if held is not None and self._clock.monotonic() < held.until:
            return await self.report_hold(order, held, facts)
        return None

    def begin(self, order: WorkOrder, work: Work) -> Result:
        """Begin a job; the order is looked at again when it ends. How it fails is kept as a pause."""
        task = self._tasks.create_task(self._run(order, work), name=f"disk work {order.name}")
        self._jobs[order.name] = _Job(order.metadata.generation, task, began=self._clock.monotonic())
        return Requeue(QUIET)

    async def cancel(self, name: str) -> None:
        """End the job of that order, if there is one, and wait until it has ended."""
        job = self._jobs.pop(name, None)
        if job is not None:
            job.task.cancel()
            await asyncio.wait([job.task])

    def settled(self, name: str) -> None:
        """All is well with that order."""
        self._holds.pop(name, None)

    def wake_waiting(self, name: str) -> None:
        """What that order waits for may have come."""
        if (job := self._jobs.get(name)) is not None:
            job.woken = True
        held = self._holds.get(name)
        if held is not None and held.reason in WAITED_FOR:
            del self._holds[name]
            self._wake(name)

    def pool_returned(self) -> None:
        """A pool can be used again: what failed for want of one is tried now."""
        for name in [name for name, held in self._holds.items() if held.reason in AWAY]:
            del self._holds[name]
            self._wake(name)

    def hold(self, order: WorkOrder, error: StorageError | HypervisorError) -> Hold:
        """Pause after an error."""
        before, now = self._holds.get(order.name), self._clock.monotonic()
        if error.reason in WAITED_FOR:
            held = hold.waiting(error.reason, str(error)[: hold.MESSAGE_MAX], order=order, before=before, now=now)
        else:
            log.warning("disk work failed", order=order.name, reason=error.reason, error=str(error))
            if order.spec.disk is not None and error.reason in {*AWAY, "NoSpace"}:
                self._wake(pool_order_name(order.spec.disk.pool.uid))
            held = hold.failed(
                error.reason,
                str(error),
                retryable=error.retryable,
                order=order,
                before=before,
                now=now,
                first=RETRY_FIRST,
            )
        self._holds[order.name] = held
        return held

    def in_use(self, order: WorkOrder, reason: str, message: str) -> Hold:
        """A pause of an order that is being deleted while somebody uses what it keeps. Not kept: each pass looks."""
        now = self._clock.monotonic() + IN_USE_EVERY
        return hold.waiting(reason, message, order=order, before=None, now=now)

    async def report_hold(self, order: WorkOrder, held: Hold, facts: DiskFacts) -> Result:
        """Report why there is a pause. Raises `KubeError`."""
        await self._orders.report(
            order,
            WorkOrderStatus(
                observed_generation=order.metadata.generation,
                state=held.state,
                reason=held.reason,
                message=held.message,
                disk=facts if facts != DiskFacts() else None,
                snapshot=order.status.snapshot,
            ),
        )
        return Wait(held.reason, max(held.until - self._clock.monotonic(), 0.0))

    async def _run(self, order: WorkOrder, work: Work) -> None:
        """Never fails: it would take the agent down."""
        name = order.name
        try:
            await work(lambda progress: self._progress(name, progress))
        except (StorageError, HypervisorError) as error:
            self.hold(order, error)
        except Exception as error:
            log.exception("disk work failed", order=name)
            why = f"the agent failed with {type(error).__name__}; its log has more"
            self.hold(order, StorageError(why, reason="AgentError"))
        else:
            self._holds.pop(name, None)
        finally:
            job = self._jobs.get(name)
            if job is not None and job.task is asyncio.current_task():
                del self._jobs[name]
                if job.woken:
                    self.wake_waiting(name)
        self._wake(name)

    def _progress(self, name: str, progress: ImportProgress) -> None:
        job = self._jobs.get(name)
        if job is not None:
            job.progress = progress

    async def _report_progress(self, order: WorkOrder, job: _Job, facts: DiskFacts) -> Result:
        now = self._clock.monotonic()
        due = max(job.began + QUIET, job.reported_at + REPORT_EVERY)
        if now < due:
            return Requeue(due - now)
        job.reported_at = now
        done = job.progress
        if done is not None:
            progress = Progress(bytes=done.bytes, total=done.total, rate=done.rate, remaining_seconds=done.remaining)
            facts = facts.model_copy(update={"progress": progress})
        await self._orders.report(
            order,
            WorkOrderStatus(
                observed_generation=order.metadata.generation,
                state=WorkState.WORKING,
                reason=done.stage if done is not None else "Queued",
                disk=facts,
                snapshot=order.status.snapshot,
            ),
        )
        return Requeue(REPORT_EVERY)
