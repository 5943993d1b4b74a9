"""A host is emptied and opened again, and somebody dies meanwhile: a quick selection of `make fault`, in memory."""

from __future__ import annotations

from tests.fault import campaign
from tests.fault.maintenance import PLAN, REMOVAL
from tests.fault.parties import How

QUICK = 2


def test_a_death_at_a_few_deeds_changes_nothing() -> None:
    right = campaign.in_memory(PLAN)
    assert right.ok, str(right)
    results = [
        campaign.in_memory(PLAN, trouble, right)
        for trouble in campaign.thinned(campaign.crashes(right.deeds, (How.AFTER,)), QUICK)
    ]
    assert not (failed := [str(result) for result in results if not result.ok]), "\n".join(failed)


def test_what_is_off_leaves_a_host_that_is_removed() -> None:
    result = campaign.in_memory(REMOVAL)
    assert result.ok, str(result)
