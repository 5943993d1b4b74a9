"""A thousand schedules by chance, in virtual time, with a whole cloud each (QUALITY G17).

They come in chunks, each with a seed of its own: the same ones each time, but for `KUMULUS_SEED`, which is where the seeds begin.
`KUMULUS_SCHEDULES` says how many. One that fails is made as short as it can be, and told step by step; hypothesis keeps it and
begins with it the next time.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fault import campaign
from tests.fault.schedules import Schedule

SCHEDULES = int(os.environ.get("KUMULUS_SCHEDULES", "1000"))
FIRST = int(os.environ.get("KUMULUS_SEED", "1"))
CHUNK = 100


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(-(-SCHEDULES // CHUNK)))
def test_no_schedule_runs_a_machine_twice_or_leaves_anything(number: int) -> None:
    many = min(CHUNK, SCHEDULES - number * CHUNK)
    print(f"\nKUMULUS_SEED={FIRST + number} KUMULUS_SCHEDULES={many}")
    how = settings(
        max_examples=many,
        stateful_step_count=20,
        deadline=None,
        print_blob=True,
        verbosity=Verbosity.normal,
        phases=(*((Phase.reuse,) if number == 0 else ()), Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    before = Schedule.tally["schedules"]
    run_state_machine_as_test(seed(FIRST + number)(Schedule), settings=how)
    done = ", ".join(f"{many:.0f} {what}" for what, many in Schedule.tally.items())
    campaign.TABLE.numbers[f"schedules by chance, KUMULUS_SEED={FIRST}"] = done
    print(done)
    assert Schedule.tally["schedules"] - before >= many
