"""A process of Kumulus: modules, caches, leadership, controllers, health; from start to graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import structlog

from kumulus.api.base import Kind
from kumulus.kube.client import KubeClient
from kumulus.kube.election import Elector
from kumulus.kube.errors import KubeError
from kumulus.kube.place import Place
from kumulus.kube.reflector import Reflector, fill, take
from kumulus.kube.store import Store, key_of
from kumulus.runtime import http, metrics
from kumulus.runtime.clock import Clock, SystemClock
from kumulus.runtime.controller import Controller
from kumulus.runtime.kopf_shell import KopfShell
from kumulus.runtime.modules import ModuleTree, discover
from kumulus.runtime.reconciler import Caches, Services
from kumulus.runtime.settings import ProcessSettings

log = structlog.get_logger(__name__)

SWEEP_AFTER = 5.0
"""kopf lists again after a gap but does not say what vanished in it; so many seconds later we look ourselves."""


class Process:
    """One process. `run` returns after SIGTERM, SIGINT or `stop`."""

    def __init__(self, settings: ProcessSettings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._caches = Caches()
        self._controllers: list[Controller] = []
        self._stop = asyncio.Event()
        self._elector: Elector | None = None
        self._shell: KopfShell | None = None
        self._sweeps: dict[str, asyncio.TimerHandle] = {}
        self._sweeping: set[asyncio.Task[None]] = set()
        self._client: KubeClient | None = None
        self._by_kind: dict[Kind, Store[Any]] = {}
        self.port: int | None = None
        """Port of health and metrics, once they are served."""

    def stop(self) -> None:
        """Ask for a graceful stop."""
        self._stop.set()

    async def run(self) -> None:
        """Run until asked to stop. Raises what keeps the process from starting, or when kopf dies."""
        settings = self._settings
        if settings.kubeconfig is not None:
            os.environ["KUBECONFIG"] = str(settings.kubeconfig)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
        tree = ModuleTree(discover(), include=settings.include, exclude=settings.exclude)
        if tree.unknown:
            known = ", ".join(node.name for node in tree.nodes)
            raise RuntimeError(f"there is no module {', '.join(tree.unknown)}; there are: {known}")
        client = await KubeClient.from_kubeconfig(
            settings.kubeconfig,
            user_agent="kumulus-controllers",
            on_write=metrics.count_write,
            may_write=self._leading,
        )
        self._client = client
        # The seat itself is taken and held with a client of its own: no pass may be in its way, nor the guard above.
        seat = await KubeClient.from_kubeconfig(
            settings.kubeconfig, user_agent="kumulus-election", on_write=metrics.count_write, pool_size=2
        )
        place = Place(settings.lock_file) if settings.lock_file is not None else None
        try:
            async with http.serve(
                settings.http_port,
                address=settings.http_address,
                healthy={"kopf": lambda: self._shell.why() if self._shell is not None else None},
                ready={"caches": lambda: None if self._caches.synced else "still reading what there is"},
            ) as self.port:
                await self._run(client, seat, tree, place)
        finally:
            await tree.stop()
            await client.close()
            await seat.close()
            # Last of all, because for whoever gets it this process is dead.
            if place is not None:
                place.leave()

    async def _run(self, client: KubeClient, seat: KubeClient, tree: ModuleTree, place: Place | None) -> None:
        settings = self._settings
        services = Services(client, self._caches, self._clock, self._term)
        reconcilers = await tree.setup(services, settings.modules)
        self._controllers = [
            Controller(reconciler, workers=settings.workers, leading=self._leading) for reconciler in reconcilers
        ]
        log.info("modules", loaded=[node.name for node in tree.nodes if node.module and node.state == "loaded"])
        self._by_kind = {store.model.KIND: store for store in self._caches.watched()}
        shell = self._shell = KopfShell(list(self._by_kind), self._feed, settings.identity)
        self._elector = Elector(
            seat,
            namespace=settings.namespace,
            name=settings.lease,
            identity=settings.identity,
            duration=settings.lease_seconds,
            place=place,
            on_started=self._lead,
            on_stopped=self._follow,
        )
        # Without reconcilers there is nothing to lead: a process of services leaves the seat to who has some.
        if reconcilers:
            shell.start()
        tasks = [
            asyncio.create_task(Reflector(part.store, client, fields=part.fields, labels=part.labels).run())
            for part in self._caches.reflections()
        ]
        stopping = asyncio.create_task(self._stop.wait())
        broken = asyncio.create_task(shell.failed.wait())
        campaign = asyncio.create_task(self._campaign(client) if reconcilers else self._stop.wait())
        watched: list[asyncio.Task[Any]] = [*tasks, stopping, broken, campaign]
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, campaign):
                if task.done() and not task.cancelled() and task.exception() is not None:
                    error = task.exception()
                    log.error("a part of the process died", exc_info=error)
                    raise RuntimeError(f"a part of the process died: {error!r}") from error
            if broken.done():
                raise RuntimeError("kopf ended by itself; see the log above")
        finally:
            log.info("stopping")
            await asyncio.gather(*(controller.stop() for controller in self._controllers))
            for task in (*watched, *self._sweeping):
                task.cancel()
            await asyncio.gather(*watched, *self._sweeping, return_exceptions=True)
            for timer in self._sweeps.values():
                timer.cancel()
            await shell.stop()

    async def _campaign(self, client: KubeClient) -> None:
        """Read everything there is, then take part in the election: absence of an object must mean something before we act."""
        pause = 0.2
        for store in self._caches.watched():
            while True:
                try:
                    await fill(store, client, store.model.KIND, None)
                    break
                except KubeError as error:
                    log.warning("cannot read yet", kind=store.model.KIND.kind, error=str(error))
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, 10.0)
        while not self._caches.synced:  # noqa: ASYNC110 - stores know nothing of the loop
            await asyncio.sleep(0.02)
        assert self._elector is not None
        await self._elector.run()

    def _term(self) -> int:
        return self._elector.term or 0 if self._elector else 0

    def _leading(self) -> bool:
        return self._elector is not None and self._elector.leading

    async def _lead(self, term: int) -> None:
        metrics.LEADING.labels(self._settings.lease).set(1)
        await self._catch_up()
        for controller in self._controllers:
            await controller.start()

    async def _catch_up(self) -> None:
        """Know all that was given away before something is. Without an answer in time we go on with what the watches say."""
        assert self._client is not None
        for store in self._caches.reservations():
            try:
                async with asyncio.timeout(self._settings.lease_seconds / 3):
                    await fill(store, self._client, store.model.KIND, None)
            except (KubeError, TimeoutError) as error:
                log.warning("not listed again", kind=store.model.KIND.kind, error=str(error) or "timed out")

    async def _follow(self) -> None:
        metrics.LEADING.labels(self._settings.lease).set(0)
        await asyncio.gather(*(controller.stop() for controller in self._controllers))

    def _feed(self, kind: Kind, type_: str | None, raw: dict[str, Any]) -> None:
        store = self._by_kind[kind]
        if type_ == "DELETED":
            store.remove(key_of(raw), raw["metadata"].get("uid"))
            return
        raw["metadata"] = dict(raw["metadata"])
        take(store, raw)
        if type_ is None:
            self._plan_sweep(store)

    def _plan_sweep(self, store: Store[Any]) -> None:
        name = store.model.KIND.plural
        if name in self._sweeps:
            self._sweeps[name].cancel()
        self._sweeps[name] = asyncio.get_running_loop().call_later(SWEEP_AFTER, self._start_sweep, store)

    def _start_sweep(self, store: Store[Any]) -> None:
        self._sweeps.pop(store.model.KIND.plural, None)
        task = asyncio.create_task(self._sweep(store))
        self._sweeping.add(task)
        task.add_done_callback(self._sweeping.discard)

    async def _sweep(self, store: Store[Any]) -> None:
        assert self._client is not None
        try:
            await fill(store, self._client, store.model.KIND, None)
        except KubeError as error:
            log.warning("sweep failed", kind=store.model.KIND.kind, error=str(error))
            self._plan_sweep(store)
