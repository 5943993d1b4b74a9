"""Commands on Ceph pools that end as they should not; with programs that only do so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest

from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters, PoolSecret, RbdParameters
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rbd.cluster import Cluster
from kumulus_agents.storage.settings import CephSettings, StorageSettings
from tests.unit.storage.material import uid

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: keys are in files of root")

CRASHES = """\
#!/bin/sh
n=$(cat {count} 2>/dev/null || echo 0)
echo $((n + 1)) >{count}
[ $n -ge {times} ] || kill -ABRT $$
echo '{{"size": 7}}'
"""


class Keys:
    """Every Secret has a key."""

    async def read(self, name: str) -> Mapping[str, bytes]:
        return {"key": b"secret"}


def cluster(directory: Path, times: int) -> Cluster:
    """One whose `rbd` crashes so often."""
    program = directory / "rbd"
    program.write_text(CRASHES.format(count=directory / "count", times=times))
    program.chmod(0o755)
    parameters = RbdParameters(monitors=("192.0.2.1",), pool="p", user="u", secret=PoolSecret(name="s"))
    pool = PoolRef(uid=uid(), name="far", driver=PoolDriver.RBD, parameters=PoolParameters(rbd=parameters))
    ceph = CephSettings(rbd=PurePosixPath(program), runtime=PurePosixPath(directory / "run"))
    return Cluster(pool, parameters, StorageSettings(ceph=ceph), Keys())


async def test_a_question_over_which_rbd_crashes_is_asked_again_once(tmp_path: Path) -> None:
    assert await cluster(tmp_path, 1).ask("info", "p/x") == {"size": 7}
    (tmp_path / "count").unlink()
    with pytest.raises(StorageError, match="signal 6") as failed:
        await cluster(tmp_path, 2).ask("info", "p/x")
    assert (failed.value.reason, failed.value.retryable) == ("PoolFailed", True)


async def test_a_change_over_which_rbd_crashes_is_not_made_twice(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as failed:
        await cluster(tmp_path, 1).do("create", "p/x")
    assert (failed.value.reason, (tmp_path / "count").read_text()) == ("PoolFailed", "1\n")


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "10.0.0.1:0/0", "10.0.0.1:0/-1", "[fd00::1]:0/0", "10.0.0.0/24", ":/0", "x:0/7", "--help"]
)
async def test_a_whole_address_is_never_shut_out(tmp_path: Path, address: str) -> None:
    """Others may have it by now, and nobody without the administrator's key lets it in again."""
    with pytest.raises(StorageError, match="cannot be shut out"):
        await cluster(tmp_path, 0).shut_out(address)
