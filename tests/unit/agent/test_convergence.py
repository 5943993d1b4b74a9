"""When a copy gets closer to its end, and when it only goes round: guests of every kind, copied by a model of QEMU."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus_agents.agent.convergence import Convergence
from kumulus_agents.hypervisor.migration import Progress

MIB = 1 << 20
LONG = 900


def copy(memory: int, bandwidth: int, writes: int, works_on: int, downtime: float = 0.3) -> Iterator[Progress]:
    """What is seen of a copy each second, until it ends. MiB, and MiB a second; the guest writes to `works_on` of them."""
    left, dirty, iteration = float(memory), 0.0, 1
    steps = 10
    while True:
        for _ in range(steps):
            left -= bandwidth / steps
            dirty = min(dirty + writes / steps, works_on)
            if left <= 0:
                if dirty / bandwidth <= downtime:
                    return
                left, dirty, iteration = dirty + left, 0.0, iteration + 1
        yield Progress(memory * MIB, int(max(left, 0) * MIB), writes * MIB, iteration, 0)


def longest_stall(looks: Iterator[Progress]) -> tuple[float, bool]:
    """The longest that it has not got closer, and whether it came to its end."""
    convergence, longest = Convergence(0.0), 0.0
    for now, progress in enumerate(looks, 1):
        convergence = convergence.seen(progress, now)
        longest = max(longest, convergence.stalled(now))
        if now >= LONG:
            return longest, False
    return longest, True


@settings(max_examples=40, deadline=None)
@given(
    memory=st.integers(64, 65536),
    bandwidth=st.integers(32, 2048),
    share=st.floats(0.0, 0.8),
    works_on=st.floats(0.0, 1.0),
)
def test_what_comes_to_its_end_is_not_taken_for_stalled(
    memory: int, bandwidth: int, share: float, works_on: float
) -> None:
    longest, ended = longest_stall(copy(memory, bandwidth, int(bandwidth * share), int(memory * works_on)))
    assert longest < 30 and (ended or memory / bandwidth > LONG / 8)


@settings(max_examples=40, deadline=None)
@given(memory=st.integers(64, 16384), bandwidth=st.integers(64, 1024), share=st.floats(1.1, 20.0))
def test_what_goes_round_is_seen_to(memory: int, bandwidth: int, share: float) -> None:
    works_on = min(max(memory // 2, bandwidth), memory)
    longest, ended = longest_stall(copy(memory, bandwidth, int(bandwidth * share), works_on))
    assert ended or longest > 120 or memory / bandwidth > LONG / 4


def test_a_network_that_carries_nothing_stalls_it_from_the_first_pass_on() -> None:
    stuck = Progress(64 * MIB, 32 * MIB, 0, 1, 0)
    convergence = Convergence(0.0)
    for now in range(1, 41):
        convergence = convergence.seen(stuck, now)
    assert convergence.stalled(41) == 40


def test_one_of_which_nothing_is_heard_is_stalled_as_well() -> None:
    assert Convergence(10.0).stalled(70.0) == 60.0
