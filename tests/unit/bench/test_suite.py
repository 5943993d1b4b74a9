"""Choosing benches, reading metrics and /proc, and a bench that needs no cloud from end to end."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import metrics, procfs, suite
from tests.bench.bench import Bench, Context, Needs
from tests.bench.placement import decide, fleet_of
from tests.bench.record import Goal, Record, record
from tests.bench.scale import SCALES


def test_benches_are_chosen_by_name_or_goal() -> None:
    assert suite.select([]) == list(suite.BENCHES)
    assert [bench.name for bench in suite.select(["burst"])] == ["burst"]
    assert [bench.name for bench in suite.select(["g16"])] == ["restart"]
    with pytest.raises(ValueError, match=r"there is no bench nonsense; there are: .*placement"):
        suite.select(["nonsense"])


def test_a_bench_that_fails_does_not_keep_the_next_from_running() -> None:
    async def works(_: Context) -> list[Record]:
        return [record("x", Goal(id="G6"), "", 1.0)]

    async def fails(_: Context) -> list[Record]:
        raise ExceptionGroup("several", [RuntimeError("it broke")])

    benches = [
        Bench("fails", (), Needs.NOTHING, fails, ""),
        Bench("works", (), Needs.NOTHING, works, ""),
    ]
    records, failures = suite.run(benches, SCALES["short"], lambda _: None)
    assert [found.name for found in records] == ["x"]
    assert failures == {"fails": "RuntimeError: it broke"}


def test_rounds_can_be_chosen() -> None:
    full = SCALES["full"]
    assert full.with_rounds(None) == full
    assert full.with_rounds(3) == replace(full, rounds=3, bursts=3, guest_rounds=3, moves=3, failovers=3)


def test_placement_places() -> None:
    assert decide(fleet_of(20), 40) > 0


def test_metrics_are_read_and_passes_while_not_leading_do_not_count() -> None:
    text = """# HELP kumulus_passes_total Passes
kumulus_passes_total{controller="virtualmachine",result="done"} 3.0
kumulus_passes_total{controller="virtualmachine",result="wait"} 2.0
kumulus_passes_total{controller="virtualmachine",result="not leading"} 50.0
kumulus_passes_total{controller="host",result="done"} 7.0
up 1
"""
    found = metrics.parse(text)
    assert found["up", ""] == 1
    assert metrics.passes(found, "virtualmachine") == 5


def test_proc_tells_what_this_process_costs() -> None:
    pid = os.getpid()
    memory = procfs.Memory.of(pid)
    assert 0 < memory.pss <= memory.rss <= memory.peak
    assert procfs.cpu_seconds(pid) > 0
    assert procfs.cpu_seconds(2**22 + 1) == 0
    assert procfs.name(pid) == Path(f"/proc/{pid}/comm").read_text().strip()
    assert procfs.pss_without_guest(pid, 1 << 50) > procfs.pss_without_guest(pid, 4096)
