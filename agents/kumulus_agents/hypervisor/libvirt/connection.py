"""One connection to libvirtd that stands up again by itself, and calls through it.

libvirt blocks, so calls run in a few threads; what is asked about one domain runs one at a time. A
call that was given up still runs in its thread and keeps its domain until it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import libvirt

from kumulus_agents.hypervisor.libvirt import errors, events
from kumulus_agents.hypervisor.libvirt.handles import ConnectionHandle, DomainHandle
from kumulus_agents.hypervisor.protocol import HypervisorError

THREADS = 8
"""libvirtd serves five calls of a connection at once; the others are for those that wait."""

BACK_OFF_FIRST = 0.1
BACK_OFF_MOST = 2.0
"""Seconds between attempts to connect."""

KEEP_ALIVE = (5, 3)
"""Seconds between questions whether libvirtd lives, and how many may stay unanswered."""

DEVICE_EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """Something happened to a domain. `lifecycle` is libvirt's event and detail, or None."""

    uuid: str
    name: str
    lifecycle: tuple[int, int] | None = None
    devices: bool = False
    """A device came, went, did not go, has other limits, or another size. With neither, its metadata changed, or its agent came or went."""


class Observer(Protocol):
    """Told in the event loop what the connection sees."""

    def connected(self) -> None:
        """The connection stands (again). Events may have been missed."""

    def happened(self, event: DomainEvent) -> None:
        """Something happened to a domain, ours or not."""


class Connection:
    """A connection to `uri`. `open` and `close` once each."""

    def __init__(self, uri: str, observer: Observer) -> None:
        self._uri = uri
        self._observer = observer
        self._handle: ConnectionHandle | None = None
        self._failure = "libvirt was not asked yet"
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="libvirt-call")
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._keeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Connect and keep connected, in the background."""
        events.ensure_running()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="libvirt-connection")

    async def close(self) -> None:
        """Disconnect. Calls that hang are not waited for."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self._pool.shutdown(wait=False)

    async def call(self, work: Callable[[ConnectionHandle], T], *, seconds: float, key: str | None = None) -> T:
        """What `work` returns, run in a thread with the connection; one at a time for each `key`.

        Raises `HypervisorError`: `HypervisorUnavailable` without a connection, `HypervisorTimeout` when it
        takes longer than so many seconds, its turn included. What has begun then still ends.
        """
        if key is None:
            return await self._run(work, None, seconds)
        lock = self._locks.setdefault(key, asyncio.Lock())
        begin = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(seconds):
                await lock.acquire()
        except TimeoutError:
            raise _timeout("its turn, because an earlier one about the same machine still runs", seconds) from None
        return await self._run(work, lock, seconds - (asyncio.get_running_loop().time() - begin))

    async def _run(self, work: Callable[[ConnectionHandle], T], lock: asyncio.Lock | None, seconds: float) -> T:
        handle = self._handle
        if handle is None:
            if lock is not None:
                lock.release()
            raise HypervisorError(f"libvirt cannot be reached: {self._failure}", reason=errors.UNAVAILABLE)
        running = self._pool.submit(_guarded, work, handle)
        future = asyncio.wrap_future(running)
        future.add_done_callback(functools.partial(_ended, lock))
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(future)
        except TimeoutError:
            running.cancel()
            raise _timeout("an answer", seconds) from None
        except asyncio.CancelledError:
            running.cancel()
            raise

    async def _keep(self) -> None:
        pause = BACK_OFF_FIRST
        while True:
            link = _Link(self._uri, self._observer)
            try:
                self._handle = await link.open()
            except HypervisorError as error:
                self._failure = str(error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACK_OFF_MOST)
                continue
            pause = BACK_OFF_FIRST
            try:
                asyncio.get_running_loop().call_soon(self._observer.connected)
                await link.lost.wait()
                self._failure = "libvirtd closed the connection"
            finally:
                self._handle = None
                link.close()
            await asyncio.sleep(pause)


