"""A thousand schedules by chance, in virtual time, with a whole cloud each (QUALITY G17).

`KUMULUS_SCHEDULES` says how many, `KUMULUS_SEED` repeats those of another run. One that fails is made as short as it can be, and
told step by step; hypothesis keeps it and begins with it the next time.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fault.campaign import SEED, TABLE
from tests.fault.schedules import Schedule

SCHEDULES = int(os.environ.get("KUMULUS_SCHEDULES", "1000"))


@pytest.mark.timeout(3600)
def test_no_schedule_runs_a_machine_twice_or_leaves_anything() -> None:
    print(f"\nKUMULUS_SEED={SEED} KUMULUS_SCHEDULES={SCHEDULES}")
    how = settings(
        max_examples=SCHEDULES,
        stateful_step_count=20,
        deadline=None,
        print_blob=True,
        verbosity=Verbosity.normal,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    Schedule.tally.clear()
    run_state_machine_as_test(seed(SEED)(Schedule), settings=how)
    done = ", ".join(f"{number:.0f} {what}" for what, number in Schedule.tally.items())
    TABLE.numbers[f"schedules by chance, KUMULUS_SEED={SEED}"] = done
    print(done)
    assert Schedule.tally["schedules"] >= SCHEDULES
