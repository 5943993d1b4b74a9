"""Which pools are one and the same on all of their hosts."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import StoragePool

UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"
NFS = {"server": "10.0.0.1", "path": "/vol"}
RBD = {"monitors": ["10.0.0.1"], "pool": "vms", "user": "kumulus", "secret": {"name": "ceph"}}


@pytest.mark.parametrize(
    ("driver", "parameters", "shared"),
    [
        ("dir", {"path": "/x"}, False),
        ("dir", {"path": "/x", "shared": False}, False),
        ("dir", {"path": "/x", "shared": True}, True),
        ("nfs", {"nfs": NFS}, True),
        ("rbd", {"rbd": RBD}, True),
        ("lvm", {"lvm": {"volumeGroup": "vg", "thinPool": "thin"}}, False),
    ],
)
def test_whether_hosts_share_a_pool(driver: str, parameters: dict[str, Any], shared: bool) -> None:
    spec = {"driver": driver, "parameters": parameters}
    pool = StoragePool.parse({"metadata": {"name": "p", "uid": UID}, "spec": spec})
    assert pool.spec.shared is shared
    assert PoolRef(uid=UID, name="p", driver=pool.spec.driver, parameters=pool.spec.parameters).shared is shared
