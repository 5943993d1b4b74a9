"""Networks and interfaces on a real API server: what orders become on the host, and what their status says."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.order_names import gateway_order_name, instance_order_name, segment_order_name
from kumulus.kube.builtin import SECRET
from kumulus_agents.agent import gateway, networks
from kumulus_agents.network.protocol import Identity
from kumulus_lab.cluster import NativeCluster
from tests.unit.agent.host import TestHost, eventually, host_on

pytestmark = pytest.mark.cluster


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig) as made:
        yield made


def nic(network: str, name: str = "eth0", **fields: Any) -> dict[str, Any]:
    uid = str(uuid.uuid4())
    mac = f"02:00:00:00:{uid[:2]}:{uid[2:4]}"
    return {"name": name, "uid": uid, "network": network, "mac": mac, "addresses": ["10.0.0.5"], **fields}


def seen(host: TestHost, uid: str) -> set[str]:
    """Interfaces that the guest has."""
    return {item.uid for item in host.machine.domains[uid].nics}


async def gone(host: TestHost, name: str) -> None:
    await eventually(lambda: host.gone(name), f"the end of {name}")


async def test_a_machine_waits_for_its_network_and_starts_when_that_is_there(host: TestHost) -> None:
    network = str(uuid.uuid4())
    eth0 = nic(network)
    async with host.running():
        uid = await host.order(nics=[eth0])
        await host.until_instance(uid, state="Waiting", reason="SegmentNotReady")
        assert not host.machine.domains
        assert not host.fabric.ports
        await host.segment_order(network)
        status = await host.until_instance(uid, state="Running")
        assert status["instance"]["nics"] == [{"name": "eth0", "uid": eth0["uid"], "attached": True}]
        assert seen(host, uid) == {eth0["uid"]}
        assert host.fabric.ports[eth0["uid"]].machine == uid
        status = await host.until(segment_order_name(network), state="Ready")
        assert (status["segment"]["vni"], status["segment"]["mtu"]) == (5000, 1450)


async def test_a_network_that_is_a_vlan_needs_its_device(host: TestHost) -> None:
    there = await host.segment_order(vni=None, uplink={"device": "eth1", "vlan": 101})
    missing = await host.segment_order(vni=None, uplink={"device": "none0", "vlan": 102})
    async with host.running():
        status = await host.until(segment_order_name(there), state="Ready")
        assert status["segment"]["vlan"] == 101
        assert "vni" not in status["segment"]
        status = await host.until(segment_order_name(missing), state="Failed", reason="UplinkMissing")
        assert "none0" in status["message"]


async def test_interfaces_change_come_and_go_while_a_machine_is_on(host: TestHost) -> None:
    network = await host.segment_order()
    eth0, eth1 = nic(network), nic(network, "eth1")
    async with host.running():
        uid = await host.order(nics=[eth0])
        await host.until_instance(uid, state="Running")
        group = str(uuid.uuid4())
        await host.change(uid, nics=[{**eth0, "groups": [group]}, eth1])
        await eventually(lambda: seen(host, uid) == {eth0["uid"], eth1["uid"]}, "both interfaces")
        await eventually(lambda: host.fabric.ports[eth0["uid"]].nic.groups == (group,), "the group")
        await host.change(uid, nics=[eth1])
        await eventually(lambda: set(host.fabric.ports) == {eth1["uid"]}, "the end of the port")
        assert seen(host, uid) == {eth1["uid"]}
        await host.change(uid, power="Stopped")
        status = await host.until_instance(uid, state="Stopped")
        assert status["instance"]["nics"] == [{"name": "eth1", "uid": eth1["uid"], "attached": False}]
    assert host.machine.starts[uid] == 1


async def test_a_network_goes_when_the_last_interface_has_gone_and_takes_nothing_else_along(host: TestHost) -> None:
    network, other = await host.segment_order(), await host.segment_order()
    eth0 = nic(network)
    async with host.running():
        uid = await host.order(nics=[eth0])
        await host.until_instance(uid, state="Running")
        await host.delete(segment_order_name(network))
        # A machine is to have it: it stays, and the order goes, so that another one can be made.
        await gone(host, segment_order_name(network))
        assert network in host.fabric.segments
        await host.segment_order(network)
        await host.delete(instance_order_name(uid))
        await gone(host, instance_order_name(uid))
        assert not host.fabric.ports
        await host.delete(segment_order_name(network))
        await gone(host, segment_order_name(network))
        assert set(host.fabric.segments) == {other}


async def test_a_guest_that_clings_to_an_interface_keeps_its_filter(host: TestHost) -> None:
    network = await host.segment_order()
    eth0 = nic(network)
    async with host.running():
        uid = await host.order(nics=[eth0])
        await host.until_instance(uid, state="Running")
        host.machine.clinging.add(uid)
        await host.change(uid, nics=[])
        status = await host.until_instance(uid, reason="Detaching")
        assert status["instance"]["nics"] == [{"name": "eth0", "uid": eth0["uid"], "attached": True}]
        assert set(host.fabric.ports) == {eth0["uid"]}
        await host.delete(instance_order_name(uid))
        await gone(host, instance_order_name(uid))
        assert not host.fabric.ports


async def test_a_new_agent_brings_into_force_what_changed_meanwhile_and_tidies_up(host: TestHost) -> None:
    network, forgotten = await host.segment_order(), await host.segment_order()
    eth0, eth1 = nic(network), nic(forgotten, "eth1")
    async with host.running():
        uid = await host.order(nics=[eth0, eth1])
        await host.until_instance(uid, state="Running")
        orphan = await host.order(nics=[nic(forgotten)])
        await host.until_instance(orphan, state="Running")
    group = str(uuid.uuid4())
    await host.change(uid, nics=[{**eth0, "groups": [group]}])
    for name in (segment_order_name(forgotten), instance_order_name(orphan)):
        await host.client.patch(WorkOrder.KIND, name, {"metadata": {"finalizers": []}}, host.namespace)
        await host.delete(name)
    (kept,) = (item.uid for item in host.machine.domains[orphan].nics)
    async with host.running():
        await eventually(lambda: host.fabric.ports[eth0["uid"]].nic.groups == (group,), "the group")
        await eventually(lambda: eth1["uid"] not in host.fabric.ports, "the end of the port")
        assert set(host.fabric.ports) == {eth0["uid"], kept}
        assert set(host.fabric.segments) == {network, forgotten}, "a machine that nobody ordered goes on"
    host.machine.drop(orphan)
    host.fabric.drifted.append("a rule was gone")
    async with host.running():
        await eventually(lambda: set(host.fabric.segments) == {network}, "the end of the network")
        assert set(host.fabric.ports) == {eth0["uid"]}
        await eventually(lambda: not host.fabric.drifted, "mending")
    assert host.machine.starts == {uid: 1, orphan: 1}


async def test_an_interface_that_another_machine_gets_is_not_torn_down_by_the_first(host: TestHost) -> None:
    network = await host.segment_order()
    eth0 = nic(network)
    async with host.running():
        first = await host.order(nics=[eth0])
        await host.until_instance(first, state="Running")
        await host.change(first, nics=[])
        second = await host.order(nics=[eth0])
        await host.until_instance(second, state="Running")
        await eventually(lambda: seen(host, first) == set(), "its letting go")
        await host.until_instance(first, observedGeneration=2, state="Running")
        assert seen(host, second) == {eth0["uid"]}
        assert host.fabric.ports[eth0["uid"]].machine == second


async def test_what_a_host_can_do_is_reported(host: TestHost) -> None:
    async def said() -> dict[str, Any] | None:
        raw = await host.client.find(HostReport.KIND, host.name, host.namespace)
        return ((raw or {}).get("status") or {}).get("network")

    host.fabric.incapable = "The kernel has no VXLAN: load the module vxlan."
    network = await host.segment_order()
    async with host.running():
        assert await eventually(said, "the report") == {
            "drivers": [],
            "functions": [],
            "uplinks": [],
            "underlay": "192.0.2.7",
            "message": "linux: The kernel has no VXLAN: load the module vxlan.",
        }
        await host.until(segment_order_name(network), state="Failed", reason="KernelLacks")
        await host.delete(segment_order_name(network))
        await gone(host, segment_order_name(network))
    host.fabric.incapable = None
    network = await host.segment_order()
    async with host.running():
        await host.until(segment_order_name(network), state="Ready")
        await eventually(lambda: said_ready(said), "the report")


async def test_what_waited_for_a_driver_goes_on_when_that_can_work(
    host: TestHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "TEND_EVERY", 0.2)
    host.fabric.incapable = "The kernel has no VXLAN: load the module vxlan."
    network = await host.segment_order()
    async with host.running():
        uid = await host.order(nics=[nic(network)])
        await host.until(segment_order_name(network), state="Failed", reason="KernelLacks")
        await host.until_instance(uid, reason="KernelLacks")
        host.fabric.incapable = None
        await host.until(segment_order_name(network), state="Ready")
        await host.until_instance(uid, state="Running")


async def said_ready(said: Any) -> bool:
    can = [{"driver": "linux", "functions": [{"name": "KeptConnection"}, {"name": "LoadBalancer"}, {"name": "Router"}]}]
    ways = [{"driver": "linux", "devices": ["eth0", "eth1"]}]
    known = {"drivers": ["linux"], "functions": can, "uplinks": ways, "underlay": "192.0.2.7"}
    return bool(await said() == known)


async def test_a_load_balancer_on_its_host_from_its_certificate_to_its_end(
    host: TestHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its network and its certificate, says who is active and who is well, and holds its network until it goes."""
    monkeypatch.setattr(gateway, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(gateway, "AGAIN", 0.1)
    network, uid, member = (str(uuid.uuid4()) for _ in range(3))
    digest = "ab" * 32
    name, secret = gateway_order_name(uid), f"tls-{uid}"
    certificate = {"digest": digest, "secret": secret}
    spec = {
        "uid": uid,
        "driver": "linux",
        "legs": [{"network": network, "mac": "0a:00:00:00:00:01", "mtu": 1450, "addresses": ["10.0.0.80/24"]}],
        "redundancy": {"group": 1, "priority": 100, "mac": "0a:00:00:00:00:02"},
        "balancer": {
            "addresses": ["10.0.0.80"],
            "listeners": [{"port": 443, "protocol": "HTTPS", "targetPort": 80, "certificate": certificate}],
            "members": [{"uid": member, "address": "10.0.0.11"}],
        },
    }
    async with host.running():
        await host.gateway_order(spec)
        await host.until(name, state="Waiting", reason="SecretNotFound")
        body = {"metadata": {"name": secret}, "stringData": {"tls.pem": "certificates and key"}}
        await host.client.create(SECRET, body, host.namespace)
        await host.until(name, state="Waiting", reason="SegmentNotReady")
        await host.segment_order(network)
        status = await host.until(name, state="Ready")
        assert status["gateway"] == {"active": True, "balancer": {"members": [{"uid": member, "healthy": True}]}}
        assert host.fabric.certificates == {digest: Identity(b"certificates and key")}
        host.fabric.unwell.add(member)
        await host.until(name, gateway={"active": True, "balancer": {"members": [{"uid": member, "healthy": False}]}})
        host.fabric.standby.add(uid)
        await host.until(name, gateway={"active": False})
        await host.delete(segment_order_name(network))
        await host.until(segment_order_name(network), state="Waiting", reason="SegmentInUse")
        await host.delete(name)
        await gone(host, name)
        await gone(host, segment_order_name(network))
        assert not host.fabric.gateways
