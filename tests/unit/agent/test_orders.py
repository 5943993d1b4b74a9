"""Which machines have which volumes, as their orders and reports say."""

from __future__ import annotations

import itertools
from typing import Any, cast

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.kube.client import KubeClient
from kumulus.kube.store import Key
from kumulus_agents.agent.instance import comes_first
from kumulus_agents.agent.orders import Orders
from tests.unit.agent.host import POOL

VERSIONS = itertools.count(1)
NAMESPACE = "kumulus-host-a"
V1, V2 = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


def raw(name: str, *wants: str, has: tuple[str, ...] = (), made: str = "2026-11-20T10:00:00Z") -> dict[str, Any]:
    disks = [{"name": f"d{uid[-1]}", "pool": POOL, "volume": uid, "bootOrder": 1} for uid in wants]
    uid = f"10000000-0000-4000-8000-{name[-1]:0>12}"
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": uid, "resourceVersion": str(next(VERSIONS)), "creationTimestamp": made},
        "spec": {
            "type": "Instance",
            "for": {"kind": "VirtualMachine", "namespace": "t", "name": name, "uid": uid},
            "instance": {
                "uid": uid, "epoch": 1, "power": "Running", "restartPolicy": "Always",
                "cpus": 1, "memory": 1 << 28, "disks": disks,
            },
        },
        "status": {"instance": {"volumes": list(has)}},
    }  # fmt: skip


def test_a_machine_has_a_volume_until_it_neither_wants_nor_has_it() -> None:
    orders, let_go = Orders(cast("KubeClient", None), NAMESPACE), list[str]()
    orders.listen_let_go(let_go.append)
    store = orders.store
    store.apply(raw("vm-1", V1, V2))
    store.apply(raw("vm-1", V2, has=(V1, V2)))
    assert [order.name for order in orders.of_volume(V1)] == ["vm-1"]
    assert let_go == []
    store.apply(raw("vm-1", V2, has=(V2,)))
    assert let_go == [V1]
    assert orders.of_volume(V1) == []
    store.remove(Key(NAMESPACE, "vm-1"), None)
    assert let_go == [V1, V2]
    assert orders.of_volume(V2) == []


class Answering:
    """An API server whose answer to a write is the object as it is by then."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}

    async def patch(self, *_: object, **__: object) -> dict[str, Any]:
        return self.answer


async def test_what_an_own_write_says_of_others_writing_is_heard() -> None:
    """Only then: the watch was broken when it was written, and has nothing newer to tell."""
    server, woken = Answering(), list[str]()
    orders = Orders(cast("KubeClient", server), NAMESPACE)
    orders.store.apply(raw("vm-1"))
    orders.listen(lambda key: woken.append(key.name))
    order = orders.get("vm-1")
    assert order is not None
    server.answer = {**raw("vm-1"), "status": {"state": "Ready"}}
    assert await orders.report(order, WorkOrderStatus(state=WorkState.READY))
    assert woken == [], "its own status is no news"
    for news in ({"deletionTimestamp": "2026-11-20T11:00:00Z"}, {"generation": 7}):
        server.answer = raw("vm-1")
        server.answer["metadata"] |= news
        assert await orders.report(order, WorkOrderStatus(state=WorkState.FAILED))
        assert woken.pop() == "vm-1"
        assert woken == []


def test_who_comes_first() -> None:
    def order(*arguments: Any, **options: Any) -> WorkOrder:
        return WorkOrder.parse(raw(*arguments, **options))

    mine = order("vm-2", V1)
    assert comes_first(order("vm-1", V1), mine, V1)
    assert not comes_first(order("vm-3", V1), mine, V1)
    assert comes_first(order("vm-3", V1, made="2026-11-20T09:00:00Z"), mine, V1)
    assert not comes_first(order("vm-1", V1, made="2026-11-20T11:00:00Z"), mine, V1)
    assert comes_first(order("vm-3", V2, has=(V1,), made="2026-11-20T11:00:00Z"), mine, V1)
