"""What is kept of runs, and how they compare."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import history, report
from tests.bench.history import Run
from tests.bench.machine import Machine, MachineLoad
from tests.bench.record import Better, Goal, Record, record

MACHINE = Machine(cpus=2, model="EPYC | 7", memory_mib=24000, kernel="6", python="3.11")


def run_of(*records: Record, minute: int = 0, scale: str = "full", commit: str = "abc1234") -> Run:
    at = datetime(2026, 11, 20, 12, minute, tzinfo=UTC)
    return Run(at=at, commit=commit, scale=scale, machine=MACHINE, records=records)


def latency(value: float | None) -> Record:
    return record("latency", Goal(id="G1", limit=1), "s", value, rounds=[1.0, 2.0], against=("B1", [1.0, 1.0]))


def rate(value: float) -> Record:
    return record("rate", Goal(id="G3", limit=1, better=Better.HIGHER), "1/s", value)


def test_what_got_worse_by_more_than_a_tenth_is_flagged() -> None:
    before = run_of(latency(1.0), rate(100))
    changed = history.changes(run_of(latency(1.05), rate(80)), before)
    assert not changed["latency"].worse
    assert changed["rate"].worse
    changed = history.changes(run_of(latency(1.2), rate(150)), before)
    assert changed["latency"].worse
    assert not changed["rate"].worse


def test_what_cannot_be_compared_is_not() -> None:
    assert history.changes(run_of(latency(1.0)), None) == {}
    assert history.changes(run_of(latency(None)), run_of(latency(1.0))) == {}
    assert history.changes(run_of(latency(1.0)), run_of(rate(1.0))) == {}
    assert not history.changes(run_of(latency(0.0)), run_of(latency(0.0)))["latency"].worse
    assert history.changes(run_of(latency(1.0)), run_of(latency(0.0)))["latency"].worse


def test_a_run_is_kept_and_found_again_by_its_scale(tmp_path: Path) -> None:
    history.save(run_of(latency(1.0), scale="short"), tmp_path, "short")
    path = history.save(run_of(latency(2.0), minute=5, commit="abc1234+"), tmp_path, "table")
    assert path.name == "2026-11-20T1205-abc1234-changed-full.json"
    found = history.previous(tmp_path, "full")
    assert found is not None
    assert found.records[0].value == 2.0
    assert history.previous(tmp_path, "long") is None
    index = json.loads((tmp_path / "index.json").read_text())
    assert [entry["scale"] for entry in index] == ["short", "full"]
    assert index[1]["missed"] == ["latency"]
    assert (tmp_path / "latest.md").read_text() == "table"


def test_the_table_says_everything_that_was_found() -> None:
    load = MachineLoad(load1=3.5, load5=2.0, free_mib=1000, others=0.75)
    run = run_of(latency(2.0).model_copy(update={"load": load}), rate(5)).model_copy(
        update={"failures": {"guests": "no libvirt"}}
    )
    text = report.markdown(run, history.changes(run, run_of(latency(1.0), rate(5))))
    assert "| G1 | latency | 2 s | <= 1 s | NO | 1 .. 2 (2) | 1 B1 | 1.50x (1 .. 2) | +100% WORSE |" in text
    assert "| G3 | rate | 5 1/s | >= 1 1/s | yes |" in text
    assert "up to 3.5 on 2 CPUs" in text
    assert "0.75" in text
    assert "guests found nothing: no libvirt" in text


def test_numbers_keep_what_matters() -> None:
    told = [report.number(value) for value in (None, 0.03456, 1.234, 12.34, 1234.5, 3.0)]
    assert told == ["-", "0.035", "1.23", "12.3", "1234", "3"]
