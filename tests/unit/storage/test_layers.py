"""The tree of a volume's layers, played against what a guest would read."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from kumulus_agents.storage.layers import Layers, Taken, from_record, to_record

VOLUME = "volume"
TAKEN = Taken("2026-11-20T12:00:00Z", ("Online",))


class Disk:
    """Layers, and what was written to each: block -> number."""

    def __init__(self) -> None:
        self.layers = Layers.first(VOLUME)
        self.written: dict[str, dict[int, int]] = {VOLUME: {}}
        self.held: set[str] = set()

    def read(self, layer: str) -> Mapping[int, int]:
        found: dict[int, int] = {}
        for one in reversed(self.layers.chain(layer)):
            found.update(self.written[one])
        return found


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_done_every_snapshot_and_the_volume_keep_their_content(seed: int) -> None:
    chance, disk = random.Random(seed), Disk()
    wanted: dict[str, Mapping[int, int]] = {}
    now: dict[int, int] = {}
    for step in range(80):
        match chance.choice(("write", "snapshot", "forget", "merge", "merge", "restart", "hold")):
            case "write":
                disk.written[disk.layers.active][block := chance.randrange(4)] = step
                now[block] = step
            case "snapshot":
                disk.layers = disk.layers.frozen(f"s{step}", f"l{step}").confirmed(f"s{step}", TAKEN)
                disk.written[f"l{step}"] = {}
                wanted[f"s{step}"] = dict(now)
            case "forget" if wanted:
                gone = chance.choice(sorted(wanted))
                if disk.layers.snapshots[gone].layer not in disk.held:
                    del wanted[gone]
                    disk.layers = disk.layers.forgotten(gone)
            case "hold" if wanted:
                disk.held ^= {disk.layers.snapshots[chance.choice(sorted(wanted))].layer}
            case "merge":
                for layer in disk.layers.useless(disk.held):
                    disk.layers = disk.layers.without(layer)
                if (found := disk.layers.next_merge(disk.held)) is not None:
                    upper, lower = found
                    assert not disk.held & set(disk.layers.chain(upper)) - set(disk.layers.chain(upper)[2:])
                    disk.written[lower].update(disk.written[upper])
                    if disk.layers.active == upper and chance.random() < 0.5:
                        disk.layers = disk.layers.adopted(lower)  # the emulator is already there
                    disk.layers = disk.layers.merged(upper, lower)
            case "restart":
                disk.layers = from_record(VOLUME, to_record(disk.layers))
        assert disk.read(disk.layers.active) == now
        assert {uid: disk.read(kept.layer) for uid, kept in disk.layers.snapshots.items()} == wanted
    disk.held.clear()
    for uid in wanted:
        disk.layers = disk.layers.forgotten(uid)
    while (found := disk.layers.next_merge(set())) is not None:
        disk.layers = disk.layers.merged(*found)
    assert disk.layers == Layers.first(VOLUME)


def test_a_snapshot_that_did_not_come_to_be_leaves_nothing() -> None:
    first = Layers.first(VOLUME).frozen("one", "a").confirmed("one", TAKEN)
    assert first.frozen("two", "b").adopted("a") == first
    assert first.frozen("two", "b").adopted("b") == first.frozen("two", "b")


def test_a_merge_whose_upper_layer_an_emulator_has_left_is_forgotten() -> None:
    one = replace(Layers.first(VOLUME).frozen("one", "a").forgotten("one"), merging=("a", VOLUME))
    assert one.adopted(VOLUME) == Layers.first(VOLUME)


def test_nobody_may_write_to_a_snapshot() -> None:
    layers = Layers.first(VOLUME).frozen("one", "a").confirmed("one", TAKEN).frozen("two", "b")
    for wrong in (VOLUME, "nonsense"):
        with pytest.raises(ValueError, match="layer"):
            layers.adopted(wrong)


def test_a_record_from_before_snapshots_is_one_layer() -> None:
    assert from_record(VOLUME, {"image": None, "thick": True}) == Layers.first(VOLUME)


@pytest.mark.parametrize(
    "change",
    [
        {"active": "gone"},
        {"active": 7},
        {"layers": {VOLUME: {"parent": "gone"}}},
        {"layers": {VOLUME: {}}},
        {"layers": None},
        {"snapshots": {"one": {"layer": "gone"}}},
        {"snapshots": {"one": {}}},
        {"snapshots": None},
    ],
)
def test_a_record_that_says_nonsense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="record"):
        from_record(VOLUME, {**to_record(Layers.first(VOLUME)), **change})
