"""The baselines' writes, and the bookkeeping of rounds."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.bench import shapes
from tests.bench.plain import INSTANCE, MACHINE, POD


def test_kubevirts_mix_is_the_published_one() -> None:
    """Over many machines each kind of write is as frequent as published; every machine begins with its creates."""
    number = 1000
    counts: Counter[tuple[str, str]] = Counter()
    for machine in range(number):
        before, after = shapes.steps(machine)
        assert before[:3] == [("create", MACHINE), ("create", INSTANCE), ("create", POD)]
        counts.update((verb, kind.plural) for verb, kind in [*before, *after])
    per = {key: count / number for key, count in counts.items()}
    assert per == pytest.approx(
        {
            ("create", MACHINE.plural): 1,
            ("create", INSTANCE.plural): 1,
            ("create", POD.plural): 1,
            ("update", MACHINE.plural): 9.5,
            ("patch", MACHINE.plural): 2,
            ("update", INSTANCE.plural): 3.35,
            ("patch", INSTANCE.plural): 2.2,
            ("patch", POD.plural): 2.2,
            ("create", "events"): 4,
        }
    )


@pytest.mark.parametrize(("total", "parts"), [(500, 5), (10, 3), (2, 5)])
def test_chunks_add_up(total: int, parts: int) -> None:
    made = list(shapes.chunks(total, parts))
    assert sum(made) == total
    assert len(made) == parts
    assert max(made) - min(made) <= 1
