"""Every plan with every fault: it ends as without, and nothing happens twice (QUALITY F1 to F4, F10, F16, F19; G18).

Each plan is run without a fault, then once for each deed of controllers and agents with a crash before it, after it, and with its
answer lost, and with the other troubles of `troubles.py`. In memory, in virtual time, all of them; against a real API server and
etcd the crashes, and of the others a selection. `KUMULUS_SEED` repeats the chance of another run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kumulus_lab.cluster import NativeCluster
from tests.fault import campaign
from tests.fault.campaign import TABLE, Table
from tests.fault.parties import How
from tests.fault.plans import PLANS, Plan
from tests.fault.runner import REAL, VIRTUAL, Result, Runner
from tests.fault.world import Real, world

WIDE_LIMIT = 3600


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[Table]:
    """What was tried, printed in the end."""
    yield TABLE
    print(f"\nKUMULUS_SEED={campaign.SEED}", *TABLE.lines(), sep="\n")


@pytest.mark.timeout(WIDE_LIMIT)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_any_fault_changes_nothing(plan: Plan, table: Table) -> None:
    right = campaign.faultless(plan)
    failed = []
    for kind, troubles in (
        ("crashes", campaign.crashes(right.deeds)),
        ("others", campaign.others(right.deeds, VIRTUAL)),
    ):
        for trouble in troubles:
            result = campaign.in_memory(plan, trouble, right, campaign.SEED)
            table.add(f"in memory: {kind}", result)
            failed += [] if result.ok else [str(result)]
    assert not failed, f"KUMULUS_SEED={campaign.SEED}\n" + "\n".join(failed)


@pytest.mark.cluster
@pytest.mark.timeout(WIDE_LIMIT)
async def test_any_fault_changes_nothing_on_a_real_api_server(cluster: NativeCluster, table: Table) -> None:
    failed: list[str] = []
    for plan in PLANS:
        async with world(Real(cluster.kubeconfig)) as made:
            runner = Runner(made, REAL)
            await runner.open()
            right = await runner.run(plan)
            assert right.ok, str(right)
            again = await runner.run(plan, fault="none, again", right=right.state)
            assert again.ok, str(again)
            for kind, troubles in (
                ("crashes", campaign.crashes(right.deeds, (How.AFTER,))),
                ("others", campaign.thinned(campaign.others(right.deeds, REAL), 12)),
            ):
                for trouble in troubles:
                    result: Result = await runner.run(plan, trouble.arm, trouble.name, right.state)
                    table.add(f"API server: {kind}", result)
                    failed += [] if result.ok else [str(result)]
    assert not failed, "\n".join(failed)
