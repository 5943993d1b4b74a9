"""A pool of the driver lvm on a host that cannot have it: said in its status, and to whoever waits for it.

Real are the API server, the controllers, the agent and the driver, on this machine's kernel.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.cli.people import main
from kumulus.kube.builtin import NAMESPACE
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import Raw, cloud, condition, reason, until
from tests.conftest import new_lab
from tests.contract import thin_pool
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.cluster, needs_root]

EXPECTED = (
    ("VolumeGroupMissing", "vgcreate") if thin_pool.why_none() is None else ("DriverUnsupported", "device-mapper")
)
"""No machine has the volume group."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


async def test_it_is_said_on_the_pool_and_to_who_waits_for_it(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why, cure = EXPECTED
    tag = secrets.token_hex(3)
    name, namespace = f"near-{tag}", f"tenant-{tag}"
    lvm = {"volumeGroup": f"kumulus-{tag}", "thinPool": "thin"}
    async with cloud(lab, tmp_path) as made:
        await made.add_host("host-a")
        await asyncio.to_thread(lab.services.wait_for_hosts, ["host-a"])
        client = made.client
        pool = {
            "metadata": {"name": name, "labels": {"tier": tag}},
            "spec": {"driver": "lvm", "parameters": {"lvm": lvm}},
        }
        await client.create(StoragePool.KIND, pool)
        await client.create(VolumeClass.KIND, {"metadata": {"name": tag}, "spec": {"poolSelector": {"tier": tag}}})
        await client.create(NAMESPACE, {"metadata": {"name": namespace}})
        spec: Raw = {"size": "64Mi", "class": tag}
        await client.create(Volume.KIND, {"metadata": {"name": "data"}, "spec": spec}, namespace)
        spec = {"resources": {"cpus": 1, "memory": "64Mi"}, "disks": [{"name": "data", "volume": "data"}]}
        await client.create(VirtualMachine.KIND, {"metadata": {"name": "web"}, "spec": spec}, namespace)

        async def told() -> Raw | None:
            found = await client.get(StoragePool.KIND, name)
            return found if reason(why)(found) else None

        found = await until(told, f"the pool says {why}")
        assert found["status"]["phase"] == "Pending"
        assert cure in condition(found)["message"]
        (host,) = found["status"]["hosts"]
        assert (host["name"], host["ready"], host["reason"]) == ("host-a", False, why)
        assert name in host["message"]
        accepts = condition(found, "AcceptsVolumes")
        assert (accepts["status"], accepts["reason"]) == ("False", "NotReady")

        async def waits() -> bool:
            vm = await client.get(VirtualMachine.KIND, "web", namespace)
            return reason("NoHostFits", "Scheduled")(vm)

        await until(waits, "the machine waits for a pool")
        command = ["--kubeconfig", str(lab.kubeconfig), "-n", namespace, "vm", "explain", "web"]
        capsys.readouterr()
        await asyncio.to_thread(main, command)
        said = " ".join(capsys.readouterr().out.split())
        assert f"without a ready storage pool labelled tier={tag}" in said
        assert f"The storage pool {name} can be used on no host ({why}): host-a:" in said
        assert cure in said
        for kind, each in ((VirtualMachine.KIND, "web"), (Volume.KIND, "data")):
            await client.delete(kind, each, namespace)
