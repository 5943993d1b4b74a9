"""All sinks: one delivery each, begun and ended as EventSinks come, change and go. One that fails keeps no other."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from kumulus.api.base import PLATFORM_NAMESPACE, LocalSecretKey
from kumulus.api.events import REDELIVER, REDELIVERED_MAX, EventSink, EventSinkStatus, SinkCondition, SinkReason
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import Conflict, KubeError, NotFound
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Store
from kumulus.runtime.conditions import Fact, derive
from kumulus_services.events import metrics
from kumulus_services.events.delivery import Delivery, State
from kumulus_services.events.guard import Guard
from kumulus_services.events.jetstream import JetStream
from kumulus_services.events.journal import Journal, Standing
from kumulus_services.events.settings import EventsSettings
from kumulus_services.events.signing import key_of
from kumulus_services.events.transport import SecretMissing, Transport
from kumulus_services.events.webhook import Webhook

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 30.0
"""After which what kept a sink from beginning is looked at again."""
SECRET_SECONDS = 300.0
"""So often the Secret of a sink is looked at: a new one is taken then."""
LOOK_SECONDS = 1.0
LETTERS = 100
"""Dead letters that are sent once more at a time: others are served in between."""
REASON_SECONDS = 5.0
"""So often the condition of a sink is written at most."""


@dataclass(slots=True)
class _Runner:
    """One sink at work."""

    sink: EventSink
    served: bool = True
    """Else it is one too many, of which the journal does not know."""
    task: asyncio.Task[None] | None = None
    delivery: Delivery | None = None
    state: State = field(default_factory=lambda: State(SinkReason.STARTING, "Nothing was sent yet."))
    written_at: float = float("-inf")
    counted_at: float = float("-inf")

    @property
    def shown(self) -> State:
        return self.delivery.state if self.delivery is not None else self.state


class Sinks:
    """The sinks of a store that somebody else feeds."""

    def __init__(
        self,
        client: KubeClient,
        journal: Journal,
        store: Store[EventSink],
        settings: EventsSettings,
        now: Callable[[], str],
    ) -> None:
        self._client = client
        self._journal = journal
        self._store = store
        self._settings = settings
        self._now = now
        self._runners: dict[str, _Runner] = {}
        self._changed = asyncio.Event()
        store.listen(lambda before, after: self._changed.set())

    def wake(self) -> None:
        """There is more to tell."""
        for runner in self._runners.values():
            if runner.delivery is not None:
                runner.delivery.wake()

    async def run(self) -> None:
        """Keep them at work until cancelled."""
        try:
            while True:
                self._changed.clear()
                await self._arrange()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._changed.wait()
        finally:
            await asyncio.gather(*(self._end(uid) for uid in list(self._runners)))

    async def _arrange(self) -> None:
        there = {sink.uid: sink for sink in self._store if not sink.deleting}
        for uid in self._runners.keys() - there.keys():
            gone = self._runners[uid].sink
            await self._end(uid)
            metrics.forget(gone.namespace or "", gone.name)
        refused = _too_many(there.values(), self._settings.namespace_sinks)
        with self._journal.transaction():
            self._journal.end(there.keys() - refused)
        for uid, sink in there.items():
            runner, served = self._runners.get(uid), uid not in refused
            if runner is None or runner.sink.metadata.generation != sink.metadata.generation or runner.served != served:
                await self._end(uid)
                self._begin(sink, served=served)
            else:
                runner.sink = sink
            await self._look(self._runners[uid])

    def _begin(self, sink: EventSink, *, served: bool) -> None:
        runner = _Runner(sink, served=served)
        if not served:
            most = self._settings.namespace_sinks
            runner.state = State(
                SinkReason.TOO_MANY_SINKS,
                f"Of a namespace {most} sinks are served, the oldest: delete others, or ask the operator for more.",
            )
            self._runners[sink.uid] = runner
            return
        self._enter(sink)
        runner.task = asyncio.create_task(self._serve(runner), name=f"sink {sink.namespace}/{sink.name}")
        self._runners[sink.uid] = runner

    def _enter(self, sink: EventSink) -> None:
        """The journal knows the sink. One that has had events of which the journal knows nothing, because that was lost,
        is told of all there is."""
        if self._journal.standing(sink.uid) is not None:
            return
        status, scope = sink.status, _scope(sink)
        with self._journal.transaction():
            self._journal.begin(
                sink.uid,
                scope,
                delivered=status.delivered or 0,
                lost=status.lost or 0,
                redelivered=_request(sink),
            )
            if sink.spec.replay or status.delivered is not None:
                self._journal.replay(sink.uid, self._now(), scope)

    async def _end(self, uid: str) -> None:
        runner = self._runners.pop(uid, None)
        if runner is not None and runner.task is not None:
            with suppress(KeyError):
                metrics.PENDING.remove(runner.sink.namespace or "", runner.sink.name)
            runner.task.cancel()
            await asyncio.gather(runner.task, return_exceptions=True)

    async def _serve(self, runner: _Runner) -> None:
        """Deliver until cancelled."""
        sink = runner.sink
        if sink.spec.suspend:
            runner.state = State(SinkReason.SUSPENDED, "Its spec says so; events wait.")
            return
        while True:
            try:
                secret = await self._secret_of(sink)
                transport = self._transport(sink, secret)
                delivery = Delivery(self._journal, sink, _scope(sink), transport, self._settings.source, self._now)
                runner.delivery = delivery
                await self._deliver(delivery, sink, secret)
                continue
            except SecretMissing as error:
                runner.state = State(error.reason, f"{error}.")
            except KubeError as error:
                runner.state = State(SinkReason.STARTING, f"Its Secret cannot be read: {error}.")
            except Exception:
                log.exception("sink failed", namespace=sink.namespace, sink=sink.name)
                runner.state = State(SinkReason.STARTING, "It failed; the log of the exporter says how.")
            finally:
                runner.delivery = None
            await asyncio.sleep(AGAIN_SECONDS)

    async def _deliver(self, delivery: Delivery, sink: EventSink, secret: bytes | None) -> None:
        """Deliver until the Secret is another one."""
        tasks = [asyncio.create_task(delivery.run())]
        if secret is not None:
            tasks.append(asyncio.create_task(self._until_other(sink, secret)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_other(self, sink: EventSink, secret: bytes) -> None:
        while True:
            await asyncio.sleep(SECRET_SECONDS)
            with suppress(KubeError, SecretMissing):
                if await self._secret_of(sink) != secret:
                    return

    def _transport(self, sink: EventSink, secret: bytes | None) -> Transport:
        """The way to its receiver. Raises `SecretMissing`."""
        settings, retry, spec = self._settings, sink.spec.retry, sink.spec
        guard = Guard(sink.namespace == PLATFORM_NAMESPACE, settings.allowed_ranges, settings.denied_ranges)
        try:
            if spec.http is not None:
                _trusted(spec.http.ca_bundle)
                key = key_of(secret) if secret is not None else None
                return Webhook(
                    spec.http,
                    guard,
                    key=key,
                    origin=settings.origin,
                    timeout=retry.timeout_seconds,
                    parallel=retry.parallel,
                )
            assert spec.nats is not None
            _trusted(spec.nats.ca_bundle)
            text = secret.decode() if secret is not None else None
            return JetStream(spec.nats, guard, credentials=text, timeout=retry.timeout_seconds)
        except ValueError as error:
            # What it says may have a part of the Secret in it, but for what we say ourselves.
            why = "it is no text" if isinstance(error, UnicodeError) else str(error)
            raise SecretMissing(f"the Secret cannot be used: {why}") from None

    async def _secret_of(self, sink: EventSink) -> bytes | None:
        """The value that the sink names; None when it names none. Raises `SecretMissing` or `KubeError`."""
        spec = sink.spec
        ref = spec.http.secret if spec.http is not None else spec.nats.credentials if spec.nats is not None else None
        return await self._secret(ref, sink.namespace or "") if ref is not None else None

    async def _secret(self, ref: LocalSecretKey, namespace: str) -> bytes:
        """The value. Raises `SecretMissing`."""
        try:
            raw = await self._client.get(SECRET, ref.name, namespace)
        except NotFound as error:
            raise SecretMissing(f"there is no Secret {ref.name}; make it") from error
        value = (raw.get("data") or {}).get(ref.key)
        if value is None:
            raise SecretMissing(f"the Secret {ref.name} has no key {ref.key}; add it")
        try:
            return base64.b64decode(value)
        except binascii.Error as error:
            raise SecretMissing(f"the Secret {ref.name} cannot be read") from error

    # What others see of a sink

    async def _look(self, runner: _Runner) -> None:
        """Carry out what is asked for, and write what is other than it was."""
        sink = runner.sink
        standing = self._journal.standing(sink.uid)
        request = _request(sink)
        if standing is not None and request is not None and request != standing.redelivered:
            await self._redeliver(sink, request)
            standing = self._journal.standing(sink.uid)
        now, numbers = asyncio.get_running_loop().time(), self._settings.status_seconds
        told = _reason(sink.status) == _told_reason(runner.shown) and sink.status.redelivered == (
            standing.redelivered if standing else None
        )
        # What waits is counted for what is written, and not each time that it is looked: counting is the most of it.
        if now - (max(runner.written_at, runner.counted_at) if told else runner.written_at) < (
            numbers if told else min(REASON_SECONDS, numbers)
        ):
            return
        runner.counted_at = now
        after = self._status(runner, standing)
        metrics.PENDING.labels(sink.namespace or "", sink.name).set(after.pending or 0)
        patch = merge_patch(sink.status.to_json(), after.to_json())
        if not patch:
            return
        runner.written_at = now
        body = {"metadata": {"resourceVersion": sink.metadata.resource_version}, "status": patch}
        try:
            raw = await self._client.patch(EventSink.KIND, sink.name, body, sink.namespace, subresource="status")
        except (Conflict, NotFound):
            return
        except KubeError as error:
            log.warning("status not written", namespace=sink.namespace, sink=sink.name, error=str(error))
            return
        self._store.apply(raw)
        runner.sink = EventSink.parse(raw)

    async def _redeliver(self, sink: EventSink, request: str) -> None:
        """Have its dead letters of now sent once more. Cut off anywhere, it goes on when it is begun again."""
        count, upto = 0, self._journal.last_letter(sink.uid)
        while moved := self._journal.redeliver(sink.uid, upto=upto, limit=LETTERS):
            count += moved
            self.wake()
            await asyncio.sleep(0)
        self._journal.redelivered(sink.uid, request)
        log.info("dead letters are sent once more", namespace=sink.namespace, sink=sink.name, count=count)

    def _status(self, runner: _Runner, standing: Standing | None) -> EventSinkStatus:
        sink, delivery, shown = runner.sink, runner.delivery, runner.shown
        cursor = delivery.cursor if delivery is not None else standing.cursor if standing else 0
        ready = shown.reason is SinkReason.DELIVERING
        before = sink.status
        fact = Fact(
            SinkCondition.READY, None if shown.reason is SinkReason.STARTING else ready, shown.reason, shown.message
        )
        generation = sink.metadata.generation
        return EventSinkStatus(
            observed_generation=generation,
            conditions=derive(before.conditions, [fact], generation=generation, now=self._now()),
            delivered=standing.delivered if standing else before.delivered,
            pending=self._journal.pending(cursor, sink.uid, _scope(sink)) if standing else None,
            dead_letters=self._journal.dead_letters(sink.uid),
            lost=standing.lost if standing else before.lost,
            last_delivered_at=(delivery.last_delivered_at if delivery else None) or before.last_delivered_at,
            last_error=(delivery.last_error if delivery else None) or before.last_error,
            redelivered=standing.redelivered if standing else None,
        )


def _scope(sink: EventSink) -> str | None:
    """Whose objects it sees; None for all."""
    return None if sink.namespace == PLATFORM_NAMESPACE else sink.namespace


def _too_many(sinks: Iterable[EventSink], most: int) -> set[str]:
    """Which are not served, by uid: of each namespace all but the oldest `most`; of the operator's none. Pure."""
    homes: dict[str, list[EventSink]] = {}
    for sink in sinks:
        if sink.namespace is not None and _scope(sink) is not None:
            homes.setdefault(sink.namespace, []).append(sink)
    ages = {
        home: sorted(those, key=lambda one: (one.metadata.creation_timestamp or "", one.uid))
        for home, those in homes.items()
    }
    return {sink.uid for those in ages.values() for sink in those[most:]}


def _request(sink: EventSink) -> str | None:
    """What stands for the value of the annotation kumulus.io/redeliver; a digest of one for which a status has no room."""
    asked = sink.metadata.annotations.get(REDELIVER)
    if asked is None or len(asked) <= REDELIVERED_MAX:
        return asked
    return f"sha256:{hashlib.sha256(asked.encode()).hexdigest()}"


def _told_reason(state: State) -> str | None:
    """What its status says when it says that: nothing of a sink that begins."""
    return None if state.reason is SinkReason.STARTING else state.reason


def _reason(status: EventSinkStatus) -> str | None:
    found = status.condition(SinkCondition.READY)
    return found.reason if found is not None else None


def _trusted(bundle: str | None) -> None:
    """Certificates that cannot be read are found out before anything is sent."""
    if bundle is not None:
        try:
            ssl.create_default_context(cadata=bundle)
        except ssl.SSLError as error:
            raise SecretMissing("caBundle has no certificates that can be read") from error
