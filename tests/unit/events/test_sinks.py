"""All sinks: what is written of them, how often they are counted, and how many of a namespace are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from kumulus.api.events import REDELIVER, REDELIVERED_MAX, EventSink
from kumulus.kube.store import Key, Store
from kumulus_services.events import metrics
from kumulus_services.events import sinks as module
from kumulus_services.events.journal import Journal
from kumulus_services.events.recorder import Recorder, Seen
from kumulus_services.events.settings import EventsSettings
from kumulus_services.events.sinks import Sinks
from tests.patience import PATIENCE
from tests.unit.events.test_delivery import until
from tests.unit.events.test_journal import VM, Raw, vm


class Api:
    """Takes writes of status, as an API server does that has these sinks."""

    def __init__(self) -> None:
        self.objects: dict[str, Raw] = {}
        self.store = Store(EventSink)
        self.writes = 0

    def put(self, name: str, *, created: int = 0, annotations: Mapping[str, str] | None = None, **spec: Any) -> None:
        metadata = {"name": name, "namespace": "shop", "uid": f"u-{name}", "generation": 1, "resourceVersion": "0"}
        before: Raw = self.objects.get(name, {"metadata": metadata, "status": {}})
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
        metadata |= {"annotations": annotations or {}, "creationTimestamp": f"2026-01-01T00:00:{created:02}Z"}
        self._keep(
            {"metadata": metadata, "spec": {"http": {"url": "https://x.test/"}, **spec}, "status": before["status"]}
        )

    def _keep(self, raw: Raw) -> Raw:
        number = int(raw["metadata"]["resourceVersion"]) + 1
        kept: Raw = {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(number)}}
        self.objects[raw["metadata"]["name"]] = kept
        self.store.apply(kept)
        return kept

    async def patch(self, kind: object, name: str, body: Raw, namespace: str, *, subresource: str) -> Raw:
        self.writes += 1
        raw = self.objects[name]
        status = {key: value for key, value in {**raw["status"], **body["status"]}.items() if value is not None}
        assert len(status.get("redelivered") or "") <= REDELIVERED_MAX, "the API server refuses it"
        return self._keep({**raw, "status": status})

    def reason(self, name: str) -> str | None:
        conditions = self.objects[name]["status"].get("conditions") or [{}]
        reason: str | None = conditions[0].get("reason")
        return reason


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(module, "REASON_SECONDS", 0.0)
    return Api()


@asynccontextmanager
async def serving(api: Api, journal: Journal, **settings: Any) -> AsyncIterator[Sinks]:
    client: Any = api
    made = Sinks(client, journal, api.store, EventsSettings(**settings), lambda: "2026-01-01T00:00:00Z")
    task = asyncio.create_task(made.run())
    try:
        yield made
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        journal.close()


def noted(journal: Journal, *names: str) -> None:
    Recorder(journal, lambda: "t", lambda: None).record([Seen(VM, vm(name, n)) for n, name in enumerate(names, 1)])


async def test_a_request_for_which_a_status_has_no_room_is_carried_out_once(api: Api, tmp_path: Path) -> None:
    api.put("s", suspend=True)
    journal = Journal(tmp_path)
    async with serving(api, journal, status_seconds=0):
        await until(lambda: api.reason("s") == "Suspended")
        noted(journal, "a")
        (change,) = journal.after(0, "u-s", "shop", 10)
        journal.advance("u-s", change.seq, 0)
        journal.bury("u-s", change, "400", "t")
        done: set[str | None] = {None}
        for tail in ("one", "other"):
            api.put("s", annotations={REDELIVER: "x" * 300 + tail}, suspend=True)
            await until(lambda: api.objects["s"]["status"].get("redelivered") not in done)
            done.add(api.objects["s"]["status"]["redelivered"])
        assert api.objects["s"]["status"]["deadLetters"] == 0
        assert len(journal.after(change.seq, "u-s", "shop", 10)) == 1


async def test_what_waits_is_counted_when_it_is_written_and_not_each_time(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = looked = 0
    pending, standing = Journal.pending, Journal.standing

    def counting(self: Journal, *arguments: Any) -> int:
        nonlocal counted
        counted += 1
        return pending(self, *arguments)

    def looking(self: Journal, uid: str) -> Any:
        nonlocal looked
        looked += 1
        return standing(self, uid)

    monkeypatch.setattr(Journal, "pending", counting)
    monkeypatch.setattr(Journal, "standing", looking)
    api.put("s", suspend=True)
    journal = Journal(tmp_path)
    journal.begin("u-s", "shop")
    noted(journal, "a", "b")
    async with serving(api, journal, status_seconds=3600 * PATIENCE):
        await until(lambda: looked > 50 and api.reason("s") == "Suspended")
        assert api.objects["s"]["status"]["pending"] == 2
        assert counted <= 2 and api.writes <= 2, "once when it begins, once when it is suspended"


async def test_of_a_namespace_so_many_are_served_the_oldest_first(api: Api, tmp_path: Path) -> None:
    """Those too many wait outside the journal, and come in when another one goes: told of what happens from then on."""
    for number, name in enumerate(["young", "old", "older"]):
        api.put(name, created=30 - number, suspend=True)
    journal = Journal(tmp_path)
    async with serving(api, journal, status_seconds=0, namespace_sinks=2):
        await until(lambda: [api.reason(name) for name in ("older", "old")] == ["Suspended"] * 2)
        await until(lambda: api.reason("young") == "TooManySinks")
        assert journal.standing("u-young") is None
        noted(journal, "before")
        api.store.remove(Key("shop", "old"))
        await until(lambda: api.reason("young") == "Suspended")
        standing = journal.standing("u-young")
        assert standing is not None and not journal.after(standing.cursor, "u-young", "shop", 10)


async def test_of_a_sink_that_is_gone_no_series_is_left(api: Api, tmp_path: Path) -> None:
    def series() -> int:
        return generate_latest().decode().count('sink="s9"')

    api.put("s9", suspend=True)
    async with serving(api, Journal(tmp_path), status_seconds=0):
        await until(lambda: api.reason("s9") == "Suspended")
        metrics.FAILED.labels("shop", "s9", "Rejecting").inc()
        metrics.DELIVERED.labels("shop", "s9").inc()
        assert series() > 0
        api.store.remove(Key("shop", "s9"))
        await until(lambda: series() == 0)
