"""Where the objects of a world are: on a real API server, or on one in memory, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kumulus.kube import errors
from kumulus.kube.client import KubeClient
from kumulus.runtime.clock import Clock, SystemClock
from tests.fault.memory_api import MemoryApi, MemoryClient, moment
from tests.fault.parties import Life, Tapped
from tests.unit.kube.virtual_time import VirtualLoop

Raw = dict[str, Any]
T = TypeVar("T")
AWAY = 60.0
"""Seconds that a user waits for an API server."""


class Backend(Protocol):
    """Where the objects are."""

    clock: Clock

    async def client(self, name: str, life: Life | None = None) -> KubeClient:
        """A client; with a life, one of that life."""


class _MemoryTapped(Tapped, MemoryClient):
    """Faults in memory."""


class _RealTapped(Tapped, KubeClient):
    """Faults before a real API server."""


class _Patient(KubeClient):
    """A user, who tries again while the API server is away."""

    async def request(self, *arguments: Any, **options: Any) -> Raw:
        end = asyncio.get_running_loop().time() + AWAY
        while True:
            try:
                return await super().request(*arguments, **options)
            except errors.KubeError as error:
                away = isinstance(error, errors.Unreachable) or (
                    isinstance(error, errors.ApiError) and (error.status >= 500 or error.status == 429)
                )
                if not away or asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(0.1)


class VirtualClock:
    """The loop's clock, which may jump from timer to timer."""

    def now(self) -> Any:
        return moment()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Memory:
    """An API server in memory."""

    def __init__(self, seed: int = 0, latency: float = 0.0) -> None:
        self.api = MemoryApi(seed)
        self.clock: Clock = VirtualClock()
        self._latency, self._seed = latency, seed

    async def client(self, name: str, life: Life | None = None) -> KubeClient:
        self._seed += 1
        if life is None:
            return MemoryClient(self.api, seed=self._seed)
        client = _MemoryTapped(self.api, latency=self._latency, seed=self._seed)
        client.life = life
        return client


class Real:
    """A real API server."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self.clock: Clock = SystemClock()

    async def client(self, name: str, life: Life | None = None) -> KubeClient:
        if life is None:
            return await _Patient.from_kubeconfig(self._kubeconfig, user_agent=f"fault-{name}")
        client = await _RealTapped.from_kubeconfig(self._kubeconfig, user_agent=f"fault-{name}")
        assert isinstance(client, _RealTapped)
        client.life = life
        return client


class WorldLoop(VirtualLoop):
    """Virtual time, in which what is given to a thread is done at once: else time would fly while the thread works. Each turn
    takes a microsecond: who asks to be woken in no time at all would be for ever."""

    def _run_once(self) -> None:
        self._instant += 1e-6
        super()._run_once()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in virtual time."""
    with asyncio.Runner(loop_factory=WorldLoop) as runner:
        return runner.run(main)
