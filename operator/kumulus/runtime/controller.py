"""Runs one reconciler: queue, workers, back-off, metrics. Works only while the process leads."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import structlog

from kumulus.kube.errors import Conflict, KubeError, NotLeading
from kumulus.kube.queue import WorkQueue
from kumulus.kube.store import Key
from kumulus.runtime import metrics
from kumulus.runtime.reconciler import Reconciler
from kumulus.runtime.result import Done, Failed, Requeue, Result, Wait

log = structlog.get_logger(__name__)

RESYNC_SECONDS = 300.0
GRACE_SECONDS = 10.0


class Controller:
    """A reconciler at work."""

    def __init__(self, reconciler: Reconciler, *, workers: int = 8, leading: Callable[[], bool] = lambda: True) -> None:
        self.reconciler = reconciler
        self._workers = workers
        self._leading = leading
        self._queue: WorkQueue[Key] = WorkQueue()
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        reconciler.attach(self._enqueue)

    def _enqueue(self, key: Key, *, urgent: bool = False) -> None:
        if self._task is not None:
            self._queue.add(key, urgent=urgent)

    @property
    def depth(self) -> int:
        """Keys that wait."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in work."""
        return self._queue.idle

    async def start(self) -> None:
        """Begin to work: a pass over everything there is, then over what changes."""
        await self.stop()
        self._queue = WorkQueue()
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"controller {self.reconciler.name}")
        for key in self.reconciler.everything():
            self._queue.add(key)

    async def stop(self) -> None:
        """Stop; passes that are under way may end within a grace period."""
        if self._task is None:
            return
        task, self._task = self._task, None
        self._stopping.set()
        await asyncio.gather(task, return_exceptions=True)
        metrics.QUEUE_DEPTH.labels(self.reconciler.name).set(0)

    async def _run(self) -> None:
        workers = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        try:
            await self._stopping.wait()
            deadline = asyncio.get_running_loop().time() + GRACE_SECONDS
            while self._queue.running and asyncio.get_running_loop().time() < deadline:
                await asyncio.wait(workers, timeout=0.02)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self) -> None:
        name = self.reconciler.name
        while not self._stopping.is_set():
            key = await self._queue.get()
            metrics.QUEUE_DEPTH.labels(name).set(len(self._queue))
            started = time.perf_counter()
            outcome = "error"
            try:
                if self._stopping.is_set():
                    return
                if not self._leading():
                    outcome = "not leading"
                    self._queue.add_after(key, 1.0)
                    continue
                result = await self.reconciler.reconcile(key)
                outcome = type(result).__name__.lower()
                self._follow(key, result)
            except Conflict as error:
                outcome = "conflict"
                log.debug("conflict", controller=name, key=str(key), error=str(error))
                self._queue.retry(key)
            except NotLeading:
                outcome = "not leading"
                self._queue.add_after(key, 1.0)
            except KubeError as error:
                again = self._queue.retry(key)
                log.warning("pass failed", controller=name, key=str(key), error=str(error), again_in=round(again, 1))
            except Exception:
                again = self._queue.retry(key)
                log.exception("pass failed", controller=name, key=str(key), again_in=round(again, 1))
            finally:
                self._queue.done(key)
                seconds = time.perf_counter() - started
                log.debug("pass", controller=name, key=str(key), result=outcome, seconds=round(seconds, 4))
                metrics.PASS_SECONDS.labels(name).observe(seconds)
                metrics.PASSES.labels(name, outcome).inc()

    def _follow(self, key: Key, result: Result) -> None:
        if isinstance(result, Failed):
            again = self._queue.retry(key)
            log.info(
                "will try again",
                controller=self.reconciler.name,
                key=str(key),
                reason=result.reason,
                again_in=round(again, 1),
            )
            return
        self._queue.forget(key)
        if isinstance(result, Requeue):
            self._queue.add_after(key, result.after)
        elif isinstance(result, Wait):
            self._queue.add_after(key, result.after * random.uniform(0.9, 1.1))  # noqa: S311 - spread, not secret
        elif isinstance(result, Done):
            self._queue.add_after(key, RESYNC_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
