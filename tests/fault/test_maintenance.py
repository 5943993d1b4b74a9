"""A host is emptied and opened again with every fault: it ends as without, and no machine runs twice."""

from __future__ import annotations

import pytest

from tests.fault import campaign
from tests.fault.campaign import SEED, TABLE
from tests.fault.maintenance import PLAN, REMOVAL
from tests.fault.runner import VIRTUAL
from tests.fault.test_plans import EVERY


@pytest.mark.timeout(3600)
def test_any_fault_changes_nothing() -> None:
    right = campaign.faultless(PLAN)
    failed = []
    for kind, troubles in (
        ("crashes", campaign.crashes(right.deeds)),
        ("others", campaign.others(right.deeds, VIRTUAL, EVERY)),
    ):
        for trouble in troubles:
            result = campaign.in_memory(PLAN, trouble, right, SEED)
            TABLE.add(f"in memory: {kind}", result)
            failed += [] if result.ok else [str(result)]
    assert not failed, f"KUMULUS_SEED={SEED}\n" + "\n".join(failed)


@pytest.mark.timeout(3600)
def test_a_death_while_a_host_is_removed_changes_nothing() -> None:
    right = campaign.faultless(REMOVAL)
    failed = []
    for trouble in campaign.crashes(right.deeds):
        result = campaign.in_memory(REMOVAL, trouble, right, SEED)
        TABLE.add("in memory: crashes", result)
        failed += [] if result.ok else [str(result)]
    assert not failed, f"KUMULUS_SEED={SEED}\n" + "\n".join(failed)
