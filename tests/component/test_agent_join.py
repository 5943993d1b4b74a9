"""Joining, and what an agent may do with the credentials it then has."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from kumulus.api.fabric import Host
from kumulus.api.host import JOIN_SERVICE_ACCOUNT
from kumulus.kube.builtin import SECRET, SERVICE_ACCOUNT
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import Refused
from kumulus.runtime.clock import SystemClock
from kumulus_agents.agent.credentials import TokenKeeper
from kumulus_agents.agent.identity import CREDENTIALS, StateDirectory, read_bundle
from kumulus_agents.agent.join import join
from kumulus_controllers.fabric.credentials import ensure_namespace
from kumulus_lab.cluster import NativeCluster
from tests.unit.agent.host import TestHost, eventually, host_on

pytestmark = pytest.mark.cluster


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig, namespace_made=False) as made:
        model = Host.parse({"metadata": {"name": made.name, "uid": "u-1"}, "spec": {"zone": "z"}})
        await ensure_namespace(made.client, model)
        yield made


async def bundle_for(host: TestHost, cluster: NativeCluster) -> str:
    """What `kumulusctl host add` would give."""
    await host.client.delete(SECRET, "kumulus-join", host.namespace)
    secret = await host.client.create(SECRET, {"metadata": {"name": "kumulus-join"}}, host.namespace)
    bound = {"apiVersion": "v1", "kind": "Secret", "name": "kumulus-join", "uid": secret["metadata"]["uid"]}
    spec = {"expirationSeconds": 600, "boundObjectRef": bound}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = await host.client.create_sub(SERVICE_ACCOUNT, JOIN_SERVICE_ACCOUNT, "token", request, host.namespace)
    return json.dumps(
        {
            "apiVersion": "kumulus.io/v1alpha1",
            "kind": "JoinBundle",
            "server": cluster.server,
            "caData": base64.b64encode(cluster.authority.pair.certificate.read_bytes()).decode(),
            "host": host.name,
            "namespace": host.namespace,
            "token": answer["status"]["token"],
        }
    )


def agent_client(state: StateDirectory, keeper: TokenKeeper, cluster: NativeCluster) -> KubeClient:
    return KubeClient.with_token(cluster.server, state.authority, keeper.token, user_agent="tests-agent")


async def agent_command(*arguments: str) -> tuple[int | None, str]:
    """Run kumulus-agent; its exit code and all it said."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("kumulus-agent"), *arguments, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_a_bundle_works_once(host: TestHost, cluster: NativeCluster, tmp_path: Path) -> None:
    text = await bundle_for(host, cluster)
    (tmp_path / "bundle").write_text(text)
    arguments = ["join", "--bundle", str(tmp_path / "bundle"), "--state", str(tmp_path / "state")]
    code, first = await agent_command(*arguments)
    assert code == 0, first
    assert f"{host.name} has joined" in first
    assert await host.client.find(SECRET, "kumulus-join", host.namespace) is None

    code, second = await agent_command(*arguments)
    assert code == 1
    assert "this join token was used or has expired; run kumulusctl host add again" in second

    credentials = tmp_path / "state" / CREDENTIALS
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in credentials.iterdir()} == {0o600}
    stored = StateDirectory(tmp_path / "state").load()
    life = (stored.expires_at - SystemClock().now()).total_seconds()
    assert 3000 < life <= 3600
    said = first + second + repr(stored) + repr(read_bundle(text))
    assert stored.token.get_secret_value() not in said
    assert json.loads(text)["token"] not in said


async def test_an_agent_with_a_host_s_own_rights_does_its_work(
    host: TestHost, cluster: NativeCluster, tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path)
    credentials = await join(read_bundle(await bundle_for(host, cluster)), state, SystemClock())
    keeper = TokenKeeper(state, credentials, SystemClock())
    client = agent_client(state, keeper, cluster)
    try:
        async with host.running(client, expires_at=lambda: keeper.expires_at) as agent:
            uid = await host.order()
            await host.until_instance(uid, state="Running")
            await host.import_order()
            await host.until("image-1", state="Ready")
            name = f"instance-{uid}"
            await host.delete(name)
            await host.delete("image-1")
            await eventually(lambda: host.gone(name), "the machine's end")
            await eventually(lambda: host.gone("image-1"), "the image's end")
            await eventually(lambda: agent.heartbeat.age is not None, "a heartbeat")
            await eventually(lambda: agent.reporter.hypervisor_problem is None, "a report")
        with pytest.raises(Refused):
            await client.get(SECRET, "anything", "kumulus-system")
    finally:
        await client.close()


async def test_credentials_renew_themselves(host: TestHost, cluster: NativeCluster, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    first = await join(read_bundle(await bundle_for(host, cluster)), state, SystemClock())
    pauses: list[float] = []
    renewed = asyncio.Event()

    async def skip(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 1:
            await asyncio.Event().wait()

    keeper = TokenKeeper(state, first, SystemClock(), renewed=renewed.set, sleep=skip)
    client = agent_client(state, keeper, cluster)
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(keeper.run(client))
            await renewed.wait()
            task.cancel()
    finally:
        await client.close()
    assert 2300 < pauses[0] <= 2400
    assert keeper.token() != first.token.get_secret_value()
    assert state.load().token.get_secret_value() == keeper.token()


async def test_joining_again_replaces_the_credentials(host: TestHost, cluster: NativeCluster, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    before = await join(read_bundle(await bundle_for(host, cluster)), state, SystemClock())
    after = await join(read_bundle(await bundle_for(host, cluster)), state, SystemClock())
    assert state.load().token == after.token != before.token


async def test_a_running_agent_takes_up_credentials_of_a_new_join(
    host: TestHost, cluster: NativeCluster, tmp_path: Path
) -> None:
    """Its own have ended, and somebody runs `kumulus-agent join` beside it."""
    state = StateDirectory(tmp_path)
    fresh = await join(read_bundle(await bundle_for(host, cluster)), state, SystemClock())
    ended = fresh.model_copy(update={"token": SecretStr("ended")})
    renewed = asyncio.Event()

    async def skip(_: float) -> None:
        await asyncio.sleep(0) if not renewed.is_set() else await asyncio.Event().wait()

    keeper = TokenKeeper(state, ended, SystemClock(), renewed=renewed.set, sleep=skip)
    client = agent_client(state, keeper, cluster)
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(keeper.run(client))
            await renewed.wait()
            task.cancel()
    finally:
        await client.close()
    assert keeper.problem is None
    assert keeper.token() not in ("ended", fresh.token.get_secret_value())
