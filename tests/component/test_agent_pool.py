"""A pool that goes away and comes back, as an unmounted file system does (QUALITY F14)."""

# ruff: noqa: ASYNC221, ASYNC240 - small files and a short program, in tests

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kumulus.api.order_names import pool_order_name
from kumulus_lab.cluster import NativeCluster
from tests.patience import PATIENCE
from tests.unit.agent.host import POOL, TestHost, host_on
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.cluster, needs_root]

MIB = 1 << 20
THERE = pool_order_name(POOL["uid"])
POOL_FOR = {"kind": "StoragePool", "name": "local", "uid": POOL["uid"]}


@pytest.fixture
async def host(cluster: NativeCluster, tmp_path: Path) -> AsyncIterator[TestHost]:
    """A host whose pool is a directory."""
    async with host_on(cluster.kubeconfig, directory=tmp_path) as made:
        yield made


@pytest.mark.parametrize("restarted", [False, True], ids=["while the agent runs", "while it does not"])
async def test_a_pool_that_vanishes_is_said_and_heals(host: TestHost, tmp_path: Path, restarted: bool) -> None:
    pool, away = tmp_path / "pool", tmp_path / "away"
    async with host.running():
        await host.create(THERE, {"type": "Pool", "for": POOL_FOR, "pool": {"pool": POOL}})
        await host.until(THERE, state="Ready")
        volume = await host.volume_order(size=64 * MIB)
        await host.until_volume(volume, state="Ready")
        file = str(pool / f"volumes/{volume}.qcow2")
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", "-c", "flush", file], check=True)
        if not restarted:
            pool.rename(away)
            pool.mkdir()
            await gone_and_back(host, pool, away)
    if restarted:
        pool.rename(away)
        pool.mkdir()
        async with host.running():
            await gone_and_back(host, pool, away)
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "read -P 7 1M 64k", file], capture_output=True, text=True, check=True
    )
    assert "verification failed" not in done.stdout


async def gone_and_back(host: TestHost, pool: Path, away: Path) -> None:
    """Something is asked of the pool while it is away; then it comes back."""
    other = await host.volume_order(size=64 * MIB)
    async with asyncio.timeout(5 * PATIENCE):
        said = await host.until_volume(other, state="Failed", reason="PoolNotThere")
        assert "not mounted" in said["message"]
        await host.until(THERE, state="Failed", reason="PoolNotThere")
    assert list(pool.iterdir()) == [], "nothing was made in its place"
    pool.rmdir()
    away.rename(pool)
    await host.until(THERE, seconds=15, state="Ready")
    await host.until_volume(other, seconds=15, state="Ready")
