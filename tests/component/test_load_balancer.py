"""Load balancers against a real API server: an address for life, members as machines come and go, few writes, Secrets.

What hosts do is written by the test, as in `test_network.py`.
"""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.network import NetworkInterface
from kumulus.kube.builtin import SECRET
from tests.component.test_network import Brain, Raw, Stage, message, reason, settle, stage

__all__ = ["stage"]  # the fixture

pytestmark = pytest.mark.cluster

LISTENERS = [{"port": 80, "targetPort": 8080}]


async def balancer(stage: Stage, **spec: object) -> Raw:
    body = {"network": "net", "listeners": LISTENERS, "members": {"selector": {"app": "web"}}, **spec}
    return await stage.make(LoadBalancer, "site", **body)


async def machine(stage: Stage, name: str, **labels: str) -> None:
    size = {"resources": {"cpus": 1, "memory": "64Mi"}, "zone": stage.namespace}
    spec = {**size, "interfaces": [{"name": "eth0", "network": "net"}]}
    await stage.put(VirtualMachine.KIND, name, spec, namespace=stage.namespace, labels=labels)


async def told(stage: Stage) -> dict[str, Raw]:
    """What hosts are told of the load balancer, by host."""
    return {host: order["spec"]["gateway"] for host, order in await stage.orders("Gateway")}


async def addresses(stage: Stage) -> list[set[str]]:
    """Members' addresses, on each host."""
    return [{one["address"] for one in spec["balancer"].get("members", [])} for spec in (await told(stage)).values()]


async def test_the_life_of_a_load_balancer(stage: Stage) -> None:
    """From its address to its end, with machines that come and go, and hosts that do; nothing is written without need, and
    a controller that has just started writes nothing either."""
    brain = Brain(stage.client)
    await stage.network()
    await machine(stage, "one", app="web")
    await machine(stage, "two", app="web")
    await machine(stage, "other", app="db")
    await settle(brain, stage)
    await balancer(stage)
    # A new one is Ready when all hosts with its network know where it is.
    for _ in range(4):
        await brain.passes(stage.namespace)
        await stage.agents(stage.hosts[0])
    found = await stage.get(LoadBalancer, "site")
    assert (found["status"]["activeHost"], reason(found)) == (stage.hosts[0], "HostsNotTold")
    assert stage.hosts[1] in message(found)
    await settle(brain, stage)
    found = await stage.get(LoadBalancer, "site")
    status, given = found["status"], await stage.addresses()
    assert (status["phase"], status["healthy"], reason(found)) == ("Ready", "2/2", "Ready")
    assert status["addresses"] == given["site-lb"]
    assert (status["activeHost"], status["standbyHosts"]) == (stage.hosts[0], [stage.hosts[1]])
    assert {(m["name"], m["vm"], m["address"]) for m in status["members"]} == {
        ("one-eth0", "one", given["one-eth0"][0]),
        ("two-eth0", "two", given["two-eth0"][0]),
    }
    both = {given["one-eth0"][0], given["two-eth0"][0]}
    assert await addresses(stage) == [both, both]
    specs = await told(stage)
    assert set(specs) == set(stage.hosts)
    assert [leg["addresses"] for spec in specs.values() for leg in spec["legs"]] == [
        [f"{status['addresses'][0]}/24"]
    ] * 2
    assert {peer["underlay"] for spec in specs.values() for peer in spec["redundancy"]["peers"]} == {
        "192.0.2.1",
        "192.0.2.2",
    }
    assert set(await stage.segments()) >= set(stage.hosts), "its hosts have the network"

    # Machines come and go, and labels do. What changes within a second is one write a host.
    await machine(stage, "three", app="web")
    await machine(stage, "four", app="web")
    label = {"metadata": {"labels": {"app": "db"}}}
    await stage.client.patch(VirtualMachine.KIND, "one", label, stage.namespace)
    before = {host: order["metadata"]["generation"] for host, order in await stage.orders("Gateway")}
    await settle(brain, stage)
    given = await stage.addresses()
    wanted = {given[f"{name}-eth0"][0] for name in ("two", "three", "four")}
    assert await addresses(stage) == [wanted, wanted]
    after = {host: order["metadata"]["generation"] for host, order in await stage.orders("Gateway")}
    assert all(after[host] - before[host] <= 2 for host in stage.hosts)
    await stage.delete(VirtualMachine, "three")
    await settle(brain, stage)
    wanted.discard(given["three-eth0"][0])
    assert await addresses(stage) == [wanted, wanted]

    versions = {host: order["metadata"]["resourceVersion"] for host, order in await stage.orders("Gateway")}
    version = (await stage.get(LoadBalancer, "site"))["metadata"]["resourceVersion"]
    await settle(Brain(stage.client), stage)
    assert {h: o["metadata"]["resourceVersion"] for h, o in await stage.orders("Gateway")} == versions
    assert (await stage.get(LoadBalancer, "site"))["metadata"]["resourceVersion"] == version

    # Its interface deleted by hand: it comes back with the address, which is the load balancer's for life.
    await stage.delete(NetworkInterface, "site-lb")
    await settle(Brain(stage.client), stage)
    found = await stage.get(LoadBalancer, "site")
    assert found["status"]["addresses"] == status["addresses"]
    assert (await stage.addresses())["site-lb"] == status["addresses"]

    # A host that takes nothing new keeps what it has while there is no other one.
    await stage.client.patch(Host.KIND, stage.hosts[0], {"spec": {"unschedulable": True}})
    await settle(Brain(stage.client), stage)
    assert set(await told(stage)) == set(stage.hosts)

    await stage.delete(LoadBalancer, "site")
    await settle(Brain(stage.client), stage)
    assert await stage.orders("Gateway") == []
    assert "site-lb" not in await stage.addresses()
    assert await stage.client.find(LoadBalancer.KIND, "site", stage.namespace) is None