class _Link:
    """One life of the connection. Threads hand over to the event loop it was made in."""

    def __init__(self, uri: str, observer: Observer) -> None:
        self.lost = asyncio.Event()
        self._uri = uri
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        self._guard = threading.Lock()
        """Held by the thread that registers callbacks or takes them back."""
        self._handle: ConnectionHandle | None = None
        self._callbacks: list[int] = []

    async def open(self) -> ConnectionHandle:
        """The connection, with events registered. Raises `HypervisorError`.

        In a thread of its own that does not keep the process from ending: libvirtd may take the connection
        and never answer, and that has no limit of its own.
        """
        result: Future[ConnectionHandle] = Future()
        threading.Thread(target=self._open, args=(result,), name="libvirt-open", daemon=True).start()
        try:
            return await asyncio.wrap_future(result)
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Let go. The connection itself closes with the last call that still uses it.

        (`virConnectClose` under a running call would free what the call works on.) In a thread of its own,
        because taking the callbacks back asks libvirtd.
        """
        self._closed.set()
        threading.Thread(target=self._release, name="libvirt-close", daemon=True).start()

    def _open(self, result: Future[ConnectionHandle]) -> None:
        try:
            handle: ConnectionHandle = libvirt.open(self._uri)
        except libvirt.libvirtError as error:
            _settle(result, error=HypervisorError(errors.translate(error).args[0], reason=errors.UNAVAILABLE))
            return
        with self._guard:
            self._handle = handle
            try:
                handle.setKeepAlive(*KEEP_ALIVE)
                handle.registerCloseCallback(self._on_close, None)
                register = functools.partial(handle.domainEventRegisterAny, None)
                self._callbacks.append(register(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None))
                self._callbacks.append(register(libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._on_metadata, None))
                self._callbacks.append(register(libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE, self._on_tunable, None))
                agent = libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE
                self._callbacks.append(register(agent, self._on_agent, None))
                amount = libvirt.VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE
                self._callbacks.append(register(amount, self._on_amount, None))
                amount = libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE
                self._callbacks.append(register(amount, self._on_balloon, None))
                for event in DEVICE_EVENTS:
                    self._callbacks.append(register(event, self._on_device, None))
            except libvirt.libvirtError as error:
                self._closed.set()
                _settle(result, error=errors.translate(error))
        if self._closed.is_set() or not _settle(result, value=handle):
            self._release()

    def _release(self) -> None:
        with self._guard:
            handle, self._handle = self._handle, None
            if handle is None:
                return
            for callback in self._callbacks:
                with contextlib.suppress(libvirt.libvirtError):
                    handle.domainEventDeregisterAny(callback)
            with contextlib.suppress(libvirt.libvirtError):
                handle.unregisterCloseCallback()

    def _on_close(self, _handle: ConnectionHandle, _reason: int, _opaque: None) -> None:
        self._hand_over(self.lost.set)

    def _on_lifecycle(
        self, _handle: ConnectionHandle, domain: DomainHandle, event: int, detail: int, _opaque: None
    ) -> None:
        told = DomainEvent(domain.UUIDString(), domain.name(), (event, detail))
        self._hand_over(functools.partial(self._observer.happened, told))

    def _on_metadata(
        self, _handle: ConnectionHandle, domain: DomainHandle, _type: int, _uri: str, _opaque: None
    ) -> None:
        told = DomainEvent(domain.UUIDString(), domain.name())
        self._hand_over(functools.partial(self._observer.happened, told))

    def _on_tunable(
        self, _handle: ConnectionHandle, domain: DomainHandle, _values: Mapping[str, object], _opaque: None
    ) -> None:
        told = DomainEvent(domain.UUIDString(), domain.name(), devices=True)
        self._hand_over(functools.partial(self._observer.happened, told))

    def _on_device(self, _handle: ConnectionHandle, domain: DomainHandle, _alias: str, _opaque: None) -> None:
        told = DomainEvent(domain.UUIDString(), domain.name(), devices=True)
        self._hand_over(functools.partial(self._observer.happened, told))

    def _on_agent(
        self, _handle: ConnectionHandle, domain: DomainHandle, _state: int, _reason: int, _opaque: None
    ) -> None:
        """Nobody is woken by it: a guest can open and shut its port as often as it likes."""
        self._hand_over(functools.partial(self._observer.happened, DomainEvent(domain.UUIDString(), domain.name())))

    def _on_amount(
        self, handle: ConnectionHandle, domain: DomainHandle, alias: str, _bytes: int, _opaque: None
    ) -> None:
        self._on_device(handle, domain, alias, _opaque)

    def _on_balloon(self, handle: ConnectionHandle, domain: DomainHandle, _kib: int, _opaque: None) -> None:
        self._on_device(handle, domain, "", _opaque)

    def _hand_over(self, what: Callable[[], None]) -> None:
        if not self._closed.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(what)


def _guarded(work: Callable[[ConnectionHandle], T], handle: ConnectionHandle) -> T:
    try:
        return work(handle)
    except libvirt.libvirtError as error:
        raise errors.translate(error) from error


def _ended(lock: asyncio.Lock | None, future: asyncio.Future[T]) -> None:
    if lock is not None:
        lock.release()
    if not future.cancelled():
        future.exception()  # seen, also when nobody waits any more


def _settle(result: Future[T], *, value: T | None = None, error: Exception | None = None) -> bool:
    """Set the result unless its waiter has gone; whether that worked."""
    if not result.set_running_or_notify_cancel():
        return False
    if error is not None:
        result.set_exception(error)
    elif value is not None:
        result.set_result(value)
    return True


def _timeout(what: str, seconds: float) -> HypervisorError:
    return HypervisorError(f"libvirt: waited {seconds:.0f} s for {what}.", reason=errors.TIMEOUT)
