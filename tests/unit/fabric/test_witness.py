"""Who is asked about a silent host, and what follows from what is said: unknown is never dead, and one proof of life is enough."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.remediation import HostRemediation, RemediationPhase
from kumulus.api.witness import Says, Statement, WitnessFacts, WitnessKind
from kumulus.kube.client import KubeClient
from kumulus.kube.lease import Lease
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.fabric.automatic import HEARING_SECONDS, MARGIN_SECONDS, asked
from kumulus_controllers.fabric.liveness import Liveness, Verdict
from kumulus_controllers.fabric.remediation_plan import Close, Facts, Say, budget, plan
from kumulus_controllers.fabric.witness import WitnessReconciler
from kumulus_controllers.fabric.witness_book import WitnessBook
from kumulus_controllers.fabric.witness_plan import (
    AT_ONCE,
    NOT_YET,
    PEERS,
    Hearing,
    Peer,
    chosen,
    isolated,
    statements,
    wanted,
)
from tests.unit.fabric.test_host import FakeClock, lease
from tests.unit.fencing.api import Api, Client
from tests.unit.fencing.test_automatic import EXPIRED, host, silence

SAYS = st.lists(st.sampled_from(tuple(Says)), max_size=8)


def heard(*says: Says, settled: bool = True) -> Hearing:
    said = (Statement(witness=f"h{n}", kind=WitnessKind.PEER, says=one, message="why") for n, one in enumerate(says))
    return Hearing(tuple(said), settled)


@given(SAYS)
def test_one_proof_of_life_goes_before_everything_and_nothing_said_is_unknown(says: list[Says]) -> None:
    found = heard(*says).says
    assert (found is Says.ALIVE) == (Says.ALIVE in says)
    assert (found is Says.DEAD) == (Says.DEAD in says and Says.ALIVE not in says)


@given(st.sampled_from((None, *Says)), st.sampled_from((None, *Says)))
def test_another_host_can_never_say_that_one_is_dead(peer: Says | None, storage: Says | None) -> None:
    said, complete = statements("h2", WitnessFacts(peer=peer, storage=storage))
    assert complete == (None not in (peer, storage))
    assert all(item.says is not Says.DEAD for item in said)
    assert [item.message == NOT_YET for item in said] == [peer is None, storage is None]


def test_who_is_asked_stays_asked_and_those_that_share_pools_come_first() -> None:
    able = [Peer(f"h{n}", pools=("p",) if n in (7, 8) else ()) for n in range(20)]
    first = chosen("uid", able, ())
    assert len(first) == PEERS and {"h7", "h8"} < {peer.name for peer in first}
    kept = {peer.name for peer in chosen("uid", reversed(able), ("h3", "h4"))}
    assert {"h3", "h4"} < kept
    plain = [Peer(f"h{n}") for n in range(20)]
    assert len({chosen(f"uid-{n}", plain, ()) for n in range(10)}) > 1, "not the same ones about every host"


@pytest.mark.parametrize(
    ("verdict", "late", "machines", "expected"),
    [
        (EXPIRED, True, 0, True),
        (Verdict(Liveness.ALIVE, 3), False, 1, False),
        (Verdict(Liveness.ALIVE, 3), True, 1, True),
        (Verdict(Liveness.ALIVE, 3), True, 0, False),
        (Verdict(Liveness.ALIVE, 3, witnessed=False), False, 1, None),
        (Verdict(Liveness.NEVER_SEEN, 3), True, 0, False),
    ],
)
def test_when_witnesses_are_asked(verdict: Verdict, late: bool, machines: int, expected: bool | None) -> None:
    assert wanted(host(), verdict, late=late, machines=machines) is expected
    assert wanted(host(fenced="True"), verdict, late=late, machines=machines) is False


def test_a_host_that_is_known_to_be_alive_is_not_fenced_by_itself_and_who_has_not_answered_is_waited_for() -> None:
    late = 100.0 + MARGIN_SECONDS
    assert asked(silence(hearing=heard(Says.ALIVE, Says.DEAD)), late + 1000) is None
    for unsettled in (None, heard(Says.UNKNOWN, settled=False)):
        assert (asked(silence(hearing=unsettled), late) or 0) > 0
        assert asked(silence(hearing=unsettled), late + HEARING_SECONDS) == 0.0, "silence of witnesses is no word"
    assert asked(silence(hearing=heard(Says.UNKNOWN)), late) == 0.0


@pytest.mark.parametrize("methods", [["manual"], ["redfish"]])
def test_a_remediation_waits_while_a_witness_has_proof_of_life_unless_it_says_otherwise(methods: list[str]) -> None:
    spec = {"host": "h1", "methods": methods, "confirmedOff": True, "lastRenewal": "t"}
    item = HostRemediation.parse({"metadata": {"name": "r", "uid": "r"}, "spec": spec, "status": {"lastRenewal": "t"}})
    facts = Facts(item, host(), EXPIRED, "t", able=frozenset(methods), hearing=heard(Says.UNKNOWN, Says.ALIVE))
    waits = plan(facts)
    assert isinstance(waits, Say) and (waits.phase, waits.reason) == (RemediationPhase.PENDING, "WitnessAlive")
    assert plan(replace(facts, hearing=heard(Says.UNKNOWN, Says.DEAD))) == Close()
    despite = HostRemediation.parse({**item.to_json(), "spec": {**spec, "witnesses": "Ignore"}})
    assert plan(replace(facts, remediation=despite)) == Close()


def test_a_host_that_is_only_cut_off_says_so_and_what_to_do() -> None:
    assert isolated(host(), None).status is None and isolated(host(), heard(Says.DEAD, Says.UNKNOWN)).status is None
    fact = isolated(host(), heard(Says.UNKNOWN, Says.ALIVE))
    assert fact.status is True and "h1 says so: why" in fact.message and "kumulusctl host fence h1" in fact.message


def test_a_book_tells_of_what_changes() -> None:
    told: list[str] = []
    book = WitnessBook()
    book.listen(told.append)
    book.put("h1", heard(Says.ALIVE))
    book.drop("h2")
    assert (told, book.asked(besides="h2"), book.asked(besides="h1")) == (["h1"], 1, 0)
    book.drop("h1")
    assert told == ["h1", "h1"] and book.hearing("h1") is None


class Cloud:
    """Hosts of which some fall silent, before the reconciler of witnesses."""

    def __init__(self, hosts: int) -> None:
        self.clock, self.book, self.caches, self.api = FakeClock(), WitnessBook(), Caches(), Api()
        services = Services(cast(KubeClient, Client(self.api, self._nothing)), self.caches, self.clock, lambda: 1)
        self.reconciler = WitnessReconciler(services, self.book, {})
        self.reconciler.attach(lambda key, **_: None)
        self.names = [f"h{number}" for number in range(hosts)]
        for name in self.names:
            raw = host().to_json()
            self.caches.store(Host).apply({**raw, "metadata": {"name": name, "uid": name, "resourceVersion": "1"}})
        self._version = 0

    async def _nothing(self, verb: str) -> None:
        return None

    def renew(self, names: list[str]) -> None:
        """They are heard of now."""
        for name in names:
            self._version += 1
            raw = lease(f"t{self._version}", host=name).to_json()
            raw["metadata"] |= {"uid": name, "resourceVersion": str(self._version)}
            self.caches.store(Lease).apply(raw)

    def silence(self, silent: int) -> list[str]:
        """The first so many have not been heard of for longer than their Leases last; their names."""
        self.renew(self.names)
        self.clock.seconds += 39
        self.renew(self.names[silent:])
        self.clock.seconds += 2
        return self.names[:silent]

    async def look(self, names: list[str]) -> None:
        """A pass over each."""
        for name in names:
            await self.reconciler.reconcile(Key(None, name))

    def orders_about(self, name: str) -> int:
        """How many hosts are asked about it."""
        return sum(raw["spec"]["for"]["name"] == name for raw in self.api.listed(WorkOrder.KIND))


async def test_about_each_host_that_may_be_fenced_others_are_asked_also_in_a_big_cloud() -> None:
    cloud = Cloud(150)
    assert budget(150) > AT_ONCE
    silent = cloud.silence(budget(150))
    await cloud.look(silent)
    assert {name: cloud.orders_about(name) for name in silent} == dict.fromkeys(silent, PEERS)
    assert all(not hearing.settled for name in silent if (hearing := cloud.book.hearing(name)) is not None)


async def test_a_host_about_which_nobody_was_asked_is_not_settled_and_is_asked_about_when_another_returns() -> None:
    cloud = Cloud(20)
    silent = cloud.silence(10)
    for number in range(AT_ONCE):
        cloud.book.put(f"other-{number}", heard(settled=False))
    await cloud.look(silent[:1])
    hearing = cloud.book.hearing(silent[0])
    assert hearing is not None and not hearing.settled and cloud.orders_about(silent[0]) == 0
    cloud.book.drop("other-0")
    await cloud.look(silent[:1])
    assert cloud.orders_about(silent[0]) == PEERS


async def test_that_no_host_can_be_asked_is_an_answer() -> None:
    cloud = Cloud(2)
    silent = cloud.silence(2)
    await cloud.look(silent[:1])
    hearing = cloud.book.hearing(silent[0])
    assert hearing is not None and hearing.settled and not cloud.orders_about(silent[0])