async def test_what_it_lacks_is_explained_and_secrets_go_where_they_are_needed(stage: Stage, tmp_path: Path) -> None:
    listeners = [{"port": 443, "protocol": "HTTPS", "targetPort": 80, "tls": {"secret": "site"}}]
    brain = Brain(stage.client)
    await balancer(stage, listeners=listeners)
    await settle(brain, stage)
    assert reason(await stage.get(LoadBalancer, "site")) == "NetworkNotFound"
    await stage.network()
    await settle(brain, stage)
    found = await stage.get(LoadBalancer, "site")
    assert (reason(found), found["status"]["phase"]) == ("SecretNotFound", "Failed")
    assert "kubectl create secret tls site" in message(found)
    assert await told(stage) == {}

    await stage.client.create(SECRET, {"metadata": {"name": "site"}, "stringData": {"tls.crt": "x"}}, stage.namespace)
    await settle(brain, stage)
    assert reason(await stage.get(LoadBalancer, "site")) == "SecretNotCertificate"
    assert await told(stage) == {}

    names = []
    for _ in range(2):  # at first, and renewed
        await stage.client.delete(SECRET, "site", stage.namespace)
        data = {name: base64.b64encode(value).decode() for name, value in pair(tmp_path).items()}
        await stage.client.create(SECRET, {"metadata": {"name": "site"}, "data": data}, stage.namespace)
        await settle(brain, stage)
        assert reason(await stage.get(LoadBalancer, "site")) == "NoMembers"
        for host, spec in (await told(stage)).items():
            certificate = spec["balancer"]["listeners"][0]["certificate"]
            copies = [
                item
                for item in await stage.listed(SECRET, host_namespace(host))
                if item["metadata"]["name"].startswith("tls-")
            ]
            assert [item["metadata"]["name"] for item in copies] == [certificate["secret"]], (
                "the one before is taken back"
            )
            assert copies[0]["metadata"]["ownerReferences"][0]["kind"] == "WorkOrder"
            names.append(certificate["secret"])
    assert len(set(names)) == 2

    # Without the Secret it goes on with what its hosts have, and so do changes of its members.
    await stage.client.delete(SECRET, "site", stage.namespace)
    await machine(stage, "one", app="web")
    await settle(brain, stage)
    found = await stage.get(LoadBalancer, "site")
    assert (reason(found), found["status"]["phase"], found["status"]["healthy"]) == ("SecretNotFound", "Ready", "1/1")
    assert [len(members) for members in await addresses(stage)] == [1, 1]
    shown = str(await stage.get(LoadBalancer, "site")) + str(await told(stage))
    assert "PRIVATE" not in shown


def pair(directory: Path) -> dict[str, bytes]:
    """A certificate and its key."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    files = ["-subj", "/CN=lb.example", "-keyout", str(directory / "key"), "-out", str(directory / "crt")]
    subprocess.run([*made, *files], check=True, capture_output=True)
    return {"tls.crt": (directory / "crt").read_bytes(), "tls.key": (directory / "key").read_bytes()}
