"""Every plan with every fault: it ends as without, and nothing happens twice (QUALITY F1 to F4, F10, F16, F19; G18).

Each plan is run without a fault, then once for each deed of controllers and agents with a crash before it, after it, and with its
answer lost, and with the other troubles of `troubles.py`. In memory, in virtual time, all of them; against a real API server and
etcd a crash after each deed, and a selection of the others. `KUMULUS_SEED` repeats the chance of another run, `KUMULUS_PLANS`
names what alone is run ("create,stop").
"""

from __future__ import annotations

import os

import pytest

from kumulus_lab.cluster import NativeCluster
from tests import leftovers
from tests.fault import campaign, maintenance
from tests.fault.backends import Real
from tests.fault.campaign import SEED, TABLE
from tests.fault.parties import How
from tests.fault.plans import BY_NAME, PLANS, Plan
from tests.fault.runner import REAL, TENANT, VIRTUAL, Runner
from tests.fault.world import world

NAMED = [name.strip() for name in os.environ.get("KUMULUS_PLANS", "").split(",") if name.strip()]
CHOSEN = [BY_NAME[name] for name in NAMED if name in BY_NAME] if NAMED else PLANS
MAINTENANCE = (maintenance.PLAN, maintenance.EVACUATION, maintenance.REMOVAL)
ONLY_IN_MEMORY = [plan for plan in MAINTENANCE if not NAMED or plan.name in NAMED]
"""Plans that leave hosts as a real API server would have to forget them."""
EVERY = 3
"""In memory, troubles that are no crashes come at every so-manyth deed."""
OTHERS = 4
"""So many of them does a plan get against a real API server."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("plan", (*CHOSEN, *ONLY_IN_MEMORY), ids=str)
def test_any_fault_changes_nothing(plan: Plan) -> None:
    right = campaign.faultless(plan)
    kinds = {"crashes": campaign.crashes(right.deeds)}
    if plan is not maintenance.REMOVAL:
        kinds["others"] = campaign.others(right.deeds, VIRTUAL, EVERY)
    failed = campaign.failures(plan, kinds, right, seed=SEED, told=True)
    assert not failed, f"KUMULUS_SEED={SEED}\n" + "\n".join(failed)


@pytest.mark.cluster
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("plan", CHOSEN, ids=str)
async def test_any_fault_changes_nothing_on_a_real_api_server(cluster: NativeCluster, plan: Plan) -> None:
    failed: list[str] = []
    leftovers.leave(TENANT)
    async with world(Real(cluster.kubeconfig)) as made:
        runner = Runner(made, REAL)
        await runner.open()
        right = await runner.run(plan)
        again = await runner.run(plan, fault="none, again", right=right.state)
        assert right.ok, str(right)
        assert again.ok, str(again)
        for kind, troubles in (
            ("crashes", campaign.crashes(right.deeds, (How.AFTER,))),
            ("others", campaign.thinned(campaign.others(right.deeds, REAL), OTHERS)),
        ):
            for trouble in troubles:
                result = await runner.run(plan, trouble.arm, trouble.name, right.state, again=trouble.again)
                TABLE.add(f"API server: {kind}", result)
                failed += [] if result.ok else [str(result)]
    assert not failed, "\n".join(failed)
