"""What an agent says of another host: alive by proof alone, and otherwise that it does not know (ADR 39)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.witness import Says
from kumulus_agents.agent.witness import Beats

STALE = 12.5


def test_a_heartbeat_is_proof_when_it_changes_and_for_a_while() -> None:
    beats = Beats(0.0, STALE)
    beats.saw("p", "life-1", 1.0)
    assert beats.says(1.0) is None, "who knows how old the first one is"
    beats.saw("p", "life-2", 5.0)
    found = beats.says(5.0)
    assert found is not None and found[0] is Says.ALIVE
    beats.saw("p", "life-2", 5.0 + STALE)
    found = beats.says(5.0 + STALE)
    assert found is not None and found[0] is Says.UNKNOWN


def test_a_pool_that_does_not_answer_says_nothing_and_is_named() -> None:
    beats = Beats(0.0, STALE)
    beats.failed("slow", "PoolNotAnswering")
    beats.saw("other", None, 1.0)
    assert beats.says(STALE - 0.1) is None
    found = beats.says(STALE)
    assert found == (Says.UNKNOWN, "pool slow cannot be looked at: PoolNotAnswering")


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from((None, "a", "b", "failed"))), max_size=20))
def test_nothing_that_pools_do_makes_a_host_dead(happened: list[tuple[str, str | None]]) -> None:
    beats = Beats(0.0, STALE)
    for second, (pool, what) in enumerate(happened):
        if what == "failed":
            beats.failed(pool, "slow")
        else:
            beats.saw(pool, what, float(second))
        found = beats.says(float(second))
        assert found is None or found[0] in (Says.ALIVE, Says.UNKNOWN)
